"""What changed between versions, the graph, and why a run went as it did: through the API and the command line."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from test_shapes import fits

from engine import EngineError, ErrorCode, WorkflowEngine, types
from engine.cli.root import baton

if TYPE_CHECKING:
    from pathlib import Path

FAST = {"retry_policy": {"max_retries": 0}}
STEPS: list[dict[str, Any]] = [
    {"id": "plan", "agent_id": "agent-planner", "output_mapping": {"kind": "${output.kind}"}},
    {"id": "bug", "agent_id": "agent-fixer", "when": "${steps.plan.output.kind} = 'bug'"},
    {"id": "build", "agent_id": "agent-builder", "depends_on": ["plan"], "timeout": 60, **FAST},
    {"id": "ship", "agent_id": "agent-shipper", "depends_on": ["build", "bug"], "join": "any"},
]


async def registered(engine: WorkflowEngine, *names: str) -> None:
    for name in names:
        await engine.register_agent(name=name, config={"function": f"m:{name.lower()}"})


async def refused(asked: Any) -> EngineError:
    with pytest.raises(EngineError) as error:
        await asked
    return error.value


@pytest.fixture
async def stored(tmp_path: Path) -> Any:
    """An engine without a server, and a workflow of two versions."""
    async with WorkflowEngine({"data_dir": str(tmp_path)}) as engine:
        await registered(engine, "Planner", "Fixer", "Builder", "Shipper")
        await engine.create_workflow(name="Flow", steps=STEPS, workflow_id="flow")
        changed = [STEPS[0], {**STEPS[2], "timeout": 90}, STEPS[1], {"id": "extra", "agent_id": "agent-fixer"}]
        await engine.update_workflow("flow", {"steps": changed, "tags": ["new"]})
        yield engine


async def test_a_diff_is_of_the_last_two_versions_unless_others_are_named(stored: WorkflowEngine):
    found = await stored.diff_workflow("flow")
    fits(found, types.WorkflowDiff)
    assert (found["from_version"], found["to_version"]) == (1, 2)
    assert [(change["path"], change["kind"], change["before"], change["after"]) for change in found["changes"]] == [
        ("tags", "added", None, ["new"]),
        ("steps.ship", "removed", {key: value for key, value in STEPS[3].items() if key != "id"}, None),
        ("steps.build.timeout", "changed", 60, 90),
        ("steps.extra", "added", None, {"agent_id": "agent-fixer"}),
    ]
    assert found["pinned"] == {"executions": [], "schedules": []}
    back = await stored.diff_workflow("flow", 2, 1)
    assert [change["kind"] for change in back["changes"]] == ["removed", "removed", "changed", "added"]
    assert (await stored.diff_workflow("flow", to_version=1))["changes"] == []
    await stored.update_workflow("flow", {"tags": ["newer"]})
    assert [change["path"] for change in (await stored.diff_workflow("flow"))["changes"]] == ["tags"]
    assert (await stored.diff_workflow("flow", to_version=2))["from_version"] == 1


async def test_what_can_not_be_compared_or_drawn_is_refused(stored: WorkflowEngine):
    for asked in (stored.diff_workflow("flow", to_version=9), stored.workflow_graph("flow", version=9)):
        error = await refused(asked)
        assert (error.code, error.details["version"]) == (ErrorCode.WORKFLOW_NOT_FOUND, 9)
    for call in (stored.diff_workflow, stored.workflow_graph):
        assert (await refused(call("none"))).code == ErrorCode.WORKFLOW_NOT_FOUND
    assert (await refused(stored.workflow_graph("flow", "png"))).details["path"] == "format"
    assert (await refused(stored.workflow_graph("flow", execution_id="none"))).code == ErrorCode.EXECUTION_NOT_FOUND
    assert (await refused(stored.explain_execution("none"))).code == ErrorCode.EXECUTION_NOT_FOUND


async def test_the_graph_of_each_version_is_drawn(stored: WorkflowEngine):
    await stored.create_handoff("agent-planner", "agent-builder", trigger_conditions=["source_output.ready = true"])
    newest, first = await stored.workflow_graph("flow", "text"), await stored.workflow_graph("flow", "text", version=1)
    assert newest.startswith("Flow (flow, version 2): 4 steps in 2 levels")
    assert "extra  agent-fixer" in newest
    assert "from plan: completion, if source_output.ready = true" in " ".join(newest.split())
    assert "ship   agent-shipper  after any of bug, build (join any)" in first
    drawn = await stored.workflow_graph("flow")
    assert drawn.startswith("flowchart TD")
    assert '-.->|"handoff on completion, if source_output.ready = true"|' in drawn


async def test_a_run_is_explained_while_it_runs_and_when_it_is_over(engine_factory: Any):
    release = threading.Event()

    async def build(_: object) -> object:
        while not release.is_set():
            await asyncio.sleep(0.02)
        return {"built": True}

    engine: WorkflowEngine = engine_factory(
        {
            "agent-planner": {"kind": "feature"},
            "agent-fixer": {},
            "agent-builder": build,
            "agent-shipper": {"shipped": True},
        }
    )
    await registered(engine, "Planner", "Fixer", "Builder", "Shipper")
    await engine.create_workflow(name="Flow", steps=STEPS, workflow_id="flow")
    execution_id = (await engine.execute_workflow("flow", {}))["execution_id"]
    try:
        async with asyncio.timeout(30):
            while (await engine.get_execution_status(execution_id))["current_steps"] != ["build"]:
                await asyncio.sleep(0.05)
        await engine.update_workflow("flow", {"steps": STEPS[:1]})
        found = await engine.explain_execution(execution_id)
        fits(found, types.ExecutionExplanation)
        steps = {step["step_id"]: step for step in found["steps"]}
        assert {name: step["decision"] for name, step in steps.items()} == {
            "plan": "ran",
            "bug": "skipped" if steps["bug"]["decision"] == "skipped" else "not_reached",
            "build": "ran",
            "ship": "not_reached",
        }
        assert steps["build"]["because"].startswith("It is running")
        pinned = (await engine.diff_workflow("flow"))["pinned"]
        assert [(item["execution_id"], item["version"]) for item in pinned["executions"]] == [(execution_id, 1)]
        drawn = await engine.workflow_graph("flow", "text", execution_id)
        assert f"execution {execution_id} is running" in drawn
        assert "▶ build" in drawn
    finally:
        release.set()
    assert (await engine.get_execution_result(execution_id, wait=30))["status"] == "completed"
    found = await engine.explain_execution(execution_id)
    steps = {step["step_id"]: step for step in found["steps"]}
    assert [step["decision"] for step in found["steps"]] == ["ran", "skipped", "ran", "ran"]
    assert steps["bug"]["because"] == (
        "It was skipped: ${steps.plan.output.kind} = 'bug' does not hold (steps.plan.output.kind = \"feature\")."
    )
    assert steps["ship"]["because"] == "It ran after bug (skipped), build (completed) (join any)."
    assert steps["ship"]["values"] == {"steps.bug": "skipped", "steps.build": "completed"}
    assert (await engine.diff_workflow("flow"))["pinned"]["executions"] == []
    drawn = await engine.workflow_graph("flow", "mermaid", execution_id)
    assert "class n0,n2,n3 completed" in drawn
    assert "class n1 skipped" in drawn
    error = await refused(engine.workflow_graph("flow", "text", execution_id, version=2))
    assert (error.code, error.details["path"]) == (ErrorCode.INVALID_INPUT, "version")
    await engine.create_workflow(name="Other", steps=STEPS[:1], workflow_id="other")
    error = await refused(engine.workflow_graph("other", "text", execution_id))
    assert (error.code, error.details["path"]) == (ErrorCode.INVALID_INPUT, "execution_id")
    await engine.delete_workflow("flow")
    assert "✓ ship" in await engine.workflow_graph("flow", "text", execution_id)


async def test_failures_and_fallbacks_of_a_run_are_explained(engine_factory: Any):
    engine: WorkflowEngine = engine_factory(
        {
            "agent-planner": [ValueError("no plan")],
            "agent-fixer": {"kind": "x"},
            "agent-builder": ValueError("no tools"),
        }
    )
    await registered(engine, "Planner", "Fixer", "Builder", "Shipper")
    steps: list[dict[str, Any]] = [
        {"id": "plan", "agent_id": "agent-planner", "fallback": {"agent_id": "agent-fixer"}, **FAST},
        {"id": "build", "agent_id": "agent-builder", "depends_on": ["plan"], **FAST},
        {"id": "ship", "agent_id": "agent-shipper", "depends_on": ["build"]},
    ]
    await engine.create_workflow(name="Flow", steps=steps, workflow_id="flow")
    execution_id = (await engine.execute_workflow("flow", {}))["execution_id"]
    assert (await engine.get_execution_result(execution_id, wait=30))["status"] == "failed"
    found = await engine.explain_execution(execution_id)
    assert [step["decision"] for step in found["steps"]] == ["fell_back", "failed", "not_reached"]
    assert "agent-planner failed with error" in found["steps"][0]["because"]
    assert "no tools" in found["steps"][1]["because"]
    assert "Step build failed" in found["steps"][2]["because"]
    assert found["steps"][2]["values"] == {"steps.build": "failed"}
    assert found["text"].startswith(f"{execution_id} (version 1 of flow) is failed")


async def test_a_run_that_decides_much_is_explained_and_drawn(engine_factory: Any):
    engine: WorkflowEngine = engine_factory(
        {
            "agent-planner": {"list": [1, 2, 3], "detail": True},
            "agent-fixer": [{"done": False}, {"done": True}],
            "agent-builder": ValueError("no tools"),
            "agent-shipper": {"ok": True},
            "agent-detailer": {"more": 1},
            "agent-rescuer": {"saved": True},
            "agent-failing": ValueError("broken"),
        }
    )
    await registered(engine, "Planner", "Fixer", "Builder", "Shipper", "Detailer", "Rescuer", "Failing")
    await engine.create_handoff("agent-planner", "agent-detailer", trigger_conditions=["source_output.detail = true"])
    await engine.create_handoff("agent-builder", "agent-rescuer", "escalation")
    steps: list[dict[str, Any]] = [
        {"id": "plan", "agent_id": "agent-planner", "compensate": {"agent_id": "agent-shipper"}},
        {
            "id": "loop",
            "agent_id": "agent-fixer",
            "depends_on": ["plan"],
            "repeat_until": {"condition": "output.done = true", "max_iterations": 5},
        },
        {"id": "each", "agent_id": "agent-shipper", "foreach": {"items": "${steps.plan.output.list}"}},
        {"id": "build", "agent_id": "agent-builder", "depends_on": ["loop", "each"], **FAST},
        {"id": "break", "agent_id": "agent-failing", "depends_on": ["build"], **FAST},
        {"id": "never", "agent_id": "agent-shipper", "depends_on": ["break"]},
    ]
    await engine.create_workflow(
        name="Flow",
        steps=steps,
        workflow_id="flow",
        handoffs="follow",
        **{"finally": [{"id": "report", "agent_id": "agent-shipper"}]},
    )
    execution_id = (await engine.execute_workflow("flow", {}))["execution_id"]
    assert (await engine.get_execution_result(execution_id, wait=30))["status"] == "failed"
    found = await engine.explain_execution(execution_id)
    steps_told = {step["step_id"]: step for step in found["steps"]}
    assert {name: step["decision"] for name, step in steps_told.items()} == {
        "plan": "ran",
        "loop": "ran",
        "each": "ran",
        "build": "escalated",
        "break": "failed",
        "never": "not_reached",
        "plan>agent-detailer": "handed_over",
        "plan:compensate": "compensated",
        "report": "finally",
    }
    assert "it was undone by plan:compensate" in steps_told["plan"]["because"]
    assert "turn 2 of repeating until output.done = true" in steps_told["loop"]["because"]
    assert "3 items: 3 completed" in steps_told["each"]["because"]
    assert "no tools" in steps_told["build"]["because"]
    assert "escalated it to agent-rescuer" in steps_told["build"]["because"]
    assert steps_told["plan>agent-detailer"]["values"] == {"source_output.detail": True}
    drawn = await engine.workflow_graph("flow", "text", execution_id)
    for line in ("✗ break", "· never", "✓ plan>agent-detailer", "✓ plan:compensate", "✓ report"):
        assert line in drawn
    chart = await engine.workflow_graph("flow", execution_id=execution_id)
    assert 'r0("plan#62;agent-detailer<br/>agent-detailer")' in chart
    assert 'n3 -.->|"escalation on failure"| a0' in chart


async def test_an_open_gate_is_explained_and_drawn(engine_factory: Any):
    engine: WorkflowEngine = engine_factory({})
    steps: list[dict[str, Any]] = [
        {"id": "ok", "type": "approval", "approval": {"question": "Ship?"}},
        {"id": "rest", "type": "wait", "wait": {"seconds": 0}, "depends_on": ["ok"]},
    ]
    await engine.create_workflow(name="Flow", steps=steps, workflow_id="flow")
    execution_id = (await engine.execute_workflow("flow", {}))["execution_id"]
    async with asyncio.timeout(30):
        while (await engine.get_execution_status(execution_id))["status"] != "waiting":
            await asyncio.sleep(0.05)
    asked, rest = (await engine.explain_execution(execution_id))["steps"]
    assert (asked["decision"], rest["decision"]) == ("waited", "not_reached")
    assert "gate ok.1 was opened" in asked["because"]
    assert rest["because"] == "It waits for ok (waiting)."
    assert "class n0 waiting" in await engine.workflow_graph("flow", "mermaid", execution_id)
    await engine.answer_gate(execution_id, "ok.1", "approve", by="anna")
    assert (await engine.get_execution_result(execution_id, wait=30))["status"] == "completed"
    asked, rest = (await engine.explain_execution(execution_id))["steps"]
    assert (asked["decision"], rest["decision"]) == ("waited", "waited")
    assert asked["because"].endswith("gate ok.1 was answered approve by anna.")
    assert asked["values"] == {"gate_id": "ok.1", "answer": "approve", "by": "anna"}


def test_the_command_line_compares_draws_and_refuses(stored: WorkflowEngine, tmp_path: Path):
    def called(*words: str) -> Any:
        return CliRunner().invoke(baton, ["-c", f"data_dir={tmp_path}", *words])

    diff = called("workflow", "diff", "flow")
    assert diff.exit_code == 0, diff.output
    assert diff.output.splitlines()[0] == "flow: version 1 to 2"
    assert [line.split()[:2] for line in diff.output.splitlines()[2:] if not line.startswith(" ")] == [
        ["added", "tags"],
        ["removed", "steps.ship"],
        ["changed", "steps.build.timeout"],
        ["added", "steps.extra"],
    ]
    assert json.loads(called("workflow", "diff", "flow", "--from", "2", "-o", "json").output)["changes"] == []
    assert "nothing changed" in called("workflow", "diff", "flow", "--to", "1").output
    drawn = called("workflow", "graph", "flow")
    assert drawn.output.startswith("Flow (flow, version 2)")
    assert called("workflow", "graph", "flow", "--format", "mermaid").output.startswith("flowchart TD")
    assert json.loads(called("workflow", "graph", "flow", "-o", "json").output)["graph"] + "\n" == drawn.output
    for words in (
        ("workflow", "diff", "flow", "--to", "9"),
        ("workflow", "graph", "none"),
        ("execution", "explain", "none"),
    ):
        assert called(*words).exit_code == 2, words
