"""What a run writes down itself: the records of calls that failed for good, or whose own record was not stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from engine.domain.execution import Event, StepRecord, StepStatus, ToolCall, Usage, micros
from engine.domain.ids import call_address
from engine.domain.json import JsonObject, JsonValue

if TYPE_CHECKING:
    from engine.domain.messages import StepOutcome
    from engine.domain.plan import ExecutionPlan
    from engine.domain.plan_values import StepState

__all__ = ["CallFailure", "CallRecords", "RunFacts"]


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

    def owned_since(self, now: datetime) -> datetime:
        """The ``run_started_at`` of what this run writes ``now``: a later run's is greater, a reset one's as well."""
        return now if self.was_reset else self.run_started_at


@dataclass(frozen=True, slots=True)
class CallFailure:
    """How a scheduled call ended without an outcome."""

    kind: Literal["agent", "timeout", "lost", "cancelled", "input", "store"]
    """``lost``: by a heartbeat timeout, a worker's shutdown or a store that kept the agent from being called.
    ``store``: the agent answered, and its output could not be kept."""
    reason: str
    message: str
    attempts: int
    usage: Usage = field(default_factory=Usage)
    details: JsonObject = field(default_factory=dict[str, JsonValue])
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])


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
        self,
        step_id: str,
        state: StepState,
        failure: CallFailure,
        now: datetime,
        event_type: str,
        before: list[Event],
    ) -> StepRecord:
        """Return the record of a call that failed or was cancelled; ``before`` are events that come first in it."""
        ended = Event.at_instant(
            event_type,
            now,
            call_address(step_id, None, state.n),
            step_id,
            agent_id=state.agent_id,
            reason=failure.reason,
            message=failure.message,
        )
        return StepRecord(
            execution_id=self._facts.execution_id,
            run_id=self._facts.run_id,
            step_id=step_id,
            n=state.n,
            token=micros(now),
            status=state.status,
            agent_id=state.agent_id,
            agent_version=self._agent_version(state),
            attempts=failure.attempts,
            prior_attempts=max(state.attempts - failure.attempts, 0),
            error=state.error,
            reason=failure.reason,
            started_at=state.started_at,
            completed_at=now,
            usage=failure.usage,
            tool_calls=failure.tool_calls,
            events=[*before, ended],
        )

    def of_outcome(self, step_id: str, state: StepState, outcome: StepOutcome) -> StepRecord:
        """Return the record of a call that succeeded and could not store it."""
        completed = Event.at_instant(
            "step.completed",
            outcome.completed_at,
            call_address(step_id, None, state.n),
            step_id,
            agent_id=state.agent_id,
        )
        return StepRecord(
            execution_id=self._facts.execution_id,
            run_id=self._facts.run_id,
            step_id=step_id,
            n=state.n,
            token=outcome.token,
            status=StepStatus.COMPLETED,
            agent_id=state.agent_id,
            agent_version=self._agent_version(state),
            attempts=outcome.attempts,
            prior_attempts=state.attempts - outcome.attempts,
            output=outcome.output,
            started_at=outcome.started_at,
            completed_at=outcome.completed_at,
            usage=outcome.usage,
            events=[completed],
            warnings=outcome.warnings,
            handed=outcome.handed,
        )

    def _agent_version(self, state: StepState) -> int | None:
        return self._plan.agents[state.agent_id].version if state.agent_id else None
