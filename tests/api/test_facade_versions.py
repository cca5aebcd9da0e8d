"""Workflows, agents and handoffs as the facade keeps them: versions, conflicts, deletions."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from facade_calls import STEP, fault_of

from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.domain.definition import FORMAT_VERSION, DefinitionVersion, WorkflowDefinition

if TYPE_CHECKING:
    from pathlib import Path


async def test_any_field_can_be_updated_and_versions_never_change(engine_factory):
    engine = engine_factory()
    workflow_id = await engine.create_workflow(name="W", steps=[STEP], tags=["old"], metadata={"a": 1})
    first = await engine.get_workflow(workflow_id)
    updates: dict[str, object] = {
        "name": "Other Name",
        "description": "d",
        "tags": ["new"],
        "metadata": {"b": [1]},
        "steps": [STEP, {"id": "t", "agent_id": "agent-a", "depends_on": ["s"]}],
        "input_schema": {"type": "object"},
        "defaults": {"timeout": 5},
        "output_mapping": {"x": "${steps.t.output}"},
    }
    for number, (key, value) in enumerate(updates.items(), start=2):
        assert await engine.update_workflow(workflow_id, {key: value}) is True
        changed: Any = await engine.get_workflow(workflow_id)
        assert (changed[key], changed["version"], changed["workflow_id"]) == (value, number, workflow_id)
    assert await engine.update_workflow(workflow_id, {"output_mapping": None, "description": None}) is True
    last = await engine.get_workflow(workflow_id)
    assert ("output_mapping" in last, last["description"]) == (False, None)
    assert await engine.get_workflow(workflow_id, version=1) == first
    versions = (await engine.list_workflow_versions(workflow_id))["items"]
    assert [item["version"] for item in versions] == list(range(10, 0, -1))
    assert len({item["content_hash"] for item in versions}) == 10
    assert [item["step_count"] for item in versions][-5:] == [2 - (n < 6) for n in range(5, 0, -1)]
    assert [item["workflow_id"] for item in (await engine.list_workflows(tags=["new"]))["items"]] == [workflow_id]
    assert (await engine.list_workflows(tags=["old"]))["items"] == []


async def test_an_equal_update_makes_no_version(engine_factory):
    engine = engine_factory()
    workflow_id = await engine.create_workflow(name="W", steps=[STEP], tags=["t"])
    before = await engine.get_workflow(workflow_id)
    for equal in ({}, {"name": "W"}, {"tags": ["t"], "description": None}, {"steps": [{**STEP, "depends_on": []}]}):
        assert await engine.update_workflow(workflow_id, equal) is True
        assert await engine.get_workflow(workflow_id) == before
    assert len((await engine.list_workflow_versions(workflow_id))["items"]) == 1


async def test_concurrent_updates_all_happen_one_after_the_other(engine_factory):
    engine = engine_factory()
    workflow_id = await engine.create_workflow(name="W", steps=[STEP])
    await asyncio.gather(*(engine.update_workflow(workflow_id, {"metadata": {"n": n}}) for n in range(4)))
    versions = (await engine.list_workflow_versions(workflow_id))["items"]
    assert [item["version"] for item in versions] == [5, 4, 3, 2, 1]
    assert sorted(item["metadata"].get("n", -1) for item in versions) == [-1, 0, 1, 2, 3]


async def test_a_taken_id_is_a_conflict_and_a_taken_name_gets_another_id(engine_factory):
    engine = engine_factory()
    assert await engine.create_workflow(name="Ünïcode & Co.", steps=[STEP]) == "unicode-co"
    other = await engine.create_workflow(name="Ünïcode & Co.", steps=[STEP])
    assert other.startswith("unicode-co-")
    assert (await engine.create_workflow(name="漢字", steps=[STEP])).startswith("workflow-")
    await engine.delete_workflow("unicode-co")
    error = await fault_of(engine, "create_workflow", {"name": "X", "steps": [STEP], "workflow_id": "unicode-co"})
    assert (error.code, error.details["workflow_id"]) == ("conflict", "unicode-co")


async def test_a_running_execution_keeps_its_version_and_outlives_the_deletion(engine_factory):
    released = threading.Event()
    begun = threading.Event()

    async def hold(given: object) -> object:
        begun.set()
        while not released.is_set():
            await asyncio.sleep(0.01)
        return {"given": given}

    engine = engine_factory({"agent-a": hold, "agent-b": {}})
    for name in "AB":
        await engine.register_agent(name=name, config={"function": "m:f"})
    step = {**STEP, "input_mapping": {"v": "one"}}
    await engine.create_workflow(name="W", steps=[step])
    started = await engine.execute_workflow("w")
    assert await asyncio.to_thread(begun.wait, 30)
    await engine.update_workflow("w", {"steps": [{**step, "input_mapping": {"v": "two"}}]})
    newer = await engine.execute_workflow("w")
    pinned = await engine.execute_workflow("w", execution_options={"version": 1})
    assert [one["version"] for one in (started, newer, pinned)] == [1, 2, 1]
    assert await engine.delete_workflow("w") is True
    released.set()
    outputs = [
        (await engine.get_execution_result(one["execution_id"], wait=30))["output"] for one in (started, newer, pinned)
    ]
    assert outputs == [{"given": {"v": "one"}}, {"given": {"v": "two"}}, {"given": {"v": "one"}}]


async def test_a_deleted_workflow_is_gone_for_every_call_but_its_executions(engine_factory):
    engine = engine_factory({"agent-a": {}})
    await engine.register_agent(name="A", config={"function": "m:f"})
    await engine.create_workflow(name="W", steps=[STEP], tags=["t"])
    started = await engine.execute_workflow("w", execution_options={"idempotency_key": "k"})
    await engine.get_execution_result(started["execution_id"], wait=30)
    assert await engine.delete_workflow("w") is True
    calls: list[tuple[str, dict[str, object]]] = [
        ("get_workflow", {}),
        ("get_workflow", {"version": 1}),
        ("update_workflow", {"updates": {"name": "X"}}),
        ("delete_workflow", {}),
        ("list_workflow_versions", {}),
        ("execute_workflow", {}),
        ("execute_workflow", {"execution_options": {"version": 1}}),
    ]
    for call, arguments in calls:
        error = await fault_of(engine, call, {"workflow_id": "w", **arguments})
        assert (error.code, error.details["workflow_id"]) == ("workflow_not_found", "w"), call
    assert (await engine.list_workflows(tags=["t"]))["items"] == []
    assert [item["workflow_id"] for item in (await engine.list_workflows(status="archived"))["items"]] == ["w"]
    assert len((await engine.list_executions("w"))["items"]) == 1


async def test_a_definition_of_a_newer_format_is_refused_and_not_misread(engine_factory, tmp_path: Path):
    engine = engine_factory()
    await engine.create_workflow(name="Readable", steps=[STEP])
    database = SqliteDatabase(tmp_path / "data" / "baton.db")
    now = datetime.now(UTC)
    newer = DefinitionVersion(
        definition_id="newer",
        version=1,
        content_hash="sha256:0",
        definition=WorkflowDefinition.model_validate({"name": "Newer", "steps": [STEP]}),
        created_at=now,
        updated_at=now,
        format_version=FORMAT_VERSION + 1,
    )
    await SqliteDefinitionStore(database, Codec()).insert_definition(newer)
    await database.aclose()
    for call in ("get_workflow", "execute_workflow"):
        error = await fault_of(engine, call, {"workflow_id": "newer"})
        assert (error.code, error.details["format_version"]) == ("database_error", FORMAT_VERSION + 1)
        assert "upgrade" in error.message
    assert (await engine.get_workflow("readable"))["name"] == "Readable"


# Agents and handoffs.


async def test_agents_are_versioned_by_name_and_listed_by_capability(engine_factory):
    engine = engine_factory()
    config = {"function": "m:f"}
    assert (
        await engine.register_agent(name="Writer Agent", capabilities=["write", "read"], config=config)
        == "agent-writer"
    )
    assert (
        await engine.register_agent(name="Writer Agent", capabilities=["write", "read"], config=config)
        == "agent-writer"
    )
    assert (await engine.get_agent("agent-writer"))["version"] == 1
    await engine.register_agent(name="Writer Agent", capabilities=["write"], config=config)
    assert (await engine.get_agent("agent-writer"))["version"] == 2
    await engine.register_agent(name="Reader", capabilities=["read"], config=config)
    for wanted, ids in {("write",): ["agent-writer"], ("read",): ["agent-reader"], ("read", "write"): []}.items():
        page = await engine.list_agents(capabilities=wanted)
        assert [item["agent_id"] for item in page["items"]] == ids
    assert (await engine.list_agents(status="inactive"))["items"] == []
    error = await fault_of(engine, "register_agent", {"name": "Writer", "config": config})
    assert (error.code, error.details["agent_id"]) == ("conflict", "agent-writer")
    assert "agent_id=" in error.message
    assert await engine.register_agent(name="Writer", config=config, agent_id="agent-writer") == "agent-writer"
    assert (await engine.get_agent("agent-writer"))["version"] == 3


async def test_handoffs_are_filtered_and_act(engine_factory):
    engine = engine_factory({"agent-a": {"k": 1}, "agent-b": {}})
    for name in "ABC":
        await engine.register_agent(name=name, config={"function": "m:f"})
    steps = [{"id": "a", "agent_id": "agent-a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]}]
    for workflow_id in ("one", "two"):
        await engine.create_workflow(name=workflow_id, steps=steps)
    everywhere = await engine.create_handoff("agent-a", "agent-b", data_mapping={"k": "i"})
    only_two = await engine.create_handoff("agent-a", "agent-b", "parallel", workflow_id="two")
    idle = await engine.create_handoff("agent-b", "agent-a")
    escalating = await engine.create_handoff("agent-b", "agent-c", "escalation", trigger_conditions=["failure"])

    async def ids(**filters: str) -> list[str]:
        return [item["handoff_id"] for item in (await engine.list_handoffs(**filters))["items"]]

    assert await ids() == [everywhere, only_two, idle, escalating]
    assert await ids(source_agent_id="agent-a") == [everywhere, only_two]
    assert await ids(target_agent_id="agent-a") == [idle]
    assert await ids(workflow_id="two") == [only_two]
    for workflow_id, acting in {"one": [everywhere], "two": [everywhere, only_two]}.items():
        started = await engine.execute_workflow(workflow_id)
        assert started["warnings"] == []
        result = await engine.get_execution_result(started["execution_id"], wait=30)
        assert result["status"] == "completed"
        assert [(handoff["handoff_id"], handoff["taken"]) for handoff in result["handoffs"]] == [
            (one, True) for one in acting
        ]
