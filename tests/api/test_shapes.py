"""Every answer has exactly the keys and types of ``engine.types``, whatever state it tells of."""

from __future__ import annotations

import asyncio
import types as python_types
from typing import Any, Literal, NotRequired, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from pydantic import JsonValue

from engine import EngineError, WorkflowEngine, types
from engine.domain.json import json_fault
from engine.testing import ScriptedAgentInvoker

STEP_QUICK = {"retry_policy": {"max_retries": 1, "initial_interval": 0.01}, "timeout": 30}


def misfits(value: object, shape: Any, path: str = "answer") -> list[str]:
    """What keeps ``value`` from having a type of ``engine.types``, place by place."""
    if shape is JsonValue:
        fault = json_fault(value, path)
        return [fault] if fault else []
    if is_typeddict(shape):
        return _misfits_of_keys(value, shape, path)
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is Literal:
        return [] if value in arguments else [f"{path} is {value!r}, none of {arguments}"]
    if origin in {Union, python_types.UnionType}:
        choices = [misfits(value, choice, path) for choice in arguments]
        return [] if [] in choices else max(choices, key=len)
    if origin is list:
        if type(value) is not list:
            return [f"{path} is {value!r}, no list"]
        items = cast("list[object]", value)
        return [fault for index, item in enumerate(items) for fault in misfits(item, arguments[0], f"{path}[{index}]")]
    if origin is dict:
        if type(value) is not dict:
            return [f"{path} is {value!r}, no dict"]
        entries = cast("dict[str, object]", value)
        bad = [f"{path} has the key {key!r}" for key in entries if type(key) is not str]
        return bad + [fault for key, item in entries.items() for fault in misfits(item, arguments[1], f"{path}.{key}")]
    fits = type(value) in {int, float} if shape is float else type(value) is shape
    return [] if fits else [f"{path} is {value!r}, no {shape}"]


def _misfits_of_keys(value: object, shape: Any, path: str) -> list[str]:
    if type(value) is not dict:
        return [f"{path} is {value!r}, no object"]
    entries = cast("dict[str, object]", value)
    hints = get_type_hints(shape, include_extras=True)
    faults = [f"{path} has the unknown key {key}" for key in entries if key not in hints]
    for key, hint in hints.items():
        optional = get_origin(hint) is NotRequired
        if key in entries:
            faults += misfits(entries[key], get_args(hint)[0] if optional else hint, f"{path}.{key}")
        elif not optional:
            faults.append(f"{path} lacks {key}")
    return faults


def fits(value: object, shape: Any) -> None:
    assert misfits(value, shape) == []


def test_the_checker_sees_each_kind_of_misfit():
    usage = {"requests": 1, "input_tokens": 0, "output_tokens": 0, "tool_calls": 0, "cost_usd": None}
    assert misfits(usage, types.Usage) == []
    assert misfits({**usage, "cost_usd": 0.5}, types.Usage) == []
    assert misfits({**usage, "more": 1}, types.Usage) == ["answer has the unknown key more"]
    assert misfits({**usage, "requests": "1"}, types.Usage) == ["answer.requests is '1', no <class 'int'>"]
    assert misfits({**usage, "requests": True}, types.Usage) == ["answer.requests is True, no <class 'int'>"]
    assert misfits({"items": []}, types.WorkflowPage) == ["answer lacks next_cursor"]
    assert misfits([{}], list[types.AgentWarning]) == ["answer[0] lacks code", "answer[0] lacks message"]
    assert misfits("up!", Literal["up", "down"]) == ["answer is 'up!', none of ('up', 'down')"]
    assert misfits({"a": {1}}, types.JsonObject) == ["answer.a is of type set, which JSON can't hold"]
    error = {"code": "c", "message": "m", "details": {}}
    assert misfits({"status": "failed", "error": error}, types.ExecutionStatus) != []
    assert misfits({**error, "details": None}, types.Error | None) == ["answer.details is None, no dict"]


