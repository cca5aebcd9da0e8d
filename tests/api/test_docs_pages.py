"""The pages on what definitions do: each rule names a test that exists, examples run, and every door does the same."""

from __future__ import annotations

import ast
import asyncio
import functools
import os
import re
import shlex
import subprocess
import sys
import threading
from itertools import count
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from engine import AgentFailure, EngineError, FailureReason
from engine.adapters.temporal.dev_server_binary import find_binary
from engine.cli.root import baton
from engine.domain import validation
from engine.domain.issues import IssueCode
from tests.pages import CHECKOUT, DOCS, blocks, broken_links, files, prose, run_script, scripts, tables
from tests.workflows.conftest import client
from tests.workflows.runs import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from temporalio.client import Client

    from engine import WorkflowEngine
    from engine.adapters.temporal.dev_server import DevServerLease
    from tests.conftest import EngineFactory

    Door = Callable[[str], Awaitable[tuple[int, str]]]

__all__ = ["client"]

PAGES = {
    page: (DOCS / page).read_text(encoding="utf-8")
    for page in ("handoffs.md", "failure-semantics.md", "gates.md", "loops-and-items.md")
}
PROGRAMS = [(page, name) for page, text in PAGES.items() for name in scripts(text)]
RULES = [
    pytest.param(page, row, id=f"{page}-{row['rule'][:60]}")
    for page, text in PAGES.items()
    for rows in tables(text)
    if rows and "rule" in rows[0]
    for row in rows
]
GATES = PAGES["gates.md"]
SHOWN_ID = "release/2026-11"
"""The execution on the page; each test has one of its own, since all share a server."""
DOORS = ["./baton", "temporal"]


@functools.cache
def named_tests(path: str) -> frozenset[str]:
    """The names of a module's tests."""
    tree = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def is_held(name: str) -> bool:
    """Whether there is such a test, or such a case."""
    path, is_test, function = name.partition("::")
    if is_test:
        return (CHECKOUT / path).is_file() and function in named_tests(path)
    return (CHECKOUT / "tests" / "conformance" / f"{name}.yaml").is_file()


