"""Moving in: what one set of stores holds is at the other one as it was, however often and badly the copy went."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engine.cli.root import baton
from engine.domain.execution import ArtifactRef, ExecutionStatus, StepStatus, Usage, Value
from engine.errors import StoreError
from engine.ports.execution_store import ExecutionFilter
from engine.services.copying import Catalogue, CopyReport, CopyService, Records
from engine.settings import EngineSettings
from engine.stores import Stores, open_stores
from tests.contract.samples import NOW, agent, definition, ended, event, execution, handoff, seconds, step, walk
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PLAN = b"a frozen plan"
LARGE = {"text": "x" * 5_000_000}


@pytest.fixture
async def source(tmp_path: Path) -> AsyncGenerator[Stores]:
    async with stores(tmp_path / "source") as opened:
        yield opened


@pytest.fixture
async def target(tmp_path: Path, store_settings: dict[str, object]) -> AsyncGenerator[Stores]:
    """Packs otherwise than the source."""
    config = {"compression": "gzip", "compression_threshold": 0, **store_settings}
    async with stores(tmp_path / "target", **config) as opened:
        yield opened


@asynccontextmanager
async def stores(folder: Path, **config: object) -> AsyncGenerator[Stores]:
    opened = open_stores(EngineSettings.load({"data_dir": str(folder), **config}, environ={}))
    yield opened
    await opened.closing.aclose()


def service(source: Stores, target: Stores) -> CopyService:
    catalogues = tuple(Catalogue(side.definitions, side.agents, side.handoffs) for side in (source, target))
    records = tuple(Records(side.executions, side.artifacts) for side in (source, target))
    return CopyService(catalogues, records, lambda: NOW, batch_size=3)


async def copied(source: Stores, target: Stores) -> CopyReport:
    return await service(source, target).copy(lambda kind: None)


async def fill(side: Stores) -> None:
    """Some of everything, of every age."""
    for number in range(7):
        await side.definitions.insert_definition(definition(f"flow-{number}", tags=["t"], created_at=NOW))
    for version in (2, 3, 4, 5):
        later = definition("flow-3", version, tags=[f"t{version}"], updated_at=NOW + seconds(version))
        assert await side.definitions.append_version(later)
    await side.definitions.append_version(definition("flow-4", 2))
    await side.definitions.archive_definition("flow-4", NOW)
    for number in range(4):
        await side.agents.insert_agent(agent(f"agent-{number}", capabilities=["c"]))
    await side.agents.append_agent(agent("agent-2", 2, content_hash="sha256:2", capabilities=["d"]))
    await side.agents.append_agent(agent("agent-2", 3, content_hash="sha256:3", status="inactive"))
    for number in range(4):
        await side.handoffs.insert_handoff(handoff(f"handoff-{number}", "agent-1", "agent-2", definition_id="flow-1"))
    for number in range(5):
        await side.executions.create_execution(ended(f"flow-1-{number}", tags=["x"], events=[event(number)]), PLAN)
    await fill_run_over(side)


async def fill_run_over(side: Stores) -> None:
    """An execution that was reset, fell back, retried, and whose values are large."""
    large, size_bytes = await side.artifacts.put_artifact(LARGE)
    other, _ = await side.artifacts.put_artifact([LARGE, "other"])
    ref = Value(ref=ArtifactRef(artifact_id=large, size_bytes=size_bytes))
    name = "flow-1-reset"
    await side.executions.create_execution(execution(name, input=ref), b"its own plan")
    first = [
        step("a", execution_id=name, run_id="run-0", token=5),
        step("b", execution_id=name, run_id="run-0", token=6),
    ]
    await side.executions.record_steps(first, NOW)
    tried = [
        step("a", execution_id=name, token=200, attempts=3, status=StepStatus.FAILED, reason="error"),
        step("a", execution_id=name, token=300, n=2, agent_id="agent-b", usage=Usage(requests=1, cost_usd=0.5)),
        step("b", execution_id=name, token=400, output=Value(ref=ArtifactRef(artifact_id=other, size_bytes=1))),
        *(step("c", execution_id=name, token=500 + item, item=item) for item in range(8)),
    ]
    await side.executions.record_steps(tried, NOW + seconds(1))
    await side.executions.finalize_execution(ended(name, input=ref, output=ref, events=[event(9)]), [])


async def everything(side: Stores) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status in ("active", "archived"):
        found[status] = await walk(
            lambda after, status=status: side.definitions.list_definitions(
                tags=[], status=status, limit=100, after=after
            ),
            100,
        )
        for newest in found[status]:
            page = await side.definitions.list_versions(newest.definition_id, limit=100, after=None)
            found[f"versions of {newest.definition_id}"] = page.items
    tagged = await side.definitions.list_definitions(tags=["t5"], status="active", limit=10, after=None)
    found["tagged"] = tagged.items
    agents = await side.agents.list_agents(capabilities=[], status=None, limit=100, after=None)
    found["agents"] = [
        await side.agents.get_agent(newest.agent_id, version)
        for newest in agents.items
        for version in range(1, newest.version + 1)
    ]
    found["inactive"] = (await side.agents.list_agents(capabilities=[], status="inactive", limit=100, after=None)).items
    found["handoffs"] = await side.handoffs.list_handoffs_among(["agent-1"], "flow-1")
    for number, query in enumerate((ExecutionFilter(), ExecutionFilter(tags=("x",)))):
        page = await side.executions.list_executions(query, limit=100, after=None)
        found[f"executions {number}"] = page.items
        for record in page.items:
            found[f"steps of {record.execution_id}"] = await side.executions.list_steps(record.execution_id)
            found[f"plan of {record.execution_id}"] = await side.executions.get_plan(record.plan_hash)
            for value in (record.input, record.output):
                if value is not None and value.ref is not None:
                    found[value.ref.artifact_id] = await side.artifacts.get_artifact(value.ref.artifact_id)
    found["workflow's metrics"] = await side.analytics.workflow_aggregates("flow", NOW - seconds(1), NOW + seconds(99))
    for agent_id in ("agent-a", "agent-b"):
        found[agent_id] = await side.analytics.agent_aggregates(agent_id, NOW - seconds(1), NOW + seconds(99))
    return found


@ON_BOTH_STORES
async def test_everything_is_carried_over_as_it_is(source: Stores, target: Stores, tmp_path: Path):
    await fill(source)
    report = await copied(source, target)
    assert report.left == []
    numbers = {kind: (tally.copied, tally.source, tally.target) for kind, tally in report.tallies.items()}
    assert numbers == {"agents": (4, 4, 4), "handoffs": (4, 4, 4), "workflows": (7, 7, 7), "executions": (6, 6, 6)}
    versions = {kind: (tally.source_versions, tally.target_versions) for kind, tally in report.tallies.items()}
    assert (versions["agents"], versions["workflows"]) == ((6, 6), (12, 12))
    expected = await everything(source)
    assert len(expected["executions 1"]) == 5
    assert expected["agent-a"].retries == 2
    assert expected["workflow's metrics"].fallbacks == 1
    assert await everything(target) == expected
    again = await copied(source, target)
    assert [tally.copied for tally in again.tallies.values()] == [0, 0, 0, 0]
    async with stores(tmp_path / "back") as back:
        await copied(target, back)
        assert await everything(back) == expected


async def test_a_second_copy_writes_nothing(source: Stores, target: Stores, tmp_path: Path):
    await fill(source)
    await copied(source, target)
    with closing(sqlite3.connect(tmp_path / "target" / "baton.db", isolation_level=None)) as other:
        before = other.execute("PRAGMA data_version").fetchone()
        report = await copied(source, target)
        assert other.execute("PRAGMA data_version").fetchone() == before
        await target.agents.insert_agent(agent("agent-new"))
        assert other.execute("PRAGMA data_version").fetchone() != before
    assert [tally.copied for tally in report.tallies.values()] == [0, 0, 0, 0]
    assert report.left == []
    assert [tally.target for tally in report.tallies.values()] == [4, 4, 7, 6]


@ON_BOTH_STORES
async def test_what_has_come_since_is_carried_over_by_the_next_copy(source: Stores, target: Stores):
    await fill(source)
    await copied(source, target)
    await source.definitions.append_version(definition("flow-3", 6))
    await source.definitions.archive_definition("flow-5", NOW)
    await source.agents.append_agent(agent("agent-2", 4, content_hash="sha256:4"))
    await source.executions.create_execution(ended("flow-1-late"), PLAN)
    report = await copied(source, target)
    assert {kind: tally.copied for kind, tally in report.tallies.items()} == {
        "agents": 1,
        "handoffs": 0,
        "workflows": 2,
        "executions": 1,
    }
    assert await everything(target) == await everything(source)


@ON_BOTH_STORES
@pytest.mark.parametrize("after", [1, 6, 9, 16])
async def test_an_interrupted_copy_is_gone_on_with(source: Stores, target: Stores, after: int):
    await fill(source)
    reached = asyncio.Event()
    seen: list[str] = []

    def looked_at(kind: str) -> None:
        seen.append(kind)
        if len(seen) == after:
            reached.set()

    task = asyncio.create_task(service(source, target).copy(looked_at))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(seen) < 21
    report = await copied(source, target)
    assert report.left == []
    assert await everything(target) == await everything(source)


async def test_a_target_that_fails_on_the_way_is_told_and_gone_on_with(source: Stores, target: Stores):
    await fill(source)

    class Failing:
        """The target, whose third record's write fails."""

        writes = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(target.executions, name)

        async def create_execution(self, record: Any, plan: bytes | None) -> Any:
            self.writes += 1
            if self.writes == 3:
                raise StoreError("The target is away")
            return await target.executions.create_execution(record, plan)

    failing: Any = Failing()
    half = CopyService(
        None,
        (Records(source.executions, source.artifacts), Records(failing, target.artifacts)),
        lambda: NOW,
        batch_size=3,
        retries=0,
    )
    with pytest.raises(StoreError, match="The target is away"):
        await half.copy(lambda kind: None)
    await copied(source, target)
    assert await everything(target) == await everything(source)


