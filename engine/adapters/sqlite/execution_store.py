"""Executions, their steps and their frozen plans in the embedded database: each port call is one transaction.

The order of competing writes is in ``step_rows`` (the fence) and in ``standing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import instant_text
from engine.adapters.sqlite.analytics import agent_aggregates, workflow_aggregates
from engine.adapters.sqlite.execution_rows import (
    execution_row,
    find_execution,
    insert_execution,
    list_execution_page,
    replace_execution,
)
from engine.adapters.sqlite.gate_rows import find_gate, gate_row, list_gate_page, put_gate
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.lease_rows import give_lease, put_mark, take_lease
from engine.adapters.sqlite.schema import TENANT
from engine.adapters.sqlite.step_rows import enter_run, find_step, list_step_records, put_step, step_row
from engine.adapters.standing import claimed, outranks, transitioned, with_beginning
from engine.domain.execution import ExecutionRecord, StepRecord
from engine.errors import InternalError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.adapters.sqlite.execution_rows import ExecutionRow
    from engine.adapters.sqlite.step_rows import StepRow
    from engine.domain.execution import ExecutionStatus
    from engine.domain.gate import GateRecord, Transition
    from engine.domain.page import Page, Position
    from engine.ports.execution_store import Aggregates, ExecutionFilter, GateFilter, Lease
    from engine.ports.health import StoreHealth

__all__ = ["SqliteExecutionStore"]

_INSERT_PLAN: Final = "INSERT INTO plans (tenant, plan_hash, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_GET_PLAN: Final = "SELECT body FROM plans WHERE tenant = ? AND plan_hash = ?"


class SqliteExecutionStore:
    """An ``ExecutionStore`` and ``ExecutionAnalytics`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def create_execution(
        self, record: ExecutionRecord, plan: bytes | None, steps: Sequence[StepRecord] = ()
    ) -> ExecutionRecord | None:
        """Insert a record, its plan and what it keeps of another one; return None, or the record that was first."""
        row = execution_row(self._codec, record)
        step_rows = [step_row(self._codec, step) for step in steps]

        def create(connection: sqlite3.Connection) -> ExecutionRecord | None:
            if not insert_execution(connection, record, row):
                return find_execution(connection, self._codec, record.execution_id)
            if plan is not None:
                connection.execute(_INSERT_PLAN, (TENANT, record.plan_hash, plan))
            for kept in step_rows:
                put_step(connection, kept)
            return None

        return await self._database.write(create)

    async def get_execution(self, execution_id: str) -> ExecutionRecord | None:
        """Return the record, or None."""
        return await self._database.read(lambda connection: find_execution(connection, self._codec, execution_id))

    async def list_executions(
        self, query: ExecutionFilter, *, limit: int, after: Position | None
    ) -> Page[ExecutionRecord]:
        """Return records, latest created first."""
        return await self._database.read(
            lambda connection: list_execution_page(connection, self._codec, query, limit, after)
        )

    async def get_plan(self, plan_hash: str) -> bytes | None:
        """Return the frozen plan, or None."""

        def get(connection: sqlite3.Connection) -> bytes | None:
            row = cast("tuple[bytes] | None", connection.execute(_GET_PLAN, (TENANT, plan_hash)).fetchone())
            return None if row is None else row[0]

        return await self._database.read(get)

    async def record_steps(self, steps: list[StepRecord], run_started_at: datetime) -> list[StepRecord]:
        """Write step records of one run behind the fence; return what stands for each."""
        if not steps:
            return []
        rows = [step_row(self._codec, step) for step in steps]
        started_at = instant_text(run_started_at)

        return await self._database.write(lambda connection: self._put_steps(connection, steps, rows, started_at))

    async def record_last_steps(
        self, steps: list[StepRecord], end: ExecutionRecord
    ) -> tuple[list[StepRecord], ExecutionRecord | None]:
        """Write the last steps of a run and, if each was written, the execution's end; return what stands of both."""
        rows = [step_row(self._codec, step) for step in steps]
        started_at = instant_text(end.run_started_at or end.created_at)
        whole = execution_row(self._codec, end)

        def record(connection: sqlite3.Connection) -> tuple[list[StepRecord], ExecutionRecord | None]:
            standing = self._put_steps(connection, steps, rows, started_at)
            if any(stands.token != step.token for stands, step in zip(standing, steps, strict=True)):
                return standing, None
            return standing, self._end(connection, end, whole)

        return await self._database.write(record)

    async def claim_step(self, claim: StepRecord, run_started_at: datetime) -> StepRecord:
        """Announce an attempt; return the stored record when it is completed or newer, else what was written."""
        started_at = instant_text(run_started_at)

        def write_claim(connection: sqlite3.Connection) -> StepRecord:
            stored = find_step(connection, self._codec, _address(claim))
            standing = claimed(claim, stored)
            if standing is None:
                return stored or claim
            enter_run(connection, claim.execution_id, claim.run_id, started_at)
            put_step(connection, step_row(self._codec, standing))
            return standing

        return await self._database.write(write_claim)

    async def get_step(
        self, execution_id: str, run_id: str, step_id: str, item: int | None, n: int
    ) -> StepRecord | None:
        """Return the record at an address, or None."""
        address = (execution_id, run_id, step_id, item, n)
        return await self._database.read(lambda connection: find_step(connection, self._codec, address))

    async def list_steps(self, execution_id: str, *, with_items: bool = True) -> list[StepRecord]:
        """Return the step records of all runs of an execution, by token."""
        return await self._database.read(
            lambda connection: list_step_records(connection, self._codec, execution_id, with_items=with_items)
        )

    async def finalize_execution(self, record: ExecutionRecord, steps: list[StepRecord]) -> ExecutionRecord:
        """Write an execution's end with the steps not yet stored; return what stands."""
        rows = [step_row(self._codec, step) for step in steps]
        whole = execution_row(self._codec, record)

        def finalize(connection: sqlite3.Connection) -> ExecutionRecord:
            for row in rows:
                put_step(connection, row)
            return self._end(connection, record, whole)

        return await self._database.write(finalize)

    async def record_transition(self, change: Transition) -> None:
        """Write a change of status, with its gates and steps."""
        gates = [(gate, gate_row(self._codec, gate)) for gate in change.gates]
        rows = [step_row(self._codec, step) for step in change.steps]

        def record(connection: sqlite3.Connection) -> None:
            for gate, row in gates:
                put_gate(connection, gate, row)
            for row in rows:
                put_step(connection, row)
            stored = find_execution(connection, self._codec, change.execution_id)
            standing = None if stored is None else transitioned(stored, change)
            if standing is not None:
                replace_execution(connection, execution_row(self._codec, standing))

        await self._database.write(record)

    async def get_gate(self, execution_id: str, gate_id: str) -> GateRecord | None:
        """Return a gate, open or not, or None."""
        return await self._database.read(lambda connection: find_gate(connection, self._codec, execution_id, gate_id))

    async def list_gates(self, query: GateFilter, *, limit: int, after: Position | None) -> Page[GateRecord]:
        """Return open gates, oldest first."""
        return await self._database.read(
            lambda connection: list_gate_page(connection, self._codec, query, limit, after)
        )

    async def repair_execution(self, record: ExecutionRecord, *, expected: ExecutionStatus) -> bool:
        """Replace the record when its stored status still is ``expected``; return whether it was."""
        row = execution_row(self._codec, record)

        def repair(connection: sqlite3.Connection) -> bool:
            stored = find_execution(connection, self._codec, record.execution_id)
            if stored is None or stored.status is not expected:
                return False
            replace_execution(connection, row)
            return True

        return await self._database.write(repair)

    async def acquire_lease(self, name: str, holder: str, ttl: timedelta) -> Lease | None:
        """Take or renew a lease; None, at no cost of a sync, while another holder has it."""
        return await self._database.write(lambda connection: take_lease(connection, name, holder, ttl))

    async def leave_mark(self, name: str, holder: str, mark: str) -> bool:
        """Store how far the holder has come; False when it has lost the lease."""
        return await self._database.write(lambda connection: put_mark(connection, name, holder, mark))

    async def release_lease(self, name: str, holder: str) -> None:
        """Give a lease back before its time; the mark stays."""
        await self._database.write(lambda connection: give_lease(connection, name, holder))

    async def workflow_aggregates(self, definition_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the executions of a definition that were created in ``[start, end]``."""
        return await workflow_aggregates(self._database, definition_id, instant_text(start), instant_text(end))

    async def agent_aggregates(self, agent_id: str, start: datetime, end: datetime) -> Aggregates:
        """Aggregate the logical calls of an agent that started in ``[start, end]``."""
        return await agent_aggregates(self._database, agent_id, instant_text(start), instant_text(end))

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _put_steps(
        self, connection: sqlite3.Connection, steps: list[StepRecord], rows: list[StepRow], run_started_at: str
    ) -> list[StepRecord]:
        enter_run(connection, steps[0].execution_id, steps[0].run_id, run_started_at)
        written = [put_step(connection, row) for row in rows]
        return [
            step if was_written else self._stored(connection, step)
            for step, was_written in zip(steps, written, strict=True)
        ]

    def _end(self, connection: sqlite3.Connection, record: ExecutionRecord, whole: ExecutionRow) -> ExecutionRecord:
        if insert_execution(connection, record, whole):
            return record
        stored = self._found(connection, record.execution_id)
        if outranks(stored, record):
            return stored
        standing = with_beginning(record, stored)
        replace_execution(connection, execution_row(self._codec, standing))
        return standing

    def _stored(self, connection: sqlite3.Connection, step: StepRecord) -> StepRecord:
        stored = find_step(connection, self._codec, _address(step))
        if stored is None:
            raise InternalError("A fence refused a step's write without a record behind it; please report it.")
        return stored

    def _found(self, connection: sqlite3.Connection, execution_id: str) -> ExecutionRecord:
        stored = find_execution(connection, self._codec, execution_id)
        if stored is None:
            raise InternalError("An insert met an execution that is not there; please report it.")
        return stored


def _address(step: StepRecord) -> tuple[str, str, str, int | None, int]:
    return (step.execution_id, step.run_id, step.step_id, step.item, step.n)
