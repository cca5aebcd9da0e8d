"""Definitions in the graph: a node a workflow, one a version with its packed body, the newest one's steps around it.

Steps are kept of the newest version only: questions are about it, and older ones lie whole in their bodies. A write
locks its workflow first and then tags and agents in the order of their names, so that no two writes wait for each
other. A version carries a token of its record, by which a repeated write knows that it was itself who wrote.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from engine.adapters.neo4j.database import first_of, rows_of
from engine.adapters.neo4j.pages import BEHIND_ALL, page_of
from engine.adapters.neo4j.schema import TENANT
from engine.adapters.packing import instant_text, pack, unpack_definition
from engine.adapters.step_uses import step_uses
from engine.domain.page import Page
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from datetime import datetime

    from neo4j import AsyncManagedTransaction, Record

    from engine.adapters.codec import Codec
    from engine.adapters.neo4j.database import Neo4jDatabase
    from engine.adapters.step_uses import StepUses
    from engine.domain.definition import DefinitionStatus, DefinitionVersion
    from engine.domain.page import Position
    from engine.ports.health import StoreHealth

__all__ = ["READ_STATEMENTS", "Neo4jDefinitionStore"]

_CLAIM: Final = """MERGE (w:Workflow {tenant: $tenant, id: $id})
    ON CREATE SET w.head = 0, w.status = $status, w.created_at = $created_at, w.token = $token
    RETURN w.head AS head, w.token AS token"""
# Writing a property, also when it stays the same, takes the node's lock; what is read behind it is the newest.
_LOCK: Final = """MATCH (w:Workflow {tenant: $tenant, id: $id}) SET w.created_at = w.created_at
    WITH w OPTIONAL MATCH (v:WorkflowVersion {tenant: $tenant, workflow_id: $id, version: $version})
    RETURN w.head AS head, w.status AS status, w.created_at AS created_at, v.token AS token"""
_DROP_TAGS: Final = "MATCH (:Workflow {tenant: $tenant, id: $id})-[t:TAGGED]->(:Tag) DELETE t"
_DROP_STEPS: Final = """MATCH (:WorkflowVersion {tenant: $tenant, workflow_id: $id, version: $version})
    -[:HAS_STEP]->(s:Step) DETACH DELETE s"""
# One statement, because a server that has just started needs longer to plan another one than to run it.
_PUT_VERSION: Final = """MATCH (w:Workflow {tenant: $tenant, id: $id}) SET w.head = $version
    MERGE (v:WorkflowVersion {tenant: $tenant, workflow_id: $id, version: $version})
    SET v.token = $token, v.body = $body
    MERGE (w)-[:HAS_VERSION]->(v)
    FOREACH (name IN $tags |
        MERGE (t:Tag {tenant: $tenant, name: name}) SET t.tenant = $tenant
        CREATE (w)-[:TAGGED {tenant: $tenant, tag: name, created_at: $created_at}]->(t))
    FOREACH (agent_id IN $agent_ids |
        MERGE (a:Agent {tenant: $tenant, id: agent_id}) SET a.tenant = $tenant)
    FOREACH (step IN $steps |
        CREATE (s:Step {tenant: $tenant, workflow_id: $id, version: $version, step_id: step.step_id,
            position: step.position, agent_id: step.agent_id})
        CREATE (v)-[:HAS_STEP]->(s)
        FOREACH (callee IN step.callees |
            MERGE (a:Agent {tenant: $tenant, id: callee.agent_id})
            CREATE (s)-[:USES_AGENT {tenant: $tenant, agent_id: callee.agent_id, workflow_id: $id,
                is_clean_up: callee.is_clean_up}]->(a))
        FOREACH (fallback IN step.fallbacks |
            MERGE (a:Agent {tenant: $tenant, id: fallback.agent_id})
            CREATE (s)-[:FALLS_BACK_TO {tenant: $tenant, agent_id: fallback.agent_id, workflow_id: $id,
                position: fallback.position}]->(a)))
    FOREACH (pair IN $pairs |
        MERGE (s:Step {tenant: $tenant, workflow_id: $id, version: $version, step_id: pair[0]})
        MERGE (d:Step {tenant: $tenant, workflow_id: $id, version: $version, step_id: pair[1]})
        CREATE (s)-[:DEPENDS_ON]->(d))"""
_ARCHIVE: Final = """MATCH (w:Workflow {tenant: $tenant, id: $id}) SET w.created_at = w.created_at
    WITH w WHERE w.status = 'active' OR w.archived_by = $token
    SET w.status = 'archived', w.archived_at = $at, w.archived_by = $token
    RETURN w.id AS id"""
_GET: Final = """MATCH (w:Workflow {tenant: $tenant, id: $id})
    MATCH (v:WorkflowVersion {tenant: $tenant, workflow_id: $id, version: coalesce($version, w.head)})
    RETURN w.status AS status, v.body AS body"""
# The order names the index's columns from the first on, or else the server would sort all that match. The condition
# on the position is a CASE, because an OR would be planned as two searches.
_LIST: Final = """MATCH (w:Workflow) USING INDEX SEEK w:Workflow(tenant, status, created_at)
    WHERE w.tenant = $tenant AND w.status = $status AND w.created_at <= $at
        AND CASE WHEN w.created_at = $at THEN w.id < $after_id ELSE true END
    WITH w ORDER BY w.tenant DESC, w.status DESC, w.created_at DESC, w.id DESC LIMIT $count
    MATCH (v:WorkflowVersion {tenant: $tenant, workflow_id: w.id, version: w.head})
    RETURN w.created_at AS created_at, w.id AS id, v.body AS body ORDER BY created_at DESC, id DESC"""
_LIST_TAGGED: Final = """MATCH (w:Workflow)-[t:TAGGED]->(:Tag) USING INDEX SEEK t:TAGGED(tenant, tag, created_at)
    WHERE t.tenant = $tenant AND t.tag = $tag AND t.created_at <= $at AND w.status = $status
        AND CASE WHEN t.created_at = $at THEN w.id < $after_id ELSE true END
        AND all(name IN $other_tags WHERE EXISTS { (w)-[:TAGGED]->(:Tag {tenant: $tenant, name: name}) })
    WITH w, t ORDER BY t.tenant DESC, t.tag DESC, t.created_at DESC, w.id DESC LIMIT $count
    MATCH (v:WorkflowVersion {tenant: $tenant, workflow_id: w.id, version: w.head})
    RETURN t.created_at AS created_at, w.id AS id, v.body AS body ORDER BY created_at DESC, id DESC"""
_LIST_VERSIONS: Final = """MATCH (w:Workflow {tenant: $tenant, id: $id})
    MATCH (v:WorkflowVersion)
    WHERE v.tenant = $tenant AND v.workflow_id = $id AND v.version > $above AND v.version < $below
    RETURN v.version AS version, v.body AS body, w.status AS status ORDER BY v.version DESC LIMIT $count"""

READ_STATEMENTS: Final = (_GET, _LIST, _LIST_TAGGED, _LIST_VERSIONS)
"""Every statement of a read, so that a test can look at their plans."""

_MAX_VERSION: Final = 2**63 - 1
_TIME_OF_A_STEP: Final = timedelta(milliseconds=2)


class Neo4jDefinitionStore:
    """A ``DefinitionStore`` on a Neo4j server, which it does not own.

    A record that equals the stored one to the last byte, instants included, counts as the same write repeated.
    """

    def __init__(self, database: Neo4jDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def insert_definition(self, version: DefinitionVersion) -> bool:
        """Store version 1 of a new id; False when the id is taken."""
        body = pack(self._codec, version)
        token = hashlib.sha256(body).hexdigest()
        created_at = instant_text(version.created_at)

        async def insert(tx: AsyncManagedTransaction) -> bool:
            claim = {"id": version.definition_id, "status": version.status, "created_at": created_at, "token": token}
            claimed = await first_of(tx, _CLAIM, tenant=TENANT, **claim)
            if claimed is None or claimed["token"] != token:
                return False
            if claimed["head"] == 0:
                await _put_version(tx, version, token, body, created_at)
            return True

        return await self._database.write(insert, _time_of(version))

    async def append_version(self, version: DefinitionVersion) -> bool:
        """Store the next version of an active definition; False when somebody else was first, or it is not active."""
        body = pack(self._codec, version)
        token = hashlib.sha256(body).hexdigest()
        key = {"tenant": TENANT, "id": version.definition_id}

        async def append(tx: AsyncManagedTransaction) -> bool:
            locked = await first_of(tx, _LOCK, version=version.version, **key)
            if locked is None:
                return False
            if locked["token"] == token and version.version > 1:
                return True
            if locked["status"] != "active" or locked["head"] != version.version - 1:
                return False
            await rows_of(tx, _DROP_TAGS, **key)
            await rows_of(tx, _DROP_STEPS, version=version.version - 1, **key)
            await _put_version(tx, version, token, body, locked["created_at"])
            return True

        return await self._database.write(append, _time_of(version))

    async def get_definition(self, definition_id: str, version: int | None = None) -> DefinitionVersion | None:
        """Return that version, or the newest; None when there is none."""

        async def get(tx: AsyncManagedTransaction) -> Record | None:
            return await first_of(tx, _GET, tenant=TENANT, id=definition_id, version=version)

        found = await self._database.read(get)
        return None if found is None else self._decode(found["body"], found["status"])

    async def list_definitions(
        self, *, tags: list[str], status: DefinitionStatus, limit: int, after: Position | None
    ) -> Page[DefinitionVersion]:
        """Return newest versions with all ``tags``, latest created workflow first."""
        at, after_id = after or BEHIND_ALL
        page = {"tenant": TENANT, "status": status, "at": at, "after_id": after_id, "count": limit + 1}

        async def list_page(tx: AsyncManagedTransaction) -> list[Record]:
            if tags:
                return await rows_of(tx, _LIST_TAGGED, tag=tags[0], other_tags=tags[1:], **page)
            return await rows_of(tx, _LIST, **page)

        rows = await self._database.read(list_page)
        return page_of(rows, limit, lambda body: self._decode(body, status))

    async def list_versions(self, definition_id: str, *, limit: int, after: Position | None) -> Page[DefinitionVersion]:
        """Return the versions of one id, newest first."""
        below = _MAX_VERSION if after is None else _version_in(after)

        async def list_page(tx: AsyncManagedTransaction) -> list[Record]:
            bounds = {"above": 0, "below": below, "count": limit + 1}
            return await rows_of(tx, _LIST_VERSIONS, tenant=TENANT, id=definition_id, **bounds)

        rows = await self._database.read(list_page)
        items = [self._decode(row["body"], row["status"]) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items)
        return Page(items, (str(rows[limit - 1]["version"]), definition_id))

    async def archive_definition(self, definition_id: str, at: datetime) -> bool:
        """Mark it archived; False when unknown or archived before."""
        parameters = {"id": definition_id, "at": instant_text(at), "token": uuid.uuid4().hex}

        async def archive(tx: AsyncManagedTransaction) -> bool:
            return await first_of(tx, _ARCHIVE, tenant=TENANT, **parameters) is not None

        return await self._database.write(archive)

    async def check_health(self) -> StoreHealth:
        """Make one round trip."""
        return await self._database.check_health()

    def _decode(self, body: bytes, status: DefinitionStatus) -> DefinitionVersion:
        version = unpack_definition(self._codec, body)
        return version if version.status == status else version.model_copy(update={"status": status})


async def _put_version(
    tx: AsyncManagedTransaction, version: DefinitionVersion, token: str, body: bytes, created_at: str
) -> None:
    """Write the newest version of a locked workflow, with its tags and steps."""
    uses = list(step_uses(version.definition))
    called = {callee.agent_id for step in uses for callee in step.callees}
    await rows_of(
        tx,
        _PUT_VERSION,
        tenant=TENANT,
        id=version.definition_id,
        version=version.version,
        token=token,
        body=body,
        created_at=created_at,
        tags=sorted(set(version.definition.tags)),
        agent_ids=sorted(called.union(*(step.fallbacks for step in uses))),
        steps=[_step_parameters(step) for step in uses],
        pairs=[[each.step.id, before] for each in uses for before in dict.fromkeys(each.step.depends_on)],
    )


def _step_parameters(uses: StepUses) -> dict[str, object]:
    return {
        "step_id": uses.step.id,
        "position": uses.position,
        "agent_id": uses.step.agent_id or None,
        "callees": [{"agent_id": callee.agent_id, "is_clean_up": callee.is_clean_up} for callee in uses.callees],
        "fallbacks": [{"agent_id": agent_id, "position": position} for position, agent_id in enumerate(uses.fallbacks)],
    }


def _time_of(version: DefinitionVersion) -> timedelta:
    return (len(version.definition.steps) + len(version.definition.final_steps)) * _TIME_OF_A_STEP


def _version_in(position: Position) -> int:
    version = int(position[0]) if position[0].isdecimal() and len(position[0]) < len(str(_MAX_VERSION)) else 0
    if version == 0:
        raise InvalidInputError(
            "The cursor names no version; pass next_cursor of the page before, or none to start over",
            {"path": "cursor"},
        )
    return version
