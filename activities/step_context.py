"""What a step is reminded of before its agent is called, and what it leaves for others to be reminded of.

Nothing here can fail a step: a recall is a help, no input.

The agent's input may still lack what its mapping reads of ``${context}``; that is the mapping's own fault, and a
default helps.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from activities.operand_values import resolve
from engine.domain.context_text import step_item
from engine.domain.execution import ContextSource, ExecutionWarning
from engine.domain.expressions import MissingPathError
from engine.domain.hashing import canonical_json
from engine.domain.metrics import format_instant
from engine.domain.operands import missing_path
from engine.errors import EngineError, StoreError
from engine.ports.context_memory import RecallRequest

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.context import ContextMatch
    from engine.domain.json import JsonValue
    from engine.domain.messages import AgentCallInput, RecallInput
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.context_memory import ContextMemory
    from engine.ports.execution_store import ExecutionStore

__all__ = ["Recalled", "recall_for", "remember_output"]

RECALL_DEADLINE: Final = timedelta(seconds=3)
MAX_QUERY_CHARS: Final = 8_000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was found, for the agent and for the record."""

    items: list[JsonValue] = field(default_factory=list["JsonValue"])
    """``{text, score, source: {execution_id, step_id, agent_id}, created_at}``, best first."""
    sources: list[ContextSource] = field(default_factory=list[ContextSource])
    warnings: list[ExecutionWarning] = field(default_factory=list[ExecutionWarning])


async def recall_for(
    call: AgentCallInput, memory: ContextMemory, executions: ExecutionStore, artifacts: ArtifactStore
) -> Recalled:
    """Return what the call's recall finds; a fault of the stores is a warning and nothing found."""
    if call.recall is None:
        return Recalled()
    try:
        async with asyncio.timeout(RECALL_DEADLINE.total_seconds()):
            query = await _query_of(call.recall, call, executions, artifacts)
            matches = await memory.recall(_request(call, call.recall, query)) if query else []
    except MissingPathError as error:
        return _nothing(call, missing_path("context.recall", error))
    except TimeoutError:
        return _nothing(call, f"it took longer than {RECALL_DEADLINE.total_seconds():g} s")
    except EngineError as error:
        return _nothing(call, error.message)
    return Recalled([_shown(match) for match in matches], [_source(match) for match in matches])


async def remember_output(
    call: AgentCallInput, output: JsonValue, completed_at: datetime, memory: ContextMemory
) -> None:
    """Let later steps find a completed step's text: at once when the plan recalls anything, else soon."""
    item = step_item(call.execution_id, call.definition_id, call.step_id, call.agent.agent_id, output, completed_at)
    if item is None:
        return
    if not call.remember_now:
        memory.remember_later(item)
        return
    try:
        await memory.remember(item)
    except StoreError as error:
        _logger.warning("The text of step %s is not to be found yet: %s", call.step_id, error)


async def _query_of(
    recall: RecallInput, call: AgentCallInput, executions: ExecutionStore, artifacts: ArtifactStore
) -> str:
    found = await resolve(recall.query, call.execution_id, executions, artifacts)
    text = found if isinstance(found, str) else "" if found is None else canonical_json(found).decode()
    return text[:MAX_QUERY_CHARS].strip()


def _request(call: AgentCallInput, recall: RecallInput, query: str) -> RecallRequest:
    return RecallRequest(
        query=query,
        scope=recall.scope,
        top_k=recall.top_k,
        execution_id=call.execution_id,
        definition_id=call.definition_id,
        agent_id=call.agent.agent_id,
    )


def _nothing(call: AgentCallInput, why: str) -> Recalled:
    _logger.warning("Nothing was recalled for %s: %s", call.step_id, why)
    message = f"Nothing was recalled for the step: {why}"
    return Recalled(
        warnings=[ExecutionWarning(code="context_unavailable", message=message[:1_000], step_id=call.step_id)]
    )


def _shown(match: ContextMatch) -> JsonValue:
    item = match.item
    return {
        "text": item.text,
        "score": match.score,
        "source": {"execution_id": item.execution_id, "step_id": item.step_id, "agent_id": item.agent_id},
        "created_at": format_instant(item.created_at),
    }


def _source(match: ContextMatch) -> ContextSource:
    item = match.item
    return ContextSource(
        item_id=item.item_id,
        score=match.score,
        execution_id=item.execution_id,
        step_id=item.step_id,
        agent_id=item.agent_id,
    )
