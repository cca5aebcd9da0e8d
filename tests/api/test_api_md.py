"""API.md is the contract: its code runs as it stands there, block after block, on a real engine."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from api_md_blocks import API_MD, NOT_RUN, SUBSTITUTIONS, Block, read_blocks

from engine import EngineError, WorkflowEngine
from engine.testing import ScriptedAgentInvoker

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = API_MD.read_text(encoding="utf-8")
BLOCKS = {block.heading: block for block in read_blocks(PAGE)}
EXAMPLE = BLOCKS["Complete Workflow Execution Example"]
SCRIPTS = {
    "agent-project-architect": lambda given: {"plan": f"plan for {given['feature_request']}", "plan_complete": True},
    "agent-detail": lambda given: {"specifications": f"specs of {given['architecture_plan']}"},
    "agent-relationship": lambda given: {"relationships": [f"from {given['detailed_specs']}"]},
}
RELATIONSHIPS = ["from specs of plan for Implement user authentication with OAuth support"]


async def register_agents(engine: WorkflowEngine, module: str = "scripted") -> None:
    """Python agents under the ids that the page uses; a scripted invoker never loads their functions."""
    for agent_id, name in {
        "agent-project-architect": "Project Architect Agent",
        "agent-detail": "Detail Agent",
        "agent-relationship": "Relationship Agent",
        "agent-fallback": "Fallback Agent",
    }.items():
        function = f"{module}:{agent_id.replace('-', '_')}"
        assert await engine.register_agent(name=name, config={"function": function}) == agent_id


async def ended(engine: WorkflowEngine, execution_id: str) -> dict[str, Any]:
    return dict(await engine.get_execution_result(execution_id, wait=30))


class Reader:
    """Goes through the page from top to bottom and does between the blocks what its reader would do."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.engine = engine
        self.names: dict[str, Any] = {"WorkflowEngine": WorkflowEngine}
        self.run_headings: list[str] = []
        self.made: dict[str, Any] = {}
        """What each block assigned last."""

    async def run(self, heading: str) -> Any:
        block = BLOCKS[heading]
        await block.run(self.names)
        self.run_headings.append(heading)
        target = ast.parse(block.source).body[0].targets[0].id  # type: ignore[attr-defined]
        self.made[heading] = self.names[target]
        return self.made[heading]


@pytest.fixture(scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory):
    """The page read once, on an engine with its own server, worker and data."""

    async def architect(given: dict[str, str]) -> object:
        if given["feature_request"] == "hang":
            await asyncio.sleep(600)
        return SCRIPTS["agent-project-architect"](given)

    config = {"data_dir": str(tmp_path_factory.mktemp("reader"))}
    async with WorkflowEngine(
        config, invoker=ScriptedAgentInvoker({**SCRIPTS, "agent-project-architect": architect})
    ) as (engine):
        reader = Reader(engine)
        names, run = reader.names, reader.run
        await run("Initialization")
        names["workflow_engine"] = engine

        workflow_id = await run("Create Workflow")
        await run("Get Workflow")
        await run("Update Workflow")
        await engine.create_workflow(name="Newer", steps=[{"id": "a", "agent_id": "agent-detail"}], tags=["feature"])
        names["cursor_token"] = (await engine.list_workflows(tags=["feature"], status="active", limit=1))["next_cursor"]
        await run("List Workflows")
        await run("Delete Workflow")
        reader.made["first_workflow_id"] = workflow_id
        names["workflow_id"] = await run("Create Workflow")

        await register_agents(engine)
        names["execution_id"] = (await run("Execute Workflow"))["execution_id"]
        reader.made["result"] = await ended(engine, names["execution_id"])
        await run("Get Execution Status")
        names["start_time"] = reader.made["result"]["started_at"].partition("T")[0] + "T00:00:00Z"
        names["end_time"] = "2999-05-31T23:59:59Z"
        newer = await engine.execute_workflow(names["workflow_id"], {"feature_request": "newer"})
        await ended(engine, newer["execution_id"])
        names["cursor_token"] = (
            await engine.list_executions(
                names["workflow_id"], "completed", names["start_time"], names["end_time"], limit=1
            )
        )["next_cursor"]
        await run("List Executions")
        hanging = await engine.execute_workflow(names["workflow_id"], {"feature_request": "hang"})
        names["execution_id"] = hanging["execution_id"]
        await run("Cancel Execution")
        reader.made["cancelled"] = await ended(engine, names["execution_id"])

        names["agent_id"] = await run("Register Agent")
        by_model = await engine.execute_workflow(names["workflow_id"], {"feature_request": "model"})
        reader.made["by a model"] = await ended(engine, by_model["execution_id"])
        await run("Get Agent")
        await run("List Available Agents")
        names["handoff_id"] = await run("Create Handoff Definition")
        await run("Get Handoff Definition")
        await run("List Handoffs")
        await run("Get Workflow Metrics")
        await run("Get Agent Performance")
        await run("Get System Health")
        yield reader


