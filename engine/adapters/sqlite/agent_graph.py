"""The same questions as a graph's, to rows: who uses whom is an index beside the definitions' newest versions.

Uses come from several places that are each in order already: the agent's own rows, and those of each partner in a
handoff. They are merged while they are read, so a page costs what it shows.
"""

from __future__ import annotations

import heapq
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from engine.adapters.handoff_paths import paths_between
from engine.adapters.packing import unpack
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.schema import TENANT
from engine.domain.handoff import Handoff
from engine.domain.page import Page
from engine.ports.agent_graph import AgentUse

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.adapters.sqlite.pages import BodyRow
    from engine.domain.page import Position
    from engine.ports.agent_graph import AgentRole
    from engine.ports.health import StoreHealth

__all__ = ["LIST_STATEMENTS", "SqliteAgentGraph"]

_UseRow: TypeAlias = "tuple[str, AgentRole, int, str]"
"""Definition's id, role, place of the step in its definition, step's id."""

_USES: Final = """SELECT u.definition_id, u.role, u.position, u.step_id FROM definition_agents AS u
    CROSS JOIN definitions AS d ON d.tenant = u.tenant AND d.definition_id = u.definition_id
    WHERE u.tenant = ? AND u.agent_id = ? AND (u.definition_id, u.role) > (?, ?) AND d.status = 'active'
    ORDER BY u.definition_id, u.role, u.position"""
# The plus keeps the role out of the search, so that the index's order is that of the rows.
_PARTNERS_USES: Final = """SELECT u.definition_id, 'handoff', u.position, u.step_id FROM definition_agents AS u
    CROSS JOIN definitions AS d ON d.tenant = u.tenant AND d.definition_id = u.definition_id
    WHERE u.tenant = ? AND u.agent_id = ? AND u.definition_id >= ? AND +u.role = 'agent' AND u.is_clean_up = 0
        AND d.status = 'active'
    ORDER BY u.definition_id, u.role, u.position"""
_PARTNERS_USES_IN: Final = """SELECT u.definition_id, 'handoff', u.position, u.step_id FROM definition_agents AS u
    CROSS JOIN definitions AS d ON d.tenant = u.tenant AND d.definition_id = u.definition_id
    WHERE u.tenant = ? AND u.agent_id = ? AND u.definition_id = ? AND u.role = 'agent' AND u.is_clean_up = 0
        AND d.status = 'active'
    ORDER BY u.definition_id, u.role, u.position"""
_TARGETS: Final = """SELECT target_agent_id, definition_id FROM handoffs INDEXED BY handoffs_by_source
    WHERE tenant = ? AND status = 'active' AND source_agent_id = ?"""
_SOURCES: Final = """SELECT source_agent_id, definition_id FROM handoffs INDEXED BY handoffs_by_target
    WHERE tenant = ? AND status = 'active' AND target_agent_id = ?"""
