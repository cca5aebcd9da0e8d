"""From context items to answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.answers.values import origin
from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from engine import types
    from engine.domain.context import ContextMatch

__all__ = ["context_match"]


def context_match(match: ContextMatch) -> types.ContextMatch:
    """A line of ``search_context``."""
    item = match.item
    return {
        "item_id": item.item_id,
        "text": item.text,
        "score": match.score,
        "source": origin(item),
        "metadata": item.metadata,
        "created_at": format_instant(item.created_at),
    }
