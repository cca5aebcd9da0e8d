"""What a run writes down itself: the records of calls that failed for good, or whose own record was not stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.domain.execution import (
    BudgetLimits,
    ErrorPayload,
    Event,
    ExecutionWarning,
    StepKind,
    StepRecord,
    StepStatus,
    Value,
    micros,
)
from engine.domain.ids import call_address
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from engine.domain.actions import CallFailure
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.messages import StepOutcome
    from engine.domain.plan import ExecutionPlan
    from engine.domain.step_state import Unit

__all__ = ["CallRecords", "RunFacts", "error_of"]

_CODES: Final = {"input": ErrorCode.INVALID_INPUT, "store": ErrorCode.DATABASE_ERROR}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run knows of itself from its first moment on."""

    execution_id: str
    run_id: str
    run_started_at: datetime
    started_at: datetime
    """Of the execution: of its first run when continued as new."""
    plan_hash: str = ""
    deadline_at: datetime | None = None
    trace: bool = False
    tags: list[str] = field(default_factory=list[str])
    was_reset: bool = False
    """An operator made this run out of the beginning of another, whose start it shares."""
    budget: BudgetLimits | None = None
    """What the execution was started with, which narrows the definition's."""
    depth: int = 0
    """How many executions this one is a child of."""

    def owned_since(self, now: datetime) -> datetime:
        """The ``run_started_at`` of what this run writes ``now``: a later run's is greater, a reset one's as well."""
        return now if self.was_reset else self.run_started_at


class CallRecords:
    """Makes step records.

    Args:
        facts: of the run.
        plan: that it runs.
    """

    def __init__(self, facts: RunFacts, plan: ExecutionPlan) -> None:
        self._facts = facts
        self._plan = plan

    def of_failure(
        self, unit: Unit, failure: CallFailure, now: datetime, event_type: str, before: list[Event]
    ) -> StepRecord:
        """Return the record of a call that failed or was cancelled; ``before`` are events that come first in it."""
        state = unit.state
        ended = self._event(
            unit, event_type, now, agent_id=state.agent_id, reason=failure.reason, message=failure.message
        )
        told = {event.id for event in before}
        return self._record(unit, now).model_copy(
            update={
                "attempts": failure.attempts,
                "prior_attempts": max(state.attempts - failure.attempts, 0),
                "error": state.error,
                "reason": failure.reason,
                "usage": failure.usage,
                "tool_calls": failure.tool_calls,
                "events": [
                    *before,
                    *self._started(unit),
                    *(event for event in failure.events if event.id not in told),
                    ended,
                ],
            }
        )

    def of_outcome(self, unit: Unit, outcome: StepOutcome) -> StepRecord:
        """Return the record of a call that succeeded and could not store it."""
        state = unit.state
        completed = self._event(unit, "step.completed", outcome.completed_at, agent_id=state.agent_id)
        return self._record(unit, outcome.completed_at).model_copy(
            update={
                "token": outcome.token,
                "status": StepStatus.COMPLETED,
                "attempts": outcome.attempts,
                "prior_attempts": max(state.attempts - outcome.attempts, 0),
                "output": outcome.output,
                "started_at": outcome.started_at,
                "usage": outcome.usage,
                "events": [completed],
                "warnings": outcome.warnings,
                "handed": outcome.handed,
            }
        )

    def of_value(
        self,
        unit: Unit,
        now: datetime,
        output: Value | None,
        *,
        before: list[Event] | None = None,
        warnings: list[ExecutionWarning] | None = None,
        child_execution_id: str | None = None,
    ) -> StepRecord:
        """Return the record of a step that the run itself has completed."""
        completed = self._event(unit, "step.completed", now)
        return self._record(unit, now).model_copy(
            update={
                "status": StepStatus.COMPLETED,
                "output": output,
                "events": [*(before or []), *self._started(unit), completed],
                "warnings": warnings or [],
                "child_execution_id": child_execution_id,
            }
        )

    def of_supply(self, unit: Unit, now: datetime, output: Value, by: str | None) -> StepRecord:
        """Return the record of a step that an operator has skipped."""
        skipped = self._event(
            unit, "step.skipped", now, because="operator", reason=f"skipped by {by or 'an operator'}", values={}
        )
        return self._record(unit, now).model_copy(
            update={"status": StepStatus.SKIPPED, "reason": "operator", "output": output, "events": [skipped]}
        )

    def of_waiting(self, unit: Unit, now: datetime, before: list[Event]) -> StepRecord:
        """Return the record of a step that has begun to wait, or whose child has."""
        return self._record(unit, now).model_copy(
            update={"completed_at": None, "events": [*before, *self._started(unit)]}
        )

    def blank(self, unit: Unit) -> StepRecord:
        """Return what a step's record is known to hold before its value is computed."""
        return self._record(unit, unit.state.started_at or self._facts.started_at).model_copy(
            update={"status": StepStatus.COMPLETED, "completed_at": None}
        )

    def _record(self, unit: Unit, now: datetime) -> StepRecord:
        state = unit.state
        return StepRecord(
            execution_id=self._facts.execution_id,
            run_id=self._facts.run_id,
            step_id=unit.step_id,
            item=unit.item,
            n=state.n,
            token=micros(now),
            status=state.status,
            kind=_kind(unit),
            agent_id=state.agent_id,
            agent_version=self._plan.agents[state.agent_id].version if state.agent_id else None,
            prior_attempts=state.attempts,
            iteration=state.iteration,
            started_at=state.started_at,
            completed_at=now,
        )

    def _started(self, unit: Unit) -> list[Event]:
        """The beginning of what no agent's call tells of."""
        at = unit.state.began_at
        is_told = unit.step.type in ("wait", "workflow", "approval") and at is not None
        return [self._event(unit, "step.started", at)] if is_told and at is not None else []

    def _event(self, unit: Unit, event_type: str, at: datetime, **data: JsonValue) -> Event:
        if unit.item is not None:
            data = {**data, "item": unit.item}
        return Event.at_instant(
            event_type, at, call_address(unit.step_id, unit.item, unit.state.n), unit.step_id, **data
        )


def _kind(unit: Unit) -> StepKind:
    if unit.step.foreach is not None and unit.item is None:
        return "foreach"
    return unit.step.type


def error_of(unit: Unit, failure: CallFailure) -> ErrorPayload:
    """The error of a unit whose call has failed; its ``details.reason`` says why."""
    code = failure.reason if failure.kind == "child" else _CODES.get(failure.kind, ErrorCode.AGENT_ERROR)
    if code not in tuple(ErrorCode):
        code = ErrorCode.AGENT_ERROR
    details: JsonObject = {
        **failure.details,
        "step_id": unit.step_id,
        "agent_id": unit.state.agent_id,
        "reason": "error" if failure.kind == "child" and failure.reason in tuple(ErrorCode) else failure.reason,
    }
    if unit.item is not None:
        details["item"] = unit.item
    return ErrorPayload(code=code, message=failure.message, details=details)
