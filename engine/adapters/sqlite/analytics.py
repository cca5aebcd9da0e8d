"""Metrics in one pass over an index that holds all they need; the rows themselves are never visited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.sqlite.schema import TENANT
from engine.domain.execution import Usage
from engine.ports.execution_store import Aggregates

if TYPE_CHECKING:
    import sqlite3

__all__ = ["AGGREGATE_STATEMENTS", "agent_aggregates", "workflow_aggregates"]

_WORKFLOW = """SELECT count(*), sum(status = 'completed'), sum(status = 'failed'), sum(status = 'cancelled'),
        sum(retries), sum(fallbacks), sum(requests), sum(input_tokens), sum(output_tokens), sum(tool_calls),
        sum(cost_usd)
    FROM executions INDEXED BY executions_by_definition
    WHERE tenant = ? AND definition_id = ? AND created_at BETWEEN ? AND ?"""
_WORKFLOW_DURATIONS = """SELECT duration FROM executions INDEXED BY executions_by_definition
    WHERE tenant = ? AND definition_id = ? AND created_at BETWEEN ? AND ?
        AND status = 'completed' AND duration IS NOT NULL"""
_AGENT = """SELECT count(*), sum(status = 'completed'), sum(status = 'failed'), sum(status = 'cancelled'),
        sum(retries), sum(fallback), sum(requests), sum(input_tokens), sum(output_tokens), sum(tool_calls),
        sum(cost_usd)
    FROM steps INDEXED BY steps_by_agent
    WHERE tenant = ? AND agent_id = ? AND started_at BETWEEN ? AND ?"""
_AGENT_DURATIONS = """SELECT duration FROM steps INDEXED BY steps_by_agent
    WHERE tenant = ? AND agent_id = ? AND started_at BETWEEN ? AND ?
        AND status = 'completed' AND duration IS NOT NULL"""

AGGREGATE_STATEMENTS: Final = (_WORKFLOW, _WORKFLOW_DURATIONS, _AGENT, _AGENT_DURATIONS)
"""Every statement of a metric, so that a test can look at their plans."""


def workflow_aggregates(connection: sqlite3.Connection, definition_id: str, start: str, end: str) -> Aggregates:
    """Aggregate the executions of a definition that were created in ``[start, end]`` (texts of instants)."""
    chosen = (TENANT, definition_id, start, end)
    sums = connection.execute(_WORKFLOW, chosen).fetchone()
    return _aggregates(sums, connection.execute(_WORKFLOW_DURATIONS, chosen).fetchall())


def agent_aggregates(connection: sqlite3.Connection, agent_id: str, start: str, end: str) -> Aggregates:
    """Aggregate the logical calls of an agent that started in ``[start, end]`` (texts of instants)."""
    chosen = (TENANT, agent_id, start, end)
    sums = connection.execute(_AGENT, chosen).fetchone()
    return _aggregates(sums, connection.execute(_AGENT_DURATIONS, chosen).fetchall())


def _aggregates(sums: object, durations: object) -> Aggregates:
    # The sum of no rows is NULL, and so is the sum of unknown prices: only the second stays None.
    *counts, cost_usd = cast("tuple[int | float | None, ...]", sums)
    count, completed, failed, cancelled, retries, fallbacks, *usage = (int(value or 0) for value in counts)
    requests, input_tokens, output_tokens, tool_calls = usage
    return Aggregates(
        count=count,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        durations=sorted(duration for (duration,) in cast("list[tuple[float]]", durations)),
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
