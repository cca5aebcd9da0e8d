"""Context items in the embedded database: one row each, replaced whole, with a mark while it waits to be indexed.

Their words are in an index beside them, see ``context_words``. Rows from before there was one get their words at the
first search, a batch a transaction.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.context_words import add_words, drop_words, find_words
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.pages import BEHIND_ALL, BodyRow, page_of
from engine.adapters.sqlite.schema import TENANT
from engine.domain.context import ContextItem, NamespaceOwner
from engine.errors import StoreError

if TYPE_CHECKING:
    import sqlite3

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.context import ContextFilter
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteContextStore"]

_WORDED_A_WRITE: Final = 200

_FIND_ROW = "SELECT number, is_worded, body FROM context_items WHERE tenant = ? AND item_id = ?"
_INSERT = """INSERT INTO context_items
    (tenant, item_id, created_at, definition_id, execution_id, agent_id, text_hash, is_unindexed, is_worded, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, 1, 1, ?)"""
_REPLACE = """UPDATE context_items SET tenant = ?, item_id = ?, created_at = ?, definition_id = ?, execution_id = ?,
    agent_id = ?, text_hash = ?, is_unindexed = 1, is_worded = 1, body = ? WHERE number = ?"""
_RENUMBER = """UPDATE context_items SET number = (SELECT max(number) + 1 FROM context_items) WHERE number = ?
    RETURNING number"""
_GET = "SELECT body FROM context_items WHERE tenant = ? AND item_id = ?"
_LIST_UNWORDED = """SELECT number, body FROM context_items INDEXED BY unworded_items
    WHERE is_worded = 0 ORDER BY number LIMIT ?"""
_MARK_WORDED = "UPDATE context_items SET is_worded = 1 WHERE number = ?"
_MARK_INDEXED = """UPDATE context_items SET is_unindexed = 0
    WHERE tenant = ? AND item_id = ? AND text_hash = ? AND is_unindexed = 1"""
_MARK_UNINDEXED = """UPDATE context_items SET is_unindexed = 1
    WHERE tenant = ?1 AND (?2 IS NULL OR definition_id = ?2) AND (?3 IS NULL OR execution_id = ?3)
        AND (?4 IS NULL OR agent_id = ?4)"""
_LIST_UNINDEXED = """SELECT created_at, item_id, body FROM context_items INDEXED BY unindexed_items
    WHERE tenant = ? AND is_unindexed = 1 ORDER BY created_at, item_id LIMIT ?"""
_LIST = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_time
    WHERE tenant = ? AND (created_at, item_id) < (?, ?) ORDER BY created_at DESC, item_id DESC LIMIT ?"""
_LIST_BY_EXECUTION = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_execution
    WHERE tenant = ?1 AND execution_id = ?2 AND (created_at, item_id) < (?3, ?4)
        AND (?5 IS NULL OR definition_id = ?5) AND (?6 IS NULL OR agent_id = ?6)
    ORDER BY created_at DESC, item_id DESC LIMIT ?7"""
_LIST_BY_DEFINITION = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_definition
    WHERE tenant = ?1 AND definition_id = ?2 AND (created_at, item_id) < (?3, ?4) AND (?5 IS NULL OR agent_id = ?5)
    ORDER BY created_at DESC, item_id DESC LIMIT ?6"""
_LIST_BY_AGENT = """SELECT created_at, item_id, body FROM context_items INDEXED BY items_by_agent
    WHERE tenant = ? AND agent_id = ? AND (created_at, item_id) < (?, ?)
    ORDER BY created_at DESC, item_id DESC LIMIT ?"""
_GET_NAMESPACE = "SELECT body FROM context_namespaces WHERE tenant = ? AND namespace = ?"
_PUT_NAMESPACE = """INSERT INTO context_namespaces (tenant, namespace, body) VALUES (?, ?, ?)
    ON CONFLICT (tenant, namespace) DO UPDATE SET body = excluded.body"""

LIST_STATEMENTS: Final = (_LIST_UNINDEXED, _LIST, _LIST_BY_EXECUTION, _LIST_BY_DEFINITION, _LIST_BY_AGENT)
"""Every statement of a list, so that a test can look at their plans."""


