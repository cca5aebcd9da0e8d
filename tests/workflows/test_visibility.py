"""What people see in Temporal's own tools: summaries, the live table, search attributes, priorities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from runs import (
    EngineFactory,
    Gate,
    Server,
    attributes_of,
    ended,
    events_of,
    finish,
    own_server,
    start,
    temporal_cli,
    until,
)
from temporalio.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.bootstrap import Stores

STEPS: list[dict[str, Any]] = [
    {"id": "a", "name": "Architecture | Planning", "agent_id": "agent-a"},
    {"id": "b", "name": "Bau ü" + "✓" * 190, "agent_id": "agent-b", "depends_on": ["a"]},
]


@pytest.fixture(scope="module")
async def bare_server() -> AsyncGenerator[Server]:
    """A server as it comes: no search attribute of Baton's is registered."""
    async with own_server() as server:
        yield server


async def current_details(client: Client, execution_id: str) -> str:
    metadata: Any = await client.get_workflow_handle(execution_id).query("__temporal_workflow_metadata")
    return str(metadata.current_details)


async def test_summaries_and_details_can_be_read_while_it_runs_and_afterwards(
    engine_factory: EngineFactory, client: Client
):
    gate = Gate()
    engine = engine_factory({"agent-a": {}, "agent-b": gate})
    execution_id = await start(engine, STEPS, name="Feature Implementation", description="Makes features")
    await until(lambda: gate.attempts, "the second step runs")
    handle = client.get_workflow_handle(execution_id)
    described = await handle.describe()
    summary, details = await described.static_summary(), await described.static_details()
    assert summary == "Feature Implementation (version 1)"
    assert details is not None
    assert "Makes features" in details
    assert "Architecture \\| Planning" in details
    assert "agent-b" in details
    table = await current_details(client, execution_id)
    assert "1 running" in table
    assert "1 completed" in table
    gate.is_open = True
    await finish(engine, execution_id)
    assert "2 completed" in await current_details(client, execution_id)
    summaries = {
        event.activity_task_scheduled_event_attributes.activity_id: (
            await client.data_converter.decode([event.user_metadata.summary])
        )[0]
        for event in await events_of(client, execution_id)
        if event.HasField("activity_task_scheduled_event_attributes")
    }
    assert summaries["a.1"] == "Architecture | Planning"
    assert summaries["b.1"].startswith("Bau ü")
    assert summaries["b.1"].endswith("…")
    assert len(summaries["b.1"].encode()) <= 400


@pytest.mark.parametrize(("priority", "key"), [("high", 1), (None, 3), ("low", 5)])
async def test_the_priority_reaches_temporal(
    engine_factory: EngineFactory, client: Client, priority: str | None, key: int
):
    engine = engine_factory({"agent-a": {}})
    execution_id = await start(engine, STEPS[:1], options={"priority": priority} if priority else None)
    await finish(engine, execution_id)
    described = await client.get_workflow_handle(execution_id).describe()
    assert described.raw_description.workflow_execution_info.priority.priority_key == key
    started = (await events_of(client, execution_id))[0].workflow_execution_started_event_attributes
    assert started.priority.priority_key == key


async def test_search_attributes_are_set_where_they_are_registered(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-a": {}})
    execution_id = await start(engine, STEPS[:1], options={"tags": ["blue"]}, tags=["feature"])
    await finish(engine, execution_id)
    described = await client.get_workflow_handle(execution_id).describe()
    found = attributes_of(described)
    assert found["BatonWorkflow"] == "flow"
    assert found["BatonVersion"] == 1
    assert found["BatonTags"] in (["blue", "feature"], ["feature", "blue"])
    assert found["BatonTenant"] == "default"
    assert await described.memo_value("plan_hash")
    health = await engine.get_system_health()
    assert health["components"]["temporal"].get("detail") is None


async def test_without_registered_attributes_everything_runs_and_health_says_which_are_missing(
    engine_factory: EngineFactory, stores: Stores, bare_server: Server
):
    engine = engine_factory({"agent-a": {}}, temporal_address=bare_server.address)
    execution_id = await start(engine, STEPS[:1], options={"tags": ["blue"]})
    result = await ended(engine, stores, bare_server.client, execution_id)
    assert result["status"] == "completed"
    queue = (await bare_server.client.get_workflow_handle(execution_id).describe()).task_queue
    await bare_server.client.start_workflow("flow", {}, id="by-hand", task_queue=queue)
    assert (await ended(engine, stores, bare_server.client, "by-hand"))["status"] == "completed"
    described = await bare_server.client.get_workflow_handle(execution_id).describe()
    assert await described.memo_value("workflow_id") == "flow"
    detail = (await engine.get_system_health())["components"]["temporal"]["detail"]
    assert detail is not None
    for name in ("BatonWorkflow", "BatonVersion", "BatonTags", "BatonTenant", "BatonStatus"):
        assert name in detail


async def test_some_registered_attributes_are_used_and_the_others_left_out(
    engine_factory: EngineFactory, stores: Stores, bare_server: Server
):
    address = bare_server.address
    await temporal_cli(bare_server.client, "operator", "namespace", "create", "--namespace", "partly", namespace=None)
    attribute = ["--name", "BatonWorkflow", "--type", "Keyword"]
    await temporal_cli(bare_server.client, "operator", "search-attribute", "create", *attribute, namespace="partly")
    client = await Client.connect(address, namespace="partly", data_converter=bare_server.client.data_converter)

    async def is_listed() -> bool:
        listed = await temporal_cli(client, "operator", "search-attribute", "list", namespace="partly")
        return "BatonWorkflow" in listed

    await until(is_listed, "the attribute is registered")
    engine = engine_factory({"agent-a": {}}, temporal_address=address, temporal_namespace="partly")
    execution_id = await start(engine, STEPS[:1])
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "completed"
    described = await client.get_workflow_handle(execution_id).describe()
    assert attributes_of(described).keys() & {"BatonWorkflow", "BatonVersion"} == {"BatonWorkflow"}
