"""The work of one unit (a step, or one item of a step), from its first call to its end.

Fallbacks, escalations, turns of a loop, gates and lost workers are all decided here; what the end of a unit means for
the run is decided by who listens (``UnitListener``).
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from engine.domain.actions import CallFailure, ComputeValue, InvokeAgent, StartChild, StartTimer
from engine.domain.decisions import ReplyScope, TooLargeToDecideError, holds
from engine.domain.execution import ErrorPayload, ExecutionWarning, StepRecord, StepStatus, Usage, Value
from engine.domain.expressions import (
    MissingPathError,
    ResolvedTooLargeError,
    compile_template,
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
    ChildResult,
    ComputeInput,
    StepOutcome,
)
from engine.domain.metrics import parse_instant
from engine.domain.operands import Located, OperandScope, Unavailable, call_input, missing_path
from engine.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from engine.domain.actions import Action
    from engine.domain.admissions import Admissions
    from engine.domain.budgets import BudgetMeter
    from engine.domain.call_records import CallRecords, RunFacts
    from engine.domain.calls import Calls
    from engine.domain.execution import Event
    from engine.domain.expressions import Missing, Path
    from engine.domain.gates import Gate, Gates
    from engine.domain.messages import ClosingCall
    from engine.domain.operands import ValueSource
    from engine.domain.plan_values import PlanValues
    from engine.domain.step_state import Unit

__all__ = ["UnitListener", "UnitWork"]

MAX_RESUMES: Final = 3
MAX_CHILD_DEPTH: Final = 10
MAX_WAIT: Final = timedelta(days=366)
TOLD_WAIT: Final = timedelta(seconds=5)
"""A shorter wait is not told before it is over."""
MAX_QUESTION_BYTES: Final = 16 * 1024
EXPIRES: Final = ":expires"
_CODES: Final = {"input": ErrorCode.INVALID_INPUT, "store": ErrorCode.DATABASE_ERROR}


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
        self.usage = Usage()
        self.agent_calls = 0
        """Scheduled calls of agents."""
        self._facts = facts
        self._values = values
        self._calls = calls
        self._records = records
        self._admissions = admissions
        self._gates = gates
        self._budget = budget
        self._listener = listener

    # Beginning.

    def begin(self, unit: Unit, now: datetime) -> Action | None:
        """Make the unit's next call; None when it needs none, or has ended by itself."""
        state, step = unit.state, unit.step
        state.n += 1
        state.run_id = self._facts.run_id
        state.resumes = 0
        state.status = StepStatus.RUNNING
        state.started_at = state.started_at or now
        try:
            match step.type:
                case "agent":
                    return self._invoke(unit, now)
                case "workflow":
                    return self._start_child(unit, now)
                case "transform":
                    return self._transform(unit, now)
                case "wait":
                    return self._wait(unit, now)
                case "approval":
                    return self._ask_people(unit, now)
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
        self._fail(unit, CallFailure("input", ErrorCode.INVALID_INPUT, message, 0, details=details), now)

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
        is_first = state.n == 1 and unit.item is None
        call = self._calls.agent_input(
            unit,
            handed,
            now,
            events=self._admissions.events(step, now) if is_first else [],
            deadline_at=self._listener.deadline_of(unit),
        )
        return self._scheduled(unit, call, step.retry.maximum_attempts)

    def _scheduled(self, unit: Unit, call: AgentCallInput, maximum_attempts: int) -> InvokeAgent:
        decided = self.take_some_decided()
        closing = None if self.decided else self._listener.closing_call(unit)
        action = self._calls.invoke(unit, call, decided, closing, maximum_attempts)
        self.running[action.address] = unit
        self.agent_calls += 1
        return action

    def _start_child(self, unit: Unit, now: datetime) -> Action | None:
        step = unit.step
        if self._facts.depth >= MAX_CHILD_DEPTH:
            message = f"Executions are children of each other {MAX_CHILD_DEPTH} deep; does a workflow execute itself?"
            self._fail(unit, CallFailure("child", ErrorCode.LIMIT_EXCEEDED, message, 0), now)
            return None
        given = self._calls.resolve(unit, step.input_mapping)
        if given.operands is not None:
            request = self._compute_input(unit, now, given).model_copy(update={"is_child_input": True})
            return self._computed(unit, request, f"{_name(unit)}: input")
        return self._child(unit, Value.of(given.inline), now)

    def _child(self, unit: Unit, given: Value, now: datetime) -> StartChild | None:
        if given.ref is None and not isinstance(given.inline, dict):
            self.fail_input(unit, f"The input of step {unit.step_id} is no object, as an execution needs", None, now)
            return None
        address = self._address(unit)
        self.running[address] = unit
        return StartChild(
            address=address,
            child_id=self.child_id(unit),
            summary=_name(unit),
            step=unit.step,
            input=given,
            budget=self._budget.left(self.usage, self.agent_calls, now),
        )

    def child_id(self, unit: Unit) -> str:
        """The execution id of the unit's child."""
        return f"{self._facts.execution_id}/{self._address(unit)}"

    def _transform(self, unit: Unit, now: datetime) -> Action | None:
        resolved = self._calls.resolve(unit, unit.step.transform or {})
        if resolved.operands is None:
            size = json_size(resolved.inline, limit=MAX_INLINE_OUTPUT_BYTES)
            if size <= MAX_INLINE_OUTPUT_BYTES:
                self._complete_value(unit, Value.of(resolved.inline), now)
                return None
        return self._computed(unit, self._compute_input(unit, now, resolved), _name(unit))

    def _wait(self, unit: Unit, now: datetime) -> Action | None:
        spec = unit.step.wait
        scope = OperandScope(self._calls.values_of(unit))
        try:
            if spec is not None and spec.until is not None:
                until = parse_instant(compile_template(spec.until).resolve(scope), "wait.until")
            else:
                seconds = None if spec is None else spec.seconds
                until = now + _wait_time(compile_template(seconds).resolve(scope))
        except (InvalidInputError, ValueError) as error:
            self.fail_input(unit, f"Step {unit.step_id} can't wait so long: {error}", None, now)
            return None
        if until - now > MAX_WAIT:
            self.fail_input(
                unit, f"Step {unit.step_id} would wait until {until.isoformat()}; the most is a year", None, now
            )
            return None
        unit.state.output = Value.of({"waited_until": until.isoformat()})
        if until <= now:
            self._complete_value(unit, unit.state.output, now)
            return None
        unit.state.status = StepStatus.WAITING
        if until - now > TOLD_WAIT:
            self.waiting.append(self._records.of_waiting(unit, now, self._events_before(unit, now)))
        return self.start_timer(self._address(unit), unit, until, _name(unit))

    def start_timer(self, address: str, unit: Unit, due_at: datetime, summary: str) -> StartTimer:
        """Open a timer for a unit."""
        self.timers[address] = unit
        self.due_at[address] = due_at
        return StartTimer(address, due_at, summary)

    def _ask_people(self, unit: Unit, now: datetime, *, escalated: bool = False) -> Action | None:
        approval = unit.step.approval
        if approval is None:
            raise ValueError(f"Step {unit.step_id} is an approval and asks nothing")
        scope = OperandScope(self._calls.values_of(unit))
        question = compile_template(approval.question).resolve(scope, max_bytes=MAX_QUESTION_BYTES)
        unit.state.status = StepStatus.WAITING
        gate = self._gates.open_approval(
            self._address(unit),
            unit,
            approval,
            question if isinstance(question, str) else str(question),
            now,
            escalated=escalated,
        )
        self.waiting.append(self._records.of_waiting(unit, now, self._events_before(unit, now)))
        due_at = gate.record.expires_at
        if due_at is None:
            return None
        return self.start_timer(gate.record.gate_id + EXPIRES, unit, due_at, f"{_name(unit)}: time for an answer")

    # Ends of calls.

    def outcome(self, address: str, outcome: StepOutcome, sent: AgentCallInput, now: datetime) -> Unit:
        """An agent's call has succeeded."""
        unit = self.running.pop(address)
        state = unit.state
        self.agent_calls -= 1
        state.attempts += outcome.attempts
        state.completed_at = outcome.completed_at
        state.started_at = state.started_at or outcome.started_at
        state.handed = outcome.handed
        self.usage += outcome.usage
        self._budget.calls += outcome.attempts
        self.warnings.extend(outcome.warnings)
        if not outcome.decided_recorded:
            self.decided = [*sent.decided, *self.decided]
        if outcome.unrecorded:
            self.decided.append(self._records.of_outcome(unit, outcome))
        self._turn_ended(unit, outcome.output, now)
        return unit

    def failure(self, address: str, failure: CallFailure, sent: AgentCallInput, now: datetime) -> Unit:
        """An agent's call has failed for good."""
        unit = self.running.pop(address)
        state = unit.state
        self.agent_calls -= 1
        self.decided = [*sent.decided, *self.decided]
        if failure.kind == "cancelled" or self._listener.is_stopped(unit):
            self.cancel(unit, failure, now)
            return unit
        repeats = failure.kind == "unasked" or (failure.kind == "lost" and not unit.step.at_most_once)
        if repeats and state.resumes < MAX_RESUMES:
            state.resumes += 1
            again = sent.model_copy(update={"resumed": True, "decided": []})
            self.resumed.append(self._scheduled(unit, again, 1))
            return unit
        state.attempts += failure.attempts
        self._budget.calls += failure.attempts
        self.usage += failure.usage
        self._fail(unit, failure, now)
        return unit

    def child_ended(self, address: str, result: ChildResult | CallFailure, now: datetime) -> Action | None:
        """A child execution has ended; return the call that makes its mapped output, when that is large."""
        unit = self.running.pop(address)
        unit.state.attempts += 1
        self.usage += result.usage
        if isinstance(result, CallFailure):
            self._budget.calls += result.attempts
            self._end_failed(unit, result, now)
            return None
        self._budget.calls += result.calls
        mapping = unit.step.output_mapping
        unit.state.handed = result.output
        if mapping is None:
            self._complete_value(unit, result.output, now, child=self.child_id(unit))
            return None
        try:
            source = _ReplySource(self._calls.values_of(unit), result.output)
            mapped = call_input(compile_template(mapping), mapping, source)
        except MissingPathError as error:
            message = missing_path(f"The output mapping of step {unit.step_id}", error)
            self._fail(unit, CallFailure("child", "invalid_output", message, 0), now)
            return None
        if mapped.operands is None:
            self._complete_value(unit, Value.of(mapped.inline), now, child=self.child_id(unit))
            return None
        return self._computed(unit, self._compute_input(unit, now, mapped), f"{_name(unit)}: output")

    def _end_failed(self, unit: Unit, failure: CallFailure, now: datetime) -> None:
        if failure.kind == "cancelled" or self._listener.is_stopped(unit):
            self.cancel(unit, failure, now)
        else:
            self._fail(unit, failure, now)

    def computed(
        self, address: str, result: StepOutcome | CallFailure, request: ComputeInput, now: datetime
    ) -> Action | None:
        """An activity has made a large value; return the child's start, when it was its input."""
        unit = self.running.pop(address)
        if isinstance(result, CallFailure):
            self.decided = [*request.decided, *self.decided]
            self._end_failed(unit, result, now)
            return None
        if not result.decided_recorded:
            self.decided = [*request.decided, *self.decided]
        if request.is_child_input:
            return self._child(unit, result.output, now)
        unit.state.handed = result.handed
        self._turn_ended(unit, result.output, now)
        return None

    def timer_fired(self, address: str, now: datetime) -> Action | None:
        """A timer has come to its instant."""
        unit = self.timers.pop(address, None)
        if unit is None:
            return None
        gate = self._gates.find(address.removesuffix(EXPIRES)) if address.endswith(EXPIRES) else None
        if gate is None:
            self._complete_value(unit, unit.state.output or Value(), now)
            return None
        return self._expire(gate, unit, now)

    def _expire(self, gate: Gate, unit: Unit, now: datetime) -> Action | None:
        approval = unit.step.approval
        if approval is None or not gate.is_open:
            return None
        if approval.on_timeout == "default" and approval.default is not None:
            self._gates.expire(gate, now, approval.default)
            self._take_answer(unit, approval.default, None, None, now)
            return None
        self._gates.expire(gate, now, None)
        if approval.on_timeout == "escalate" and not gate.escalated:
            unit.state.n += 1
            return self._ask_people(unit, now, escalated=True)
        message = f"Nobody answered gate {gate.record.gate_id} in time"
        self._fail(unit, CallFailure("timeout", "timeout", message, 0), now)
        return None

    # Answers.

    def answer_approval(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """An approval's gate was answered."""
        unit = gate.unit
        if unit is None:
            return
        address = gate.record.gate_id + EXPIRES
        if self.timers.pop(address, None) is not None:
            self.cancelled.append(address)
        self._take_answer(unit, answer, data, by, now)

    def _take_answer(self, unit: Unit, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        approval = unit.step.approval
        output: JsonObject = {"answer": answer, "data": data, "by": by, "at": now.isoformat()}
        if approval is not None and answer in approval.fail_on:
            who = by or "somebody"
            message = f"rejected by {who}" if answer == "reject" else f"{who} answered {answer}"
            failure = CallFailure("agent", "refused", message, 0, details={"answer": output})
            self._fail(unit, failure, now)
            return
        self._complete_value(unit, Value.of(output), now)

    def retry(self, unit: Unit) -> None:
        """An operator runs a failed unit again, from its first agent."""
        state = unit.state
        state.choice, state.iteration, state.error, state.output = 0, 1, None, None
        state.status = StepStatus.RUNNING
        self.again.append(unit)

    def supply(self, unit: Unit, output: JsonValue, by: str | None, now: datetime) -> None:
        """An operator skips a failed unit and gives its output."""
        state = unit.state
        state.n += 1
        state.run_id = self._facts.run_id
        state.status = StepStatus.SKIPPED
        state.is_supplied = True
        state.error = None
        state.completed_at = now
        state.output = Value.of(output)
        state.handed = state.output if isinstance(output, dict) else None
        state.note = f"skipped by {by or 'an operator'}"
        self.decided.append(self._records.of_supply(unit, now, state.output, by))

    # Ends of units.

    def _turn_ended(self, unit: Unit, output: Value, now: datetime) -> None:
        state, repeat = unit.state, unit.step.repeat
        state.output, state.output_n, state.in_record = output, state.n, False
        if repeat is not None:
            scope = ReplyScope(self._calls.values_of(unit), state.handed or output)
            try:
                is_done = holds(repeat.condition, scope)
            except TooLargeToDecideError as error:
                self.fail_input(unit, str(error), error.path.text, now)
                return
            if not is_done and state.iteration < repeat.max_iterations:
                if not self._listener.may_go_on(unit):
                    self.cancel(unit, None, now)
                    return
                state.iteration += 1
                state.choice = 0
                self.again.append(unit)
                return
            if not is_done:
                self.warnings.append(
                    ExecutionWarning(
                        code="max_iterations",
                        message=f"{_name(unit)} ended at turn {repeat.max_iterations}: its condition does not hold",
                        step_id=unit.step_id,
                    )
                )
        state.error = None
        state.status = StepStatus.COMPLETED
        self._listener.unit_completed(unit, now)

    def _complete_value(self, unit: Unit, output: Value, now: datetime, *, child: str | None = None) -> None:
        """The run itself has the unit's output."""
        unit.state.completed_at = now
        is_recorded = unit.item is None or unit.step.type != "transform"
        unit.state.status = StepStatus.COMPLETED
        if is_recorded:
            before = self._events_before(unit, now)
            self.decided.append(self._records.of_value(unit, now, output, before=before, child_execution_id=child))
        self._turn_ended(unit, output, now)

    def complete_items(self, unit: Unit, output: Value, now: datetime) -> None:
        """All items are over, and their outputs are in memory."""
        self._complete_value(unit, output, now)

    def _fail(self, unit: Unit, failure: CallFailure, now: datetime) -> None:
        state = unit.state
        state.status = StepStatus.FAILED
        state.completed_at = now
        state.error = _error_of(unit, failure)
        try:
            choice, told = next_agent(unit, failure, self._values, now)
        except TooLargeToDecideError as error:
            choice, told = None, []
            state.error = state.error.model_copy(update={"message": f"{state.error.message}; {error}"})
        before = [*self._events_before(unit, now), *told]
        if choice is not None:
            self.decided.append(self._records.of_failure(unit, failure, now, "step.fell_back", before))
            state.choice = choice
            state.status = StepStatus.RUNNING
            self.again.append(unit)
            return
        self.decided.append(self._records.of_failure(unit, failure, now, "step.failed", before))
        self._listener.unit_failed(unit, now)

    def fail_items(self, unit: Unit, error: ErrorPayload, now: datetime) -> None:
        """Too many items have failed: so has the step."""
        state = unit.state
        state.status = StepStatus.FAILED
        state.completed_at = now
        state.error = error
        failure = CallFailure("agent", str(error.details.get("reason") or "error"), error.message, 0)
        before = self._events_before(unit, now)
        self.decided.append(self._records.of_failure(unit, failure, now, "step.failed", before))
        self._listener.unit_failed(unit, now)

    def cancel(self, unit: Unit, failure: CallFailure | None, now: datetime) -> None:
        """The unit does not go on."""
        state = unit.state
        if failure is None:
            failure = CallFailure("cancelled", "cancelled", "Cancelled before it ended", 0)
        state.status = StepStatus.CANCELLED
        state.completed_at = now
        before = self._events_before(unit, now)
        self.decided.append(self._records.of_failure(unit, failure, now, "step.cancelled", before))
        self._listener.unit_cancelled(unit, now)

    def collect(self, unit: Unit, request: ComputeInput) -> ComputeValue:
        """Have an activity make the list of a step's outputs."""
        return self._computed(unit, request, f"{unit.step.name}: collect")

    def _computed(self, unit: Unit, request: ComputeInput, summary: str) -> ComputeValue:
        address = self._address(unit)
        self.running[address] = unit
        request = request.model_copy(update={"decided": self.take_some_decided()})
        return ComputeValue(address, summary, request)

    def compute_input(self, unit: Unit, now: datetime) -> ComputeInput:
        """What every computed value of a unit is recorded with."""
        return ComputeInput(
            execution_id=self._facts.execution_id,
            run_started_at=self._facts.owned_since(now),
            record=self._records.blank(unit),
            declared=unit.step.declared,
            handed=unit.step.handed,
        )

    def _compute_input(self, unit: Unit, now: datetime, given: CallInput) -> ComputeInput:
        return self.compute_input(unit, now).model_copy(update={"input": given})

    def take_some_decided(self) -> list[StepRecord]:
        """Hand over the oldest decisions, as many as one payload has room for, but one at least."""
        count = 0
        size_bytes = 0
        for record in self.decided:
            size_bytes += len(record.model_dump_json().encode())
            if count and size_bytes > MAX_SENT_DECISIONS_BYTES:
                break
            count += 1
        taken, self.decided = self.decided[:count], self.decided[count:]
        return taken

    def _events_before(self, unit: Unit, now: datetime) -> list[Event]:
        is_first = unit.state.n == 1 and unit.item is None
        return self._admissions.events(unit.step, now) if is_first else []

    def _address(self, unit: Unit) -> str:
        return call_address(unit.step_id, unit.item, unit.state.n)


class _ReplySource:
    """A unit's values, with ``output`` as what its child returned."""

    def __init__(self, values: ValueSource, output: Value) -> None:
        self._values = values
        self._output = output

    def locate(self, path: Path) -> Located | Missing:
        if path.root == "output":
            return Located(self._output, path.segments, "output", None)
        return self._values.locate(path)


def _error_of(unit: Unit, failure: CallFailure) -> ErrorPayload:
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


def _wait_time(seconds: JsonValue) -> timedelta:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not 0 <= seconds <= MAX_WAIT.total_seconds()
    ):
        raise ValueError(f"{str(seconds)[:80]} is no number of seconds from 0 to a year")
    return timedelta(seconds=seconds)


def _name(unit: Unit) -> str:
    return unit.step.name if unit.item is None else f"{unit.step.name} [{unit.item}]"
