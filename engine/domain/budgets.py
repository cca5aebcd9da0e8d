"""A run's budget: what was spent against what may be, looked at before each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.domain.execution import BudgetLimits

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.execution import Usage
    from engine.domain.json import JsonObject

__all__ = ["BUDGET_UNITS", "BudgetMeter", "narrowed"]

BUDGET_UNITS: Final = ("tokens", "usd", "agent_calls", "seconds")


def narrowed(first: BudgetLimits | None, second: BudgetLimits | None) -> BudgetLimits | None:
    """Return the least of both for each unit; ``ask`` only where the definition (``first``) says so."""
    if first is None or second is None:
        return first or second
    least: dict[str, float | int] = {}
    for unit in BUDGET_UNITS:
        amounts = [amount for limits in (first, second) if (amount := getattr(limits, unit)) is not None]
        if amounts:
            least[unit] = min(amounts)
    return BudgetLimits.model_validate({**least, "on_breach": first.on_breach})


@dataclass(slots=True)
class BudgetMeter:
    """Limits, what operators have added to them, and the agents' attempts so far."""

    limits: BudgetLimits | None
    started_at: datetime
    grants: BudgetLimits
    calls: int = 0
    breaches: int = 0

    def breach(self, usage: Usage, in_flight: int, now: datetime) -> JsonObject | None:
        """Return which limit the next call would pass: ``{limit, used, allowed}``; None when it may be made."""
        if self.limits is None:
            return None
        used = self._used(usage, in_flight, now)
        for unit, allowed in self._allowed().items():
            if used[unit] >= allowed:
                return {"limit": unit, "used": used[unit], "allowed": allowed}
        return None

    def left(self, usage: Usage, in_flight: int, now: datetime) -> BudgetLimits | None:
        """Return what a child may spend; None when nothing limits it."""
        if self.limits is None:
            return None
        used = self._used(usage, in_flight, now)
        return _limits({unit: allowed - used[unit] for unit, allowed in self._allowed().items()})

    def grant(self, more: JsonObject | None) -> None:
        """Add amounts to the limits; by default each limit once more."""
        if self.limits is None:
            return
        added: dict[str, float] = {}
        for unit in BUDGET_UNITS:
            extra = getattr(self.limits, unit) if more is None else more.get(unit)
            before = getattr(self.grants, unit) or 0
            if isinstance(extra, (int, float)) and not isinstance(extra, bool):
                before += extra
            if before:
                added[unit] = before
        self.grants = _limits(added)

    def _used(self, usage: Usage, in_flight: int, now: datetime) -> dict[str, float]:
        return {
            "tokens": usage.input_tokens + usage.output_tokens,
            "usd": usage.cost_usd or 0.0,
            "agent_calls": self.calls + in_flight,
            "seconds": (now - self.started_at).total_seconds(),
        }

    def _allowed(self) -> dict[str, float]:
        """Unit to its limit with what was granted, of the units that are limited."""
        allowed: dict[str, float] = {}
        for unit in BUDGET_UNITS:
            limit: float | None = None if self.limits is None else getattr(self.limits, unit)
            if limit is not None:
                allowed[unit] = limit + (getattr(self.grants, unit) or 0)
        return allowed


def _limits(amounts: dict[str, float]) -> BudgetLimits:
    return BudgetLimits.model_validate(
        {unit: int(amount) if unit in ("tokens", "agent_calls") else amount for unit, amount in amounts.items()}
    )
