"""Runs the reducer without Temporal, on a clock of its own, and writes down everything that happens.

It plays the parts of the workflow (asks for actions, hands events in), of the activities (outputs, what handoffs
read, large values) and of people (answers, pauses, cancellations), as a case says.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.domain.actions import Action, CallFailure, ComputeValue, InvokeAgent, StartChild, StartTimer
from engine.domain.call_records import RunFacts
from engine.domain.carried import CarriedState
from engine.domain.cleanup import CLEANUP_TIMER
from engine.domain.execution import Cancellation, Event, StepRecord, Usage, Value
from engine.domain.expressions import RootsScope, compile_template, parse_path, walk
from engine.domain.gate import GateRecord
from engine.domain.messages import CallInput, ChildResult, ComputeInput, OperandRef, StepOutcome
from engine.domain.plan import ExecutionPlan
from engine.domain.plan_compiler import compile_plan
from engine.domain.progress import ExecutionProgress
from tests.model.model_definitions import (
    CHILD,
    INPUT,
    CallEnd,
    Case,
    GateEnd,
    call_end,
    cancelled_after,
    gate_end,
    stored_agents,
    stored_definition,
    stored_handoffs,
)
from tests.model.model_wants import DisagreementError

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
MAX_EVENTS = 5000


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    what: str
    at: datetime
    address: str = ""
    kind: str = ""
    agent: str | None = None
    input: Any = None
    end: CallEnd | None = None
    """Of a call that ended; None: it was cancelled, or is no call."""
    message: str = ""
    answer: str | None = None
    data: Any = None
    by: str | None = None
    due_at: datetime | None = None
    allowed: tuple[str, ...] = ()
    step: str = ""
    """Of a gate."""


@dataclass
class Run:
    """What a run of the reducer came to."""

    entries: list[Entry] = field(default_factory=list[Entry])
    events: list[Event] = field(default_factory=list[Event])
    records: list[StepRecord] = field(default_factory=list[StepRecord])
    """What the run wrote down itself."""
    called: set[str] = field(default_factory=set[str])
    """Addresses of calls that an activity recorded."""
    progress: ExecutionProgress | None = None
    output: Any = None
    stuck: str = ""


def plan_of(case: Case) -> ExecutionPlan:
    """Compile a case's plan."""
    return compile_plan(
        stored_definition(case, START), stored_agents(START), stored_handoffs(case, START), 3, {CHILD: 1}
    )


