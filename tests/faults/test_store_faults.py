"""A store that fails never repeats an agent's call, and in the end it knows everything."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from failing_stores import DeafStore, put_between
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.testing import ActivityEnvironment

from activities import agent_activities, call_session
from activities.agent_activities import AgentActivities
from engine import AgentFailure, EngineError, ErrorCode, FailureReason, WorkflowEngine
from engine.adapters.temporal.payloads import data_converter
from engine.bootstrap import open_stores
from engine.domain.agent import PlanAgent
from engine.domain.execution import StepStatus
from engine.domain.messages import AgentCallInput, CallInput, StepOutcome
from engine.settings import EngineSettings
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from pathlib import Path

    from engine.adapters.temporal.dev_server import DevServerLease
    from engine.bootstrap import Stores
    from engine.domain.context import ContextItem, ContextMatch
    from engine.ports.context_memory import RecallRequest

    Fixture = Any

CHAIN = [
    {"id": "a", "agent_id": "agent-writer", "retry_policy": {"max_retries": 2, "initial_interval": 0.05}},
    {
        "id": "b",
        "agent_id": "agent-writer",
        "depends_on": ["a"],
        "retry_policy": {"max_retries": 2, "initial_interval": 0.05},
    },
]


def scripted(scripts: Mapping[str, object] | None = None) -> ScriptedAgentInvoker:
    return ScriptedAgentInvoker(scripts or {"agent-writer": {"text": "done"}})


async def prepared(engine: WorkflowEngine, steps: list[dict[str, Any]] = CHAIN, **fields: Any) -> str:
    for agent_id in {step["agent_id"] for step in steps}:
        await engine.register_agent(agent_id, config={"function": "agents:any"}, agent_id=agent_id)
    return await engine.create_workflow(name="Store faults", steps=steps, **fields)


def calls_by_step(invoker: ScriptedAgentInvoker) -> Counter[str]:
    return Counter(invocation.call.step_id for invocation in invoker.calls)


async def outcomes(server: DevServerLease, execution_id: str) -> dict[str, StepOutcome]:
    """Return what each agent's activity returned, out of Temporal's history."""
    client = await Client.connect(server.address, data_converter=data_converter(1024))
    found: dict[str, StepOutcome] = {}
    scheduled: dict[int, str] = {}
    async for event in client.get_workflow_handle(execution_id).fetch_history_events():
        if event.HasField("activity_task_scheduled_event_attributes"):
            scheduled[event.event_id] = event.activity_task_scheduled_event_attributes.activity_id
        if event.HasField("activity_task_completed_event_attributes"):
            completed = event.activity_task_completed_event_attributes
            values = await client.data_converter.decode(completed.result.payloads, [StepOutcome])
            found[scheduled[completed.scheduled_event_id]] = values[0]
    return found


async def test_a_store_that_comes_back_in_time_gets_the_record_from_the_activity(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch, dev_server: DevServerLease
):
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, record_steps=4))
    invoker = scripted()
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        execution = await engine.execute_workflow(await prepared(engine))
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    assert doubles[0].refused == 4
    assert result["status"] == "completed"
    assert calls_by_step(invoker) == {"a": 1, "b": 1}
    assert [step["attempts"] for step in result["steps"].values()] == [1, 1]
    assert not any(one.unrecorded for one in (await outcomes(dev_server, execution["execution_id"])).values())


async def test_a_store_that_stays_away_gets_the_record_from_the_end(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch, dev_server: DevServerLease
):
    monkeypatch.setattr(agent_activities, "WRITE_PATIENCE", timedelta(seconds=0.3))
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, record_steps=10_000, record_last_steps=10_000))
    invoker = scripted()
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        execution = await engine.execute_workflow(await prepared(engine))
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    assert doubles[0].refused > 2
    assert calls_by_step(invoker) == {"a": 1, "b": 1}
    assert all(one.unrecorded for one in (await outcomes(dev_server, execution["execution_id"])).values())
    assert result["status"] == "completed"
    assert {step_id: (step["status"], step["output"]) for step_id, step in result["steps"].items()} == {
        "a": ("completed", {"text": "done"}),
        "b": ("completed", {"text": "done"}),
    }


async def test_the_end_waits_for_a_store_that_is_away(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    """Two local tries, then a remote activity without limit."""
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, finalize_execution=4))
    async with WorkflowEngine(engine_config, invoker=scripted()) as engine:
        workflow_id = await prepared(engine, output_mapping={"last": "${steps.b.output.text}"})
        execution = await engine.execute_workflow(workflow_id)
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    assert doubles[0].left["finalize_execution"] == 0
    assert result["status"] == "completed"


async def test_a_claim_waits_for_a_store_that_is_away(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    """A later attempt asks before it calls; not to get an answer is no reason to call and no failed attempt."""
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, claim_step=3))
    invoker = scripted({"agent-writer": [AgentFailure(FailureReason.UNAVAILABLE, "busy"), {"text": "done"}]})
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        execution = await engine.execute_workflow(await prepared(engine))
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    assert doubles[0].refused == 3
    assert result["status"] == "completed"
    assert calls_by_step(invoker) == {"a": 2, "b": 1}
    assert result["steps"]["a"]["attempts"] == 2


async def start_until_accepted(engine: WorkflowEngine, workflow_id: str, key: str) -> str:
    while True:
        try:
            return (await engine.execute_workflow(workflow_id, {"n": 1}, {"idempotency_key": key}))["execution_id"]
        except EngineError as error:
            assert error.code is ErrorCode.DATABASE_ERROR, error


def final_state(result: Any) -> dict[str, Any]:
    steps = {
        step_id: {key: step[key] for key in ("status", "agent_id", "attempts", "output", "error", "usage")}
        for step_id, step in sorted(result["steps"].items())
    }
    return {"status": result["status"], "output": result["output"], "usage": result["usage"], "steps": steps}


# The activity alone, in Temporal's own environment for it.


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncGenerator[Stores]:
    opened = open_stores(EngineSettings.load({"data_dir": str(tmp_path / "data")}))
    yield opened
    await opened.closing.aclose()


def call_input(**changes: Any) -> AgentCallInput:
    now = datetime.now(UTC)
    call = AgentCallInput(
        execution_id="x",
        definition_id="d",
        version=1,
        step_id="a",
        step_name="A",
        agent=PlanAgent(agent_id="agent-writer", version=1, kind="python", config={"function": "agents:any"}, tools=[]),
        input=CallInput(inline={}),
        maximum_attempts=3,
        run_started_at=now,
        execution_started_at=now,
    )
    return call.model_copy(update=changes)


class KeptTexts:
    """A ContextMemory that knows what it was given, and finds nothing."""

    def __init__(self) -> None:
        self.items: list[ContextItem] = []

    def remember_later(self, item: ContextItem) -> None:
        self.items.append(item)

    async def remember(self, item: ContextItem) -> None:
        self.items.append(item)

    async def recall(self, request: RecallRequest) -> list[ContextMatch]:
        return []


async def run_attempt(
    call: AgentCallInput,
    invoker: ScriptedAgentInvoker,
    stores: Stores,
    executions: Any,
    on_heartbeat: Callable[..., None] = lambda *details: None,
    **info: Any,
) -> StepOutcome:
    environment = ActivityEnvironment()
    environment.on_heartbeat = on_heartbeat
    environment.payload_converter = data_converter(1024).payload_converter
    now = datetime.now(UTC)
    usual = {"scheduled_time": now, "started_time": now, "schedule_to_close_timeout": None}
    minutes = timedelta(minutes=5)
    environment.info = dataclasses.replace(
        ActivityEnvironment.default_info(), **{**usual, "start_to_close_timeout": minutes, **info}
    )
    activities = AgentActivities(invoker, executions, stores.artifacts, stores.state, KeptTexts())
    argument = RawValue(environment.payload_converter.to_payload(call))
    return await environment.run(activities.invoke_agent, [argument])


async def test_an_outcome_that_can_not_be_stored_is_handed_on(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agent_activities, "WRITE_PATIENCE", timedelta(seconds=0.2))
    invoker = scripted()
    outcome = await run_attempt(call_input(), invoker, stores, DeafStore(stores.executions, record_steps=10_000))
    assert outcome.unrecorded
    assert outcome.output.inline == {"text": "done"}
    assert len(invoker.calls) == 1


async def test_the_patience_ends_before_the_attempt_does(stores: Stores):
    """A write that outlived the attempt's own limit would have Temporal repeat the call because of the store."""
    invoker = scripted()
    deaf = DeafStore(stores.executions, record_steps=10_000)
    async with asyncio.timeout(10):
        outcome = await run_attempt(
            call_input(),
            invoker,
            stores,
            deaf,
            started_time=datetime.now(UTC),
            start_to_close_timeout=timedelta(seconds=2),
        )
    assert outcome.unrecorded
    assert len(invoker.calls) == 1


