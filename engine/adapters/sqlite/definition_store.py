"""Definitions in the embedded database: one row a workflow, one a version; the newest one's tags and agents beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack_definition
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.pages import BEHIND_ALL, BodyRow, page_of, rows_with_labels
from engine.adapters.sqlite.schema import TENANT
from engine.adapters.step_uses import step_uses
from engine.domain.page import Page
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.definition import DefinitionStatus, DefinitionVersion
    from engine.domain.page import Position
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteDefinitionStore"]

_INSERT = """INSERT INTO definitions (tenant, definition_id, version, status, created_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_INSERT_VERSION = "INSERT INTO definition_versions (tenant, definition_id, version, body) VALUES (?, ?, ?, ?)"
_RAISE_VERSION = """UPDATE definitions SET version = ?
    WHERE tenant = ? AND definition_id = ? AND status = 'active' AND version = ?"""
_CREATED_AT = "SELECT created_at FROM definitions WHERE tenant = ? AND definition_id = ?"
_DROP_TAGS = "DELETE FROM definition_tags WHERE tenant = ? AND definition_id = ?"
_ADD_TAG = """INSERT INTO definition_tags (tenant, tag, created_at, definition_id) VALUES (?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_DROP_AGENTS = "DELETE FROM definition_agents WHERE tenant = ? AND definition_id = ?"
_ADD_AGENT = """INSERT INTO definition_agents (tenant, agent_id, definition_id, role, position, step_id, is_clean_up)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_HAS_TAG = "SELECT 1 FROM definition_tags WHERE tenant = ? AND tag = ? AND created_at = ? AND definition_id = ?"
_ARCHIVE = """UPDATE definitions SET status = 'archived', archived_at = ?
    WHERE tenant = ? AND definition_id = ? AND status = 'active'"""
_GET = """SELECT d.status, v.body FROM definitions AS d
    JOIN definition_versions AS v
        ON v.tenant = d.tenant AND v.definition_id = d.definition_id AND v.version = coalesce(?, d.version)
    WHERE d.tenant = ? AND d.definition_id = ?"""
_LIST = """SELECT d.created_at, d.definition_id, v.body FROM definitions AS d
    CROSS JOIN definition_versions AS v
        ON v.tenant = d.tenant AND v.definition_id = d.definition_id AND v.version = d.version
    WHERE d.tenant = ? AND d.status = ? AND (d.created_at, d.definition_id) < (?, ?)
    ORDER BY d.created_at DESC, d.definition_id DESC LIMIT ?"""
_LIST_TAGGED = """SELECT t.created_at, t.definition_id, v.body FROM definition_tags AS t
    CROSS JOIN definitions AS d ON d.tenant = t.tenant AND d.definition_id = t.definition_id
    CROSS JOIN definition_versions AS v
        ON v.tenant = d.tenant AND v.definition_id = d.definition_id AND v.version = d.version
    WHERE t.tenant = ? AND t.tag = ? AND d.status = ? AND (t.created_at, t.definition_id) < (?, ?)
    ORDER BY t.created_at DESC, t.definition_id DESC"""
_LIST_VERSIONS = """SELECT v.version, v.definition_id, v.body, d.status FROM definitions AS d
    CROSS JOIN definition_versions AS v ON v.tenant = d.tenant AND v.definition_id = d.definition_id
    WHERE d.tenant = ? AND d.definition_id = ? AND v.version < ?
    ORDER BY v.version DESC LIMIT ?"""

LIST_STATEMENTS: Final = (_LIST, _LIST_TAGGED, _LIST_VERSIONS)
"""Every statement of a list, so that a test can look at their plans."""

_MAX_VERSION = 2**63 - 1


class SqliteDefinitionStore:
    """A ``DefinitionStore`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_definition(self, version: DefinitionVersion) -> bool:
        """Store version 1 of a new id; False when the id is taken."""
        body = pack(self._codec, version)
        created_at = instant_text(version.created_at)
        key = (TENANT, version.definition_id)

        def insert(connection: sqlite3.Connection) -> bool:
            row = (*key, version.version, version.status, created_at)
            if connection.execute(_INSERT, row).rowcount == 0:
                return False
            connection.execute(_INSERT_VERSION, (*key, version.version, body))
            _set_tags(connection, version, created_at)
            _set_agents(connection, version)
            return True

        return await self._database.write(insert)

    async def append_version(self, version: DefinitionVersion) -> bool:
        """Store the next version of an active definition; False when somebody else was first, or it is not active."""
        body = pack(self._codec, version)
        key = (TENANT, version.definition_id)

        def append(connection: sqlite3.Connection) -> bool:
            if connection.execute(_RAISE_VERSION, (version.version, *key, version.version - 1)).rowcount == 0:
                return False
            connection.execute(_INSERT_VERSION, (*key, version.version, body))
            (created_at,) = cast("tuple[str]", connection.execute(_CREATED_AT, key).fetchone())
            connection.execute(_DROP_TAGS, key)
            _set_tags(connection, version, created_at)
            connection.execute(_DROP_AGENTS, key)
            _set_agents(connection, version)
            return True

        return await self._database.write(append)

    async def get_definition(self, definition_id: str, version: int | None = None) -> DefinitionVersion | None:
        """Return that version, or the newest; None when there is none."""

        def get(connection: sqlite3.Connection) -> DefinitionVersion | None:
            row = cast(
                "tuple[DefinitionStatus, bytes] | None",
                connection.execute(_GET, (version, TENANT, definition_id)).fetchone(),
            )
            return None if row is None else self._decode(row[1], row[0])

        return await self._database.read(get)

    async def list_definitions(
        self, *, tags: list[str], status: DefinitionStatus, limit: int, after: Position | None
    ) -> Page[DefinitionVersion]:
        """Return newest versions with all ``tags``, latest created workflow first."""
        start = after or BEHIND_ALL

        def list_page(connection: sqlite3.Connection) -> Page[DefinitionVersion]:
            if tags:
                candidates = connection.execute(_LIST_TAGGED, (TENANT, tags[0], status, *start))
                rows = rows_with_labels(connection, candidates, has_label=_HAS_TAG, labels=tags[1:], limit=limit)
            else:
                listed = connection.execute(_LIST, (TENANT, status, *start, limit + 1))
                rows = cast("list[BodyRow]", listed.fetchall())
            return page_of(rows, limit, lambda row: self._decode(row[2], status))

        return await self._database.read(list_page)

    async def list_versions(self, definition_id: str, *, limit: int, after: Position | None) -> Page[DefinitionVersion]:
        """Return the versions of one id, newest first."""
        below = _MAX_VERSION if after is None else _version_in(after)

        def list_page(connection: sqlite3.Connection) -> Page[DefinitionVersion]:
            listed = connection.execute(_LIST_VERSIONS, (TENANT, definition_id, below, limit + 1))
            rows = cast("list[tuple[int, str, bytes, DefinitionStatus]]", listed.fetchall())
            items = [self._decode(body, status) for _, _, body, status in rows[:limit]]
            if len(rows) <= limit:
                return Page(items)
            return Page(items, (str(rows[limit - 1][0]), definition_id))

        return await self._database.read(list_page)

    async def archive_definition(self, definition_id: str, at: datetime) -> bool:
        """Mark it archived; False when unknown or archived before."""
        row = (instant_text(at), TENANT, definition_id)
        return await self._database.write(lambda connection: connection.execute(_ARCHIVE, row).rowcount == 1)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _decode(self, body: bytes, status: DefinitionStatus) -> DefinitionVersion:
        version = unpack_definition(self._codec, body)
        return version if version.status == status else version.model_copy(update={"status": status})


def _set_tags(connection: sqlite3.Connection, version: DefinitionVersion, created_at: str) -> None:
    for tag in version.definition.tags:
        connection.execute(_ADD_TAG, (TENANT, tag, created_at, version.definition_id))


def _set_agents(connection: sqlite3.Connection, version: DefinitionVersion) -> None:
    steps = list(step_uses(version.definition))
    called = [
        (TENANT, callee.agent_id, version.definition_id, "agent", uses.position, uses.step.id, callee.is_clean_up)
        for uses in steps
        for callee in uses.callees
    ]
    fallen_back_to = [
        (TENANT, agent_id, version.definition_id, "fallback", uses.position, uses.step.id, False)
        for uses in steps
        for agent_id in dict.fromkeys(uses.fallbacks)
    ]
    connection.executemany(_ADD_AGENT, called + fallen_back_to)


def _version_in(position: Position) -> int:
    version = int(position[0]) if position[0].isdecimal() and len(position[0]) < len(str(_MAX_VERSION)) else 0
    if version == 0:
        raise InvalidInputError(
            "The cursor names no version; pass next_cursor of the page before, or none to start over",
            {"path": "cursor"},
        )
    return version
