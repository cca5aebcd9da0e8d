"""Workers die and stop in the middle of work: what had finished stays, what had not is done again, once recorded."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from worker_programs import until

from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from worker_programs import Ledger, Workers

    from engine import AgentCall


def steps(*ids: str, max_retries: int = 0, **fields: object) -> list[dict[str, object]]:
    """A chain of the ledger's agent."""
    return [
        {
            "id": step_id,
            "agent_id": "agent-ledger",
            "depends_on": [ids[index - 1]] if index else [],
            "retry_policy": {"max_retries": max_retries, "initial_interval": 0.05},
            **fields,
        }
        for index, step_id in enumerate(ids)
    ]


def step_rows(data_dir: str, execution_id: str) -> Counter[str]:
    """Count the stored records of each step, looking into the file itself."""
    with sqlite3.connect(f"{data_dir}/baton.db") as connection:
        rows = connection.execute("SELECT step_id FROM steps WHERE execution_id = ?", (execution_id,)).fetchall()
    connection.close()
    return Counter(step_id for (step_id,) in rows)


async def test_a_killed_worker_costs_only_the_step_that_it_was_in(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger, engine_config: dict[str, object]
):
    """Both ways: by Temporal's retry where one is left, and by the interpreter where attempts are used up."""
    patient = await client_engine.create_workflow(name="Retried", steps=steps("a", "b", "c", max_retries=2))
    strict = await client_engine.create_workflow(name="Not retried", steps=steps("a", "b", "c"))
    ledger.hold("b")
    first = workers.start()
    await first.ready()
    executions = [(await client_engine.execute_workflow(name))["execution_id"] for name in (patient, strict)]
    await until(lambda: len(ledger.lines(step="b")) == 2, "both to be in step b")
    first.kill()
    ledger.release("b")
    await workers.start().ready()
    for execution_id in executions:
        result = await client_engine.get_execution_result(execution_id, wait=60)
        assert result["status"] == "completed"
        assert [ledger_step["step"] for ledger_step in ledger.lines("ended", execution=execution_id)] == ["a", "b", "c"]
        began = Counter(line["step"] for line in ledger.lines(execution=execution_id))
        assert began == {"a": 1, "b": 2, "c": 1}
        keys = {line["key"] for line in ledger.lines(execution=execution_id, step="b")}
        assert len(keys) == 1
        assert step_rows(str(engine_config["data_dir"]), execution_id) == {"a": 1, "b": 1, "c": 1}
        assert result["steps"]["b"]["output"] == {"step": "b"}


@pytest.mark.timeout(180)
async def test_a_torture_of_kills_loses_nothing(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger, engine_config: dict[str, object]
):
    """20 executions of 4 steps, 4 kills: every execution completes, every step is recorded once."""
    chance = random.Random(20)
    chain = steps("a", "b", "c", "d", max_retries=6, timeout=3, input_mapping={"seconds": 0.2})
    workflow_id = await client_engine.create_workflow(name="Torture", steps=chain)
    executions: list[str] = []
    for _ in range(4):
        program = workers.start()
        for _ in range(5):
            executions.append((await client_engine.execute_workflow(workflow_id))["execution_id"])
        await program.ready()
        reached = len(ledger.lines()) + chance.randrange(3, 9)
        await until(lambda reached=reached: len(ledger.lines()) >= reached, "the worker to be at work")
        program.kill()
    await workers.start().ready()
    results = await asyncio.gather(*(client_engine.get_execution_result(name, wait=60) for name in executions))
    assert [result["status"] for result in results] == ["completed"] * 20
    for execution_id in executions:
        assert step_rows(str(engine_config["data_dir"]), execution_id) == dict.fromkeys("abcd", 1)
        calls = ledger.lines(execution=execution_id)
        assert {line["step"] for line in calls} == set("abcd")
        assert len({line["key"] for line in calls}) == 4
    assert len(ledger.lines()) > 80, "no kill hit a step: this run proved nothing"


