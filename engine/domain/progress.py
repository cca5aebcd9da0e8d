"""The interpreter's decisions, as a pure reducer: events in, actions out.

Nothing here waits, reads a clock or calls anything; the workflow hands in Temporal's time with every event. So the
rules of dependencies, failures, clean-up and cancellation are tested without a server, and a replay can only repeat
them. One event costs O(out-degree of its step), not O(steps).

This module knows the graph and the phases of a run (steps, then clean-up); what one step goes through is in
``unit_work``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.actions import CallFailure, Ending, InvokeAgent, StartTimer
from engine.domain.admissions import Admissions, TooLargeToDecideError
from engine.domain.budgets import BudgetMeter, narrowed
from engine.domain.call_records import CallRecords, RunFacts
from engine.domain.calls import Calls
from engine.domain.carrying import carry, restore, reuse
from engine.domain.cleanup import CLEANUP_TIMER, Cleanup
from engine.domain.execution import (
    BudgetLimits,
    Cancellation,
    ErrorPayload,
    Event,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    Usage,
    Value,
    micros,
)
from engine.domain.expressions import MissingPathError, compile_template, json_size
from engine.domain.following import Following
from engine.domain.foreach import ItemsError, collect_input, collected, count_items
from engine.domain.frontier import Frontier
from engine.domain.gate import Transition
from engine.domain.gates import Gates
from engine.domain.messages import (
    MAX_SENT_DECISIONS_BYTES,
    AgentCallInput,
    CallInput,
    CarriedState,
    ClosingCall,
)
from engine.domain.operands import call_input, missing_path
from engine.domain.plan import output_of
from engine.domain.plan_values import PlanValues
from engine.domain.step_state import StepState, Unit
from engine.domain.unit_work import UnitWork
from engine.errors import ConflictError, ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from engine.domain.actions import Action
    from engine.domain.gates import Gate
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.messages import ChildResult, ComputeInput, SettledStep, StepOutcome
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["CallFailure", "Ending", "ExecutionProgress", "InvokeAgent", "RunFacts"]

MAX_PENDING_CALLS: Final = 500
MAX_WINDOW_BYTES: Final = 2 * 1024 * 1024
MAX_CLOSING_STEPS: Final = 100
"""A longer list of steps would cost more in history than a ``finalize`` does in time."""
MAX_WARNING_CHARS: Final = 300
MAX_WARNINGS: Final = 200
BUDGET_GATE: Final = "execution:budget"
_UNMEASURED_CALLS: Final = MAX_WINDOW_BYTES // (256 * 1024) - 1


class ExecutionProgress:
    """One execution's state, changed by events, asked for actions.

    Args:
        plan: what to run.
        execution_input: of the execution.
        facts: of this run.
        carried: what the run before left, when this one continues it.
        reused: steps of a rerun that keep their recorded outcome.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        execution_input: Value,
        facts: RunFacts,
        carried: CarriedState | None = None,
        reused: Sequence[SettledStep] = (),
    ) -> None:
        self.plan = plan
        self.facts = facts
        self.steps: dict[str, StepState] = {step.id: StepState() for step in (*plan.steps, *plan.final_steps)}
        self.plan_steps: dict[str, PlanStep] = {step.id: step for step in (*plan.steps, *plan.final_steps)}
        self.ending: Ending | None = None
        self.recorded_output: Value | None = None
        """The execution's output, when the last call recorded the end."""
        self.is_paused = False
        self.events: list[Event] = []
        """Of the execution itself, not yet told."""
        self.values = PlanValues(plan, execution_input, facts.execution_id, facts.started_at, self.steps)
        self.main = Frontier(plan.steps, self.steps)
        self.cleanup: Cleanup | None = None
        self.failing: Ending | None = None
        """A step has failed, and what runs may end before the execution does."""
        self.gates = Gates(facts, plan)
        self.budget = BudgetMeter(narrowed(plan.budget, facts.budget), facts.started_at, BudgetLimits())
        self.following = Following(plan, self.values)
        self.admissions = Admissions(self.facts, self.steps, self.values)
        self._records = CallRecords(self.facts, plan)
        self._calls = Calls(self.facts, plan, self.values)
        self.work = UnitWork(
            facts, self.values, self._calls, self._records, self.admissions, self.gates, self.budget, self
        )
        self.work.warnings.extend(plan.warnings)
        self._told_status = ExecutionStatus.RUNNING
        self._is_stopped = False
        self.due: list[Action] = []
        """What events have asked for outside of ``next_actions``."""
        if reused:
            reuse(self, reused)
        if carried is not None:
            restore(self, carried)

    # What the workflow asks.

    @property
    def running(self) -> int:
        """How many calls are scheduled."""
        return len(self.work.running)

    @property
    def usage(self) -> Usage:
        """Of all calls so far."""
        return self.work.usage

    @property
    def warnings(self) -> list[ExecutionWarning]:
        """So far."""
        return self.work.warnings

    @property
    def decided(self) -> list[StepRecord]:
        """Records that no activity has written."""
        return self.work.decided

    @property
    def step_ids(self) -> list[str]:
        """The plan's steps, and those that the run has added."""
        return list(self.steps)

    @property
    def has_ready(self) -> bool:
        """Whether a step could be dispatched now."""
        return self.main.has_ready and self._may_start

    @property
    def is_over(self) -> bool:
        """Whether nothing is scheduled and nothing will be."""
        work = self.work
        if self.ending is None or work.running or work.resumed or work.again or work.timers or self.due:
            return False
        return not self._needs_cleanup if self.cleanup is None else not self.cleanup.has_more

    @property
    def status(self) -> ExecutionStatus:
        """Where the execution stands while it is open."""
        if self.ending is None and self.is_paused:
            return ExecutionStatus.PAUSED
        if self.ending is None and self.gates.open_gates:
            return ExecutionStatus.WAITING
        return ExecutionStatus.RUNNING

    def next_actions(self, now: datetime, *, draining: bool = False) -> list[Action]:
        """Say what to schedule: ready steps in definition order, within the window of pending calls and bytes.

        Args:
            now: the run's time.
            draining: the run is to continue as new, and only calls whose worker was lost are scheduled again.
        """
        actions: list[Action] = [*self.work.resumed, *self.due]
        self.work.resumed.clear()
        self.due.clear()
        if self.ending is not None and not self._is_stopped:
            self._stop(now)
        if draining:
            return actions
        if self._is_stopped and self.cleanup is None and not self.work.running and self._needs_cleanup:
            self._begin_clean_up(now, actions)
        window_bytes = 0
        while self._has_due_call:
            if len(self.work.running) >= MAX_PENDING_CALLS or window_bytes > MAX_WINDOW_BYTES:
                break
            action = self._next_action(now)
            if action is not None:
                actions.append(action)
                if len(actions) > _UNMEASURED_CALLS and isinstance(action, InvokeAgent):
                    window_bytes += json_size(action.call.input.inline, limit=MAX_WINDOW_BYTES)
        if self.cleanup is not None and not self.cleanup.has_more and not self.work.running:
            self._end_clean_up(now)
        return actions

    def take_cancelled(self) -> list[str]:
        """Hand over the addresses of calls and timers to be cancelled."""
        cancelled, self.work.cancelled = self.work.cancelled, []
        return cancelled

    # What happens.

    def apply_outcome(self, address: str, outcome: StepOutcome, sent: AgentCallInput) -> None:
        """An agent's call has succeeded."""
        was_open = self.ending is None
        self.work.outcome(address, outcome, sent, outcome.completed_at)
        if was_open and self.ending is not None and self.ending.status is ExecutionStatus.COMPLETED:
            self.recorded_output = outcome.output if outcome.closed else None
        self._end_when_idle()

    def apply_failure(self, address: str, failure: CallFailure, sent: AgentCallInput, now: datetime) -> None:
        """An agent's call has failed for good."""
        self.work.failure(address, failure, sent, now)
        self._end_when_idle()

    def apply_child(self, address: str, result: ChildResult | CallFailure, now: datetime) -> None:
        """A child execution has ended."""
        self._take(self.work.child_ended(address, result, now))

    def apply_computed(
        self, address: str, result: StepOutcome | CallFailure, request: ComputeInput, now: datetime
    ) -> None:
        """An activity has made a large value, or could not."""
        self._take(self.work.computed(address, result, request, now))

    def apply_timer(self, address: str, now: datetime) -> None:
        """A timer has come to its instant."""
        if address == CLEANUP_TIMER:
            self._time_out_clean_up(now)
            return
        self._take(self.work.timer_fired(address, now))

    def cancel(self, cancel: Cancellation) -> None:
        """Stop dispatching: the execution ends as cancelled unless its end was decided before."""
        if self.ending is None:
            self.ending = self.failing or Ending(ExecutionStatus.CANCELLED, cancel=cancel)

    def time_out(self) -> None:
        """The deadline has passed."""
        if self.ending is None:
            at = self.facts.deadline_at
            self.ending = self.failing or Ending(
                ExecutionStatus.FAILED,
                ErrorPayload(
                    code=ErrorCode.EXECUTION_TIMEOUT,
                    message="The execution passed its deadline; give it a longer timeout or make its steps faster",
                    details={"deadline_at": at.isoformat() if at else None},
                ),
            )

    # What operators do. Each ``check_`` raises before anything has changed.

    def check_pause(self) -> None:
        """Raises: ConflictError: it is paused, or over."""
        self._check_open()
        if self.is_paused:
            raise ConflictError("The execution is paused already", {"status": "paused"})

    def pause(self, by: str | None, reason: str | None, now: datetime) -> None:
        """Start nothing new; what runs ends."""
        self.is_paused = True
        self.events.append(Event.at_instant("execution.paused", now, by=by, reason=reason))

    def check_resume(self) -> None:
        """Raises: ConflictError: it is not paused, or over."""
        self._check_open()
        if not self.is_paused:
            raise ConflictError("The execution is not paused", {"status": self.status.value})

    def resume(self, by: str | None, now: datetime) -> None:
        """Go on."""
        self.is_paused = False
        self.events.append(Event.at_instant("execution.resumed", now, by=by))

    def check_answer(self, gate_id: JsonValue, answer: JsonValue, data: JsonValue, by: JsonValue) -> Gate:
        """Return the gate that an answer is for; raises as ``Gates.check``."""
        gate = self.gates.check(gate_id, answer, data, by)
        self._check_open()
        if gate.record.kind == "budget" and answer == "continue":
            _check_grant(data)
        return gate

    def answer_gate(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """Take an answer that was checked."""
        self.gates.answer(gate, answer, data, by, now)
        match gate.record.kind:
            case "approval":
                self.work.answer_approval(gate, answer, data, by, now)
            case "ask":
                self._answer_ask(gate, answer, data, by, now)
            case "budget":
                self._answer_budget(answer, data, by)
        self._end_when_idle()

    def check_ask(self, step_id: JsonValue) -> Gate:
        """Return the gate of a failed step.

        Raises:
            InvalidInputError: there is no such step.
            ConflictError: it has not failed, or does not wait for an operator.
        """
        if not isinstance(step_id, str) or step_id not in self.steps:
            known: list[JsonValue] = list(self.steps)[:50]
            raise InvalidInputError(f"There is no step {str(step_id)[:80]}", {"path": "step_id", "known": known})
        self._check_open()
        gate = self.gates.find_ask(step_id)
        if gate is None:
            status = self.steps[step_id].status.value
            raise ConflictError(
                f"Step {step_id} is {status} and waits for no operator; on_error: ask makes a failed step wait",
                {"step_id": step_id, "status": status},
            )
        return gate

    # What it leaves.

    def output_input(self) -> CallInput:
        """The execution's output, or its template with operands.

        Raises:
            MissingPathError: the definition's output mapping reads what is not there.
        """
        return call_input(compile_template(self.plan.output), self.plan.output, self.values)

    def fail_output(self, error: MissingPathError) -> None:
        """The output can't be resolved: the execution fails."""
        self.ending = Ending(
            ExecutionStatus.FAILED,
            ErrorPayload(
                code=ErrorCode.INVALID_INPUT,
                message=missing_path("The output mapping", error),
                details={"path": error.path.text},
            ),
        )

    def take_decided(self) -> list[StepRecord]:
        """Hand over the decisions that no activity has recorded."""
        decided, self.work.decided = self.work.decided, []
        return decided

    def take_some_decided(self) -> list[StepRecord]:
        """Hand over the oldest of them, as many as one payload has room for, but one at least."""
        return self.work.take_some_decided()

    @property
    def has_many_decided(self) -> bool:
        """Whether they would not fit into one payload beside an execution's end."""
        size_bytes = 0
        for record in self.decided:
            size_bytes += len(record.model_dump_json())
            if size_bytes > MAX_SENT_DECISIONS_BYTES:
                return True
        return False

    def take_events(self) -> list[Event]:
        """Hand over what was not told of the execution itself."""
        events, self.events = [*self.gates.events, *self.events], []
        self.gates.events = []
        return sorted(events, key=lambda event: event.id)

    @property
    def has_transition(self) -> bool:
        """Whether something has changed that no agent's call records."""
        return bool(self.gates.changed or self.work.waiting) or (
            self.ending is None and self.status is not self._told_status
        )

    def take_transition(self, now: datetime) -> Transition:
        """Hand over what has changed beside agents' calls."""
        status = self.status
        told, self._told_status = self._told_status, status
        if status is not told and status is ExecutionStatus.WAITING:
            self.events.append(Event.at_instant("execution.waiting", now))
        gates, self.gates.changed = list(self.gates.changed.values()), {}
        waiting, self.work.waiting = self.work.waiting, []
        return Transition(
            execution_id=self.facts.execution_id,
            run_id=self.facts.run_id,
            run_started_at=self.facts.owned_since(now),
            token=micros(now),
            status=status if status is not told and self.ending is None else None,
            events=self.take_events(),
            gates=gates,
            steps=[*self.take_some_decided(), *waiting] if self.decided else waiting,
        )

    def tell_status(self) -> None:
        """The run before has told of the status that this one begins with."""
        self._told_status = self.status

    def carry(self) -> CarriedState:
        """What a run that continues this one as new needs; call it only when nothing is scheduled."""
        return carry(self)

    # What units tell (``UnitListener``).

    def may_go_on(self, unit: Unit) -> bool:
        """Whether a unit may still begin another turn or wait for somebody."""
        return self._is_clean_up(unit) or (self.ending is None and self.failing is None)

    def is_stopped(self, unit: Unit) -> bool:
        """Whether a unit's calls are being cancelled."""
        if self._is_clean_up(unit):
            return self.cleanup is not None and self.cleanup.is_timed_out
        return self.ending is not None

    def unit_completed(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, has its output."""
        if unit.item is not None:
            self._item_ended(unit, now)
            return
        cleanup = self.cleanup
        if cleanup is not None and cleanup.undoing is unit.step:
            cleanup.undoing = None
        else:
            self._settle(unit.step, now)

    def unit_failed(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, has failed for good."""
        if unit.item is not None:
            self._item_ended(unit, now)
        elif self._is_clean_up(unit):
            self._fail_clean_up(unit, now)
        else:
            self._fail_step(unit, now)

    def unit_cancelled(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, was cancelled."""
        if unit.item is not None:
            self._item_ended(unit, now)
        elif self.cleanup is not None and self.cleanup.undoing is unit.step:
            self.cleanup.undoing = None

    def deadline_of(self, unit: Unit) -> datetime | None:
        """When what the unit is a part of must be over."""
        if self.cleanup is not None and self._is_clean_up(unit):
            return self.cleanup.deadline_at
        return self.facts.deadline_at

    def closing_call(self, unit: Unit) -> ClosingCall | None:
        """The end that this step's success is, when it is the last one and nothing is left to be worked out."""
        step, plan = unit.step, self.plan
        is_last = self.main.unsettled == 1 and plan.output == output_of(step.id)
        has_more = step.repeat or step.foreach or step.follows or plan.final_steps or self.failing or self.events
        is_told = self._told_status is ExecutionStatus.RUNNING and not self.gates.changed and not self.gates.events
        if not is_last or has_more or not is_told or len(plan.steps) > MAX_CLOSING_STEPS or self.ending is not None:
            return None
        return ClosingCall(
            plan_hash=self.facts.plan_hash,
            step_ids=self.step_ids,
            usage=self.usage,
            warnings=self.warnings,
        )

    # Inside: dispatching.

    @property
    def _may_start(self) -> bool:
        """Whether a step of the graph may begin."""
        return self._may_call and self.failing is None

    @property
    def _may_call(self) -> bool:
        return self.ending is None and not self.is_paused and not self._is_held

    @property
    def _is_held(self) -> bool:
        """Whether the budget is spent, and somebody is asked."""
        return any(gate.record.kind == "budget" for gate in self.gates.open_gates) if self.budget.breaches else False

    @property
    def _has_due_call(self) -> bool:
        if self.cleanup is not None:
            return bool(self.work.again) or self.cleanup.may_begin
        return (bool(self.work.again) and self._may_call) or (self.main.has_ready and self._may_start)

    def _next_action(self, now: datetime) -> Action | None:
        if self.work.again:
            unit = self.work.again.popleft()
            return self._begin(unit, now)
        cleanup = self.cleanup
        if cleanup is not None and cleanup.undo:
            cleanup.undoing = cleanup.undo.popleft()
            return self._begin(Unit(cleanup.undoing, self._added_state(cleanup.undoing)), now)
        frontier = self.main if cleanup is None else cleanup.frontier
        step = frontier.pop()
        state = self.steps[step.id]
        if state.items is not None:
            return self._begin_item(step, state, now)
        if not self._admit(step, now):
            return None
        if step.foreach is not None:
            return self._open_items(step, state, now)
        return self._begin(Unit(step, state), now)

    def _begin(self, unit: Unit, now: datetime) -> Action | None:
        if self.cleanup is None and unit.step.type in ("agent", "workflow") and self._is_spent(unit, now):
            return None
        action = self.work.begin(unit, now)
        self._end_when_idle()
        return action

    def _added_state(self, step: PlanStep) -> StepState:
        self.plan_steps[step.id] = step
        return self.steps.setdefault(step.id, StepState())

    def _admit(self, step: PlanStep, now: datetime) -> bool:
        """Whether a step whose dependencies have settled is run; one that is not is skipped or fails here."""
        state = self.steps[step.id]
        try:
            admission = self.admissions.decide(step)
        except TooLargeToDecideError as error:
            state.n += 1
            state.run_id = self.facts.run_id
            state.agent_id = step.agents[0] if step.agents else None
            self.work.fail_input(Unit(step, state), str(error), error.path.text, now)
            self._end_when_idle()
            return False
        if admission.refused_by is None:
            return True
        state.n += 1
        state.run_id = self.facts.run_id
        state.status = StepStatus.SKIPPED
        state.completed_at = now
        state.note = admission.reason
        self.admissions.must_join = True
        self.decided.append(self.admissions.skipped_record(step, admission, now))
        self._settle(step, now)
        return False

    # Inside: items.

    def _open_items(self, step: PlanStep, state: StepState, now: datetime) -> Action | None:
        state.n += 1
        state.run_id = self.facts.run_id
        state.status = StepStatus.RUNNING
        state.started_at = now
        try:
            state.items = count_items(step, self.values)
        except ItemsError as error:
            self.work.fail_input(Unit(step, state), str(error), None, now)
            self._end_when_idle()
            return None
        if state.items.count == 0:
            self._items_ended(step, state, now)
            return None
        return self._begin_item(step, state, now)

    def _begin_item(self, step: PlanStep, state: StepState, now: datetime) -> Action | None:
        items, foreach = state.items, step.foreach
        if items is None or foreach is None or not items.has_more or not state.is_open:
            return None
        limit = foreach.max_concurrency
        if limit is not None and len(items.open) >= limit:
            return None
        item = items.take_next()
        unit = Unit(step, StepState(n=items.calls.get(item, 0)), item)
        items.open[item] = unit.state
        if items.has_more:
            self.frontier_of(step).push(step.id)
        return self._begin(unit, now)

    def _item_ended(self, unit: Unit, now: datetime) -> None:
        state = self.steps[unit.step_id]
        items, item = state.items, unit.item
        if items is None or item is None:
            return
        del items.open[item]
        if unit.state.n > 1:
            items.calls[item] = unit.state.n
        state.attempts += unit.state.attempts
        if unit.state.status is StepStatus.COMPLETED and unit.state.output is not None:
            items.outputs[item] = unit.state.output
        elif unit.state.status is StepStatus.FAILED:
            items.failed[item] = unit.state.n
            if len(items.failed) > items.tolerated and items.error is None:
                items.error = unit.state.error
        is_stopped = not self.may_go_on(Unit(unit.step, state)) and (
            items.has_more or unit.state.status is StepStatus.CANCELLED
        )
        if not items.open and (items.is_over or is_stopped):
            if is_stopped and items.error is None:
                self.work.cancel(Unit(unit.step, state), None, now)
            else:
                self._items_ended(unit.step, state, now)
        elif items.has_more:
            self.frontier_of(unit.step).push(unit.step_id)

    def _items_ended(self, step: PlanStep, state: StepState, now: datetime) -> None:
        items = state.items
        unit = Unit(step, state)
        if items is None:
            return
        if items.error is not None:
            self.work.fail_items(unit, items.error, now)
            return
        if items.failed:
            count = len(items.failed)
            self._warn("items_failed", f"{count} of {items.count} items of step {step.id} failed; they give null", step)
        output = collected(items)
        if output is not None:
            self.work.complete_items(unit, output, now)
            return
        request = self.work.compute_input(unit, now).model_copy(update={"collect": collect_input(items)})
        self.due.append(self.work.collect(unit, request))

    def frontier_of(self, step: PlanStep) -> Frontier:
        """The graph that a step belongs to."""
        if self.cleanup is not None and self._is_clean_up(Unit(step, self.steps[step.id])):
            return self.cleanup.frontier
        return self.main

    # Inside: how steps end, and the run with them.

    def _settle(self, step: PlanStep, now: datetime, *, has_failed: bool = False) -> None:
        state = self.steps[step.id]
        cleanup = self.cleanup
        if cleanup is not None and self._is_clean_up(Unit(step, state)):
            cleanup.frontier.settle(step.id)
            return
        if step.follows and not has_failed and state.status is not StepStatus.SKIPPED and self._goes_on:
            self._follow(step, state, now)
        following = self.following.next_after(step.id)
        if following is not None and self._goes_on:
            self.add_step(following)
        self.main.settle(step.id)
        if self.main.unsettled == 0 and self._goes_on and not has_failed:
            self.ending = Ending(ExecutionStatus.COMPLETED)

    @property
    def _goes_on(self) -> bool:
        return self.ending is None and self.failing is None

    def _follow(self, step: PlanStep, state: StepState, now: datetime) -> None:
        try:
            begun, told = self.following.decide(step, state, now)
        except TooLargeToDecideError as error:
            self._warn("handoff_undecided", f"The handoffs from step {step.id} were not followed: {error}", step)
            return
        self.events += told
        for following in begun:
            self.add_step(following)

    def add_step(self, step: PlanStep) -> None:
        """A handoff adds a step, which depends on none."""
        self._added_state(step)
        self.main.add(step)

    def _fail_step(self, unit: Unit, now: datetime) -> None:
        step, state = unit.step, unit.state
        error = state.error
        if error is not None and self._goes_on and step.on_error == "ask":
            state.status = StepStatus.WAITING
            question = f"Step {step.name} has failed: {error.message} Retry it, skip it with an output, or fail?"
            self.gates.open_ask(f"{step.id}.{state.n}", unit, question, now)
            return
        if error is not None and self.ending is None and step.on_error == "continue":
            state.is_continued = True
            self.admissions.must_join = True
            self._warn("step_failed", f"Step {step.id} failed, and the execution went on: {error.message}", step)
        self._give_up(unit, now)

    def _give_up(self, unit: Unit, now: datetime) -> None:
        step, state = unit.step, unit.state
        self._settle(step, now, has_failed=not state.is_continued)
        if state.error is None or not self._goes_on or state.is_continued:
            return
        ending = Ending(
            ExecutionStatus.FAILED,
            ErrorPayload(
                code=state.error.code,
                message=f"Step {step.id} failed: {state.error.message}",
                details=state.error.details,
            ),
        )
        if self.plan.on_failure == "finish":
            self.failing = ending
            self._close_waiting(now)
        else:
            self.ending = ending

    def _answer_ask(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        unit = gate.unit
        if unit is None:
            return
        if answer == "retry":
            self._retry(unit)
        elif answer == "skip":
            output = data.get("output") if isinstance(data, dict) and "output" in data else data
            self.work.supply(unit, output, by, now)
            self.admissions.must_join = True
            self._settle(unit.step, now)
        else:
            unit.state.status = StepStatus.FAILED
            self._give_up(unit, now)

    def _retry(self, unit: Unit) -> None:
        state = unit.state
        items = state.items
        if items is None or not items.failed:
            self.work.retry(unit)
            return
        items.again = sorted(items.failed)
        items.failed.clear()
        items.error = state.error = None
        state.n += 1
        state.status = StepStatus.RUNNING
        self.main.push(unit.step_id)

    def _end_when_idle(self) -> None:
        is_idle = not self.work.running and not self.work.again and not self.work.resumed
        if self.failing is not None and self.ending is None and is_idle:
            self.ending = self.failing

    def _is_spent(self, unit: Unit, now: datetime) -> bool:
        """Whether the budget keeps a call from being made; then the run ends, or somebody is asked."""
        breach = self.budget.breach(self.usage, self.work.agent_calls, now)
        if breach is None:
            return False
        self.budget.breaches += 1
        self.events.append(Event.at_instant("budget.exceeded", now, BUDGET_GATE, unit.step_id, **breach))
        said = f"The budget of {breach['allowed']:g} {breach['limit']} is spent ({breach['used']:g})"
        limits = self.budget.limits
        if limits is not None and limits.on_breach == "ask":
            self.gates.open_budget(f"{BUDGET_GATE}.{self.budget.breaches}", f"{said}. Go on?", now)
            self.work.again.appendleft(unit)
            return True
        unit.state.status = StepStatus.PENDING if unit.state.n == 0 else unit.state.status
        if unit.state.n or unit.item is not None:
            self.work.again.appendleft(unit)
        self.ending = self.failing or Ending(
            ExecutionStatus.FAILED, ErrorPayload(code=ErrorCode.BUDGET_EXCEEDED, message=said, details=breach)
        )
        return True

    def _answer_budget(self, answer: str, data: JsonValue, by: str | None) -> None:
        if answer == "continue":
            self.budget.grant(data if isinstance(data, dict) and data else None)
        elif self.ending is None:
            message = f"The budget was spent, and {by or 'an operator'} said to fail"
            self.ending = self.failing or Ending(
                ExecutionStatus.FAILED, ErrorPayload(code=ErrorCode.BUDGET_EXCEEDED, message=message)
            )

    # Inside: clean-up.

    @property
    def _needs_cleanup(self) -> bool:
        if self.plan.final_steps:
            return True
        return (
            self.ending is not None and self.ending.status is not ExecutionStatus.COMPLETED and bool(self._undoable())
        )

    def _undoable(self) -> list[PlanStep]:
        found: list[PlanStep] = []
        for step_id in reversed(self.main.settled_order):
            compensation = self.plan_steps[step_id].compensation
            if compensation is not None and self.steps[step_id].status is StepStatus.COMPLETED:
                found.append(compensation)
        return found

    def _is_clean_up(self, unit: Unit) -> bool:
        cleanup = self.cleanup
        if cleanup is None:
            return False
        return unit.step is cleanup.undoing or unit.step_id in self._final_ids

    @property
    def _final_ids(self) -> set[str]:
        return {step.id for step in self.plan.final_steps}

    def _stop(self, now: datetime) -> None:
        """The end is decided: cancel what runs, and let nothing wait any more."""
        self._is_stopped = True
        self.work.cancelled.extend(self.work.running)
        self._close_waiting(now)

    def _close_waiting(self, now: datetime) -> None:
        """End what waits for a call, an instant or an answer."""
        work = self.work
        fallbacks = [unit for unit in work.again if self.ending is None and unit.state.choice]
        waiting = [unit for unit in work.again if unit not in fallbacks]
        work.again.clear()
        work.again.extend(fallbacks)
        work.cancelled.extend(work.timers)
        waiting += [unit for unit in work.timers.values() if unit not in waiting]
        work.timers.clear()
        for gate in self.gates.open_gates:
            self.gates.close(gate, now)
            if gate.unit is not None and gate.unit not in waiting:
                waiting.append(gate.unit)
        for unit in waiting:
            if unit.state.n == 0 and unit.item is None:
                unit.state.status = StepStatus.PENDING
                continue
            if unit.state.status is not StepStatus.WAITING:
                unit.state.n += 1
            unit.state.run_id = self.facts.run_id
            work.cancel(unit, None, now)
        for step_id, state in self.steps.items():
            if state.items is not None and state.is_open and not state.items.open:
                work.cancel(Unit(self.plan_steps[step_id], state), None, now)

    def _begin_clean_up(self, now: datetime, actions: list[Action]) -> None:
        ending = self.ending
        if ending is None:
            return
        undo = [] if ending.status is ExecutionStatus.COMPLETED else self._undoable()
        self.open_clean_up(Cleanup(self.plan, self.steps, undo, now))
        if self.cleanup is not None and self.cleanup.has_more:
            actions.append(StartTimer(CLEANUP_TIMER, self.cleanup.deadline_at, "time for clean-up"))

    def open_clean_up(self, cleanup: Cleanup) -> None:
        """Enter the phase in which completed steps are undone and ``finally`` is run."""
        ending = self.ending
        self.cleanup = cleanup
        self._is_stopped = True
        self.admissions.must_join = True
        if ending is not None:
            self.values.conclude(ending.status.value, ending.error)

    def _fail_clean_up(self, unit: Unit, now: datetime) -> None:
        cleanup, step, error = self.cleanup, unit.step, unit.state.error
        if cleanup is None or error is None:
            return
        if step is cleanup.undoing:
            cleanup.undoing = None
            self._warn("compensation_failed", f"Step {step.id} failed: {error.message}", step)
            return
        if step.on_error == "continue":
            unit.state.is_continued = True
            self._warn("step_failed", f"Step {step.id} failed, and the execution went on: {error.message}", step)
        elif cleanup.failed is None:
            cleanup.failed = error.model_copy(update={"message": f"Step {step.id} failed: {error.message}"})
        self._settle(step, now)

    def _time_out_clean_up(self, now: datetime) -> None:
        cleanup = self.cleanup
        if cleanup is None or not (cleanup.has_more or self.work.running):
            return
        cleanup.is_timed_out = True
        seconds = self.plan.cleanup_timeout.total_seconds()
        self._warn("cleanup_timeout", f"Clean-up did not end within {seconds:g} s; what was left is not done", None)
        self.work.cancelled.extend(self.work.running)
        self._close_waiting(now)

    def _end_clean_up(self, now: datetime) -> None:
        cleanup, ending = self.cleanup, self.ending
        if cleanup is None or ending is None or cleanup.has_told:
            return
        del now
        cleanup.has_told = True
        self.work.cancelled.append(CLEANUP_TIMER)
        if cleanup.failed is None:
            return
        if ending.status is ExecutionStatus.COMPLETED:
            self.ending = Ending(ExecutionStatus.FAILED, cleanup.failed)
        else:
            self._warn("finally_failed", cleanup.failed.message, None)

    def _take(self, action: Action | None) -> None:
        if action is not None:
            self.due.append(action)
        self._end_when_idle()

    def _check_open(self) -> None:
        if self.ending is not None:
            raise ConflictError("The execution is ending; nothing can be changed any more", {"status": "ending"})

    def _warn(self, code: str, message: str, step: PlanStep | None) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            text = message if len(message) <= MAX_WARNING_CHARS else message[: MAX_WARNING_CHARS - 1] + "…"
            self.warnings.append(ExecutionWarning(code=code, message=text, step_id=step and step.id))


def _check_grant(data: JsonValue) -> None:
    allowed = ("tokens", "usd", "agent_calls", "seconds")
    if data is None:
        return
    is_right = isinstance(data, dict) and all(
        key in allowed and isinstance(amount, (int, float)) and not isinstance(amount, bool) and amount > 0
        for key, amount in data.items()
    )
    if not is_right:
        raise InvalidInputError(
            f"The data of continue are amounts to add: an object of {', '.join(allowed)} to numbers over 0",
            {"path": "data"},
        )
