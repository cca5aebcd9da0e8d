"""Execution records as rows: what changes at every step stands in columns, which count more than the body.

So a step's write starts, takes over or reopens its execution without unpacking an input that may be large. A body
that has ended under a column that has not is a reopened record: its end is left out when it is read.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.pages import BEHIND_ALL, page_of, rows_with_labels
from engine.adapters.sqlite.schema import TENANT
from engine.adapters.standing import reopened
from engine.domain.execution import ExecutionRecord, ExecutionStatus

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from engine.adapters.codec import Codec
    from engine.domain.page import Page, Position
    from engine.ports.execution_store import ExecutionFilter

__all__ = [
    "LIST_STATEMENTS",
    "ExecutionRow",
    "execution_row",
    "find_execution",
    "insert_execution",
    "list_execution_page",
    "replace_execution",
]

ExecutionRow = tuple[object, ...]
"""The columns of a record that a write sets, its key last."""

_StoredRow: TypeAlias = "tuple[str, str, bytes, str, str | None, str | None, str | None, int]"


# Steps may be there before their execution, when Temporal started it and its record came late.
_INSERT = """INSERT INTO executions
    (definition_id, status, created_at, started_at, run_id, run_started_at, history_length, duration,
     requests, input_tokens, output_tokens, tool_calls, cost_usd, handoffs_taken, handoffs_refused, body,
     tenant, execution_id, retries, fallbacks)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
        (SELECT coalesce(sum(retries), 0) FROM steps WHERE tenant = ?17 AND execution_id = ?18),
        (SELECT coalesce(sum(fallback), 0) FROM steps WHERE tenant = ?17 AND execution_id = ?18))
    ON CONFLICT DO NOTHING"""
_REPLACE = """UPDATE executions SET
        definition_id = ?, status = ?, created_at = ?, started_at = ?, run_id = ?, run_started_at = ?,
        history_length = ?, duration = ?, requests = ?, input_tokens = ?, output_tokens = ?, tool_calls = ?,
        cost_usd = ?, handoffs_taken = ?, handoffs_refused = ?, body = ?
    WHERE tenant = ? AND execution_id = ?"""
_ADD_TAG = """INSERT INTO execution_tags (tenant, tag, created_at, execution_id) VALUES (?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_HAS_TAG = "SELECT 1 FROM execution_tags WHERE tenant = ? AND tag = ? AND created_at = ? AND execution_id = ?"

_GET = """SELECT created_at, execution_id, body, status, started_at, run_id, run_started_at, history_length
    FROM executions WHERE tenant = ? AND execution_id = ?"""
_LIST = """SELECT created_at, execution_id, body, status, started_at, run_id, run_started_at, history_length
    FROM executions INDEXED BY executions_by_time
    WHERE tenant = ? AND (created_at, execution_id) < (?, ?) AND created_at >= ?
    ORDER BY created_at DESC, execution_id DESC LIMIT ?"""
_LIST_BY_STATUS = """SELECT created_at, execution_id, body, status, started_at, run_id, run_started_at, history_length
    FROM executions INDEXED BY executions_by_status
    WHERE tenant = ? AND status = ? AND (created_at, execution_id) < (?, ?) AND created_at >= ?
    ORDER BY created_at DESC, execution_id DESC LIMIT ?"""
_LIST_BY_DEFINITION = """SELECT
        created_at, execution_id, body, status, started_at, run_id, run_started_at, history_length
    FROM executions INDEXED BY executions_by_definition
    WHERE tenant = ? AND definition_id = ? AND (created_at, execution_id) < (?, ?) AND created_at >= ?
    ORDER BY created_at DESC, execution_id DESC LIMIT ?"""
_LIST_BY_BOTH = """SELECT created_at, execution_id, body, status, started_at, run_id, run_started_at, history_length
    FROM executions INDEXED BY executions_by_definition_status
    WHERE tenant = ? AND definition_id = ? AND status = ? AND (created_at, execution_id) < (?, ?) AND created_at >= ?
    ORDER BY created_at DESC, execution_id DESC LIMIT ?"""
_LIST_TAGGED = """SELECT t.created_at, t.execution_id, e.body, e.status, e.started_at, e.run_id, e.run_started_at,
        e.history_length
    FROM execution_tags AS t
    CROSS JOIN executions AS e ON e.tenant = t.tenant AND e.execution_id = t.execution_id
    WHERE t.tenant = ? AND t.tag = ? AND (t.created_at, t.execution_id) < (?, ?) AND t.created_at >= ?
        AND e.definition_id = coalesce(?, e.definition_id) AND e.status = coalesce(?, e.status)
    ORDER BY t.created_at DESC, t.execution_id DESC"""

LIST_STATEMENTS: Final = (_LIST, _LIST_BY_STATUS, _LIST_BY_DEFINITION, _LIST_BY_BOTH, _LIST_TAGGED)
"""Every statement of a list, so that a test can look at their plans."""

_MICROSECOND = timedelta(microseconds=1)


def execution_row(codec: Codec, record: ExecutionRecord) -> ExecutionRow:
    """Return the row of a record."""
    usage = record.usage
    duration = None
    if record.status is ExecutionStatus.COMPLETED and record.started_at is not None and record.completed_at is not None:
        duration = (record.completed_at - record.started_at).total_seconds()
    return (
        record.definition_id,
        record.status,
        instant_text(record.created_at),
        None if record.started_at is None else instant_text(record.started_at),
        record.run_id,
        None if record.run_started_at is None else instant_text(record.run_started_at),
        record.history_length,
        duration,
        usage.requests,
        usage.input_tokens,
        usage.output_tokens,
        usage.tool_calls,
        usage.cost_usd,
        record.handoffs_taken,
        record.handoffs_refused,
        pack(codec, record),
        TENANT,
        record.execution_id,
    )


def insert_execution(connection: sqlite3.Connection, record: ExecutionRecord, row: ExecutionRow) -> bool:
    """Insert a record with its tags; return False, with nothing written, when the id is there."""
    if connection.execute(_INSERT, row).rowcount == 0:
        return False
    for tag in record.options.tags:
        connection.execute(_ADD_TAG, (TENANT, tag, instant_text(record.created_at), record.execution_id))
    return True


def replace_execution(connection: sqlite3.Connection, row: ExecutionRow) -> None:
    """Write a record in place of the stored one. Its tags and its creation are what they were."""
    connection.execute(_REPLACE, row)


def find_execution(connection: sqlite3.Connection, codec: Codec, execution_id: str) -> ExecutionRecord | None:
    """Return the record, or None."""
    row = cast("_StoredRow | None", connection.execute(_GET, (TENANT, execution_id)).fetchone())
    return None if row is None else _record_in(codec, row)


def list_execution_page(
    connection: sqlite3.Connection, codec: Codec, query: ExecutionFilter, limit: int, after: Position | None
) -> Page[ExecutionRecord]:
    """Return a page of records, latest created first."""
    start = after or BEHIND_ALL
    if query.end_time is not None:
        # No id is less than the empty one, so this is just behind the last instant that counts.
        start = min(start, (instant_text(query.end_time + _MICROSECOND), ""))
    rows = [row for status in _statuses(query) for row in _rows(connection, query, status, start, limit)]
    if query.is_open is not None:
        # Each status has its own order in the index; a page needs no more of any than its own length.
        rows.sort(key=lambda row: row[:2], reverse=True)
        rows = rows[: limit + 1]
    return page_of(rows, limit, lambda row: _record_in(codec, row))


def _statuses(query: ExecutionFilter) -> list[ExecutionStatus | None]:
    """The statuses to look for, None meaning any."""
    if query.is_open is None:
        return [query.status]
    return [
        status
        for status in ExecutionStatus
        if status.is_terminal is not query.is_open and query.status in (None, status)
    ]


def _rows(
    connection: sqlite3.Connection, query: ExecutionFilter, status: ExecutionStatus | None, start: Position, limit: int
) -> list[_StoredRow]:
    """Return the first ``limit + 1`` rows with a status, latest created first."""
    oldest = "" if query.start_time is None else instant_text(query.start_time)
    bounds = (*start, oldest)
    chosen = (query.definition_id, status)
    if query.tags:
        candidates = cast(
            "Iterable[_StoredRow]", connection.execute(_LIST_TAGGED, (TENANT, query.tags[0], *bounds, *chosen))
        )
        return rows_with_labels(connection, candidates, has_label=_HAS_TAG, labels=query.tags[1:], limit=limit)
    match chosen:
        case (None, None):
            listed = connection.execute(_LIST, (TENANT, *bounds, limit + 1))
        case (None, _):
            listed = connection.execute(_LIST_BY_STATUS, (TENANT, status, *bounds, limit + 1))
        case (definition_id, None):
            listed = connection.execute(_LIST_BY_DEFINITION, (TENANT, definition_id, *bounds, limit + 1))
        case _:
            listed = connection.execute(_LIST_BY_BOTH, (TENANT, *chosen, *bounds, limit + 1))
    return cast("list[_StoredRow]", listed.fetchall())


def _record_in(codec: Codec, row: _StoredRow) -> ExecutionRecord:
    _, _, body, status_text, started_at, run_id, run_started_at, history_length = row
    record = unpack(codec, ExecutionRecord, body)
    status = ExecutionStatus(status_text)
    if record.status.is_terminal and not status.is_terminal:
        record = reopened(record)
    changes: dict[str, object] = {
        "status": status,
        "started_at": _instant(started_at),
        "run_id": run_id,
        "run_started_at": _instant(run_started_at),
        "history_length": history_length,
    }
    return record.model_copy(update=changes)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
