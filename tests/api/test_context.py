"""Context memory as users have it: kept, found, lost and made anew, by the engine and on the command line."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engine import EngineError, WorkflowEngine
from engine.cli.root import baton
from engine.settings import EngineSettings
from engine.stores import Stores, open_stores
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

STEPS: list[dict[str, Any]] = [
    {"id": "plan", "agent_id": "agent-planner"},
    {"id": "count", "agent_id": "agent-counter"},
]
SCRIPTS: dict[str, object] = {
    "agent-planner": {"plan": "Move the invoices to a table of their own", "risk": "Locks while copying"},
    "agent-counter": {"n": 3},
}
FACT = "Invoices are numbered by year and never reused."


@pytest.fixture
async def stores(engine_config: dict[str, object]) -> AsyncGenerator[Stores]:
    """The stores that the test's engines use."""
    opened = open_stores(EngineSettings.load(engine_config, environ={}))
    yield opened
    await opened.closing.aclose()


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    deadline = time.monotonic() + 30
    while not await ask():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def run(engine: WorkflowEngine) -> str:
    await engine.create_workflow(name="Flow", workflow_id="flow", steps=STEPS)
    for agent_id in SCRIPTS:
        await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "agents:any"})
    execution_id = (await engine.execute_workflow("flow", {}))["execution_id"]
    result = await engine.get_execution_result(execution_id, wait=60)
    assert result["status"] == "completed", result["error"]
    return execution_id


async def texts(engine: WorkflowEngine, query: str, **where: Any) -> list[str]:
    return [match["text"] for match in await engine.search_context(query, **where)]


@ON_BOTH_STORES
async def test_what_is_added_is_found_at_once_and_comes_back_whole(engine_factory: Any):
    engine = engine_factory({})
    item_id = await engine.add_context(
        FACT, workflow_id="flow", agent_id="agent-planner", metadata={"team": ["billing"], "n": 1.5}
    )
    assert await engine.add_context(FACT, workflow_id="flow", agent_id="agent-planner", metadata={"n": 2}) == item_id
    await engine.add_context("Something else entirely.", scope="agent", agent_id="agent-x")
    (match,) = await engine.search_context("how are invoices numbered", scope="workflow", workflow_id="flow")
    assert match.pop("created_at").endswith("Z")
    assert 0 < match.pop("score") <= 1
    assert match == {
        "item_id": item_id,
        "text": FACT,
        "source": {"execution_id": None, "step_id": None, "agent_id": "agent-planner"},
        "metadata": {"n": 2},
    }
    assert await texts(engine, "invoices", filter={"n": 2}) == [FACT]
    assert await texts(engine, "invoices", filter={"n": 3}) == []


@ON_BOTH_STORES
async def test_what_steps_said_is_indexed_and_outlives_the_engine(engine_factory: Any):
    engine = engine_factory(SCRIPTS)
    execution_id = await run(engine)

    async def is_found() -> object:
        return await texts(engine, "invoices", execution_id=execution_id)

    await until(is_found)
    await engine.aclose()
    again = engine_factory(SCRIPTS)
    (match,) = await again.search_context("move invoices", top_k=1, filter={"step_id": "plan"})
    assert match["text"] == "plan: Move the invoices to a table of their own\nrisk: Locks while copying"
    assert match["source"] == {"execution_id": execution_id, "step_id": "plan", "agent_id": "agent-planner"}
    assert await again.search_context("move invoices", filter={"step_id": "count"}) == []


@ON_BOTH_STORES
async def test_a_reindex_finds_all_again(engine_factory: Any):
    engine = engine_factory(SCRIPTS)
    await run(engine)
    await engine.add_context(FACT, workflow_id="flow")

    async def are_two() -> bool:
        return len(await texts(engine, "invoices", workflow_id="flow")) == 2

    await until(are_two)
    before = sorted(await texts(engine, "invoices", workflow_id="flow"))
    report = await engine.reindex_context()
    assert report == {"items": 2, "made": 0, "left": 0}
    assert sorted(await texts(engine, "invoices", workflow_id="flow")) == before


async def test_what_was_left_unindexed_is_indexed_by_the_next_worker(engine_factory: Any, stores: Stores):
    without = engine_factory({}, worker="none")
    await without.add_context(FACT, workflow_id="flow")
    assert len(await stores.context.list_unindexed(10)) == 1
    worker = engine_factory(SCRIPTS)
    await run(worker)

    async def is_indexed() -> bool:
        return not await stores.context.list_unindexed(10)

    await until(is_indexed)
    assert (await stores.vectors.describe_namespace("default")).count == 2


