"""Definitions that decide, with workers killed and stores away: what was decided stands, and nothing is done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from failing_stores import put_between
from worker_programs import until

from engine import EngineError, WorkflowEngine
from engine.errors import StoreError
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from worker_programs import Ledger, Workers

LEDGER: dict[str, Any] = {"agent_id": "agent-ledger", "retry_policy": {"max_retries": 0}}
BREAKS: dict[str, Any] = LEDGER | {"input_mapping": {"seconds": "not a number"}}
APPROVAL: dict[str, Any] = {"type": "approval", "approval": {"question": "Shall it go on?"}}


async def holds(condition: Any, what: str, seconds: float = 30) -> None:
    """Wait for an asynchronous condition."""
    give_up_at = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up_at, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.05)


async def gates(engine: WorkflowEngine, execution_id: str) -> list[str]:
    return [gate["gate_id"] for gate in (await engine.list_gates(execution_id))["items"]]


async def test_a_killed_worker_leaves_gates_waits_and_a_pause_as_they_were(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger
):
    steps = [
        {"id": "first"} | LEDGER,
        {"id": "asked", "depends_on": ["first"]} | APPROVAL,
        {"id": "waited", "type": "wait", "depends_on": ["first"], "wait": {"seconds": 6}},
        {"id": "last", "depends_on": ["asked", "waited"]} | LEDGER,
    ]
    workflow_id = await client_engine.create_workflow("Held", steps)
    program = workers.start()
    await program.ready()
    open_one, paused = [(await client_engine.execute_workflow(workflow_id))["execution_id"] for _ in range(2)]
    for execution_id in (open_one, paused):
        await holds(lambda i=execution_id: gates(client_engine, i), "the gate")
    await client_engine.pause_execution(paused, by="ann")
    program.kill()
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        await client_engine.answer_gate(open_one, "asked.1", "approve")
    print("RESULT without worker", caught.value.code, str(caught.value)[:200], time.monotonic() - began)
    program = workers.start()
    await program.ready()
    try:
        await client_engine.answer_gate(open_one, "asked.1", "approve", by="bob")
    except EngineError as error:
        print("RESULT second", error.code, error)
    await client_engine.answer_gate(paused, "asked.1", "approve", by="bob")

    async def is_paused() -> bool:
        return (await client_engine.get_execution_status(paused))["status"] == "paused"

    t = time.monotonic()
    await holds(is_paused, "the record of the pause", 60)
    print("RESULT paused seen after", time.monotonic() - t)
    program.kill()
    await workers.start().ready()
    result = await client_engine.get_execution_result(open_one, wait=30)
    assert result["status"] == "completed"
    await asyncio.sleep(3)
    assert (await client_engine.get_execution_status(paused))["status"] == "paused"
    assert ledger.lines(execution=paused, step="last") == []
    await client_engine.resume_execution(paused)
    result = await client_engine.get_execution_result(paused, wait=30)
    assert result["status"] == "completed"
    assert Counter((line["execution"], line["step"]) for line in ledger.lines()) == {
        (execution_id, step): 1 for execution_id in (open_one, paused) for step in ("first", "last")
    }


async def test_a_killed_worker_costs_only_the_items_that_it_was_in(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger
):
    each = {"items": list(range(30)), "max_concurrency": 3}
    steps = [{"id": "each", "foreach": each} | LEDGER | {"input_mapping": {"seconds": 0.05}}]
    workflow_id = await client_engine.create_workflow("Items", steps)
    program = workers.start()
    await program.ready()
    execution_id = (await client_engine.execute_workflow(workflow_id))["execution_id"]
    for reached in (6, 16):
        await until(lambda reached=reached: len(ledger.lines("ended")) >= reached, "items to end")
        program.kill()
        program = workers.start()
        await program.ready()
    result = await client_engine.get_execution_result(execution_id, wait=60)
    assert result["status"] == "completed"
    assert result["output"] == [{"step": "each"}] * 30
    began = Counter(line["key"] for line in ledger.lines())
    assert len(began) == 30
    print("RESULT items", sum(began.values()) - 30)
    assert sum(began.values()) - 30 <= 6


@pytest.mark.parametrize("held", ["undo:compensate", "after"])
async def test_a_killed_worker_does_not_end_the_clean_up(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger, held: str
):
    steps = [
        {"id": "undo", "compensate": {"agent_id": "agent-ledger"}} | LEDGER,
        {"id": "other", "compensate": {"agent_id": "agent-ledger"}, "depends_on": ["undo"]} | LEDGER,
        {"id": "breaks", "depends_on": ["other"]} | BREAKS,
    ]
    final = [{"id": "after"} | LEDGER, {"id": "end", "depends_on": ["after"]} | LEDGER]
    workflow_id = await client_engine.create_workflow("Clean-up", steps, **{"finally": final})
    ledger.hold(held)
    program = workers.start()
    await program.ready()
    execution_id = (await client_engine.execute_workflow(workflow_id))["execution_id"]
    await until(lambda: ledger.lines(step=held), "the clean-up")
    program.kill()
    ledger.release(held)
    await workers.start().ready()
    result = await client_engine.get_execution_result(execution_id, wait=60)
    print("RESULT", held, result["status"], result["error"], {k: (v["status"], v["error"]) for k, v in result["steps"].items()}, result["warnings"], Counter(l["step"] for l in ledger.lines()))
    assert result["status"] == "failed"
    assert result["steps"][held]["status"] == "completed"
    assert Counter(line["step"] for line in ledger.lines("ended")) == dict.fromkeys(
        ["undo", "other", "undo:compensate", "other:compensate", "after", "end"], 1
    )


async def test_a_childs_worker_lost(client_engine: WorkflowEngine, workers: Workers, ledger: Ledger):
    child = await client_engine.create_workflow("Child", [{"id": "held"} | LEDGER])
    parent = await client_engine.create_workflow("Parent", [{"id": "b", "type": "workflow", "workflow_id": child}])
    ledger.hold("held")
    program = workers.start()
    await program.ready()
    execution_id = (await client_engine.execute_workflow(parent))["execution_id"]
    await until(lambda: ledger.lines(step="held"), "the child")
    program.kill()
    ledger.release("held")
    await workers.start().ready()
    result = await client_engine.get_execution_result(execution_id, wait=60)
    assert result["status"] == "completed"
    assert len(ledger.lines("ended")) == 1


class Door:
    """A store behind a door: while it is shut every call fails, with nothing written."""

    def __init__(self, store: object) -> None:
        self.is_shut = False
        self.refused = 0
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def called(*args: Any, **kwargs: Any) -> Any:
            if not self.is_shut:
                return method(*args, **kwargs)
            self.refused += 1
            raise StoreError(f"{name} does not answer; the test wants it so")

        return called


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return put_between(monkeypatch, Door)


@pytest.mark.parametrize("port", ["executions", "state"])
@pytest.mark.parametrize("when", ["gate", "wait", "collect", "child", "pause", "handoff", "undo"])
async def test_store_away(engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch, when: str, port: str):
    doors = put_between(monkeypatch, Door, port)
    calls: Counter[str] = Counter()
    begin = asyncio.Event()
    def shut():
        for d in doors: d.is_shut = True
    def open_():
        for d in doors: d.is_shut = False
    async def a(given, call):
        calls[call.step_id if call.item is None else f"{call.step_id}[{call.item}]"] += 1
        return {"text": "x" * 1000}
    async def trigger(given, call):
        calls[call.step_id] += 1
        shut()
        asyncio.get_running_loop().call_later(5, open_)
        if when == "undo": raise ValueError("no")
        return {"text": "t"}
    invoker = ScriptedAgentInvoker({"agent-a": a, "agent-t": trigger, "agent-f": ValueError("no")})
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        for agent in ("agent-a", "agent-t", "agent-f"):
            await engine.register_agent(agent, config={"function": "m:f"}, agent_id=agent)
        first = {"id": "a", "agent_id": "agent-a", "compensate": {"agent_id": "agent-a"}}
        trig = {"id": "t", "agent_id": "agent-t", "depends_on": ["a"], "retry_policy": {"max_retries": 0}}
        fields = {}
        match when:
            case "gate": steps = [first, trig, {"id": "x", "depends_on": ["t"]} | APPROVAL]
            case "wait": steps = [first, trig, {"id": "x", "type": "wait", "wait": {"seconds": 3}, "depends_on": ["a"]}]
            case "collect":
                steps = [first, {"id": "x", "agent_id": "agent-a", "depends_on": ["a"], "foreach": {"items": "${input.list}"}, "input_mapping": {"n": "${item}"}}]
            case "child":
                child = await engine.create_workflow("Child", [{"id": "c", "agent_id": "agent-a"}])
                steps = [first, trig, {"id": "x", "type": "workflow", "workflow_id": child, "depends_on": ["t"]}]
            case "pause": steps = [first, trig | {"depends_on": []}, {"id": "x", "depends_on": ["t"]} | APPROVAL, {"id": "y", "agent_id": "agent-a", "depends_on": ["x"]}]
            case "handoff":
                await engine.create_handoff("agent-t", "agent-a")
                steps = [first, trig]; fields["handoffs"] = "follow"
            case "undo": steps = [first, trig]
        workflow_id = await engine.create_workflow("Away", steps, **fields)
        if when == "collect":
            async def watch():
                while sum(calls.values()) < 200: await asyncio.sleep(0.01)
                shut(); await asyncio.sleep(5); open_()
            watching = asyncio.create_task(watch())
        began = time.monotonic()
        execution_id = (await engine.execute_workflow(workflow_id, {"list": list(range(300))}))["execution_id"]
        if when == "pause":
            while not doors[0].is_shut: await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            t = time.monotonic()
            for n in range(20):
                try: print("RESULT pause", await engine.pause_execution(execution_id), time.monotonic() - t); break
                except EngineError as e: print("RESULT pause", e.code, str(e)[:80], time.monotonic() - t); await asyncio.sleep(0.5)
        if when in ("gate", "pause"):
            async def opened() -> bool:
                try: return bool(await gates(engine, execution_id))
                except EngineError as e: return False
            await holds(opened, "the gate")
            print("RESULT gate seen after", time.monotonic() - began)
            await engine.answer_gate(execution_id, "x.1", "approve")
        if when == "pause":
            await asyncio.sleep(0.5)
            assert calls["y"] == 0
            await engine.resume_execution(execution_id)
        t = time.monotonic()
        while True:
            try:
                result = await engine.get_execution_result(execution_id, wait=20); break
            except EngineError as e:
                assert time.monotonic() < t + 40, e
                await asyncio.sleep(0.5)
        if when == "collect": await watching
        print("RESULT", when, port, result["status"], result["error"], time.monotonic() - began, "refused", [d.refused for d in doors], {k: v for k, v in calls.items() if v > 1}, {k: v["status"] for k, v in result["steps"].items()}, result["warnings"])
        assert result["status"] == ("failed" if when == "undo" else "completed")
        assert set(calls.values()) == {1}, calls
        if when == "collect": assert len(result["steps"]["x"]["output"]) == 300
