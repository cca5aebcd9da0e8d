"""What ends without any code of ours is made right though nobody reads it: the reconciler, `verify` and `repair`."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from failing_stores import DeafStore, put_between
from slow_agent import Slow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from engine.adapters.temporal.payloads import data_converter
from engine.bootstrap import EngineSession
from engine.cli.root import baton
from engine.domain.execution import ExecutionRecord, ExecutionStatus, StepRecord, StepStatus, Value
from engine.errors import StoreError
from engine.services import reconciliation
from engine.services.reconciliation import ReconciliationService
from engine.services.repair import ExecutionRepairs, Repair
from engine.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from engine import WorkflowEngine
    from engine.adapters.temporal.dev_server import DevServerLease
    from engine.services.reconciliation import Reconciled
    from tests.conftest import EngineFactory

STEPS = [{"id": "a", "agent_id": "agent-slow", "retry_policy": {"max_retries": 0}}]
CANCELLED, FAILED, RUNNING = ExecutionStatus.CANCELLED, ExecutionStatus.FAILED, ExecutionStatus.RUNNING


class Clock:
    """The present, which a test moves on, or stops."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)
        self.stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return (self.stopped_at or datetime.now(UTC)) + self.ahead

    def move(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


class CountingRuntime:
    """Counts how often Temporal is asked for a run."""

    def __init__(self, runtime: Any) -> None:
        self.described: list[str] = []
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    async def describe_run(self, execution_id: str) -> Any:
        self.described.append(execution_id)
        return await self._runtime.describe_run(execution_id)


class Reconciler:
    """One process's reconciler, with what it works on."""

    def __init__(self, config: dict[str, object], holder: str, batch_size: int = 100) -> None:
        self.session = EngineSession(EngineSettings.load({**config, "worker": "none"}))
        self.stores = self.session.stores
        self.clock = Clock()
        self.runtime = CountingRuntime(self.session.runtime)
        self.service = ReconciliationService(
            self.stores.executions,
            self.stores.state,
            self.runtime,
            ExecutionRepairs(self.stores.executions, self.stores.state, self.clock),
            self.clock,
            holder=holder,
            batch_size=batch_size,
        )

    async def once(self) -> Reconciled:
        outcome = await self.service.reconcile_once()
        assert outcome is not None, "another one has the lease"
        return outcome

    async def until_repaired(self, execution_id: str, what: str = "record") -> Repair:
        """Make passes until one has repaired an execution: Temporal's lists lag."""
        async with asyncio.timeout(20):
            while True:
                for repair in (await self.once()).repairs:
                    if repair.execution_id == execution_id and repair.what == what:
                        return repair
                await asyncio.sleep(0.05)


@pytest.fixture
async def make_reconciler(engine_config: dict[str, object]) -> AsyncGenerator[Callable[..., Reconciler]]:
    made: list[Reconciler] = []

    def make(holder: str = "first", **options: Any) -> Reconciler:
        made.append(Reconciler(engine_config, holder, **options))
        return made[-1]

    yield make
    for reconciler in made:
        await reconciler.session.aclose()


@pytest.fixture
async def reconciler(make_reconciler: Callable[..., Reconciler]) -> Reconciler:
    """One that has the lease from before any worker is there, so that no other one repairs anything."""
    reconciler = make_reconciler()
    assert (await reconciler.once()).repairs == []
    return reconciler


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
async def engine(engine_factory: EngineFactory, slow: Slow) -> AsyncGenerator[WorkflowEngine]:
    # An instance is called through a function: the invoker looks at the signature of what it is given.
    engine = engine_factory({"agent-slow": slow.__call__})
    await engine.register_agent("Slow", config={"function": "agents:slow"})
    yield engine
    slow.free = True


@pytest.fixture
async def temporal(dev_server: DevServerLease) -> Client:
    return await Client.connect(dev_server.address, data_converter=data_converter(1024), identity="an-operator")


async def running(engine: WorkflowEngine) -> str:
    """Start an execution and return once its record says that step a runs."""
    workflow_id = await engine.create_workflow(name="Reconciled", steps=STEPS)
    execution_id = (await engine.execute_workflow(workflow_id, {}))["execution_id"]
    async with asyncio.timeout(20):
        while (await engine.get_execution_status(execution_id))["current_steps"] != ["a"]:
            await asyncio.sleep(0.02)
    return execution_id


async def listed(engine: WorkflowEngine, execution_id: str) -> Any:
    """Return the execution as the records alone have it: a list asks and repairs nothing."""
    items = (await engine.list_executions())["items"]
    return next(item for item in items if item["execution_id"] == execution_id)


async def put_record(
    reconciler: Reconciler, execution_id: str, age: float, status: ExecutionStatus = ExecutionStatus.PENDING
) -> None:
    """Store an open record as a starter leaves it that died at once, or whose run is long gone."""
    created_at = datetime.now(UTC) - timedelta(seconds=age)
    has_begun = status is not ExecutionStatus.PENDING
    record = ExecutionRecord(
        execution_id=execution_id,
        definition_id="reconciled",
        version=1,
        plan_hash="sha256:0",
        status=status,
        input=Value.of({}),
        input_hash="sha256:0",
        step_ids=["a"],
        created_at=created_at,
        run_id="01a20000-0000-7000-8000-000000000000" if has_begun else None,
        run_started_at=created_at if has_begun else None,
    )
    assert await reconciler.stores.executions.create_execution(record, b"{}") is None


async def reset(temporal: Client, execution_id: str) -> None:
    described = await temporal.get_workflow_handle(execution_id).describe()
    await temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=execution_id, run_id=described.run_id),
            reason="try again",
            workflow_task_finish_event_id=4,
            request_id="reset-1",
        )
    )


