"""From records to the answers of ``engine.types``: one function a shape, no decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from engine.domain.execution import StepStatus, Usage
from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from engine import types
    from engine.domain.agent import Agent
    from engine.domain.context import ContextItem, ContextMatch
    from engine.domain.definition import DefinitionVersion
    from engine.domain.execution import (
        Cancellation,
        ContextSource,
        ErrorPayload,
        Event,
        ExecutionRecord,
        ExecutionWarning,
        LiveState,
        LiveStep,
        StepRecord,
        ToolCall,
    )
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonValue
    from engine.errors import EngineError
    from engine.ports.agent_graph import AgentUse
    from engine.ports.execution_runtime import StartedRun
    from engine.services.execution_reads import ExecutionResult, ExecutionView
    from engine.services.graph import AgentImpact
    from engine.services.repair import Repair
    from engine.services.verification import Drift


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step's traced values, fetched from wherever they lie."""

    input: JsonValue = None
    transcript: JsonValue = None


_OPEN_STEP = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.WAITING)


def workflow(stored: DefinitionVersion) -> types.Workflow:
    """Answer of ``get_workflow``."""
    content = stored.definition.to_dict()
    head = workflow_item(stored)
    answer: dict[str, object] = {**head, "steps": content["steps"]}
    del answer["step_count"]
    for key in ("input_schema", "defaults", "output_mapping", "handoffs", "on_failure"):
        if content.get(key) is not None:
            answer[key] = content[key]
    return answer  # pyright: ignore[reportReturnType] # built key by key from the definition


def workflow_item(stored: DefinitionVersion) -> types.WorkflowItem:
    """An item of ``list_workflows``."""
    definition = stored.definition
    return {
        "workflow_id": stored.definition_id,
        "status": stored.status,
        "version": stored.version,
        "content_hash": stored.content_hash,
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
        "name": definition.name,
        "description": definition.description,
        "tags": definition.tags,
        "metadata": definition.metadata,
        "step_count": len(definition.steps),
    }


def agent(stored: Agent) -> types.Agent:
    """Answer of ``get_agent``."""
    return {
        "agent_id": stored.agent_id,
        "name": stored.name,
        "description": stored.description,
        "capabilities": stored.capabilities,
        "tools": stored.tools,
        "config": stored.config,
        "kind": stored.kind,
        "status": stored.status,
        "version": stored.version,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in stored.warnings],
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
    }


def handoff(stored: Handoff) -> types.Handoff:
    """Answer of ``get_handoff``."""
    return {
        "handoff_id": stored.handoff_id,
        "source_agent_id": stored.source_agent_id,
        "target_agent_id": stored.target_agent_id,
        "handoff_type": stored.handoff_type,
        "data_mapping": stored.data_mapping,
        "trigger_conditions": stored.trigger_conditions,
        "workflow_id": stored.definition_id,
        "status": stored.status,
        "version": stored.version,
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
    }


def agent_use(use: AgentUse) -> types.AgentUse:
    """An item of ``find_workflows``."""
    return {"workflow_id": use.definition_id, "steps": list(use.step_ids), "as": use.role}


def agent_impact(impact: AgentImpact) -> types.AgentImpact:
    """Answer of ``agent_impact``."""
    return {
        "workflows": [agent_use(use) for use in impact.uses],
        "handoffs": [handoff(stored) for stored in impact.handoffs],
    }


def repair(made: Repair) -> types.Repair:
    """One line of ``repair_executions``."""
    return {
        "execution_id": made.execution_id,
        "what": made.what,
        "before": None if made.before is None else made.before.value,
        "after": made.after.value,
    }


def drift(found: Drift) -> types.Drift:
    """One line of ``verify_executions``."""
    return {
        "execution_id": found.execution_id,
        "record": None if found.record is None else found.record.value,
        "temporal": found.temporal,
        "live": None if found.live is None else found.live.value,
        "text": found.text,
    }


def execution(
    record: ExecutionRecord, run: StartedRun | None, namespace: str, task_queue: str, ui_url: str | None
) -> types.Execution:
    """Answer of ``execute_workflow``."""
    return {
        "execution_id": record.execution_id,
        "workflow_id": record.definition_id,
        "version": record.version,
        "status": record.status.value,
        "created_at": format_instant(record.created_at),
        "deadline_at": instant(record.deadline_at),
        "warnings": warnings(record.warnings),
        "temporal": {
            "workflow_id": record.execution_id,
            "run_id": run.run_id if run else record.run_id,
            "namespace": run.namespace if run else namespace,
            "task_queue": run.task_queue if run else task_queue,
            "ui_url": run.ui_url if run else ui_url,
        },
    }


def execution_status(view: ExecutionView) -> types.ExecutionStatus:
    """Answer of ``get_execution_status``."""
    live = view.state
    head = live.execution
    status = _status_of(live)
    answer: types.ExecutionStatus = {
        "execution_id": head.execution_id,
        "workflow_id": head.definition_id,
        "version": head.version,
        "status": status,
        "progress": progress(live),
        "current_steps": current_steps(live),
        "steps": {step_id: _step(live.steps.get(step_id)) for step_id in head.step_ids},
        "error": error(head.error),
        "created_at": format_instant(head.created_at),
        "started_at": instant(head.started_at or _first_start(live)),
        "completed_at": instant(head.completed_at),
    }
    if view.hint is not None:
        answer["hint"] = view.hint
    if view.stale:
        answer["stale"] = True
    if head.cancel is not None:
        answer["cancel"] = _cancel(head.cancel)
    return answer