async def test_sigterm_lets_a_running_step_end(client_engine: WorkflowEngine, workers: Workers, ledger: Ledger):
    workflow_id = await client_engine.create_workflow(name="Graceful", steps=steps("a", "b"))
    ledger.hold("a")
    program = workers.start()
    await program.ready()
    execution = await client_engine.execute_workflow(workflow_id)
    await until(lambda: ledger.lines(step="a"), "step a to begin")
    stopping = asyncio.create_task(program.terminate())
    await until(lambda: "stopping" in program.stderr, "the program to take the signal")
    assert program.process.poll() is None
    ledger.release("a")
    assert await stopping == 0
    assert len(ledger.lines("ended", step="a")) == 1
    for sign in ("Traceback", "was destroyed", "never awaited", "unclosed", "ResourceWarning", "never retrieved"):
        assert sign not in program.stderr, program.stderr
    await workers.start().ready()
    result = await client_engine.get_execution_result(execution["execution_id"], wait=60)
    assert result["status"] == "completed"
    assert len(ledger.lines(step="a")) == 1
    assert result["steps"]["a"]["attempts"] == 1


async def test_two_workers_share_a_queue(client_engine: WorkflowEngine, workers: Workers, ledger: Ledger):
    chain = steps("a", "b", input_mapping={"seconds": 0.05})
    workflow_id = await client_engine.create_workflow(name="Shared", steps=chain)
    programs = [workers.start(), workers.start()]
    for program in programs:
        await program.ready()
    executions = [(await client_engine.execute_workflow(workflow_id))["execution_id"] for _ in range(30)]
    results = await asyncio.gather(*(client_engine.get_execution_result(name, wait=60) for name in executions))
    assert {result["status"] for result in results} == {"completed"}
    assert Counter((line["execution"], line["step"]) for line in ledger.lines()) == {
        (name, step_id): 1 for name in executions for step_id in "ab"
    }
    assert {line["pid"] for line in ledger.lines()} == {program.process.pid for program in programs}


async def test_without_a_worker_the_status_says_so(client_engine: WorkflowEngine, workers: Workers):
    workflow_id = await client_engine.create_workflow(name="Waiting", steps=steps("a"))
    execution = await client_engine.execute_workflow(workflow_id)
    status = await client_engine.get_execution_status(execution["execution_id"])
    assert status["status"] == "pending"
    assert "python worker.py" in status["hint"]  # pyright: ignore[reportTypedDictNotRequiredAccess] # the point
    health = await client_engine.get_system_health()
    assert health["components"]["workers"]["status"] == "no_worker"
    assert health["status"] == "degraded"
    await workers.start().ready()
    result = await client_engine.get_execution_result(execution["execution_id"], wait=60)
    assert result["status"] == "completed"
    assert "hint" not in await client_engine.get_execution_status(execution["execution_id"])


async def test_an_engine_that_closes_in_the_middle_leaves_the_step_to_the_next(engine_config: dict[str, object]):
    """An embedded worker gives a running step five seconds; then it is lost, which is not the agent's failure."""
    seen: list[tuple[int, str]] = []

    async def agent(_: object, call: AgentCall) -> dict[str, int]:
        seen.append((call.attempt, call.idempotency_key))
        if len(seen) == 1:
            await asyncio.Event().wait()
        return {"call": len(seen)}

    def engine() -> WorkflowEngine:
        return WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-ledger": agent}))

    async with engine() as first:
        await first.register_agent("Ledger", config={"function": "ledger_agents:work"})
        workflow_id = await first.create_workflow(name="Closed", steps=steps("a", "b"))
        execution = await first.execute_workflow(workflow_id)
        await until(lambda: seen, "step a to begin")
    async with engine() as second:
        # Reading its result is what brings the second engine's worker up.
        result = await second.get_execution_result(execution["execution_id"], wait=60)
    assert result["status"] == "completed"
    assert result["steps"]["a"]["output"] == {"call": 2}
    assert len(seen) == 3
    assert seen[0][1] == seen[1][1]
    assert step_rows(str(engine_config["data_dir"]), execution["execution_id"]) == {"a": 1, "b": 1}