async def test_a_terminated_run_is_cancelled_with_who_and_why(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client
):
    execution_id = await running(engine)
    await temporal.get_workflow_handle(execution_id).terminate(reason="out of budget")
    assert await reconciler.until_repaired(execution_id) == Repair(execution_id, "record", RUNNING, CANCELLED)
    item = await listed(engine, execution_id)
    assert item["status"] == "cancelled"
    assert item["cancel"]["reason"] == "out of budget"
    assert item["cancel"]["by"] == "an-operator"
    live = await reconciler.stores.state.get_live_state(execution_id)
    assert live is not None
    assert live.execution.status is CANCELLED
    [step] = await reconciler.stores.executions.list_steps(execution_id)
    assert step.status is StepStatus.CANCELLED
    assert (await reconciler.once()).repairs == []


async def test_a_run_that_times_out_at_the_server_fails(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client, engine_config: dict[str, object]
):
    await running(engine)
    handle = await temporal.start_workflow(
        "reconciled",
        {},
        id="timed-out-by-the-server",
        task_queue=str(engine_config["task_queue"]),
        execution_timeout=timedelta(seconds=1),
    )
    assert (await reconciler.until_repaired(handle.id)).after is FAILED
    item = await listed(engine, handle.id)
    assert item["status"] == "failed"
    assert item["error"]["code"] == "execution_timeout"


async def test_a_start_that_never_arrived_fails_after_a_while(reconciler: Reconciler, engine: WorkflowEngine):
    await put_record(reconciler, "just-accepted", age=5)
    await put_record(reconciler, "never-started", age=31)
    assert (await reconciler.once()).repairs == [
        Repair("never-started", "record", ExecutionStatus.PENDING, FAILED),
    ]
    item = await listed(engine, "never-started")
    assert item["error"]["code"] == "runtime_unavailable"
    assert "start it again" in item["error"]["message"]
    assert (await listed(engine, "just-accepted"))["status"] == "pending"
    reconciler.clock.move(26)
    assert (await reconciler.once()).repairs == [
        Repair("just-accepted", "record", ExecutionStatus.PENDING, FAILED),
    ]


async def test_a_run_past_retention_has_lost_its_history(reconciler: Reconciler, engine: WorkflowEngine):
    await put_record(reconciler, "long-gone", age=60, status=RUNNING)
    assert (await reconciler.once()).repairs == [Repair("long-gone", "record", RUNNING, FAILED)]
    item = await listed(engine, "long-gone")
    assert item["status"] == "failed"
    assert item["error"]["details"]["lost_history"] is True


