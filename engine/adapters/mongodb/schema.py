"""What lies in which collection, and an index for every query.

An ``_id`` is an array of columns written as JSON, which nobody parses: text is what every server finds at once, and a
range over the first columns is a range of the index that is there anyway. Executions and their steps share one
collection, because the write of a step also starts its execution and one command reaches one collection only; ``kind``
tells them apart, and partial indexes keep each kind out of the other's. A list is ordered by ``position``, the
instant and the id in one text: a page is one range of one index, without ties. Instants are ISO texts of one width,
since the server's own have no microseconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

from pymongo import ASCENDING, DESCENDING, IndexModel

if TYPE_CHECKING:
    from engine.domain.page import Position

__all__ = ["BEFORE_ALL", "BEHIND_ALL", "INDEXES", "TENANT", "Document", "key", "keys_below", "position"]

Document: TypeAlias = "dict[str, object]"

TENANT: Final = "default"
"""The only tenant, until there is access control."""
BEFORE_ALL: Final[Position] = ("", "")
"""Less than every position: where an ascending list starts."""
BEHIND_ALL: Final[Position] = ("~", "")
"""Greater than every instant's text: where a descending list starts."""

_USAGE: Final = ("requests", "input_tokens", "output_tokens", "tool_calls", "cost_usd")


def _index(name: str, *keys: str, of: Document | None = None, latest_first: bool = True) -> IndexModel:
    order = DESCENDING if latest_first else ASCENDING
    ordered = [(key, order if key == "position" else ASCENDING) for key in keys]
    return IndexModel(ordered, name=name, **({} if of is None else {"partialFilterExpression": of}))


_EXECUTION: Final[Document] = {"kind": "execution"}
_OPEN: Final[Document] = {"is_open": True}

INDEXES: Final[dict[str, list[IndexModel]]] = {
    "executions": [
        _index("executions_by_time", "kind", "tenant", "position", of=_EXECUTION),
        _index("executions_by_status", "kind", "tenant", "status", "position", of=_EXECUTION),
        _index(
            "executions_by_definition_status", "kind", "tenant", "definition_id", "status", "position", of=_EXECUTION
        ),
        # With all that metrics read, so that they never fetch a document.
        _index(
            "executions_by_definition",
            *("kind", "tenant", "definition_id", "position", "created_on", "status", "duration", *_USAGE),
            of=_EXECUTION,
        ),
        # Few decide handoffs, and an index that databases have already keeps its keys.
        _index(
            "executions_with_handoffs",
            *("tenant", "has_handoffs", "definition_id", "position", "handoffs_taken", "handoffs_refused"),
            of={"has_handoffs": True},
        ),
        _index("open_executions", "tenant", "is_open", "position", of=_OPEN),
        _index("executions_by_tag", "tenant", "tags", "position", of={"tags": {"$exists": True}}),
        _index(
            "steps_by_agent",
            *("tenant", "called_agent_id", "started_at", "started_on", "status", "duration"),
            *("retries", "fallbacks", *_USAGE),
            of={"called_agent_id": {"$exists": True}},
        ),
        # Few steps are repeated, so a workflow's metrics find them without reading the others.
        _index(
            "repeated_steps",
            *("tenant", "is_repeated", "counted_at", "execution", "retries", "fallbacks"),
            of={"is_repeated": True},
        ),
    ],
    # What is over leaves them, so that they are as long as there are questions.
    "gates": [
        _index("open_gates", "tenant", "is_open", "position", of=_OPEN, latest_first=False),
        _index(
            "gates_of_execution",
            *("tenant", "is_open", "execution_id", "position", "definition_id"),
            of=_OPEN,
            latest_first=False,
        ),
        _index("gates_of_definition", "tenant", "is_open", "definition_id", "position", of=_OPEN, latest_first=False),
        _index(
            "gates_of_assignee",
            *("tenant", "is_open", "assignees", "position", "definition_id", "execution_id"),
            of=_OPEN,
            latest_first=False,
        ),
    ],
    "context_items": [
        _index("items_by_time", "tenant", "position"),
        # What combines with the first key stands behind the order, so that what does not match is never fetched.
        _index("items_of_execution", "tenant", "execution_id", "position", "definition_id", "agent_id"),
        _index("items_of_definition", "tenant", "definition_id", "position", "agent_id"),
        _index("items_of_agent", "tenant", "agent_id", "position"),
        _index("unindexed_items", "tenant", "is_unindexed", "position", of={"is_unindexed": True}, latest_first=False),
    ],
}
"""By collection. ``artifacts``, ``artifact_chunks``, ``context_namespaces``, ``leases`` and ``plans`` are read only
by their ``_id``."""


def key(*columns: str | int) -> str:
    """Return the ``_id`` of a tenant's document with these columns."""
    return json.dumps([TENANT, *columns], separators=(",", ":"))


def keys_below(*columns: str | int) -> Document:
    """Return the condition for an ``_id`` that begins with these columns and has more."""
    beginning = f"{key(*columns)[:-1]},"
    # All of it is ASCII, and another column begins with a quote or a digit.
    return {"$gt": beginning, "$lt": f"{beginning}~"}


def position(at: Position) -> str:
    """Return the stored form of a position, which compares as the position does: an instant's text has one width."""
    return f"{at[0]} {at[1]}"
