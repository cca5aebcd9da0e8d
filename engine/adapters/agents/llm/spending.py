"""What one call has used so far, kept where every end of it can read it: a failure costs as much as a success."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.domain.execution import ToolCall, Usage

if TYPE_CHECKING:
    from engine.ports.price_table import PriceTable

__all__ = ["Spending"]


@dataclass(slots=True)
class Spending:
    """Requests, tokens and tools of one call."""

    requests: int = 0
    """Requests begun, whatever became of them."""
    rejected: int = 0
    """Those that were answered with an error's status, which costs nothing."""
    measured: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Input and output tokens of each request whose answer told them."""
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])

    def usage(self, prices: PriceTable, model: str, base_url: str | None) -> Usage:
        """Return the usage so far; its cost is None as soon as a request has an unknown price or unknown tokens."""
        costs = [prices.cost_of(model, base_url, given, made) for given, made in self.measured]
        known = [cost for cost in costs if cost is not None]
        is_known = bool(known) and len(known) == self.requests - self.rejected
        return Usage(
            requests=self.requests,
            input_tokens=sum(given for given, _ in self.measured),
            output_tokens=sum(made for _, made in self.measured),
            tool_calls=len(self.tool_calls),
            cost_usd=sum(known) if is_known else None,
        )