async def test_a_deleted_run_is_over_too(reconciler: Reconciler, engine: WorkflowEngine, temporal: Client):
    execution_id = await running(engine)
    await temporal.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=execution_id)
        )
    )
    async with asyncio.timeout(20):
        while await is_known(temporal, execution_id):
            await asyncio.sleep(0.05)
    reconciler.clock.move(11)
    assert (await reconciler.until_repaired(execution_id)).after is FAILED
    assert (await listed(engine, execution_id))["error"]["details"]["lost_history"] is True


async def is_known(temporal: Client, execution_id: str) -> bool:
    """Deleting an open run terminates it first, and takes a moment."""
    try:
        await temporal.get_workflow_handle(execution_id).describe()
    except RPCError as error:
        assert error.status is RPCStatusCode.NOT_FOUND
        return False
    return True


async def test_a_reset_run_goes_on_though_its_first_run_was_terminated_by_it(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client, slow: Slow
):
    execution_id = await running(engine)
    await reset(temporal, execution_id)
    async with asyncio.timeout(20):
        while slow.calls < 2 or not await ended_runs(reconciler):
            await asyncio.sleep(0.05)
    reconciler.clock.move(11)
    outcome = await reconciler.once()
    assert outcome.checked >= 1
    assert outcome.repairs == []
    assert (await listed(engine, execution_id))["status"] == "running"
    slow.free = True
    assert (await engine.get_execution_result(execution_id, wait=20))["output"] == {"call": 2}


async def ended_runs(reconciler: Reconciler) -> list[str]:
    page = await reconciler.runtime.list_runs(statuses=("terminated",), limit=10, after=None)
    return [run.run_id for run in page.items]


async def test_of_a_finished_execution_a_later_run_counts_that_no_worker_saw(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client, slow: Slow
):
    execution_id = await running(engine)
    slow.free = True
    assert (await engine.get_execution_result(execution_id, wait=20))["status"] == "completed"
    await engine.aclose()
    await reset(temporal, execution_id)
    await temporal.get_workflow_handle(execution_id).terminate(reason="not again")
    repair = await reconciler.until_repaired(execution_id)
    assert (repair.before, repair.after) == (ExecutionStatus.COMPLETED, CANCELLED)
    record = await reconciler.stores.executions.get_execution(execution_id)
    assert record is not None
    assert record.output is None
    assert record.cancel is not None
    assert record.cancel.reason == "not again"
    assert [event.type for event in record.events if event.type.startswith("execution.c")] == ["execution.cancelled"]
    assert (await reconciler.once()).repairs == []


async def test_an_end_that_temporal_does_not_share_gives_way(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client
):
    """The end was recorded, and before the run could close an operator closed it otherwise."""
    execution_id = await running(engine)
    record = await reconciler.stores.executions.get_execution(execution_id)
    assert record is not None
    end = record.model_copy(update={"status": ExecutionStatus.COMPLETED, "completed_at": reconciler.clock()})
    assert await reconciler.stores.executions.repair_execution(end, expected=RUNNING)
    await temporal.get_workflow_handle(execution_id).terminate()
    repair = await reconciler.until_repaired(execution_id)
    assert (repair.before, repair.after) == (ExecutionStatus.COMPLETED, CANCELLED)
    assert (await listed(engine, execution_id))["status"] == "cancelled"


async def test_runs_that_closed_are_read_page_by_page_and_once(
    make_reconciler: Callable[..., Reconciler], engine: WorkflowEngine, temporal: Client
):
    reconciler = make_reconciler(batch_size=1)
    await reconciler.once()
    execution_ids = [await running(engine) for _ in range(reconciliation.PAGES_A_PASS + 2)]
    for execution_id in execution_ids:
        await temporal.get_workflow_handle(execution_id).terminate()
    repaired: list[str] = []
    async with asyncio.timeout(20):
        while len(repaired) < len(execution_ids):
            repaired += [repair.execution_id for repair in (await reconciler.once()).repairs]
            await asyncio.sleep(0.05)
    assert sorted(repaired) == sorted(execution_ids)
    asked = len(reconciler.runtime.described)
    for _ in range(3):
        assert (await reconciler.once()).repairs == []
    assert len(reconciler.runtime.described) == asked == len(execution_ids)


