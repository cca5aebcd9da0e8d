"""Cancellation by every door and at every moment: Temporal, record, live state and result say the same of it."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from runs import Gate, create, ended, events_of, finish, start, temporal_cli, until
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import CancelledError

from engine import WorkflowEngine, bootstrap
from engine.domain.agent_call import AgentFailure, FailureReason
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from runs import EngineFactory
    from temporalio.client import Client

    from engine.bootstrap import Stores
    from engine.domain.execution import ExecutionRecord, StepRecord
    from engine.ports.execution_store import ExecutionStore
    from engine.settings import EngineSettings

    Door = Callable[[WorkflowEngine, Client, str], Awaitable[None]]

pytestmark = ON_BOTH_STORES

REASON = "the customer went away"
CHAIN: list[dict[str, Any]] = [
    {"id": "a", "agent_id": "agent-a"},
    {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]},
    {"id": "c", "agent_id": "agent-c", "depends_on": ["b"]},
]


async def by_facade(engine: WorkflowEngine, _: Client, execution_id: str) -> None:
    assert await engine.cancel_execution(execution_id, REASON) is True


async def by_native_cancel(_: WorkflowEngine, client: Client, execution_id: str) -> None:
    await client.get_workflow_handle(execution_id).cancel(reason=REASON)


async def by_signal(_: WorkflowEngine, client: Client, execution_id: str) -> None:
    await client.get_workflow_handle(execution_id).signal("cancel", REASON)


async def by_signal_of_the_cli(_: WorkflowEngine, client: Client, execution_id: str) -> None:
    await temporal_cli(
        client, "workflow", "signal", "--workflow-id", execution_id, "--name", "cancel", "-i", f'"{REASON}"'
    )


async def by_cancel_of_the_cli(_: WorkflowEngine, client: Client, execution_id: str) -> None:
    # The CLI takes a reason only together with a query over many workflows.
    await temporal_cli(client, "workflow", "cancel", "--workflow-id", execution_id)


@pytest.mark.parametrize("door", [by_facade, by_native_cancel, by_cancel_of_the_cli, by_signal, by_signal_of_the_cli])
async def test_every_door_ends_as_cancelled_with_who_and_why(
    engine_factory: EngineFactory, stores: Stores, client: Client, door: Door
):
    gate = Gate()
    engine = engine_factory({"agent-a": {"done": 1}, "agent-b": gate, "agent-c": {}})
    execution_id = await start(engine, CHAIN)
    await until(lambda: gate.attempts, "the second step runs")
    await door(engine, client, execution_id)
    result = await ended(engine, stores, client, execution_id)
    assert (result["status"], result["output"], result["error"]) == ("cancelled", None, None)
    assert result["cancel"]["reason"] == (None if door is by_cancel_of_the_cli else REASON)
    assert result["cancel"]["at"]
    assert result["cancel"]["by"] == await _asked_by(client, execution_id)
    assert result["steps"]["a"]["output"] == {"done": 1}
    assert result["steps"]["b"]["status"] == "cancelled"
    status = await engine.get_execution_status(execution_id)
    assert status.get("cancel") == result["cancel"]
    with pytest.raises(WorkflowFailureError) as caught:
        await client.get_workflow_handle(execution_id).result()
    assert isinstance(caught.value.cause, CancelledError)
    await until(lambda: gate.cancelled == 1, "the running agent was cancelled")
    assert gate.attempts == [1]


async def test_a_second_cancel_changes_nothing_and_one_after_the_end_is_refused(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    execution_id = await start(engine, CHAIN[:1])
    await until(lambda: gate.attempts, "the step runs")
    asked = await asyncio.gather(
        engine.cancel_execution(execution_id, "first"),
        engine.cancel_execution(execution_id, "second"),
        client.get_workflow_handle(execution_id).signal("cancel", "third"),
    )
    assert asked[0] is True
    result = await ended(engine, stores, client, execution_id)
    assert result["cancel"]["reason"] in {"first", "second", "third"}
    assert await engine.cancel_execution(execution_id, "too late") is False
    assert (await finish(engine, execution_id))["cancel"] == result["cancel"]


async def test_a_completed_execution_is_not_cancelled(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {}})
    execution_id = await start(engine, CHAIN[:1])
    await finish(engine, execution_id)
    assert await engine.cancel_execution(execution_id) is False
    assert (await finish(engine, execution_id))["status"] == "completed"


@pytest.mark.parametrize("door", [by_facade, by_signal])
async def test_a_cancel_before_the_first_worker_calls_no_agent(
    engine_factory: EngineFactory, stores: Stores, client: Client, door: Door
):
    starter = engine_factory(worker="none")
    execution_id = await start(starter, CHAIN)
    assert (await starter.get_execution_status(execution_id))["status"] == "pending"
    await door(starter, client, execution_id)
    calls: list[object] = []
    worker = engine_factory(dict.fromkeys(("agent-a", "agent-b", "agent-c"), calls.append))
    # Any start makes the embedded worker begin; this one ends by itself.
    other = await start(worker, CHAIN[:1], name="Other")
    result = await ended(starter, stores, client, execution_id)
    assert result["status"] == "cancelled"
    assert result["cancel"]["reason"] == REASON
    await finish(worker, other)
    assert len(calls) == 1


@pytest.mark.parametrize("door", [by_facade, by_signal_of_the_cli])
async def test_a_cancel_among_many_running_agents_still_says_who(
    engine_factory: EngineFactory, stores: Stores, client: Client, door: Door
):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    execution_id = await start(engine, [{"id": f"s{number}", "agent_id": "agent-a"} for number in range(40)])
    await until(lambda: len(gate.attempts) == 40, "all run")
    await door(engine, client, execution_id)
    result = await ended(engine, stores, client, execution_id)
    assert {step["status"] for step in result["steps"].values()} == {"cancelled"}
    assert len(result["steps"]) == 40
    assert result["cancel"]["reason"] == REASON
    assert result["cancel"]["by"] == await _asked_by(client, execution_id)
    await until(lambda: gate.cancelled == 40, "all agents were cancelled")


async def test_a_cancel_while_a_failure_winds_down_leaves_the_failure(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    sibling = Gate()

    async def fail(_: object) -> object:
        await until(lambda: sibling.attempts, "the sibling runs")
        raise AgentFailure(FailureReason.REFUSED, "no")

    engine = engine_factory({"agent-a": fail, "agent-b": sibling})
    slow = _SlowEnds()
    with slow.installed():
        execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a"}, {"id": "b", "agent_id": "agent-b"}])
        await until(lambda: slow.writes, "the failure is being recorded")
        assert await engine.cancel_execution(execution_id, REASON) in {True, False}
        await by_native_cancel(engine, client, execution_id)
        slow.is_released = True
        result = await ended(engine, stores, client, execution_id)
    assert result["status"] == slow.writes[-1] == "failed"
    assert result["steps"]["a"]["reason"] == "refused"
    assert result["steps"]["b"]["status"] == "cancelled"


async def test_a_cancel_with_no_word_and_a_signal_with_a_strange_one(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    workflow_id = await create(engine, CHAIN[:1])
    ids = [(await engine.execute_workflow(workflow_id))["execution_id"] for _ in range(3)]
    await until(lambda: len(gate.attempts) == 3, "all run")
    await engine.cancel_execution(ids[0])
    await client.get_workflow_handle(ids[1]).signal("cancel")
    await client.get_workflow_handle(ids[2]).signal("cancel", {"why": "ü" * 5000})
    results = [await ended(engine, stores, client, execution_id) for execution_id in ids]
    assert [result["status"] for result in results] == ["cancelled"] * 3
    assert results[0]["cancel"]["reason"] is None
    assert results[1]["cancel"]["reason"] is None
    assert len(results[2]["cancel"]["reason"].encode()) <= 2000


class _SlowEnds:
    """Lets the first write of an end wait, after it was made, for a word."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.is_released = False

    @contextmanager
    def installed(self) -> Generator[None]:
        """Every session that opens its stores meanwhile gets the slow one."""
        ends = self

        opened = bootstrap.open_stores

        def open_slow(settings: EngineSettings) -> Stores:
            stores = opened(settings)
            return dataclasses.replace(stores, executions=_SlowStore(stores.executions, ends))  # pyright: ignore[reportArgumentType] - a port's double

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bootstrap, "open_stores", open_slow)
            yield