def execution_item(record: ExecutionRecord, live: LiveState | None) -> types.ExecutionItem:
    """An item of ``list_executions``."""
    shown = None if record.status.is_terminal else live
    answer: types.ExecutionItem = {
        "execution_id": record.execution_id,
        "workflow_id": record.definition_id,
        "version": record.version,
        "status": record.status.value,
        "progress": progress(shown) if shown else None,
        "current_steps": current_steps(shown) if shown else None,
        "error": error(record.error),
        "created_at": format_instant(record.created_at),
        "started_at": instant(record.started_at),
        "completed_at": instant(record.completed_at),
    }
    if record.cancel is not None:
        answer["cancel"] = _cancel(record.cancel)
    return answer


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
            for step_id in record.step_ids
        },
        "handoffs": [_handoff_taken(event) for event in result.handoffs],
        "warnings": warnings(record.warnings),
        "usage": usage(record.usage),
        "error": error(record.error),
        "started_at": instant(record.started_at),
        "completed_at": instant(record.completed_at),
        "duration": _duration(record.started_at, record.completed_at),
    }
    if record.cancel is not None:
        answer["cancel"] = _cancel(record.cancel)
    return answer


def context_match(match: ContextMatch) -> types.ContextMatch:
    """A line of ``search_context``."""
    item = match.item
    return {
        "item_id": item.item_id,
        "text": item.text,
        "score": match.score,
        "source": _origin(item),
        "metadata": item.metadata,
        "created_at": format_instant(item.created_at),
    }


def event(stored: Event) -> types.Event:
    """An event of ``watch_execution``."""
    return {
        "id": stored.id,
        "type": stored.type,
        "at": format_instant(stored.at),
        "step_id": stored.step_id,
        "data": stored.data,
    }


def progress(live: LiveState) -> types.Progress:
    """How many steps stand where."""
    counts = dict.fromkeys(StepStatus, 0)
    for step in live.steps.values():
        counts[step.status] += 1
    return {
        "total": len(live.execution.step_ids),
        "completed": counts[StepStatus.COMPLETED],
        "failed": counts[StepStatus.FAILED],
        "skipped": counts[StepStatus.SKIPPED],
        "running": sum(counts[status] for status in _OPEN_STEP),
    }


def current_steps(live: LiveState) -> list[str]:
    """The steps that have begun and not ended, in definition order."""
    return [
        step_id
        for step_id in live.execution.step_ids
        if step_id in live.steps and live.steps[step_id].status in _OPEN_STEP
    ]


def error(stored: ErrorPayload | None) -> types.Error | None:
    """An error inside an answer."""
    if stored is None:
        return None
    return {"code": stored.code, "message": stored.message, "details": stored.details}


def warnings(stored: Iterable[ExecutionWarning]) -> list[types.ExecutionWarning]:
    """The warnings of an execution."""
    return [{"code": item.code, "message": item.message, "step_id": item.step_id} for item in stored]


def usage(stored: Usage) -> types.Usage:
    """What calls cost."""
    return {
        "requests": stored.requests,
        "input_tokens": stored.input_tokens,
        "output_tokens": stored.output_tokens,
        "tool_calls": stored.tool_calls,
        "cost_usd": stored.cost_usd,
    }


def instant(at: datetime | None) -> str | None:
    """An instant that may be absent."""
    return None if at is None else format_instant(at)


def _status_of(live: LiveState) -> str:
    if live.execution.status == "pending" and live.steps:
        return "running"
    return live.execution.status.value


def _first_start(live: LiveState) -> datetime | None:
    return min((step.started_at for step in live.steps.values() if step.started_at), default=None)


def _step(step: LiveStep | None) -> types.StepStatus:
    if step is None:
        return {
            "status": "pending",
            "agent_id": None,
            "attempts": 0,
            "started_at": None,
            "completed_at": None,
            "error": None,
        }
    return {
        "status": step.status.value,
        "agent_id": step.agent_id,
        "attempts": step.attempts,
        "started_at": instant(step.started_at),
        "completed_at": instant(step.completed_at),
        "error": error(step.error),
    }


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
        "duration": _duration(record.started_at, record.completed_at),
        "usage": usage(record.usage),
    }
    if record.tool_calls:
        answer["tool_calls"] = [_tool_call(call) for call in record.tool_calls]
    if record.context:
        answer["context"] = [
            {"item_id": item.item_id, "score": item.score, "source": _origin(item)} for item in record.context
        ]
    if record.input is not None:
        answer["input"] = trace.input
    if record.transcript is not None:
        answer["transcript"] = trace.transcript
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


def _origin(item: ContextSource | ContextItem) -> types.ContextOrigin:
    return {"execution_id": item.execution_id, "step_id": item.step_id, "agent_id": item.agent_id}


def _cancel(stored: Cancellation) -> types.Cancel:
    return {"reason": stored.reason, "by": stored.by, "at": instant(stored.at)}


def _duration(started_at: datetime | None, completed_at: datetime | None) -> float | None:
    if started_at is None or completed_at is None:
        return None
    return max((completed_at - started_at).total_seconds(), 0.0)


def unusable(fault: EngineError, at: datetime) -> types.SystemHealth:
    """Answer of ``get_system_health`` when the settings themselves can't be used."""
    down: types.Component = {
        "status": "down",
        "backend": "unknown",
        "latency_ms": None,
        "version": None,
        "detail": fault.message,
    }
    names = ("temporal", "workers", "definitions", "executions", "state", "vectors")
    return {"status": "unhealthy", "components": dict.fromkeys(names, down), "checked_at": format_instant(at)}
