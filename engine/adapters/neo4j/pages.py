"""Keyset pages over rows ``created_at, id, body``, and positions before and behind all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from engine.domain.page import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from neo4j import Record

    from engine.domain.page import Position

__all__ = ["BEFORE_ALL", "BEHIND_ALL", "page_of"]

T = TypeVar("T")

BEFORE_ALL: Final[Position] = ("", "")
"""Less than every position: where an ascending list starts."""
BEHIND_ALL: Final[Position] = ("~", "")
"""Greater than every instant's text: where a descending list starts."""


def page_of(rows: Sequence[Record], limit: int, decode: Callable[[bytes], T]) -> Page[T]:
    """Return the first ``limit`` rows as a page; one row more than that says that another page follows."""
    items = [decode(row["body"]) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items)
    last = rows[limit - 1]
    return Page(items, (last["created_at"], last["id"]))
