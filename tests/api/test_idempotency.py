"""One key is one execution: whoever starts it, however often, at once or after its end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engine import EngineError, WorkflowEngine
from engine.adapters.temporal.connection import TemporalConnection
from engine.errors import RuntimeUnavailableError
from engine.testing import ScriptedAgentInvoker

CHECKOUT = Path(__file__).resolve().parents[2]
STEPS = [{"id": "s", "agent_id": "agent-a", "retry_policy": {"max_retries": 0}}]
_numbers = count(1)
START_MANY = """
import asyncio, json, sys
from engine import WorkflowEngine
config, key, count = json.loads(sys.argv[1])

async def main():
    async with WorkflowEngine(config) as engine:
        starts = [engine.execute_workflow("w", {"n": 1}, {"idempotency_key": key}) for _ in range(count)]
        print(json.dumps(sorted({one["execution_id"] for one in await asyncio.gather(*starts)})))

asyncio.run(main())
"""


async def prepare(engine: WorkflowEngine) -> None:
    await engine.register_agent(name="A", config={"function": "m:f"})
    await engine.create_workflow(name="W", steps=STEPS)


async def ids(engine: WorkflowEngine) -> list[str]:
    return [item["execution_id"] for item in (await engine.list_executions())["items"]]


async def start(engine: WorkflowEngine, given: dict[str, Any], key: str) -> str:
    return (await engine.execute_workflow("w", given, {"idempotency_key": key}))["execution_id"]


@pytest.fixture
def key() -> str:
    """A key that no other test uses: all share one namespace, and it knows every execution id for ever."""
    return f"k-{next(_numbers)}"


@pytest.fixture
async def counted(engine_config):
    """A configuration, and an invoker whose calls can be counted."""
    invoker = ScriptedAgentInvoker({"agent-a": lambda given: {"n": given["input"]["n"]}})
    async with WorkflowEngine(engine_config) as engine:
        await prepare(engine)
    return engine_config, invoker


async def test_a_hundred_starts_at_once_with_one_key_are_one_execution(counted, key):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as one, WorkflowEngine(config, invoker=invoker) as other:
        engines = [one, other] * 50
        found = await asyncio.gather(*(start(engine, {"n": 1}, key) for engine in engines))
        assert set(found) == {f"w/{key}"}
        assert await ids(other) == [f"w/{key}"]
        result = await other.get_execution_result(f"w/{key}", wait=30)
        assert (result["status"], result["output"]) == ("completed", {"n": 1})
        assert len(invoker.calls) == 1


async def test_processes_that_start_with_one_key_start_one_execution(counted, key):
    config, invoker = counted
    argument = json.dumps([{**config, "worker": "none"}, key, 20])
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", START_MANY, argument), stdout=subprocess.PIPE, cwd=CHECKOUT
        )
        for _ in range(2)
    ]
    async with WorkflowEngine(config, invoker=invoker) as engine:
        mine = await asyncio.gather(*(start(engine, {"n": 1}, key) for _ in range(20)))
        printed = [(await process.communicate())[0] for process in processes]
        assert [json.loads(line) for line in printed] == [[f"w/{key}"], [f"w/{key}"]]
        assert set(mine) == {f"w/{key}"}
        assert (await engine.get_execution_result(f"w/{key}", wait=30))["status"] == "completed"
        assert await ids(engine) == [f"w/{key}"]
        assert len(invoker.calls) == 1


async def test_many_keys_at_once_are_as_many_executions_each_with_its_input(counted, key):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as engine:
        given = [(n % 10, f"{key}-{n % 10}") for n in range(50)]
        await asyncio.gather(*(start(engine, {"n": n}, each) for n, each in given))
        assert sorted(await ids(engine)) == [f"w/{key}-{n}" for n in range(10)]
        for n in range(10):
            assert (await engine.get_execution_result(f"w/{key}-{n}", wait=30))["output"] == {"n": n}
        assert len(invoker.calls) == 10


@pytest.mark.parametrize(("script", "status"), [({"n": 1}, "completed"), (ValueError("no"), "failed")])
async def test_the_key_gives_the_same_execution_after_its_end(engine_factory, script, status, key):
    engine = engine_factory({"agent-a": script})
    await prepare(engine)
    first = await engine.execute_workflow("w", {"n": 1, "o": [1.0]}, {"idempotency_key": key})
    result = await engine.get_execution_result(f"w/{key}", wait=30)
    assert result["status"] == status
    await engine.update_workflow("w", {"description": "a newer version changes nothing for the key"})
    again = await engine.execute_workflow("w", {"o": [1.0], "n": 1}, {"idempotency_key": key})
    assert (again["execution_id"], again["version"], again["status"]) == (f"w/{key}", 1, status)
    assert again["created_at"] == first["created_at"]
    assert again["temporal"]["run_id"] == first["temporal"]["run_id"]
    assert await engine.get_execution_result(f"w/{key}") == result
    assert await ids(engine) == [f"w/{key}"]


async def test_the_key_gives_the_same_execution_while_it_runs_and_after_it_was_cancelled(engine_factory, key):
    running = threading.Event()

    async def hang(given: object) -> object:
        running.set()
        await asyncio.sleep(600)
        return given

    engine = engine_factory({"agent-a": hang})
    await prepare(engine)
    await start(engine, {}, key)
    assert await asyncio.to_thread(running.wait, 30)
    assert await start(engine, {}, key) == f"w/{key}"
    await engine.cancel_execution(f"w/{key}")
    assert (await engine.get_execution_result(f"w/{key}", wait=30))["status"] == "cancelled"
    assert await start(engine, {}, key) == f"w/{key}"
    assert (await engine.get_execution_status(f"w/{key}"))["status"] == "cancelled"


async def test_other_input_with_a_used_key_is_a_conflict(counted, key):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as engine:
        await start(engine, {"n": 1}, key)
        others: list[dict[str, Any]] = [{"n": 2}, {"n": "1"}, {"n": True}, {}, {"n": 1, "m": None}]
        for other in others:
            with pytest.raises(EngineError) as refused:
                await start(engine, other, key)
            assert refused.value.code == "conflict"
            assert refused.value.details == {"execution_id": f"w/{key}", "idempotency_key": key}
        assert await ids(engine) == [f"w/{key}"]


async def test_concurrent_starts_with_different_input_have_one_winner(counted, key):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as engine:
        ends = await asyncio.gather(*(start(engine, {"n": n}, key) for n in range(10)), return_exceptions=True)
        refused = [end for end in ends if isinstance(end, EngineError)]
        [winner] = [n for n, end in enumerate(ends) if end == f"w/{key}"]
        assert [error.code for error in refused] == ["conflict"] * 9
        assert (await engine.get_execution_result(f"w/{key}", wait=30))["output"] == {"n": winner}


async def test_a_key_of_any_allowed_form_and_length_works(counted):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as engine:
        for odd in ("A", "a.b_c:d-9", "..", "x" * 200):
            assert await start(engine, {"n": 1}, odd) == f"w/{odd}"
            assert (await engine.get_execution_result(f"w/{odd}", wait=30))["status"] == "completed"


async def test_one_key_in_two_workflows_is_two_executions(counted, key):
    config, invoker = counted
    async with WorkflowEngine(config, invoker=invoker) as engine:
        other = await engine.create_workflow(name="V", steps=STEPS)
        await start(engine, {"n": 1}, key)
        second = await engine.execute_workflow(other, {"n": 2}, {"idempotency_key": key})
        assert second["execution_id"] == f"v/{key}"
        assert (await engine.get_execution_result(f"v/{key}", wait=30))["output"] == {"n": 2}


async def test_a_start_that_never_reached_temporal_is_made_up_for_by_the_next_with_the_key(
    counted, monkeypatch: pytest.MonkeyPatch, key
):
    config, invoker = counted

    async def broken(_: object) -> object:
        raise RuntimeUnavailableError("the line is cut")

    async with WorkflowEngine(config, invoker=invoker) as engine:
        # Once the worker runs, the attributes are next asked for between the record and the start of a run.
        await start(engine, {"n": 0}, f"{key}-first")
        with monkeypatch.context() as patched:
            patched.setattr(TemporalConnection, "registered_search_attributes", broken)
            with pytest.raises(EngineError) as refused:
                await start(engine, {"n": 1}, key)
            assert refused.value.code == "runtime_unavailable"
            assert (await ids(engine))[0] == f"w/{key}", "the record is there, its run is not"
        assert await start(engine, {"n": 1}, key) == f"w/{key}"
        assert (await engine.get_execution_result(f"w/{key}", wait=30))["output"] == {"n": 1}
        assert [call.input for call in invoker.calls].count({"input": {"n": 1}, "steps": {}}) == 1