class SqliteContextStore:
    """A ``ContextStore`` and a ``LexicalIndex`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec
        self._are_all_worded = False

    async def put_items(self, items: list[ContextItem]) -> None:
        """Store items and their words under their ids in one transaction, replacing equal ids."""
        rows = [(item, self._row(item)) for item in items]

        def put(connection: sqlite3.Connection) -> None:
            for item, row in rows:
                self._put(connection, item, row)

        if rows:
            await self._database.write(put)

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

    async def find_by_words(self, text: str, query: ContextFilter, *, limit: int) -> list[str]:
        """Return ids of the items of ``query`` that share words with ``text``, best first by BM25, then newest first.

        Of ``text`` the first 64 different words count.
        """
        while not self._are_all_worded:
            self._are_all_worded = await self._database.write(self._add_missing_words) < _WORDED_A_WRITE
        return await self._database.read(lambda connection: find_words(connection, text, query, limit))

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
        chosen = (TENANT, query.definition_id, query.execution_id, query.agent_id)
        return await self._database.write(lambda connection: connection.execute(_MARK_UNINDEXED, chosen).rowcount)

    async def get_namespace_owner(self, namespace: str) -> NamespaceOwner | None:
        """Return which embedder a namespace belongs to; None when nobody has said so yet."""

        def get(connection: sqlite3.Connection) -> NamespaceOwner | None:
            row = cast("tuple[bytes] | None", connection.execute(_GET_NAMESPACE, (TENANT, namespace)).fetchone())
            return None if row is None else unpack(self._codec, NamespaceOwner, row[0])

        return await self._database.read(get)

    async def put_namespace_owner(self, namespace: str, owner: NamespaceOwner) -> None:
        """Remember which embedder a namespace belongs to from now on."""
        row = (TENANT, namespace, pack(self._codec, owner))
        await self._database.write(lambda connection: connection.execute(_PUT_NAMESPACE, row).rowcount)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _put(self, connection: sqlite3.Connection, item: ContextItem, row: tuple[object, ...]) -> None:
        stored = cast("tuple[int, int, bytes] | None", connection.execute(_FIND_ROW, row[:2]).fetchone())
        if stored is None:
            add_words(connection, cast("int", connection.execute(_INSERT, row).lastrowid), item)
            return
        number, is_worded, body = stored
        if is_worded:
            try:
                drop_words(connection, number, self._item(body))
            except StoreError:
                # What can't be read can be replaced: its words stay behind under a number that nobody has.
                (number,) = cast("tuple[int]", connection.execute(_RENUMBER, (number,)).fetchone())
        connection.execute(_REPLACE, (*row, number))
        add_words(connection, number, item)

    def _add_missing_words(self, connection: sqlite3.Connection) -> int:
        """Give words to some rows of those that have none; return how many rows."""
        rows = cast("list[tuple[int, bytes]]", connection.execute(_LIST_UNWORDED, (_WORDED_A_WRITE,)).fetchall())
        for number, body in rows:
            # What can't be read is found by no word, and whoever reads the item is told.
            with contextlib.suppress(StoreError):
                add_words(connection, number, self._item(body))
            connection.execute(_MARK_WORDED, (number,))
        return len(rows)

    def _row(self, item: ContextItem) -> tuple[object, ...]:
        return (
            TENANT,
            item.item_id,
            instant_text(item.created_at),
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
        chosen = (TENANT, query.execution_id, *start, query.definition_id, query.agent_id, limit)
        listed = connection.execute(_LIST_BY_EXECUTION, chosen)
    elif query.definition_id is not None:
        listed = connection.execute(_LIST_BY_DEFINITION, (TENANT, query.definition_id, *start, query.agent_id, limit))
    elif query.agent_id is not None:
        listed = connection.execute(_LIST_BY_AGENT, (TENANT, query.agent_id, *start, limit))
    else:
        listed = connection.execute(_LIST, (TENANT, *start, limit))
    return cast("list[BodyRow]", listed.fetchall())