_HANDOFFS_FROM: Final = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_source
    WHERE tenant = ? AND status = 'active' AND source_agent_id = ?"""
_HANDOFFS_TO: Final = """SELECT created_at, handoff_id, body FROM handoffs INDEXED BY handoffs_by_target
    WHERE tenant = ? AND status = 'active' AND target_agent_id = ?"""
_ACTIVE_TARGETS: Final = """SELECT h.target_agent_id FROM agents AS s
    CROSS JOIN handoffs AS h INDEXED BY handoffs_by_source
        ON h.tenant = s.tenant AND h.status = 'active' AND h.source_agent_id = s.agent_id
    CROSS JOIN agents AS t ON t.tenant = h.tenant AND t.agent_id = h.target_agent_id
    WHERE s.tenant = ? AND s.agent_id = ? AND s.status = 'active' AND t.status = 'active'"""

LIST_STATEMENTS: Final = (
    _USES,
    _PARTNERS_USES,
    _PARTNERS_USES_IN,
    _TARGETS,
    _SOURCES,
    _HANDOFFS_FROM,
    _HANDOFFS_TO,
    _ACTIVE_TARGETS,
)
"""Every statement of a list, so that a test can look at their plans."""


class SqliteAgentGraph:
    """An ``AgentGraph`` on an embedded database, which it does not own.

    An agent may be asked about whatever its status is. All on a path are active.
    """

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def list_agent_uses(self, agent_id: str, *, limit: int, after: Position | None) -> Page[AgentUse]:
        """Return the workflows that use an agent, one entry a role, by ``(definition_id, role)``."""
        start = after or ("", "")

        def list_page(connection: sqlite3.Connection) -> list[AgentUse]:
            rows = heapq.merge(*_use_streams(connection, agent_id, start))
            groups = groupby(rows, key=lambda row: row[:2])
            return [
                AgentUse(definition_id, role, tuple(row[3] for row in uses))
                for (definition_id, role), uses in islice(groups, limit + 1)
            ]

        uses = await self._database.read(list_page)
        if len(uses) <= limit:
            return Page(uses)
        last = uses[limit - 1]
        return Page(uses[:limit], (last.definition_id, last.role))

    async def list_agent_handoffs(self, agent_id: str) -> list[Handoff]:
        """Return the handoffs from or to an agent, oldest first."""

        def list_all(connection: sqlite3.Connection) -> list[Handoff]:
            key = (TENANT, agent_id)
            found = chain(connection.execute(_HANDOFFS_FROM, key), connection.execute(_HANDOFFS_TO, key))
            rows = sorted(set(cast("Iterator[BodyRow]", found)))
            return [unpack(self._codec, Handoff, body) for _, _, body in rows]

        return await self._database.read(list_all)

    async def find_handoff_paths(
        self, source_agent_id: str, target_agent_id: str, *, max_hops: int, limit: int
    ) -> list[list[str]]:
        """Return paths of agent ids along handoffs, shortest first, then by their ids."""

        def find(connection: sqlite3.Connection) -> list[list[str]]:
            targets_of: dict[str, list[str]] = {}
            frontier = {source_agent_id}
            for _ in range(max_hops):
                for agent_id in frontier:
                    rows = connection.execute(_ACTIVE_TARGETS, (TENANT, agent_id)).fetchall()
                    targets_of[agent_id] = list(dict.fromkeys(target for (target,) in cast("list[tuple[str]]", rows)))
                reached = {taker for agent_id in frontier for taker in targets_of[agent_id]}
                frontier = reached - targets_of.keys() - {target_agent_id}
            return paths_between(targets_of, source_agent_id, target_agent_id, max_hops=max_hops, limit=limit)

        return await self._database.read(find)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)


def _use_streams(connection: sqlite3.Connection, agent_id: str, start: Position) -> Iterator[Iterator[_UseRow]]:
    """Give rows behind ``start``, each stream in order and no row in two of them."""
    start_id, start_role = start
    yield cast("Iterator[_UseRow]", connection.execute(_USES, (TENANT, agent_id, start_id, start_role)))
    for partner, bound_to in _partners(connection, agent_id).items():
        if None in bound_to:
            found = [connection.execute(_PARTNERS_USES, (TENANT, partner, start_id))]
        else:
            among = [chosen for chosen in bound_to if chosen is not None and chosen >= start_id]
            found = [connection.execute(_PARTNERS_USES_IN, (TENANT, partner, chosen)) for chosen in among]
        for rows in found:
            yield (row for row in cast("Iterator[_UseRow]", rows) if row[:2] > start)


def _partners(connection: sqlite3.Connection, agent_id: str) -> dict[str, set[str | None]]:
    """Return the other sides of an agent's handoffs, each with the workflows to which these are bound; None: all."""
    partners: dict[str, set[str | None]] = {}
    key = (TENANT, agent_id)
    found = chain(connection.execute(_TARGETS, key), connection.execute(_SOURCES, key))
    for partner, definition_id in cast("Iterator[tuple[str, str | None]]", found):
        partners.setdefault(partner, set()).add(definition_id)
    return partners
