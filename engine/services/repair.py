"""What a record should say when Temporal says otherwise: Temporal is the truth.

Runs that were terminated, timed out by the server or never begun end without any code of ours running; the next
reader finds out here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from engine.domain.execution import Cancellation, ErrorPayload, Event, ExecutionRecord, ExecutionStatus
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from datetime import datetime

    from engine.ports.execution_runtime import RunDescription

__all__ = ["contradicted"]

START_GRACE: Final = timedelta(seconds=30)
"""How long a record may wait for its run to appear in Temporal."""


def contradicted(record: ExecutionRecord, run: RunDescription | None, now: datetime) -> ExecutionRecord | None:
    """The record as Temporal's word makes it, or None when the two agree.

    Args:
        record: an open one.
        run: the execution's current run, or None when Temporal does not know it.
        now: the present.
    """
    if run is None:
        return _without_run(record, now)
    match run.status:
        case "running":
            return None
        case "completed":
            return _ended(record, run, now, ExecutionStatus.COMPLETED)
        case "failed":
            error = run.error or ErrorPayload(code=ErrorCode.INTERNAL_ERROR, message="The run failed in Temporal")
            return _ended(record, run, now, ExecutionStatus.FAILED, error=error)
        case "timed_out":
            error = ErrorPayload(
                code=ErrorCode.EXECUTION_TIMEOUT,
                message="Temporal ended the run at its execution timeout",
            )
            return _ended(record, run, now, ExecutionStatus.FAILED, error=error)
        case "cancelled" | "terminated":
            reason = run.close_reason or ("terminated in Temporal" if run.status == "terminated" else None)
            cancel = Cancellation(reason=reason, by=run.closed_by, at=run.closed_at)
            return _ended(record, run, now, ExecutionStatus.CANCELLED, cancel=cancel)


def _without_run(record: ExecutionRecord, now: datetime) -> ExecutionRecord | None:
    if record.status is ExecutionStatus.PENDING and record.run_id is None:
        if now - record.created_at < START_GRACE:
            return None
        error = ErrorPayload(
            code=ErrorCode.RUNTIME_UNAVAILABLE,
            message="The execution was accepted but its start never reached Temporal; start it again",
        )
    else:
        error = ErrorPayload(
            code=ErrorCode.RUNTIME_UNAVAILABLE,
            message="Temporal no longer knows the run: it is past the namespace's retention, or was deleted",
            details={"lost_history": True},
        )
    return _closed(record, now, ExecutionStatus.FAILED, error, None)


def _ended(
    record: ExecutionRecord,
    run: RunDescription,
    now: datetime,
    status: ExecutionStatus,
    *,
    error: ErrorPayload | None = None,
    cancel: Cancellation | None = None,
) -> ExecutionRecord:
    closed = _closed(record, run.closed_at or now, status, error, cancel)
    return closed.model_copy(
        update={
            "run_id": run.run_id,
            "run_started_at": run.started_at,
            "started_at": record.started_at or run.started_at,
            "output": run.output,
            "history_length": run.history_length,
        }
    )


def _closed(
    record: ExecutionRecord,
    at: datetime,
    status: ExecutionStatus,
    error: ErrorPayload | None,
    cancel: Cancellation | None,
) -> ExecutionRecord:
    end = Event.at_instant(
        f"execution.{status.value}",
        at,
        record.run_id or record.execution_id,
        error=error.model_dump(mode="json") if error else None,
    )
    return record.model_copy(
        update={
            "status": status,
            "completed_at": at,
            "error": error,
            "cancel": cancel,
            "events": [*record.events, end],
        }
    )
