"""Runs that end without any code of ours running: the next reader finds out, and the record is made right."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from failing_stores import DeafStore, put_between
from slow_agent import Slow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from engine import WorkflowEngine
from engine.adapters.temporal.payloads import data_converter
from engine.bootstrap import open_stores
from engine.domain.execution import ExecutionRecord, ExecutionStatus, Value
from engine.settings import EngineSettings
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.adapters.temporal.dev_server import DevServerLease

STEPS = [{"id": "a", "agent_id": "agent-slow", "retry_policy": {"max_retries": 0}}]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
async def engine(engine_config: dict[str, object], slow: Slow) -> AsyncGenerator[WorkflowEngine]:
    # An instance is called through a function: the invoker looks at the signature of what it is given.
    invoker = ScriptedAgentInvoker({"agent-slow": slow.__call__})
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        await engine.register_agent("Slow", config={"function": "agents:slow"})
        yield engine
        slow.free = True


@pytest.fixture
async def temporal(dev_server: DevServerLease) -> Client:
    return await Client.connect(dev_server.address, data_converter=data_converter(1024), identity="an-operator")


async def running(engine: WorkflowEngine, **options: object) -> str:
    """Start an execution and return once its record says that step a runs."""
    workflow_id = await engine.create_workflow(name="Contradicted", steps=STEPS)
    execution = await engine.execute_workflow(workflow_id, {}, options or None)
    await status_when(engine, execution["execution_id"], lambda status: status["current_steps"] == ["a"])
    return execution["execution_id"]


async def status_when(engine: WorkflowEngine, execution_id: str, wanted: Any, seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not wanted(status := await engine.get_execution_status(execution_id)):
            await asyncio.sleep(0.05)
    return status


def ended(status: Any) -> bool:
    return status["completed_at"] is not None


async def recorded(engine: WorkflowEngine, execution_id: str) -> Any:
    """Return the execution as the records alone have it."""
    items = (await engine.list_executions())["items"]
    return next(item for item in items if item["execution_id"] == execution_id)


async def test_a_terminated_run_is_cancelled_with_who_and_why(engine: WorkflowEngine, temporal: Client):
    execution_id = await running(engine)
    await temporal.get_workflow_handle(execution_id).terminate(reason="out of budget")
    status = await status_when(engine, execution_id, ended)
    assert status["status"] == "cancelled"
    assert status["cancel"]["reason"] == "out of budget"
    assert status["cancel"]["by"] == "an-operator"
    assert (await recorded(engine, execution_id))["status"] == "cancelled"
    result = await engine.get_execution_result(execution_id)
    assert result["status"] == "cancelled"
    assert result["error"] is None
    assert result["cancel"]["reason"] == "out of budget"  # pyright: ignore[reportTypedDictNotRequiredAccess] # the point
    assert await engine.cancel_execution(execution_id) is False


async def test_a_waiting_result_learns_of_a_termination(engine: WorkflowEngine, temporal: Client):
    execution_id = await running(engine)
    waiting = asyncio.create_task(engine.get_execution_result(execution_id, wait=30))
    await asyncio.sleep(0.2)
    await temporal.get_workflow_handle(execution_id).terminate()
    assert (await waiting)["status"] == "cancelled"


async def test_a_watcher_learns_of_a_termination(engine: WorkflowEngine, temporal: Client):
    execution_id = await running(engine)
    seen: list[str] = []

    async def watch() -> None:
        async for event in engine.watch_execution(execution_id):
            seen.append(event["type"])

    watching = asyncio.create_task(watch())
    await temporal.get_workflow_handle(execution_id).terminate()
    async with asyncio.timeout(20):
        await watching
    assert seen[0] == "execution.started"
    assert seen[-1] == "execution.cancelled"


async def test_temporals_own_timeout_is_execution_timeout(
    engine: WorkflowEngine, temporal: Client, engine_config: dict[str, object]
):
    await running(engine)
    handle = await temporal.start_workflow(
        "contradicted",
        {},
        id="timed-out-by-the-server",
        task_queue=str(engine_config["task_queue"]),
        execution_timeout=timedelta(seconds=1),
    )
    async with asyncio.timeout(20):
        await asyncio.gather(handle.result(), return_exceptions=True)
    status = await status_when(engine, handle.id, ended)
    assert status["status"] == "failed"
    assert status["error"]["code"] == "execution_timeout"
    assert (await recorded(engine, handle.id))["status"] == "failed"


async def test_a_deleted_run_has_lost_its_history(engine: WorkflowEngine, temporal: Client):
    execution_id = await running(engine)
    await temporal.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=execution_id)
        )
    )
    async with asyncio.timeout(20):
        while await is_known(temporal, execution_id):
            await asyncio.sleep(0.1)
    status = await status_when(engine, execution_id, ended)
    assert status["status"] == "failed"
    assert status["error"]["code"] == "runtime_unavailable"
    assert status["error"]["details"]["lost_history"] is True
    assert (await recorded(engine, execution_id))["status"] == "failed"


async def is_known(temporal: Client, execution_id: str) -> bool:
    """Deleting an open run terminates it first, and takes a moment."""
    try:
        await temporal.get_workflow_handle(execution_id).describe()
    except RPCError as error:
        assert error.status is RPCStatusCode.NOT_FOUND
        return False
    return True


async def test_a_run_that_is_gone_from_temporal_has_lost_its_history(
    engine: WorkflowEngine, engine_config: dict[str, object]
):
    await put_record(engine_config, "gone", timedelta(seconds=5), run_id="01a20000-0000-7000-8000-000000000000")
    status = await engine.get_execution_status("gone")
    assert status["status"] == "failed"
    assert status["error"] is not None
    assert status["error"]["details"]["lost_history"] is True
    assert (await recorded(engine, "gone"))["status"] == "failed"


async def test_a_record_whose_start_never_arrived_fails_after_a_while(
    engine: WorkflowEngine, engine_config: dict[str, object]
):
    await put_record(engine_config, "never-started", timedelta(seconds=31))
    status = await engine.get_execution_status("never-started")
    assert status["status"] == "failed"
    assert status["error"] is not None
    assert status["error"]["code"] == "runtime_unavailable"
    assert "start it again" in status["error"]["message"]


async def test_a_record_whose_start_may_still_arrive_is_pending(
    engine: WorkflowEngine, engine_config: dict[str, object]
):
    await put_record(engine_config, "just-accepted", timedelta(seconds=2))
    assert (await engine.get_execution_status("just-accepted"))["status"] == "pending"


async def put_record(config: dict[str, object], execution_id: str, age: timedelta, run_id: str | None = None) -> None:
    """Store an open record as a starter leaves it that died at once, or whose run is long gone."""
    stores = open_stores(EngineSettings.load(config))
    created_at = datetime.now(UTC) - age
    record = ExecutionRecord(
        execution_id=execution_id,
        definition_id="contradicted",
        version=1,
        plan_hash="sha256:0",
        status=ExecutionStatus.RUNNING if run_id else ExecutionStatus.PENDING,
        input=Value.of({}),
        input_hash="sha256:0",
        step_ids=["a"],
        created_at=created_at,
        run_id=run_id,
        run_started_at=created_at if run_id else None,
    )
    assert await stores.executions.create_execution(record, b"{}") is None
    await stores.closing.aclose()


async def test_a_reset_by_an_operator_goes_on_as_the_same_execution(
    engine: WorkflowEngine, temporal: Client, slow: Slow
):
    execution_id = await running(engine)
    slow.free = True
    first = await engine.get_execution_result(execution_id, wait=20)
    assert first["output"] == {"call": 1}
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
    async with asyncio.timeout(20):
        while (second := await engine.get_execution_result(execution_id, wait=20))["output"] == {"call": 1}:
            await asyncio.sleep(0.1)
    assert second["status"] == "completed"
    assert second["output"] == {"call": 2}
    assert second["steps"]["a"]["output"] == {"call": 2}


async def test_live_state_may_be_deleted_at_any_time(
    engine: WorkflowEngine, engine_config: dict[str, object], slow: Slow
):
    execution_id = await running(engine)
    for file in Path(str(engine_config["data_dir"])).glob("live.db*"):
        file.unlink()
    async with WorkflowEngine({**engine_config, "worker": "none"}) as reader:
        status = await reader.get_execution_status(execution_id)
        assert status["status"] == "running"
        assert status["current_steps"] == ["a"]
        assert status["steps"]["a"]["agent_id"] == "agent-slow"
        slow.free = True
        status = await status_when(reader, execution_id, ended)
        assert status["status"] == "completed"
        assert status["steps"]["a"]["status"] == "completed"
        assert status["progress"]["completed"] == 1
    async with asyncio.timeout(20):
        assert (await engine.get_execution_result(execution_id, wait=20))["status"] == "completed"


async def one_execution(config: dict[str, object]) -> tuple[Any, Any, list[str]]:
    """Run one execution on a new engine; return its status, its result and the types of its events."""
    async with WorkflowEngine(config, invoker=ScriptedAgentInvoker({"agent-slow": {"text": "done"}})) as engine:
        await engine.register_agent("Slow", config={"function": "agents:slow"})
        execution = await engine.execute_workflow(await engine.create_workflow(name="Contradicted", steps=STEPS))
        result = await engine.get_execution_result(execution["execution_id"], wait=20)
        status = await engine.get_execution_status(execution["execution_id"])
        events = [event["type"] async for event in engine.watch_execution(execution["execution_id"])]
    return status, result, events


async def test_damaged_live_state_is_made_anew(engine_config: dict[str, object]):
    folder = Path(str(engine_config["data_dir"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "live.db").write_bytes(b"this is no database, not at all" * 200)
    status, result, events = await one_execution(engine_config)
    assert result["status"] == status["status"] == status["steps"]["a"]["status"] == "completed"
    assert events == ["execution.started", "step.started", "step.completed", "execution.completed"]


async def test_without_a_state_store_every_answer_is_the_same(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    silent = dict.fromkeys(("record_transition", "get_live_state", "get_live_states", "read_events"), 10_000)
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, **silent), "state")
    status, result, events = await one_execution(engine_config)
    assert doubles[0].refused >= 2  # a gathered write and a read at the least
    assert result["status"] == status["status"] == status["steps"]["a"]["status"] == "completed"
    assert result["output"] == {"text": "done"}
    assert events == ["execution.started", "step.started", "step.completed", "execution.completed"]