@pytest.fixture
async def engine(engine_factory):
    """An engine with agents of every temper, and a workflow for each."""

    async def hang(given: object) -> object:
        await asyncio.sleep(600)
        return given

    engine = engine_factory(
        {
            "agent-good": lambda given: {"got": given},
            "agent-bad": ValueError("never works"),
            "agent-shaky": [ValueError("the first time"), {"got": "the second time"}],
            "agent-huge": {"text": "x" * 100_000},
            "agent-hang": hang,
        }
    )
    for name in ("Good", "Bad", "Shaky", "Huge", "Hang"):
        await engine.register_agent(
            name=name, description="d", capabilities=["c"], tools=["t"], config={"function": "m:f"}
        )
        await create(engine, name.lower(), first=name.lower())
    await create(engine, "fallback", first="bad", fallback={"agent_id": "agent-good"})
    return engine


async def create(engine: WorkflowEngine, workflow_id: str, *, first: str, **fields: object) -> None:
    steps: list[dict[str, object]] = [
        {"id": "first", "agent_id": f"agent-{first}", "input_mapping": {"a": "${input.a}"}, **STEP_QUICK, **fields},
        {"id": "second", "name": "Second", "agent_id": "agent-good", "depends_on": ["first"]},
    ]
    await engine.create_workflow(
        name=workflow_id,
        steps=steps,
        description="a description",
        tags=["t"],
        metadata={"m": [1, {"n": None}]},
        workflow_id=workflow_id,
        input_schema={"type": "object"},
        defaults={"timeout": 60},
        output_mapping={"whole": "${steps.second.output}"},
    )


async def start(engine: WorkflowEngine, workflow_id: str, **options: object) -> str:
    started = await engine.execute_workflow(workflow_id, {"a": 1.5}, {"tags": ["x"], **options})
    fits(started, types.Execution)
    return started["execution_id"]


async def until(engine: WorkflowEngine, execution_id: str, status: str) -> types.ExecutionStatus:
    async with asyncio.timeout(20):
        while True:
            found = await engine.get_execution_status(execution_id)
            fits(found, types.ExecutionStatus)
            if found["status"] == status:
                return found
            await asyncio.sleep(0.02)


async def events_of(engine: WorkflowEngine, execution_id: str) -> list[str]:
    names: list[str] = []
    async for event in engine.watch_execution(execution_id):
        fits(event, types.Event)
        names.append(event["type"])
    return names


ENDS = [
    ("good", {}, "completed", ["completed", "completed"]),
    ("shaky", {}, "completed", ["completed", "completed"]),
    ("huge", {}, "completed", ["completed", "completed"]),
    ("fallback", {}, "completed", ["completed", "completed"]),
    ("bad", {}, "failed", ["failed", "pending"]),
    ("hang", {"timeout": 0.3}, "failed", ["cancelled", "pending"]),
]


@pytest.mark.parametrize(("workflow_id", "options", "status", "steps"), ENDS)
async def test_all_answers_about_an_ended_execution(engine, workflow_id, options, status, steps):
    execution_id = await start(engine, workflow_id, trace=True, idempotency_key="k", **options)
    result = await engine.get_execution_result(execution_id, wait=30)
    fits(result, types.ExecutionResult)
    assert (result["status"], [step["status"] for step in result["steps"].values()]) == (status, steps)
    assert "cancel" not in result
    assert (result["error"] is None) == (status == "completed") == (result["output"] is not None)
    found = await until(engine, execution_id, status)
    assert [step["status"] for step in found["steps"].values()] == steps
    assert found["error"] == result["error"]
    again = await engine.execute_workflow(workflow_id, {"a": 1.5}, {"idempotency_key": "k"})
    fits(again, types.Execution)
    assert (again["execution_id"], again["status"]) == (execution_id, status)
    page = await engine.list_executions(workflow_id)
    fits(page, types.ExecutionPage)
    [item] = page["items"]
    assert (item["status"], item["progress"], item["current_steps"]) == (status, None, None)
    names = await events_of(engine, execution_id)
    assert (names[0], names[-1]) == ("execution.started", f"execution.{status}")


