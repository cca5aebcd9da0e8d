"""From executions to answers, while they run and after."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from engine.answers.values import cancel, error, instant, warnings
from engine.domain.execution import StepStatus
from engine.domain.explanation_text import explanation_text
from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from engine import types
    from engine.domain.execution import Event, ExecutionRecord, LiveState, LiveStep
    from engine.domain.explanation import Explanation
    from engine.ports.execution_runtime import StartedRun
    from engine.services.execution_reads import ExecutionView
    from engine.services.repair import Repair
    from engine.services.reruns import RerunPreview, StartedRerun
    from engine.services.verification import Drift

__all__ = [
    "current_steps",
    "drift",
    "event",
    "execution",
    "execution_item",
    "execution_status",
    "explanation",
    "progress",
    "repair",
    "rerun",
    "rerun_preview",
]

_OPEN_STEP = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.WAITING)


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


def rerun(done: StartedRerun, started: types.Execution) -> types.Rerun:
    """Answer of ``rerun_execution``; ``started`` is that of a start."""
    return {
        **started,
        "parent_execution_id": done.parent_id,
        "rerun": done.choice.rerun,
        "reused": done.choice.reused_ids,
    }


def rerun_preview(preview: RerunPreview) -> types.RerunPreview:
    """Answer of ``rerun_execution`` with ``preview``."""
    saves = preview.saves
    return {
        "rerun": preview.choice.rerun,
        "reused": preview.choice.reused_ids,
        "saves": {
            "agent_calls": saves.agent_calls,
            "tokens": saves.tokens,
            "cost_usd": saves.cost_usd,
            "seconds": saves.seconds,
        },
    }


def explanation(told: Explanation) -> types.ExecutionExplanation:
    """Answer of ``explain_execution``."""
    return {
        "execution_id": told.record.execution_id,
        "steps": [
            {"step_id": step.step_id, "decision": step.decision, "because": step.because, "values": step.values}
            for step in told.steps
        ],
        "text": explanation_text(told),
    }


def execution_status(view: ExecutionView, gates: list[str] | None = None) -> types.ExecutionStatus:
    """Answer of ``get_execution_status``; ``gates`` when they are known and the execution waits for them."""
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
        "steps": {step_id: _step(live.steps.get(step_id)) for step_id in _step_ids(live)},
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
        answer["cancel"] = cancel(head.cancel)
    if gates is not None:
        answer["gates"] = gates
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
        answer["cancel"] = cancel(record.cancel)
    return answer


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
        "total": len(_step_ids(live)),
        "completed": counts[StepStatus.COMPLETED],
        "failed": counts[StepStatus.FAILED],
        "skipped": counts[StepStatus.SKIPPED],
        "running": sum(counts[status] for status in _OPEN_STEP),
    }


def current_steps(live: LiveState) -> list[str]:
    """The steps that have begun and not ended, in definition order."""
    return [
        step_id for step_id in _step_ids(live) if step_id in live.steps and live.steps[step_id].status in _OPEN_STEP
    ]


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


def _step_ids(live: LiveState) -> list[str]:
    """The plan's steps in definition order, then those that the run has added, by their start."""
    planned = live.execution.step_ids
    latest = datetime.max.replace(tzinfo=UTC)
    known = set(planned)
    added = [step for step_id, step in live.steps.items() if step_id not in known]
    added.sort(key=lambda step: (step.started_at or latest, step.step_id))
    return [*planned, *(step.step_id for step in added)]


def _status_of(live: LiveState) -> str:
    if live.execution.status == "pending" and _own_steps(live):
        return "running"
    return live.execution.status.value


def _first_start(live: LiveState) -> datetime | None:
    return min((step.started_at for step in _own_steps(live) if step.started_at), default=None)


def _own_steps(live: LiveState) -> list[LiveStep]:
    """The steps that were heard of, without those that a rerun keeps: they were over before it was made."""
    made_at = live.execution.created_at
    return [step for step in live.steps.values() if step.completed_at is None or step.completed_at >= made_at]


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
