"""Workers that stop, calls that come late, operators who reset: what is written stays right."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from runs import (
    FAST_RETRIES,
    EngineFactory,
    Gate,
    closed,
    create,
    echo,
    ended,
    events_of,
    finish,
    register,
    start,
    until,
)
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetActivityRequest, ResetWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import datetime

    from temporalio.client import Client

    from engine.bootstrap import Stores
    from engine.domain.agent_call import AgentCall
    from engine.domain.execution import StepRecord

CHAIN: list[dict[str, Any]] = [
    {"id": "a", "agent_id": "agent-a"},
    {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]},
]


@contextmanager
def slow_announcements(answered: list[str], landed: list[str]) -> Generator[None]:
    """The write that says running is held back until the agent has answered, and a moment longer."""

    class SlowStore(SqliteExecutionStore):
        async def record_steps(self, steps: list[StepRecord], run_started_at: datetime) -> list[StepRecord]:
            if steps[-1].status is not StepStatus.RUNNING:
                return await super().record_steps(steps, run_started_at)
            # As a write that has left for the database: who waits for it may be cancelled, the write goes on.
            return await asyncio.shield(asyncio.create_task(self._late(steps, run_started_at)))

        async def _late(self, steps: list[StepRecord], run_started_at: datetime) -> list[StepRecord]:
            while not answered:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            stood = await super().record_steps(steps, run_started_at)
            landed.append(steps[-1].step_id)
            return stood

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.adapters.sqlite.execution_store.SqliteExecutionStore", SlowStore)
        yield


@pytest.mark.parametrize("fails_first", [False, True])
async def test_a_slow_word_that_a_step_runs_never_replaces_its_outcome(
    engine_factory: EngineFactory, stores: Stores, client: Client, *, fails_first: bool
):
    answered: list[str] = []
    landed: list[str] = []

    async def answer(_: object, call: AgentCall) -> object:
        await asyncio.sleep(0.2)
        answered.append("")
        if fails_first and call.attempt == 1:
            raise AgentFailure(FailureReason.UNAVAILABLE, "not yet")
        return {"done": 1}

    with slow_announcements(answered, landed):
        engine = engine_factory({"agent-a": answer, "agent-b": {}})
        execution_id = await start(engine, [{**CHAIN[0], "retry_policy": FAST_RETRIES}, CHAIN[1]])
        await closed(client, execution_id)
        await until(lambda: landed, "the word that it runs has reached the database")
        result = await ended(engine, stores, client, execution_id)
    assert result["steps"]["a"]["status"] == "completed"
    assert result["steps"]["a"]["output"] == {"done": 1}
    assert result["steps"]["a"]["attempts"] == (2 if fails_first else 1)


async def test_an_attempt_that_returns_after_its_timeout_changes_nothing(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    calls: list[int] = []
    late: list[str] = []

    async def answer(_: object, call: AgentCall) -> object:
        calls.append(call.attempt)
        if call.attempt > 1:
            return {"by": "second"}
        # A straggler: it does not look at its cancellation.
        until_at = time.monotonic() + 20
        while not late and time.monotonic() < until_at:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return {"by": "first"}

    engine = engine_factory({"agent-a": answer})
    execution_id = await start(engine, [{**CHAIN[0], "timeout": 0.5, "retry_policy": FAST_RETRIES}])
    result = await ended(engine, stores, client, execution_id)
    assert calls == [1, 2]
    assert result["output"] == {"by": "second"}
    late.append("now")
    await asyncio.sleep(0.3)
    assert (await finish(engine, execution_id))["steps"]["a"]["output"] == {"by": "second"}
    (record,) = await stores.executions.list_steps(execution_id)
    assert record.output is not None
    assert record.output.inline == {"by": "second"}


async def test_a_call_that_a_stopping_worker_gave_up_is_made_again_though_there_are_no_retries(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate({"from": "first"})
    keys: list[str] = []

    async def wait(given: object, call: AgentCall) -> object:
        keys.append(call.idempotency_key)
        return await gate(given, call)

    def answer(_: object, call: AgentCall) -> object:
        keys.append(call.idempotency_key)
        return {"from": "second"}

    first = engine_factory({"agent-a": wait, "agent-b": echo})
    no_retries = [{**step, "retry_policy": {"max_retries": 0}} for step in CHAIN]
    execution_id = await start(first, no_retries)
    await until(lambda: gate.attempts, "the step runs")
    await first.aclose()
    assert gate.cancelled == 1
    second = engine_factory({"agent-a": answer, "agent-b": echo})
    other = await start(second, CHAIN[:1], name="Other")
    result = await ended(second, stores, client, execution_id)
    await finish(second, other)
    assert result["output"] == {"input": {}, "steps": {"a": {"from": "second"}}}
    assert len({key for key in keys if key.startswith(execution_id)}) == 1
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_id
        for event in await events_of(client, execution_id)
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert scheduled == ["a.1", "a.1.1", "b.1"]


async def test_an_operators_reset_of_an_activity_calls_the_agent_once_more(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    seen: list[int] = []

    def flaky(_: object, call: AgentCall) -> object:
        seen.append(call.attempt)
        if len(seen) < 3:
            raise AgentFailure(FailureReason.UNAVAILABLE, "not yet")
        return {"call": len(seen)}

    engine = engine_factory({"agent-a": flaky})
    policy = {"max_retries": 5, "initial_interval": 1000, "max_interval": 1000}
    execution_id = await start(engine, [{**CHAIN[0], "retry_policy": policy}])
    await until(lambda: len(seen) == 1, "the first attempt has failed")
    for done in (1, 2):
        await until(lambda done=done: len(seen) == done, "an attempt has failed and its retry waits")
        await until(lambda: _is_backing_off(client, execution_id), "Temporal waits for the next attempt")
        await client.workflow_service.reset_activity(
            ResetActivityRequest(namespace="default", execution=WorkflowExecution(workflow_id=execution_id), id="a.1")
        )
    result = await ended(engine, stores, client, execution_id)
    assert result["output"] == {"call": 3}
    assert result["steps"]["a"]["status"] == "completed"
    assert seen[0] == 1


async def test_a_reset_run_takes_the_record_over_with_whatever_end(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    answers: list[object] = [{"n": 1}, AgentFailure(FailureReason.REFUSED, "not again")]
    engine = engine_factory({"agent-a": answers, "agent-b": {"b": 1}})
    execution_id = await start(engine, CHAIN)
    before = await ended(engine, stores, client, execution_id)
    assert before["status"] == "completed"
    first_run = (await client.get_workflow_handle(execution_id).describe()).run_id
    first_task = next(
        event.event_id
        for event in await events_of(client, execution_id)
        if event.HasField("workflow_task_completed_event_attributes")
    )
    await _reset(client, execution_id, first_run, event_id=first_task)
    await until(lambda: _has_moved(client, execution_id, first_run), "there is a new run")
    await closed(client, execution_id)
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "failed"
    assert result["steps"]["a"]["status"] == "failed"
    assert result["output"] is None


async def test_a_reset_in_the_middle_keeps_what_was_done_and_reopens_the_record(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    """The outputs are inline and together too large for one call: they are read from the first run's records."""
    text = "x" * (31 * 1024)
    gate = Gate({"end": 2})
    gate.is_open = True
    calls: list[str] = []

    async def join(given: Any, call: AgentCall) -> object:
        calls.append("join")
        assert given["all"] == text * 9
        return await gate(given, call)

    engine = engine_factory({"agent-a": {"text": text}, "agent-join": join})
    steps: list[dict[str, Any]] = [{"id": f"s{number}", "agent_id": "agent-a"} for number in range(9)]
    steps.append(
        {
            "id": "join",
            "agent_id": "agent-join",
            "input_mapping": {"all": "".join(f"${{steps.s{number}.output.text}}" for number in range(9))},
            "retry_policy": {"max_retries": 0},
        }
    )
    execution_id = await start(engine, steps)
    assert (await ended(engine, stores, client, execution_id))["status"] == "completed"
    first_run = (await client.get_workflow_handle(execution_id).describe()).run_id
    gate.is_open = False
    events = await events_of(client, execution_id)
    joined = next(
        event.activity_task_scheduled_event_attributes.workflow_task_completed_event_id
        for event in events
        if event.activity_task_scheduled_event_attributes.activity_id == "join.1"
    )
    await _reset(client, execution_id, first_run, event_id=joined)
    await until(lambda: len(calls) == 2, "the last step is called again")

    async def is_running() -> bool:
        return (await engine.get_execution_status(execution_id))["status"] == "running"

    await until(is_running, "the record is open again")
    gate.is_open = True
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "completed"
    assert result["output"] == {"end": 2}
    assert result["steps"]["s3"]["output"] == {"text": text}