@pytest.mark.parametrize("mapping", ["input_mapping", "output_mapping"])
async def test_what_a_mapping_reads_is_waited_for(
    engine_config: dict[str, object], monkeypatch: pytest.MonkeyPatch, mapping: str
):
    """It is fetched before the agent is paid, and a store that is away costs no attempt."""
    reading = {"text": "${output.text}", "all": "${steps.a.output}"}
    steps = [
        {"id": "a", "agent_id": "agent-large"},
        {
            "id": "b",
            "agent_id": "agent-writer",
            "retry_policy": {"max_retries": 0},
            **(
                {"input_mapping": {}, "output_mapping": reading}
                if mapping == "output_mapping"
                else {"input_mapping": {"all": reading["all"]}, "output_mapping": {"text": "${output.text}"}}
            ),
        },
    ]
    doubles = put_between(monkeypatch, lambda store: DeafStore(store, get_artifact=3), "artifacts")
    invoker = scripted({"agent-large": {"text": "0123456789" * 6000}, "agent-writer": {"text": "done"}})
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        execution = await engine.execute_workflow(await prepared(engine, steps))
        result = await engine.get_execution_result(execution["execution_id"], wait=60)
    assert doubles[0].refused == 3
    assert result["status"] == "completed"
    assert result["steps"]["b"]["attempts"] == 1
    assert calls_by_step(invoker) == {"a": 1, "b": 1}


