"""Lists and measurements by the facade: pages that stay whole, filters, numbers that are known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from facade_calls import FAST, STEP, fault_of

from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    pass


async def pages(listing: Any, insert: Any = None, **arguments: object) -> list[list[Any]]:
    """All pages, with ``insert`` awaited behind each."""
    found: list[list[Any]] = []
    cursor = None
    while True:
        page = await listing(**arguments, limit=10, cursor=cursor)
        found.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found
        if insert:
            await insert(len(found))


async def test_pages_stay_whole_while_things_are_added(engine_factory):
    engine = engine_factory()
    config = {"function": "m:f"}
    for number in range(25):
        await engine.create_workflow(name=f"W {number}", steps=[STEP], tags=["even"] if number % 2 == 0 else ["odd"])
        await engine.register_agent(name=f"A {number}", config=config, capabilities=["c"])
        await engine.create_handoff(f"agent-{number}", "agent-z")
    for number in range(24):
        await engine.update_workflow("w-7", {"metadata": {"n": number}})

    async def insert(number: int) -> None:
        await engine.create_workflow(name=f"Late {number}", steps=[STEP], tags=["even"])
        await engine.register_agent(name=f"Late {number}", config=config, capabilities=["c"])

    newest_first = [f"w-{number}" for number in range(24, -1, -1)]
    found = await pages(engine.list_workflows, insert)
    assert [len(page) for page in found] == [10, 10, 5]
    assert [item["workflow_id"] for page in found for item in page] == newest_first
    found = await pages(engine.list_workflows, insert, tags=["odd"])
    assert [item["workflow_id"] for page in found for item in page] == newest_first[1::2]
    late = len([a for a in (await engine.list_agents())["items"] if a["name"].startswith("Late")])
    found = await pages(engine.list_agents, insert, capabilities=["c"])
    ids = [item["agent_id"] for page in found for item in page]
    assert ids[late:] == [f"agent-a-{number}" for number in range(24, -1, -1)]
    found = await pages(engine.list_handoffs)
    assert [item["source_agent_id"] for page in found for item in page] == [f"agent-{number}" for number in range(25)]
    found = await pages(engine.list_workflow_versions, workflow_id="w-7")
    assert [item["version"] for page in found for item in page] == list(range(25, 0, -1))


async def test_a_cursor_belongs_to_one_list_and_its_filter(engine_factory):
    engine = engine_factory()
    for number in range(3):
        await engine.create_workflow(name=f"W {number}", steps=[STEP], tags=["t"])
        await engine.register_agent(name=f"A {number}", config={"function": "m:f"})
    cursor = (await engine.list_workflows(limit=1))["next_cursor"]
    assert cursor is not None
    for call, arguments in {
        "list_workflows": {"tags": ["t"]},
        "list_agents": {},
        "list_executions": {},
        "list_handoffs": {},
        "list_workflow_versions": {"workflow_id": "w-0"},
    }.items():
        error = await fault_of(engine, call, {**arguments, "cursor": cursor})
        assert (error.code, error.details["path"]) == ("invalid_input", "cursor"), call
    error = await fault_of(engine, "list_workflows", {"cursor": cursor[:-2] + "AA"})
    assert error.details["path"] == "cursor"
    assert len((await engine.list_workflows(cursor=cursor, limit=2))["items"]) == 2


@pytest.fixture(scope="module")
async def history(dev_server, tmp_path_factory):
    """Two workflows with 26 completed and 2 failed executions in all, and the instants around them."""
    config = {
        "temporal_address": dev_server.address,
        "worker": "embedded",
        "task_queue": "history",
        "data_dir": str(tmp_path_factory.mktemp("history")),
    }
    scripts = {"agent-a": [ValueError("first"), {"n": 1}], "agent-bad": ValueError("always"), "agent-good": {"n": 2}}
    async with WorkflowEngine(config, invoker=ScriptedAgentInvoker(scripts)) as engine:
        for name in ("A", "Bad", "Good"):
            await engine.register_agent(name=name, config={"function": "m:f"})
        retrying = {"retry_policy": {"max_retries": 1, "initial_interval": 0.01}}
        await engine.create_workflow(name="many", steps=[{"id": "s", "agent_id": "agent-a", **retrying}])
        await engine.create_workflow(
            name="mixed",
            steps=[
                {"id": "s", "agent_id": "agent-bad", "fallback": {"agent_id": "agent-good"}, **FAST},
                {"id": "t", "agent_id": "agent-bad", "input_mapping": {"x": "${input.x}"}, "depends_on": ["s"], **FAST},
            ],
        )
        before = datetime.now(UTC)
        ids = []
        for number in range(26):
            tags = ["even"] if number % 2 == 0 else ["odd", "strange"]
            ids.append((await engine.execute_workflow("many", {}, {"tags": tags}))["execution_id"])
        between = datetime.now(UTC)
        for given in ({"x": 1}, {}):
            ids.append((await engine.execute_workflow("mixed", given))["execution_id"])
        for execution_id in ids:
            await engine.get_execution_result(execution_id, wait=30)
        yield engine, ids, before, between


async def test_executions_are_listed_by_workflow_status_time_and_tags(history):
    engine, ids, before, between = history

    async def found(**filters: Any) -> list[str]:
        return [item["execution_id"] for item in (await engine.list_executions(**filters))["items"]]

    latest_first = ids[::-1]
    assert await found() == latest_first
    assert await found(workflow_id="mixed") == latest_first[:2]
    assert await found(workflow_id="none") == []
    assert await found(status="completed") == latest_first[2:]
    assert await found(status="failed") == latest_first[:2]
    assert await found(status="running") == []
    assert await found(tags=["odd"]) == ids[25:0:-2] == await found(tags=("strange", "odd"))
    assert await found(tags=["odd", "even"]) == []
    for since in (
        between,
        between.isoformat(),
        between.astimezone(timezone(timedelta(hours=5))),
        between.replace(tzinfo=None),
    ):
        assert await found(start_time=since) == latest_first[:2]
        assert await found(end_time=since) == latest_first[2:]
    assert await found(start_time=before, end_time=between, status="completed", tags=["even"]) == ids[24::-2]
    assert await found(end_time=before) == []
    assert await found(start_time=between, end_time=before) == []


async def test_pages_of_executions_stay_whole_while_others_start(history):
    engine, ids, _, _ = history
    late = []

    async def insert(number: int) -> None:
        late.append((await engine.execute_workflow("mixed", {}))["execution_id"])

    found = await pages(engine.list_executions, insert, workflow_id="many", status="completed")
    assert [len(page) for page in found] == [10, 10, 6]
    assert [item["execution_id"] for page in found for item in page] == ids[25::-1]
    assert len(late) == 2
    for execution_id in late:
        await engine.get_execution_result(execution_id, wait=30)


async def test_measurements_have_the_numbers_that_are_known(engine_factory):
    scripts = {"agent-a": [ValueError("first"), {"n": 1}], "agent-bad": ValueError("always"), "agent-good": {"n": 2}}
    engine = engine_factory(scripts)
    for name in ("A", "Bad", "Good"):
        await engine.register_agent(name=name, config={"function": "m:f"})
    retrying = {"retry_policy": {"max_retries": 1, "initial_interval": 0.01}}
    await engine.create_workflow(
        name="W",
        steps=[
            {"id": "s", "agent_id": "agent-a", "input_mapping": {}, **retrying},
            {"id": "t", "agent_id": "agent-bad", "fallback": {"agent_id": "agent-good"}, "input_mapping": {}, **FAST},
            {"id": "u", "agent_id": "agent-good", "input_mapping": {"x": "${input.x}"}, "depends_on": ["s", "t"]},
        ],
    )
    nothing = await engine.get_workflow_metrics("w")
    assert nothing["metrics"]["execution_count"] == 0
    assert nothing["metrics"]["success_rate"] is None
    assert nothing["metrics"]["average_duration"] is None
    for given in ({"x": 1}, {"x": 2}, {"x": 3}, {}):
        started = await engine.execute_workflow("w", given)
        await engine.get_execution_result(started["execution_id"], wait=30)
    metrics = (await engine.get_workflow_metrics("w", "last_1_hours"))["metrics"]
    assert (metrics["execution_count"], metrics["success_rate"], metrics["error_count"]) == (4, 0.75, 1)
    assert (metrics["retry_count"], metrics["fallback_count"], metrics["cancelled_count"]) == (1, 4, 0)
    assert 0 < metrics["average_duration"] <= 3 * metrics["p95_duration"]
    assert 0 < metrics["p50_duration"] <= metrics["p95_duration"]
    performance = await engine.get_agent_performance("agent-bad", metrics=["call_count", "success_rate", "error_count"])
    assert performance["metrics"] == {"call_count": 4, "success_rate": 0.0, "error_count": 4}
    performance = await engine.get_agent_performance("agent-a")
    assert (performance["metrics"]["call_count"], performance["metrics"]["retry_count"]) == (4, 1)
    old = {"start": "2020-01-01", "end": "2020-02-01T00:00:00+02:00"}
    report = await engine.get_workflow_metrics("w", old, ["execution_count"])
    assert report == {
        "workflow_id": "w",
        "time_range": {"start": "2020-01-01T00:00:00.000000Z", "end": "2020-01-31T22:00:00.000000Z"},
        "metrics": {"execution_count": 0},
    }
