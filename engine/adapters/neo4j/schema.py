"""Keys and indexes of the graph, each made only if it is not there; Community has all that they need.

``(:Workflow)-[:HAS_VERSION]->(:WorkflowVersion)``, the newest of them ``-[:HAS_STEP]->(:Step)`` with ``DEPENDS_ON``,
``USES_AGENT`` and ``FALLS_BACK_TO``; ``(:Workflow)-[:TAGGED]->(:Tag)``; ``(:Agent)-[:HAS_VERSION]->(:AgentVersion)``,
``-[:HAS_CAPABILITY]->(:Capability)`` and ``-[:HANDS_OFF_TO]->(:Agent)``. An agent that is only named by others is a
node with nothing but its key. Relationships that lists go by carry what a list selects and sorts by, so that an index
serves a page without touching more than its items.
"""

from __future__ import annotations

import re
from typing import Final, LiteralString

__all__ = ["AWAIT_SCHEMA", "OLDEST_SERVER", "ONLINE_SCHEMA", "SCHEMA", "TENANT", "UPGRADES", "server_version"]

TENANT: Final = "default"
"""The only tenant, until there is access control."""

OLDEST_SERVER: Final = (5, 7)
"""The first one with unique constraints on relationships."""

SCHEMA: Final[dict[str, LiteralString]] = {
    "baton_workflow": """CREATE CONSTRAINT baton_workflow IF NOT EXISTS
        FOR (w:Workflow) REQUIRE (w.tenant, w.id) IS UNIQUE""",
    "baton_workflow_version": """CREATE CONSTRAINT baton_workflow_version IF NOT EXISTS
        FOR (v:WorkflowVersion) REQUIRE (v.tenant, v.workflow_id, v.version) IS UNIQUE""",
    "baton_step": """CREATE CONSTRAINT baton_step IF NOT EXISTS
        FOR (s:Step) REQUIRE (s.tenant, s.workflow_id, s.version, s.step_id) IS UNIQUE""",
    "baton_tag": """CREATE CONSTRAINT baton_tag IF NOT EXISTS
        FOR (t:Tag) REQUIRE (t.tenant, t.name) IS UNIQUE""",
    "baton_agent": """CREATE CONSTRAINT baton_agent IF NOT EXISTS
        FOR (a:Agent) REQUIRE (a.tenant, a.id) IS UNIQUE""",
    "baton_agent_version": """CREATE CONSTRAINT baton_agent_version IF NOT EXISTS
        FOR (v:AgentVersion) REQUIRE (v.tenant, v.agent_id, v.version) IS UNIQUE""",
    "baton_capability": """CREATE CONSTRAINT baton_capability IF NOT EXISTS
        FOR (c:Capability) REQUIRE (c.tenant, c.name) IS UNIQUE""",
    "baton_handoff": """CREATE CONSTRAINT baton_handoff IF NOT EXISTS
        FOR ()-[h:HANDS_OFF_TO]-() REQUIRE (h.tenant, h.id) IS UNIQUE""",
    "baton_workflow_by_time": """CREATE INDEX baton_workflow_by_time IF NOT EXISTS
        FOR (w:Workflow) ON (w.tenant, w.status, w.created_at)""",
    "baton_tagged_by_time": """CREATE INDEX baton_tagged_by_time IF NOT EXISTS
        FOR ()-[t:TAGGED]-() ON (t.tenant, t.tag, t.created_at)""",
    "baton_use_of_agent": """CREATE INDEX baton_use_of_agent IF NOT EXISTS
        FOR ()-[u:USES_AGENT]-() ON (u.tenant, u.agent_id, u.workflow_id)""",
    "baton_fallback_to_agent": """CREATE INDEX baton_fallback_to_agent IF NOT EXISTS
        FOR ()-[f:FALLS_BACK_TO]-() ON (f.tenant, f.agent_id, f.workflow_id)""",
    "baton_agent_by_time": """CREATE INDEX baton_agent_by_time IF NOT EXISTS
        FOR (a:Agent) ON (a.tenant, a.created_at)""",
    "baton_agent_by_status": """CREATE INDEX baton_agent_by_status IF NOT EXISTS
        FOR (a:Agent) ON (a.tenant, a.status, a.created_at)""",
    "baton_capability_by_time": """CREATE INDEX baton_capability_by_time IF NOT EXISTS
        FOR ()-[c:HAS_CAPABILITY]-() ON (c.tenant, c.capability, c.created_at)""",
    "baton_handoff_by_time": """CREATE INDEX baton_handoff_by_time IF NOT EXISTS
        FOR ()-[h:HANDS_OFF_TO]-() ON (h.tenant, h.status, h.created_at)""",
    "baton_handoff_by_source": """CREATE INDEX baton_handoff_by_source IF NOT EXISTS
        FOR ()-[h:HANDS_OFF_TO]-() ON (h.tenant, h.status, h.source_agent_id, h.created_at)""",
    "baton_handoff_by_target": """CREATE INDEX baton_handoff_by_target IF NOT EXISTS
        FOR ()-[h:HANDS_OFF_TO]-() ON (h.tenant, h.status, h.target_agent_id, h.created_at)""",
    "baton_handoff_by_workflow": """CREATE INDEX baton_handoff_by_workflow IF NOT EXISTS
        FOR ()-[h:HANDS_OFF_TO]-() ON (h.tenant, h.status, h.definition_id, h.created_at)""",
}
"""Statements by the name of the index that each of them brings."""

UPGRADES: Final[tuple[LiteralString, ...]] = (
    "DROP INDEX baton_step_by_agent IF EXISTS",
    "DROP INDEX baton_step_by_fallback IF EXISTS",
    """MATCH (s:Step)-[u:USES_AGENT]->(a:Agent) WHERE u.tenant IS NULL
        SET u.tenant = s.tenant, u.agent_id = a.id, u.workflow_id = s.workflow_id, u.is_clean_up = false""",
    """MATCH (s:Step)-[f:FALLS_BACK_TO]->(a:Agent) WHERE f.tenant IS NULL
        SET f.tenant = s.tenant, f.agent_id = a.id, f.workflow_id = s.workflow_id, f.position = 0""",
)
"""What makes the graph of an earlier schema one of this; each is done again whenever an index is missing."""

ONLINE_SCHEMA: Final = """SHOW INDEXES YIELD name, state
    WHERE name STARTS WITH 'baton_' AND state = 'ONLINE' RETURN collect(name) AS names"""
AWAIT_SCHEMA: Final = "CALL db.awaitIndexes(15)"


def server_version(agent: str) -> tuple[str, bool]:
    """Return the version in a server's own name (``Neo4j/5.26.30``), and whether it is new enough."""
    version = agent.removeprefix("Neo4j/")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return version, numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST_SERVER
