"""Steps that wait: for time to pass, or for people to answer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from engine.domain.actions import CallFailure, StartTimer
from engine.domain.execution import StepStatus, Value
from engine.domain.expressions import compile_template
from engine.domain.metrics import format_instant, parse_instant
from engine.domain.operands import OperandScope
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.actions import Action
    from engine.domain.gates import Gate
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.step_state import Unit
    from engine.domain.unit_work import UnitWork

__all__ = ["EXPIRES", "Waits"]

MAX_WAIT: Final = timedelta(days=366)
TOLD_WAIT: Final = timedelta(seconds=5)
"""A shorter wait is not told before it is over."""
MAX_QUESTION_BYTES: Final = 16 * 1024
EXPIRES: Final = ":expires"
"""Behind a gate's id: the address of the timer that ends it."""


class Waits:
    """Begins and ends the waits of a run's units."""

    def __init__(self, work: UnitWork) -> None:
        self._work = work

    def wait(self, unit: Unit, now: datetime) -> Action | None:
        """Begin to wait for time."""
        work = self._work
        spec = unit.step.wait
        scope = OperandScope(work.calls.values_of(unit))
        try:
            if spec is not None and spec.until is not None:
                until = parse_instant(compile_template(spec.until).resolve(scope), "wait.until")
            else:
                seconds = None if spec is None else spec.seconds
                until = now + _wait_time(compile_template(seconds).resolve(scope))
        except (InvalidInputError, ValueError) as error:
            work.fail_input(unit, f"Step {unit.step_id} can't wait so long: {error}", None, now)
            return None
        if until - now > MAX_WAIT:
            work.fail_input(
                unit, f"Step {unit.step_id} would wait until {format_instant(until)}; the most is a year", None, now
            )
            return None
        unit.state.output = Value.of({"waited_until": format_instant(until)})
        if until <= now:
            work.complete_value(unit, unit.state.output, now)
            return None
        unit.state.status = StepStatus.WAITING
        if until - now > TOLD_WAIT:
            work.waiting.append(work.records.of_waiting(unit, now, work.events_before(unit, now)))
        return self.start_timer(work.address(unit), unit, until, unit.name)

    def start_timer(self, address: str, unit: Unit, due_at: datetime, summary: str) -> StartTimer:
        """Open a timer for a unit."""
        work = self._work
        work.timers[address] = unit
        work.due_at[address] = due_at
        return StartTimer(address, due_at, summary)

    def ask(self, unit: Unit, now: datetime, *, escalated: bool = False) -> Action | None:
        """Open an approval's gate, or its second one."""
        work = self._work
        approval = unit.step.approval
        if approval is None:
            raise ValueError(f"Step {unit.step_id} is an approval and asks nothing")
        scope = OperandScope(work.calls.values_of(unit))
        question = compile_template(approval.question).resolve(scope, max_bytes=MAX_QUESTION_BYTES)
        unit.state.status = StepStatus.WAITING
        gate = work.gates.open_approval(
            work.address(unit),
            unit,
            approval,
            question if isinstance(question, str) else str(question),
            now,
            escalated=escalated,
        )
        work.waiting.append(work.records.of_waiting(unit, now, work.events_before(unit, now)))
        due_at = gate.record.expires_at
        if due_at is None:
            return None
        return self.start_timer(gate.record.gate_id + EXPIRES, unit, due_at, f"gate {gate.record.gate_id} expires")

    def timer_fired(self, address: str, now: datetime) -> Action | None:
        """A timer has come to its instant."""
        work = self._work
        unit = work.timers.pop(address, None)
        if unit is None:
            return None
        gate = work.gates.find(address.removesuffix(EXPIRES)) if address.endswith(EXPIRES) else None
        if gate is None:
            work.must_tell = True
            work.complete_value(unit, unit.state.output or Value(), now)
            return None
        return self._expire(gate, unit, now)

    def _expire(self, gate: Gate, unit: Unit, now: datetime) -> Action | None:
        work = self._work
        approval = unit.step.approval
        if approval is None or not gate.is_open:
            return None
        if approval.on_timeout == "default" and approval.default is not None:
            work.gates.expire(gate, now, approval.default)
            self._take_answer(unit, approval.default, None, None, now)
            return None
        work.gates.expire(gate, now, None)
        failure = CallFailure("timeout", "timeout", f"Nobody answered gate {gate.record.gate_id} in time", 0)
        if approval.on_timeout == "escalate" and not gate.escalated:
            unit.state.status = StepStatus.FAILED
            before = work.events_before(unit, now)
            work.decided.append(work.records.of_failure(unit, failure, now, "step.fell_back", before))
            unit.state.n += 1
            unit.state.began_at = now
            return self.ask(unit, now, escalated=True)
        work.fail(unit, failure, now)
        return None

    def answer_approval(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """An approval's gate was answered."""
        work = self._work
        unit = gate.unit
        if unit is None:
            return
        address = gate.record.gate_id + EXPIRES
        if work.timers.pop(address, None) is not None:
            work.cancelled.append(address)
        self._take_answer(unit, answer, data, by, now)

    def _take_answer(self, unit: Unit, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        work = self._work
        approval = unit.step.approval
        output: JsonObject = {"answer": answer, "data": data, "by": by, "at": format_instant(now)}
        if approval is not None and answer in approval.fail_on:
            who = by or "somebody"
            message = f"rejected by {who}" if answer == "reject" else f"{who} answered {answer}"
            failure = CallFailure("agent", "refused", message, 0, details={"answer": output})
            work.fail(unit, failure, now)
            return
        work.complete_value(unit, Value.of(output), now)


def _wait_time(seconds: JsonValue) -> timedelta:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not 0 <= seconds <= MAX_WAIT.total_seconds()
    ):
        raise ValueError(f"{str(seconds)[:80]} is no number of seconds from 0 to a year")
    return timedelta(seconds=seconds)
