"""Answers about context memory."""

from __future__ import annotations

from typing import TypedDict

from pydantic import JsonValue

__all__ = ["ContextMatch", "ContextOrigin", "RecalledItem", "ReindexedContext"]


class ContextOrigin(TypedDict):
    """Where a context item came from; what is null was not named when it was added."""

    execution_id: str | None
    step_id: str | None
    agent_id: str | None


class RecalledItem(TypedDict):
    """A context item that a step was given; its text is in ``search_context`` and in the store."""

    item_id: str
    score: float
    source: ContextOrigin


class ContextMatch(TypedDict):
    """A line of ``search_context``, best first."""

    item_id: str
    text: str
    score: float
    """0 to 1, comparable within one answer."""
    source: ContextOrigin
    metadata: dict[str, JsonValue]
    created_at: str


class ReindexedContext(TypedDict):
    """Answer of ``reindex_context``."""

    items: int
    """Context items that are in the vector index now."""
    made: int
    """Of these, made from step records that had none."""
    left: int
    """Outputs that can't be read and texts that the embedder refuses; each is logged."""
