"""Where context items live: what agents said and users added, to be found again by meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.context import ContextFilter, ContextItem, NamespaceOwner
    from engine.domain.page import Page, Position


class ContextStore(Protocol):
    """Context items: the documents behind the vectors, which can be rebuilt from them at any time.

    Writes are acknowledged when they would survive a crash. Raises ``StoreError`` when the store does not answer.
    """

    async def put_items(self, items: list[ContextItem]) -> None:
        """Store items under their ids, replacing equal ids, in one round trip; each then waits to be indexed."""
        ...

    async def get_items(self, item_ids: list[str]) -> dict[str, ContextItem]:
        """Return those that exist, by id, in one round trip."""
        ...

    async def list_items(self, query: ContextFilter, *, limit: int, after: Position | None) -> Page[ContextItem]:
        """Return items, newest first; ``after`` is the position ``(created_at as ISO text, item_id)``."""
        ...

    async def list_unindexed(self, limit: int) -> list[ContextItem]:
        """Return items that wait to be indexed, oldest first."""
        ...

    async def mark_indexed(self, items: list[ContextItem]) -> None:
        """Say that these are in the vector index; one that was replaced meanwhile (another hash) goes on waiting."""
        ...

    async def mark_unindexed(self, query: ContextFilter) -> int:
        """Let everything that matches wait for indexing again (the index was lost); return how many items."""
        ...

    async def get_namespace_owner(self, namespace: str) -> NamespaceOwner | None:
        """Return which embedder a namespace of the vector index belongs to; None when nobody has said so yet."""
        ...

    async def put_namespace_owner(self, namespace: str, owner: NamespaceOwner) -> None:
        """Remember which embedder a namespace belongs to from now on."""
        ...
