"""The interpreter's decisions, as a pure reducer: events in, actions out.

Nothing here waits, reads a clock or calls anything; the workflow hands in Temporal's time with every event.
So the rules of dependencies, fallbacks, failures and cancellation are tested without a server, and a replay can
only repeat them. One event costs O(out-degree of its step), not O(steps).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.domain.admissions import Admissions, TooLargeToDecideError
from engine.domain.call_records import CallFailure, CallRecords, RunFacts
from engine.domain.execution import (
    Cancellation,
    ErrorPayload,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    Usage,
    Value,
)
from engine.domain.expressions import (
    MISSING,
    Missing,
    MissingPathError,
    Path,
    Template,
    compile_template,
    json_size,
    render_path,
)
from engine.domain.ids import call_address
from engine.domain.json import JsonObject, JsonValue
from engine.domain.messages import (
    MAX_DECLARED_BYTES,
    MAX_SENT_DECISIONS_BYTES,
    AgentCallInput,
    CallInput,
    CarriedState,
    ClosingCall,
    RecallInput,
    RetryDelays,
    SettledStep,
    StepOutcome,
)
from engine.domain.operands import Unavailable, call_input, call_input_with_context, locate_operands, missing_path
from engine.domain.plan import output_of
from engine.domain.plan_values import PlanValues, StepState, condition_paths
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["CallFailure", "Ending", "ExecutionProgress", "InvokeAgent", "RunFacts"]

MAX_PENDING_CALLS: Final = 500
MAX_WINDOW_BYTES: Final = 2 * 1024 * 1024
MAX_RESUMES: Final = 3
MAX_CLOSING_STEPS: Final = 100
"""A longer list of steps would cost more in history than a ``finalize`` does in time."""
_CODES: Final = {"input": ErrorCode.INVALID_INPUT, "store": ErrorCode.DATABASE_ERROR}
_UNMEASURED_CALLS: Final = MAX_WINDOW_BYTES // (256 * 1024) - 1


@dataclass(frozen=True, slots=True)
class InvokeAgent:
    """Schedule an agent's activity."""

    address: str
    activity_id: str
    summary: str
    step: PlanStep
    maximum_attempts: int
    call: AgentCallInput


@dataclass(frozen=True, slots=True)
class Ending:
    """How the execution ends; decided once."""

    status: ExecutionStatus
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None