async def test_flushed_live_state_is_rebuilt(
    reconciler: Reconciler, engine: WorkflowEngine, engine_config: dict[str, object]
):
    execution_id = await running(engine)
    flush(engine_config)
    assert await reconciler.stores.state.get_live_state(execution_id) is None
    # The pass that took the lease has looked at live state just now.
    reconciler.clock.move(reconciliation.LIVE_STATE_PAUSE.total_seconds())
    assert (await reconciler.once()).repairs == [Repair(execution_id, "live_state", None, RUNNING)]
    assert (await listed(engine, execution_id))["current_steps"] == ["a"]


def flush(config: dict[str, object]) -> None:
    with closing(sqlite3.connect(Path(str(config["data_dir"])) / "live.db")) as live, live:
        for table in ("live", "live_steps", "events"):
            live.execute(f"DELETE FROM {table}")


async def test_a_state_store_that_fails_stops_no_repair(
    monkeypatch: pytest.MonkeyPatch, make_reconciler: Callable[..., Reconciler], caplog: pytest.LogCaptureFixture
):
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, get_live_states=2), "state")
    reconciler = make_reconciler(batch_size=1)
    await put_record(reconciler, "long-gone", age=60, status=RUNNING)
    await put_record(reconciler, "waits", age=20)
    await put_record(reconciler, "waits-too", age=15)
    assert [repair.what for repair in (await reconciler.once()).repairs] == ["record"]
    assert doubles[0].refused == 2
    [message] = [record.message for record in caplog.records if "is hindered" in record.message]
    assert message.startswith("The rebuilding of live state is hindered until this is over: get_live_states")


async def test_an_execution_that_runs_is_asked_for_less_and_less(reconciler: Reconciler, engine: WorkflowEngine):
    execution_id = await running(engine)
    reconciler.clock.stopped_at = datetime.now(UTC)
    asked: list[float] = []
    for second in range(0, 700, 10):
        reconciler.clock.move(10)
        before = len(reconciler.runtime.described)
        await reconciler.once()
        if len(reconciler.runtime.described) > before:
            asked.append(second)
    assert set(reconciler.runtime.described) == {execution_id}
    assert [late - early for early, late in pairwise(asked)] == [10, 20, 40, 80, 160, 300]


async def test_a_pass_is_bounded_and_the_next_one_goes_on(make_reconciler: Callable[..., Reconciler]):
    reconciler = make_reconciler(batch_size=2)
    for number in range(23):
        await put_record(reconciler, f"gone-{number:02}", age=60 + number, status=RUNNING)
    repaired: list[str] = []
    for _ in range(2):
        outcome = await reconciler.once()
        assert not outcome.is_whole
        assert outcome.checked == 2 * reconciliation.PAGES_A_PASS
        repaired += [repair.execution_id for repair in outcome.repairs]
    outcome = await reconciler.once()
    assert outcome.is_whole
    repaired += [repair.execution_id for repair in outcome.repairs]
    assert sorted(repaired) == [f"gone-{number:02}" for number in range(23)]


async def test_a_damaged_execution_keeps_nobody_from_the_others(
    make_reconciler: Callable[..., Reconciler], engine_config: dict[str, object]
):
    reconciler = make_reconciler(batch_size=1)
    await put_record(reconciler, "damaged", age=60, status=RUNNING)
    await put_record(reconciler, "long-gone", age=70, status=RUNNING)
    step = StepRecord(execution_id="damaged", run_id="run", step_id="a", token=1, status=StepStatus.RUNNING)
    await reconciler.stores.executions.record_steps([step], datetime.now(UTC))
    with closing(sqlite3.connect(Path(str(engine_config["data_dir"])) / "baton.db")) as records, records:
        records.execute("UPDATE steps SET body = x'00'")
    for _ in range(2):
        with pytest.raises(StoreError):
            await reconciler.service.reconcile_once()
    record = await reconciler.stores.executions.get_execution("long-gone")
    assert record is not None
    assert record.status is FAILED


