"""What a run leaves open that ended without any code of ours: steps, items and gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.domain.execution import Event, ExecutionStatus, StepRecord, StepStatus, micros
from engine.ports.execution_runtime import RunDescription
from engine.ports.execution_store import GateFilter
from engine.services.execution_reads import ExecutionReads
from engine.services.repair import GATES_AT_ONCE, ExecutionRepairs
from tests.contract.samples import NOW, execution, gate, seconds, step, transition

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from engine.ports.execution_runtime import ExecutionRuntime

RUN_1 = NOW + seconds(1)
CLOSED_AT = NOW + seconds(60)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteExecutionStore]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield SqliteExecutionStore(database, Codec())
    await database.aclose()


@pytest.fixture
async def live(tmp_path: Path) -> AsyncGenerator[SqliteStateStore]:
    database = SqliteDatabase(tmp_path / "live.db", LIVE_STATE)
    yield SqliteStateStore(database, Codec(), seconds(60))
    await database.aclose()


@pytest.fixture
def repairs(store: SqliteExecutionStore, live: SqliteStateStore) -> ExecutionRepairs:
    return ExecutionRepairs(store, live, lambda: CLOSED_AT)


def run(status: str) -> RunDescription:
    return RunDescription("run-1", status, RUN_1, CLOSED_AT, 20, "flow")  # type: ignore[arg-type]


async def begin(store: SqliteExecutionStore, status: ExecutionStatus, *gates: str) -> None:
    await store.create_execution(execution(), None)
    items = [step("many", 10 + item, item=item, status=StepStatus.RUNNING, completed_at=None) for item in range(3)]
    over = step("many", 20, item=1)
    await store.record_steps([*items, over], RUN_1)
    made = [gate(gate_id, opened_at=NOW + seconds(number)) for number, gate_id in enumerate(gates)]
    await store.record_transition(transition(100, status, gates=made))


@pytest.mark.parametrize("status", [ExecutionStatus.WAITING, ExecutionStatus.PAUSED])
async def test_a_terminated_run_leaves_nothing_open(
    store: SqliteExecutionStore, repairs: ExecutionRepairs, status: ExecutionStatus
) -> None:
    ids = [f"g{number}" for number in range(2 * GATES_AT_ONCE + 1)]
    await begin(store, status, *ids)
    await store.record_transition(
        transition(200, None, execution_id="other", gates=[gate("theirs", execution_id="other")])
    )
    record = await store.get_execution("flow-1")
    assert record is not None
    repaired = await repairs.repair(record, run("terminated"))
    assert repaired is not None
    assert repaired.status is ExecutionStatus.CANCELLED
    assert await store.get_execution("flow-1") == repaired
    steps = {each.item: each.status for each in await store.list_steps("flow-1")}
    assert steps == {0: StepStatus.CANCELLED, 1: StepStatus.COMPLETED, 2: StepStatus.CANCELLED}
    closed = await store.get_gate("flow-1", "g7")
    assert closed is not None
    assert (closed.status, closed.answer, closed.token) == ("closed", None, micros(CLOSED_AT))
    left = await store.list_gates(GateFilter(), limit=5, after=None)
    assert [each.gate_id for each in left.items] == ["theirs"]


@pytest.mark.parametrize("status", [ExecutionStatus.WAITING, ExecutionStatus.PAUSED])
async def test_a_run_that_waits_is_left_alone(
    store: SqliteExecutionStore, repairs: ExecutionRepairs, status: ExecutionStatus
) -> None:
    await begin(store, status, "g")
    record = await store.get_execution("flow-1")
    assert record is not None
    assert record.status is status
    assert await repairs.repair(record, run("running")) is None
    assert await store.get_execution("flow-1") == record
    assert await store.get_gate("flow-1", "g") == gate("g", opened_at=NOW)


class NotingStore(SqliteExecutionStore):
    """A store that keeps whether the records of items were asked for."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        super().__init__(database, codec)
        self.asked: list[bool] = []

    async def list_steps(self, execution_id: str, *, with_items: bool = True) -> list[StepRecord]:
        self.asked.append(with_items)
        return await super().list_steps(execution_id, with_items=with_items)


HANDED = Event.at_instant("handoff.taken", NOW, "many[1].1", "many")


@pytest.mark.parametrize(
    ("handed", "has_whole", "asked"),
    [(0, True, [False]), (1, True, [False, True]), (0, False, [False, True])],
    ids=["", "an item handed over", "the step tells no end"],
)
async def test_a_result_reads_items_when_it_must(
    tmp_path: Path, live: SqliteStateStore, repairs: ExecutionRepairs, handed: int, has_whole: bool, asked: list[bool]
) -> None:
    database = SqliteDatabase(tmp_path / "baton.db")
    store = NotingStore(database, Codec())
    over = execution(
        status=ExecutionStatus.COMPLETED, run_id="run-1", step_ids=["many"], handoffs_taken=handed, completed_at=NOW
    )
    items = [step("many", 10 + item, item=item, events=[HANDED] if item == 1 and handed else []) for item in range(3)]
    await store.finalize_execution(over, [*items, *([step("many", 20)] if has_whole else [])])
    reads = ExecutionReads(store, live, cast("ExecutionRuntime", None), repairs)
    result = await reads.read_result("flow-1", seconds(0))
    assert (store.asked, result.handoffs) == (asked, [HANDED][:handed])
    assert [*result.steps] == ["many"]
    assert result.steps["many"].status is (StepStatus.COMPLETED if has_whole else StepStatus.RUNNING)
    await database.aclose()


async def test_a_repaired_record_counts_the_handoffs_of_its_steps_and_items(
    store: SqliteExecutionStore, repairs: ExecutionRepairs
) -> None:
    await begin(store, ExecutionStatus.RUNNING)
    refused = Event.at_instant("handoff.refused", NOW, "last.1", "last")
    await store.record_steps([step("many", 30, item=1, events=[HANDED]), step("last", 40, events=[refused])], RUN_1)
    record = await store.get_execution("flow-1")
    assert record is not None
    repaired = await repairs.repair(record, run("completed"))
    assert repaired is not None
    assert (repaired.handoffs_taken, repaired.handoffs_refused) == (1, 1)
    assert await store.get_execution("flow-1") == repaired