async def test_a_workflow_id_that_was_used_before_is_refused_and_its_record_stays(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    engine = engine_factory({"agent-a": echo})
    await register(engine, "agent-a")
    workflow_id = await create(engine, CHAIN[:1])
    warm = await engine.execute_workflow(workflow_id, {"n": 0})
    await finish(engine, warm["execution_id"])
    execution_id = f"{workflow_id}-again"
    queue = warm["temporal"]["task_queue"]
    await client.start_workflow(workflow_id, {"n": 1}, id=execution_id, task_queue=queue)
    first = await ended(engine, stores, client, execution_id)
    handle = await client.start_workflow(workflow_id, {"n": 2}, id=execution_id, task_queue=queue)
    with pytest.raises(WorkflowFailureError) as refused:
        await handle.result()
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "conflict"
    assert await engine.get_execution_result(execution_id) == first


async def _reset(client: Client, execution_id: str, run_id: str, *, event_id: int) -> None:
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=execution_id, run_id=run_id),
            reason="an operator tries again",
            workflow_task_finish_event_id=event_id,
            request_id=f"reset-{execution_id}",
        )
    )


async def _has_moved(client: Client, execution_id: str, run_id: str) -> bool:
    return (await client.get_workflow_handle(execution_id).describe()).run_id != run_id


async def _is_backing_off(client: Client, execution_id: str) -> bool:
    described = await client.get_workflow_handle(execution_id).describe()
    return any(
        (pending.HasField("last_failure") and not pending.HasField("last_started_time")) or pending.state == 1
        for pending in described.raw_description.pending_activities
    )
