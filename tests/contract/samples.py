"""Records for the contract suites: small, valid, and each different by what the caller names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.domain.agent import Agent
from engine.domain.context import ContextItem
from engine.domain.definition import DefinitionVersion, Step, WorkflowDefinition
from engine.domain.execution import (
    Event,
    ExecutionOptions,
    ExecutionRecord,
    ExecutionStatus,
    LiveExecution,
    LiveStep,
    StepRecord,
    StepStatus,
    Value,
)
from engine.domain.gate import GateRecord, Transition
from engine.domain.handoff import Handoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.domain.page import Page, Position

NOW = datetime(2026, 3, 1, 12, 0, 0, 0, tzinfo=UTC)
"""An instant without microseconds, which ISO text leaves out unless it is told."""

AWKWARD_TEXTS = [
    "",
    " ",
    "Übung 架構 🚀",
    "'; DROP TABLE executions; --",
    'a "quoted" `name`',
    "$where",
    "${input.secret}",
    "a.b.c",
    "a/b:c*?[d]{e}",
    "%_",
    "__proto__",
    "nul\x00inside",
    "line\r\nbreak",
    "x" * 5000,
]

AWKWARD_VALUES: list[Any] = [
    None,
    {},
    [],
    "",
    {"": "", "$ne": None, "a.b": {"$where": 1}, "é": ["架", "\x00", "\u2028"]},
    [2**63 - 1, -(2**63), 2**64 - 1, 0, -1, 1.5, 1e308, 5e-324, True, False],
    [1, 1.0, "1"],
    "${input.x}",
    "x" * 300_000,
]


def deep_value(levels: int = 64) -> Any:
    value: Any = "bottom"
    for level in range(levels):
        value = {"below": value} if level % 2 else [value]
    return value


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def definition(definition_id: str = "flow", version: int = 1, **changes: Any) -> DefinitionVersion:
    content = {
        "name": changes.pop("name", "Flow"),
        "tags": changes.pop("tags", []),
        "metadata": changes.pop("metadata", {}),
        "steps": [Step(id="a", agent_id="agent-a")],
    }
    created_at = changes.pop("created_at", NOW)
    return DefinitionVersion(
        definition_id=definition_id,
        version=version,
        content_hash=f"sha256:{version:064d}",
        definition=WorkflowDefinition(**content),
        created_at=created_at,
        updated_at=changes.pop("updated_at", created_at),
        **changes,
    )


def agent(agent_id: str = "agent-a", version: int = 1, **changes: Any) -> Agent:
    created_at = changes.pop("created_at", NOW)
    given = {"name": "A", "kind": "python", "content_hash": "sha256:0", "updated_at": created_at, **changes}
    return Agent(agent_id=agent_id, version=version, created_at=created_at, **given)


def handoff(handoff_id: str = "handoff-a", source: str = "agent-a", target: str = "agent-b", **changes: Any) -> Handoff:
    created_at = changes.pop("created_at", NOW)
    return Handoff(
        handoff_id=handoff_id,
        source_agent_id=source,
        target_agent_id=target,
        created_at=created_at,
        updated_at=created_at,
        **changes,
    )


def execution(execution_id: str = "flow-1", **changes: Any) -> ExecutionRecord:
    tags = changes.pop("tags", [])
    given: dict[str, Any] = {
        "definition_id": "flow",
        "version": 1,
        "plan_hash": "sha256:plan",
        "status": ExecutionStatus.PENDING,
        "input": Value.of({"question": "why"}),
        "input_hash": "sha256:input",
        "options": ExecutionOptions(tags=tags),
        "step_ids": ["a", "b"],
        "created_at": NOW,
        **changes,
    }
    return ExecutionRecord(execution_id=execution_id, **given)


def ended(execution_id: str = "flow-1", **changes: Any) -> ExecutionRecord:
    """The end of run-1, which started a second after the execution was created."""
    given: dict[str, Any] = {
        "status": ExecutionStatus.COMPLETED,
        "run_id": "run-1",
        "run_started_at": NOW + seconds(1),
        "started_at": NOW + seconds(1),
        "completed_at": NOW + seconds(11),
        "history_length": 20,
        "output": Value.of({"answer": 42}),
        **changes,
    }
    return execution(execution_id, **given)


def step(step_id: str = "a", token: int = 100, **changes: Any) -> StepRecord:
    given: dict[str, Any] = {
        "execution_id": "flow-1",
        "run_id": "run-1",
        "status": StepStatus.COMPLETED,
        "agent_id": "agent-a",
        "attempts": 1,
        "started_at": NOW + seconds(2),
        "completed_at": NOW + seconds(3),
        **changes,
    }
    return StepRecord(step_id=step_id, token=token, **given)


def gate(gate_id: str = "approve.1", token: int = 100, **changes: Any) -> GateRecord:
    given: dict[str, Any] = {
        "execution_id": "flow-1",
        "definition_id": "flow",
        "run_id": "run-1",
        "kind": "approval",
        "status": "open",
        "step_id": "approve",
        "question": "Shall it go on?",
        "allowed": ["approve", "reject"],
        "opened_at": NOW + seconds(2),
        **changes,
    }
    return GateRecord(gate_id=gate_id, token=token, **given)


def transition(token: int = 200, status: ExecutionStatus | None = None, **changes: Any) -> Transition:
    """Of run-1, which started a second after the execution was created."""
    given: dict[str, Any] = {
        "execution_id": "flow-1",
        "run_id": "run-1",
        "run_started_at": NOW + seconds(1),
        **changes,
    }
    return Transition(token=token, status=status, **given)


def context_item(item_id: str = "item-1", text: str = "what was said", **changes: Any) -> ContextItem:
    given: dict[str, Any] = {
        "text_hash": f"sha256:{text}",
        "definition_id": "flow",
        "execution_id": "flow-1",
        "step_id": "a",
        "agent_id": "agent-a",
        "created_at": NOW,
        **changes,
    }
    return ContextItem(item_id=item_id, text=text, **given)


def live_head(execution_id: str = "flow-1", token: int = 1, **changes: Any) -> LiveExecution:
    given: dict[str, Any] = {"status": ExecutionStatus.RUNNING, "step_ids": ["a", "b"], "created_at": NOW, **changes}
    return LiveExecution(execution_id=execution_id, definition_id="flow", version=1, token=token, **given)


def live_step(step_id: str = "a", token: int = 1, **changes: Any) -> LiveStep:
    given: dict[str, Any] = {"status": StepStatus.RUNNING, **changes}
    return LiveStep(step_id=step_id, token=token, **given)


def event(number: int, **data: Any) -> Event:
    return Event.at_instant("agent.progress", NOW + seconds(number), f"a.{number}", "a", number=number, **data)


async def walk(list_page: Callable[[Position | None], Awaitable[Page[Any]]], limit: int) -> list[Any]:
    """Return all items by following positions; every page but the last is full, and only the last has no next."""
    items: list[Any] = []
    after: Position | None = None
    while True:
        page = await list_page(after)
        items += page.items
        if page.next is None:
            assert len(page.items) <= limit
            return items
        assert len(page.items) == limit
        assert page.next != after
        after = page.next
