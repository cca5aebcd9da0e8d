"""What a record should say when Temporal says otherwise: Temporal is the truth.

Runs that were terminated, timed out by the server or never begun end without any code of ours running; the next
reader, or the reconciler, finds out here. Every write is guarded, so any number of them may repair at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.execution import (
    Cancellation,
    ErrorPayload,
    Event,
    ExecutionRecord,
    ExecutionStatus,
    LiveState,
    StepRecord,
    StepStatus,
    micros,
)
from engine.domain.gate import Transition
from engine.domain.live import live_execution, live_step
from engine.errors import ErrorCode, StoreError
from engine.outages import OutageLog
from engine.ports.execution_store import GateFilter

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from engine.ports.execution_runtime import RunDescription, RunStatus
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore

__all__ = [
    "END_OF_RUN",
    "START_GRACE",
    "ExecutionRepairs",
    "Repair",
    "contradicted",
    "ends_otherwise",
    "handoffs_of",
    "live_state_differs",
    "standing_steps",
]

_logger = logging.getLogger(__name__)

START_GRACE: Final = timedelta(seconds=30)
"""How long a record may wait for its run to appear in Temporal."""
GATES_AT_ONCE: Final = 100
END_OF_RUN: Final[dict[RunStatus, ExecutionStatus]] = {
    "completed": ExecutionStatus.COMPLETED,
    "failed": ExecutionStatus.FAILED,
    "timed_out": ExecutionStatus.FAILED,
    "cancelled": ExecutionStatus.CANCELLED,
    "terminated": ExecutionStatus.CANCELLED,
}
"""How an execution has ended whose run has closed so."""
_END_EVENTS: Final = frozenset(f"execution.{status.value}" for status in END_OF_RUN.values())


@dataclass(frozen=True, slots=True)
class Repair:
    """What was made right, and what it said before and after."""

    execution_id: str
    what: Literal["record", "live_state"]
    before: ExecutionStatus | None
    after: ExecutionStatus


class ExecutionRepairs:
    """Makes records and live state say what Temporal says."""

    def __init__(self, executions: ExecutionStore, state: StateStore, clock: Callable[[], datetime]) -> None:
        self._executions = executions
        self._state = state
        self._clock = clock
        self._outages = OutageLog(_logger, "Rebuilding live state")

    async def repair(self, record: ExecutionRecord, run: RunDescription | None) -> ExecutionRecord | None:
        """Write what Temporal says of the current run; None when that is recorded or the record changed meanwhile.

        Raises:
            StoreError: the store does not answer.
        """
        right = contradicted(record, run, self._clock())
        if right is None:
            return None
        steps = await self._executions.list_steps(record.execution_id)
        taken = [event.type == "handoff.taken" for event in handoffs_of(record, steps)]
        right = right.model_copy(update={"handoffs_taken": taken.count(True), "handoffs_refused": taken.count(False)})
        await self._cancel_open_steps(right, steps)
        await self._close_open_gates(record, right.completed_at or self._clock())
        if not await self._executions.repair_execution(right, expected=record.status):
            return None
        _logger.warning(
            "Execution %s was %s in its record and %s in Temporal; the record was repaired",
            record.execution_id,
            record.status,
            right.status,
        )
        return right

    async def repaired(self, record: ExecutionRecord, run: RunDescription | None) -> ExecutionRecord:
        """Return the record as it stands once it says what Temporal says of the current run.

        Raises:
            StoreError: the store does not answer.
        """
        if contradicted(record, run, self._clock()) is None:
            return record
        right = await self.repair(record, run)
        return right or await self._executions.get_execution(record.execution_id) or record

    async def rebuild_live_state(self, record: ExecutionRecord) -> LiveState:
        """Return live state as the records make it, written back unless the state store fails, which is logged."""
        steps = standing_steps(await self._executions.list_steps(record.execution_id))
        live = LiveState(
            execution=live_execution(record), steps={step_id: live_step(step) for step_id, step in steps.items()}
        )
        try:
            await self._state.record_transition(
                record.execution_id, execution=live.execution, steps=list(live.steps.values())
            )
        except StoreError as error:
            self._outages.failed(error)
        else:
            self._outages.worked()
        return live

    async def _cancel_open_steps(self, closed: ExecutionRecord, records: list[StepRecord]) -> None:
        """No code ran to say how these ended; nothing of them runs any more."""
        at = closed.completed_at or self._clock()
        # They come by token, so the last one of a step, or of an item of it, stands.
        steps = {(step.step_id, step.item): step for step in records}
        ended = [
            step.model_copy(
                update={"status": StepStatus.CANCELLED, "token": max(micros(at), step.token + 1), "completed_at": at}
            )
            for step in steps.values()
            if not step.status.is_terminal
        ]
        if ended:
            await self._executions.record_steps(ended, closed.run_started_at or closed.created_at)

    async def _close_open_gates(self, record: ExecutionRecord, at: datetime) -> None:
        """Nobody can answer these any more."""
        query = GateFilter(execution_id=record.execution_id)
        while (page := await self._executions.list_gates(query, limit=GATES_AT_ONCE, after=None)).items:
            closed = [
                gate.model_copy(update={"status": "closed", "token": max(micros(at), gate.token + 1)})
                for gate in page.items
            ]
            await self._executions.record_transition(
                Transition(
                    execution_id=record.execution_id,
                    run_id=record.run_id or closed[0].run_id,
                    run_started_at=record.run_started_at or record.created_at,
                    token=max(gate.token for gate in closed),
                    gates=closed,
                )
            )


def contradicted(record: ExecutionRecord, run: RunDescription | None, now: datetime) -> ExecutionRecord | None:
    """The record as Temporal's word makes it, or None when the two agree.

    An end that is recorded outlives Temporal's history of it. It gives way to another end of its run, or to that of a
    later one; a later run that is still open takes the record over with its first step.

    Args:
        record: as it is stored.
        run: the execution's current run, or None when Temporal does not know it.
        now: the present.
    """
    if run is None:
        return None if record.status.is_terminal else _without_run(record, now)
    if record.status.is_terminal and not ends_otherwise(record, run.run_id, run.status, run.started_at):
        return None
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


def ends_otherwise(record: ExecutionRecord, run_id: str, status: RunStatus, started_at: datetime) -> bool:
    """Whether a run, which is not an earlier one than the record's, has closed in another way than is recorded."""
    if status == "running":
        return False
    if run_id == record.run_id:
        return END_OF_RUN[status] is not record.status
    return record.run_started_at is None or started_at > record.run_started_at


