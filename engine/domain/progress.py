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
from engine.domain.carried import CarriedState
from engine.domain.carrying import carry, restore, reuse
from engine.domain.cleanup import CLEANUP_TIMER, Cleanup, steps_to_undo
from engine.domain.execution import (
    BudgetLimits,
    Cancellation,
    ErrorPayload,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    Usage,
    Value,
)
from engine.domain.expressions import MissingPathError, compile_template, json_size
from engine.domain.following import Following
from engine.domain.frontier import Frontier
from engine.domain.gates import Gates
from engine.domain.item_work import ItemWork
from engine.domain.messages import MAX_SENT_DECISIONS_BYTES, AgentCallInput, CallInput, ClosingCall
from engine.domain.news import News
from engine.domain.operands import call_input, missing_path
from engine.domain.operating import OperatorEvents
from engine.domain.plan import output_of
from engine.domain.plan_values import PlanValues
from engine.domain.spending import Spending
from engine.domain.step_state import StepState, Unit
from engine.domain.unit_work import UnitWork
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from engine.domain.actions import Action
    from engine.domain.messages import ChildResult, ComputeInput, SettledStep, StepOutcome
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["CallFailure", "Ending", "ExecutionProgress", "InvokeAgent", "RunFacts"]

MAX_PENDING_CALLS: Final = 500
MAX_WINDOW_BYTES: Final = 2 * 1024 * 1024
MAX_CLOSING_STEPS: Final = 100
"""A longer list of steps would cost more in history than a ``finalize`` does in time."""
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
        self.items = ItemWork(self)
        self.operators = OperatorEvents(self)
        self.spending = Spending(self)
        self.news = News(self)
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
        """The plan's steps and those that the run has added, about in the order in which they run."""
        ids, planned = [*self.steps], len(self.plan.steps)
        known = planned + len(self.plan.final_steps)
        return ids[:planned] + ids[known:] + ids[planned:known]

    @property
    def has_ready(self) -> bool:
        """Whether a step could be dispatched now."""
        return self.main.has_ready and self._may_call and self.failing is None

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

    @property
    def may_carry(self) -> bool:
        """Whether the run may continue as new once nothing is scheduled."""
        return self.goes_on or self.cleanup is not None

    def next_actions(self, now: datetime, *, draining: bool = False) -> list[Action]:
        """Say what to schedule: ready steps in definition order, within the window of pending calls and bytes.

        Args:
            now: the run's time.
            draining: the run is to continue as new, and only calls whose worker was lost are scheduled again.
        """
        actions: list[Action] = [*self.work.resumed, *self.due]
        self.work.resumed.clear()
        self.due.clear()
        window_bytes = 0
        while True:
            if self.ending is not None and not self._is_stopped:
                self._stop(now)
            if draining and self.goes_on:
                return actions
            if self._is_stopped and self.cleanup is None and not self.work.running and self._needs_cleanup:
                self.open_clean_up(Cleanup(self, steps_to_undo(self), now))
            if not draining or self.cleanup is None:
                window_bytes = self._dispatch(now, actions, window_bytes)
            if self.ending is None or self._is_stopped:
                break
        if self.cleanup is not None and not self.cleanup.has_more and not self.work.running:
            self.cleanup.end()
        actions += self.due
        self.due.clear()
        return actions

    def _dispatch(self, now: datetime, actions: list[Action], window_bytes: int) -> int:
        """Add the calls that are due, as far as the window has room; return how much of it is taken."""
        while self._has_due_call:
            if len(self.work.running) >= MAX_PENDING_CALLS or window_bytes > MAX_WINDOW_BYTES:
                break
            action = self._next_action(now)
            if action is not None:
                actions.append(action)
                if len(actions) > _UNMEASURED_CALLS and isinstance(action, InvokeAgent):
                    window_bytes += json_size(action.call.input.inline, limit=MAX_WINDOW_BYTES)
        return window_bytes

    def take_cancelled(self) -> list[str]:
        """Hand over the addresses of calls and timers to be cancelled."""
        cancelled, self.work.cancelled = self.work.cancelled, []
        return cancelled

    # What happens.

    def apply_outcome(
        self, address: str, outcome: StepOutcome, sent: AgentCallInput, now: datetime | None = None
    ) -> None:
        """An agent's call has succeeded; ``now`` is the run's time, by default the call's end."""
        was_open = self.ending is None
        self.work.outcome(address, outcome, sent, now or outcome.completed_at)
        if was_open and self.ending is not None and self.ending.status is ExecutionStatus.COMPLETED:
            self.recorded_output = outcome.output if outcome.closed else None
        self.end_when_idle()

    def apply_failure(self, address: str, failure: CallFailure, sent: AgentCallInput, now: datetime) -> None:
        """An agent's call has failed for good."""
        self.work.failure(address, failure, sent, now)
        self.end_when_idle()

    def apply_child(self, address: str, result: ChildResult | CallFailure, now: datetime) -> None:
        """A child execution has ended."""
        self._take(self.work.children.ended(address, result, now))

    def apply_computed(
        self, address: str, result: StepOutcome | CallFailure, request: ComputeInput, now: datetime
    ) -> None:
        """An activity has made a large value, or could not."""
        self._take(self.work.computed(address, result, request, now))

    def apply_timer(self, address: str, now: datetime) -> None:
        """A timer has come to its instant."""
        if address == CLEANUP_TIMER:
            if self.cleanup is not None:
                self.cleanup.time_out(now)
            return
        self._take(self.work.waits.timer_fired(address, now))

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

    @property
    def has_many_decided(self) -> bool:
        """Whether they would not fit into one payload beside an execution's end."""
        size_bytes = 0
        for record in self.decided:
            size_bytes += len(record.model_dump_json())
            if size_bytes > MAX_SENT_DECISIONS_BYTES:
                return True
        return False

    def carry(self) -> CarriedState:
        """What a run that continues this one as new needs; call it only when nothing is scheduled."""
        return carry(self)

    # What units tell (``UnitListener``).

    def may_go_on(self, unit: Unit) -> bool:
        """Whether a unit may still begin another turn or wait for somebody."""
        if self.cleanup is not None and self.cleanup.owns(unit):
            return not self.cleanup.is_timed_out
        return self.goes_on

    def is_stopped(self, unit: Unit) -> bool:
        """Whether a unit's calls are being cancelled."""
        if self.cleanup is not None and self.cleanup.owns(unit):
            return self.cleanup.is_timed_out
        return self.ending is not None

    def unit_completed(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, has its output."""
        if unit.item is not None:
            self.items.ended(unit, now)
        elif self.cleanup is None or not self.cleanup.complete(unit):
            self.settle(unit.step, now)

    def unit_failed(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, has failed for good."""
        if unit.item is not None:
            self.items.ended(unit, now)
        elif self.cleanup is not None and self.cleanup.owns(unit):
            self.cleanup.fail(unit, now)
        else:
            self._fail_step(unit, now)

    def unit_cancelled(self, unit: Unit, now: datetime) -> None:
        """A step, or an item of one, was cancelled."""
        if unit.item is not None:
            self.items.ended(unit, now)
        elif self.cleanup is not None:
            self.cleanup.complete(unit)

    def deadline_of(self, unit: Unit) -> datetime | None:
        """When what the unit is a part of must be over."""
        if self.cleanup is not None and self._owned_by_cleanup(unit):
            return self.cleanup.deadline_at
        return self.facts.deadline_at

    def closing_call(self, unit: Unit) -> ClosingCall | None:
        """The end that this step's success is, when it is the last one and nothing is left to be worked out."""
        step, plan = unit.step, self.plan
        is_last = self.main.unsettled == 1 and plan.output == output_of(step.id) and self.goes_on
        has_more = step.repeat or step.foreach or step.follows or plan.final_steps
        if not is_last or has_more or not self.news.is_quiet or len(plan.steps) > MAX_CLOSING_STEPS:
            return None
        told = {"usage": self.usage, "warnings": self.warnings, **self.admissions.counts}
        return ClosingCall(plan_hash=self.facts.plan_hash, step_ids=self.step_ids).model_copy(update=told)

    # Inside: dispatching.

    @property
    def _may_call(self) -> bool:
        return self.ending is None and not self.is_paused and not self.spending.is_held

    @property
    def _has_due_call(self) -> bool:
        if self.cleanup is not None:
            return bool(self.work.again) or self.cleanup.may_begin
        return self.has_ready or (bool(self.work.again) and self._may_call)

    def _next_action(self, now: datetime) -> Action | None:
        if self.work.again:
            unit = self.work.again.popleft()
            return self.begin(unit, now)
        cleanup = self.cleanup
        if cleanup is not None and cleanup.undo:
            cleanup.undoing = cleanup.undo.popleft()
            return self.begin(Unit(cleanup.undoing, self._added_state(cleanup.undoing)), now)
        frontier = self.main if cleanup is None else cleanup.frontier
        step = frontier.pop()
        state = self.steps[step.id]
        if state.items is not None:
            return self.items.begin_next(step, state, now)
        if not self._admit(step, now):
            return None
        if step.foreach is not None:
            return self.items.open(step, state, now)
        return self.begin(Unit(step, state), now)

    def begin(self, unit: Unit, now: datetime) -> Action | None:
        """Make a unit's next call, unless the budget is spent; None when it needs none."""
        if self.cleanup is None and unit.step.type in ("agent", "workflow") and self.spending.keeps_from(unit, now):
            self.end_when_idle()
            return None
        action = self.work.begin(unit, now)
        self.end_when_idle()
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
            self.end_when_idle()
            return False
        self.admissions.count([decision.is_taken for decision in admission.handoffs])
        if admission.refused_by is None:
            return True
        state.n += 1
        state.run_id = self.facts.run_id
        state.status = StepStatus.SKIPPED
        state.completed_at = now
        state.note = admission.reason
        self.admissions.must_join = True
        self.decided.append(self.admissions.skipped_record(step, admission, now))
        self.settle(step, now)
        return False

    def frontier_of(self, step: PlanStep) -> Frontier:
        """The graph that a step belongs to."""
        if self.cleanup is not None and self._owned_by_cleanup(Unit(step, self.steps[step.id])):
            return self.cleanup.frontier
        return self.main

    # Inside: how steps end, and the run with them.

    def settle(self, step: PlanStep, now: datetime, *, has_failed: bool = False) -> None:
        """A step is over; what waited for it alone may begin."""
        state = self.steps[step.id]
        if (frontier := self.frontier_of(step)) is not self.main:
            frontier.settle(step.id)
            return
        if step.follows and not has_failed and state.status is not StepStatus.SKIPPED and self.goes_on:
            self.follow(step, state, now)
        following = self.following.next_after(step.id)
        if following is not None and self.goes_on:
            self.add_step(following)
        self.main.settle(step.id)
        if self.main.unsettled == 0 and self.goes_on and not has_failed:
            self.ending = Ending(ExecutionStatus.COMPLETED)

    @property
    def goes_on(self) -> bool:
        """Whether no end is in sight."""
        return self.ending is None and self.failing is None

    def follow(self, step: PlanStep, state: StepState, now: datetime) -> None:
        """Add the steps that the handoffs from a step lead to."""
        try:
            begun, told = self.following.decide(step, state, now)
        except TooLargeToDecideError as error:
            self.warn("handoff_undecided", f"The handoffs from step {step.id} were not followed: {error}", step)
            return
        self.admissions.count([event.type == "handoff.taken" for event in told])
        self.news.events += told
        for following in begun:
            self.add_step(following)

    def add_step(self, step: PlanStep) -> None:
        """A handoff adds a step, which depends on none."""
        self._added_state(step)
        self.main.add(step)

    def _fail_step(self, unit: Unit, now: datetime) -> None:
        step, state = unit.step, unit.state
        error = state.error
        if error is not None and self.goes_on and step.on_error == "ask":
            state.status = StepStatus.WAITING
            said = error.message.rstrip(". ")
            question = f"Step {step.name} has failed: {said}. Retry it, skip it with an output, or fail?"
            failed = self.decided.pop()
            address = f"{step.id}.{state.n}"
            gate_id = address if self.gates.find(address) is None else f"{address}:ask"
            self.gates.open_ask(gate_id, unit, question, failed, now)
            self.work.waiting.append(failed.model_copy(update={"status": StepStatus.WAITING, "completed_at": None}))
            return
        if error is not None and self.ending is None and step.on_error == "continue":
            state.is_continued = True
            self.admissions.must_join = True
            self.warn("step_failed", f"Step {step.id} failed, and the execution went on: {error.message}", step)
        self.give_up(unit, now)

    def give_up(self, unit: Unit, now: datetime) -> None:
        """A step has failed, and nothing takes its place."""
        step, state = unit.step, unit.state
        self.settle(step, now, has_failed=not state.is_continued)
        if state.error is None or not self.goes_on or state.is_continued:
            return
        ending = Ending(
            ExecutionStatus.FAILED,
            ErrorPayload(
                code=state.error.code,
                message=f"Step {step.id} failed: {state.error.message}",
                details=state.error.details,
            ),
        )
        self.end_failed(ending, now)

    def end_failed(self, ending: Ending, now: datetime) -> None:
        """The execution fails, at once or when what runs has ended."""
        if self.plan.on_failure == "cancel":
            self.ending = ending
            return
        self.failing = ending
        self.close_waiting(now)
        self.end_when_idle()

    def end_when_idle(self) -> None:
        """With ``finish``, what ran has ended: so does the execution."""
        is_idle = not self.work.running and not self.work.again and not self.work.resumed
        if self.failing is not None and self.ending is None and is_idle:
            self.ending = self.failing

    # Inside: clean-up.

    @property
    def _needs_cleanup(self) -> bool:
        return bool(self.plan.final_steps) or bool(steps_to_undo(self))

    def _owned_by_cleanup(self, unit: Unit) -> bool:
        return self.cleanup is not None and self.cleanup.owns(unit)

    def _stop(self, now: datetime) -> None:
        """The end is decided: cancel what runs, and let nothing wait any more."""
        self._is_stopped = True
        self.work.cancelled.extend(self.work.running)
        self.close_waiting(now)

    def close_waiting(self, now: datetime) -> None:
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
            self.operators.close_failed(gate, now)
            if gate.unit is not None and gate.unit not in waiting:
                waiting.append(gate.unit)
        for unit in waiting:
            self.abandon(unit, now)
        for step_id, state in self.steps.items():
            if state.items is not None and state.is_open and not state.items.open:
                work.cancel(Unit(self.plan_steps[step_id], state), None, now)

    def abandon(self, unit: Unit, now: datetime) -> None:
        """A unit does not go on; one that was never called has not begun."""
        if unit.state.n == 0 and unit.item is None:
            unit.state.status = StepStatus.PENDING
            return
        if unit.state.status is not StepStatus.WAITING:
            unit.state.n += 1
        unit.state.run_id = self.facts.run_id
        self.work.cancel(unit, None, now)

    def open_clean_up(self, cleanup: Cleanup) -> None:
        """Enter the phase in which completed steps are undone and ``finally`` is run."""
        ending = self.ending
        self.cleanup = cleanup
        self._is_stopped = True
        self.admissions.must_join = True
        if ending is not None:
            self.values.conclude(ending.status.value, ending.error)
        if cleanup.has_more:
            self.due.append(StartTimer(CLEANUP_TIMER, cleanup.deadline_at, "time for clean-up"))

    def _take(self, action: Action | None) -> None:
        if action is not None:
            self.due.append(action)
        self.end_when_idle()

    def warn(self, code: str, message: str, step: PlanStep | None) -> None:
        """Add a warning of the run's own."""
        self.work.warn(ExecutionWarning(code=code, message=message, step_id=step and step.id))
