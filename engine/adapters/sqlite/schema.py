"""What the embedded files look like, as migrations that are only ever added to.

Bodies come last in their rows, so that reading a column never touches the pages of a large body. Every list has
an index that ends in its sort order. Usage and durations stand in the indexes that the metrics read, so that they
never visit the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LIVE_STATE", "RECORDS", "TENANT", "VECTORS", "Schema"]

TENANT: Final = "default"
"""The only tenant, until there is access control."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file.

    Args:
        migrations: the n-th (from 1) brings ``user_version`` n - 1 to n, which is its last statement.
        disposable: the file may be lost: it is not synced, and a damaged one is begun anew.
    """

    migrations: tuple[tuple[str, ...], ...]
    disposable: bool = False


_DEFINITIONS = (
    """CREATE TABLE definitions (
        tenant TEXT NOT NULL, definition_id TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        created_at TEXT NOT NULL, archived_at TEXT,
        PRIMARY KEY (tenant, definition_id)) WITHOUT ROWID""",
    "CREATE INDEX definitions_by_time ON definitions (tenant, status, created_at, definition_id, version)",
    """CREATE TABLE definition_versions (
        tenant TEXT NOT NULL, definition_id TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, definition_id, version))""",
    """CREATE TABLE definition_tags (
        tenant TEXT NOT NULL, tag TEXT NOT NULL, created_at TEXT NOT NULL, definition_id TEXT NOT NULL,
        PRIMARY KEY (tenant, tag, created_at, definition_id)) WITHOUT ROWID""",
    "CREATE INDEX definition_tags_by_id ON definition_tags (tenant, definition_id)",
)

_AGENTS = (
    """CREATE TABLE agents (
        tenant TEXT NOT NULL, agent_id TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (tenant, agent_id)) WITHOUT ROWID""",
    "CREATE INDEX agents_by_time ON agents (tenant, created_at, agent_id, version)",
    "CREATE INDEX agents_by_status ON agents (tenant, status, created_at, agent_id, version)",
    """CREATE TABLE agent_versions (
        tenant TEXT NOT NULL, agent_id TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, agent_id, version))""",
    """CREATE TABLE agent_capabilities (
        tenant TEXT NOT NULL, capability TEXT NOT NULL, created_at TEXT NOT NULL, agent_id TEXT NOT NULL,
        PRIMARY KEY (tenant, capability, created_at, agent_id)) WITHOUT ROWID""",
    "CREATE INDEX agent_capabilities_by_id ON agent_capabilities (tenant, agent_id)",
)

_HANDOFFS = (
    """CREATE TABLE handoffs (
        tenant TEXT NOT NULL, handoff_id TEXT NOT NULL, status TEXT NOT NULL, source_agent_id TEXT NOT NULL,
        target_agent_id TEXT NOT NULL, definition_id TEXT, created_at TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, handoff_id))""",
    "CREATE INDEX handoffs_by_time ON handoffs (tenant, status, created_at, handoff_id)",
    "CREATE INDEX handoffs_by_source ON handoffs (tenant, status, source_agent_id, created_at, handoff_id)",
    "CREATE INDEX handoffs_by_target ON handoffs (tenant, status, target_agent_id, created_at, handoff_id)",
    "CREATE INDEX handoffs_by_definition ON handoffs (tenant, status, definition_id, created_at, handoff_id)",
)

_EXECUTIONS = (
    # Status, run and start are changed by every step's write without unpacking the body: the columns count.
    """CREATE TABLE executions (
        tenant TEXT NOT NULL, execution_id TEXT NOT NULL, definition_id TEXT NOT NULL, status TEXT NOT NULL,
        created_at TEXT NOT NULL, started_at TEXT, run_id TEXT, run_started_at TEXT,
        history_length INTEGER NOT NULL, duration REAL, retries INTEGER NOT NULL, fallbacks INTEGER NOT NULL,
        requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        tool_calls INTEGER NOT NULL, cost_usd REAL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, execution_id))""",
    "CREATE INDEX executions_by_time ON executions (tenant, created_at, execution_id)",
    "CREATE INDEX executions_by_status ON executions (tenant, status, created_at, execution_id)",
    """CREATE INDEX executions_by_definition_status
        ON executions (tenant, definition_id, status, created_at, execution_id)""",
    """CREATE INDEX executions_by_definition
        ON executions (tenant, definition_id, created_at, execution_id, status, duration, retries, fallbacks,
                       requests, input_tokens, output_tokens, tool_calls, cost_usd)""",
    """CREATE TABLE execution_tags (
        tenant TEXT NOT NULL, tag TEXT NOT NULL, created_at TEXT NOT NULL, execution_id TEXT NOT NULL,
        PRIMARY KEY (tenant, tag, created_at, execution_id)) WITHOUT ROWID""",
    """CREATE TABLE plans (
        tenant TEXT NOT NULL, plan_hash TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (tenant, plan_hash))""",
    # A call outside of any list has the item -1, because NULL is equal to nothing in a key.
    """CREATE TABLE steps (
        tenant TEXT NOT NULL, execution_id TEXT NOT NULL, run_id TEXT NOT NULL, step_id TEXT NOT NULL,
        item INTEGER NOT NULL, n INTEGER NOT NULL, token INTEGER NOT NULL, status TEXT NOT NULL,
        agent_id TEXT, started_at TEXT, duration REAL, retries INTEGER NOT NULL, fallback INTEGER NOT NULL,
        requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
        tool_calls INTEGER NOT NULL, cost_usd REAL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, execution_id, run_id, step_id, item, n))""",
    """CREATE INDEX steps_by_agent
        ON steps (tenant, agent_id, started_at, status, duration, retries, fallback,
                  requests, input_tokens, output_tokens, tool_calls, cost_usd)
        WHERE agent_id IS NOT NULL AND started_at IS NOT NULL""",
    # A workflow's metrics count retries without reading its steps. Nearly no step has any, so nearly no write pays.
    """CREATE TRIGGER count_new_step AFTER INSERT ON steps WHEN new.retries > 0 OR new.fallback > 0
       BEGIN
           UPDATE executions SET retries = retries + new.retries, fallbacks = fallbacks + new.fallback
           WHERE tenant = new.tenant AND execution_id = new.execution_id;
       END""",
    """CREATE TRIGGER count_changed_step AFTER UPDATE OF retries, fallback ON steps
       WHEN new.retries <> old.retries OR new.fallback <> old.fallback
       BEGIN
           UPDATE executions SET retries = retries + new.retries - old.retries,
                                 fallbacks = fallbacks + new.fallback - old.fallback
           WHERE tenant = new.tenant AND execution_id = new.execution_id;
       END""",
)

_ARTIFACTS = (
    # Named by the hash of what they hold, stored under the hash of how it is packed: two writers with different
    # settings never mix their chunks.
    """CREATE TABLE artifacts (
        tenant TEXT NOT NULL, artifact_id TEXT NOT NULL, size_bytes INTEGER NOT NULL, stored_hash TEXT NOT NULL,
        PRIMARY KEY (tenant, artifact_id)) WITHOUT ROWID""",
    """CREATE TABLE artifact_chunks (
        tenant TEXT NOT NULL, stored_hash TEXT NOT NULL, position INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (tenant, stored_hash, position))""",
)

_LEASES = (
    """CREATE TABLE leases (
        tenant TEXT NOT NULL, name TEXT NOT NULL, holder TEXT NOT NULL, expires_at REAL NOT NULL, mark TEXT,
        PRIMARY KEY (tenant, name)) WITHOUT ROWID""",
)

_CONTEXT = (
    """CREATE TABLE context_items (
        tenant TEXT NOT NULL, item_id TEXT NOT NULL, created_at TEXT NOT NULL, scope TEXT NOT NULL,
        definition_id TEXT, execution_id TEXT, agent_id TEXT, text_hash TEXT NOT NULL, is_unindexed INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (tenant, item_id))""",
    "CREATE INDEX items_by_time ON context_items (tenant, created_at, item_id)",
    "CREATE INDEX items_by_scope ON context_items (tenant, scope, created_at, item_id)",
    "CREATE INDEX items_by_execution ON context_items (tenant, execution_id, created_at, item_id)",
    "CREATE INDEX items_by_definition ON context_items (tenant, scope, definition_id, created_at, item_id)",
    "CREATE INDEX items_by_agent ON context_items (tenant, scope, agent_id, created_at, item_id)",
    "CREATE INDEX unindexed_items ON context_items (tenant, created_at, item_id) WHERE is_unindexed = 1",
)

_USES = (
    # Which steps of the newest version call an agent (also to undo them), or fall back to it.
    """CREATE TABLE definition_agents (
        tenant TEXT NOT NULL, agent_id TEXT NOT NULL, definition_id TEXT NOT NULL, role TEXT NOT NULL,
        position INTEGER NOT NULL, step_id TEXT NOT NULL,
        PRIMARY KEY (tenant, agent_id, definition_id, role, position)) WITHOUT ROWID""",
    "CREATE INDEX definition_agents_by_id ON definition_agents (tenant, definition_id)",
)

_MEMORY = (
    # The number is the words' and said by name, because a nameless one may change when the file is vacuumed.
    "ALTER TABLE context_items RENAME TO scoped_items",
    """CREATE TABLE context_items (
        number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, item_id TEXT NOT NULL, created_at TEXT NOT NULL,
        definition_id TEXT, execution_id TEXT, agent_id TEXT, text_hash TEXT NOT NULL, is_unindexed INTEGER NOT NULL,
        is_worded INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE (tenant, item_id))""",
    """INSERT INTO context_items
        (tenant, item_id, created_at, definition_id, execution_id, agent_id, text_hash, is_unindexed, is_worded, body)
        SELECT tenant, item_id, created_at, definition_id, execution_id, agent_id, text_hash, is_unindexed, 0, body
        FROM scoped_items""",
    "DROP TABLE scoped_items",
    "CREATE INDEX items_by_time ON context_items (tenant, created_at, item_id)",
    # What combines with the first column stands behind the order, so that what does not match is never visited.
    """CREATE INDEX items_by_execution
        ON context_items (tenant, execution_id, created_at, item_id, definition_id, agent_id)""",
    "CREATE INDEX items_by_definition ON context_items (tenant, definition_id, created_at, item_id, agent_id)",
    "CREATE INDEX items_by_agent ON context_items (tenant, agent_id, created_at, item_id)",
    "CREATE INDEX unindexed_items ON context_items (tenant, created_at, item_id) WHERE is_unindexed = 1",
    # Texts lie packed in the bodies, where no SQL reads them: the words of older rows are made at the first search.
    "CREATE INDEX unworded_items ON context_items (number) WHERE is_worded = 0",
    # Without the texts themselves: a third of the size. The source counts nothing in the rank.
    """CREATE VIRTUAL TABLE context_words USING fts5 (
        text, source, content = '', tokenize = 'porter unicode61 remove_diacritics 2')""",
    "INSERT INTO context_words (context_words, rank) VALUES ('rank', 'bm25(1.0, 0.0)')",
    """CREATE TABLE context_namespaces (
        tenant TEXT NOT NULL, namespace TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (tenant, namespace))""",
)

_GATES = (
    # The place is the execution's id and the gate's, by which gates of one instant are ordered.
    """CREATE TABLE gates (
        tenant TEXT NOT NULL, execution_id TEXT NOT NULL, gate_id TEXT NOT NULL, token INTEGER NOT NULL,
        status TEXT NOT NULL, opened_at TEXT NOT NULL, place TEXT NOT NULL, definition_id TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (tenant, execution_id, gate_id))""",
    "CREATE INDEX open_gates ON gates (tenant, opened_at, place) WHERE status = 'open'",
    """CREATE INDEX open_gates_of_execution ON gates (tenant, execution_id, opened_at, place, definition_id)
        WHERE status = 'open'""",
    "CREATE INDEX open_gates_of_definition ON gates (tenant, definition_id, opened_at, place) WHERE status = 'open'",
    # Whom open gates are for.
    """CREATE TABLE gate_assignees (
        tenant TEXT NOT NULL, assignee TEXT NOT NULL, opened_at TEXT NOT NULL, place TEXT NOT NULL,
        definition_id TEXT NOT NULL, execution_id TEXT NOT NULL, gate_id TEXT NOT NULL,
        PRIMARY KEY (tenant, assignee, opened_at, place)) WITHOUT ROWID""",
    "CREATE INDEX gate_assignees_by_gate ON gate_assignees (tenant, execution_id, gate_id)",
)

_CLEAN_UP = (
    # Compensations and final steps use agents too, and no handoff.
    "ALTER TABLE definition_agents ADD COLUMN is_clean_up INTEGER NOT NULL DEFAULT 0",
)

_MEASURES = (
    # Behind the body, and never read from there: the index has all that a metric asks of them. Most executions decide
    # no handoff, and they neither stand in it nor pay for it.
    "ALTER TABLE executions ADD COLUMN handoffs_taken INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE executions ADD COLUMN handoffs_refused INTEGER NOT NULL DEFAULT 0",
    """CREATE INDEX executions_with_handoffs
        ON executions (tenant, definition_id, created_at, handoffs_taken, handoffs_refused)
        WHERE handoffs_taken + handoffs_refused > 0""",
)

RECORDS: Final = Schema(
    migrations=(
        (*_DEFINITIONS, *_AGENTS, *_HANDOFFS, *_EXECUTIONS, *_ARTIFACTS, "PRAGMA user_version = 1"),
        (*_LEASES, "PRAGMA user_version = 2"),
        (*_CONTEXT, "PRAGMA user_version = 3"),
        (*_USES, "PRAGMA user_version = 4"),
        (*_MEMORY, "PRAGMA user_version = 5"),
        (*_GATES, *_CLEAN_UP, *_MEASURES, "PRAGMA user_version = 6"),
    )
)
"""Definitions, agents, handoffs, executions, gates, artifacts, leases, context items: the truth."""

LIVE_STATE: Final = Schema(
    migrations=(
        (
            # Positions of a stream carry the file's own name, so that those of a lost file are known as such.
            "CREATE TABLE stream (epoch TEXT NOT NULL)",
            "INSERT INTO stream (epoch) VALUES (lower(hex(randomblob(8))))",
            """CREATE TABLE live (
                tenant TEXT NOT NULL, execution_id TEXT NOT NULL, expires_at REAL NOT NULL,
                event_count INTEGER NOT NULL, token INTEGER, head BLOB,
                PRIMARY KEY (tenant, execution_id)) WITHOUT ROWID""",
            "CREATE INDEX live_by_expiry ON live (tenant, expires_at)",
            """CREATE TABLE live_steps (
                tenant TEXT NOT NULL, execution_id TEXT NOT NULL, step_id TEXT NOT NULL, token INTEGER NOT NULL,
                body BLOB NOT NULL,
                PRIMARY KEY (tenant, execution_id, step_id)) WITHOUT ROWID""",
            """CREATE TABLE events (
                position INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, execution_id TEXT NOT NULL,
                body BLOB NOT NULL)""",
            "CREATE INDEX events_by_execution ON events (tenant, execution_id, position)",
            "PRAGMA user_version = 1",
        ),
    ),
    disposable=True,
)
"""Live state and progress events: fast, and never the only copy."""

VECTORS: Final = Schema(
    migrations=(
        (
            # Each write of a namespace has a number, and what it wrote carries it, so that a process reads only what
            # is new to it. The epoch is another one once the numbers begin anew.
            """CREATE TABLE vector_namespaces (
                tenant TEXT NOT NULL, namespace TEXT NOT NULL, epoch TEXT NOT NULL, dimension INTEGER NOT NULL,
                changed INTEGER NOT NULL, dropped INTEGER NOT NULL,
                PRIMARY KEY (tenant, namespace)) WITHOUT ROWID""",
            """CREATE TABLE vectors (
                tenant TEXT NOT NULL, namespace TEXT NOT NULL, item_id TEXT NOT NULL, changed INTEGER NOT NULL,
                metadata TEXT NOT NULL, body BLOB NOT NULL,
                PRIMARY KEY (tenant, namespace, item_id))""",
            "CREATE INDEX vectors_by_change ON vectors (tenant, namespace, changed)",
            "PRAGMA user_version = 1",
        ),
    ),
    disposable=True,
)
"""Vectors, which are rebuilt from the texts that they were made of."""