def test_the_page_here_is_the_contract_itself():
    contract = CHECKOUT.parent / "shared" / "API.md"
    if not contract.exists():
        pytest.skip("the contract does not lie beside this checkout")
    assert API_MD.read_bytes() == contract.read_bytes()


def test_every_python_block_is_run_or_listed_with_its_reason(reader: Reader):
    in_page = [block.heading for block in read_blocks(PAGE)]
    assert len(in_page) == PAGE.count("```python") == len(set(in_page))
    assert {*reader.run_headings, *NOT_RUN, EXAMPLE.heading} == set(in_page)
    assert set(SUBSTITUTIONS) <= set(in_page)


async def test_the_configuration_of_the_page_is_read_and_a_store_that_is_away_is_named(reader: Reader):
    """On a machine that has Neo4j at its usual port the answer is its own."""
    engine = reader.made["Initialization"]
    assert isinstance(engine, WorkflowEngine)
    with pytest.raises(EngineError) as failed:
        await engine.get_workflow("workflow-123")
    assert failed.value.code in {"database_error", "workflow_not_found"}
    assert ("neo4j_uri" in failed.value.message) == (failed.value.code == "database_error")
    await engine.aclose()


def test_a_workflow_is_created_read_changed_listed_and_deleted(reader: Reader):
    made = reader.made
    assert made["first_workflow_id"] == "feature-implementation-workflow"
    workflow = made["Get Workflow"]
    assert (workflow["name"], workflow["version"], workflow["tags"]) == (
        "Feature Implementation Workflow",
        1,
        ["feature", "implementation"],
    )
    assert workflow["metadata"] == {"owner": "engineering", "priority": "high"}
    assert workflow["steps"][0]["retry_policy"] == {"max_retries": 3, "backoff_factor": 2}
    assert workflow["steps"][1]["depends_on"] == ["step1"]
    assert made["Update Workflow"] is True
    [listed] = made["List Workflows"]["items"]
    assert listed["name"] == "Updated Feature Implementation Workflow"
    assert (listed["workflow_id"], listed["version"]) == (made["first_workflow_id"], 2)
    assert made["Delete Workflow"] is True
    assert made["Create Workflow"].startswith("feature-implementation-workflow-"), "the id is never used again"


def test_an_execution_is_started_watched_listed_and_cancelled(reader: Reader):
    made = reader.made
    started = made["Execute Workflow"]
    assert started["workflow_id"] == made["Create Workflow"]
    assert started["deadline_at"] is not None
    assert started["temporal"]["ui_url"].startswith("http://127.0.0.1:")
    assert made["result"]["output"] == {"detailed_specs": "specs of plan for Implement user authentication system"}
    status = made["Get Execution Status"]
    assert (status["status"], status["progress"]["completed"]) == ("completed", 2)
    assert [item["execution_id"] for item in made["List Executions"]["items"]] == [started["execution_id"]]
    assert made["Cancel Execution"] is True
    assert made["cancelled"]["status"] == "cancelled"


def test_an_agent_is_registered_as_a_model_and_executed_as_one(reader: Reader):
    made = reader.made
    assert made["Register Agent"] == "agent-project-architect"
    agent = made["Get Agent"]
    assert (agent["kind"], agent["config"]["model"]) == ("llm", "gpt-4o")
    assert agent["capabilities"] == ["structure_generation", "dependency_analysis"]
    assert [warning["code"] for warning in agent["warnings"]] == ["unknown_tool", "unknown_tool"]
    assert [item["agent_id"] for item in made["List Available Agents"]["items"]] == ["agent-project-architect"]
    assert made["by a model"]["output"] == {"detailed_specs": "specs of plan for model"}


def test_a_handoff_is_stored_and_listed(reader: Reader):
    made = reader.made
    handoff = made["Get Handoff Definition"]
    assert handoff["handoff_id"] == made["Create Handoff Definition"]
    assert handoff["data_mapping"] == {"architecture_plan": "detailed_requirements"}
    assert handoff["trigger_conditions"] == ["completion", "source_output.plan_complete = true"]
    assert made["List Handoffs"]["items"] == [handoff]