class Driver:
    """Drives one case to its end."""

    def __init__(self, case: Case, plan: ExecutionPlan | None = None) -> None:
        self.case = case
        self.plan = plan or plan_of(case)
        self.now = START
        deadline = case.noise.deadline
        self.facts = RunFacts(
            "flow-1",
            "run-1",
            START,
            START,
            deadline_at=None if deadline is None else START + timedelta(seconds=deadline),
        )
        self.progress = ExecutionProgress(self.plan, Value.of(INPUT), self.facts)
        self.run = Run()
        self.active: dict[str, Action] = {}
        self.losses: dict[str, int] = {}
        self.stored: dict[tuple[str, int | None, int], Any] = {}
        self.stored_handed: dict[tuple[str, int], Any] = {}
        self.events: list[tuple[datetime, int, Callable[[], None]]] = []
        self.sent: dict[str, list[StepRecord]] = {}
        """Records that travel with calls."""
        self.timers: set[str] = set()
        self.gate_kinds: dict[str, str] = {}
        self.retries = 0
        self.runs = 1
        self.is_draining = False

    def later(self, at: datetime, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (at, len(self.events) + len(self.run.entries) * 1000, event))

    def note(self, what: str, address: str = "", **more: Any) -> None:
        self.run.entries.append(Entry(what, self.now, address, **more))

    def drive(self) -> Run:
        """Run the case."""
        noise = self.case.noise
        for pause, resume in noise.pauses:
            self.later(START + timedelta(seconds=pause), self.pause)
            self.later(START + timedelta(seconds=resume), self.resume)
        for carry in noise.carries:
            self.later(START + timedelta(seconds=carry), self.drain)
        if noise.cancel_at is not None:
            self.later(START + timedelta(seconds=noise.cancel_at), self.cancel)
        if self.facts.deadline_at is not None:
            self.later(self.facts.deadline_at, self.time_out)
        for _ in range(MAX_EVENTS):
            self.act()
            if self.progress.is_over:
                return self.finish()
            if not self.events:
                self.run.stuck = "nothing is scheduled, and it is not over"
                return self.finish()
            at, _, event = heapq.heappop(self.events)
            self.now = max(self.now, at)
            event()
        self.run.stuck = "it does not come to an end"
        return self.finish()

    def act(self) -> None:
        """Do what the workflow does after every event: ask once, start, cancel, tell; continue as new when it can."""
        progress = self.progress
        for action in progress.next_actions(self.now, draining=self.is_draining):
            self.start(action)
        for address in progress.take_cancelled():
            self.stop(address)
        while progress.news.has_transition:
            self.transition()
        is_carried = self.is_draining and not progress.is_over and not progress.running and progress.may_carry
        if not is_carried and not any(isinstance(action, ComputeValue) for action in self.active.values()):
            self.note("quiet")
        if is_carried:
            self.carry()
            self.act()

    def transition(self) -> None:
        taken = self.progress.news.take_transition(self.now)
        self.run.events += taken.events
        self.keep(taken.steps)
        for gate in taken.gates:
            if gate.status == "open":
                self.see_gate(gate)

    def keep(self, records: list[StepRecord]) -> None:
        """Take what the run has decided, as a store would."""
        self.run.records += records
        self.run.events += [event for record in records for event in record.events]

    def finish(self) -> Run:
        self.run.progress = self.progress
        self.keep(self.progress.take_decided())
        self.run.events += self.progress.news.take_events()
        ending = self.progress.ending
        if ending is not None and ending.status.value == "completed":
            self.run.output = self.output()
        return self.run

    def output(self) -> Any:
        try:
            return self.resolved(self.progress.output_input())
        except LookupError:
            return "missing"

    # The workflow's part.

    def start(self, action: Action) -> None:
        if action.address in self.active:
            raise DisagreementError(f"{action.address} is scheduled twice")
        self.active[action.address] = action
        if isinstance(action, InvokeAgent):
            self.sent[action.address] = action.call.decided
            if action.call.resumed:
                self.schedule_call(action)
                return
            self.run.events += action.call.events
            self.note(
                "started",
                action.address,
                kind="agent",
                agent=action.call.agent.agent_id,
                input=self.resolved(action.call.input),
            )
            self.schedule_call(action)
        elif isinstance(action, StartChild):
            self.note("started", action.address, kind="child", input=action.input.inline)
            end = call_end(self.case, action.address)
            self.later(self.now + timedelta(seconds=end.after), lambda: self.end_child(action, end))
        elif isinstance(action, StartTimer):
            is_known = action.address in self.timers or ":" in action.address
            if not is_known:
                self.timers.add(action.address)
                self.note("started", action.address, kind="timer", due_at=action.due_at)
            self.later(max(action.due_at, self.now), lambda: self.end_timer(action))
        else:
            self.later(self.now, lambda: self.end_compute(action))

    def schedule_call(self, action: InvokeAgent) -> None:
        end = call_end(self.case, action.address)
        losses = self.losses.get(action.address, 0)
        if losses < end.losses:
            self.later(self.now + timedelta(seconds=7), lambda: self.lose(action))
        else:
            self.later(self.now + timedelta(seconds=end.after), lambda: self.end_call(action, end))

    def is_active(self, action: Action) -> bool:
        return self.active.get(action.address) is action

    def stop(self, address: str) -> None:
        """Cancel a call or a timer; a call may take its time, or end in its own way."""
        action = self.active.get(address)
        if isinstance(action, StartTimer):
            del self.active[address]
            return
        after = cancelled_after(self.case, address)
        if action is not None and after is not None:
            self.later(self.now + timedelta(seconds=after), lambda: self.end_cancelled(action))

    def end_cancelled(self, action: Action) -> None:
        if not self.is_active(action):
            return
        del self.active[action.address]
        self.note("ended", action.address)
        failure = CallFailure("cancelled", "cancelled", "it was cancelled", 1)
        if isinstance(action, InvokeAgent):
            self.sent.pop(action.address)
            self.progress.apply_failure(action.address, failure, action.call, self.now)
        elif isinstance(action, StartChild):
            self.progress.apply_child(action.address, failure, self.now)
        elif isinstance(action, ComputeValue):
            self.progress.apply_computed(action.address, failure, action.request, self.now)

    def lose(self, action: InvokeAgent) -> None:
        if not self.is_active(action):
            return
        del self.active[action.address]
        self.losses[action.address] = self.losses.get(action.address, 0) + 1
        self.sent.pop(action.address)
        failure = CallFailure("lost", "timeout", "its worker was lost", 1)
        is_over = self.progress.ending is not None and not self.in_clean_up(action.step.id)
        self.progress.apply_failure(action.address, failure, action.call, self.now)
        if not any(again.address == action.address for again in self.progress.work.resumed):
            end = None if is_over else CallEnd(0, None, "lost", "timeout")
            self.note("ended", action.address, end=end, message="its worker was lost")

    def in_clean_up(self, step_id: str) -> bool:
        is_final = step_id.endswith(":compensate") or step_id in {step.id for step in self.plan.final_steps}
        return is_final and self.progress.cleanup is not None and not self.progress.cleanup.is_timed_out

    def end_call(self, action: InvokeAgent, end: CallEnd) -> None:
        if not self.is_active(action):
            return
        del self.active[action.address]
        call = action.call
        usage = Usage(requests=1, input_tokens=end.tokens)
        message = f"{action.address} was {end.reason}"
        self.note("ended", action.address, end=end, message=message)
        if end.reply is None:
            failure = CallFailure(end.kind, end.reason, message, end.attempts, usage)  # pyright: ignore[reportArgumentType] # one of the kinds
            self.sent.pop(action.address)
            self.progress.apply_failure(action.address, failure, call, self.now)
            return
        self.keep(self.sent.pop(action.address))
        output: Any = end.reply
        if call.output_mapping is not None:
            found = {"output": end.reply} | self.operands(call.output_operands)
            output = compile_template(call.output_mapping).resolve(_TextScope(found))
        overlaid = {**end.reply, **(output if isinstance(output, dict) else {})}
        keys = {parse_path(text).segments[:1] for text in call.handed}
        handed = {key: value for key, value in overlaid.items() if () in keys or (key,) in keys}
        self.stored[call.step_id, call.item, call.n] = output
        self.stored_handed[call.step_id, call.n] = handed
        self.run.called.add(action.address)
        outcome = StepOutcome(
            output=Value.of(output),
            usage=usage,
            attempts=end.attempts,
            started_at=self.now,
            completed_at=self.now,
            token=1,
            handed=Value.of(handed) if call.handed else None,
        )
        self.progress.apply_outcome(action.address, outcome, call)

    def end_child(self, action: StartChild, end: CallEnd) -> None:
        if not self.is_active(action):
            return
        del self.active[action.address]
        message = f"{action.address} was {end.reason}"
        self.note("ended", action.address, end=replace(end, kind="child", reason="error"), message=message)
        if end.reply is None:
            result: Any = CallFailure("child", "agent_error", message, 0)
        else:
            result = ChildResult(output=Value.of(end.reply))
        self.progress.apply_child(action.address, result, self.now)

    def end_timer(self, action: StartTimer) -> None:
        if not self.is_active(action):
            return
        del self.active[action.address]
        if action.address == CLEANUP_TIMER:
            self.note("clean-up timed out")
        elif action.address.endswith(":expires"):
            self.note("expired", action.address.removesuffix(":expires"))
        else:
            self.note("fired", action.address)
        self.progress.apply_timer(action.address, self.now)

    def end_compute(self, action: ComputeValue) -> None:
        if self.is_active(action):
            del self.active[action.address]
            self.keep(action.request.decided)
            self.progress.apply_computed(action.address, self.computed(action.request), action.request, self.now)

    def computed(self, request: ComputeInput) -> StepOutcome:
        record = request.record
        if request.collect is not None:
            inside = {n for first, last in request.collect.completed for n in range(first, last + 1)}
            output: Any = [
                self.item_output(record.step_id, n) if n in inside else None for n in range(request.collect.count)
            ]
        else:
            assert request.input is not None
            output = self.resolved(request.input)
        self.run.events += record.events
        self.stored[record.step_id, record.item, record.n] = output
        return StepOutcome(output=Value.of(output), started_at=self.now, completed_at=self.now, token=1)

    def item_output(self, step_id: str, item: int) -> Any:
        latest = max((n for name, index, n in self.stored if (name, index) == (step_id, item)), default=0)
        if latest:
            return self.stored[step_id, item, latest]
        made = [one.output for one in self.run.records if (one.step_id, one.item) == (step_id, item)]
        return next(output.inline for output in reversed(made) if output is not None)

    def resolved(self, value: CallInput) -> Any:
        if value.operands is None:
            return value.inline
        return compile_template(value.mapping).resolve(_TextScope(self.operands(value.operands)))

    def operands(self, references: dict[str, OperandRef]) -> dict[str, Any]:
        return {text: self.operand(reference) for text, reference in references.items()}

    def operand(self, ref: OperandRef) -> Any:
        if ref.execution_input:
            return walk(INPUT, ref.segments)
        if ref.step_id is None:
            return ref.inline
        if ref.handed:
            return walk(self.stored_handed[ref.step_id, ref.n], ref.segments)
        if (ref.step_id, ref.item, ref.n) not in self.stored:
            records = [
                record for record in self.run.records if (record.step_id, record.item) == (ref.step_id, ref.item)
            ]
            found = next(record for record in reversed(records) if record.n == ref.n and record.output is not None)
            assert found.output is not None
            return walk(found.output.inline, ref.segments)
        return walk(self.stored[ref.step_id, ref.item, ref.n], ref.segments)

    # People's part.

    def see_gate(self, record: GateRecord) -> None:
        """Let somebody answer a gate, or nobody."""
        if self.gate_kinds.setdefault(record.gate_id, record.kind) != record.kind:
            raise DisagreementError(f"two gates have the id {record.gate_id}")
        self.note(
            "opened",
            record.gate_id,
            kind=record.kind,
            allowed=tuple(record.allowed),
            due_at=record.expires_at,
            step=record.step_id or "",
        )
        expires = record.expires_at is not None
        end = gate_end(self.case, record.gate_id, record.allowed, can_wait=expires, retries=self.retries)
        if end is not None:
            self.later(self.now + timedelta(seconds=end.after), lambda: self.answer(record.gate_id, end))

    def answer(self, gate_id: str, end: GateEnd) -> None:
        gate = self.progress.gates.find(gate_id)
        if gate is None or not gate.is_open or self.progress.ending is not None:
            return
        self.retries += end.answer in ("retry", "continue")
        self.note("answered", gate_id, answer=end.answer, data=end.data, by=end.by)
        checked = self.progress.operators.check_answer(gate_id, end.answer, end.data, end.by)
        self.progress.operators.answer_gate(checked, end.answer, end.data, end.by, self.now)

    def pause(self) -> None:
        if self.progress.ending is None:
            self.note("paused")
            self.progress.operators.check_pause()
            self.progress.operators.pause("ann", None, self.now)

    def resume(self) -> None:
        if self.progress.is_paused and self.progress.ending is None:
            self.note("resumed")
            self.progress.operators.check_resume()
            self.progress.operators.resume("ann", self.now)

    def cancel(self) -> None:
        self.note("cancelled")
        self.progress.cancel(Cancellation(reason="stop", by="ann", at=self.now))

    def time_out(self) -> None:
        self.note("timed out")
        self.progress.time_out()

    # Continuing as new.

    def drain(self) -> None:
        if not self.is_draining and self.progress.ending is None:
            self.is_draining = True
            self.note("draining")

    def carry(self) -> None:
        progress = self.progress
        self.run.events += progress.news.take_events()
        self.keep(progress.take_decided())
        wire = CarriedState.model_validate_json(progress.carry().model_dump_json())
        self.runs += 1
        self.facts = replace(self.facts, run_id=f"run-{self.runs}", run_started_at=self.now)
        self.progress = ExecutionProgress(self.plan, Value.of(INPUT), self.facts, wire)
        self.active = {}
        self.is_draining = False
        self.note("carried")


class _TextScope:
    """Operands by the text of their path; everything else by its root."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._found = found
        self._roots = RootsScope(found)

    def lookup(self, path: Any) -> Any:
        return self._found[path.text] if path.text in self._found else self._roots.lookup(path)
