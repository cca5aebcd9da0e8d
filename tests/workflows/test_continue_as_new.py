"""Runs that continue as new, on a server that asks for it after few events: nothing may be lost between two runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from runs import (
    FAST_RETRIES,
    EngineFactory,
    Gate,
    Server,
    decoded_sizes,
    echo,
    ended,
    events_of,
    own_server,
    runs_of,
    start,
    until,
)
from temporalio.api.enums.v1 import EventType

from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.messages import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from temporalio.client import Client

    from engine.bootstrap import Stores
    from engine.domain.agent_call import AgentCall


@pytest.fixture(scope="module")
async def short_runs() -> AsyncGenerator[Server]:
    """A server that suggests continuing as new after 60 events."""
    async with own_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=60") as server:
        yield server


def chain(length: int, agent_id: str = "agent-a", **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"s{number}", "agent_id": agent_id, "depends_on": [f"s{number - 1}"] if number else [], **fields}
        for number in range(length)
    ]


async def test_a_chain_goes_on_over_many_runs_and_keeps_what_is_read_later(
    engine_factory: EngineFactory, stores: Stores, short_runs: Server
):
    counts: list[int] = []

    def count(_: object) -> object:
        counts.append(len(counts))
        return {"n": counts[-1], "small": "s" * 100, "middling": "m" * 10_000}

    engine = engine_factory({"agent-a": count, "agent-last": echo}, temporal_address=short_runs.address)
    length = 40
    reads = {
        "first": "${steps.s0.output.n}",
        "middling": "${steps.s1.output.middling}",
        "whole": "${steps.s2.output}",
        "input": "${input.topic}",
        "started": "${execution.started_at}",
    }
    steps: list[dict[str, Any]] = [
        *chain(length),
        {"id": "last", "agent_id": "agent-last", "depends_on": ["s39"], "input_mapping": reads},
    ]
    execution_id = await start(engine, steps, {"topic": "cats"}, {"priority": "high", "tags": ["blue"], "trace": True})
    result = await ended(engine, stores, short_runs.client, execution_id)
    assert counts == list(range(length))
    output = result["output"]
    assert output["first"] == 0
    assert output["middling"] == "m" * 10_000
    assert output["whole"] == {"n": 2, "small": "s" * 100, "middling": "m" * 10_000}
    assert output["input"] == "cats"
    assert set(result["steps"]) == {step["id"] for step in steps}
    assert all(step["status"] == "completed" and step["attempts"] == 1 for step in result["steps"].values())
    assert result["steps"]["s30"]["output"]["n"] == 30
    runs = await runs_of(short_runs.client, execution_id)
    assert len(runs) > 2
    first = (await events_of(short_runs.client, execution_id, runs[-1]))[0].workflow_execution_started_event_attributes
    last = (await events_of(short_runs.client, execution_id, runs[0]))[0].workflow_execution_started_event_attributes
    assert last.priority.priority_key == first.priority.priority_key == 1
    assert last.search_attributes.indexed_fields.keys() == first.search_attributes.indexed_fields.keys()
    assert last.memo.fields.keys() == first.memo.fields.keys()
    for run_id in runs:
        assert max(decoded_sizes(await events_of(short_runs.client, execution_id, run_id))) <= MAX_PAYLOAD_BYTES


async def test_wide_steps_and_failures_that_were_helped_survive_the_change_of_runs(
    engine_factory: EngineFactory, stores: Stores, short_runs: Server
):
    calls: list[str] = []

    def join(given: Any) -> object:
        return {"got": len(given["steps"])}

    def refuse(_: object) -> object:
        calls.append("refused")
        raise AgentFailure(FailureReason.REFUSED, "no")

    engine = engine_factory(
        {"agent-no": refuse, "agent-yes": {"yes": 1}, "agent-join": join},
        temporal_address=short_runs.address,
    )
    steps: list[dict[str, Any]] = []
    for layer in range(4):
        below = [step["id"] for step in steps if step["id"].startswith(f"l{layer - 1}_")]
        steps += [
            {
                "id": f"l{layer}_{number}",
                "agent_id": "agent-no" if number % 2 else "agent-yes",
                "depends_on": below,
                **({"fallback": {"agent_id": "agent-yes"}} if number % 2 else {}),
            }
            for number in range(12)
        ]
    joined = [step["id"] for step in steps]
    steps.append({"id": "join", "agent_id": "agent-join", "depends_on": joined})
    execution_id = await start(engine, steps)
    result = await ended(engine, stores, short_runs.client, execution_id)
    assert result["status"] == "completed"
    assert result["output"] == {"got": len(joined)}
    assert len(calls) == 24
    helped = result["steps"]["l0_1"]
    assert (helped["agent_id"], helped["attempts"], helped["status"]) == ("agent-yes", 2, "completed")
    assert len(await runs_of(short_runs.client, execution_id)) > 1
    types = [event["type"] async for event in engine.watch_execution(execution_id)]
    assert types.count("step.fell_back") == 24


async def test_many_small_outputs_that_are_still_read_do_not_add_up_in_what_is_carried(
    engine_factory: EngineFactory, stores: Stores, short_runs: Server
):
    def answer(given: Any) -> object:
        return {"text": f"{given['n']:>1900}"}

    def join(given: Any) -> object:
        return {"texts": given["texts"][-5:]}

    engine = engine_factory(
        {"agent-a": answer, "agent-z": {}, "agent-join": join},
        temporal_address=short_runs.address,
    )
    width = 150
    steps: list[dict[str, Any]] = [
        {"id": f"w{number}", "agent_id": "agent-a", "input_mapping": {"n": number}} for number in range(width)
    ]
    steps.append(
        {"id": "pause", "agent_id": "agent-z", "depends_on": [step["id"] for step in steps], "input_mapping": {}}
    )
    texts = "".join(f"${{steps.w{number}.output.text}}" for number in range(width))
    steps.append({"id": "join", "agent_id": "agent-join", "depends_on": ["pause"], "input_mapping": {"texts": texts}})
    execution_id = await start(engine, steps)
    result = await ended(engine, stores, short_runs.client, execution_id)
    assert result["output"] == {"texts": "  149"}
    runs = await runs_of(short_runs.client, execution_id)
    assert len(runs) > 1
    for run_id in runs:
        assert max(decoded_sizes(await events_of(short_runs.client, execution_id, run_id))) <= MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("door", ["native", "signal"])
async def test_a_cancel_in_the_middle_of_changing_runs_is_never_lost(
    engine_factory: EngineFactory, stores: Stores, short_runs: Server, door: str
):
    calls: list[str] = []

    def note(_: object, call: AgentCall) -> object:
        calls.append(call.execution_id)
        return {}

    engine = engine_factory({"agent-a": note}, temporal_address=short_runs.address)
    length = 60
    workflow_steps = chain(length)
    first = await start(engine, workflow_steps)
    ids = [first]
    workflow_id = (await engine.get_execution_status(first))["workflow_id"]
    for moment in (5, 14, 23, 32):
        execution_id = ids[-1] if moment == 5 else (await engine.execute_workflow(workflow_id))["execution_id"]
        ids.append(execution_id)
        await until(
            lambda execution_id=execution_id, moment=moment: calls.count(execution_id) >= moment, "some steps have run"
        )
        handle = short_runs.client.get_workflow_handle(execution_id)
        if door == "native":
            await handle.cancel(reason="stop")
        else:
            await handle.signal("cancel", "stop")
        result = await ended(engine, stores, short_runs.client, execution_id)
        assert result["status"] == "cancelled", moment
        assert result["cancel"]["reason"] == "stop"
        assert calls.count(execution_id) < length


async def test_the_deadline_is_the_same_in_every_run(engine_factory: EngineFactory, stores: Stores, short_runs: Server):
    gate = Gate()
    engine = engine_factory({"agent-a": {}, "agent-gate": gate}, temporal_address=short_runs.address)
    steps = [*chain(12), {"id": "gate", "agent_id": "agent-gate", "depends_on": ["s11"]}]
    execution_id = await start(engine, steps, options={"timeout": 5})
    await until(lambda: gate.attempts, "the last step runs, in a later run")
    result = await ended(engine, stores, short_runs.client, execution_id)
    assert (result["status"], result["error"]["code"]) == ("failed", "execution_timeout")
    runs = await runs_of(short_runs.client, execution_id)
    assert len(runs) > 1
    record = await stores.executions.get_execution(execution_id)
    assert record is not None
    assert record.deadline_at is not None
    timers = [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta() + event.event_time.ToDatetime()
        for run_id in runs
        for event in await events_of(short_runs.client, execution_id, run_id)
        if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED
    ]
    assert len(timers) == len(runs)
    for fires_at in timers:
        # Temporal counts from the event, the interpreter from the task before it.
        assert abs((fires_at - record.deadline_at.replace(tzinfo=None)).total_seconds()) < 3


async def test_a_run_that_temporal_started_goes_on_over_runs(
    engine_factory: EngineFactory, stores: Stores, short_runs: Server
):
    engine = engine_factory({"agent-a": {}, "agent-last": echo}, temporal_address=short_runs.address)
    steps = [*chain(20), {"id": "last", "agent_id": "agent-last", "depends_on": ["s19"]}]
    warm = await start(engine, steps, name="Long", input_schema={"type": "object"})
    await ended(engine, stores, short_runs.client, warm)
    queue = (await short_runs.client.get_workflow_handle(warm).describe()).task_queue
    large = {"text": "t" * 300_000}
    await short_runs.client.start_workflow("long", large, id="long-by-hand", task_queue=queue)
    result = await ended(engine, stores, short_runs.client, "long-by-hand")
    assert result["status"] == "completed"
    assert result["output"]["input"] == large
    assert len(await runs_of(short_runs.client, "long-by-hand")) > 1


async def test_a_long_chain_stays_quick_and_whole(engine_factory: EngineFactory, stores: Stores, client: Client):
    engine = engine_factory({"agent-a": {}})
    length = 150
    execution_id = await start(engine, chain(length, retry_policy=FAST_RETRIES))
    await until(lambda: _is_closed(client, execution_id), "the chain has ended")
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "completed"
    assert len(result["steps"]) == length


async def _is_closed(client: Client, execution_id: str) -> bool:
    await asyncio.sleep(0.2)
    described = await client.get_workflow_handle(execution_id).describe()
    return described.close_time is not None
