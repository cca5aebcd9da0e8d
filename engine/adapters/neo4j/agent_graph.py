"""Questions to the graph, each read from an index in the order of its page.

Uses are put together here from the agent's own steps and those of its partners in handoffs: one statement for all
would collect and sort the whole of them. Paths are found hop by hop, see ``handoff_paths``.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

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

_CALLED: Final = """MATCH (s:Step)-[u:USES_AGENT]->(:Agent)
    USING INDEX SEEK u:USES_AGENT(tenant, agent_id, workflow_id)
    WHERE u.tenant = $tenant AND u.agent_id = $id AND u.workflow_id >= $first AND u.workflow_id <= $last
        AND CASE WHEN u.workflow_id = $after THEN $is_after_inclusive ELSE true END
    MATCH (w:Workflow {tenant: $tenant, id: u.workflow_id}) WHERE w.status = 'active'
    WITH u.tenant AS tenant, u.agent_id AS agent_id, u.workflow_id AS workflow_id,
        collect([s.position, s.step_id]) AS steps
    ORDER BY tenant, agent_id, workflow_id LIMIT $count
    RETURN workflow_id, steps"""
_FALLEN_BACK_TO: Final = """MATCH (s:Step)-[f:FALLS_BACK_TO]->(:Agent)
    USING INDEX SEEK f:FALLS_BACK_TO(tenant, agent_id, workflow_id)
    WHERE f.tenant = $tenant AND f.agent_id = $id AND f.workflow_id >= $first AND f.workflow_id <= $last
        AND CASE WHEN f.workflow_id = $after THEN $is_after_inclusive ELSE true END
    MATCH (w:Workflow {tenant: $tenant, id: f.workflow_id}) WHERE w.status = 'active'
    WITH f.tenant AS tenant, f.agent_id AS agent_id, f.workflow_id AS workflow_id,
        collect([s.position, s.step_id]) AS steps
    ORDER BY tenant, agent_id, workflow_id LIMIT $count
    RETURN workflow_id, steps"""
_HANDED_OVER: Final = """MATCH (s:Step)-[u:USES_AGENT]->(:Agent)
    USING INDEX SEEK u:USES_AGENT(tenant, agent_id, workflow_id)
    WHERE u.tenant = $tenant AND u.agent_id = $id AND u.workflow_id >= $first AND u.workflow_id <= $last
        AND CASE WHEN u.workflow_id = $after THEN $is_after_inclusive ELSE true END AND NOT u.is_clean_up
    MATCH (w:Workflow {tenant: $tenant, id: u.workflow_id}) WHERE w.status = 'active'
    WITH u.tenant AS tenant, u.agent_id AS agent_id, u.workflow_id AS workflow_id,
        collect([s.position, s.step_id]) AS steps
    ORDER BY tenant, agent_id, workflow_id LIMIT $count
    RETURN workflow_id, steps"""
_PARTNERS: Final = """MATCH (:Agent {tenant: $tenant, id: $id})-[h:HANDS_OFF_TO]-(other:Agent) WHERE h.status = 'active'
    RETURN DISTINCT other.id AS partner_id, h.definition_id AS bound_to"""
_HANDOFFS: Final = """MATCH (:Agent {tenant: $tenant, id: $id})-[h:HANDS_OFF_TO]-(:Agent) WHERE h.status = 'active'
    WITH DISTINCT h RETURN h.body AS body ORDER BY h.created_at, h.id"""
_TARGETS: Final = """UNWIND $ids AS id
    MATCH (a:Agent {tenant: $tenant, id: id})-[h:HANDS_OFF_TO]->(b:Agent)
    WHERE a.status = 'active' AND h.status = 'active' AND b.status = 'active'
    RETURN id, collect(DISTINCT b.id) AS target_ids"""
_BEHIND_ALL_IDS: Final = "\U0010ffff"
_EXTRA_TIME: Final = timedelta(seconds=0.8)
"""For a question of several statements."""

READ_STATEMENTS: Final = (_CALLED, _FALLEN_BACK_TO, _HANDED_OVER, _PARTNERS, _HANDOFFS, _TARGETS)
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
        start = after or ("", "")

        async def list_page(tx: AsyncManagedTransaction) -> list[AgentUse]:
            uses = [
                *await _uses(tx, _CALLED, "agent", [_Span(agent_id)], start, limit),
                *await _uses(tx, _FALLEN_BACK_TO, "fallback", [_Span(agent_id)], start, limit),
                *await _uses(tx, _HANDED_OVER, "handoff", await _partners(tx, agent_id), start, limit),
            ]
            return heapq.nsmallest(limit + 1, uses, key=lambda use: (use.definition_id, use.role))

        uses = await self._database.read(list_page, _EXTRA_TIME)
        if len(uses) <= limit:
            return Page(uses)
        last = uses[limit - 1]
        return Page(uses[:limit], (last.definition_id, last.role))

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

        targets_of = await self._database.read(look_around, _EXTRA_TIME)
        # In a dense graph this takes long enough to be felt by others on the loop.
        return await asyncio.to_thread(
            paths_between, targets_of, source_agent_id, target_agent_id, max_hops=max_hops, limit=limit
        )

    async def check_health(self) -> StoreHealth:
        """Make one round trip."""
        return await self._database.check_health()


@dataclass(frozen=True, slots=True)
class _Span:
    """An agent's steps in workflows from ``first`` to ``last``."""

    agent_id: str
    first: str = ""
    last: str = _BEHIND_ALL_IDS


async def _partners(tx: AsyncManagedTransaction, agent_id: str) -> list[_Span]:
    """Return what the other sides of an agent's handoffs do in the workflows for which these hold."""
    rows = await rows_of(tx, _PARTNERS, tenant=TENANT, id=agent_id)
    bounds = {(row["partner_id"], row["bound_to"]) for row in rows}
    return [
        _Span(partner_id) if bound_to is None else _Span(partner_id, bound_to, bound_to)
        for partner_id, bound_to in bounds
    ]


async def _uses(
    tx: AsyncManagedTransaction,
    statement: LiteralString,
    role: AgentRole,
    spans: list[_Span],
    start: Position,
    limit: int,
) -> list[AgentUse]:
    """Return the first ``limit + 1`` uses in a role behind ``start``."""
    after_id, after_role = start
    steps_of: dict[str, set[tuple[int, str]]] = {}
    for span in spans:
        if span.last < after_id:
            continue
        bounds = {"first": max(span.first, after_id), "last": span.last, "count": limit + 1}
        place = {"after": after_id, "is_after_inclusive": role > after_role}
        for row in await rows_of(tx, statement, tenant=TENANT, id=span.agent_id, **bounds, **place):
            steps_of.setdefault(row["workflow_id"], set()).update((step[0], step[1]) for step in row["steps"])
    return [
        AgentUse(workflow_id, role, tuple(step_id for _, step_id in sorted(steps_of[workflow_id])))
        for workflow_id in sorted(steps_of)[: limit + 1]
    ]