def live_state_differs(record: ExecutionRecord, live: ExecutionStatus | None) -> bool:
    """Whether live state (None: there is none) misleads whoever reads it; of what is over it may be lost."""
    if live is None or not record.status.is_terminal:
        return not record.status.is_terminal and (live is None or live.is_terminal)
    return live is not record.status


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
            "events": [*(event for event in record.events if event.type not in _END_EVENTS), end],
        }
    )


def handoffs_of(record: ExecutionRecord, steps: list[StepRecord]) -> list[Event]:
    """``handoff.taken`` and ``handoff.refused`` of an execution, in order."""
    told = [*record.events, *(event for step in steps for event in step.events)]
    events = {event.id: event for event in told if event.type.startswith("handoff.")}
    return sorted(events.values(), key=lambda event: event.id)


def _of_items(record: StepRecord) -> StepRecord:
    """A step as its items show it: at work."""
    return record.model_copy(
        update={"item": None, "status": StepStatus.RUNNING, "output": None, "error": None, "completed_at": None}
    )


def standing_steps(records: list[StepRecord]) -> dict[str, StepRecord]:
    """For each step the record with the greatest token, with the attempts and the start of all its calls.

    The record of a step that is run over a list counts before those of its items; while there is none, it is at work.
    """
    standing: dict[str, StepRecord] = {}
    started: dict[str, datetime | None] = {}
    items: dict[str, StepRecord] = {}
    items_started: dict[str, datetime | None] = {}
    for record in records:
        if record.item is not None:
            items_started.setdefault(record.step_id, record.started_at)
            items[record.step_id] = record
            continue
        started.setdefault(record.step_id, record.started_at)
        current = standing.get(record.step_id)
        if current is None or record.token >= current.token:
            standing[record.step_id] = record
    for step_id, record in items.items():
        whole = standing.get(step_id)
        if whole is None or (record.token > whole.token and not whole.status.is_terminal):
            standing[step_id] = _of_items(record)
    began = {**items_started, **started}
    return {
        step_id: record.model_copy(
            update={
                "attempts": record.prior_attempts + record.attempts,
                "prior_attempts": 0,
                "started_at": began[step_id],
            }
        )
        for step_id, record in standing.items()
    }
