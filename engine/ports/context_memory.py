"""What activities need of context memory: to keep a step's text, and to recall what is near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.context import ContextItem, ContextMatch, ContextScope


@dataclass(frozen=True, slots=True)
class RecallRequest:
    """What a step wants to be reminded of."""

    query: str
    scope: ContextScope
    top_k: int
    """1 to 100."""
    execution_id: str
    definition_id: str
    agent_id: str


class ContextMemory(Protocol):
    """Keeps texts and finds them again; nothing that a step needs to succeed."""

    def remember_later(self, item: ContextItem) -> None:
        """Queue an item to be stored and indexed soon; returns at once, never raises."""
        ...

    async def remember(self, item: ContextItem) -> None:
        """Store an item now, so that the next ``recall`` anywhere sees it, and queue it for the index.

        Raises:
            StoreError: it can't be stored; it is queued all the same.
        """
        ...

    async def recall(self, request: RecallRequest) -> list[ContextMatch]:
        """Return the nearest items of the scope, best first, with the execution's own newest ones among them.

        Raises:
            EngineError: the stores do not answer, or the namespace belongs to another embedder.
        """
        ...
