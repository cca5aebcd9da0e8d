"""Handoffs in the embedded database: one row each, listed in the order in which they were created."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.pages import BEFORE_ALL, BodyRow, page_of
from engine.adapters.sqlite.schema import TENANT
from engine.domain.handoff import Handoff

if TYPE_CHECKING:
    import sqlite3

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteHandoffStore"]

_INSERT = """INSERT INTO handoffs
    (tenant, handoff_id, status, source_agent_id, target_agent_id, definition_id, created_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_GET = "SELECT body FROM handoffs WHERE tenant = ? AND handoff_id = ?"
_LIST = """SELECT created_at, handoff_id, body FROM handoffs
    WHERE tenant = ? AND status = 'active' AND (created_at, handoff_id) > (?, ?)
    ORDER BY created_at, handoff_id LIMIT ?"""
_LIST_BY_SOURCE = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_source
    WHERE tenant = ? AND status = 'active' AND source_agent_id = ? AND (created_at, handoff_id) > (?, ?)
        AND target_agent_id = coalesce(?, target_agent_id) AND (? IS NULL OR definition_id = ?)
    ORDER BY created_at, handoff_id LIMIT ?"""
_LIST_BY_TARGET = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_target
    WHERE tenant = ? AND status = 'active' AND target_agent_id = ? AND (created_at, handoff_id) > (?, ?)
        AND (? IS NULL OR definition_id = ?)
    ORDER BY created_at, handoff_id LIMIT ?"""
_LIST_BY_DEFINITION = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_definition
    WHERE tenant = ? AND status = 'active' AND definition_id = ? AND (created_at, handoff_id) > (?, ?)
    ORDER BY created_at, handoff_id LIMIT ?"""
_LIST_AMONG = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_source
    WHERE tenant = ? AND status = 'active' AND source_agent_id = ? AND (definition_id IS NULL OR definition_id = ?)"""

LIST_STATEMENTS: Final = (_LIST, _LIST_BY_SOURCE, _LIST_BY_TARGET, _LIST_BY_DEFINITION, _LIST_AMONG)
"""Every statement of a list, so that a test can look at their plans."""


class SqliteHandoffStore:
    """A ``HandoffStore`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_handoff(self, handoff: Handoff) -> bool:
        """Store a new handoff; False when the id is taken."""
        row = (
            TENANT,
            handoff.handoff_id,
            handoff.status,
            handoff.source_agent_id,
            handoff.target_agent_id,
            handoff.definition_id,
            instant_text(handoff.created_at),
            pack(self._codec, handoff),
        )
        return await self._database.write(lambda connection: connection.execute(_INSERT, row).rowcount == 1)

    async def get_handoff(self, handoff_id: str) -> Handoff | None:
        """Return it, or None."""

        def get(connection: sqlite3.Connection) -> Handoff | None:
            row = cast("tuple[bytes] | None", connection.execute(_GET, (TENANT, handoff_id)).fetchone())
            return None if row is None else self._decode(row[0])

        return await self._database.read(get)

    async def list_handoffs(
        self,
        *,
        source_agent_id: str | None,
        target_agent_id: str | None,
        definition_id: str | None,
        limit: int,
        after: Position | None,
    ) -> Page[Handoff]:
        """Return active handoffs, oldest first."""
        start = after or BEFORE_ALL

        def list_page(connection: sqlite3.Connection) -> Page[Handoff]:
            bound = (definition_id, definition_id, limit + 1)
            if source_agent_id is not None:
                chosen = (TENANT, source_agent_id, *start, target_agent_id, *bound)
                listed = connection.execute(_LIST_BY_SOURCE, chosen)
            elif target_agent_id is not None:
                listed = connection.execute(_LIST_BY_TARGET, (TENANT, target_agent_id, *start, *bound))
            elif definition_id is not None:
                listed = connection.execute(_LIST_BY_DEFINITION, (TENANT, definition_id, *start, limit + 1))
            else:
                listed = connection.execute(_LIST, (TENANT, *start, limit + 1))
            return page_of(cast("list[BodyRow]", listed.fetchall()), limit, lambda row: self._decode(row[2]))

        return await self._database.read(list_page)

    async def list_handoffs_among(self, agent_ids: list[str], definition_id: str) -> list[Handoff]:
        """Return active handoffs from one of ``agent_ids`` that hold for this workflow, oldest first."""

        def list_all(connection: sqlite3.Connection) -> list[Handoff]:
            rows: list[BodyRow] = []
            for agent_id in dict.fromkeys(agent_ids):
                rows += cast(
                    "list[BodyRow]", connection.execute(_LIST_AMONG, (TENANT, agent_id, definition_id)).fetchall()
                )
            rows.sort(key=lambda row: row[:2])
            return [self._decode(body) for _, _, body in rows]

        return await self._database.read(list_all)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _decode(self, body: bytes) -> Handoff:
        return unpack(self._codec, Handoff, body)
