"""Context items in the embedded database: one row each, replaced whole, with a mark while it waits to be indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast, get_args

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.pages import BEHIND_ALL, BodyRow, page_of
from engine.adapters.sqlite.schema import TENANT
from engine.domain.context import ContextItem, ContextScope

if TYPE_CHECKING:
    import sqlite3

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.context import ContextFilter
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteContextStore"]

_SCOPES: Final[tuple[ContextScope, ...]] = get_args(ContextScope)

_PUT = """INSERT INTO context_items
    (tenant, item_id, created_at, scope, definition_id, execution_id, agent_id, text_hash, is_unindexed, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?)
    ON CONFLICT (tenant, item_id) DO UPDATE SET
        created_at = excluded.created_at, scope = excluded.scope, definition_id = excluded.definition_id,
        execution_id = excluded.execution_id, agent_id = excluded.agent_id, text_hash = excluded.text_hash,
        is_unindexed = 1, body = excluded.body"""
_GET = "SELECT body FROM context_items WHERE tenant = ? AND item_id = ?"
_MARK_INDEXED = """UPDATE context_items SET is_unindexed = 0
    WHERE tenant = ? AND item_id = ? AND text_hash = ? AND is_unindexed = 1"""
_MARK_UNINDEXED = """UPDATE context_items SET is_unindexed = 1
    WHERE tenant = ?1 AND (?2 IS NULL OR scope = ?2) AND (?3 IS NULL OR definition_id = ?3)
        AND (?4 IS NULL OR execution_id = ?4) AND (?5 IS NULL OR agent_id = ?5)"""
_LIST_UNINDEXED = """SELECT created_at, item_id, body FROM context_items INDEXED BY unindexed_items
    WHERE tenant = ? AND is_unindexed = 1 ORDER BY created_at, item_id LIMIT ?"""
_LIST = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_time
    WHERE tenant = ? AND (created_at, item_id) < (?, ?) ORDER BY created_at DESC, item_id DESC LIMIT ?"""
_LIST_BY_SCOPE = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_scope
    WHERE tenant = ? AND scope = ? AND (created_at, item_id) < (?, ?)
    ORDER BY created_at DESC, item_id DESC LIMIT ?"""
_LIST_BY_EXECUTION = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_execution
    WHERE tenant = ?1 AND execution_id = ?2 AND (created_at, item_id) < (?3, ?4)
        AND (?5 IS NULL OR scope = ?5) AND (?6 IS NULL OR definition_id = ?6) AND (?7 IS NULL OR agent_id = ?7)
    ORDER BY created_at DESC, item_id DESC LIMIT ?8"""
_LIST_BY_DEFINITION = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_definition
    WHERE tenant = ?1 AND scope = ?2 AND definition_id = ?3 AND (created_at, item_id) < (?4, ?5)
        AND (?6 IS NULL OR agent_id = ?6)
    ORDER BY created_at DESC, item_id DESC LIMIT ?7"""
_LIST_BY_AGENT = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_agent
    WHERE tenant = ? AND scope = ? AND agent_id = ? AND (created_at, item_id) < (?, ?)
    ORDER BY created_at DESC, item_id DESC LIMIT ?"""

LIST_STATEMENTS: Final = (
    _LIST_UNINDEXED,
    _LIST,
    _LIST_BY_SCOPE,
    _LIST_BY_EXECUTION,
    _LIST_BY_DEFINITION,
    _LIST_BY_AGENT,
)
"""Every statement of a list, so that a test can look at their plans."""


class SqliteContextStore:
    """A ``ContextStore`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def put_items(self, items: list[ContextItem]) -> None:
        """Store items under their ids in one transaction, replacing equal ids."""
        rows = [self._row(item) for item in items]
        if rows:
            await self._database.write(lambda connection: connection.executemany(_PUT, rows).rowcount)

    async def get_items(self, item_ids: list[str]) -> dict[str, ContextItem]:
        """Return those that exist, by id."""

        def get(connection: sqlite3.Connection) -> dict[str, ContextItem]:
            found = ((item_id, connection.execute(_GET, (TENANT, item_id)).fetchone()) for item_id in item_ids)
            return {item_id: self._item(cast("tuple[bytes]", row)[0]) for item_id, row in found if row is not None}

        return await self._database.read(get)

    async def list_items(self, query: ContextFilter, *, limit: int, after: Position | None) -> Page[ContextItem]:
        """Return items, newest first."""
        start = after or BEHIND_ALL
        return await self._database.read(
            lambda connection: page_of(
                _rows(connection, query, start, limit + 1), limit, lambda row: self._item(row[2])
            )
        )

    async def list_unindexed(self, limit: int) -> list[ContextItem]:
        """Return items that wait to be indexed, oldest first."""

        def list_waiting(connection: sqlite3.Connection) -> list[ContextItem]:
            rows = cast("list[BodyRow]", connection.execute(_LIST_UNINDEXED, (TENANT, limit)).fetchall())
            return [self._item(body) for _, _, body in rows]

        return await self._database.read(list_waiting)

    async def mark_indexed(self, items: list[ContextItem]) -> None:
        """Say that these are indexed; one that was replaced meanwhile goes on waiting."""
        rows = [(TENANT, item.item_id, item.text_hash) for item in items]
        if rows:
            await self._database.write(lambda connection: connection.executemany(_MARK_INDEXED, rows).rowcount)

    async def mark_unindexed(self, query: ContextFilter) -> int:
        """Let everything that matches wait for indexing again; return how many items."""
        chosen = (TENANT, query.scope, query.definition_id, query.execution_id, query.agent_id)
        return await self._database.write(lambda connection: connection.execute(_MARK_UNINDEXED, chosen).rowcount)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _row(self, item: ContextItem) -> tuple[object, ...]:
        return (
            TENANT,
            item.item_id,
            instant_text(item.created_at),
            item.scope,
            item.definition_id,
            item.execution_id,
            item.agent_id,
            item.text_hash,
            pack(self._codec, item),
        )

    def _item(self, body: bytes) -> ContextItem:
        return unpack(self._codec, ContextItem, body)


def _rows(connection: sqlite3.Connection, query: ContextFilter, start: Position, limit: int) -> list[BodyRow]:
    """Return the first ``limit`` rows behind a position, newest first."""
    if query.execution_id is not None:
        others = (query.scope, query.definition_id, query.agent_id)
        listed = connection.execute(_LIST_BY_EXECUTION, (TENANT, query.execution_id, *start, *others, limit))
        return cast("list[BodyRow]", listed.fetchall())
    if query.definition_id is None and query.agent_id is None:
        if query.scope is None:
            listed = connection.execute(_LIST, (TENANT, *start, limit))
        else:
            listed = connection.execute(_LIST_BY_SCOPE, (TENANT, query.scope, *start, limit))
        return cast("list[BodyRow]", listed.fetchall())
    rows: list[BodyRow] = []
    # Each scope has its own order in the index; a page needs no more of any than its own length.
    for scope in _SCOPES if query.scope is None else (query.scope,):
        if query.definition_id is not None:
            chosen = (TENANT, scope, query.definition_id, *start, query.agent_id, limit)
            listed = connection.execute(_LIST_BY_DEFINITION, chosen)
        else:
            listed = connection.execute(_LIST_BY_AGENT, (TENANT, scope, query.agent_id, *start, limit))
        rows += cast("list[BodyRow]", listed.fetchall())
    rows.sort(key=lambda row: row[:2], reverse=True)
    return rows[:limit]
