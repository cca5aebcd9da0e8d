"""Definitions that decide, with workers killed and stores away: what was decided stands, and nothing is done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from failing_stores import put_between
from worker_programs import until

from engine import EngineError, ErrorCode, WorkflowEngine
from engine.errors import StoreError
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker_programs import Ledger, Workers

    from engine import AgentCall

LEDGER: dict[str, Any] = {"agent_id": "agent-ledger", "retry_policy": {"max_retries": 0}}
BREAKS: dict[str, Any] = LEDGER | {"input_mapping": {"seconds": "not a number"}}
APPROVAL: dict[str, Any] = {"type": "approval", "approval": {"question": "Shall it go on?"}}
AWAY_SECONDS = 2.0


async def until_true(holds: Callable[[], Awaitable[object]], what: str, seconds: float = 40) -> None:
    """Wait for a condition that has to be asked for."""
    give_up_at = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < give_up_at, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.05)


async def until_asked(engine: WorkflowEngine, execution_id: str) -> None:
    """Wait for an open gate; a store that is away is asked again."""

    async def is_open() -> bool:
        try:
            return bool((await engine.list_gates(execution_id))["items"])
        except EngineError as error:
            assert error.code is ErrorCode.DATABASE_ERROR, error
            return False

    await until_true(is_open, "an open gate")


async def test_a_pause_outlives_its_worker(client_engine: WorkflowEngine, workers: Workers, ledger: Ledger):
    steps = [
        {"id": "first"} | LEDGER,
        {"id": "asked", "depends_on": ["first"]} | APPROVAL,
        {"id": "waited", "type": "wait", "depends_on": ["first"], "wait": {"seconds": 3}},
        {"id": "last", "depends_on": ["asked", "waited"]} | LEDGER,
    ]
    workflow_id = await client_engine.create_workflow("Held", steps)
    program = workers.start()
    await program.ready()
    execution_id = (await client_engine.execute_workflow(workflow_id))["execution_id"]
    await until_asked(client_engine, execution_id)
    await client_engine.pause_execution(execution_id, by="ann")

    async def is_paused() -> bool:
        return (await client_engine.get_execution_status(execution_id))["status"] == "paused"

    await until_true(is_paused, "the record of the pause")
    program.kill()
    program = workers.start()
    await program.ready()
    # Temporal waits for the lost worker's own queue before it asks another one.
    await asyncio.sleep(10)
    await client_engine.answer_gate(execution_id, "asked.1", "approve", by="bob")
    with pytest.raises(EngineError) as caught:
        await client_engine.answer_gate(execution_id, "asked.1", "reject", by="cid")
    assert (caught.value.code, caught.value.details["by"]) == (ErrorCode.CONFLICT, "bob")
    await asyncio.sleep(3)
    assert await is_paused()
    assert ledger.lines(step="last") == []
    await client_engine.resume_execution(execution_id)
    result = await client_engine.get_execution_result(execution_id, wait=30)
    assert result["status"] == "completed"
    assert Counter(line["step"] for line in ledger.lines()) == {"first": 1, "last": 1}


async def test_a_killed_worker_costs_only_the_items_that_it_was_in(
    client_engine: WorkflowEngine, workers: Workers, ledger: Ledger
):
    at_once = 3
    each = {"items": list(range(30)), "max_concurrency": at_once}
    steps = [{"id": "each", "foreach": each} | LEDGER | {"input_mapping": {"seconds": 0.05}}]
    workflow_id = await client_engine.create_workflow("Items", steps)
    program = workers.start()
    await program.ready()
    execution_id = (await client_engine.execute_workflow(workflow_id))["execution_id"]
    await until(lambda: len(ledger.lines("ended")) >= 6, "items to end")
    program.kill()
    await workers.start().ready()
    result = await client_engine.get_execution_result(execution_id, wait=60)
    assert (result["status"], result["output"]) == ("completed", [{"step": "each"}] * 30)
    began = Counter(line["key"] for line in ledger.lines())
    assert len(began) == 30
    assert sum(began.values()) - 30 <= at_once


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
    assert (result["status"], result["steps"][held]["status"]) == ("failed", "completed")
    assert Counter(line["step"] for line in ledger.lines("ended")) == dict.fromkeys(
        ["undo", "other", "undo:compensate", "other:compensate", "after", "end"], 1
    )


class Door:
    """A store behind a door: while it is shut every call fails, with nothing written."""

    def __init__(self, store: object) -> None:
        self.is_shut = False
        self.refused = 0
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            if not self.is_shut:
                return method(*args, **kwargs)
            self.refused += 1
            raise StoreError(f"{name} does not answer; the test wants it so")

        return called if callable(method) else method


class Trip:
    """An agent whose first call shuts a store away for some seconds."""

    def __init__(self, doors: list[Door]) -> None:
        self.calls: Counter[str] = Counter()
        self._doors = doors

    async def __call__(self, given: Any, call: AgentCall) -> dict[str, str]:
        """Note the call, shut the doors when the input says so, fail when it says so."""
        self.calls[f"{call.step_id} {given.get('n', '')}"] += 1
        if given.get("shut"):
            for door in self._doors:
                door.is_shut = True
            asyncio.get_running_loop().call_later(AWAY_SECONDS, self._open)
        if given.get("fail"):
            raise ValueError("no")
        return {"text": "x" * 1000}

    def _open(self) -> None:
        for door in self._doors:
            door.is_shut = False


SHUTS: dict[str, Any] = {
    "id": "shuts",
    "agent_id": "agent-trip",
    "depends_on": ["first"],
    "input_mapping": {"shut": True},
    "retry_policy": {"max_retries": 0},
}
THEN: dict[str, list[dict[str, Any]]] = {
    "a gate opens": [SHUTS, {"id": "asked", "depends_on": ["shuts"]} | APPROVAL],
    "a wait ends": [SHUTS, {"id": "waited", "type": "wait", "wait": {"seconds": 3}, "depends_on": ["first"]}],
    "items are collected": [
        {
            "id": "each",
            "agent_id": "agent-trip",
            "depends_on": ["first"],
            "foreach": {"items": "${input.list}", "max_concurrency": 20},
            "input_mapping": {"n": "${index}", "shut": "${item}"},
        }
    ],
    "a handoff is followed": [SHUTS],
    "steps are undone": [SHUTS | {"input_mapping": {"shut": True, "fail": True}}],
}


@pytest.mark.parametrize("port", ["executions"])
async def test_a_store_that_is_away_delays_what_is_decided_and_changes_nothing(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch, port: str
):
    doors: list[Door] = put_between(monkeypatch, Door, port)
    trip = Trip(doors)
    async with WorkflowEngine(
        engine_config, invoker=ScriptedAgentInvoker({"agent-trip": trip, "agent-b": {}})
    ) as engine:
        for agent_id in ("agent-trip", "agent-b"):
            await engine.register_agent(agent_id, config={"function": "agents:any"}, agent_id=agent_id)
        await engine.create_handoff("agent-trip", "agent-b")
        first = {"id": "first", "agent_id": "agent-trip", "input_mapping": {}, "compensate": {"agent_id": "agent-b"}}
        given = {"list": [number == 150 for number in range(200)]}
        for then, steps in THEN.items():
            trip.calls.clear()
            refused = doors[0].refused if doors else 0
            follow = "follow" if then == "a handoff is followed" else "off"
            workflow_id = await engine.create_workflow(then, [first, *steps], handoffs=follow)
            execution_id = (await engine.execute_workflow(workflow_id, given))["execution_id"]
            if then == "a gate opens":
                await until_asked(engine, execution_id)
                await engine.answer_gate(execution_id, "asked.1", "approve")

            async def is_over(execution_id: str = execution_id) -> bool:
                try:
                    return (await engine.get_execution_status(execution_id))["status"] in ("completed", "failed")
                except EngineError as error:
                    assert error.code is ErrorCode.DATABASE_ERROR, error
                    return False

            await until_true(is_over, f"the end: {then}")
            await until_true(lambda: asyncio.sleep(0, not doors[0].is_shut), "the store to be back")
            result = await engine.get_execution_result(execution_id, wait=10)
            assert result["status"] == ("failed" if then == "steps are undone" else "completed"), then
            assert set(trip.calls.values()) == {1}, then
            assert doors[0].refused > refused, then
            if then == "items are collected":
                assert result["output"] == [{"text": "x" * 1000}] * 200
            if then == "a handoff is followed":
                assert result["steps"]["shuts>agent-b"]["status"] == "completed"
            if then == "steps are undone":
                assert result["steps"]["first:compensate"]["status"] == "completed"