def test_what_is_measured_is_known(reader: Reader):
    made = reader.made
    metrics = made["Get Workflow Metrics"]["metrics"]
    assert list(metrics) == ["execution_count", "success_rate", "average_duration"]
    assert (metrics["execution_count"], metrics["success_rate"]) == (4, 1.0)
    performance = made["Get Agent Performance"]["metrics"]
    assert list(performance) == ["success_rate", "average_duration", "error_count"]
    assert (performance["success_rate"], performance["error_count"]) == (1.0, 0)
    assert made["Get System Health"]["status"] == "healthy"


async def test_the_placeholder_cursor_itself_is_refused(reader: Reader):
    for listing in (reader.engine.list_workflows, reader.engine.list_executions):
        with pytest.raises(EngineError) as refused:
            await listing(cursor="cursor-token")
        assert (refused.value.code, refused.value.details["path"]) == ("invalid_input", "cursor")


async def test_the_error_of_the_page_is_the_error_that_is_raised(reader: Reader):
    with pytest.raises(EngineError) as missing:
        await reader.engine.get_workflow("workflow-123")
    shown = ast.literal_eval(BLOCKS["Error Handling"].source)
    response: Any = missing.value.to_response()
    assert response["error"].pop("request_id").startswith("req-")
    assert shown["error"].pop("request_id").startswith("req-")
    assert response == shown


def test_every_error_code_of_the_page_is_raised_by_some_class():
    codes = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("- `")]

    def classes(base: type[EngineError]) -> list[type[EngineError]]:
        return [base, *(found for below in base.__subclasses__() for found in classes(below))]

    assert len(codes) == 7
    assert set(codes) <= {each.code.value for each in classes(EngineError)}


async def test_the_complete_example_runs_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = {"data_dir": str(tmp_path)}
    async with WorkflowEngine(config) as engine:
        await register_agents(engine)

    def with_scripts(config: dict[str, object]) -> WorkflowEngine:
        return WorkflowEngine(config=config, invoker=ScriptedAgentInvoker(SCRIPTS))

    names: dict[str, Any] = {"WorkflowEngine": with_scripts, "asyncio": asyncio, "config": config}
    await EXAMPLE.run(names)
    result = names["result"]
    await names["workflow_engine"].aclose()
    assert (result["status"], result["output"]) == ("completed", {"relationships": RELATIONSHIPS})
    assert result["steps"]["detail"]["output"] == {"detailed_specs": RELATIONSHIPS[0].removeprefix("from ")}
    assert capsys.readouterr().out == f"Final workflow result: {result}\n"


AGENT_MODULE = """
def agent_project_architect(given, call):
    return {"plan": f"plan for {given['feature_request']}"}


async def agent_detail(given, call):
    return {"specifications": f"specs of {given['architecture_plan']}"}


def agent_relationship(given, call):
    return {"relationships": [f"from {given['detailed_specs']}"]}
"""

LEFT_THREADS = """
left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
# It waits for the server's supervisor, which ends when this process lets go of its lock.
assert set(left) <= {"baton-dev-server-reaper"}, left
"""


def as_script(block: Block, config: dict[str, object]) -> str:
    return "\n".join(
        [
            "import asyncio, threading",
            "from engine import WorkflowEngine",
            f"config = {config!r}",
            "async def main():",
            textwrap.indent(block.filled_in, "    "),
            "asyncio.run(main())",
            LEFT_THREADS,
        ]
    )


def holds(path: Path) -> bool:
    """Whether somebody has a lock on the file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def processes_with(folder: Path) -> list[str]:
    """Command lines of all processes that name the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line:
            found.append(line)
    return found


async def test_the_complete_example_is_a_script_that_leaves_nothing_behind(tmp_path: Path):
    config: dict[str, object] = {"data_dir": str(tmp_path / "data"), "agent_modules": ["page_agents"]}
    (tmp_path / "page_agents.py").write_text(AGENT_MODULE, encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(as_script(EXAMPLE, config), encoding="utf-8")
    async with WorkflowEngine(config) as engine:
        await register_agents(engine, "page_agents")
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("BATON_", "TEMPORAL_"))}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", str(script)],
        env={**environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Final workflow result: {")
    printed = ast.literal_eval(done.stdout.removeprefix("Final workflow result: "))
    assert (printed["status"], printed["output"]) == ("completed", {"relationships": RELATIONSHIPS})
    assert processes_with(tmp_path) == []
    for lock in ("holders.lock", "supervisor.lock"):
        assert not holds(tmp_path / "data" / "temporal" / lock)
