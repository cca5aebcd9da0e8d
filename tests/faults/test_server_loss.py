"""The development server is killed in the middle of work and comes back: nothing that it accepted is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from worker_programs import until

from engine import EngineError, ErrorCode, WorkflowEngine
from engine.adapters.temporal.dev_server import DevServerLease, acquire_dev_server
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncGenerator[DevServerLease]:
    lease = await acquire_dev_server(tmp_path)
    yield lease
    await lease.aclose()


def server_state(folder: Path) -> dict[str, object]:
    try:
        return json.loads((folder / "temporal" / "server.json").read_text())
    except FileNotFoundError:
        return {}


async def test_a_killed_server_costs_time_and_nothing_else(own_server: DevServerLease, tmp_path: Path):
    async def slow(_: object) -> dict[str, str]:
        await asyncio.sleep(0.1)
        return {"text": "done"}

    config = {
        "temporal_address": own_server.address,
        "worker": "embedded",
        "task_queue": "server-loss",
        "data_dir": str(tmp_path / "data"),
    }
    invoker = ScriptedAgentInvoker({"agent-slow": slow})
    async with WorkflowEngine(config, invoker=invoker) as engine:
        await engine.register_agent("Slow", config={"function": "agents:slow"})
        chain = [{"id": f"s{n}", "agent_id": "agent-slow", "depends_on": [f"s{n - 1}"] if n else []} for n in range(5)]
        workflow_id = await engine.create_workflow(name="Server loss", steps=chain)
        executions = [(await engine.execute_workflow(workflow_id))["execution_id"] for _ in range(5)]
        await until(lambda: len(invoker.calls) >= 8, "the executions to be under way")
        state = server_state(tmp_path)
        os.kill(int(str(state["pid"])), signal.SIGKILL)
        # While it is gone a start is either refused, to be repeated under its key, or waits for the server.
        for attempt in range(60):
            try:
                late = await engine.execute_workflow(workflow_id, {}, {"idempotency_key": "late"})
                break
            except EngineError as error:
                assert error.code is ErrorCode.RUNTIME_UNAVAILABLE, error
                assert attempt < 59, error
                await asyncio.sleep(0.25)
        await until(lambda: server_state(tmp_path).get("ready") is True, "the supervisor to start it again")
        assert server_state(tmp_path)["pid"] != state["pid"]
        assert server_state(tmp_path)["address"] == state["address"]
        for execution_id in [*executions, late["execution_id"]]:  # pyright: ignore[reportPossiblyUnboundVariable] # the loop ends with it
            result = await result_of(engine, execution_id)
            assert result["status"] == "completed"
            assert [step["status"] for step in result["steps"].values()] == ["completed"] * 5
        assert len((await engine.list_executions(status="completed"))["items"]) == 6
        assert (await engine.list_executions(status="running"))["items"] == []


async def result_of(engine: WorkflowEngine, execution_id: str):
    """Wait through an outage: a result that can't be waited for now is asked for again."""
    for _ in range(60):
        try:
            return await engine.get_execution_result(execution_id, wait=60)
        except EngineError as error:
            assert error.code is ErrorCode.RUNTIME_UNAVAILABLE, error
            await asyncio.sleep(0.25)
    raise AssertionError(f"{execution_id} did not end")
