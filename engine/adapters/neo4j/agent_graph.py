"""Questions to the graph, each by one hop or two from an agent's node.

Uses in each role are a statement of their own with a page's limit, put together here: one for all would sort the
whole of them. Paths are found hop by hop, see ``handoff_paths``.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.adapters.handoff_paths import paths_between
from engine.adapters.neo4j.database import rows_of
from engine.adapters.neo4j.schema import TENANT
from engine.adapters.packing import unpack
from engine.domain.handoff import Handoff
from engine.domain.page import Page
from engine.ports.agent_graph import AgentUse

if TYPE_CHECKING:
    from typing import LiteralString

    from neo4j import AsyncManagedTransaction

    from engine.adapters.codec import Codec
    from engine.adapters.neo4j.database import Neo4jDatabase
    from engine.domain.page import Position
    from engine.ports.agent_graph import AgentRole
    from engine.ports.health import StoreHealth

__all__ = ["READ_STATEMENTS", "Neo4jAgentGraph"]

_USED: Final = """MATCH (:Agent {tenant: $tenant, id: $id})<-[:USES_AGENT]-(s:Step)
    WHERE s.workflow_id > $after OR ($is_after_inclusive AND s.workflow_id = $after)
    MATCH (w:Workflow {tenant: $tenant, id: s.workflow_id}) WHERE w.status = 'active'
    WITH s ORDER BY s.workflow_id, s.position
    RETURN s.workflow_id AS workflow_id, collect(s.step_id) AS step_ids ORDER BY workflow_id LIMIT $count"""
_FALLEN_BACK_TO: Final = """MATCH (:Agent {tenant: $tenant, id: $id})<-[:FALLS_BACK_TO]-(s:Step)
    WHERE s.workflow_id > $after OR ($is_after_inclusive AND s.workflow_id = $after)
    MATCH (w:Workflow {tenant: $tenant, id: s.workflow_id}) WHERE w.status = 'active'
    WITH s ORDER BY s.workflow_id, s.position
    RETURN s.workflow_id AS workflow_id, collect(s.step_id) AS step_ids ORDER BY workflow_id LIMIT $count"""
_HANDED: Final = """MATCH (:Agent {tenant: $tenant, id: $id})-[h:HANDS_OFF_TO]-(other:Agent) WHERE h.status = 'active'
    WITH DISTINCT other, h.definition_id AS bound_to
    MATCH (other)<-[:USES_AGENT]-(s:Step)
    WHERE CASE WHEN bound_to IS NULL THEN true ELSE s.workflow_id = bound_to END
        AND (s.workflow_id > $after OR ($is_after_inclusive AND s.workflow_id = $after))
    WITH DISTINCT s
    MATCH (w:Workflow {tenant: $tenant, id: s.workflow_id}) WHERE w.status = 'active'
    WITH s ORDER BY s.workflow_id, s.position
    RETURN s.workflow_id AS workflow_id, collect(s.step_id) AS step_ids ORDER BY workflow_id LIMIT $count"""
_HANDOFFS: Final = """MATCH (:Agent {tenant: $tenant, id: $id})-[h:HANDS_OFF_TO]-(:Agent) WHERE h.status = 'active'
    WITH DISTINCT h RETURN h.body AS body ORDER BY h.created_at, h.id"""
_TARGETS: Final = """UNWIND $ids AS id
    MATCH (a:Agent {tenant: $tenant, id: id})-[h:HANDS_OFF_TO]->(b:Agent)
    WHERE a.status = 'active' AND h.status = 'active' AND b.status = 'active'
    RETURN id, collect(DISTINCT b.id) AS target_ids"""
_STATEMENT_OF: Final[dict[AgentRole, LiteralString]] = {
    "agent": _USED,
    "fallback": _FALLEN_BACK_TO,
    "handoff": _HANDED,
}

_UseRow: TypeAlias = "tuple[str, AgentRole, list[str]]"
"""Workflow's id, role, steps' ids."""

READ_STATEMENTS: Final = (_USED, _FALLEN_BACK_TO, _HANDED, _HANDOFFS, _TARGETS)
"""Every statement of a read, so that a test can look at their plans."""


class Neo4jAgentGraph:
    """An ``AgentGraph`` on a Neo4j server, which it does not own.

    An agent may be asked about whatever its status is. All on a path are active.
    """

    def __init__(self, database: Neo4jDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def list_agent_uses(self, agent_id: str, *, limit: int, after: Position | None) -> Page[AgentUse]:
        """Return the workflows that use an agent, one entry a role, by ``(definition_id, role)``."""
        after_id, after_role = after or ("", "")

        async def list_page(tx: AsyncManagedTransaction) -> list[_UseRow]:
            found: list[_UseRow] = []
            for role, statement in _STATEMENT_OF.items():
                place = {"after": after_id, "is_after_inclusive": role > after_role, "count": limit + 1}
                rows = await rows_of(tx, statement, tenant=TENANT, id=agent_id, **place)
                found.extend((row["workflow_id"], role, row["step_ids"]) for row in rows)
            return heapq.nsmallest(limit + 1, found)

        rows = await self._database.read(list_page)
        uses = [AgentUse(definition_id, role, tuple(step_ids)) for definition_id, role, step_ids in rows[:limit]]
        return Page(uses, (uses[-1].definition_id, uses[-1].role) if len(rows) > limit else None)

    async def list_agent_handoffs(self, agent_id: str) -> list[Handoff]:
        """Return the handoffs from or to an agent, oldest first."""

        async def list_bodies(tx: AsyncManagedTransaction) -> list[bytes]:
            return [row["body"] for row in await rows_of(tx, _HANDOFFS, tenant=TENANT, id=agent_id)]

        return [unpack(self._codec, Handoff, body) for body in await self._database.read(list_bodies)]

    async def find_handoff_paths(
        self, source_agent_id: str, target_agent_id: str, *, max_hops: int, limit: int
    ) -> list[list[str]]:
        """Return paths of agent ids along handoffs, shortest first, then by their ids."""

        async def look_around(tx: AsyncManagedTransaction) -> dict[str, list[str]]:
            targets_of: dict[str, list[str]] = {}
            frontier = [source_agent_id]
            for _ in range(max_hops):
                rows = await rows_of(tx, _TARGETS, tenant=TENANT, ids=frontier)
                found: dict[str, list[str]] = {row["id"]: row["target_ids"] for row in rows}
                targets_of.update((agent_id, found.get(agent_id, [])) for agent_id in frontier)
                reached = {taker for agent_id in frontier for taker in targets_of[agent_id]}
                frontier = sorted(reached - targets_of.keys() - {target_agent_id})
                if not frontier:
                    break
            return targets_of

        targets_of = await self._database.read(look_around)
        # In a dense graph this takes long enough to be felt by others on the loop.
        return await asyncio.to_thread(
            paths_between, targets_of, source_agent_id, target_agent_id, max_hops=max_hops, limit=limit
        )

    async def check_health(self) -> StoreHealth:
        """Make one round trip."""
        return await self._database.check_health()
