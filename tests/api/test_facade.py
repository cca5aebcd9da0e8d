"""Every call with what it should take and with what it must refuse: code, place, words, and nothing half-written."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from engine import EngineError, WorkflowEngine
from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.domain.definition import FORMAT_VERSION, DefinitionVersion, WorkflowDefinition
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from pathlib import Path

STEP: dict[str, object] = {"id": "s", "agent_id": "agent-a", "input_mapping": {}}
FAST = {"retry_policy": {"max_retries": 0}}


@dataclass
class World:
    """An engine with one of each thing, which no test of the module changes."""

    engine: WorkflowEngine
    execution_id: str
    handoff_id: str

    async def contents(self) -> list[object]:
        engine = self.engine
        return [
            await engine.list_workflows(),
            await engine.list_workflows(status="archived"),
            await engine.list_workflow_versions("w"),
            await engine.list_agents(),
            await engine.list_handoffs(),
            await engine.list_executions(),
        ]


@pytest.fixture(scope="module")
async def world(dev_server, tmp_path_factory):
    config = {
        "temporal_address": dev_server.address,
        "worker": "embedded",
        "task_queue": "facade",
        "data_dir": str(tmp_path_factory.mktemp("facade")),
    }
    async with WorkflowEngine(config, invoker=ScriptedAgentInvoker({"agent-a": {"x": 1}})) as engine:
        await engine.register_agent(name="A", config={"function": "m:f"})
        await engine.create_workflow(name="W", steps=[STEP], workflow_id="w", input_schema={"required": []})
        handoff_id = await engine.create_handoff("agent-a", "agent-b")
        execution_id = (await engine.execute_workflow("w"))["execution_id"]
        await engine.get_execution_result(execution_id, wait=30)
        yield World(engine, execution_id, handoff_id)


def cyclic() -> dict[str, object]:
    circle: dict[str, object] = {}
    circle["again"] = [circle]
    return circle


def nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


NOT_TEXT = [5, True, b"x", "", "half \ud800", ["a"], {"a": 1}]
NOT_LABELS = [5, "a", [5], {"a": 1}, ["half \ud800"], [["a"]]]
NOT_LIMIT = [0, -1, 1001, True, 2.5, "3", 10**30]
NOT_CURSOR = [5, True, "", "broken", "cursor-token", "x" * 5000, "bm90IGpzb24", ["a"], "\ud800"]
NOT_JSON = [
    {"a": math.nan},
    {"a": -math.inf},
    {"a": 2**64},
    {"a": {1, 2}},
    {"a": b"bytes"},
    {"a": object()},
    {"a": datetime.now(UTC)},
    {1: "a"},
    {"a": "half \ud800"},
    cyclic(),
    nested(65),
]
NOT_TIME = [5, True, "", "yesterday", "2025-13-01", "0001-01-01T00:00:00+14:00", ["2025-01-01"]]
NOT_RANGE = [5, True, "", "last_week", "last_0_days", "last_-1_days", {"start": "2025-01-01"}, ["last_1_days"]]
NOT_METRICS = [5, "execution_count", ["nonsense"], [5], {"a": 1}]
NOT_VERSION = [0, -1, True, "1", 1.0, 10**30]
TOO_LARGE = 256 * 1024
NOT_ID = [*NOT_TEXT, "UPPER", "-dash", "a b", "a/b", "x" * 101, "é"]

GOOD: dict[str, dict[str, object]] = {
    "create_workflow": {"name": "New", "steps": [STEP]},
    "validate_workflow": {},
    "get_workflow": {"workflow_id": "w"},
    "update_workflow": {"workflow_id": "w", "updates": {"name": "Changed"}},
    "list_workflows": {},
    "list_workflow_versions": {"workflow_id": "w"},
    "delete_workflow": {},
    "execute_workflow": {"workflow_id": "w"},
    "get_execution_status": {},
    "get_execution_result": {},
    "list_executions": {},
    "cancel_execution": {},
    "watch_execution": {},
    "list_gates": {},
    "get_gate": {"gate_id": "s.1"},
    "answer_gate": {"gate_id": "s.1", "answer": "approve"},
    "diff_workflow": {"workflow_id": "w"},
    "workflow_graph": {"workflow_id": "w"},
    "explain_execution": {},
    "rerun_execution": {"from_step": "s"},
    "pause_execution": {},
    "resume_execution": {},
    "retry_step": {"step_id": "s"},
    "skip_step": {"step_id": "s"},
    "register_agent": {"name": "New", "config": {"function": "m:f"}},
    "get_agent": {},
    "list_agents": {},
    "create_handoff": {"source_agent_id": "agent-a", "target_agent_id": "agent-b"},
    "get_handoff": {},
    "list_handoffs": {},
    "get_workflow_metrics": {"workflow_id": "w"},
    "get_agent_performance": {"agent_id": "agent-a"},
    "find_workflows": {"agent_id": "agent-a"},
    "agent_impact": {"agent_id": "agent-a"},
    "handoff_paths": {"source": "agent-a", "target": "agent-b"},
    "repair_executions": {},
    "verify_executions": {},
    "get_execution_input": {},
    "add_context": {"text": "a text", "workflow_id": "w"},
    "search_context": {"query": "a text"},
    "reindex_context": {},
}
BAD: dict[str, dict[str, list[Any]]] = {
    "create_workflow": {
        "name": [5, True, "", None, ["a"], "half \ud800", "x" * 300],
        "steps": [5, "a", None, [], {}, [5], [{}], [{**STEP, "id": "1x"}], [STEP, STEP], [{**STEP, "nonsense": 1}]],
        "description": [5, ["a"], "half \ud800"],
        "tags": [*NOT_LABELS, {"a"}],
        "metadata": [5, "a", [], *NOT_JSON],
        "workflow_id": NOT_ID,
        "input_schema": [5, {"type": "nonsense"}, {"$ref": "http://somewhere/else"}],
        "output_mapping": [5, [], {"a": "${nonsense.x}"}, {"a": "${steps.none.output}"}],
        "defaults": [5, {"timeout": "1"}, {"nonsense": 1}],
        "nonsense": [1],
    },
    "validate_workflow": {"definition": [None, 5, "a", [STEP], True]},
    "get_workflow": {"workflow_id": NOT_TEXT, "version": NOT_VERSION},
    "update_workflow": {
        "workflow_id": NOT_TEXT,
        "updates": [None, 5, "a", [], {"nonsense": 1}, {"steps": []}, {"name": None}, {"name": math.nan}, cyclic()],
    },
    "list_workflows": {
        "tags": NOT_LABELS,
        "status": [5, "", "deleted", ["active"]],
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "list_workflow_versions": {"workflow_id": NOT_TEXT, "limit": NOT_LIMIT, "cursor": NOT_CURSOR},
    "delete_workflow": {"workflow_id": NOT_TEXT},
    "execute_workflow": {
        "workflow_id": NOT_TEXT,
        "input_data": [5, "a", [], True, *NOT_JSON],
        "execution_options": [
            *(5, "a", [], {"nonsense": 1}, {1: 2}),
            *({"priority": value} for value in (5, "urgent", ["high"])),
            *({"timeout": value} for value in (0, -1, True, "5", math.nan, math.inf, 10**9)),
            *({"trace": value} for value in (1, "yes")),
            *({"idempotency_key": value} for value in (5, "", "a b", "a/b", "é", "a\n", "x" * 201, ["a"])),
            *({"version": value} for value in (0, -1, True, "1", 1.5, 10**30)),
            *({"tags": value} for value in NOT_LABELS),
            *({"budget": value} for value in (5, "a", [], {}, {"nonsense": 1}, {"tokens": 1.5}, {"usd": 0})),
            *({"budget": {"seconds": value}} for value in (0, -1, True, "5", None, math.nan, math.inf)),
        ],
    },
    "get_execution_status": {"execution_id": NOT_TEXT},
    "get_execution_result": {"execution_id": NOT_TEXT, "wait": [None, -1, True, "1", math.nan, math.inf, 10**30]},
    "list_executions": {
        "workflow_id": NOT_TEXT,
        "status": [5, "", "done", True, ["failed"]],
        "start_time": NOT_TIME,
        "end_time": NOT_TIME,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
        "tags": NOT_LABELS,
    },
    "cancel_execution": {"execution_id": NOT_TEXT, "reason": NOT_TEXT},
    "watch_execution": {"execution_id": NOT_TEXT, "from_event": [*NOT_TEXT, "no-event"]},
    "list_gates": {
        "execution_id": NOT_TEXT,
        "workflow_id": NOT_TEXT,
        "assignee": NOT_TEXT,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "get_gate": {"execution_id": NOT_TEXT, "gate_id": [*NOT_TEXT, "none.1"]},
    "diff_workflow": {"workflow_id": NOT_TEXT, "from_version": NOT_VERSION, "to_version": NOT_VERSION},
    "workflow_graph": {
        "workflow_id": NOT_TEXT,
        "format": [5, None, "", "svg", ["text"]],
        "execution_id": NOT_TEXT,
        "version": NOT_VERSION,
    },
    "explain_execution": {"execution_id": NOT_TEXT},
    "rerun_execution": {
        "execution_id": NOT_TEXT,
        "from_step": [5, True, "", [], [5], ["s", ""], {"a": 1}, "nowhere"],
        "input_data": [5, "a", [], True, *NOT_JSON],
        "version": [5, None, "", "newest", 1],
        "preview": [5, None, "yes"],
    },
    "answer_gate": {
        "execution_id": NOT_TEXT,
        "gate_id": [*NOT_TEXT, "none.1"],
        "answer": [*NOT_TEXT, None],
        "by": [*NOT_TEXT, "x" * 201],
        "data": [*NOT_JSON, "x" * TOO_LARGE],
    },
    "pause_execution": {"execution_id": NOT_TEXT, "by": NOT_TEXT, "reason": [*NOT_TEXT, "x" * TOO_LARGE]},
    "resume_execution": {"execution_id": NOT_TEXT, "by": NOT_TEXT},
    "retry_step": {"execution_id": NOT_TEXT, "step_id": NOT_TEXT, "by": NOT_TEXT},
    "skip_step": {
        "execution_id": NOT_TEXT,
        "step_id": NOT_TEXT,
        "output": [*NOT_JSON, "x" * TOO_LARGE],
        "by": NOT_TEXT,
    },
    "register_agent": {
        "name": [5, True, "", None, ["a"], "half \ud800"],
        "description": [5, ["a"]],
        "capabilities": NOT_LABELS,
        "tools": NOT_LABELS,
        "config": [
            5,
            None,
            [],
            {},
            {"nonsense": 1},
            {"function": 5},
            {"function": "m:f", "url": "http://x"},
            *NOT_JSON,
        ],
        "agent_id": NOT_ID,
    },
    "get_agent": {"agent_id": NOT_TEXT},
    "list_agents": {
        "capabilities": NOT_LABELS,
        "status": [5, "", "deleted"],
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "create_handoff": {
        "source_agent_id": NOT_ID,
        "target_agent_id": [*NOT_ID, "agent-a"],
        "handoff_type": [5, "", "nonsense"],
        "data_mapping": [5, [], {"a": 5}, {"": "a"}, {"a": "b", "c": "b"}],
        "trigger_conditions": [5, "completion", [5], ["source_output.a ="], ["a"] * 1000],
        "workflow_id": NOT_ID,
    },
    "get_handoff": {"handoff_id": NOT_TEXT},
    "list_handoffs": {
        "source_agent_id": NOT_TEXT,
        "target_agent_id": NOT_TEXT,
        "workflow_id": NOT_TEXT,
        "limit": NOT_LIMIT,
        "cursor": NOT_CURSOR,
    },
    "get_workflow_metrics": {"workflow_id": NOT_TEXT, "time_range": NOT_RANGE, "metrics": NOT_METRICS},
    "get_agent_performance": {"agent_id": NOT_TEXT, "time_range": NOT_RANGE, "metrics": NOT_METRICS},
    "find_workflows": {"agent_id": NOT_TEXT, "limit": NOT_LIMIT, "cursor": NOT_CURSOR},
    "agent_impact": {"agent_id": NOT_TEXT},
    "handoff_paths": {"source": NOT_TEXT, "target": NOT_TEXT, "max_hops": [0, -1, 11, True, "6", 1.5]},
    "repair_executions": {"execution_id": NOT_TEXT},
    "verify_executions": {},
    "get_execution_input": {"execution_id": NOT_TEXT},
    "add_context": {
        "text": [5, True, "", None, ["a"], "half \ud800", "x" * 32_001],
        "scope": [5, "", None, "world"],
        "workflow_id": NOT_TEXT,
        "agent_id": NOT_TEXT,
        "execution_id": NOT_TEXT,
        "metadata": [5, "a", [], *NOT_JSON],
    },
    "search_context": {
        "query": [5, True, "", None, ["a"], "half \ud800"],
        "scope": [5, "", "world"],
        "workflow_id": NOT_TEXT,
        "agent_id": NOT_TEXT,
        "execution_id": NOT_TEXT,
        "top_k": [0, -1, 101, True, "5", 1.5, None],
        "filter": [5, "a", [], *NOT_JSON],
    },
    "reindex_context": {},
}


async def fault_of(engine: WorkflowEngine, call: str, arguments: dict[str, object]) -> EngineError:
    """The error that the call ends with; it has a request id and what its code promises."""
    with pytest.raises(EngineError) as raised:
        if call == "watch_execution":
            async for _ in getattr(engine, call)(**arguments):
                pass
        else:
            await getattr(engine, call)(**arguments)
    error = raised.value
    assert error.request_id is not None
    assert error.request_id.startswith("req-")
    assert error.to_response()["error"]["request_id"] == error.request_id  # type: ignore[index]
    return error


def paths_of(error: EngineError) -> list[str]:
    issues: Any = error.details.get("issues", [])
    return [str(error.details["path"])] if "path" in error.details else [issue["path"] for issue in issues]


@pytest.mark.parametrize(("call", "argument"), [(call, argument) for call in BAD for argument in BAD[call]])
async def test_what_can_not_be_used_is_refused_with_its_place_and_leaves_no_trace(world, call, argument):
    before = await world.contents()
    ids = set()
    given = {**GOOD[call], **({"execution_id": world.execution_id} if "execution_id" in BAD[call] else {})}
    for value in BAD[call][argument]:
        error = await fault_of(world.engine, call, {**given, argument: value})
        assert error.code == "invalid_input", f"{value!r:.80}: {error}"
        assert any(path.startswith(argument) or argument == "updates" for path in paths_of(error)), (
            f"{value!r:.80}: {error.details}"
        )
        assert argument.removesuffix("s") in error.message or argument == "updates", f"{value!r:.80}: {error.message}"
        ids.add(error.request_id)
    assert len(ids) == len(BAD[call][argument]), "each call has a request id of its own"
    assert await world.contents() == before


def test_every_argument_of_every_call_is_tried():
    skipped = {"self", "fields", "kwargs"}
    public = [name for name in dir(WorkflowEngine) if not name.startswith("_") and name != "aclose"]
    assert set(public) - set(BAD) == {"get_system_health"}
    for call, tried in BAD.items():
        arguments = set(inspect.signature(getattr(WorkflowEngine, call)).parameters) - skipped
        assert arguments <= set(tried), call


UNKNOWN = [
    ("get_workflow", {"workflow_id": "none"}, "workflow_not_found", {"workflow_id": "none"}),
    ("get_workflow", {"workflow_id": "w", "version": 9}, "workflow_not_found", {"workflow_id": "w", "version": 9}),
    ("update_workflow", {"workflow_id": "none", "updates": {}}, "workflow_not_found", {"workflow_id": "none"}),
    ("delete_workflow", {"workflow_id": "none"}, "workflow_not_found", {"workflow_id": "none"}),
    ("list_workflow_versions", {"workflow_id": "none"}, "workflow_not_found", {"workflow_id": "none"}),
    ("execute_workflow", {"workflow_id": "none"}, "workflow_not_found", {"workflow_id": "none"}),
    (
        "execute_workflow",
        {"workflow_id": "w", "execution_options": {"version": 9}},
        "workflow_not_found",
        {"workflow_id": "w", "version": 9},
    ),
    ("get_workflow_metrics", {"workflow_id": "none"}, "workflow_not_found", {"workflow_id": "none"}),
    ("get_execution_status", {"execution_id": "none"}, "execution_not_found", {"execution_id": "none"}),
    ("get_execution_result", {"execution_id": "none", "wait": 5}, "execution_not_found", {"execution_id": "none"}),
    ("cancel_execution", {"execution_id": "a\0b"}, "execution_not_found", {"execution_id": "a\0b"}),
    ("watch_execution", {"execution_id": "none"}, "execution_not_found", {"execution_id": "none"}),
    *(
        (call, {"execution_id": "none", **arguments}, "execution_not_found", {"execution_id": "none"})
        for call, arguments in {
            "get_gate": {"gate_id": "s.1"},
            "answer_gate": {"gate_id": "s.1", "answer": "approve"},
            "explain_execution": {},
            "rerun_execution": {},
            "pause_execution": {},
            "resume_execution": {},
            "retry_step": {"step_id": "s"},
            "skip_step": {"step_id": "s"},
        }.items()
    ),
    ("repair_executions", {"execution_id": "none"}, "execution_not_found", {"execution_id": "none"}),
    ("find_workflows", {"agent_id": "none"}, "agent_not_found", {"agent_id": "none"}),
    ("agent_impact", {"agent_id": "none"}, "agent_not_found", {"agent_id": "none"}),
    ("handoff_paths", {"source": "agent-a", "target": "none"}, "agent_not_found", {"agent_id": "none"}),
    ("get_agent", {"agent_id": "' OR 1=1 --"}, "agent_not_found", {"agent_id": "' OR 1=1 --"}),
    ("get_agent_performance", {"agent_id": "none"}, "agent_not_found", {"agent_id": "none"}),
    ("get_handoff", {"handoff_id": "none"}, "handoff_not_found", {"handoff_id": "none"}),
]


@pytest.mark.parametrize(("call", "arguments", "code", "details"), UNKNOWN)
async def test_what_is_not_there_is_named(world, call, arguments, code, details):
    error = await fault_of(world.engine, call, arguments)
    assert (error.code, error.details) == (code, details)
    assert all(str(value) in error.message for value in details.values())


async def test_the_input_schema_is_checked_before_anything_starts(engine_factory):
    engine = engine_factory({"agent-a": {}})
    await engine.register_agent(name="A", config={"function": "m:f"})
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    await engine.create_workflow(name="W", steps=[STEP], input_schema=schema)
    for given in ({}, {"n": "1"}):
        error = await fault_of(engine, "execute_workflow", {"workflow_id": "w", "input_data": given})
        assert error.code == "invalid_input"
        assert paths_of(error)
    assert (await engine.list_executions())["items"] == []
    started = await engine.execute_workflow("w", {"n": 1})
    assert (await engine.get_execution_result(started["execution_id"], wait=30))["status"] == "completed"


async def test_json_at_its_limits_is_taken_and_comes_out_as_it_went_in(engine_factory):
    engine = engine_factory({"agent-a": lambda given: given})
    await engine.register_agent(name="A", config={"function": "m:f"})
    steps = [{"id": "s", "agent_id": "agent-a", "input_mapping": {"v": "${input.v}"}}]
    await engine.create_workflow(name="W", steps=steps)
    values = [
        nested(60),
        2**64 - 1,
        -(2**63),
        1.7976931348623157e308,
        5e-324,
        "\0 \N{GRINNING FACE}",
        [],
        None,
        True,
        1.0,
    ]
    for value in values:
        started = await engine.execute_workflow("w", {"v": value})
        result = await engine.get_execution_result(started["execution_id"], wait=30)
        assert (result["status"], result["output"]) == ("completed", {"v": value})
        output: Any = result["output"]
        assert type(output["v"]) is type(value)


async def test_agents_that_can_not_run_are_named_before_anything_starts(world):
    engine = world.engine
    before = len((await engine.list_executions())["items"])
    for position in ({"agent_id": "agent-nobody"}, {"agent_id": "agent-a", "fallback": {"agent_id": "agent-nobody"}}):
        steps = [{"id": "s", **position}]
        found = await engine.validate_workflow({"name": "Odd", "steps": steps})
        assert found["valid"] is True
        assert [issue["severity"] for issue in found["issues"]] == ["warning"]
        workflow_id = await engine.create_workflow(name="Odd", steps=steps)
        error = await fault_of(engine, "execute_workflow", {"workflow_id": workflow_id})
        assert (error.code, error.details["agent_id"]) == ("agent_not_found", "agent-nobody")
    assert len((await engine.list_executions())["items"]) == before


async def test_a_validation_reports_all_issues_at_once_and_stores_nothing(world):
    before = await world.contents()
    definition = {
        "nam": "typo",
        "steps": [
            {"id": "a", "agent_id": "agent-a", "depends_on": ["b"], "timeout": -1},
            {"id": "b", "agent_id": "agent-a", "depends_on": ["a"], "input_mapping": {"x": "${steps.aa.output}"}},
        ],
    }
    found = await world.engine.validate_workflow(definition)
    assert found["valid"] is False
    paths = [issue["path"] for issue in found["issues"]]
    assert {"nam", "steps[0].timeout", "steps[1].input_mapping.x"} <= set(paths)
    assert "name" in paths or any("name" in str(issue["hint"]) for issue in found["issues"])
    error = await fault_of(world.engine, "create_workflow", {"name": "N", "steps": definition["steps"]})
    assert {"steps[0].timeout", "steps[1].input_mapping.x"} <= set(paths_of(error))
    assert await world.contents() == before


# Versions.


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


# Lists.


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
