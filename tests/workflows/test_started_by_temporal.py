"""Executions that Temporal alone started: its CLI or a plain client, with no word to Baton before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from runs import EngineFactory, Gate, attributes_of, closed, create, echo, ended, finish, temporal_cli, until
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from engine.errors import ExecutionNotFoundError
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from engine import WorkflowEngine
    from engine.bootstrap import Stores

pytestmark = ON_BOTH_STORES

STEPS: list[dict[str, Any]] = [
    {"id": "a", "agent_id": "agent-echo", "input_mapping": {"topic": "${input.topic ?? 'none'}"}},
    {"id": "b", "agent_id": "agent-echo", "input_mapping": {"text": "about ${steps.a.output.topic}"}},
]


async def working(engine: WorkflowEngine, **fields: Any) -> tuple[str, str]:
    """Store a workflow and let the embedded worker begin; return the workflow's id and the task queue."""
    workflow_id = await create(engine, STEPS, **fields)
    warm = await engine.execute_workflow(workflow_id, {"topic": "warm"})
    await finish(engine, warm["execution_id"])
    return workflow_id, warm["temporal"]["task_queue"]


async def failure_of(client: Client, execution_id: str) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as caught:
        await client.get_workflow_handle(execution_id).result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    return cause


async def test_the_cli_starts_a_workflow_by_its_id(engine_factory: EngineFactory, stores: Stores, client: Client):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    started = ["workflow", "start", "--type", workflow_id, "--task-queue", queue, "--workflow-id", f"{queue}-cli"]
    await temporal_cli(client, *started, "-i", json.dumps({"topic": "cats"}))
    result = await ended(engine, stores, client, f"{queue}-cli")
    assert (result["status"], result["output"]) == ("completed", {"text": "about cats"})
    assert (result["workflow_id"], result["version"]) == (workflow_id, 1)
    assert {step["status"] for step in result["steps"].values()} == {"completed"}
    listed = await engine.list_executions(workflow_id)
    assert f"{queue}-cli" in {item["execution_id"] for item in listed["items"]}
    described = await client.get_workflow_handle(f"{queue}-cli").describe()
    found = attributes_of(described)
    assert found["BatonWorkflow"] == workflow_id
    assert found["BatonVersion"] == 1


async def test_a_plain_client_starts_one_with_or_without_input(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    plain = await Client.connect(client.service_client.config.target_host)
    with_input = await plain.start_workflow(workflow_id, {"topic": "dogs"}, id=f"{queue}-1", task_queue=queue)
    without = await plain.start_workflow(workflow_id, id=f"{queue}-2", task_queue=queue)
    null = await plain.start_workflow(workflow_id, None, id=f"{queue}-3", task_queue=queue)
    texts = [(await ended(engine, stores, client, handle.id))["output"] for handle in (with_input, without, null)]
    assert texts == [{"text": "about dogs"}, {"text": "about none"}, {"text": "about none"}]
    assert await with_input.result() == {"text": "about dogs"}


async def test_such_an_execution_can_be_watched_and_cancelled(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    gate = Gate()
    engine = engine_factory({"agent-echo": echo, "agent-gate": gate})
    _, queue = await working(engine)
    slow_id = await create(engine, [{"id": "a", "agent_id": "agent-gate"}], name="Slow")
    await client.start_workflow(slow_id, {}, id=f"{queue}-slow", task_queue=queue)
    await until(lambda: gate.attempts, "the step runs")
    assert await engine.cancel_execution(f"{queue}-slow", "enough") is True
    result = await ended(engine, stores, client, f"{queue}-slow")
    assert (result["status"], result["cancel"]["reason"]) == ("cancelled", "enough")


async def test_it_runs_the_version_that_is_active_then(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    await engine.update_workflow(workflow_id, {"steps": STEPS[:1]})
    await client.start_workflow(workflow_id, {"topic": "new"}, id=f"{queue}-v2", task_queue=queue)
    await closed(client, f"{queue}-v2")
    result = await finish(engine, f"{queue}-v2")
    assert (result["version"], result["output"]) == (2, {"topic": "new"})


async def test_an_unknown_type_fails_at_once(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    await engine.delete_workflow(workflow_id)
    for name in ("no-such-workflow", workflow_id):
        handle = await client.start_workflow(name, {}, id=f"{queue}-{name}", task_queue=queue)
        error = await failure_of(client, handle.id)
        assert error.type == "workflow_not_found"
        assert name in error.message
        with pytest.raises(ExecutionNotFoundError):
            await engine.get_execution_status(handle.id)


@pytest.mark.parametrize("given", [["a", "list"], "a text", 7, True])
async def test_an_input_that_is_no_object_fails_the_run_and_not_its_task(
    engine_factory: EngineFactory, client: Client, given: object
):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    handle = await client.start_workflow(workflow_id, given, id=f"{queue}-bad", task_queue=queue)
    error = await failure_of(client, handle.id)
    assert error.type == "invalid_input"
    assert error.non_retryable
    history = await handle.fetch_history()
    assert not [event for event in history.events if event.HasField("workflow_task_failed_event_attributes")]


async def test_bytes_that_are_no_json_and_a_second_argument_fail_the_run_alike(
    engine_factory: EngineFactory, client: Client
):
    engine = engine_factory({"agent-echo": echo})
    workflow_id, queue = await working(engine)
    first = await client.start_workflow(workflow_id, b"\x00\xff", id=f"{queue}-bytes", task_queue=queue)
    second = await client.start_workflow(
        workflow_id, args=[{"topic": "x"}, {"plan": "mine"}], id=f"{queue}-second", task_queue=queue
    )
    for handle in (first, second):
        assert (await failure_of(client, handle.id)).type == "invalid_input"


async def test_an_input_that_the_schema_refuses_is_invalid_input(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    schema = {"type": "object", "required": ["topic"], "properties": {"topic": {"type": "string"}}}
    workflow_id, queue = await working(engine, input_schema=schema)
    handle = await client.start_workflow(workflow_id, {"topic": 7}, id=f"{queue}-schema", task_queue=queue)
    error = await failure_of(client, handle.id)
    assert error.type == "invalid_input"
    assert "topic" in json.dumps([error.message, list(error.details)])


async def test_an_agent_that_is_gone_fails_the_run_with_its_name(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    _, queue = await working(engine)
    missing = await engine.create_workflow("Missing", [{"id": "a", "agent_id": "agent-not-there"}])
    handle = await client.start_workflow(missing, {}, id=f"{queue}-missing", task_queue=queue)
    error = await failure_of(client, handle.id)
    assert error.type == "agent_not_found"
    assert "agent-not-there" in error.message
