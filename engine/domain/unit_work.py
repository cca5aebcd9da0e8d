"""The work of one unit (a step, or one item of a step), from its first call to its end.

Fallbacks, escalations, turns of a loop, gates and lost workers are all decided here; what the end of a unit means for
the run is decided by who listens (``UnitListener``).
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from engine.domain.actions import CallFailure, ComputeValue, InvokeAgent
from engine.domain.call_records import error_of
from engine.domain.children import Children
from engine.domain.decisions import ReplyScope, TooLargeToDecideError, holds
from engine.domain.execution import ErrorPayload, ExecutionWarning, StepRecord, StepStatus, Usage, Value
from engine.domain.expressions import (
    MissingPathError,
    ResolvedTooLargeError,
    json_size,
)
from engine.domain.following import next_agent
from engine.domain.ids import call_address
from engine.domain.json import JsonObject, JsonValue
from engine.domain.messages import (
    MAX_INLINE_OUTPUT_BYTES,
    MAX_SENT_DECISIONS_BYTES,
    AgentCallInput,
    CallInput,
    ComputeInput,
    StepOutcome,
)
from engine.domain.operands import Unavailable, missing_path
from engine.domain.payloads import take_payload
from engine.domain.waits import Waits
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from engine.domain.actions import Action
    from engine.domain.admissions import Admissions
    from engine.domain.budgets import BudgetMeter
    from engine.domain.call_records import CallRecords, RunFacts
    from engine.domain.calls import Calls
    from engine.domain.execution import Event
    from engine.domain.gates import Gates
    from engine.domain.messages import ClosingCall
    from engine.domain.plan_values import PlanValues
    from engine.domain.step_state import Unit

__all__ = ["UnitListener", "UnitWork"]

MAX_RESUMES: Final = 3
MAX_WARNING_CHARS: Final = 300
MAX_WARNINGS: Final = 200
MAX_CHILD_DEPTH: Final = 10
MAX_WAIT: Final = timedelta(days=366)
TOLD_WAIT: Final = timedelta(seconds=5)
"""A shorter wait is not told before it is over."""
MAX_QUESTION_BYTES: Final = 16 * 1024
EXPIRES: Final = ":expires"


class UnitListener(Protocol):
    """Who decides what a unit's end means."""

    def may_go_on(self, unit: Unit) -> bool:
        """Whether a unit may still begin another turn or wait for somebody."""
        ...

    def is_stopped(self, unit: Unit) -> bool:
        """Whether a unit's calls are being cancelled."""
        ...

    def unit_completed(self, unit: Unit, now: datetime) -> None:
        """The unit has its output."""
        ...

    def unit_failed(self, unit: Unit, now: datetime) -> None:
        """The unit has failed for good; its state has the error."""
        ...

    def unit_cancelled(self, unit: Unit, now: datetime) -> None:
        """The unit was cancelled."""
        ...

    def closing_call(self, unit: Unit) -> ClosingCall | None:
        """The execution's end that this unit's success is, if it is."""
        ...

    def deadline_of(self, unit: Unit) -> datetime | None:
        """When what the unit is a part of must be over."""
        ...


