"""Agents in the graph: a node an agent, one a version with its packed body, the newest version's capabilities.

An agent's node may be there before the agent is, because definitions and handoffs name agents that come later; it has
no head until then. Retried writes know themselves by a token, as those of definitions do.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from engine.adapters.neo4j.database import first_of, rows_of
from engine.adapters.neo4j.pages import BEHIND_ALL, page_of
from engine.adapters.neo4j.schema import TENANT
from engine.adapters.packing import instant_text, pack, unpack
from engine.domain.agent import Agent

if TYPE_CHECKING:
    from neo4j import AsyncManagedTransaction, Record

    from engine.adapters.codec import Codec
    from engine.adapters.neo4j.database import Neo4jDatabase
    from engine.domain.agent import AgentStatus
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["READ_STATEMENTS", "Neo4jAgentStore"]

_CLAIM: Final = """MERGE (a:Agent {tenant: $tenant, id: $id}) SET a.tenant = $tenant
    RETURN a.head AS head, a.token AS token"""
_LOCK: Final = """MATCH (a:Agent {tenant: $tenant, id: $id}) SET a.tenant = $tenant
    WITH a OPTIONAL MATCH (v:AgentVersion {tenant: $tenant, agent_id: $id, version: $version})
    RETURN a.head AS head, a.created_at AS created_at, v.token AS token"""
_PUT_VERSION: Final = """MATCH (a:Agent {tenant: $tenant, id: $id})
    SET a.head = $version, a.status = $status, a.created_at = $created_at, a.token = coalesce(a.token, $token)
    MERGE (v:AgentVersion {tenant: $tenant, agent_id: $id, version: $version})
    SET v.token = $token, v.body = $body
    MERGE (a)-[:HAS_VERSION]->(v)
    FOREACH (name IN $capabilities |
        MERGE (c:Capability {tenant: $tenant, name: name}) SET c.tenant = $tenant
        CREATE (a)-[:HAS_CAPABILITY {tenant: $tenant, capability: name, created_at: $created_at}]->(c))"""
_DROP_CAPABILITIES: Final = "MATCH (:Agent {tenant: $tenant, id: $id})-[c:HAS_CAPABILITY]->(:Capability) DELETE c"
_GET: Final = """MATCH (a:Agent {tenant: $tenant, id: $id})
    MATCH (v:AgentVersion {tenant: $tenant, agent_id: $id, version: coalesce($version, a.head)})
    RETURN v.body AS body"""
_GET_ALL: Final = """UNWIND $ids AS id
    MATCH (a:Agent {tenant: $tenant, id: id})
    MATCH (v:AgentVersion {tenant: $tenant, agent_id: id, version: a.head})
    RETURN v.body AS body"""
# See the definitions' lists for the order and the CASE.
_LIST: Final = """MATCH (a:Agent) USING INDEX SEEK a:Agent(tenant, created_at)
    WHERE a.tenant = $tenant AND a.created_at <= $at
        AND CASE WHEN a.created_at = $at THEN a.id < $after_id ELSE true END
    WITH a ORDER BY a.tenant DESC, a.created_at DESC, a.id DESC LIMIT $count
    MATCH (v:AgentVersion {tenant: $tenant, agent_id: a.id, version: a.head})
    RETURN a.created_at AS created_at, a.id AS id, v.body AS body ORDER BY created_at DESC, id DESC"""
_LIST_BY_STATUS: Final = """MATCH (a:Agent) USING INDEX SEEK a:Agent(tenant, status, created_at)
    WHERE a.tenant = $tenant AND a.status = $status AND a.created_at <= $at
        AND CASE WHEN a.created_at = $at THEN a.id < $after_id ELSE true END
    WITH a ORDER BY a.tenant DESC, a.status DESC, a.created_at DESC, a.id DESC LIMIT $count
    MATCH (v:AgentVersion {tenant: $tenant, agent_id: a.id, version: a.head})
    RETURN a.created_at AS created_at, a.id AS id, v.body AS body ORDER BY created_at DESC, id DESC"""
_LIST_CAPABLE: Final = """MATCH (a:Agent)-[c:HAS_CAPABILITY]->(:Capability)
    USING INDEX SEEK c:HAS_CAPABILITY(tenant, capability, created_at)
    WHERE c.tenant = $tenant AND c.capability = $capability AND c.created_at <= $at
        AND a.status = coalesce($status, a.status)
        AND CASE WHEN c.created_at = $at THEN a.id < $after_id ELSE true END
        AND all(name IN $others WHERE EXISTS { (a)-[:HAS_CAPABILITY]->(:Capability {tenant: $tenant, name: name}) })
    WITH a, c ORDER BY c.tenant DESC, c.capability DESC, c.created_at DESC, a.id DESC LIMIT $count
    MATCH (v:AgentVersion {tenant: $tenant, agent_id: a.id, version: a.head})
    RETURN c.created_at AS created_at, a.id AS id, v.body AS body ORDER BY created_at DESC, id DESC"""

READ_STATEMENTS: Final = (_GET, _GET_ALL, _LIST, _LIST_BY_STATUS, _LIST_CAPABLE)
"""Every statement of a read, so that a test can look at their plans."""


class Neo4jAgentStore:
    """An ``AgentStore`` on a Neo4j server, which it does not own.

    A record that equals the stored one to the last byte, instants included, counts as the same write repeated.
    """

    def __init__(self, database: Neo4jDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_agent(self, agent: Agent) -> bool:
        """Store version 1 of a new id; False when the id is taken."""
        body = pack(self._codec, agent)
        token = hashlib.sha256(body).hexdigest()

        async def insert(tx: AsyncManagedTransaction) -> bool:
            claimed = await first_of(tx, _CLAIM, tenant=TENANT, id=agent.agent_id)
            if claimed is not None and claimed["head"] is not None:
                return claimed["token"] == token
            await _put_version(tx, agent, token, body, instant_text(agent.created_at))
            return True

        return await self._database.write(insert)

    async def append_agent(self, agent: Agent) -> bool:
        """Store the next version; False when somebody else was first or the id is unknown."""
        body = pack(self._codec, agent)
        token = hashlib.sha256(body).hexdigest()

        async def append(tx: AsyncManagedTransaction) -> bool:
            locked = await first_of(tx, _LOCK, tenant=TENANT, id=agent.agent_id, version=agent.version)
            if locked is None:
                return False
            if locked["token"] == token and agent.version > 1:
                return True
            if locked["head"] is None or locked["head"] != agent.version - 1:
                return False
            await rows_of(tx, _DROP_CAPABILITIES, tenant=TENANT, id=agent.agent_id)
            await _put_version(tx, agent, token, body, locked["created_at"])
            return True

        return await self._database.write(append)

    async def get_agent(self, agent_id: str, version: int | None = None) -> Agent | None:
        """Return that version, or the newest; None when there is none."""

        async def get(tx: AsyncManagedTransaction) -> Record | None:
            return await first_of(tx, _GET, tenant=TENANT, id=agent_id, version=version)

        found = await self._database.read(get)
        return None if found is None else self._decode(found["body"])

    async def get_agents(self, agent_ids: list[str]) -> dict[str, Agent]:
        """Return the newest versions of those ids that exist, by id."""

        async def get_all(tx: AsyncManagedTransaction) -> list[Record]:
            return await rows_of(tx, _GET_ALL, tenant=TENANT, ids=list(dict.fromkeys(agent_ids)))

        agents = [self._decode(row["body"]) for row in await self._database.read(get_all)]
        return {agent.agent_id: agent for agent in agents}

    async def list_agents(
        self, *, capabilities: list[str], status: AgentStatus | None, limit: int, after: Position | None
    ) -> Page[Agent]:
        """Return newest versions that have all ``capabilities``, latest created agent first."""
        at, after_id = after or BEHIND_ALL
        page = {"tenant": TENANT, "at": at, "after_id": after_id, "count": limit + 1}

        async def list_page(tx: AsyncManagedTransaction) -> list[Record]:
            if capabilities:
                wanted = {"capability": capabilities[0], "others": capabilities[1:], "status": status}
                return await rows_of(tx, _LIST_CAPABLE, **wanted, **page)
            if status is not None:
                return await rows_of(tx, _LIST_BY_STATUS, status=status, **page)
            return await rows_of(tx, _LIST, **page)

        return page_of(await self._database.read(list_page), limit, self._decode)

    async def check_health(self) -> StoreHealth:
        """Make one round trip."""
        return await self._database.check_health()

    def _decode(self, body: bytes) -> Agent:
        return unpack(self._codec, Agent, body)


async def _put_version(tx: AsyncManagedTransaction, agent: Agent, token: str, body: bytes, created_at: str) -> None:
    """Write the newest version of a locked agent, with its capabilities."""
    await rows_of(
        tx,
        _PUT_VERSION,
        tenant=TENANT,
        id=agent.agent_id,
        version=agent.version,
        status=agent.status,
        created_at=created_at,
        token=token,
        body=body,
        capabilities=sorted(set(agent.capabilities)),
    )
