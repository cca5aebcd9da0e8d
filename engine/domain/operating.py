"""What operators do to a run. Each ``check_`` raises before anything has changed, so that a refusal leaves no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.budgets import BUDGET_UNITS
from engine.domain.execution import Event, StepStatus, micros
from engine.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.gates import Gate
    from engine.domain.json import JsonValue
    from engine.domain.progress import ExecutionProgress
    from engine.domain.step_state import Unit

__all__ = ["OperatorEvents"]


class OperatorEvents:
    """Pauses a run, answers its gates, retries and skips its failed steps."""

    def __init__(self, progress: ExecutionProgress) -> None:
        self._progress = progress

    def check_pause(self) -> None:
        """Raises: ConflictError: it is paused, or over."""
        self._check_open()
        if self._progress.is_paused:
            raise ConflictError("The execution is paused already", {"status": "paused"})

    def pause(self, by: str | None, reason: str | None, now: datetime) -> None:
        """Start nothing new; what runs ends."""
        self._progress.is_paused = True
        self._progress.news.events.append(Event.at_instant("execution.paused", now, by=by, reason=reason))

    def check_resume(self) -> None:
        """Raises: ConflictError: it is not paused, or over."""
        self._check_open()
        if not self._progress.is_paused:
            raise ConflictError("The execution is not paused", {"status": self._progress.status.value})

    def resume(self, by: str | None, now: datetime) -> None:
        """Go on."""
        self._progress.is_paused = False
        self._progress.news.events.append(Event.at_instant("execution.resumed", now, by=by))

    def check_answer(self, gate_id: JsonValue, answer: JsonValue, data: JsonValue, by: JsonValue) -> Gate:
        """Return the gate that an answer is for; raises as ``Gates.check``."""
        gate = self._progress.gates.check(gate_id, answer, data, by)
        self._check_open()
        if gate.record.kind == "budget" and answer == "continue":
            _check_grant(data)
        return gate

    def answer_gate(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """Take an answer that was checked."""
        self._progress.gates.answer(gate, answer, data, by, now)
        self.close_failed(gate, now)
        match gate.record.kind:
            case "approval":
                self._progress.work.waits.answer_approval(gate, answer, data, by, now)
            case "ask":
                self._answer_ask(gate, answer, data, by, now)
            case "budget":
                self._progress.spending.answer(answer, data, by, now)
        self._progress.end_when_idle()

    def check_ask(self, step_id: JsonValue) -> Gate:
        """Return the gate of a failed step.

        Raises:
            InvalidInputError: there is no such step.
            ConflictError: it has not failed, or does not wait for an operator.
        """
        if not isinstance(step_id, str) or step_id not in self._progress.steps:
            known: list[JsonValue] = [*self._progress.steps]
            raise InvalidInputError(f"There is no step {str(step_id)[:80]}", {"path": "step_id", "known": known[:50]})
        self._check_open()
        gate = self._progress.gates.find_ask(step_id)
        if gate is None:
            status = self._progress.steps[step_id].status.value
            raise ConflictError(
                f"Step {step_id} is {status} and waits for no operator; on_error: ask makes a failed step wait",
                {"step_id": step_id, "status": status},
            )
        return gate

    def _answer_ask(self, gate: Gate, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        unit = gate.unit
        if unit is None:
            return
        if answer == "retry":
            self._retry(unit)
        elif answer == "skip":
            output = data.get("output") if isinstance(data, dict) and "output" in data else data
            self._progress.work.supply(unit, output, by, now)
            self._progress.admissions.must_join = True
            self._progress.settle(unit.step, now)
        else:
            unit.state.status = StepStatus.FAILED
            self._progress.give_up(unit, now)

    def close_failed(self, gate: Gate, now: datetime) -> None:
        """The failed step of a gate waits no longer: its record says again that it has failed."""
        if gate.failed is not None:
            self._progress.decided.append(gate.failed.model_copy(update={"token": micros(now)}))
            gate.failed = None

    def _retry(self, unit: Unit) -> None:
        state = unit.state
        items = state.items
        if items is None or not items.failed:
            self._progress.work.retry(unit)
            return
        items.again = sorted(items.failed)
        items.calls.update(items.failed)
        items.failed.clear()
        items.error = state.error = None
        state.n += 1
        state.status = StepStatus.RUNNING
        self._progress.main.push(unit.step_id)

    def _check_open(self) -> None:
        if self._progress.ending is not None:
            raise ConflictError("The execution is ending; nothing can be changed any more", {"status": "ending"})


def _check_grant(data: JsonValue) -> None:
    if data is None:
        return
    is_right = isinstance(data, dict) and all(
        key in BUDGET_UNITS and isinstance(amount, (int, float)) and not isinstance(amount, bool) and amount > 0
        for key, amount in data.items()
    )
    if not is_right:
        raise InvalidInputError(
            f"The data of continue are amounts to add: an object of {', '.join(BUDGET_UNITS)} to numbers over 0",
            {"path": "data"},
        )