@pytest.mark.parametrize(("page", "row"), RULES)
def test_a_rule_is_held_by_tests_that_there_are(page: str, row: dict[str, str]):
    assert list(row) == ["rule", "held by"], page
    assert row["rule"].endswith("."), row["rule"]
    named = re.findall(r"`([^`]+)`", row["held by"])
    assert named, f"nothing holds: {row['rule']}"
    assert re.sub(r"`[^`]+`", "", row["held by"]).replace(",", "").strip() == "", row["held by"]
    assert [name for name in named if not is_held(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_each_rule_once_and_none_outside_of_its_tables(page: str):
    rules = [param.values[1]["rule"] for param in RULES if param.values[0] == page]
    assert len(rules) == len(set(rules)) > 0
    assert not re.search(r"^ *[-*] ", prose(PAGES[page]), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_definitions_are_right(page: str):
    for text in blocks("yaml", PAGES[page]):
        issues = validation.parse_definition(yaml.safe_load(text)).issues
        assert [issue for issue in issues if issue.code is not IssueCode.AGENT_NOT_FOUND] == []


def test_every_block_of_python_is_run():
    assert sum(len(blocks("python", text)) for text in PAGES.values()) == len(PROGRAMS)


@pytest.mark.parametrize(("page", "name"), PROGRAMS)
async def test_a_script_prints_what_its_page_says(page: str, name: str, dev_server: DevServerLease, tmp_path: Path):
    settings = {
        "BATON_TEMPORAL_ADDRESS": dev_server.address,
        "BATON_WORKER": "embedded",
        "BATON_TASK_QUEUE": f"page-{name}-{os.getpid()}",
    }
    assert await run_script(PAGES[page], name, tmp_path, settings) == scripts(PAGES[page])[name].printed


def commands_of(door: str) -> list[str]:
    [block] = [block for block in blocks("sh", GATES) if block.startswith(f"{door} ")]
    return block.splitlines()


def test_commands_are_those_of_the_command_line():
    for line in commands_of("./baton"):
        command, words = baton, shlex.split(line)[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        command.make_context(command.name, words)


# A release, as the page on gates has it.

_numbers = count(1)


def release_agents() -> dict[str, Any]:
    return {
        "agent-builder": [AgentFailure(FailureReason.UNAVAILABLE, "No machine is free"), {"version": "1.4"}],
        "agent-shipper": lambda given, _: {"shipped": given},
    }


async def start_release(engine: WorkflowEngine) -> str:
    for agent_id in release_agents():
        await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "my_agents:any"})
    definition = yaml.safe_load(files(GATES)["release.yaml"])
    workflow_id = await engine.create_workflow(**definition)
    execution = await engine.execute_workflow(workflow_id, {}, {"idempotency_key": f"2026-{next(_numbers)}"})
    await until_open(engine, execution["execution_id"], "build.1")
    return execution["execution_id"]


async def until_open(engine: WorkflowEngine, execution_id: str, gate_id: str) -> None:
    async def is_open() -> bool:
        return gate_id in {gate["gate_id"] for gate in (await engine.list_gates(execution_id))["items"]}

    await until(is_open, f"gate {gate_id} is open")


def waits_for(line: str) -> str | None:
    """The gate that has to be open before a line of the page is typed, beyond the first."""
    return "approve.1" if "pause" in line or "approve" in line else None


async def shell(line: str, settings: dict[str, str]) -> tuple[int, str]:
    """Run a line of the page; return its exit code and what it wrote."""
    program, *words = shlex.split(line)
    if program == "temporal":
        binary = find_binary()
        assert binary is not None
        command = [str(binary.path), *words, "--address", settings["BATON_TEMPORAL_ADDRESS"]]
    else:
        command = [sys.executable, "-m", "engine.cli", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BATON_", "TEMPORAL_"))}
    ran = await asyncio.create_subprocess_exec(
        *command,
        env=environment | {"PYTHONPATH": str(CHECKOUT)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed, _ = await ran.communicate()
    assert ran.returncode is not None
    return ran.returncode, printed.decode()


@pytest.fixture
def door(engine_config: dict[str, object]) -> Door:
    """Types a line in a shell beside the engine of the test."""
    settings = {f"BATON_{key.upper()}": str(value) for key, value in engine_config.items() if key != "worker"}
    return lambda line: shell(line, settings)


async def updates_in(client: Client, execution_id: str) -> int:
    history = await client.get_workflow_handle(execution_id).fetch_history()
    return sum(event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED for event in history.events)


@pytest.mark.parametrize("program", DOORS)
async def test_a_release_goes_its_way_by_each_door(program: str, engine_factory: EngineFactory, door: Door):
    """The facade's own way is the page's script."""
    engine = engine_factory(release_agents())
    execution_id = await start_release(engine)
    for line in commands_of(program):
        gate_id = waits_for(line)
        if gate_id is not None:
            await until_open(engine, execution_id, gate_id)
            assert (await engine.get_gate(execution_id, gate_id))["expires_at"] is None
        code, printed = await door(line.replace(SHOWN_ID, execution_id))
        assert code == 0, f"{line}: {printed}"
    result = await engine.get_execution_result(execution_id, wait=30)
    assert result["output"] == {"shipped": {"version": "1.4", "window": "night", "by": "ada"}}
    told = [event["type"] async for event in engine.watch_execution(execution_id)]
    assert [one for one in told if one.startswith(("gate.", "execution.paused", "execution.resumed"))] == [
        "gate.opened",
        "gate.answered",
        "gate.opened",
        "execution.paused",
        "gate.answered",
        "execution.resumed",
    ]


async def test_what_comes_too_late_is_refused_by_each_door(engine_factory: EngineFactory, door: Door, client: Client):
    engine = engine_factory(release_agents())
    execution_id = await start_release(engine)
    await engine.retry_step(execution_id, "build")
    await until_open(engine, execution_id, "approve.1")
    await engine.pause_execution(execution_id)
    await engine.answer_gate(execution_id, "approve.1", "approve", "ada", {"window": "day"})
    taken = await updates_in(client, execution_id)
    assert taken == 3
    with pytest.raises(EngineError) as refused:
        await engine.answer_gate(execution_id, "approve.1", "reject")
    assert (refused.value.code, refused.value.details["answer"]) == ("conflict", "approve")
    code, printed = await door(f"./baton gate answer {execution_id} approve.1 reject")
    assert code == 2
    assert "(conflict)" in printed
    late = f"temporal workflow update execute --workflow-id {execution_id} --name answer_gate"
    code, printed = await door(late + """ --input '{"gate_id": "approve.1", "answer": "reject"}'""")
    assert code != 0
    assert "an answer is taken once" in printed
    code, printed = await door(late.replace("answer_gate", "approve") + """ --input '{"by": "bob"}'""")
    assert code != 0
    assert "No gate is open that takes the answer approve" in printed
    assert await updates_in(client, execution_id) == taken
    await engine.resume_execution(execution_id)
    result = await engine.get_execution_result(execution_id, wait=30)
    assert result["output"] == {"shipped": {"version": "1.4", "window": "day", "by": "ada"}}


async def test_the_table_of_updates_names_what_each_one_takes(engine_factory: EngineFactory, client: Client):
    engine = engine_factory(release_agents())
    execution_id = await start_release(engine)
    [rows] = [rows for rows in tables(GATES) if "Update" in rows[0]]
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row["Update"]):
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await client.get_workflow_handle(execution_id).execute_update(name, {"no such key": 1})
            assert isinstance(refused.value.cause, ApplicationError)
            assert refused.value.cause.type == "invalid_input"
            known = refused.value.cause.message.partition("known are ")[2].split(", ")
            assert set(re.findall(r"`([^`]+)`", row["takes"])) <= set(known), name
    await engine.cancel_execution(execution_id)


async def test_a_gate_and_a_pause_outlive_the_worker(engine_factory: EngineFactory):
    first = engine_factory(release_agents())
    execution_id = await start_release(first)
    await first.pause_execution(execution_id, by="ada")
    await first.aclose()
    second = engine_factory({**release_agents(), "agent-builder": {"version": "1.5"}})
    assert (await second.get_execution_status(execution_id))["status"] == "paused"
    assert [gate["gate_id"] for gate in (await second.list_gates(execution_id))["items"]] == ["build.1"]
    await second.retry_step(execution_id, "build")
    await second.resume_execution(execution_id)
    await until_open(second, execution_id, "approve.1")
    await second.answer_gate(execution_id, "approve.1", "approve", data={"window": "day"})
    result = await second.get_execution_result(execution_id, wait=30)
    assert result["output"] == {"shipped": {"version": "1.5", "window": "day", "by": None}}


# What else the pages say.


async def made(engine: WorkflowEngine, *agent_ids: str, **definition: Any) -> str:
    for agent_id in agent_ids:
        await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "my_agents:any"})
    return await engine.create_workflow(**definition)


PAIR = [{"id": "a", "agent_id": "agent-a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"]}]


async def test_a_handoff_that_is_bound_to_a_workflow_acts_there_alone(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"done": False}, "agent-b": {}})
    bound = await made(engine, "agent-a", "agent-b", name="Bound", steps=PAIR)
    free = await engine.create_workflow(name="Free", steps=PAIR)
    await engine.create_handoff(
        "agent-a", "agent-b", trigger_conditions=["source_output.done = true"], workflow_id=bound
    )
    found = {}
    for workflow_id in (bound, free):
        execution = await engine.execute_workflow(workflow_id, {})
        result = await engine.get_execution_result(execution["execution_id"], wait=30)
        found[workflow_id] = (result["steps"]["b"]["status"], len(result["handoffs"]))
    assert found == {bound: ("skipped", 1), free: ("completed", 0)}


