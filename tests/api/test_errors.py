"""What goes wrong has one code, says what to do, shows no secret, and stands the same wherever it is read."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import pytest

from engine import EngineError, WorkflowEngine, errors
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.errors import ErrorCode, NotFoundError
from engine.testing import ScriptedAgentInvoker


def classes(base: type[EngineError] = EngineError) -> list[type[EngineError]]:
    return [base, *(found for below in base.__subclasses__() for found in classes(below))]


def made(kind: type[EngineError]) -> EngineError:
    if issubclass(kind, NotFoundError):
        return kind("id-1", None)
    return kind("what is wrong", {"path": "a.b", "limit": 3}, "req-1")


@pytest.mark.parametrize("kind", classes())
def test_each_error_renders_as_the_page_says_and_survives_a_pickle(kind):
    error = made(kind)
    response: Any = error.to_response()
    assert json.loads(json.dumps(response)) == response
    assert set(response) == {"error"}
    assert set(response["error"]) == {"code", "message", "details", "request_id"}
    assert response["error"]["code"] == kind.code.value
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert again.to_response() == response
        assert (again.retryable, str(again)) == (error.retryable, str(error))


def test_each_code_has_a_class_and_only_what_may_pass_by_itself_is_retryable():
    assert {kind.code for kind in classes()} == set(ErrorCode)
    assert {kind.code.value for kind in classes() if kind.retryable} == {"database_error", "runtime_unavailable"}
    assert {name for name in vars(errors) if name.endswith("Error")} == {kind.__name__ for kind in classes()}


# Executions that fail.


ONCE = {"retry_policy": {"max_retries": 0}}


async def failed(
    engine: WorkflowEngine, step: dict[str, object], given: dict[str, object] | None = None, **fields: Any
):
    """The result of an execution of one step, with the options in ``fields`` under ``options``."""
    options = fields.pop("options", None)
    await engine.register_agent(name="a", config={"function": "m:f"})
    await engine.register_agent(name="b", config={"function": "m:f"})
    steps = [{"id": "s", "agent_id": "agent-a", **ONCE, **step}]
    workflow_id = await engine.create_workflow(name="failing", steps=steps, **fields)
    started = await engine.execute_workflow(workflow_id, given or {}, options)
    result = await engine.get_execution_result(started["execution_id"], wait=30)
    status = await engine.get_execution_status(started["execution_id"])
    [item] = (await engine.list_executions())["items"]
    assert result["error"] == status["error"] == item["error"]
    assert result["steps"]["s"]["error"] == status["steps"]["s"]["error"]
    assert (result["status"], status["status"], item["status"]) == ("failed",) * 3
    return result


@pytest.mark.parametrize("reason", list(FailureReason))
async def test_an_agents_failure_is_agent_error_with_its_reason(engine_factory, reason):
    engine = engine_factory({"agent-a": AgentFailure(reason, "the agent's own words", details={"http_status": 418})})
    result = await failed(engine, {})
    error = result["error"]
    assert error["code"] == "agent_error"
    assert error["message"] == "Step s failed: the agent's own words"
    wanted = {"reason": reason.value, "step_id": "s", "agent_id": "agent-a", "http_status": 418}
    assert error["details"] == wanted == result["steps"]["s"]["error"]["details"]
    assert (result["steps"]["s"]["reason"], result["steps"]["s"]["attempts"]) == (reason.value, 1)


@pytest.mark.parametrize("reason", ["refused", "invalid_request", "unauthorized"])
async def test_some_failures_are_final_whatever_the_retry_policy(engine_factory, reason):
    engine = engine_factory({"agent-a": AgentFailure(FailureReason(reason), "no")})
    result = await failed(engine, {"retry_policy": {"max_retries": 5, "initial_interval": 0.01}})
    assert (result["error"]["details"]["reason"], result["steps"]["s"]["attempts"]) == (reason, 1)


@pytest.mark.parametrize("limit", ["timeout", "total_timeout"])
async def test_a_step_that_takes_too_long_is_agent_error_with_the_reason_timeout(engine_factory, limit):
    async def slow(given: object) -> object:
        await asyncio.sleep(600)
        return given

    engine = engine_factory({"agent-a": slow})
    result = await failed(engine, {limit: 0.2})
    assert (result["error"]["code"], result["error"]["details"]["reason"]) == ("agent_error", "timeout")
    assert "0.2 s" in result["error"]["message"]


async def test_an_execution_that_takes_too_long_is_execution_timeout(engine_factory):
    async def slow(given: object) -> object:
        await asyncio.sleep(600)
        return given

    engine = engine_factory({"agent-a": slow})
    result = await failed(engine, {}, options={"timeout": 0.2})
    assert (result["error"]["code"], result["steps"]["s"]["status"]) == ("execution_timeout", "cancelled")


async def test_a_missing_path_in_an_input_mapping_is_invalid_input_and_calls_nobody(engine_config):
    invoker = ScriptedAgentInvoker({"agent-a": {}})
    async with WorkflowEngine(engine_config, invoker=invoker) as engine:
        result = await failed(engine, {"input_mapping": {"x": "${input.a.b}"}}, {"a": {}})
        assert result["error"]["code"] == "invalid_input"
        assert "input.a.b" in result["error"]["message"]
        assert invoker.calls == []


async def test_a_missing_path_in_an_output_mapping_is_invalid_output_and_retried(engine_factory):
    engine = engine_factory({"agent-a": {"other": 1}})
    retrying = {"retry_policy": {"max_retries": 1, "initial_interval": 0.01}}
    result = await failed(engine, {"output_mapping": {"x": "${output.missing}"}, **retrying})
    assert (result["error"]["code"], result["error"]["details"]["reason"]) == ("agent_error", "invalid_output")
    assert "output.missing" in result["error"]["message"]
    assert result["steps"]["s"]["attempts"] == 2


@pytest.mark.parametrize("reply", [{"x": float("nan")}, {"x": {1, 2}}, {1: 2}])
async def test_a_reply_that_is_no_json_is_invalid_output(engine_factory, reply):
    result = await failed(engine_factory({"agent-a": reply}), {})
    assert (result["error"]["code"], result["error"]["details"]["reason"]) == ("agent_error", "invalid_output")


async def test_when_the_fallback_fails_too_its_failure_is_the_steps(engine_factory):
    engine = engine_factory({"agent-a": ValueError("first"), "agent-b": ValueError("second")})
    result = await failed(engine, {"fallback": {"agent_id": "agent-b"}})
    assert "second" in result["error"]["message"]
    assert result["error"]["details"]["agent_id"] == "agent-b"
    assert (result["steps"]["s"]["agent_id"], result["steps"]["s"]["attempts"]) == ("agent-b", 2)


async def test_an_output_mapping_of_the_whole_that_reads_what_is_not_there_is_invalid_input(engine_factory):
    engine = engine_factory({"agent-a": {"n": 1}})
    await engine.register_agent(name="a", config={"function": "m:f"})
    steps = [{"id": "s", "agent_id": "agent-a", "input_mapping": {}}]
    workflow_id = await engine.create_workflow(name="w", steps=steps, output_mapping={"x": "${steps.s.output.missing}"})
    started = await engine.execute_workflow(workflow_id)
    result = await engine.get_execution_result(started["execution_id"], wait=30)
    assert (result["status"], result["error"]["code"], result["output"]) == ("failed", "invalid_input", None)
    assert "steps.s.output.missing" in result["error"]["message"]
    assert (result["steps"]["s"]["status"], result["steps"]["s"]["output"]) == ("completed", {"n": 1})


# Parts that are not there.


async def test_without_temporal_a_start_is_runtime_unavailable_and_leaves_no_record(engine_factory, unused_tcp_port):
    address = f"127.0.0.1:{unused_tcp_port}"
    for worker in ("none", "embedded"):
        engine = engine_factory(temporal_address=address, worker=worker)
        await engine.register_agent(name="a", config={"function": "m:f"})
        workflow_id = await engine.create_workflow(name="w", steps=[{"id": "s", "agent_id": "agent-a"}])
        with pytest.raises(EngineError) as refused:
            await engine.execute_workflow(workflow_id, {}, {"idempotency_key": "k"})
        assert (refused.value.code, refused.value.retryable) == ("runtime_unavailable", True)
        assert address in refused.value.message
        assert "./baton dev" in refused.value.message
        assert (await engine.list_executions())["items"] == []


async def test_without_a_server_to_start_the_command_is_named_that_gets_one(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.adapters.temporal.dev_server.find_binary", lambda: None)
    async with WorkflowEngine({"data_dir": str(tmp_path)}) as engine:
        await engine.register_agent(name="a", config={"function": "m:f"})
        workflow_id = await engine.create_workflow(name="w", steps=[{"id": "s", "agent_id": "agent-a"}])
        with pytest.raises(EngineError) as refused:
            await engine.execute_workflow(workflow_id)
        assert refused.value.code == "runtime_unavailable"
        assert "./baton doctor --fix" in refused.value.message
        assert (await engine.list_executions())["items"] == []


async def test_a_broken_database_is_database_error_for_every_call_and_is_not_written_over(engine_factory, tmp_path):
    (tmp_path / "data").mkdir()
    broken = b"this is no database" * 1000
    (tmp_path / "data" / "baton.db").write_bytes(broken)
    engine = engine_factory()
    calls = [
        engine.create_workflow(name="w", steps=[{"id": "s", "agent_id": "agent-a"}]),
        engine.get_workflow("w"),
        engine.list_agents(),
        engine.execute_workflow("w"),
        engine.get_execution_status("w-1"),
    ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for error in ends:
        assert isinstance(error, EngineError), error
        assert (error.code, error.retryable) == ("database_error", True)
        assert "baton.db" in error.message
        assert str(error.request_id).startswith("req-")
    health = await engine.get_system_health()
    assert health["status"] == "unhealthy"
    assert health["components"]["definitions"]["status"] == "down"
    assert (tmp_path / "data" / "baton.db").read_bytes() == broken


async def test_passwords_of_the_configuration_are_in_no_error(engine_config):
    secret = "hunter2-is-my-password"
    given = {
        "mongo_uri": f"mongodb://user:{secret}@localhost:1/",
        "redis_uri": f"redis://:{secret}@localhost:1/0",
        "neo4j_uri": "bolt://localhost:1",
        "neo4j_user": "neo4j",
        "neo4j_password": secret,
        "pinecone_api_key": secret,
        "pinecone_host": "http://localhost:1",
    }
    engine = WorkflowEngine({**engine_config, **given})
    texts = [str(await engine.get_system_health())]
    for call, key in ((engine.list_workflows, "neo4j_uri"), (engine.list_executions, "mongo_uri")):
        with pytest.raises(EngineError, match=key) as failed:
            await call()
        assert failed.value.code == "database_error"
        texts += [repr(failed.value), json.dumps(failed.value.to_response())]
    await engine.aclose()
    for wrong in ({"mongo_uri": secret}, {"neo4j_password": [secret]}, {"redis_uri": f"http://:{secret}@x"}):
        with pytest.raises(EngineError) as refused:
            WorkflowEngine(wrong)
        texts += [repr(refused.value), json.dumps(refused.value.to_response())]
    texts.append(repr(WorkflowEngine({**engine_config, **given}).__dict__))
    assert not any(secret in text for text in texts)
