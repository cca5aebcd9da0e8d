"""Plans for the tests of what runs them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.domain.agent import Agent, AgentKind
from engine.domain.definition import DefinitionVersion, WorkflowDefinition
from engine.domain.definition_reads import agent_ids_of, handed_agents
from engine.domain.handoff import Handoff
from engine.domain.plan_compiler import compile_plan

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


def agent(agent_id: str, kind: AgentKind = "python") -> Agent:
    return Agent(
        agent_id=agent_id,
        version=1,
        name=agent_id,
        kind=kind,
        config={"function": "m:f"} if kind == "python" else {"model": "m"},
        content_hash="sha256:a",
        created_at=START,
        updated_at=START,
    )


def stored(steps: list[dict[str, Any]], **fields: Any) -> DefinitionVersion:
    return DefinitionVersion(
        definition_id="flow",
        version=3,
        content_hash="sha256:d",
        definition=WorkflowDefinition.model_validate({"name": "Flow", "steps": steps, **fields}),
        created_at=START,
        updated_at=START,
    )


def handoff(number: int, source: str, target: str, *conditions: str, **fields: Any) -> Handoff:
    """The handoff ``h<number>``; a smaller number was made earlier."""
    made_at = START + timedelta(seconds=number)
    return Handoff(
        handoff_id=f"h{number}",
        source_agent_id=source,
        target_agent_id=target,
        trigger_conditions=[*conditions],
        created_at=made_at,
        updated_at=made_at,
        **fields,
    )


def plan_of(steps: list[dict[str, Any]], acting: list[Handoff] | None = None, **fields: Any) -> ExecutionPlan:
    """The plan of a definition with the handoffs that act on it; an agent step without ``agent_id`` has ``agent-a``."""
    version = stored([_with_agent(step) for step in steps], **fields)
    definition = version.definition
    ids = [*agent_ids_of(definition), *handed_agents(definition, acting or [])]
    agents = {agent_id: agent(agent_id) for agent_id in ids}
    return compile_plan(version, agents, acting or [], default_max_retries=3)


def _with_agent(step: dict[str, Any]) -> dict[str, Any]:
    return step if step.get("type", "agent") != "agent" else {"agent_id": "agent-a", **step}