@pytest.mark.parametrize(
    ("call", "arguments", "path"),
    [
        ("add_context", {"text": "", "workflow_id": "w"}, "text"),
        ("add_context", {"text": "x"}, "workflow_id"),
        ("add_context", {"text": "x", "scope": "agent", "workflow_id": "w"}, "agent_id"),
        ("add_context", {"text": "x", "workflow_id": "w", "metadata": [1]}, "metadata"),
        ("search_context", {"query": ""}, "query"),
        ("search_context", {"query": "x", "top_k": 0}, "top_k"),
        ("search_context", {"query": "x", "scope": "execution"}, "execution_id"),
        ("search_context", {"query": "x", "filter": "y"}, "filter"),
    ],
)
async def test_what_makes_no_sense_is_refused(engine_factory: Any, call: str, arguments: Any, path: str):
    engine = engine_factory({}, worker="none")
    with pytest.raises(EngineError) as raised:
        await getattr(engine, call)(**arguments)
    assert (raised.value.code, raised.value.details["path"]) == ("invalid_input", path)


# The command line.


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``baton context`` on a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str, stdin: str | None = None, settings: tuple[str, ...] = ()) -> Any:
        return CliRunner().invoke(baton, [*settings, "context", *words], input=stdin)

    return invoke


def ids_of(answer: Any) -> list[str]:
    return [match["item_id"] for match in json.loads(answer.stdout)]


def test_the_command_adds_and_finds(command: Any):
    first = command("add", FACT, "--workflow", "flow", "--metadata", "team=billing", "--metadata", "n=3")
    assert (first.exit_code, first.stderr) == (0, "")
    second = command("add", "-", "--agent", "agent-a", stdin="The login page shows a captcha.\n")
    assert second.exit_code == 0
    found = command("search", "numbered invoices")
    assert found.exit_code == 0
    titles, line = found.stdout.splitlines()[:2]
    assert titles.split() == ["SCORE", "SOURCE", "TEXT"]
    assert line.endswith(FACT)
    assert 0 < float(line.split()[0]) <= 1
    assert ids_of(command("search", "captcha", "--agent", "agent-a", "-o", "json")) == [second.stdout.strip()]
    for pair, ids in [("n=3", [first.stdout.strip()]), ('n="3"', []), ("team=billing", [first.stdout.strip()])]:
        assert ids_of(command("search", "invoices", "--filter", pair, "-o", "json")) == ids
    assert command("search", "invoices", "--workflow", "other").stderr == "none\n"
    lines = command("search", "page invoices", "-o", "jsonl").stdout.splitlines()
    assert {json.loads(one)["text"] for one in lines} == {FACT, "The login page shows a captcha."}


def test_a_long_text_is_cut_for_people_only(command: Any):
    text = "Invoices " * 1_000
    command("add", text, "--workflow", "flow")
    assert "... (9000 characters)" in " ".join(command("search", "invoices").stdout.split())
    assert json.loads(command("search", "invoices", "-o", "json").stdout)[0]["text"] == text


def test_the_command_reindexes(command: Any, tmp_path: Path):
    for number in range(3):
        command("add", f"{FACT} {number}", "--workflow", "flow")
    done = command("reindex")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["items", "3"]
    for file in (tmp_path / ".baton").glob("vectors.db*"):
        file.unlink()
    assert json.loads(command("reindex", "-o", "json").stdout) == {"items": 3, "made": 0, "executions": 0, "left": 0}
    assert len(ids_of(command("search", "invoices", "-o", "json"))) == 3


def test_another_embedder_is_told_to_reindex(command: Any):
    command("add", FACT, "--workflow", "flow")
    command("reindex")
    settings = (
        "-c",
        "embedder=openai",
        "-c",
        "embedding_model=m",
        "-c",
        "embedding_dimension=8",
        "-c",
        "embedding_base_url=http://127.0.0.1:9",
    )
    refused = command("search", "invoices", settings=settings)
    assert refused.exit_code == 2
    assert "baton context reindex" in refused.stderr
    # The endpoint is away, which is found out before anything is dropped.
    assert command("reindex", settings=settings).exit_code == 4
    assert len(ids_of(command("search", "invoices", "-o", "json"))) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "text"], "--workflow ID"),
        (["add", "", "--workflow", "w"], "text must be"),
        (["add", "x", "--workflow", "w", "--metadata", "team"], "KEY=VALUE"),
        (["search", "x", "--filter", "=3"], "KEY=VALUE"),
        (["search", " "], "query must be"),
        (["search", "x", "--top-k", "101"], "top_k"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(command: Any, words: list[str], told: str):
    refused = command(*words)
    assert refused.exit_code == 2
    assert told in refused.stderr
