"""What a model's tokens cost."""

from __future__ import annotations

from typing import Protocol


class PriceTable(Protocol):
    """Prices by model, as data."""

    def cost_of(self, model: str, base_url: str | None, input_tokens: int, output_tokens: int) -> float | None:
        """Return US dollars for the tokens, or None when the price is unknown; ``base_url`` None is OpenAI's."""
        ...