async def test_all_answers_about_a_running_and_then_cancelled_execution(engine):
    execution_id = await start(engine, "hang")
    found = await until(engine, execution_id, "running")
    async with asyncio.timeout(20):
        while found["current_steps"] != ["first"]:
            found = await engine.get_execution_status(execution_id)
    fits(found, types.ExecutionStatus)
    assert found["progress"] == {"total": 2, "completed": 0, "failed": 0, "skipped": 0, "running": 1}
    async with asyncio.timeout(20):
        while (await engine.list_executions(status="running"))["items"] == []:
            await asyncio.sleep(0.02)
    page = await engine.list_executions(status="running")
    fits(page, types.ExecutionPage)
    assert page["items"][0]["current_steps"] == ["first"]

    assert await engine.cancel_execution(execution_id, "no longer needed") is True
    result = await engine.get_execution_result(execution_id, wait=30)
    fits(result, types.ExecutionResult)
    assert (result["status"], result["output"], result["error"]) == ("cancelled", None, None)
    assert result["cancel"]["reason"] == "no longer needed"
    assert result["cancel"]["at"] is not None
    assert [step["status"] for step in result["steps"].values()] == ["cancelled", "pending"]
    found = await until(engine, execution_id, "cancelled")
    assert found["cancel"] == result["cancel"]
    [item] = (await engine.list_executions(status="cancelled"))["items"]
    fits(item, types.ExecutionItem)
    assert item["cancel"] == result["cancel"]
    assert (await events_of(engine, execution_id))[-1] == "execution.cancelled"
    assert await engine.cancel_execution(execution_id) is False


async def test_an_execution_that_nobody_works_on_says_so(engine, engine_factory):
    idle = engine_factory(worker="none", task_queue="nobody-polls-this")
    execution_id = await start(idle, "good")
    found = await idle.get_execution_status(execution_id)
    fits(found, types.ExecutionStatus)
    assert (found["status"], found["progress"]["total"]) == ("pending", 2)
    assert {step["status"] for step in found["steps"].values()} == {"pending"}
    assert "worker" in found["hint"]
    [item] = (await idle.list_executions(status="pending"))["items"]
    fits(item, types.ExecutionItem)
    health = await idle.get_system_health()
    fits(health, types.SystemHealth)
    assert (health["status"], health["components"]["workers"]["status"]) == ("degraded", "no_worker")
    assert await idle.cancel_execution(execution_id) is True


async def test_all_answers_about_workflows(engine):
    fits(await engine.get_workflow("good"), types.Workflow)
    bare = await engine.create_workflow(name="Bare", steps=[{"id": "a", "agent_id": "agent-none"}])
    fits(bare, str)
    found = await engine.get_workflow(bare)
    fits(found, types.Workflow)
    assert (found["description"], found["tags"], found["metadata"], found["status"]) == (None, [], {}, "active")
    fits(await engine.update_workflow(bare, {"name": "Barer"}), bool)
    fits(await engine.get_workflow(bare, version=1), types.Workflow)
    page = await engine.list_workflows(limit=3)
    fits(page, types.WorkflowPage)
    assert len(page["items"]) == 3
    fits(page["next_cursor"], str)
    versions = await engine.list_workflow_versions(bare)
    fits(versions, types.WorkflowPage)
    assert [item["version"] for item in versions["items"]] == [2, 1]
    fits(await engine.validate_workflow({"name": "Bare", "steps": [{"id": "a", "agent_id": "x"}]}), types.Validation)
    invalid = await engine.validate_workflow({"name": 1, "steps": [{"id": "a", "agent": "agent-good"}]})
    fits(invalid, types.Validation)
    assert invalid["valid"] is False
    with pytest.raises(EngineError) as refused:
        await engine.create_workflow(name="", steps=[])
    fits(refused.value.details["issues"], list[types.Issue])
    fits(await engine.delete_workflow(bare), bool)
    archived = await engine.list_workflows(status="archived")
    fits(archived, types.WorkflowPage)
    assert [item["status"] for item in archived["items"]] == ["archived"]