class ExecutionProgress:
    """One execution's state, changed by events, asked for actions.

    Args:
        plan: what to run.
        execution_input: of the execution.
        facts: of this run.
        carried: what the run before left, when this one continues it.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        execution_input: Value,
        facts: RunFacts,
        carried: CarriedState | None = None,
    ) -> None:
        self.plan = plan
        self.facts = facts
        self.steps: dict[str, StepState] = {step.id: StepState() for step in plan.steps}
        self.ending: Ending | None = None
        self.recorded_output: Value | None = None
        """The execution's output, when the last call recorded the end."""
        self.usage = Usage()
        self.warnings: list[ExecutionWarning] = list(plan.warnings)
        self.decided: list[StepRecord] = []
        self.values = PlanValues(plan, execution_input, facts.execution_id, facts.started_at, self.steps)
        self._plan_steps = {step.id: step for step in plan.steps}
        self._order = {step.id: index for index, step in enumerate(plan.steps)}
        self._dependants: dict[str, list[str]] = {step.id: [] for step in plan.steps}
        self._recalls = plan.recalls
        self._failing: Ending | None = None
        """A step has failed, and what runs may end before the execution does."""
        self._admissions = Admissions(self.facts, self.steps, self.values)
        self._records = CallRecords(self.facts, plan)
        self._templates: dict[str, tuple[Template, Template | None]] = {}
        self._ready: list[int] = []
        self._running: dict[str, str] = {}
        self._unsettled = len(plan.steps)
        self._settled_order: list[str] = []
        for step in plan.steps:
            self.steps[step.id].waiting_for = len(step.depends_on)
            for dependency in step.depends_on:
                self._dependants[dependency].append(step.id)
            if not step.depends_on:
                heapq.heappush(self._ready, self._order[step.id])
        if carried is not None:
            self._restore(carried)

    # What the workflow asks.

    @property
    def running(self) -> int:
        """How many calls are scheduled."""
        return len(self._running)

    @property
    def has_ready(self) -> bool:
        """Whether a step could be dispatched now."""
        return bool(self._ready) and self.ending is None and self._failing is None

    @property
    def is_over(self) -> bool:
        """Whether nothing is scheduled and nothing will be."""
        return not self._running and (self.ending is not None or self._unsettled == 0)

    def next_actions(self, now: datetime) -> list[InvokeAgent]:
        """Dispatch ready steps in definition order, within the window of pending calls and bytes."""
        actions: list[InvokeAgent] = []
        window_bytes = 0
        while self.has_ready:
            if len(self._running) >= MAX_PENDING_CALLS or window_bytes > MAX_WINDOW_BYTES:
                break
            step = self.plan.steps[heapq.heappop(self._ready)]
            if not self._admit(step, now):
                continue
            action = self._invoke(step, now)
            if action is not None:
                actions.append(action)
                if len(actions) > _UNMEASURED_CALLS:
                    window_bytes += json_size(action.call.input.inline, limit=MAX_WINDOW_BYTES)
        return actions

    # What happens.

    def apply_outcome(self, address: str, outcome: StepOutcome, sent: AgentCallInput) -> None:
        """An agent's call has succeeded."""
        step_id = self._running.pop(address)
        state = self.steps[step_id]
        state.attempts += outcome.attempts
        state.completed_at = outcome.completed_at
        state.started_at = state.started_at or outcome.started_at
        state.output = outcome.output
        state.handed = outcome.handed
        state.status = StepStatus.COMPLETED
        self.usage += outcome.usage
        self.warnings.extend(outcome.warnings)
        if not outcome.decided_recorded:
            self.decided = [*sent.decided, *self.decided]
        if outcome.unrecorded:
            self.decided.append(self._records.of_outcome(step_id, state, outcome))
        was_open = self.ending is None
        self._settle(step_id)
        if was_open and self.ending is not None and self.ending.status is ExecutionStatus.COMPLETED:
            self.recorded_output = outcome.output if outcome.closed else None
        self._end_when_idle()

    def apply_failure(
        self, address: str, failure: CallFailure, sent: AgentCallInput, now: datetime
    ) -> InvokeAgent | None:
        """An agent's call has failed for good; return the call that takes its place, if one does."""
        step_id = self._running.pop(address)
        state = self.steps[step_id]
        step = self._plan_steps[step_id]
        self.decided = [*sent.decided, *self.decided]
        if failure.kind == "cancelled" or self.ending is not None:
            self._close_call(step_id, StepStatus.CANCELLED, failure, now, "step.cancelled")
            return None
        if failure.kind == "lost" and state.resumes < MAX_RESUMES and not step.at_most_once:
            state.resumes += 1
            return self._schedule(step, state, sent.model_copy(update={"resumed": True, "decided": []}), 1)
        state.attempts += failure.attempts
        self.usage += failure.usage
        falls_back = not step.fallback_on or failure.reason in step.fallback_on
        if falls_back and failure.kind not in ("input", "store") and state.choice + 1 < len(step.agents):
            self._close_call(step_id, StepStatus.FAILED, failure, now, "step.fell_back")
            state.choice += 1
            return self._invoke(step, now)
        self._close_call(step_id, StepStatus.FAILED, failure, now, "step.failed")
        self._fail(step, state)
        self._end_when_idle()
        return None

    def cancel(self, cancel: Cancellation) -> None:
        """Stop dispatching: the execution ends as cancelled unless its end was decided before."""
        if self.ending is None:
            self.ending = self._failing or Ending(ExecutionStatus.CANCELLED, cancel=cancel)

    def time_out(self) -> None:
        """The deadline has passed."""
        if self.ending is None:
            at = self.facts.deadline_at
            self.ending = self._failing or Ending(
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
        decided, self.decided = self.decided, []
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

    def take_some_decided(self) -> list[StepRecord]:
        """Hand over the oldest of them, as many as one payload has room for, but one at least."""
        count = 0
        size_bytes = 0
        for record in self.decided:
            size_bytes += len(record.model_dump_json().encode())
            if count and size_bytes > MAX_SENT_DECISIONS_BYTES:
                break
            count += 1
        taken, self.decided = self.decided[:count], self.decided[count:]
        return taken

    def carry(self) -> CarriedState:
        """What a run that continues this one as new needs; call it only when nothing is scheduled."""
        pending = [step for step in self.plan.steps if self.steps[step.id].status is StepStatus.PENDING]
        needed = self.values.still_read(pending)
        decisive = _decisive_paths(pending)
        settled: list[SettledStep] = []
        room_bytes = _CARRIED_TOTAL_BYTES
        for step_id in self._settled_order:
            limit_bytes = min(_CARRIED_INLINE_BYTES, room_bytes)
            step = self._carry_step(step_id, limit_bytes, keep=step_id in needed)
            if step.output is not None:
                room_bytes -= _carried_size(step.output, limit_bytes)
            if step.in_record and step_id in decisive:
                step, used_bytes = self._with_known(step, decisive[step_id], room_bytes)
                room_bytes -= used_bytes
            settled.append(step)
        return CarriedState(
            started_at=self.facts.started_at,
            settled=settled,
            decided=self.take_decided(),
            usage=self.usage,
            warnings=self.warnings[len(self.plan.warnings) :],
        )

    # Inside.

    def _invoke(self, step: PlanStep, now: datetime) -> InvokeAgent | None:
        state = self.steps[step.id]
        state.n += 1
        state.run_id = self.facts.run_id
        state.resumes = 0
        state.agent_id = step.agents[state.choice]
        state.status = StepStatus.RUNNING
        state.started_at = state.started_at or now
        address = call_address(step.id, None, state.n)
        input_template, output_template = self._templates_of(step)
        mapping: JsonObject = step.input_mapping
        handed = self._admissions.inputs(step)
        try:
            if handed:
                mapping = {**handed, **mapping}
                input_template = compile_template(mapping)
            resolved = call_input_with_context(input_template, mapping, self.values)
            recall = self._recall(step)
            foreign = () if output_template is None else output_template.paths
            operands = locate_operands(tuple(path for path in foreign if path.root != "output"), self.values)
        except MissingPathError as error:
            self._running[address] = step.id
            self._fail_input(address, step, error, now)
            return None
        call = AgentCallInput(
            execution_id=self.facts.execution_id,
            definition_id=self.plan.definition_id,
            version=self.plan.version,
            step_id=step.id,
            step_name=step.name,
            n=state.n,
            agent=self.plan.agents[state.agent_id],
            input=resolved,
            output_mapping=step.output_mapping,
            output_operands=operands,
            declared=step.declared,
            maximum_attempts=step.retry.maximum_attempts,
            non_retryable=step.retry.non_retryable,
            run_started_at=self.facts.owned_since(now),
            execution_started_at=self.facts.started_at,
            deadline_at=self.facts.deadline_at,
            prior_attempts=state.attempts,
            fallback_from=step.agents[state.choice - 1] if state.choice else None,
            trace=self.facts.trace,
            tags=self.facts.tags,
        )
        thinking = {
            "events": self._admissions.events(step, now) if state.n == 1 else [],
            "handed": step.handed,
            "delays": _delays(step) if step.retry.jitter else None,
            "output_schema": step.output_schema,
            "reply_keys": step.reply_keys,
            "recall": recall,
            "remember_now": self._recalls,
        }
        call = call.model_copy(update={name: value for name, value in thinking.items() if value})
        return self._schedule(step, state, call, step.retry.maximum_attempts)

    def _schedule(self, step: PlanStep, state: StepState, call: AgentCallInput, maximum_attempts: int) -> InvokeAgent:
        address = call_address(step.id, call.item, call.n)
        self._running[address] = step.id
        summary = step.name
        if state.choice:
            summary += f" (fallback {state.choice} of {len(step.agents) - 1})"
        if call.resumed:
            summary += " (again after a lost worker)"
        call = call.model_copy(update={"decided": self.take_some_decided(), "closing": self._closing(step)})
        return InvokeAgent(
            address=address,
            activity_id=f"{address}.{state.resumes}" if state.resumes else address,
            summary=summary,
            step=step,
            maximum_attempts=maximum_attempts,
            call=call,
        )

    def _closing(self, step: PlanStep) -> ClosingCall | None:
        """The end that this step's success is, when it is the last one and nothing is left to be worked out."""
        is_last = self._unsettled == 1 and not self.decided and self.plan.output == output_of(step.id)
        if not is_last or len(self.plan.steps) > MAX_CLOSING_STEPS:
            return None
        return ClosingCall(
            plan_hash=self.facts.plan_hash,
            step_ids=[step.id for step in self.plan.steps],
            usage=self.usage,
            warnings=self.warnings,
        )

    def _recall(self, step: PlanStep) -> RecallInput | None:
        if step.recall is None:
            return None
        query = step.recall.recall
        return RecallInput(
            query=call_input(compile_template(query), query, self.values),
            top_k=step.recall.top_k,
            scope=step.recall.scope,
        )

    def _templates_of(self, step: PlanStep) -> tuple[Template, Template | None]:
        templates = self._templates.get(step.id)
        if templates is None:
            output = None if step.output_mapping is None else compile_template(step.output_mapping)
            templates = self._templates[step.id] = (compile_template(step.input_mapping), output)
        return templates

    def _fail_input(self, address: str, step: PlanStep, error: MissingPathError, now: datetime) -> None:
        message = missing_path(f"The mapping of step {step.id}", error)
        failure = CallFailure("input", ErrorCode.INVALID_INPUT, message, 0, details={"path": error.path.text})
        step_id = self._running.pop(address)
        self._close_call(step_id, StepStatus.FAILED, failure, now, "step.failed")
        self._fail(step, self.steps[step_id])
        self._end_when_idle()

    def _admit(self, step: PlanStep, now: datetime) -> bool:
        """Whether a step whose dependencies have settled is run; one that is not is skipped or fails here."""
        state = self.steps[step.id]
        try:
            admission = self._admissions.decide(step)
        except TooLargeToDecideError as error:
            state.n += 1
            state.agent_id = step.agents[0]
            failure = CallFailure("input", ErrorCode.INVALID_INPUT, str(error), 0, details={"path": error.path.text})
            self._close_call(step.id, StepStatus.FAILED, failure, now, "step.failed")
            self._fail(step, state)
            self._end_when_idle()
            return False
        if admission.refused_by is None:
            return True
        state.n += 1
        state.run_id = self.facts.run_id
        state.status = StepStatus.SKIPPED
        state.completed_at = now
        state.note = admission.reason
        self._admissions.must_join = True
        self.decided.append(self._admissions.skipped_record(step, admission, now))
        self._settle(step.id)
        return False

    def _end_when_idle(self) -> None:
        if self._failing is not None and self.ending is None and not self._running:
            self.ending = self._failing

    def _fail(self, step: PlanStep, state: StepState) -> None:
        if step.on_error == "continue" and state.error is not None and self.ending is None:
            state.is_continued = True
            self._admissions.must_join = True
            self.warnings.append(
                ExecutionWarning(
                    code="step_failed",
                    message=f"Step {step.id} failed, and the execution went on: {state.error.message}",
                    step_id=step.id,
                )
            )
        self._settle(step.id, has_failed=not state.is_continued)
        if state.error is not None and self.ending is None and not state.is_continued and self._failing is None:
            ending = Ending(
                ExecutionStatus.FAILED,
                ErrorPayload(
                    code=state.error.code,
                    message=f"Step {step.id} failed: {state.error.message}",
                    details=state.error.details,
                ),
            )
            if self.plan.on_failure == "finish":
                self._failing = ending
            else:
                self.ending = ending

    def _close_call(
        self, step_id: str, status: StepStatus, failure: CallFailure, now: datetime, event_type: str
    ) -> None:
        state = self.steps[step_id]
        state.status = status
        state.completed_at = now
        if status is StepStatus.FAILED:
            code = _CODES.get(failure.kind, ErrorCode.AGENT_ERROR)
            state.error = ErrorPayload(
                code=code,
                message=failure.message,
                details={
                    **failure.details,
                    "step_id": step_id,
                    "agent_id": state.agent_id,
                    "reason": failure.reason,
                },
            )
        before = self._admissions.events(self._plan_steps[step_id], now) if state.n == 1 else []
        self.decided.append(self._records.of_failure(step_id, state, failure, now, event_type, before))

    def _settle(self, step_id: str, *, has_failed: bool = False) -> None:
        self._unsettled -= 1
        if self._unsettled == 0 and self.ending is None and self._failing is None and not has_failed:
            self.ending = Ending(ExecutionStatus.COMPLETED)
        self._settled_order.append(step_id)
        for dependant in self._dependants[step_id]:
            waiting = self.steps[dependant]
            waiting.waiting_for -= 1
            if waiting.waiting_for == 0 and waiting.status is StepStatus.PENDING:
                heapq.heappush(self._ready, self._order[dependant])

    def _carry_step(self, step_id: str, limit_bytes: int, *, keep: bool) -> SettledStep:
        state = self.steps[step_id]
        small = state.output is not None and _carried_size(state.output, limit_bytes) <= limit_bytes
        return SettledStep(
            step_id=step_id,
            run_id=state.run_id,
            n=state.n,
            output=state.output if keep and small else None,
            in_record=keep and not small,
            status=state.status,
            error=state.error if state.is_continued else None,
            handed=None,
        )

    def _with_known(self, step: SettledStep, paths: list[Path], room_bytes: int) -> tuple[SettledStep, int]:
        """Add what conditions will read of an output that is not carried over itself."""
        declared: dict[str, JsonValue] = {}
        absent: list[str] = []
        used_bytes = 0
        for path in paths:
            located = self.values.locate(path)
            try:
                value = MISSING if isinstance(located, Missing) else located.read()
            except Unavailable:
                continue
            key = render_path("output", path.segments[2:])
            if isinstance(value, Missing):
                absent.append(key)
                continue
            size_bytes = json_size(value, limit=MAX_DECLARED_BYTES)
            if size_bytes <= min(MAX_DECLARED_BYTES, room_bytes - used_bytes):
                declared[key] = value
                used_bytes += size_bytes
        return step.model_copy(update={"declared": declared, "absent": absent}), used_bytes

    def _hands_on(self, step_id: str) -> bool:
        """Whether a handoff from a step is still to be decided."""
        return any(self.steps[name].status is StepStatus.PENDING for name in self._dependants[step_id])

    def _restore(self, carried: CarriedState) -> None:
        self.usage = carried.usage
        self.decided = list(carried.decided)
        self.warnings.extend(carried.warnings)
        for settled in carried.settled:
            state = self.steps[settled.step_id]
            state.status = settled.status
            state.is_continued = settled.status is StepStatus.FAILED
            state.error = settled.error
            state.handed = settled.handed
            if settled.status is not StepStatus.COMPLETED:
                self._admissions.must_join = True
            state.n = settled.n
            state.run_id = settled.run_id
            state.output = settled.output
            state.in_record = settled.in_record
            state.known = {**settled.declared, **dict.fromkeys(settled.absent, MISSING)}
            self._settle(settled.step_id)
        self._ready = [
            index
            for index, step in enumerate(self.plan.steps)
            if self.steps[step.id].status is StepStatus.PENDING and not self.steps[step.id].waiting_for
        ]


def _decisive_paths(steps: list[PlanStep]) -> dict[str, list[Path]]:
    """Step to the paths below its output that decide whether one of ``steps`` runs."""
    decisive: dict[str, list[Path]] = {}
    for step in steps:
        for path in condition_paths(step):
            if path.root == "steps" and path.segments[1:2] == ("output",):
                decisive.setdefault(str(path.segments[0]), []).append(path)
    return decisive


def _delays(step: PlanStep) -> RetryDelays:
    return RetryDelays(
        initial_interval=step.retry.initial_interval,
        backoff_coefficient=step.retry.backoff_coefficient,
        maximum_interval=step.retry.maximum_interval,
    )


def _carried_size(value: Value, limit_bytes: int) -> int:
    return json_size(value.inline if value.ref is None else value.ref.declared, limit=limit_bytes)


_CARRIED_INLINE_BYTES: Final = 2 * 1024
_CARRIED_TOTAL_BYTES: Final = 96 * 1024
