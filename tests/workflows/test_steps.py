"""Steps on the real server: what runs beside what, how calls are repeated, replaced and given up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from runs import FAST_RETRIES, Gate, echo, ended, events_of, finish, start, until
from temporalio.api.enums.v1 import EventType, TimeoutType

from engine.domain.agent_call import AgentFailure, FailureReason
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from runs import EngineFactory
    from temporalio.client import Client

    from engine.bootstrap import Stores
    from engine.domain.agent_call import AgentCall

pytestmark = ON_BOTH_STORES

NO_RETRIES: dict[str, Any] = {"max_retries": 0}


@pytest.mark.parametrize("how", ["depends_on", "reference"])
async def test_steps_that_need_the_same_step_run_beside_each_other(
    engine_factory: EngineFactory, stores: Stores, client: Client, how: str
):
    left, right = Gate({"side": "left"}), Gate({"side": "right"})
    engine = engine_factory(
        {
            "agent-first": {"text": "go"},
            "agent-left": left,
            "agent-right": right,
            "agent-last": echo,
        }
    )
    if how == "depends_on":
        below: dict[str, Any] = {"depends_on": ["first"]}
        join: dict[str, Any] = {"depends_on": ["left", "right"]}
    else:
        below = {"input_mapping": {"text": "${steps.first.output.text}"}}
        join = {"input_mapping": {"l": "${steps.left.output.side}", "r": "${steps.right.output.side}"}}
    execution_id = await start(
        engine,
        [
            {"id": "last", "agent_id": "agent-last", **join},
            {"id": "left", "agent_id": "agent-left", **below},
            {"id": "right", "agent_id": "agent-right", **below},
            {"id": "first", "agent_id": "agent-first"},
        ],
        {"topic": "t"},
    )
    await until(lambda: left.attempts and right.attempts, "both branches are called while neither has answered")
    open_status = await engine.get_execution_status(execution_id)
    assert open_status["status"] == "running"
    left.is_open = right.is_open = True
    result = await ended(engine, stores, client, execution_id)
    if how == "depends_on":
        expected = {"input": {"topic": "t"}, "steps": {"left": {"side": "left"}, "right": {"side": "right"}}}
        assert result["output"] == expected
    else:
        assert result["output"] == {"l": "left", "r": "right"}


async def test_a_step_without_a_mapping_gets_the_input_and_what_it_depends_on_alone(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"a": 1}, "agent-echo": echo})
    execution_id = await start(
        engine,
        [
            {"id": "a", "agent_id": "agent-a"},
            {"id": "b", "agent_id": "agent-echo", "depends_on": ["a"], "output_mapping": {"got": "${output}"}},
            {"id": "c", "agent_id": "agent-echo", "depends_on": ["b"]},
        ],
        {"x": None},
    )
    result = await finish(engine, execution_id)
    assert result["output"] == {
        "input": {"x": None},
        "steps": {"b": {"got": {"input": {"x": None}, "steps": {"a": {"a": 1}}}}},
    }


async def test_retries_are_made_as_written_and_counted(engine_factory: EngineFactory, stores: Stores, client: Client):
    seen: list[tuple[int, str]] = []

    def flaky(_: object, call: AgentCall) -> object:
        seen.append((call.attempt, call.idempotency_key))
        if call.attempt < 3:
            raise AgentFailure(FailureReason.UNAVAILABLE, "not yet")
        return {"ok": True}

    engine = engine_factory({"agent-a": flaky})
    policy = {"max_retries": 5, "initial_interval": 0.07, "backoff_factor": 1.5, "max_interval": 0.5}
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a", "retry_policy": policy, "timeout": 9}])
    result = await ended(engine, stores, client, execution_id)
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({key for _, key in seen}) == 1
    assert result["steps"]["a"]["attempts"] == 3
    scheduled = _scheduled(await events_of(client, execution_id))
    (attributes,) = scheduled
    assert attributes.activity_id == "a.1"
    assert attributes.activity_type.name == "agent.agent-a"
    assert attributes.retry_policy.maximum_attempts == 6
    assert attributes.retry_policy.backoff_coefficient == 1.5
    assert attributes.retry_policy.initial_interval.ToMilliseconds() == 70
    assert attributes.retry_policy.maximum_interval.ToMilliseconds() == 500
    assert attributes.start_to_close_timeout.ToMilliseconds() == 9000
    assert not attributes.schedule_to_close_timeout.ToMilliseconds()


async def test_the_last_retry_fails_the_step_and_the_execution(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    calls: list[int] = []

    def broken(_: object, call: AgentCall) -> object:
        calls.append(call.attempt)
        raise ValueError("kaputt")

    engine = engine_factory({"agent-a": broken, "agent-b": {}})
    policy = {**FAST_RETRIES, "max_retries": 2}
    execution_id = await start(
        engine,
        [
            {"id": "a", "agent_id": "agent-a", "retry_policy": policy},
            {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]},
        ],
    )
    result = await ended(engine, stores, client, execution_id)
    assert calls == [1, 2, 3]
    assert result["status"] == "failed"
    assert result["output"] is None
    assert result["error"]["code"] == "agent_error"
    assert "kaputt" in result["error"]["message"]
    step = result["steps"]["a"]
    assert (step["status"], step["attempts"], step["reason"]) == ("failed", 3, "error")
    assert step["error"]["details"]["reason"] == "error"
    assert "b" not in result["steps"] or result["steps"]["b"]["status"] == "pending"


@pytest.mark.parametrize(
    ("reason", "listed"),
    [(FailureReason.REFUSED, []), (FailureReason.INVALID_OUTPUT, ["invalid_output"])],
)
async def test_what_is_not_retryable_is_called_once(
    engine_factory: EngineFactory, reason: FailureReason, listed: list[str]
):
    calls: list[int] = []

    def refuse(_: object, call: AgentCall) -> object:
        calls.append(call.attempt)
        raise AgentFailure(reason, "no")

    engine = engine_factory({"agent-a": refuse})
    policy = {**FAST_RETRIES, "non_retryable": listed}
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a", "retry_policy": policy}])
    result = await finish(engine, execution_id)
    assert calls == [1]
    assert result["steps"]["a"]["attempts"] == 1
    assert result["steps"]["a"]["reason"] == reason.value


async def test_a_reply_without_what_the_output_mapping_reads_is_asked_for_again(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": [{"wrong": 1}, {"plan": "p"}]})
    execution_id = await start(
        engine,
        [
            {
                "id": "a",
                "agent_id": "agent-a",
                "output_mapping": {"architecture": "${output.plan}", "of": "${execution.workflow_id}"},
                "retry_policy": FAST_RETRIES,
            }
        ],
    )
    result = await finish(engine, execution_id)
    assert result["output"] == {"architecture": "p", "of": "flow"}
    assert result["steps"]["a"]["attempts"] == 2


async def test_an_input_mapping_that_reads_what_is_not_there_is_never_called(engine_factory: EngineFactory):
    calls: list[object] = []
    engine = engine_factory({"agent-a": {"x": 1}, "agent-b": calls.append, "agent-c": calls.append})
    execution_id = await start(
        engine,
        [
            {"id": "a", "agent_id": "agent-a"},
            {
                "id": "b",
                "agent_id": "agent-b",
                "input_mapping": {"y": "${steps.a.output.y}"},
                "fallback": {"agent_id": "agent-c"},
            },
        ],
    )
    result = await finish(engine, execution_id)
    assert (result["status"], result["error"]["code"]) == ("failed", "invalid_input")
    assert "steps.a.output.y" in result["error"]["message"]
    assert result["steps"]["b"]["status"] == "failed"
    assert calls == []


async def test_an_attempt_over_its_timeout_is_cancelled_and_made_again(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    calls: list[int] = []

    async def slow_once(_: object, call: AgentCall) -> object:
        calls.append(call.attempt)
        if call.attempt == 1:
            await asyncio.sleep(60)
        return {"attempt": call.attempt}

    engine = engine_factory({"agent-a": slow_once})
    execution_id = await start(
        engine, [{"id": "a", "agent_id": "agent-a", "timeout": 0.5, "retry_policy": FAST_RETRIES}]
    )
    result = await ended(engine, stores, client, execution_id)
    assert result["output"] == {"attempt": 2}
    assert result["steps"]["a"]["attempts"] == 2
    assert calls == [1, 2]


async def test_a_step_that_is_out_of_time_says_so(engine_factory: EngineFactory, stores: Stores, client: Client):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    execution_id = await start(
        engine, [{"id": "a", "agent_id": "agent-a", "timeout": 0.4, "retry_policy": {**FAST_RETRIES, "max_retries": 1}}]
    )
    result = await ended(engine, stores, client, execution_id)
    step = result["steps"]["a"]
    assert (result["status"], result["error"]["code"]) == ("failed", "agent_error")
    assert (step["status"], step["reason"], step["attempts"]) == ("failed", "timeout", 2)
    assert step["error"]["details"]["reason"] == "timeout"
    assert "0.4" in step["error"]["message"]
    assert gate.attempts == [1, 2]
    await until(lambda: gate.cancelled == 2, "both attempts were told to stop")


async def test_timeout_as_a_non_retryable_reason_ends_the_step_at_the_first(engine_factory: EngineFactory):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    policy = {**FAST_RETRIES, "non_retryable": ["timeout"]}
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a", "timeout": 0.4, "retry_policy": policy}])
    result = await finish(engine, execution_id)
    assert gate.attempts == [1]
    assert (result["steps"]["a"]["reason"], result["steps"]["a"]["attempts"]) == ("timeout", 1)


async def test_total_timeout_ends_all_attempts(engine_factory: EngineFactory, stores: Stores, client: Client):
    calls: list[int] = []

    def broken(_: object, call: AgentCall) -> object:
        calls.append(call.attempt)
        raise AgentFailure(FailureReason.UNAVAILABLE, "down")

    engine = engine_factory({"agent-a": broken})
    policy = {**FAST_RETRIES, "max_retries": 1000}
    execution_id = await start(
        engine, [{"id": "a", "agent_id": "agent-a", "total_timeout": 2.5, "retry_policy": policy}]
    )
    result = await ended(engine, stores, client, execution_id)
    step = result["steps"]["a"]
    assert step["status"] == "failed"
    assert step["reason"] == "timeout"
    assert step["attempts"] == len(calls) > 1
    (scheduled,) = _scheduled(await events_of(client, execution_id))
    assert scheduled.schedule_to_close_timeout.ToMilliseconds() == 2500


async def test_total_timeout_of_a_hanging_agent_has_the_reason_timeout(engine_factory: EngineFactory, client: Client):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    execution_id = await start(
        engine, [{"id": "a", "agent_id": "agent-a", "total_timeout": 0.5, "retry_policy": FAST_RETRIES}]
    )
    result = await finish(engine, execution_id)
    step = result["steps"]["a"]
    assert (step["status"], step["reason"], step["attempts"]) == ("failed", "timeout", 1)
    (timed_out,) = (
        event.activity_task_timed_out_event_attributes
        for event in await events_of(client, execution_id)
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT
    )
    timeout_type = timed_out.failure.timeout_failure_info.timeout_type
    assert timeout_type in {TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE}


async def test_the_fallback_takes_over_when_the_agent_has_failed_for_good(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    keys: set[str] = set()

    def broken(_: object, call: AgentCall) -> object:
        keys.add(call.idempotency_key)
        raise AgentFailure(FailureReason.ERROR, "broken")

    def rescue(given: Any, call: AgentCall) -> object:
        keys.add(call.idempotency_key)
        return {"text": f"rescued {given['topic']}"}

    engine = engine_factory({"agent-a": broken, "agent-b": rescue, "agent-c": echo})
    execution_id = await start(
        engine,
        [
            {
                "id": "a",
                "agent_id": "agent-a",
                "fallback": {"agent_id": "agent-b"},
                "input_mapping": {"topic": "${input.topic}"},
                "retry_policy": {**FAST_RETRIES, "max_retries": 1},
            },
            {"id": "c", "agent_id": "agent-c", "input_mapping": {"text": "${steps.a.output.text}"}},
        ],
        {"topic": "cats"},
    )
    result = await ended(engine, stores, client, execution_id)
    assert result["output"] == {"text": "rescued cats"}
    step = result["steps"]["a"]
    assert (step["status"], step["agent_id"], step["attempts"], step["error"]) == ("completed", "agent-b", 3, None)
    assert len(keys) == 2
    status = await engine.get_execution_status(execution_id)
    assert status["steps"]["a"]["attempts"] == 3
    assert status["steps"]["a"]["agent_id"] == "agent-b"
    types = [event["type"] async for event in engine.watch_execution(execution_id)]
    assert "step.fell_back" in types
    scheduled = _scheduled(await events_of(client, execution_id))
    assert [attributes.activity_id for attributes in scheduled] == ["a.1", "a.2", "c.1"]


async def test_the_fallback_takes_over_after_a_timeout_and_may_fail_too(engine_factory: EngineFactory):
    gate = Gate()
    engine = engine_factory({"agent-a": gate, "agent-b": [AgentFailure(FailureReason.REFUSED, "neither do I")]})
    execution_id = await start(
        engine,
        [
            {
                "id": "a",
                "agent_id": "agent-a",
                "fallback": {"agent_id": "agent-b"},
                "timeout": 0.4,
                "retry_policy": NO_RETRIES,
            }
        ],
    )
    result = await finish(engine, execution_id)
    step = result["steps"]["a"]
    assert gate.attempts == [1]
    assert (step["status"], step["agent_id"], step["reason"], step["attempts"]) == ("failed", "agent-b", "refused", 2)
    assert "neither do I" in result["error"]["message"]


async def test_a_failure_cancels_the_agents_that_still_run(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()

    async def fail(_: object) -> object:
        await until(lambda: gate.attempts, "the sibling runs")
        raise AgentFailure(FailureReason.REFUSED, "no")

    engine = engine_factory({"agent-a": fail, "agent-b": gate, "agent-c": {}})
    execution_id = await start(
        engine,
        [
            {"id": "a", "agent_id": "agent-a"},
            {"id": "b", "agent_id": "agent-b"},
            {"id": "c", "agent_id": "agent-c", "depends_on": ["b"]},
        ],
    )
    result = await ended(engine, stores, client, execution_id)
    assert (result["status"], result["steps"]["a"]["status"]) == ("failed", "failed")
    assert result["steps"]["b"]["status"] == "cancelled"
    assert result["error"]["details"]["step_id"] == "a"
    await until(lambda: gate.cancelled == 1, "the sibling's agent was cancelled")
    assert len(_scheduled(await events_of(client, execution_id))) == 2


async def test_an_execution_past_its_timeout_has_failed_and_its_agents_are_cancelled(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()
    engine = engine_factory({"agent-a": gate})
    workflow_steps = [{"id": "a", "agent_id": "agent-a"}]
    execution_id = await start(engine, workflow_steps, options={"timeout": 0.7})
    status = await engine.get_execution_status(execution_id)
    result = await ended(engine, stores, client, execution_id)
    assert status["status"] in {"pending", "running"}
    assert (result["status"], result["error"]["code"]) == ("failed", "execution_timeout")
    assert result["steps"]["a"]["status"] == "cancelled"
    record = await stores.executions.get_execution(execution_id)
    assert record is not None
    assert record.deadline_at is not None
    assert record.completed_at is not None
    assert record.completed_at >= record.deadline_at
    assert result["error"]["details"]["deadline_at"]
    await until(lambda: gate.cancelled == 1, "the agent was cancelled")


async def test_an_execution_without_a_timeout_has_no_timer(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-a": {}})
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a"}])
    await finish(engine, execution_id)
    types = {event.event_type for event in await events_of(client, execution_id)}
    assert EventType.EVENT_TYPE_TIMER_STARTED not in types


def _scheduled(events: Any) -> list[Any]:
    return [
        event.activity_task_scheduled_event_attributes
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]


async def test_what_a_quick_agent_emits_comes_between_its_start_and_its_end(engine_factory: EngineFactory):
    def talks(_: object, call: AgentCall) -> dict[str, str]:
        call.emit("one")
        call.emit("two")
        return {"text": "done"}

    engine = engine_factory({"agent-a": talks})
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a"}, {"id": "b", "agent_id": "agent-a"}])
    told = [event async for event in engine.watch_execution(execution_id)]
    for step_id in ("a", "b"):
        types = [event["type"] for event in told if event["step_id"] == step_id]
        assert types == ["step.started", "agent.progress", "agent.progress", "step.completed"]
