"""Who uses whom: what an agent's end would touch, asked through the API and the command line."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from test_shapes import fits

from engine import EngineError, ErrorCode, WorkflowEngine, types
from engine.cli.root import baton
from engine.services.graph import MAX_HOPS
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@pytest.fixture
async def engine(tmp_path: Path, store_settings: dict[str, object]) -> AsyncGenerator[WorkflowEngine]:
    async with WorkflowEngine({"data_dir": str(tmp_path), **store_settings}) as engine:
        await fill(engine)
        yield engine


async def fill(engine: WorkflowEngine) -> None:
    """Agents a to e, handed over a > b > c > d and a > c; d > e holds in one workflow only."""
    for name in "ABCDE":
        await engine.register_agent(name=name, config={"function": f"m:{name.lower()}"}, agent_id=name.lower())
    for source, target in ("ab", "bc", "cd", "ac"):
        await engine.create_handoff(source, target)
    await engine.create_handoff("d", "e", workflow_id="bound")
    await create(engine, "twice", ["a", "e", "a"])
    await create(engine, "spare", ["e"], fallback="a")
    await create(engine, "partner", ["b", "e"])
    await create(engine, "bound", ["d"])
    await create(engine, "unbound", ["d"])


async def create(engine: WorkflowEngine, workflow_id: str, agents: list[str], fallback: str | None = None) -> None:
    more: dict[str, Any] = {} if fallback is None else {"fallback": {"agent_id": fallback}}
    steps = [{"id": f"s{number}", "agent_id": agent_id, **more} for number, agent_id in enumerate(agents)]
    await engine.create_workflow(name=workflow_id, steps=steps, workflow_id=workflow_id)


async def uses(engine: WorkflowEngine, agent_id: str) -> list[tuple[str, str, list[str]]]:
    page = await engine.find_workflows(agent_id)
    fits(page, types.AgentUsePage)
    return [(item["workflow_id"], item["as"], item["steps"]) for item in page["items"]]


async def refused(asked: Any) -> EngineError:
    with pytest.raises(EngineError) as error:
        await asked
    return error.value


@ON_BOTH_STORES
async def test_workflows_that_use_an_agent_in_each_role(engine: WorkflowEngine):
    assert await uses(engine, "a") == [
        ("partner", "handoff", ["s0"]),
        ("spare", "fallback", ["s0"]),
        ("twice", "agent", ["s0", "s2"]),
    ]


@ON_BOTH_STORES
async def test_a_handoff_that_is_bound_to_a_workflow_counts_there_only(engine: WorkflowEngine):
    found = await uses(engine, "e")
    assert ("bound", "handoff", ["s0"]) in found
    assert "unbound" not in {workflow_id for workflow_id, _, _ in found}


@ON_BOTH_STORES
async def test_only_the_newest_version_of_an_active_workflow_counts(engine: WorkflowEngine):
    await engine.update_workflow("twice", {"steps": [{"id": "only", "agent_id": "e"}]})
    await engine.delete_workflow("partner")
    assert await uses(engine, "a") == [("spare", "fallback", ["s0"])]


@ON_BOTH_STORES
async def test_pages_of_workflows_follow_one_another(engine: WorkflowEngine):
    whole = (await engine.find_workflows("a"))["items"]
    found: list[types.AgentUse] = []
    cursor: str | None = None
    while True:
        page = await engine.find_workflows("a", limit=1, cursor=cursor)
        assert len(page["items"]) == 1
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == whole
    first = await engine.find_workflows("a", limit=1)
    error = await refused(engine.find_workflows("b", cursor=first["next_cursor"]))
    assert (error.code, error.details["path"]) == (ErrorCode.INVALID_INPUT, "cursor")


@ON_BOTH_STORES
async def test_the_impact_of_an_agent_is_its_workflows_and_its_handoffs(engine: WorkflowEngine):
    impact = await engine.agent_impact("c")
    fits(impact, types.AgentImpact)
    assert [(use["workflow_id"], use["as"]) for use in impact["workflows"]] == [
        ("bound", "handoff"),
        ("partner", "handoff"),
        ("twice", "handoff"),
        ("unbound", "handoff"),
    ]
    pairs = [(handoff["source_agent_id"], handoff["target_agent_id"]) for handoff in impact["handoffs"]]
    assert pairs == [("b", "c"), ("c", "d"), ("a", "c")]
    assert impact["handoffs"][0] == await engine.get_handoff(impact["handoffs"][0]["handoff_id"])


async def test_an_agent_that_nothing_uses_has_no_impact(engine: WorkflowEngine):
    await engine.register_agent(name="Lonely", config={"function": "m:f"}, agent_id="lonely")
    assert await engine.agent_impact("lonely") == {"workflows": [], "handoffs": []}


async def test_the_impact_is_whole_however_many_workflows_there_are(engine: WorkflowEngine, monkeypatch):
    monkeypatch.setattr("engine.services.graph.MAX_LIMIT", 2)
    impact = await engine.agent_impact("c")
    assert len(impact["workflows"]) == 4


@ON_BOTH_STORES
async def test_paths_along_handoffs_come_shortest_first(engine: WorkflowEngine):
    paths = await engine.handoff_paths("a", "d")
    fits(paths, list[list[str]])
    assert paths == [["a", "c", "d"], ["a", "b", "c", "d"]]
    assert await engine.handoff_paths("a", "d", max_hops=2) == [["a", "c", "d"]]
    assert await engine.handoff_paths("d", "a") == []


@pytest.mark.parametrize("max_hops", [0, -1, MAX_HOPS + 1, 2.0, "3", True, None])
async def test_a_number_of_hops_that_can_not_be_used_is_refused(engine: WorkflowEngine, max_hops: Any):
    error = await refused(engine.handoff_paths("a", "d", max_hops=max_hops))
    assert (error.code, error.details["path"]) == (ErrorCode.INVALID_INPUT, "max_hops")


async def test_an_agent_has_no_path_to_itself(engine: WorkflowEngine):
    assert (await refused(engine.handoff_paths("a", "a"))).code is ErrorCode.INVALID_INPUT


@ON_BOTH_STORES
async def test_an_agent_that_is_not_registered_is_named(engine: WorkflowEngine):
    for asked in (
        engine.find_workflows("nobody"),
        engine.agent_impact("nobody"),
        engine.handoff_paths("nobody", "a"),
        engine.handoff_paths("a", "nobody"),
    ):
        error = await refused(asked)
        assert error.code is ErrorCode.AGENT_NOT_FOUND
        assert "nobody" in error.message


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """The command line, on stores that are filled."""

    async def prepare() -> None:
        async with WorkflowEngine({"data_dir": str(tmp_path)}) as engine:
            await fill(engine)

    asyncio.run(prepare())
    return lambda *words: CliRunner().invoke(baton, ["-c", f"data_dir={tmp_path}", *words])


def test_the_command_line_answers_with_tables(run: Any):
    found = run("workflow", "find", "--agent", "a")
    assert (found.exit_code, [line.split() for line in found.stdout.splitlines()]) == (
        0,
        [
            ["WORKFLOW", "AS", "STEPS"],
            ["partner", "handoff", "s0"],
            ["spare", "fallback", "s0"],
            ["twice", "agent", "s0,", "s2"],
        ],
    )
    impact = run("agent", "impact", "b").stdout
    assert impact.startswith("WORKFLOW ")
    assert [line.split()[1:4] for line in impact.partition("HANDOFF")[2].splitlines()[1:]] == [
        ["sequential", "a", "b"],
        ["sequential", "b", "c"],
    ]
    paths = run("handoff", "paths", "a", "d")
    assert paths.stdout.splitlines() == ["HOPS  PATH", "2     a > c > d", "3     a > b > c > d"]


def test_the_command_line_answers_with_json(run: Any):
    page = json.loads(run("workflow", "find", "--agent", "a", "--limit", "2", "-o", "json").stdout)
    fits(page, types.AgentUsePage)
    assert (len(page["items"]), page["next_cursor"] is None) == (2, False)
    lines = run("workflow", "find", "--agent", "a", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["workflow_id"] for line in lines] == ["partner", "spare", "twice"]
    fits(json.loads(run("agent", "impact", "c", "-o", "json").stdout), types.AgentImpact)
    assert json.loads(run("handoff", "paths", "a", "d", "-o", "json").stdout) == [
        ["a", "c", "d"],
        ["a", "b", "c", "d"],
    ]
    assert json.loads(run("handoff", "paths", "a", "d", "--max-hops", "2", "-o", "jsonl").stdout) == ["a", "c", "d"]


def test_the_command_line_says_when_there_is_nothing(run: Any):
    assert run("handoff", "paths", "d", "a").stderr == "none\n"
    unknown = run("agent", "impact", "nobody")
    assert (unknown.exit_code, "nobody" in unknown.stderr) == (2, True)