async def test_a_store_that_was_away_for_a_moment_is_asked_again(source: Stores, target: Stores):
    await fill(source)

    class Blinking:
        """The target's agents, which are away for every ninth call."""

        calls = 0

        def __getattr__(self, name: str) -> Any:
            async def call(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.calls % 9 == 1:
                    raise StoreError("The target blinks")
                return await getattr(target.agents, name)(*args, **kwargs)

            return call

    blinking: Any = Blinking()
    catalogues = (
        Catalogue(source.definitions, source.agents, source.handoffs),
        Catalogue(target.definitions, blinking, target.handoffs),
    )
    report = await CopyService(catalogues, None, lambda: NOW, batch_size=10, retries=4).copy(lambda kind: None)
    assert report.left == []
    assert (report.tallies["agents"].target, report.tallies["agents"].target_versions) == (4, 6)


async def test_two_copies_at_once_do_not_disturb_each_other(source: Stores, target: Stores):
    await fill(source)
    reports = await asyncio.gather(*(copied(source, target) for _ in range(3)))
    assert [report.left for report in reports] == [[], [], []]
    assert await everything(target) == await everything(source)


async def test_an_open_execution_is_named_and_left_alone(source: Stores, target: Stores):
    await source.executions.create_execution(execution("flow-1-open", status=ExecutionStatus.RUNNING), PLAN)
    await source.executions.create_execution(execution("flow-1-waiting"), PLAN)
    await source.executions.create_execution(ended("flow-1-over"), PLAN)
    report = await copied(source, target)
    assert sorted((left.kind, left.object_id) for left in report.left) == [
        ("executions", "flow-1-open"),
        ("executions", "flow-1-waiting"),
    ]
    assert "running" in next(left.reason for left in report.left if left.object_id == "flow-1-open")
    page = await target.executions.list_executions(ExecutionFilter(), limit=10, after=None)
    assert [record.execution_id for record in page.items] == ["flow-1-over"]


@ON_BOTH_STORES
async def test_what_is_there_with_other_content_is_named_and_never_touched(source: Stores, target: Stores):
    await fill(source)
    await target.definitions.insert_definition(definition("flow-3").model_copy(update={"content_hash": "sha256:other"}))
    await target.agents.insert_agent(agent("agent-2", content_hash="sha256:other"))
    await target.handoffs.insert_handoff(handoff("handoff-1", "agent-8", "agent-9"))
    await target.executions.create_execution(ended("flow-1-2", input_hash="sha256:other"), PLAN)
    await target.definitions.insert_definition(definition("flow-4"))
    await target.definitions.archive_definition("flow-4", NOW)
    before = await everything(target)
    report = await copied(source, target)
    assert sorted((left.kind, left.object_id) for left in report.left) == [
        ("agents", "agent-2"),
        ("executions", "flow-1-2"),
        ("handoffs", "handoff-1"),
        ("workflows", "flow-3"),
        ("workflows", "flow-4"),
    ]
    after = await everything(target)
    for untouched in ("versions of flow-3", "versions of flow-4"):
        assert after[untouched] == before[untouched]
    assert await target.agents.get_agent("agent-2") == before["agents"][0]
    assert len(after["active"]) == 6


@ON_BOTH_STORES
async def test_a_target_that_is_ahead_stays_ahead(source: Stores, target: Stores):
    await fill(source)
    await copied(source, target)
    await target.definitions.append_version(definition("flow-3", 6))
    await target.agents.append_agent(agent("agent-1", 2, content_hash="sha256:2"))
    before = await everything(target)
    report = await copied(source, target)
    assert (report.left, report.tallies["workflows"].copied, report.tallies["agents"].copied) == ([], 0, 0)
    assert await everything(target) == before


@ON_BOTH_STORES
async def test_an_execution_whose_value_is_lost_is_named(source: Stores, target: Stores):
    lost = Value(ref=ArtifactRef(artifact_id="sha256:lost", size_bytes=9))
    await source.executions.create_execution(ended("flow-1-lost", output=lost), PLAN)
    await source.executions.create_execution(ended("flow-1-whole"), PLAN)
    report = await copied(source, target)
    [left] = report.left
    assert left.object_id == "flow-1-lost"
    assert "sha256:lost" in left.reason
    assert await target.executions.get_execution("flow-1-lost") is None
    assert (report.tallies["executions"].copied, report.tallies["executions"].target) == (1, 1)


async def test_each_thing_is_told_and_their_number_known_before(source: Stores, target: Stores):
    await fill(source)
    told: list[str] = []
    counts = await service(source, target).count()
    await service(source, target).copy(told.append)
    assert counts == {kind: told.count(kind) for kind in dict.fromkeys(told)}
    assert list(counts) == ["agents", "handoffs", "workflows", "executions"]


@ON_BOTH_STORES
async def test_an_engine_answers_from_the_copy_as_from_the_original(engine_factory, store_settings, tmp_path: Path):
    embedded = dict.fromkeys(store_settings)
    original = engine_factory({"agent-huge": {"text": "x" * 100_000}}, **embedded)
    await original.register_agent(name="Huge", config={"function": "m:f"})
    workflow_id = await original.create_workflow(name="Moved", steps=[{"id": "a", "agent_id": "agent-huge"}])
    execution_id = (await original.execute_workflow(workflow_id, {"a": 1}))["execution_id"]
    result = await original.get_execution_result(execution_id, wait=30)
    status = await original.get_execution_status(execution_id)
    events = [event["id"] async for event in original.watch_execution(execution_id)]
    metrics = await original.get_workflow_metrics(workflow_id, "last_1_days")
    async with (
        stores(tmp_path / "data") as source,
        stores(tmp_path / "moved", **store_settings) as target,
    ):
        assert (await copied(source, target)).left == []
    moved = engine_factory({}, data_dir=str(tmp_path / "moved"))
    assert await moved.get_execution_result(execution_id) == result
    assert len(result["output"]["text"]) == 100_000
    assert await moved.get_execution_status(execution_id) == status
    assert [event["id"] async for event in moved.watch_execution(execution_id)] == events
    assert (await moved.get_workflow_metrics(workflow_id, "last_1_days"))["metrics"] == metrics["metrics"]
    assert await moved.get_workflow(workflow_id) == await original.get_workflow(workflow_id)


@pytest.mark.parametrize("store_settings", ["four stores"], indirect=True)
def test_the_command_copies_to_the_servers_and_back(store_settings: dict[str, object], tmp_path: Path):
    async def prepare() -> None:
        async with stores(tmp_path / "data") as source:
            await fill(source)
            await source.executions.create_execution(execution("flow-1-open"), PLAN)

    def run(folder: str, *words: str) -> Any:
        config = [f"{key}={value}" for key, value in store_settings.items()] + [f"data_dir={tmp_path / folder}"]
        return CliRunner().invoke(baton, [*(word for pair in config for word in ("-c", pair)), "copy", *words])

    asyncio.run(prepare())
    there = run("data", "--from", "embedded", "--to", "configured")
    assert (there.exit_code, there.stderr) == (0, "")
    rows = [line.split() for line in there.stdout.splitlines()]
    assert rows[:7] == [
        ["KIND", "COPIED", "EMBEDDED", "CONFIGURED"],
        ["agents", "4", "4", "4"],
        ["agents'", "versions", "6", "6"],
        ["handoffs", "4", "4", "4"],
        ["workflows", "7", "7", "7"],
        ["workflows'", "versions", "12", "12"],
        ["executions", "6", "6", "6"],
    ]
    assert rows[8] == ["LEFT", "ALONE", "ID", "WHY"]
    assert rows[9][:5] == ["execution", "flow-1-open", "it", "is", "pending;"]
    again = run("data", "--from", "embedded", "--to", "configured")
    assert "nothing was copied" in again.stderr
    back = run("back", "--from", "configured", "--to", "embedded", "-o", "json")
    answer = json.loads(back.stdout)
    assert {kind: tally["copied"] for kind, tally in answer["kinds"].items()} == {
        "agents": 4,
        "handoffs": 4,
        "workflows": 7,
        "executions": 6,
    }
    assert answer["left"] == []


def test_without_configured_stores_the_command_says_which_settings_are_missing(tmp_path: Path):
    done = CliRunner().invoke(baton, ["-c", f"data_dir={tmp_path}", "copy", "--from", "embedded", "--to", "configured"])
    assert done.exit_code == 3
    assert "neo4j_uri" in done.output
    assert "mongo_uri" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_embedded_stores_is_named(tmp_path: Path):
    config = ["-c", f"data_dir={tmp_path / 'misspelt'}", "-c", "mongo_uri=mongodb://127.0.0.1:9/"]
    done = CliRunner().invoke(baton, [*config, "copy", "--from", "embedded", "--to", "configured"])
    assert done.exit_code == 3
    assert str(tmp_path / "misspelt") in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_sides_of_a_copy_must_differ():
    done = CliRunner().invoke(baton, ["copy", "--from", "embedded", "--to", "embedded"])
    assert done.exit_code == 2
    assert "must differ" in done.output
