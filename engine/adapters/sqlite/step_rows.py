"""Step records as rows, fenced by one statement: a smaller token changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text, pack, unpack
from engine.adapters.sqlite.schema import TENANT
from engine.adapters.standing import is_agent_call
from engine.domain.execution import StepRecord, StepStatus

if TYPE_CHECKING:
    import sqlite3

    from engine.adapters.codec import Codec

__all__ = ["StepRow", "enter_run", "find_step", "list_step_records", "put_step", "step_row"]

StepRow = tuple[object, ...]
"""The parameters of the statement that writes one step: its address, its fence, its measures and its body."""

_NO_ITEM: Final = -1

# A call was made to a fallback when the first one at its address, which each turn begins with, was to another agent.
_PUT = """INSERT INTO steps
    (tenant, execution_id, run_id, step_id, item, n, token, status, agent_id, started_at, duration, retries,
     requests, input_tokens, output_tokens, tool_calls, cost_usd, body, fallback)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
        ?6 > 1 AND EXISTS (SELECT 1 FROM steps AS first
            WHERE first.tenant = ?1 AND first.execution_id = ?2 AND first.run_id = ?3 AND first.step_id = ?4
                AND first.item = ?5 AND first.n = 1 AND first.agent_id <> ?9))
    ON CONFLICT (tenant, execution_id, run_id, step_id, item, n) DO UPDATE SET
        token = excluded.token, status = excluded.status, agent_id = excluded.agent_id,
        started_at = excluded.started_at, duration = excluded.duration, retries = excluded.retries,
        requests = excluded.requests, input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens, tool_calls = excluded.tool_calls,
        cost_usd = excluded.cost_usd, body = excluded.body, fallback = excluded.fallback
    WHERE excluded.token >= token"""
_GET = """SELECT body FROM steps
    WHERE tenant = ? AND execution_id = ? AND run_id = ? AND step_id = ? AND item = ? AND n = ?"""
_LIST = "SELECT body FROM steps WHERE tenant = ?1 AND execution_id = ?2 AND (?3 OR item = -1)"

# One statement says all of what a step's write means for its execution, and mostly changes no row: the run that
# has the record already is the usual writer. A run that started before the owner changes nothing.
_ENTER_RUN = """UPDATE executions SET
        status = CASE WHEN status IN ('pending', 'completed', 'failed', 'cancelled') THEN 'running' ELSE status END,
        started_at = coalesce(started_at, ?1), run_id = ?2, run_started_at = ?1, history_length = 0
    WHERE tenant = ?3 AND execution_id = ?4
        AND (run_started_at IS NULL OR run_started_at < ?1 OR (run_started_at = ?1 AND status = 'pending'))"""


def step_row(codec: Codec, step: StepRecord) -> StepRow:
    """Return the row of a step record."""
    usage = step.usage
    # What calls no agent, or was called by another execution, is not measured.
    is_measured = is_agent_call(step)
    duration = None
    if step.status is StepStatus.COMPLETED and step.started_at is not None and step.completed_at is not None:
        duration = (step.completed_at - step.started_at).total_seconds()
    return (
        *_address(step.execution_id, step.run_id, step.step_id, step.item, step.n),
        step.token,
        step.status,
        step.agent_id if is_measured else None,
        None if step.started_at is None else instant_text(step.started_at),
        duration,
        max(step.attempts - 1, 0) if is_measured else 0,
        usage.requests,
        usage.input_tokens,
        usage.output_tokens,
        usage.tool_calls,
        usage.cost_usd,
        pack(codec, step),
    )


def put_step(connection: sqlite3.Connection, row: StepRow) -> bool:
    """Write a step's row unless a greater token stands; return whether it was written."""
    return connection.execute(_PUT, row).rowcount == 1


def find_step(
    connection: sqlite3.Connection, codec: Codec, address: tuple[str, str, str, int | None, int]
) -> StepRecord | None:
    """Return the record at (execution, run, step, item, n), or None."""
    row = cast("tuple[bytes] | None", connection.execute(_GET, _address(*address)).fetchone())
    return None if row is None else unpack(codec, StepRecord, row[0])


def list_step_records(
    connection: sqlite3.Connection, codec: Codec, execution_id: str, *, with_items: bool
) -> list[StepRecord]:
    """Return the step records of an execution by token; equal ones by address, so that the order is always one."""
    rows = cast("list[tuple[bytes]]", connection.execute(_LIST, (TENANT, execution_id, with_items)).fetchall())
    steps = [unpack(codec, StepRecord, body) for (body,) in rows]
    steps.sort(key=lambda step: (step.token, step.run_id, step.step_id, step.item or 0, step.n))
    return steps


def enter_run(connection: sqlite3.Connection, execution_id: str, run_id: str, run_started_at: str) -> None:
    """Let the run have the execution's record: start it, take it over, or reopen what an earlier run ended."""
    connection.execute(_ENTER_RUN, (run_started_at, run_id, TENANT, execution_id))


def _address(execution_id: str, run_id: str, step_id: str, item: int | None, n: int) -> tuple[object, ...]:
    return (TENANT, execution_id, run_id, step_id, _NO_ITEM if item is None else item, n)
