"""What processes share of a cache: entries that one of them has read, and the news that one of them has written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

CacheKey: TypeAlias = tuple[str, str]
"""A group, which is dropped as a whole, and a name in it."""


class SharedCache(Protocol):
    """Entries by group and name, each with a time to live, and a channel of groups that were dropped.

    Never the only copy, and never waited for by a right answer: every method raises ``StoreError`` when the store
    does not answer, and its callers go on without it.
    """

    async def get_entries(self, keys: list[CacheKey]) -> dict[CacheKey, bytes]:
        """Return the entries that are there, in one round trip."""
        ...

    async def put_entries(self, entries: dict[CacheKey, bytes], ttl: timedelta) -> None:
        """Keep entries for at most ``ttl``, in one round trip.

        One whose group was dropped within the last 10 s is not kept: it may have been read before that.
        """
        ...

    async def drop_group(self, group: str) -> None:
        """Remove a group's entries and tell all listeners, the own process included."""
        ...

    def listen(self, dropped: Callable[[str], None]) -> None:
        """Call ``dropped`` on the running loop with each group that any process drops, from now until closed.

        A lost connection is tried again for ever, at most twice a second.
        """
        ...

    @property
    def listening_since(self) -> float | None:
        """Since when (``time.monotonic``) every piece of news has arrived; None while it may not."""
        ...