class _SlowStore:
    """An ExecutionStore of which each end waits."""

    def __init__(self, store: ExecutionStore, ends: _SlowEnds) -> None:
        self._store = store
        self._ends = ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def finalize_execution(self, record: ExecutionRecord, steps: list[StepRecord]) -> ExecutionRecord:
        stored = await self._store.finalize_execution(record, steps)
        await self._wait(record)
        return stored

    async def record_last_steps(
        self, steps: list[StepRecord], end: ExecutionRecord
    ) -> tuple[list[StepRecord], ExecutionRecord | None]:
        stored = await self._store.record_last_steps(steps, end)
        await self._wait(end)
        return stored

    async def _wait(self, end: ExecutionRecord) -> None:
        self._ends.writes.append(end.status.value)
        while not self._ends.is_released:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", [by_native_cancel, by_signal])
@pytest.mark.parametrize(
    "fields", [{}, {"output_mapping": {"text": "${steps.a.output.text}"}}], ids=["by the last call", "by finalize"]
)
async def test_a_cancel_while_the_end_is_written_ends_equal_everywhere(
    engine_factory: EngineFactory, stores: Stores, client: Client, door: Door, fields: dict[str, Any]
):
    """The end is recorded by then, by the last call or by ``finalize``; the one that Temporal takes replaces it."""
    slow = _SlowEnds()
    with slow.installed():
        engine = engine_factory({"agent-a": {"text": "done"}})
        execution_id = await start(engine, CHAIN[:1], **fields)
        await until(lambda: slow.writes, "the end was written once, and the run has not closed")
        await door(engine, client, execution_id)
        slow.is_released = True
        result = await ended(engine, stores, client, execution_id)
    assert len(slow.writes) > 1
    assert slow.writes[0] == "completed"
    assert slow.writes[-1] == result["status"]
    again = await finish(engine, execution_id)
    assert again == result


async def _asked_by(client: Client, execution_id: str) -> str | None:
    """The identity behind the first signal or request in history."""
    for event in await events_of(client, execution_id):
        if event.HasField("workflow_execution_signaled_event_attributes"):
            return event.workflow_execution_signaled_event_attributes.identity
        if event.HasField("workflow_execution_cancel_requested_event_attributes"):
            return event.workflow_execution_cancel_requested_event_attributes.identity
    return None
