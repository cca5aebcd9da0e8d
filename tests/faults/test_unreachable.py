"""Without Temporal, what needs it says which command starts one, and everything else works."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine import EngineError, ErrorCode, WorkflowEngine
from engine.bootstrap import open_stores
from engine.domain.execution import ExecutionRecord, ExecutionStatus, Value
from engine.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

STEPS = [{"id": "a", "agent_id": "agent-writer"}]


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, object]:
    return {"temporal_address": f"127.0.0.1:{closed_port()}", "data_dir": str(tmp_path / "data")}


@pytest.fixture(params=["none", "embedded"])
async def engine(config: dict[str, object], request: pytest.FixtureRequest) -> AsyncGenerator[WorkflowEngine]:
    async with WorkflowEngine({**config, "worker": request.param}) as engine:
        await engine.register_agent("Writer", config={"function": "agents:write"})
        yield engine


async def put_open_record(config: dict[str, object], execution_id: str) -> None:
    """Store a record as a start leaves it whose run Temporal has accepted."""
    stores = open_stores(EngineSettings.load(config))
    now = datetime.now(UTC) - timedelta(seconds=5)
    record = ExecutionRecord(
        execution_id=execution_id,
        definition_id="some-workflow",
        version=1,
        plan_hash="sha256:0",
        status=ExecutionStatus.RUNNING,
        input=Value.of({}),
        input_hash="sha256:0",
        step_ids=["a"],
        created_at=now,
        run_id="run-1",
        run_started_at=now,
    )
    assert await stores.executions.create_execution(record, b"{}") is None
    await stores.closing.aclose()


async def test_a_start_is_refused_with_the_command_that_helps_and_nothing_is_written(engine: WorkflowEngine):
    workflow_id = await engine.create_workflow(name="Some workflow", steps=STEPS)
    with pytest.raises(EngineError) as raised:
        await engine.execute_workflow(workflow_id, {}, {"idempotency_key": "k"})
    assert raised.value.code is ErrorCode.RUNTIME_UNAVAILABLE
    assert raised.value.retryable
    assert "./baton dev" in raised.value.message
    assert (await engine.list_executions())["items"] == []


async def test_calls_on_an_open_execution_are_refused_with_the_command_that_helps(
    engine: WorkflowEngine, config: dict[str, object]
):
    await put_open_record(config, "some-workflow-1")
    for refused in (
        lambda: engine.cancel_execution("some-workflow-1"),
        lambda: engine.get_execution_result("some-workflow-1"),
        lambda: engine.get_execution_result("some-workflow-1", wait=1),
    ):
        with pytest.raises(EngineError) as raised:
            await refused()
        assert raised.value.code is ErrorCode.RUNTIME_UNAVAILABLE
        assert "./baton dev" in raised.value.message


async def test_the_status_of_an_open_execution_is_stale(engine: WorkflowEngine, config: dict[str, object]):
    await put_open_record(config, "some-workflow-1")
    status = await engine.get_execution_status("some-workflow-1")
    assert status["status"] == "running"
    assert status["stale"] is True  # pyright: ignore[reportTypedDictNotRequiredAccess] # the point


async def test_what_needs_no_temporal_works(engine: WorkflowEngine, config: dict[str, object]):
    workflow_id = await engine.create_workflow(name="Some workflow", steps=STEPS, tags=["x"])
    await put_open_record(config, "some-workflow-1")
    assert (await engine.get_workflow(workflow_id))["version"] == 1
    assert await engine.update_workflow(workflow_id, {"description": "new"})
    assert len((await engine.list_workflows(tags=["x"]))["items"]) == 1
    assert len((await engine.list_workflow_versions(workflow_id))["items"]) == 2
    assert (await engine.validate_workflow({"name": "n", "steps": STEPS}))["valid"]
    assert (await engine.get_agent("agent-writer"))["status"] == "active"
    assert len((await engine.list_agents())["items"]) == 1
    handoff_id = await engine.create_handoff("agent-writer", "agent-other")
    assert (await engine.get_handoff(handoff_id))["target_agent_id"] == "agent-other"
    assert len((await engine.list_handoffs())["items"]) == 1
    assert [item["execution_id"] for item in (await engine.list_executions())["items"]] == ["some-workflow-1"]
    assert (await engine.get_workflow_metrics(workflow_id))["metrics"]["execution_count"] is not None
    assert (await engine.get_agent_performance("agent-writer"))["metrics"]["call_count"] == 0
    assert await engine.delete_workflow(workflow_id)


async def test_health_says_what_is_down(engine: WorkflowEngine):
    health = await engine.get_system_health()
    assert health["status"] == "unhealthy"
    assert health["components"]["temporal"]["status"] == "down"
    assert health["components"]["definitions"]["status"] == "up"
