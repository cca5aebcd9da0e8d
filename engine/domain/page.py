"""Pages by keyset: a page ends with the sort position of its last item, and the next one starts behind it.

A cursor is that position with a digest of the query's filter, packed and base64-encoded: opaque, stable while
rows come and go, and refused with another filter. Nothing in it widens what the query sees.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from engine.domain.json import JsonValue
from engine.errors import InvalidInputError

__all__ = ["MAX_LIMIT", "Page", "Position", "decode_cursor", "encode_cursor"]

T = TypeVar("T")

Position = tuple[str, str]
"""Sort value and id of a page's last item, e.g. ``(created_at as ISO text, execution_id)``."""

MAX_LIMIT = 1000
_MAX_CURSOR_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items in order, and the position behind them when more follow."""

    items: list[T]
    next: Position | None = None


def encode_cursor(position: Position, query: JsonValue) -> str:
    """Return the opaque cursor for ``position`` in the list that ``query`` (its filter) selects."""
    body = json.dumps([*position, _digest(query)], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, query: JsonValue) -> Position:
    """Return the position in ``cursor``.

    Raises:
        InvalidInputError: it is broken, or was made for another list or filter.
    """
    try:
        if len(cursor) > _MAX_CURSOR_CHARS:
            raise ValueError("too long")
        body = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        parsed: object = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise _refused("is broken") from error
    match parsed:
        case [str(sort_value), str(object_id), str(digest)]:
            if encode_cursor((sort_value, object_id), query) != cursor:
                raise _refused("belongs to another list or filter" if digest != _digest(query) else "is broken")
            return sort_value, object_id
        case _:
            raise _refused("is broken")


def _refused(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The cursor {why}; pass next_cursor of the page before, with the same filter, or none to start over",
        {"path": "cursor"},
    )


def _digest(query: JsonValue) -> str:
    text = json.dumps(cast("object", query), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