async def test_the_answers_about_executions_of_a_deleted_workflow_stay(engine):
    execution_id = await start(engine, "good")
    await engine.get_execution_result(execution_id, wait=30)
    await engine.delete_workflow("good")
    fits(await engine.get_execution_result(execution_id), types.ExecutionResult)
    fits(await engine.get_execution_status(execution_id), types.ExecutionStatus)
    fits(await engine.list_executions("good"), types.ExecutionPage)
    metrics = await engine.get_workflow_metrics("good")
    fits(metrics, types.WorkflowMetrics)
    assert metrics["metrics"]["execution_count"] == 1


async def test_all_answers_about_agents_handoffs_and_measurements(engine):
    model = await engine.register_agent(name="Model", config={"model": "m"})
    fits(model, str)
    for agent_id in (model, "agent-good"):
        fits(await engine.get_agent(agent_id), types.Agent)
        fits(await engine.get_agent_performance(agent_id), types.AgentPerformance)
    page = await engine.list_agents(limit=2)
    fits(page, types.AgentPage)
    fits(page["next_cursor"], str)
    for given in ({}, {"data_mapping": {"a": "b"}, "trigger_conditions": ["failure"], "workflow_id": "good"}):
        handoff_id = await engine.create_handoff("agent-good", "agent-bad", **given)
        fits(handoff_id, str)
        fits(await engine.get_handoff(handoff_id), types.Handoff)
    fits(await engine.list_handoffs(limit=1), types.HandoffPage)
    fits(await engine.get_workflow_metrics("good"), types.WorkflowMetrics)
    health = await engine.get_system_health()
    fits(health, types.SystemHealth)
    assert set(health["components"]) == {"temporal", "workers", "definitions", "executions", "state", "vectors"}


async def test_health_has_its_shape_when_all_is_down(engine_factory, unused_tcp_port, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    down = engine_factory(temporal_address=f"127.0.0.1:{unused_tcp_port}", worker="none")
    health = await down.get_system_health()
    fits(health, types.SystemHealth)
    assert health["status"] == "unhealthy"
    states = {name: part["status"] for name, part in health["components"].items()}
    assert states == dict.fromkeys(states, "down")
    for part in health["components"].values():
        assert part["detail"]


async def test_health_has_its_shape_when_the_settings_can_not_be_used(tmp_path):
    engine = WorkflowEngine({"mongo_uri": "mongodb://", "data_dir": str(tmp_path)})
    health = await engine.get_system_health()
    fits(health, types.SystemHealth)
    assert health["status"] == "unhealthy"
    assert "mongo_uri" in str(health["components"]["vectors"]["detail"])


async def test_only_a_handoff_that_was_decided_is_in_the_result(engine, engine_config):
    taken_id = await engine.create_handoff("agent-good", "agent-good-too")
    await engine.create_handoff("agent-good", "agent-good-too", "escalation", trigger_conditions=["failure"])
    await engine.register_agent(name="Good Too", config={"function": "m:f"})
    steps = [
        {"id": "a", "agent_id": "agent-good", "input_mapping": {"a": 1}},
        {"id": "b", "agent_id": "agent-good-too", "depends_on": ["a"]},
    ]
    workflow_id = await engine.create_workflow(name="Handed", steps=steps)
    await engine.aclose()
    scripted = ScriptedAgentInvoker({"agent-good": {}, "agent-good-too": {}})
    async with WorkflowEngine(engine_config, invoker=scripted) as other:
        started = await other.execute_workflow(workflow_id)
        fits(started, types.Execution)
        result = await other.get_execution_result(started["execution_id"], wait=30)
        fits(result, types.ExecutionResult)
        assert started["warnings"] == result["warnings"] == []
        assert [handoff["handoff_id"] for handoff in result["handoffs"]] == [taken_id]
