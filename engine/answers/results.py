"""From ended executions to their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from engine.answers.values import cancel, duration, error, instant, origin, usage, warnings
from engine.domain.execution import Usage
from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine import types
    from engine.domain.execution import Event, StepRecord, ToolCall
    from engine.domain.json import JsonValue
    from engine.services.execution_reads import ExecutionResult

__all__ = ["StepTrace", "execution_result"]


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step's traced values, fetched from wherever they lie."""

    input: JsonValue = None
    transcript: JsonValue = None


def execution_result(
    result: ExecutionResult,
    output: JsonValue,
    step_outputs: Mapping[str, JsonValue],
    traces: Mapping[str, StepTrace],
) -> types.ExecutionResult:
    """Answer of ``get_execution_result``; outputs and traces are resolved by the caller."""
    record = result.record
    answer: types.ExecutionResult = {
        "execution_id": record.execution_id,
        "workflow_id": record.definition_id,
        "version": record.version,
        "status": record.status.value,
        "output": output,
        "steps": {
            step_id: _step_result(
                result.steps.get(step_id), step_outputs.get(step_id), traces.get(step_id, StepTrace())
            )
            for step_id in dict.fromkeys((*record.step_ids, *result.steps))
        },
        "handoffs": [_handoff_taken(event) for event in result.handoffs],
        "warnings": warnings(record.warnings),
        "usage": usage(record.usage),
        "error": error(record.error),
        "started_at": instant(record.started_at),
        "completed_at": instant(record.completed_at),
        "duration": duration(record.started_at, record.completed_at),
    }
    if record.cancel is not None:
        answer["cancel"] = cancel(record.cancel)
    if record.rerun_of is not None:
        answer["rerun_of"] = record.rerun_of
    return answer


def _step_result(record: StepRecord | None, output: JsonValue, trace: StepTrace) -> types.StepResult:
    if record is None:
        return {
            "status": "pending",
            "agent_id": None,
            "attempts": 0,
            "output": None,
            "error": None,
            "reason": None,
            "started_at": None,
            "completed_at": None,
            "duration": None,
            "usage": usage(Usage()),
        }
    answer: types.StepResult = {
        "status": record.status.value,
        "agent_id": record.agent_id,
        "attempts": record.attempts,
        "output": output,
        "error": error(record.error),
        "reason": record.reason,
        "started_at": instant(record.started_at),
        "completed_at": instant(record.completed_at),
        "duration": duration(record.started_at, record.completed_at),
        "usage": usage(record.usage),
    }
    if record.tool_calls:
        answer["tool_calls"] = [_tool_call(call) for call in record.tool_calls]
    if record.context:
        answer["context"] = [
            {"item_id": item.item_id, "score": item.score, "source": origin(item)} for item in record.context
        ]
    if record.input is not None:
        answer["input"] = trace.input
    if record.transcript is not None:
        answer["transcript"] = trace.transcript
    if record.iteration > 1:
        answer["iteration"] = record.iteration
    if record.child_execution_id is not None:
        answer["child_execution_id"] = record.child_execution_id
    if record.reused_from is not None:
        answer["reused_from"] = record.reused_from
    return answer


def _handoff_taken(event: Event) -> types.HandoffTaken:
    texts = ("handoff_id", "source_step", "target_step", "source_agent_id", "target_agent_id", "reason")
    found: dict[str, object] = {key: event.data.get(key) for key in texts}
    found |= {
        "taken": event.type == "handoff.taken",
        "values": event.data.get("values") or {},
        "at": format_instant(event.at),
    }
    return cast("types.HandoffTaken", found)


def _tool_call(call: ToolCall) -> types.ToolCall:
    return {
        "name": call.name,
        "arguments": call.arguments,
        "duration": round(call.duration.total_seconds(), 6),
        "error": call.error,
    }