async def test_a_handoff_that_is_made_later_does_not_touch_what_runs(engine_factory: EngineFactory):
    begun, go_on = threading.Event(), threading.Event()

    async def first(_: object, __: object) -> dict[str, bool]:
        begun.set()
        await asyncio.to_thread(go_on.wait, 30)
        return {"done": False}

    engine = engine_factory({"agent-a": first, "agent-b": {}})
    workflow_id = await made(engine, "agent-a", "agent-b", name="Flow", steps=PAIR)
    execution = await engine.execute_workflow(workflow_id, {})
    assert await asyncio.to_thread(begun.wait, 30)
    await engine.create_handoff("agent-a", "agent-b", trigger_conditions=["source_output.done = true"])
    go_on.set()
    result = await engine.get_execution_result(execution["execution_id"], wait=30)
    assert (result["steps"]["b"]["status"], result["handoffs"]) == ("completed", [])
    later = await engine.execute_workflow(workflow_id, {})
    result = await engine.get_execution_result(later["execution_id"], wait=30)
    assert result["steps"]["b"]["reason"] == "handoff"


async def test_what_the_workflow_decides_alone_costs_no_activity(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-a": {"n": 1}, "agent-b": {}})
    steps = [
        {"id": "a", "agent_id": "agent-a"},
        {"id": "never", "agent_id": "agent-b", "when": "steps.a.output.n = 2"},
        {"id": "make", "type": "transform", "transform": {"n": "${steps.a.output.n}"}},
        {"id": "list", "type": "transform", "foreach": {"items": [1, 2, 3]}, "transform": {"n": "${item}"}},
        {"id": "end", "agent_id": "agent-b", "depends_on": ["never", "make", "list"], "join": "settled"},
    ]
    workflow_id = await made(engine, "agent-a", "agent-b", name="Flow", steps=steps)
    execution = await engine.execute_workflow(workflow_id, {})
    result = await engine.get_execution_result(execution["execution_id"], wait=30)
    assert (result["status"], result["steps"]["list"]["output"]) == ("completed", [{"n": 1}, {"n": 2}, {"n": 3}])
    history = await client.get_workflow_handle(execution["execution_id"]).fetch_history()
    called = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    assert called == ["agent.agent-a", "agent.agent-b"]


async def test_a_child_has_the_tags_of_its_parent(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {}})
    await made(engine, "agent-a", name="Child", steps=PAIR[:1])
    steps = [{"id": "call", "type": "workflow", "workflow_id": "child"}]
    workflow_id = await engine.create_workflow(name="Parent", steps=steps)
    execution = await engine.execute_workflow(workflow_id, {}, {"tags": ["nightly"]})
    result = await engine.get_execution_result(execution["execution_id"], wait=30)
    child_id = result["steps"]["call"].get("child_execution_id")
    assert child_id == f"{execution['execution_id']}/call.1"
    tagged = (await engine.list_executions(tags=["nightly"]))["items"]
    assert {item["execution_id"] for item in tagged} == {execution["execution_id"], child_id}
