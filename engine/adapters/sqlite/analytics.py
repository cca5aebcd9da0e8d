"""Metrics from an index that holds all they need; the rows themselves are never visited.

Sums and durations are two passes, which the database's two readers make side by side. Durations come as one JSON text
of whole microseconds: fetching 100,000 rows one by one takes longer than reading them. Handoffs are asked of the few
executions that decided any.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.sqlite.schema import TENANT
from engine.domain.execution import Usage
from engine.ports.execution_store import Aggregates

if TYPE_CHECKING:
    from engine.adapters.sqlite.database import SqliteDatabase

__all__ = ["AGGREGATE_STATEMENTS", "agent_aggregates", "workflow_aggregates"]

_WORKFLOW = """SELECT count(*), sum(status = 'completed'), sum(status = 'failed'), sum(status = 'cancelled'),
        sum(retries), sum(fallbacks), sum(requests), sum(input_tokens), sum(output_tokens), sum(tool_calls),
        sum(cost_usd)
    FROM executions INDEXED BY executions_by_definition
    WHERE tenant = ? AND definition_id = ? AND created_at BETWEEN ? AND ?"""
_WORKFLOW_DURATIONS = """SELECT json_group_array(CAST(duration * 1000000 + 0.5 AS INTEGER))
    FROM executions INDEXED BY executions_by_definition
    WHERE tenant = ? AND definition_id = ? AND created_at BETWEEN ? AND ?
        AND status = 'completed' AND duration IS NOT NULL"""
_WORKFLOW_HANDOFFS = """SELECT sum(handoffs_taken), sum(handoffs_refused)
    FROM executions INDEXED BY executions_with_handoffs
    WHERE tenant = ? AND definition_id = ? AND created_at BETWEEN ? AND ? AND handoffs_taken + handoffs_refused > 0"""
_AGENT = """SELECT count(*), sum(status = 'completed'), sum(status = 'failed'), sum(status = 'cancelled'),
        sum(retries), sum(fallback), sum(requests), sum(input_tokens), sum(output_tokens), sum(tool_calls),
        sum(cost_usd)
    FROM steps INDEXED BY steps_by_agent
    WHERE tenant = ? AND agent_id = ? AND started_at BETWEEN ? AND ?"""
_AGENT_DURATIONS = """SELECT json_group_array(CAST(duration * 1000000 + 0.5 AS INTEGER))
    FROM steps INDEXED BY steps_by_agent
    WHERE tenant = ? AND agent_id = ? AND started_at BETWEEN ? AND ?
        AND status = 'completed' AND duration IS NOT NULL"""

AGGREGATE_STATEMENTS: Final = (_WORKFLOW, _WORKFLOW_DURATIONS, _WORKFLOW_HANDOFFS, _AGENT, _AGENT_DURATIONS)
"""Every statement of a metric, so that a test can look at their plans."""


async def workflow_aggregates(database: SqliteDatabase, definition_id: str, start: str, end: str) -> Aggregates:
    """Aggregate the executions of a definition that were created in ``[start, end]`` (texts of instants)."""
    chosen = (TENANT, definition_id, start, end)
    # Asked first, because it is mostly over at once: the long passes then have both readers.
    handoffs, aggregates = await asyncio.gather(
        database.read(lambda connection: connection.execute(_WORKFLOW_HANDOFFS, chosen).fetchone()),
        _aggregates(database, _WORKFLOW, _WORKFLOW_DURATIONS, chosen),
    )
    taken, refused = cast("tuple[int | None, int | None]", handoffs)
    return replace(aggregates, handoffs_taken=taken or 0, handoffs_refused=refused or 0)


async def agent_aggregates(database: SqliteDatabase, agent_id: str, start: str, end: str) -> Aggregates:
    """Aggregate the logical calls of an agent that started in ``[start, end]`` (texts of instants)."""
    return await _aggregates(database, _AGENT, _AGENT_DURATIONS, (TENANT, agent_id, start, end))


async def _aggregates(database: SqliteDatabase, sums: str, durations: str, chosen: tuple[str, ...]) -> Aggregates:
    row, ascending = await asyncio.gather(
        database.read(lambda connection: connection.execute(sums, chosen).fetchone()),
        database.read(lambda connection: _seconds(connection.execute(durations, chosen).fetchone())),
    )
    # The sum of no rows is NULL, and so is the sum of unknown prices: only the second stays None.
    *counts, cost_usd = cast("tuple[int | float | None, ...]", row)
    count, completed, failed, cancelled, retries, fallbacks, *usage = (int(value or 0) for value in counts)
    requests, input_tokens, output_tokens, tool_calls = usage
    return Aggregates(
        count=count,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        durations=ascending,
        retries=retries,
        fallbacks=fallbacks,
        usage=Usage(
            requests=requests,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            tool_calls=tool_calls,
            cost_usd=cost_usd,
        ),
    )


def _seconds(row: tuple[str]) -> list[float]:
    whole_microseconds = cast("list[int]", json.loads(row[0]))
    whole_microseconds.sort()
    return [duration / 1_000_000 for duration in whole_microseconds]
