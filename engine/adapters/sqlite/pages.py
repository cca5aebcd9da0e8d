"""Keyset pages over rows that begin with their position: ``(sort text, id, ...)``.

The end and the start of a list are positions like any other, so each list needs one statement and not two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from engine.adapters.sqlite.schema import TENANT
from engine.domain.page import Page

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence

    from engine.domain.page import Position

__all__ = ["BEFORE_ALL", "BEHIND_ALL", "BodyRow", "page_of", "rows_with_labels"]

T = TypeVar("T")
Row = TypeVar("Row", bound="tuple[str, str, *tuple[object, ...]]")

BodyRow: TypeAlias = "tuple[str, str, bytes]"
"""Sort text, id, packed body."""

BEFORE_ALL: Final[Position] = ("", "")
"""Less than every position: where an ascending list starts."""
BEHIND_ALL: Final[Position] = ("~", "")
"""Greater than every instant's text: where a descending list starts."""


def page_of(rows: Sequence[Row], limit: int, decode: Callable[[Row], T]) -> Page[T]:
    """Return the first ``limit`` rows as a page; one row more than that says that another page follows."""
    items = [decode(row) for row in rows[:limit]]
    return Page(items, rows[limit - 1][:2] if len(rows) > limit else None)


def rows_with_labels(
    connection: sqlite3.Connection, rows: Iterable[Row], *, has_label: str, labels: Sequence[str], limit: int
) -> list[Row]:
    """Return the first ``limit + 1`` of ``rows`` that have all ``labels``.

    Rows are taken one by one, so a page costs what it has to look at and is always full.

    Args:
        connection: where ``rows`` come from.
        rows: candidates in order.
        has_label: a statement that finds (tenant, label, sort text, id) by its key.
        labels: what each row must have beside the label that chose the candidates.
        limit: size of the page.
    """
    found: list[Row] = []
    for row in rows:
        if all(connection.execute(has_label, (TENANT, label, row[0], row[1])).fetchone() for label in labels):
            found.append(row)
            if len(found) > limit:
                break
    return found