async def test_a_store_that_hangs_does_not_look_like_a_lost_worker(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    """The heartbeats go on beside a write that does not return: without them Temporal would repeat the call."""
    monkeypatch.setattr(call_session, "PULSE_SECONDS", 0.05)
    heartbeats: list[object] = []
    answered = asyncio.Event()

    class HangingStore(DeafStore):
        async def record_steps(self, *given: Any) -> Any:
            await answered.wait()
            return await stores.executions.record_steps(*given)

    async def agent(_: object) -> dict[str, str]:
        async with asyncio.timeout(10):
            while len(heartbeats) < 5:
                await asyncio.sleep(0.02)
        answered.set()
        return {"text": "done"}

    invoker = scripted({"agent-writer": agent})
    outcome = await run_attempt(
        call_input(),
        invoker,
        stores,
        HangingStore(stores.executions),
        on_heartbeat=lambda *given: heartbeats.append(given),
    )
    assert outcome.output.inline == {"text": "done"}
    assert not outcome.unrecorded


async def test_a_straggler_returns_what_is_stored(stores: Stores):
    """An attempt that was paused while a later one finished loses the fence and takes the stored outcome."""
    later = datetime.now(UTC)
    call = call_input()
    await run_attempt(
        call, scripted({"agent-writer": {"text": "later"}}), stores, stores.executions, started_time=later
    )
    straggler = await run_attempt(
        call,
        scripted({"agent-writer": {"text": "straggler"}}),
        stores,
        stores.executions,
        started_time=later - timedelta(seconds=5),
    )
    assert straggler.output.inline == {"text": "later"}
    (record,) = await stores.executions.list_steps("x")
    assert record.status is StepStatus.COMPLETED
    assert record.output is not None
    assert record.output.inline == {"text": "later"}


async def test_a_later_attempt_takes_a_stored_outcome_without_a_call(stores: Stores):
    call = call_input()
    now = datetime.now(UTC)
    await run_attempt(call, scripted(), stores, stores.executions, started_time=now)
    invoker = scripted({"agent-writer": {"text": "again"}})
    outcome = await run_attempt(
        call, invoker, stores, stores.executions, started_time=now + timedelta(seconds=5), attempt=2
    )
    assert outcome.output.inline == {"text": "done"}
    assert invoker.calls == []
