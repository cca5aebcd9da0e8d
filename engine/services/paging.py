"""Arguments that every list shares: ``limit`` and ``cursor``, checked and turned into a position, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

from engine.domain.json import json_fault
from engine.domain.page import MAX_LIMIT, Page, Position, decode_cursor, encode_cursor
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

__all__ = ["DEFAULT_LIMIT", "next_cursor", "parse_cursor", "parse_labels", "parse_limit"]

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50


def parse_limit(limit: object) -> int:
    """Return ``limit``, or ``DEFAULT_LIMIT`` for None.

    Raises:
        InvalidInputError: no integer from 1 to ``MAX_LIMIT``.
    """
    if limit is None:
        return DEFAULT_LIMIT
    if isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_LIMIT:
        return limit
    raise InvalidInputError(f"limit must be a whole number from 1 to {MAX_LIMIT}", {"path": "limit"})


def parse_cursor(cursor: object, query: JsonObject) -> Position | None:
    """Return the position behind which the page starts, or None for the first page.

    Args:
        cursor: ``next_cursor`` of the page before, or None.
        query: the list's name and its filter; a cursor of another one is refused.

    Raises:
        InvalidInputError: the cursor is broken or belongs to another list or filter.
    """
    if cursor is None:
        return None
    if not isinstance(cursor, str):
        raise InvalidInputError("cursor must be next_cursor of the page before, or null", {"path": "cursor"})
    return decode_cursor(cursor, query)


def next_cursor(page: Page[T], query: JsonObject) -> str | None:
    """Return the cursor of the page behind ``page``, or None when it is the last."""
    return None if page.next is None else encode_cursor(page.next, query)


def parse_labels(labels: object, path: str) -> list[str]:
    """Return the tags or capabilities to filter by, sorted and each once; None is none.

    Raises:
        InvalidInputError: no list of texts; ``details.path`` is ``path``.
    """
    if labels is None:
        return []
    items = cast("list[object]", labels) if isinstance(labels, (list, tuple)) else [None]
    texts = {item for item in items if isinstance(item, str)}
    if any(not isinstance(item, str) for item in items):
        raise InvalidInputError(f'{path} must be a list of texts, such as ["feature"]', {"path": path})
    if (fault := json_fault("".join(texts), path)) is not None:
        raise InvalidInputError(f"{fault}; repair the text", {"path": path})
    return sorted(texts)
