"""What becomes of a run whose budget is spent: it fails as with any failure, or somebody is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.actions import Ending
from engine.domain.execution import ErrorPayload, Event, ExecutionStatus
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.json import JsonValue
    from engine.domain.progress import ExecutionProgress
    from engine.domain.step_state import Unit

__all__ = ["Spending"]

BUDGET_GATE: Final = "execution:budget"


class Spending:
    """Looks at a run's budget before each call."""

    def __init__(self, progress: ExecutionProgress) -> None:
        self._progress = progress

    @property
    def is_held(self) -> bool:
        """Whether the budget is spent, and somebody is asked."""
        progress = self._progress
        return progress.budget.breaches > 0 and any(gate.record.kind == "budget" for gate in progress.gates.open_gates)

    def keeps_from(self, unit: Unit, now: datetime) -> bool:
        """Whether the budget keeps a call from being made; then the run ends with what is paid for, or asks."""
        breach = self._progress.budget.breach(self._progress.usage, self._progress.work.agent_calls, now)
        if breach is None:
            return False
        if self._progress.failing is not None:
            self._progress.abandon(unit, now)
            return True
        self._progress.work.again.appendleft(unit)
        self._progress.budget.breaches += 1
        self._progress.news.events.append(Event.at_instant("budget.exceeded", now, BUDGET_GATE, unit.step_id, **breach))
        spent = str(breach["limit"]).replace("_", " ")
        said = f"The budget of {breach['allowed']:g} {spent} is spent ({breach['used']:g})"
        limits = self._progress.budget.limits
        if limits is not None and limits.on_breach == "ask":
            self._progress.gates.open_budget(f"{BUDGET_GATE}.{self._progress.budget.breaches}", f"{said}. Go on?", now)
            return True
        self._fail_budget(ErrorPayload(code=ErrorCode.BUDGET_EXCEEDED, message=said, details=breach), now)
        return True

    def _fail_budget(self, error: ErrorPayload, now: datetime) -> None:
        self._progress.end_failed(Ending(ExecutionStatus.FAILED, error), now)

    def answer(self, answer: str, data: JsonValue, by: str | None, now: datetime) -> None:
        """Somebody has said what to do."""
        if answer == "continue":
            self._progress.budget.grant(data if isinstance(data, dict) and data else None)
        elif self._progress.goes_on:
            message = f"The budget was spent, and {by or 'an operator'} said to fail"
            self._fail_budget(ErrorPayload(code=ErrorCode.BUDGET_EXCEEDED, message=message), now)
