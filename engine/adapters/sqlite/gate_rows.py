"""Gates as rows, fenced like steps; the open ones are in partial indexes, which what is over never makes longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.pages import BEFORE_ALL, page_of, rows_with_labels
from engine.adapters.sqlite.schema import TENANT
from engine.domain.gate import GateRecord

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.pages import BodyRow
    from engine.domain.page import Page, Position
    from engine.ports.execution_store import GateFilter

__all__ = ["LIST_STATEMENTS", "GateRow", "find_gate", "gate_row", "list_gate_page", "put_gate"]

GateRow = tuple[object, ...]
"""The columns of a gate."""

_PUT: Final = """INSERT INTO gates
    (tenant, execution_id, gate_id, token, status, opened_at, place, definition_id, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, execution_id, gate_id) DO UPDATE SET
        token = excluded.token, status = excluded.status, opened_at = excluded.opened_at, place = excluded.place,
        definition_id = excluded.definition_id, body = excluded.body
    WHERE excluded.token >= token"""
_DROP_ASSIGNEES: Final = "DELETE FROM gate_assignees WHERE tenant = ? AND execution_id = ? AND gate_id = ?"
_ADD_ASSIGNEE: Final = """INSERT INTO gate_assignees
    (tenant, assignee, opened_at, place, definition_id, execution_id, gate_id) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_GET: Final = "SELECT body FROM gates WHERE tenant = ? AND execution_id = ? AND gate_id = ?"
_LIST: Final = """SELECT opened_at, place, body FROM gates INDEXED BY open_gates
    WHERE tenant = ? AND status = 'open' AND (opened_at, place) > (?, ?) ORDER BY opened_at, place LIMIT ?"""
_LIST_OF_DEFINITION: Final = """SELECT opened_at, place, body FROM gates INDEXED BY open_gates_of_definition
    WHERE tenant = ? AND definition_id = ? AND status = 'open' AND (opened_at, place) > (?, ?)
    ORDER BY opened_at, place LIMIT ?"""
_LIST_OF_EXECUTION: Final = """SELECT opened_at, place, body FROM gates INDEXED BY open_gates_of_execution
    WHERE tenant = ? AND execution_id = ? AND status = 'open' AND (opened_at, place) > (?, ?)
        AND definition_id = coalesce(?, definition_id)
    ORDER BY opened_at, place"""
_HAS_ASSIGNEE: Final = """SELECT 1 FROM gate_assignees
    WHERE tenant = ? AND assignee = ? AND opened_at = ? AND place = ?"""
_LIST_ASSIGNED: Final = """SELECT a.opened_at, a.place, g.body FROM gate_assignees AS a
    CROSS JOIN gates AS g ON g.tenant = a.tenant AND g.execution_id = a.execution_id AND g.gate_id = a.gate_id
    WHERE a.tenant = ? AND a.assignee = ? AND (a.opened_at, a.place) > (?, ?)
        AND a.definition_id = coalesce(?, a.definition_id)
    ORDER BY a.opened_at, a.place LIMIT ?"""

LIST_STATEMENTS: Final = (_LIST, _LIST_OF_DEFINITION, _LIST_OF_EXECUTION, _LIST_ASSIGNED)
"""Every statement of a list, so that a test can look at their plans."""


def gate_row(codec: Codec, gate: GateRecord) -> GateRow:
    """Return the row of a gate."""
    return (
        TENANT,
        gate.execution_id,
        gate.gate_id,
        gate.token,
        gate.status,
        instant_text(gate.opened_at),
        _place(gate),
        gate.definition_id,
        pack(codec, gate),
    )


def put_gate(connection: sqlite3.Connection, gate: GateRecord, row: GateRow) -> None:
    """Write a gate's row, and whom it is for while it is open, unless a greater token stands."""
    if connection.execute(_PUT, row).rowcount == 0:
        return
    connection.execute(_DROP_ASSIGNEES, (TENANT, gate.execution_id, gate.gate_id))
    if gate.status == "open":
        known = (instant_text(gate.opened_at), _place(gate), gate.definition_id, gate.execution_id, gate.gate_id)
        connection.executemany(_ADD_ASSIGNEE, [(TENANT, assignee, *known) for assignee in gate.assignees])


def find_gate(connection: sqlite3.Connection, codec: Codec, execution_id: str, gate_id: str) -> GateRecord | None:
    """Return a gate, open or not, or None."""
    row = cast("tuple[bytes] | None", connection.execute(_GET, (TENANT, execution_id, gate_id)).fetchone())
    return None if row is None else unpack(codec, GateRecord, row[0])


def list_gate_page(
    connection: sqlite3.Connection, codec: Codec, query: GateFilter, limit: int, after: Position | None
) -> Page[GateRecord]:
    """Return a page of open gates, oldest first."""
    start = after or BEFORE_ALL
    if query.execution_id is not None:
        # These are few, so each is looked up among those of its assignee.
        chosen = (TENANT, query.execution_id, *start, query.definition_id)
        candidates = cast("Iterable[BodyRow]", connection.execute(_LIST_OF_EXECUTION, chosen))
        labels = [] if query.assignee is None else [query.assignee]
        rows = rows_with_labels(connection, candidates, has_label=_HAS_ASSIGNEE, labels=labels, limit=limit)
    else:
        rows = cast("list[BodyRow]", _listed(connection, query, start, limit + 1).fetchall())
    return page_of(rows, limit, lambda row: unpack(codec, GateRecord, row[2]))


def _listed(connection: sqlite3.Connection, query: GateFilter, start: Position, count: int) -> sqlite3.Cursor:
    if query.assignee is not None:
        return connection.execute(_LIST_ASSIGNED, (TENANT, query.assignee, *start, query.definition_id, count))
    if query.definition_id is not None:
        return connection.execute(_LIST_OF_DEFINITION, (TENANT, query.definition_id, *start, count))
    return connection.execute(_LIST, (TENANT, *start, count))


def _place(gate: GateRecord) -> str:
    return f"{gate.execution_id}\n{gate.gate_id}"
