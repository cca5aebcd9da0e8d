"""Agents in the embedded database: one row an agent, one a version, the newest version's capabilities beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.pages import BEHIND_ALL, BodyRow, page_of, rows_with_labels
from engine.adapters.sqlite.schema import TENANT
from engine.domain.agent import Agent

if TYPE_CHECKING:
    import sqlite3

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.agent import AgentStatus
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteAgentStore"]

_INSERT = """INSERT INTO agents (tenant, agent_id, version, status, created_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_INSERT_VERSION = "INSERT INTO agent_versions (tenant, agent_id, version, body) VALUES (?, ?, ?, ?)"
_RAISE_VERSION = "UPDATE agents SET version = ?, status = ? WHERE tenant = ? AND agent_id = ? AND version = ?"
_CREATED_AT = "SELECT created_at FROM agents WHERE tenant = ? AND agent_id = ?"
_DROP_CAPABILITIES = "DELETE FROM agent_capabilities WHERE tenant = ? AND agent_id = ?"
_ADD_CAPABILITY = """INSERT INTO agent_capabilities (tenant, capability, created_at, agent_id) VALUES (?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_HAS_CAPABILITY = """SELECT 1 FROM agent_capabilities
    WHERE tenant = ? AND capability = ? AND created_at = ? AND agent_id = ?"""
_GET = """SELECT v.body FROM agents AS a
    JOIN agent_versions AS v
        ON v.tenant = a.tenant AND v.agent_id = a.agent_id AND v.version = coalesce(?, a.version)
    WHERE a.tenant = ? AND a.agent_id = ?"""
_LIST = """SELECT a.created_at, a.agent_id, v.body FROM agents AS a
    CROSS JOIN agent_versions AS v ON v.tenant = a.tenant AND v.agent_id = a.agent_id AND v.version = a.version
    WHERE a.tenant = ? AND (a.created_at, a.agent_id) < (?, ?)
    ORDER BY a.created_at DESC, a.agent_id DESC LIMIT ?"""
_LIST_BY_STATUS = """SELECT a.created_at, a.agent_id, v.body FROM agents AS a
    CROSS JOIN agent_versions AS v ON v.tenant = a.tenant AND v.agent_id = a.agent_id AND v.version = a.version
    WHERE a.tenant = ? AND a.status = ? AND (a.created_at, a.agent_id) < (?, ?)
    ORDER BY a.created_at DESC, a.agent_id DESC LIMIT ?"""
_LIST_CAPABLE = """SELECT c.created_at, c.agent_id, v.body FROM agent_capabilities AS c
    CROSS JOIN agents AS a ON a.tenant = c.tenant AND a.agent_id = c.agent_id
    CROSS JOIN agent_versions AS v ON v.tenant = a.tenant AND v.agent_id = a.agent_id AND v.version = a.version
    WHERE c.tenant = ? AND c.capability = ? AND a.status = coalesce(?, a.status)
        AND (c.created_at, c.agent_id) < (?, ?)
    ORDER BY c.created_at DESC, c.agent_id DESC"""

LIST_STATEMENTS: Final = (_LIST, _LIST_BY_STATUS, _LIST_CAPABLE)
"""Every statement of a list, so that a test can look at their plans."""


class SqliteAgentStore:
    """An ``AgentStore`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_agent(self, agent: Agent) -> bool:
        """Store version 1 of a new id; False when the id is taken."""
        body = pack(self._codec, agent)
        created_at = instant_text(agent.created_at)
        key = (TENANT, agent.agent_id)

        def insert(connection: sqlite3.Connection) -> bool:
            if connection.execute(_INSERT, (*key, agent.version, agent.status, created_at)).rowcount == 0:
                return False
            connection.execute(_INSERT_VERSION, (*key, agent.version, body))
            _set_capabilities(connection, agent, created_at)
            return True

        return await self._database.write(insert)

    async def append_agent(self, agent: Agent) -> bool:
        """Store the next version; False when somebody else was first or the id is unknown."""
        body = pack(self._codec, agent)
        key = (TENANT, agent.agent_id)

        def append(connection: sqlite3.Connection) -> bool:
            raised = connection.execute(_RAISE_VERSION, (agent.version, agent.status, *key, agent.version - 1))
            if raised.rowcount == 0:
                return False
            connection.execute(_INSERT_VERSION, (*key, agent.version, body))
            (created_at,) = cast("tuple[str]", connection.execute(_CREATED_AT, key).fetchone())
            connection.execute(_DROP_CAPABILITIES, key)
            _set_capabilities(connection, agent, created_at)
            return True

        return await self._database.write(append)

    async def get_agent(self, agent_id: str, version: int | None = None) -> Agent | None:
        """Return that version, or the newest; None when there is none."""
        return await self._database.read(lambda connection: self._get(connection, agent_id, version))

    async def get_agents(self, agent_ids: list[str]) -> dict[str, Agent]:
        """Return the newest versions of those ids that exist, by id."""

        def get_all(connection: sqlite3.Connection) -> dict[str, Agent]:
            found = {agent_id: self._get(connection, agent_id, None) for agent_id in agent_ids}
            return {agent_id: agent for agent_id, agent in found.items() if agent is not None}

        return await self._database.read(get_all)

    async def list_agents(
        self, *, capabilities: list[str], status: AgentStatus | None, limit: int, after: Position | None
    ) -> Page[Agent]:
        """Return newest versions that have all ``capabilities``, latest created agent first."""
        start = after or BEHIND_ALL

        def list_page(connection: sqlite3.Connection) -> Page[Agent]:
            if capabilities:
                candidates = connection.execute(_LIST_CAPABLE, (TENANT, capabilities[0], status, *start))
                rows = rows_with_labels(
                    connection, candidates, has_label=_HAS_CAPABILITY, labels=capabilities[1:], limit=limit
                )
            else:
                listed = (
                    connection.execute(_LIST, (TENANT, *start, limit + 1))
                    if status is None
                    else connection.execute(_LIST_BY_STATUS, (TENANT, status, *start, limit + 1))
                )
                rows = cast("list[BodyRow]", listed.fetchall())
            return page_of(rows, limit, lambda row: unpack(self._codec, Agent, row[2]))

        return await self._database.read(list_page)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _get(self, connection: sqlite3.Connection, agent_id: str, version: int | None) -> Agent | None:
        row = cast("tuple[bytes] | None", connection.execute(_GET, (version, TENANT, agent_id)).fetchone())
        return None if row is None else unpack(self._codec, Agent, row[0])


def _set_capabilities(connection: sqlite3.Connection, agent: Agent, created_at: str) -> None:
    for capability in agent.capabilities:
        connection.execute(_ADD_CAPABILITY, (TENANT, capability, created_at, agent.agent_id))