class UnitWork:
    """Calls, timers and gates of all units that have begun.

    Attributes:
        running: address of each scheduled call to its unit.
        again: units whose next call is due.
        resumed: calls to be scheduled again after their worker was lost.
        timers: address of each open timer to its unit.
        cancelled: addresses of calls and timers to be cancelled.
        decided: records that no activity has written.
        waiting: records of units that have begun to wait.
    """

    def __init__(
        self,
        facts: RunFacts,
        values: PlanValues,
        calls: Calls,
        records: CallRecords,
        admissions: Admissions,
        gates: Gates,
        budget: BudgetMeter,
        listener: UnitListener,
    ) -> None:
        self.running: dict[str, Unit] = {}
        self.again: deque[Unit] = deque()
        self.resumed: deque[InvokeAgent] = deque()
        self.timers: dict[str, Unit] = {}
        self.due_at: dict[str, datetime] = {}
        """When each timer fires."""
        self.cancelled: list[str] = []
        self.decided: list[StepRecord] = []
        self.waiting: list[StepRecord] = []
        self.warnings: list[ExecutionWarning] = []
        self.must_tell = False
        """Something has ended that people look for, and whose record waits for a call to take it along."""
        self.usage = Usage()
        self.agent_calls = 0
        """Scheduled calls of agents."""
        self.facts = facts
        self.values = values
        self.calls = calls
        self.records = records
        self._admissions = admissions
        self.gates = gates
        self.budget = budget
        self.listener = listener
        self.waits = Waits(self)
        self.children = Children(self)

    # Beginning.

    def begin(self, unit: Unit, now: datetime) -> Action | None:
        """Make the unit's next call; None when it needs none, or has ended by itself."""
        state, step = unit.state, unit.step
        state.n += 1
        state.run_id = self.facts.run_id
        state.resumes = 0
        state.status = StepStatus.RUNNING
        state.started_at = state.started_at or now
        state.began_at = now
        try:
            match step.type:
                case "agent":
                    return self._invoke(unit, now)
                case "workflow":
                    return self.children.start(unit, now)
                case "transform":
                    return self._transform(unit, now)
                case "wait":
                    return self.waits.wait(unit, now)
                case "approval":
                    return self.waits.ask(unit, now)
        except MissingPathError as error:
            message = missing_path(f"The mapping of step {step.id}", error)
            self.fail_input(unit, message, error.path.text, now)
        except (Unavailable, ResolvedTooLargeError):
            self.fail_input(unit, f"What step {step.id} reads is too large to decide by (over 16 KiB)", None, now)
        except TooLargeToDecideError as error:
            self.fail_input(unit, str(error), error.path.text, now)
        return None

    def fail_input(self, unit: Unit, message: str, path: str | None, now: datetime) -> None:
        """The unit can't be called with what it is given."""
        details: JsonObject = {} if path is None else {"path": path}
        self.fail(unit, CallFailure("input", ErrorCode.INVALID_INPUT, message, 0, details=details), now)

    def _invoke(self, unit: Unit, now: datetime) -> InvokeAgent:
        step, state = unit.step, unit.state
        handed: JsonObject
        if state.choice < len(step.agents):
            state.agent_id = step.agents[state.choice]
            handed = self._admissions.inputs(step)
        else:
            escalation = step.escalations[state.choice - len(step.agents)]
            state.agent_id = escalation.target_agent_id
            handed = {
                target: f"${{source_output.{key} ?? null}}"
                for key, target in escalation.data_mapping.items()
                if key == "error"
            }
        events, deadline_at = self.events_before(unit, now), self.listener.deadline_of(unit)
        call = self.calls.agent_input(unit, handed, now, events=events, deadline_at=deadline_at)
        return self._scheduled(unit, call, step.retry.maximum_attempts)

    def _scheduled(self, unit: Unit, call: AgentCallInput, maximum_attempts: int) -> InvokeAgent:
        decided = self.take_some_decided()
        closing = None if self.decided else self.listener.closing_call(unit)
        action = self.calls.invoke(unit, call, decided, closing, maximum_attempts)
        self.running[action.address] = unit
        self.agent_calls += 1
        return action

    def _transform(self, unit: Unit, now: datetime) -> Action | None:
        resolved = self.calls.resolve(unit, unit.step.transform or {})
        if resolved.operands is None:
            size = json_size(resolved.inline, limit=MAX_INLINE_OUTPUT_BYTES)
            if size <= MAX_INLINE_OUTPUT_BYTES:
                self.complete_value(unit, Value.of(resolved.inline), now)
                return None
        return self.compute(unit, self.compute_input(unit, now, resolved), unit.name)

    # Ends of calls.

    def outcome(self, address: str, outcome: StepOutcome, sent: AgentCallInput, now: datetime) -> None:
        """An agent's call has succeeded."""
        unit = self.running.pop(address)
        state = unit.state
        self.agent_calls -= 1
        state.attempts += outcome.attempts
        state.completed_at = outcome.completed_at
        state.started_at = state.started_at or outcome.started_at
        state.handed = outcome.handed
        self.usage += outcome.usage
        self.budget.calls += outcome.attempts
        for warning in outcome.warnings:
            self.warn(warning)
        if not outcome.decided_recorded:
            self.decided = [*sent.decided, *self.decided]
        if outcome.unrecorded:
            self.decided.append(self.records.of_outcome(unit, outcome))
        self._turn_ended(unit, outcome.output, now)

    def failure(self, address: str, failure: CallFailure, sent: AgentCallInput, now: datetime) -> None:
        """An agent's call has failed for good."""
        unit = self.running.pop(address)
        state = unit.state
        self.agent_calls -= 1
        self.decided = [*sent.decided, *self.decided]
        if self.listener.is_stopped(unit):
            self.cancel(unit, failure, now)
            return
        repeats = failure.kind == "unasked" or (failure.kind == "lost" and not unit.step.at_most_once)
        if repeats and state.resumes < MAX_RESUMES:
            state.resumes += 1
            again = sent.model_copy(update={"resumed": True, "decided": [], "closing": None})
            self.resumed.append(self._scheduled(unit, again, 1))
            return
        state.attempts += failure.attempts
        self.budget.calls += failure.attempts
        self.usage += failure.usage
        self.fail(unit, failure, now)

    def end_failed(self, unit: Unit, failure: CallFailure, now: datetime) -> None:
        """Something that no agent did has failed, or was cancelled."""
        if self.listener.is_stopped(unit):
            self.cancel(unit, None, now)
        else:
            self.fail(unit, failure, now)

    def computed(
        self, address: str, result: StepOutcome | CallFailure, request: ComputeInput, now: datetime
    ) -> Action | None:
        """An activity has made a large value; return the child's start, when it was its input."""
        unit = self.running.pop(address)
        if isinstance(result, CallFailure):
            self.decided = [*request.decided, *self.decided]
            self.end_failed(unit, result, now)
            return None
        if not result.decided_recorded:
            self.decided = [*request.decided, *self.decided]
        if request.is_child_input:
            return self.children.begin(unit, result.output, now)
        unit.state.handed = result.handed
        self._turn_ended(unit, result.output, now)
        return None

    def retry(self, unit: Unit) -> None:
        """An operator runs a failed unit again, from its first agent."""
        state = unit.state
        state.choice, state.iteration, state.error, state.output = 0, 1, None, None
        state.escalated.clear()
        state.status = StepStatus.RUNNING
        self.again.append(unit)

    def supply(self, unit: Unit, output: JsonValue, by: str | None, now: datetime) -> None:
        """An operator skips a failed unit and gives its output."""
        state = unit.state
        state.n += 1
        state.run_id = self.facts.run_id
        state.status = StepStatus.SKIPPED
        state.is_supplied = True
        state.error = None
        state.completed_at = now
        state.output = Value.of(output)
        state.handed = state.output if isinstance(output, dict) else None
        state.note = f"skipped by {by or 'an operator'}"
        self.decided.append(self.records.of_supply(unit, now, state.output, by))

    # Ends of units.

    def _turn_ended(self, unit: Unit, output: Value, now: datetime) -> None:
        state, repeat = unit.state, unit.step.repeat
        state.output, state.output_n, state.in_record = output, state.n, False
        is_whole = unit.step.foreach is not None and unit.item is None
        if repeat is not None and not is_whole:
            scope = ReplyScope(self.calls.values_of(unit), state.handed or output)
            try:
                is_done = holds(repeat.condition, scope)
            except TooLargeToDecideError as error:
                self.fail_input(unit, str(error), error.path.text, now)
                return
            if not is_done and state.iteration < repeat.max_iterations:
                if not self.listener.may_go_on(unit):
                    state.n += 1
                    self.cancel(unit, None, now)
                    return
                state.iteration += 1
                state.choice = 0
                state.status = StepStatus.RUNNING
                self.again.append(unit)
                return
            if not is_done:
                self.warn(
                    ExecutionWarning(
                        code="max_iterations",
                        message=f"{unit.name} ended at turn {repeat.max_iterations}: its condition does not hold",
                        step_id=unit.step_id,
                    )
                )
        state.error = None
        state.status = StepStatus.COMPLETED
        self.listener.unit_completed(unit, now)

    def complete_value(self, unit: Unit, output: Value, now: datetime, *, child: str | None = None) -> None:
        """The run itself has the unit's output."""
        unit.state.completed_at = now
        is_recorded = unit.item is None or unit.step.type != "transform"
        unit.state.status = StepStatus.COMPLETED
        if is_recorded:
            before = self.events_before(unit, now)
            self.decided.append(self.records.of_value(unit, now, output, before=before, child_execution_id=child))
        self._turn_ended(unit, output, now)

    def fail(self, unit: Unit, failure: CallFailure, now: datetime) -> None:
        """A unit's call has failed for good: another agent is called, or the unit has failed."""
        state = unit.state
        state.status = StepStatus.FAILED
        state.completed_at = now
        state.error = error_of(unit, failure)
        try:
            choice, told = next_agent(unit, failure, self.values, now)
        except TooLargeToDecideError as error:
            choice, told = None, []
            state.error = state.error.model_copy(update={"message": f"{state.error.message}; {error}"})
        self._admissions.count([event.type == "handoff.taken" for event in told])
        before = [*self.events_before(unit, now), *told]
        if choice is not None:
            self.decided.append(self.records.of_failure(unit, failure, now, "step.fell_back", before))
            state.choice = choice
            state.status = StepStatus.RUNNING
            self.again.append(unit)
            return
        self.decided.append(self.records.of_failure(unit, failure, now, "step.failed", before))
        self.must_tell = self.must_tell or unit.item is None
        state.handed = None
        self.listener.unit_failed(unit, now)

    def warn(self, warning: ExecutionWarning) -> None:
        """Keep a warning, cut to a size; of very many the first, for which an execution's end has room."""
        if len(self.warnings) < MAX_WARNINGS:
            text = warning.message
            short = text[: MAX_WARNING_CHARS - 1] + "…" if len(text) > MAX_WARNING_CHARS else text
            self.warnings.append(warning.model_copy(update={"message": short}))

    def fail_items(self, unit: Unit, error: ErrorPayload, now: datetime) -> None:
        """Too many items have failed: so has the step."""
        state = unit.state
        state.status = StepStatus.FAILED
        state.completed_at = now
        state.error = error
        failure = CallFailure("agent", str(error.details.get("reason") or "error"), error.message, 0)
        before = self.events_before(unit, now)
        self.decided.append(self.records.of_failure(unit, failure, now, "step.failed", before))
        self.listener.unit_failed(unit, now)

    def cancel(self, unit: Unit, failure: CallFailure | None, now: datetime) -> None:
        """The unit does not go on."""
        state = unit.state
        if failure is None:
            failure = CallFailure("cancelled", "cancelled", "Cancelled before it ended", 0)
        state.status = StepStatus.CANCELLED
        state.completed_at = now
        state.error = None
        before = self.events_before(unit, now)
        self.decided.append(self.records.of_failure(unit, failure, now, "step.cancelled", before))
        self.listener.unit_cancelled(unit, now)

    def collect(self, unit: Unit, request: ComputeInput) -> ComputeValue:
        """Have an activity make the list of a step's outputs."""
        return self.compute(unit, request, f"{unit.step.name}: collect")

    def compute(self, unit: Unit, request: ComputeInput, summary: str) -> ComputeValue:
        """Have an activity make a value."""
        address = self.address(unit)
        self.running[address] = unit
        request = request.model_copy(update={"decided": self.take_some_decided()})
        return ComputeValue(address, summary, request)

    def compute_input(self, unit: Unit, now: datetime, given: CallInput | None = None) -> ComputeInput:
        """What an activity needs to compute a unit's value and to record it."""
        return ComputeInput(
            execution_id=self.facts.execution_id,
            run_started_at=self.facts.owned_since(now),
            record=self.records.blank(unit).model_copy(update={"events": self.events_before(unit, now)}),
            declared=unit.step.declared,
            handed=unit.step.handed,
            input=given,
        )

    def take_some_decided(self) -> list[StepRecord]:
        """Hand over the oldest decisions, as many as one payload has room for, but one at least."""
        taken = take_payload(self.decided, MAX_SENT_DECISIONS_BYTES)
        self.must_tell = self.must_tell and bool(self.decided)
        return taken

    def events_before(self, unit: Unit, now: datetime) -> list[Event]:
        """What was decided about a step before its first call."""
        is_first = unit.state.n == 1 and unit.item is None
        return self._admissions.events(unit.step, now) if is_first else []

    def address(self, unit: Unit) -> str:
        """Of the unit's current call."""
        return call_address(unit.step_id, unit.item, unit.state.n)
