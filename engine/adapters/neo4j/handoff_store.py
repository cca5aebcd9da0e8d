"""Handoffs in the graph: a relationship each between two agents, with all that lists go by and its packed body."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from engine.adapters.neo4j.database import first_of, rows_of
from engine.adapters.neo4j.pages import BEFORE_ALL, page_of
from engine.adapters.neo4j.schema import TENANT
from engine.adapters.packing import instant_text, pack, unpack
from engine.domain.handoff import Handoff

if TYPE_CHECKING:
    from neo4j import AsyncManagedTransaction, Record

    from engine.adapters.codec import Codec
    from engine.adapters.neo4j.database import Neo4jDatabase
    from engine.domain.page import Page, Position
    from engine.ports.health import StoreHealth

__all__ = ["READ_STATEMENTS", "Neo4jHandoffStore"]

_FIND: Final = """MATCH ()-[h:HANDS_OFF_TO]->() WHERE h.tenant = $tenant AND h.id = $id
    RETURN h.token AS token, h.body AS body"""
_PUT: Final = """FOREACH (agent_id IN $agent_ids |
        MERGE (a:Agent {tenant: $tenant, id: agent_id}) SET a.tenant = $tenant)
    MERGE (s:Agent {tenant: $tenant, id: $source_agent_id})
    MERGE (t:Agent {tenant: $tenant, id: $target_agent_id})
    CREATE (s)-[:HANDS_OFF_TO {tenant: $tenant, id: $id, status: $status, source_agent_id: $source_agent_id,
        target_agent_id: $target_agent_id, definition_id: $definition_id, created_at: $created_at, token: $token,
        body: $body}]->(t)"""
# See the definitions' lists for the order and the CASE.
_LIST: Final = """MATCH ()-[h:HANDS_OFF_TO]->() USING INDEX SEEK h:HANDS_OFF_TO(tenant, status, created_at)
    WHERE h.tenant = $tenant AND h.status = 'active' AND h.created_at >= $at
        AND CASE WHEN h.created_at = $at THEN h.id > $after_id ELSE true END
    WITH h ORDER BY h.tenant, h.status, h.created_at, h.id LIMIT $count
    RETURN h.created_at AS created_at, h.id AS id, h.body AS body"""
_LIST_BY_SOURCE: Final = """MATCH ()-[h:HANDS_OFF_TO]->()
    USING INDEX SEEK h:HANDS_OFF_TO(tenant, status, source_agent_id, created_at)
    WHERE h.tenant = $tenant AND h.status = 'active' AND h.source_agent_id = $source_agent_id AND h.created_at >= $at
        AND CASE WHEN h.created_at = $at THEN h.id > $after_id ELSE true END
        AND h.target_agent_id = coalesce($target_agent_id, h.target_agent_id)
        AND CASE WHEN $definition_id IS NULL THEN true ELSE h.definition_id = $definition_id END
    WITH h ORDER BY h.tenant, h.status, h.source_agent_id, h.created_at, h.id LIMIT $count
    RETURN h.created_at AS created_at, h.id AS id, h.body AS body"""
_LIST_BY_TARGET: Final = """MATCH ()-[h:HANDS_OFF_TO]->()
    USING INDEX SEEK h:HANDS_OFF_TO(tenant, status, target_agent_id, created_at)
    WHERE h.tenant = $tenant AND h.status = 'active' AND h.target_agent_id = $target_agent_id AND h.created_at >= $at
        AND CASE WHEN h.created_at = $at THEN h.id > $after_id ELSE true END
        AND CASE WHEN $definition_id IS NULL THEN true ELSE h.definition_id = $definition_id END
    WITH h ORDER BY h.tenant, h.status, h.target_agent_id, h.created_at, h.id LIMIT $count
    RETURN h.created_at AS created_at, h.id AS id, h.body AS body"""
_LIST_BY_DEFINITION: Final = """MATCH ()-[h:HANDS_OFF_TO]->()
    USING INDEX SEEK h:HANDS_OFF_TO(tenant, status, definition_id, created_at)
    WHERE h.tenant = $tenant AND h.status = 'active' AND h.definition_id = $definition_id AND h.created_at >= $at
        AND CASE WHEN h.created_at = $at THEN h.id > $after_id ELSE true END
    WITH h ORDER BY h.tenant, h.status, h.definition_id, h.created_at, h.id LIMIT $count
    RETURN h.created_at AS created_at, h.id AS id, h.body AS body"""
_LIST_AMONG: Final = """UNWIND $agent_ids AS agent_id
    MATCH ()-[h:HANDS_OFF_TO]->() USING INDEX SEEK h:HANDS_OFF_TO(tenant, status, source_agent_id, created_at)
    WHERE h.tenant = $tenant AND h.status = 'active' AND h.source_agent_id = agent_id AND h.created_at >= ''
        AND CASE WHEN h.definition_id IS NULL THEN true ELSE h.definition_id = $definition_id END
    RETURN h.body AS body ORDER BY h.created_at, h.id"""

READ_STATEMENTS: Final = (_FIND, _LIST, _LIST_BY_SOURCE, _LIST_BY_TARGET, _LIST_BY_DEFINITION, _LIST_AMONG)
"""Every statement of a read, so that a test can look at their plans."""


class Neo4jHandoffStore:
    """A ``HandoffStore`` on a Neo4j server, which it does not own.

    A record that equals the stored one to the last byte, instants included, counts as the same write repeated.
    """

    def __init__(self, database: Neo4jDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_handoff(self, handoff: Handoff) -> bool:
        """Store a new handoff; False when the id is taken."""
        body = pack(self._codec, handoff)
        token = hashlib.sha256(body).hexdigest()
        agent_ids = sorted({handoff.source_agent_id, handoff.target_agent_id})
        row = {
            "id": handoff.handoff_id,
            "status": handoff.status,
            "source_agent_id": handoff.source_agent_id,
            "target_agent_id": handoff.target_agent_id,
            "definition_id": handoff.definition_id,
            "created_at": instant_text(handoff.created_at),
        }

        async def insert(tx: AsyncManagedTransaction) -> bool:
            # Two that find nothing at once are told apart by the constraint; the slower one looks again.
            found = await first_of(tx, _FIND, tenant=TENANT, id=handoff.handoff_id)
            if found is not None:
                return found["token"] == token
            await rows_of(tx, _PUT, tenant=TENANT, agent_ids=agent_ids, token=token, body=body, **row)
            return True

        return await self._database.write(insert)

    async def get_handoff(self, handoff_id: str) -> Handoff | None:
        """Return it, or None."""

        async def get(tx: AsyncManagedTransaction) -> Record | None:
            return await first_of(tx, _FIND, tenant=TENANT, id=handoff_id)

        found = await self._database.read(get)
        return None if found is None else self._decode(found["body"])

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
        at, after_id = after or BEFORE_ALL
        page = {"tenant": TENANT, "at": at, "after_id": after_id, "count": limit + 1}
        target = {"target_agent_id": target_agent_id, "definition_id": definition_id}

        async def list_page(tx: AsyncManagedTransaction) -> list[Record]:
            if source_agent_id is not None:
                return await rows_of(tx, _LIST_BY_SOURCE, source_agent_id=source_agent_id, **target, **page)
            if target_agent_id is not None:
                return await rows_of(tx, _LIST_BY_TARGET, **target, **page)
            if definition_id is not None:
                return await rows_of(tx, _LIST_BY_DEFINITION, definition_id=definition_id, **page)
            return await rows_of(tx, _LIST, **page)

        return page_of(await self._database.read(list_page), limit, self._decode)

    async def list_handoffs_among(self, agent_ids: list[str], definition_id: str) -> list[Handoff]:
        """Return active handoffs from one of ``agent_ids`` that hold for this workflow, oldest first."""

        async def list_all(tx: AsyncManagedTransaction) -> list[Record]:
            among = {"agent_ids": list(dict.fromkeys(agent_ids)), "definition_id": definition_id}
            return await rows_of(tx, _LIST_AMONG, tenant=TENANT, **among)

        return [self._decode(row["body"]) for row in await self._database.read(list_all)]

    async def check_health(self) -> StoreHealth:
        """Make one round trip."""
        return await self._database.check_health()

    def _decode(self, body: bytes) -> Handoff:
        return unpack(self._codec, Handoff, body)
