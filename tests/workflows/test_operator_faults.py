"""Operators and faults: answers that race, that nobody may send, between two runs; ends that come from outside."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from runs import Gate, Server, ended, finish, own_server, runs_of, until
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RawValue

from engine import EngineError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runs import EngineFactory
    from temporalio.client import Client

    from engine import WorkflowEngine
    from engine.bootstrap import Stores


@pytest.fixture(scope="module")
async def short_runs() -> AsyncGenerator[Server]:
    """A server that suggests continuing as new after 60 events."""
    async with own_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=60") as server:
        yield server


def approval(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "type": "approval", "approval": {"question": f"{step_id}?", **fields}}


async def begin(
    engine: WorkflowEngine, steps: list[dict[str, Any]], options: dict[str, Any] | None = None, **fields: Any
) -> str:
    """Register the agents, store the workflow, start it."""
    for agent_id in ("agent-a", "agent-slow", "agent-fails"):
        await engine.register_agent(agent_id, config={"function": "scripts:answer"}, agent_id=agent_id)
    workflow_id = await engine.create_workflow("Flow", steps, **fields)
    return (await engine.execute_workflow(workflow_id, None, options))["execution_id"]


async def open_ids(engine: WorkflowEngine, execution_id: str) -> list[str]:
    return [gate["gate_id"] for gate in (await engine.list_gates(execution_id))["items"]]


async def until_open(engine: WorkflowEngine, execution_id: str, count: int = 1) -> list[str]:
    found: list[str] = []

    async def are_open() -> bool:
        found[:] = await open_ids(engine, execution_id)
        return len(found) == count

    await until(are_open, f"{count} gates are open")
    return found


async def churn(engine: WorkflowEngine, execution_id: str, times: int = 20) -> None:
    """Make history longer without doing anything."""
    for _ in range(times):
        await engine.pause_execution(execution_id)
        await engine.resume_execution(execution_id)


def noise(size: int, seed: int) -> str:
    """A text that does not compress to nothing."""
    return random.Random(seed).randbytes(size // 2).hex()


async def test_of_answers_at_one_instant_one_stands(engine_factory: EngineFactory):
    engines = [engine_factory({}), engine_factory({})]
    execution_id = await begin(engines[0], [approval("a")])
    await until_open(engines[0], execution_id)
    words = ["approve", "reject"] * 2
    got = await asyncio.gather(
        *(
            engines[n % 2].answer_gate(execution_id, "a.1", word, by=f"person {n}", data=n)
            for n, word in enumerate(words)
        ),
        return_exceptions=True,
    )
    (taken,) = [one for one in got if isinstance(one, dict)]
    refused = [one for one in got if isinstance(one, EngineError)]
    assert [(one.code, one.details["answer"]) for one in refused] == [(ErrorCode.CONFLICT, taken["answer"])] * 3
    gate = await engines[1].get_gate(execution_id, "a.1")
    assert (gate["answer"], gate["by"]) == (taken["answer"], taken["by"])


@pytest.mark.parametrize("size", [10, 30_000])
async def test_twenty_answers_at_once_stay_with_their_gates(engine_factory: EngineFactory, size: int):
    engine = engine_factory({})
    execution_id = await begin(engine, [approval(f"a{n}") for n in range(20)])
    ids = await until_open(engine, execution_id, 20)
    random.Random(4).shuffle(ids)
    data = {gate_id: noise(size, n) for n, gate_id in enumerate(ids)}
    await asyncio.gather(*(engine.answer_gate(execution_id, i, "approve", by=i, data=data[i]) for i in ids))
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    for n in range(20):
        output = result["output"][f"a{n}"]
        assert output["by"] == f"a{n}.1"
        assert output["data"] == data[f"a{n}.1"]


async def test_gates_and_waits_outlive_a_change_of_runs(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({}, temporal_address=short_runs.address)
    steps = [approval("a"), approval("b", timeout=60), {"id": "w", "type": "wait", "wait": {"seconds": 3}}]
    execution_id = await begin(engine, steps)
    await until_open(engine, execution_id, 2)
    await engine.answer_gate(execution_id, "a.1", "approve", by="ann")
    await churn(engine, execution_id)

    async def has_changed() -> bool:
        return len(await runs_of(short_runs.client, execution_id)) > 1

    await until(has_changed, "a later run")
    with pytest.raises(EngineError) as caught:
        await engine.answer_gate(execution_id, "a.1", "reject", by="bob")
    assert (caught.value.code, caught.value.details["answer"]) == (ErrorCode.CONFLICT, "approve")
    await engine.answer_gate(execution_id, "b.1", "approve", by="cid")
    result = await finish(engine, execution_id)
    assert (result["status"], result["output"]["b"]["by"]) == ("completed", "cid")


async def test_a_budget_asks_again_in_a_later_run(engine_factory: EngineFactory, short_runs: Server):
    engine = engine_factory({"agent-a": {}}, temporal_address=short_runs.address)
    steps = [{"id": f"s{n}", "agent_id": "agent-a"} for n in range(5)]
    execution_id = await begin(engine, steps, budget={"agent_calls": 2, "on_breach": "ask"})
    for k in (1, 2):
        await until(lambda k=k: _is_open(engine, execution_id, f"execution:budget.{k}"), "the gate of the budget")
        await churn(engine, execution_id)
        await engine.answer_gate(execution_id, f"execution:budget.{k}", "continue")
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    assert len(await runs_of(short_runs.client, execution_id)) > 1


async def _is_open(engine: WorkflowEngine, execution_id: str, gate_id: str) -> bool:
    return gate_id in await open_ids(engine, execution_id)


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_a_child_that_somebody_ends_fails_its_step(engine_factory: EngineFactory, client: Client, how: str):
    engine = engine_factory({})
    child = await engine.create_workflow("Child", [approval("g")])
    execution_id = await begin(engine, [{"id": "b", "type": "workflow", "workflow_id": child}])
    child_id = f"{execution_id}/b.1"
    await until_open(engine, child_id)
    await (engine.cancel_execution(child_id) if how == "cancel" else client.get_workflow_handle(child_id).terminate())
    result = await finish(engine, execution_id)
    assert (result["status"], result["steps"]["b"]["status"]) == ("failed", "failed")


ODD: dict[str, str] = {
    "a number": "5",
    "a list": "[1]",
    "an unknown key": '{"gate_id": "a.1", "answer": "approve", "more": 1}',
    "wrong types": '{"gate_id": ["a.1"], "answer": 7}',
    "very deep": '{"gate_id": "a.1", "answer": "approve", "data": ' + "[" * 200 + "]" * 200 + "}",
    "half a pair": '{"gate_id": "a.1", "answer": "approve", "data": "\\ud800"}',
    "no finite number": '{"gate_id": "a.1", "answer": "approve", "data": 1e999}',
    "4,000 digits": '{"gate_id": "a.1", "answer": "approve", "data": ' + "9" * 4000 + "}",
    "a megabyte": json.dumps({"gate_id": "a.1", "answer": "approve", "data": noise(1_000_000, 1)}),
}


async def test_what_no_operator_may_send_is_refused_and_harms_nothing(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({})
    execution_id = await begin(engine, [approval("a")])
    await until_open(engine, execution_id)
    handle = client.get_workflow_handle(execution_id)
    for what, text in ODD.items():
        argument = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=text.encode()))
        try:
            await handle.execute_update("answer_gate", argument)
        except WorkflowUpdateFailedError:
            continue
        pytest.fail(f"{what} was taken")
    await engine.answer_gate(execution_id, "a.1", "approve")
    assert (await finish(engine, execution_id))["status"] == "completed"


@pytest.mark.parametrize("where", ["gate", "paused", "ask", "wait", "compensation", "finally"])
async def test_a_cancel_sent_thrice_undoes_once(
    engine_factory: EngineFactory, stores: Stores, client: Client, where: str
):
    slow = Gate({})
    engine = engine_factory({"agent-a": {}, "agent-slow": slow, "agent-fails": ValueError("no")})
    undo = "agent-slow" if where == "compensation" else "agent-a"
    fails: dict[str, Any] = {"id": "x", "agent_id": "agent-fails", "retry_policy": {"max_retries": 0}}
    kinds: dict[str, dict[str, Any]] = {
        "gate": approval("x"),
        "paused": approval("x"),
        "ask": fails | {"on_error": "ask"},
        "wait": {"id": "x", "type": "wait", "wait": {"seconds": 60}},
    }
    steps = [
        {"id": "d", "agent_id": "agent-a", "compensate": {"agent_id": undo}},
        kinds.get(where, fails) | {"depends_on": ["d"]},
    ]
    final = [{"id": "end", "agent_id": "agent-slow" if where == "finally" else "agent-a"}]
    execution_id = await begin(engine, steps, **{"finally": final})
    if where in ("gate", "paused", "ask"):
        await until_open(engine, execution_id)
    elif where == "wait":
        await until(lambda: _waits(engine, execution_id), "the step waits")
    else:
        await until(lambda: slow.attempts, "the clean-up runs")
    if where == "paused":
        await engine.pause_execution(execution_id)
    handle = client.get_workflow_handle(execution_id)
    await asyncio.gather(engine.cancel_execution(execution_id), handle.signal("cancel", "two"), handle.cancel())
    slow.is_open = True
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == ("failed" if where in ("compensation", "finally") else "cancelled")
    assert slow.cancelled == 0
    assert [result["steps"][name]["status"] for name in ("d:compensate", "end")] == ["completed"] * 2
    assert await open_ids(engine, execution_id) == []


async def _waits(engine: WorkflowEngine, execution_id: str) -> bool:
    return (await engine.get_execution_status(execution_id))["steps"]["x"]["status"] == "waiting"