async def test_one_at_a_time_has_the_lease_and_another_takes_over_when_it_dies(
    make_reconciler: Callable[..., Reconciler], monkeypatch: pytest.MonkeyPatch
):
    first, second = make_reconciler("first"), make_reconciler("second")
    monkeypatch.setattr(reconciliation, "LEASE_TTL", timedelta(seconds=1))
    assert (await first.once()).repairs == []
    assert await second.service.reconcile_once() is None
    await put_record(second, "long-gone", age=60, status=RUNNING)
    # The first one dies: nothing gives its lease back.
    assert (await asyncio.wait_for(taken_over(second), 20)).repairs == [
        Repair("long-gone", "record", RUNNING, FAILED),
    ]
    monkeypatch.undo()
    first.clock.move(1)
    assert await first.service.reconcile_once() is None


async def taken_over(reconciler: Reconciler) -> Reconciled:
    while (outcome := await reconciler.service.reconcile_once()) is None:
        await asyncio.sleep(0.05)
    return outcome


async def test_a_successor_begins_where_the_last_one_stopped(
    make_reconciler: Callable[..., Reconciler], engine: WorkflowEngine, temporal: Client
):
    """A reset run of a finished execution shows only in the list of closed runs."""
    first, second = make_reconciler("first"), make_reconciler("second")
    await first.once()
    await first.stores.executions.release_lease(reconciliation.LEASE, "first")
    execution_id = await running(engine)
    await temporal.get_workflow_handle(execution_id).terminate()
    second.clock.move(600)
    assert (await second.until_repaired(execution_id)).after is CANCELLED
    lease = await second.stores.executions.acquire_lease(reconciliation.LEASE, "second", timedelta(seconds=1))
    assert lease is not None
    assert lease.mark is not None
    assert datetime.fromisoformat(lease.mark) > datetime.now(UTC) + timedelta(seconds=500)


async def test_two_that_repair_at_once_repair_once(make_reconciler: Callable[..., Reconciler]):
    first, second = make_reconciler("first"), make_reconciler("second")
    for number in range(10):
        await put_record(first, f"gone-{number}", age=60, status=RUNNING)
    done = await asyncio.gather(*(one.session.verification.repair() for one in (first, second)))
    repaired = [repair.execution_id for each in done for repair in each.repairs if repair.what == "record"]
    assert sorted(repaired) == [f"gone-{number}" for number in range(10)]
    assert [each.left for each in done] == [[], []]


async def test_a_worker_reconciles_through_outages_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
    make_reconciler: Callable[..., Reconciler],
    engine_factory: EngineFactory,
    slow: Slow,
    temporal: Client,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "engine.services.reconciliation")
    monkeypatch.setattr(reconciliation, "PAUSE", timedelta(seconds=0.2))
    another = make_reconciler("another")
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, acquire_lease=3))
    engine = engine_factory({"agent-slow": slow.__call__})
    await engine.register_agent("Slow", config={"function": "agents:slow"})
    execution_id = await running(engine)
    await temporal.get_workflow_handle(execution_id).terminate(reason="nobody looks")
    async with asyncio.timeout(20):
        while (await listed(engine, execution_id))["status"] != "cancelled":
            await asyncio.sleep(0.1)
    assert doubles[0].refused == 3
    messages = [record.message for record in caplog.records if record.message.startswith("The reconciler")]
    assert messages == [
        "The reconciler is hindered until this is over: acquire_lease does not answer; the test wants it so",
        "The reconciler works again",
    ]
    assert await another.service.reconcile_once() is None, "the worker has the lease"
    await engine.aclose()
    assert (await another.once()).repairs == []


