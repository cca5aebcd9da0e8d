"""Metrics as aggregations over indexes that hold all they read, summed on the server by day.

The days are only there to keep each answer's list of durations small. A workflow's retries and fallbacks are asked of
the steps that had any, which have an index of their own, and of their executions by ``_id``; so are handoffs of the
executions that decided any.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.mongodb.schema import TENANT, Document
from engine.adapters.packing import instant_text
from engine.domain.execution import Usage
from engine.ports.execution_store import Aggregates

if TYPE_CHECKING:
    from engine.adapters.mongodb.connection import MongoDatabase

__all__ = [
    "agent_aggregates",
    "agent_pipeline",
    "handoffs_pipeline",
    "repeats_pipeline",
    "workflow_aggregates",
    "workflow_pipeline",
]

_CLOCKS_DIFFER: Final = timedelta(days=1)
"""A step starts after its execution was created, by another machine's clock."""
_MICROSECOND: Final = timedelta(microseconds=1)

_HANDOFFS: Final = ("handoffs_taken", "handoffs_refused")
_COUNTS: Final = ("count", "completed", "failed", "cancelled", "retries", "fallbacks", *_HANDOFFS)
_USAGE: Final = ("requests", "input_tokens", "output_tokens", "tool_calls")


def _counting(status: str) -> Document:
    return {"$sum": {"$cond": [{"$eq": ["$status", status]}, 1, 0]}}


_SUMS: Final[Document] = {
    "count": {"$sum": 1},
    **{status: _counting(status) for status in ("completed", "failed", "cancelled")},
    **{name: {"$sum": f"${name}"} for name in (*_USAGE, "cost_usd")},
    "priced": {"$sum": {"$cond": [{"$gt": ["$cost_usd", None]}, 1, 0]}},
    "durations": {"$push": {"$cond": [{"$eq": ["$status", "completed"]}, "$duration", None]}},
}
_REPEATS: Final[Document] = {"retries": {"$sum": "$retries"}, "fallbacks": {"$sum": "$fallbacks"}}


def workflow_pipeline(definition_id: str, start: datetime, end: datetime) -> list[Document]:
    """Return the aggregation over the executions of a definition, for the index ``executions_by_definition``."""
    chosen = {"kind": "execution", "tenant": TENANT, "definition_id": definition_id, "position": _created(start, end)}
    return [{"$match": chosen}, {"$group": {"_id": "$created_on", **_SUMS}}]


def repeats_pipeline(definition_id: str, start: datetime, end: datetime) -> list[Document]:
    """Return the aggregation over the repeated steps of a definition's executions, for ``repeated_steps``."""
    since = instant_text(max(start, datetime.min.replace(tzinfo=start.tzinfo) + _CLOCKS_DIFFER) - _CLOCKS_DIFFER)
    own = {"execution.definition_id": definition_id, "execution.position": _created(start, end)}
    return [
        {"$match": {"tenant": TENANT, "is_repeated": True, "counted_at": {"$gte": since}}},
        {"$group": {"_id": "$execution", **_REPEATS}},
        {"$lookup": {"from": "executions", "localField": "_id", "foreignField": "_id", "as": "execution"}},
        {"$match": own},
        {"$group": {"_id": None, **_REPEATS}},
    ]


def handoffs_pipeline(definition_id: str, start: datetime, end: datetime) -> list[Document]:
    """Return the aggregation over the executions of a definition with handoffs, for ``executions_with_handoffs``."""
    chosen = {
        "tenant": TENANT,
        "has_handoffs": True,
        "definition_id": definition_id,
        "position": _created(start, end),
    }
    return [{"$match": chosen}, {"$group": {"_id": None, **{name: {"$sum": f"${name}"} for name in _HANDOFFS}}}]


def agent_pipeline(agent_id: str, start: datetime, end: datetime) -> list[Document]:
    """Return the aggregation over the calls of an agent, for the index ``steps_by_agent``."""
    between = {"$gte": instant_text(start), "$lte": instant_text(end)}
    chosen = {"tenant": TENANT, "called_agent_id": agent_id, "started_at": between}
    return [{"$match": chosen}, {"$group": {"_id": "$started_on", **_SUMS, **_REPEATS}}]


async def workflow_aggregates(
    database: MongoDatabase, definition_id: str, start: datetime, end: datetime
) -> Aggregates:
    """Aggregate the executions of a definition that were created in ``[start, end]``."""
    chosen = (definition_id, start, end)
    days = await database.run(
        lambda: database.aggregate("executions", workflow_pipeline(*chosen), "executions_by_definition")
    )

    async def ask_the_few() -> list[Document]:
        repeats = await database.aggregate("executions", repeats_pipeline(*chosen), "repeated_steps")
        return repeats + await database.aggregate("executions", handoffs_pipeline(*chosen), "executions_with_handoffs")

    return _aggregates(days, await database.run(ask_the_few))


async def agent_aggregates(database: MongoDatabase, agent_id: str, start: datetime, end: datetime) -> Aggregates:
    """Aggregate the logical calls of an agent that started in ``[start, end]``."""
    pipeline = agent_pipeline(agent_id, start, end)
    days = await database.run(lambda: database.aggregate("executions", pipeline, "steps_by_agent"))
    return _aggregates(days, [])


def _created(start: datetime, end: datetime) -> Document:
    # A position without an id comes before all with one.
    return {"$gte": instant_text(start), "$lt": instant_text(end + _MICROSECOND)}


def _aggregates(days: list[Document], rare: list[Document]) -> Aggregates:
    def total(name: str) -> int:
        return sum(cast("int", document.get(name, 0)) for document in (*days, *rare))

    is_priced = total("priced") > 0
    durations = [duration for day in days for duration in cast("list[float | None]", day["durations"])]
    return Aggregates(
        **{name: total(name) for name in _COUNTS},
        durations=sorted(duration for duration in durations if duration is not None),
        usage=Usage(
            **{name: total(name) for name in _USAGE},
            cost_usd=sum(cast("float", day["cost_usd"]) for day in days) if is_priced else None,
        ),
    )
