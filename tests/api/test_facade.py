"""Every call with what it should take and with what it must refuse: code, place, words, and nothing half-written."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from facade_calls import BAD, GOOD, STEP, fault_of, nested, paths_of

from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    pass


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