async def test_verify_tells_what_differs_and_repair_mends_it(
    reconciler: Reconciler, engine: WorkflowEngine, temporal: Client, engine_config: dict[str, object], slow: Slow
):
    forgotten = await running(engine)
    slow.free = True
    await engine.get_execution_result(forgotten, wait=20)
    slow.free = False
    terminated, flushed = await running(engine), await running(engine)
    assert await engine.verify_executions() == {"checked": 3, "live_state": True, "drift": []}
    flush(engine_config)
    await temporal.get_workflow_handle(terminated).terminate()
    forget(engine_config, forgotten)
    # What was refused before it began has no record, and needs none.
    by_hand = await temporal.start_workflow(
        "no-such-workflow", {}, id="by-hand", task_queue=str(engine_config["task_queue"])
    )
    async with asyncio.timeout(20):
        await asyncio.gather(by_hand.result(), return_exceptions=True)
        while len((found := await engine.verify_executions())["drift"]) < 3:
            await asyncio.sleep(0.05)
    assert found["checked"] == 4
    drift = {item["execution_id"]: item for item in found["drift"]}
    assert drift[terminated] == {
        "execution_id": terminated,
        "record": "running",
        "temporal": "terminated",
        "live": None,
        "text": "the record should be cancelled",
    }
    assert drift[flushed]["text"] == "live state is lost"
    assert (drift[forgotten]["record"], drift[forgotten]["temporal"]) == (None, "completed")

    shown = await command(engine_config, "verify", "-o", "json", code=1)
    assert json.loads(shown) == found
    assert "terminated" in await command(engine_config, "verify", code=1)
    repaired = json.loads(await command(engine_config, "repair", flushed, "-o", "json"))
    assert repaired == {
        "checked": 1,
        "live_state": True,
        "repaired": [{"execution_id": flushed, "what": "live_state", "before": None, "after": "running"}],
        "left": [],
    }
    text = await command(engine_config, "repair")
    assert [terminated, "record", "running", "cancelled"] in [line.split() for line in text.splitlines()]
    assert "Temporal has a run of it" in text
    left = (await engine.verify_executions())["drift"]
    assert [item["execution_id"] for item in left] == [forgotten]
    assert (await listed(engine, terminated))["status"] == "cancelled"
    await command(engine_config, "repair", "unknown", code=2)
    slow.free = True
    assert (await engine.get_execution_result(flushed, wait=20))["status"] == "completed"


def forget(config: dict[str, object], execution_id: str) -> None:
    """Lose a record, as a store does that was set back to an older copy."""
    with closing(sqlite3.connect(Path(str(config["data_dir"])) / "baton.db")) as records, records:
        assert records.execute("DELETE FROM executions WHERE execution_id = ?", (execution_id,)).rowcount == 1


async def test_how_executions_end_by_themselves_is_no_drift(engine_factory: EngineFactory, reconciler: Reconciler):
    engine = engine_factory({"agent-slow": {"text": "done"}, "agent-broken": ValueError("no")})
    await engine.register_agent("Slow", config={"function": "agents:slow"})
    await engine.register_agent("Broken", agent_id="agent-broken", config={"function": "agents:broken"})
    good = await engine.create_workflow(name="Good", steps=STEPS)
    bad = await engine.create_workflow(name="Bad", steps=[{**STEPS[0], "agent_id": "agent-broken"}])
    for workflow_id in (good, bad, good, bad):
        execution = await engine.execute_workflow(workflow_id, {})
        await engine.get_execution_result(execution["execution_id"], wait=20)
    assert await engine.verify_executions() == {"checked": 4, "live_state": True, "drift": []}
    assert await engine.repair_executions() == {"checked": 4, "live_state": True, "repaired": [], "left": []}
    reconciler.clock.move(31)
    outcome = await reconciler.once()
    assert (outcome.checked, outcome.repairs) == (0, [])


async def command(config: dict[str, object], *words: str, code: int = 0) -> str:
    """Run a command of the CLI in this process and return what it writes to stdout."""
    settings = [part for key, value in {**config, "worker": "none"}.items() for part in ("-c", f"{key}={value}")]
    result = await asyncio.to_thread(CliRunner().invoke, baton, [*settings, *words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout
