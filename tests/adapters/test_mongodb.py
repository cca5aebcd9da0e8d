"""What is MongoDB's own: how many commands a call costs, which indexes serve it, and several processes at once."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.mongodb import analytics
from engine.adapters.mongodb.connection import MongoDatabase
from engine.adapters.mongodb.context_store import MongoContextStore, items_query
from engine.adapters.mongodb.execution_documents import list_query
from engine.adapters.mongodb.execution_store import MongoExecutionStore
from engine.adapters.mongodb.gates import gates_query
from engine.adapters.mongodb.step_writes import steps_range
from engine.domain.context import ContextFilter, ContextItem
from engine.domain.execution import ExecutionStatus, StepStatus, Usage, Value
from engine.errors import StoreError
from engine.ports.execution_store import ExecutionFilter, GateFilter
from tests.adapters.mongo_samples import CommandLog, outside, plan_of, run_children, writes_in
from tests.contract.samples import NOW, ended, execution, gate, seconds, step, transition
from tests.servers.mongodb import given_uri, scratch_database

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.servers import RunningServer

RUN_1 = NOW + seconds(1)
DRIVERS = ("motor", "pymongo")
PATIENT = timedelta(seconds=30)


@pytest.fixture
async def uri(mongo_server: RunningServer) -> AsyncGenerator[str]:
    async with scratch_database(mongo_server.uri) as scratch:
        yield scratch


@pytest.fixture
def log() -> CommandLog:
    return CommandLog()


@pytest.fixture(params=DRIVERS)
async def database(request: pytest.FixtureRequest, uri: str, log: CommandLog) -> AsyncGenerator[MongoDatabase]:
    opened = MongoDatabase(uri, request.param, deadline=PATIENT, listeners=[log])
    yield opened
    await opened.aclose()


@pytest.fixture
async def store(database: MongoDatabase, log: CommandLog) -> MongoExecutionStore:
    opened = MongoExecutionStore(database, Codec())
    await opened.check_health()
    log.take()
    return opened


async def test_a_short_execution_costs_one_write_a_call(store: MongoExecutionStore, log: CommandLog) -> None:
    await store.create_execution(execution("first"), b"plan")
    assert writes_in(log.take()) == 2
    await store.create_execution(execution(), b"plan")
    assert log.take() == ["insert"]
    for number in range(3):
        await store.record_steps([step(f"s{number}")], RUN_1)
        assert log.take() == ["update"]
    await store.record_steps([step("early"), step("late")], RUN_1)
    assert log.take() == ["update"]
    _, end = await store.record_last_steps([step("last")], ended())
    assert end is not None
    assert log.take() == ["find", "update"]
    assert len(await store.list_steps("flow-1")) == 6


async def test_a_claim_and_an_end_cost_a_read_and_a_write(store: MongoExecutionStore, log: CommandLog) -> None:
    await store.create_execution(execution(), None)
    await store.record_steps([step(status=StepStatus.RETRYING)], RUN_1)
    log.take()
    await store.claim_step(step(token=200, status=StepStatus.RUNNING, attempts=2), RUN_1)
    assert log.take() == ["find", "update"]
    await store.finalize_execution(ended(), [])
    assert log.take() == ["find", "update"]
    await store.finalize_execution(ended(), [step("b")])
    assert log.take() == ["update", "find", "update"]


async def test_a_transition_costs_a_write_for_each_kind_and_a_read(store: MongoExecutionStore, log: CommandLog) -> None:
    await store.create_execution(execution(), None)
    log.take()
    await store.record_transition(transition(200, ExecutionStatus.WAITING))
    assert log.take() == ["find", "update"]
    await store.record_transition(transition(300, ExecutionStatus.RUNNING, gates=[gate(), gate("b.1")]))
    assert log.take() == ["update", "find", "update"]
    await store.record_transition(transition(400, None, gates=[gate(token=50)], steps=[step("b"), step("c")]))
    assert log.take() == ["update", "find", "update", "find"]


async def test_a_refused_write_costs_a_look_at_what_stands(store: MongoExecutionStore, log: CommandLog) -> None:
    await store.record_steps([step(token=200)], RUN_1)
    log.take()
    assert await store.record_steps([step(token=100), step("b")], RUN_1) == [step(token=200), step("b")]
    assert log.take() == ["update", "find"]


async def test_a_hundred_concurrent_steps_are_few_commands(store: MongoExecutionStore, log: CommandLog) -> None:
    await store.record_steps([step("stands", token=900, execution_id="e-50")], RUN_1)
    log.take()
    calls = [step("stands", token=number + 1, execution_id=f"e-{number}") for number in range(100)]
    answers = await asyncio.gather(*(store.record_steps([call], RUN_1) for call in calls))
    expected = [[call] for call in calls]
    expected[50] = [step("stands", token=900, execution_id="e-50")]
    assert answers == expected
    assert writes_in(log.take()) <= 4
    for call in calls[:50]:
        assert await store.list_steps(call.execution_id) == [call]


async def test_one_writes_failure_is_nobody_elses(store: MongoExecutionStore, uri: str, log: CommandLog) -> None:
    async with outside(uri) as plain:
        await plain.command({"collMod": "executions", "validator": {"agent_id": {"$ne": "refused"}}})
    calls = [step(execution_id=f"e-{number}", agent_id="refused" if number == 3 else "agent-a") for number in range(10)]
    answers = await asyncio.gather(*(store.record_steps([call], RUN_1) for call in calls), return_exceptions=True)
    assert isinstance(answers.pop(3), StoreError)
    assert answers == [[call] for call in calls if call.agent_id != "refused"]
    assert writes_in(log.take()) == 1


async def test_a_record_over_the_limit_fails_alone(store: MongoExecutionStore) -> None:
    large = step("large", output=Value.of([f"{number:032}" for number in range(800_000)]))
    incompressible = MongoExecutionStore(store._database, Codec(threshold_bytes=2**40))
    refused, kept = await asyncio.gather(
        incompressible.record_steps([large], RUN_1),
        incompressible.record_steps([step("small")], RUN_1),
        return_exceptions=True,
    )
    assert isinstance(refused, StoreError)
    assert "bytes" in refused.message
    assert kept == [step("small")]


async def settled_connections(database: Any) -> int:
    """How many the server has, once those of clients that were closed before are gone."""
    counts = [-1]
    while len(counts) < 4 or len(set(counts[-4:])) > 1:
        counts.append((await database.command("serverStatus"))["connections"]["current"])
        await asyncio.sleep(0.1)
    return counts[-1]


async def test_no_more_connections_than_the_pool_says(uri: str) -> None:
    for driver in DRIVERS:
        database = MongoDatabase(uri, driver, pool_size=3, batch_size=1, deadline=timedelta(seconds=30))
        store = MongoExecutionStore(database, Codec())
        seen: set[int] = set()
        async with outside(uri) as plain:
            before = await settled_connections(plain)
            work = asyncio.gather(
                *(store.record_steps([step(f"s{number}")], RUN_1) for number in range(150)),
                *(store.list_steps("flow-1") for _ in range(150)),
            )
            while not work.done():
                seen.add((await plain.command("serverStatus"))["connections"]["current"] - before)
            await work
        # One more watches the server.
        assert 3 <= max(seen) <= 4, driver
        await database.aclose()


async def test_nothing_is_left_after_closing(uri: str) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    database = MongoDatabase(uri, "pymongo", deadline=PATIENT)
    store = MongoExecutionStore(database, Codec())
    late = [asyncio.create_task(store.record_steps([step(f"s{number}")], RUN_1)) for number in range(5)]
    await asyncio.sleep(0)
    await database.aclose()
    assert [task.exception() for task in late] == [None] * 5
    await database.aclose()
    with pytest.raises(StoreError, match="was closed here"):
        await store.get_execution("flow-1")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    assert set(threading.enumerate()) <= threads


async def test_making_one_needs_no_loop_and_no_server() -> None:
    await asyncio.to_thread(MongoDatabase, "mongodb://127.0.0.1:1/", "motor")


async def test_the_uri_names_the_database(mongo_server: RunningServer) -> None:
    assert MongoDatabase("mongodb://u:p%40@h:1,[::1]:2/some%20name?w=1").name == "some name"
    assert MongoDatabase("mongodb://u:p%40@h,[::1]/?w=1").address == "h:27017,[::1]:27017"
    assert MongoDatabase("mongodb+srv://u:p@cluster.example").address == "cluster.example"
    assert MongoDatabase("mongodb://h").name == "baton"


@pytest.fixture
async def filled(store: MongoExecutionStore, uri: str) -> AsyncGenerator[Any]:
    """The database with 600 executions, a tenth of them open, and two steps each, of which few were repeated."""
    for start in range(0, 600, 100):
        records = [
            (execution if number % 10 == 0 else ended)(
                f"e{number:03}",
                definition_id="odd" if number % 2 else "even",
                created_at=NOW + seconds(number),
                tags=["all", "third"] if number % 3 == 0 else ["all"],
                usage=Usage(requests=1, cost_usd=0.5),
                handoffs_taken=int(number % 50 == 2),
                handoffs_refused=2 * int(number % 50 in (2, 3)),
            )
            for number in range(start, start + 100)
        ]
        await asyncio.gather(*(store.create_execution(record, None) for record in records))
        steps = [
            [step("a", attempts=2 if number % 50 == 0 else 1, execution_id=f"e{number:03}"), step("b", agent_id="b")]
            for number in range(start, start + 100)
        ]
        await asyncio.gather(*(store.record_steps(given, RUN_1) for given in steps))
    async with outside(uri) as plain:
        yield plain


EXACT: list[dict[str, Any]] = [
    {},
    {"definition_id": "even"},
    {"status": ExecutionStatus.COMPLETED},
    {"definition_id": "odd", "status": ExecutionStatus.COMPLETED},
    {"is_open": True},
    {"tags": ("third",)},
    {"tags": ("all",), "end_time": NOW + seconds(300)},
    {"definition_id": "even", "start_time": NOW + seconds(100), "end_time": NOW + seconds(300)},
    {"is_open": True, "end_time": NOW + seconds(500)},
]


@pytest.mark.parametrize("database", ["pymongo"], indirect=True)
async def test_a_page_looks_at_no_more_than_it_shows(filled: Any) -> None:
    async def plan(query: ExecutionFilter, after: tuple[str, str] | None) -> dict[str, Any]:
        listed = list_query(query, after)
        assert listed is not None
        command = {"filter": listed.filter, "sort": {"position": -1}, "limit": 21, "hint": listed.index}
        return await plan_of(filled, {"find": "executions", **command})

    middle = ((NOW + seconds(290)).isoformat(timespec="microseconds"), "e290")
    for after in (None, middle):
        for given in EXACT:
            seen = await plan(ExecutionFilter(**given), after)
            assert seen["keys"] <= 21, (given, seen)
            assert "SORT" not in seen["stages"], (given, seen)
        for given in ({"tags": ("all", "third")}, {"tags": ("all",), "definition_id": "odd"}, {"is_open": False}):
            seen = await plan(ExecutionFilter(**given), after)
            # What the index does not tell is passed over in order.
            assert seen["keys"] <= 3 * 21, (given, seen)
            assert "SORT" not in seen["stages"], (given, seen)
    assert list_query(ExecutionFilter(is_open=True, status=ExecutionStatus.FAILED), None) is None


@pytest.mark.parametrize("database", ["pymongo"], indirect=True)
async def test_a_page_of_gates_looks_at_no_more_than_it_shows(store: MongoExecutionStore, uri: str) -> None:
    made = [
        gate(
            f"g{number:03}",
            execution_id=f"e{number % 3}",
            definition_id="odd" if number % 2 else "even",
            assignees=["all", *(["third"] if number % 3 == 0 else [])],
            status="answered" if number % 4 == 3 else "open",
            opened_at=NOW + seconds(number),
        )
        for number in range(400)
    ]
    await store.record_transition(transition(1, gates=made))
    async with outside(uri) as plain:
        for after in (None, ((NOW + seconds(100)).isoformat(timespec="microseconds"), "e1\ng100")):
            for given in (
                {},
                {"execution_id": "e0"},
                {"definition_id": "even"},
                {"assignee": "third"},
                {"assignee": "all", "definition_id": "even"},
                {"execution_id": "e0", "definition_id": "odd"},
                {"execution_id": "e0", "assignee": "third"},
            ):
                listed = gates_query(GateFilter(**given), after)
                command = {"filter": listed.filter, "sort": {"position": 1}, "limit": 21, "hint": listed.index}
                seen = await plan_of(plain, {"find": "gates", **command})
                assert "SORT" not in seen["stages"], (given, seen)
                # Of two columns one is passed over in the index.
                assert seen["keys"] <= (21 if len(given) < 2 else 3 * 21), (given, seen)
                assert seen["documents"] <= 21, (given, seen)


@pytest.mark.parametrize("database", ["pymongo"], indirect=True)
async def test_steps_and_metrics_are_read_from_their_indexes(filled: Any, store: MongoExecutionStore) -> None:
    seen = await plan_of(filled, {"find": "executions", "filter": steps_range("e050")})
    assert (seen["keys"], "COLLSCAN" in seen["stages"]) == (1, False)

    start, end = NOW + seconds(100), NOW + seconds(299)
    pipelines = {
        "executions_by_definition": (analytics.workflow_pipeline("even", start, end), 100),
        "repeated_steps": (analytics.repeats_pipeline("even", start, end), 12),
        "executions_with_handoffs": (analytics.handoffs_pipeline("even", start, end), 4),
        "steps_by_agent": (analytics.agent_pipeline("agent-a", NOW, end), 600),
    }
    for index, (pipeline, keys) in pipelines.items():
        command = {"aggregate": "executions", "pipeline": pipeline, "hint": index, "cursor": {}}
        seen = await plan_of(filled, command)
        assert (seen["keys"], seen["documents"]) == (keys, 0), (index, seen)

    found = await store.workflow_aggregates("even", start, end)
    assert (found.count, found.completed, found.retries, found.usage.cost_usd) == (100, 80, 4, 50.0)
    assert (found.handoffs_taken, found.handoffs_refused) == (4, 8)
    assert found.durations == [10.0] * 80


@pytest.mark.parametrize("database", ["pymongo"], indirect=True)
async def test_context_pages_come_from_their_indexes(database: MongoDatabase, uri: str) -> None:
    store = MongoContextStore(database, Codec())
    await store.put_items(
        [
            ContextItem(
                item_id=f"i{number:03}",
                text="t",
                text_hash="h",
                definition_id=f"flow-{number % 2}",
                agent_id=f"agent-{number % 4}",
                execution_id=f"e-{number % 5}",
                created_at=NOW + seconds(number),
            )
            for number in range(600)
        ]
    )
    async with outside(uri) as plain:
        for given in (
            {},
            {"execution_id": "e-1"},
            {"definition_id": "flow-1"},
            {"agent_id": "agent-1"},
            {"definition_id": "flow-1", "agent_id": "agent-1"},
            {"execution_id": "e-1", "definition_id": "flow-1", "agent_id": "agent-1"},
        ):
            chosen, index = items_query(ContextFilter(**given), None)
            command = {"filter": chosen, "sort": {"position": -1}, "limit": 21, "hint": index}
            seen = await plan_of(plain, {"find": "context_items", **command})
            assert seen["documents"] <= 21, (given, seen)
            # Every fourth item of the execution is the agent's; the others are passed over in the index.
            assert seen["keys"] <= (21 if len(given) < 2 else 4 * 21), (given, seen)
            assert "SORT" not in seen["stages"], (given, seen)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_of_two_processes_that_claim_one_gets_each_call(uri: str, driver: str) -> None:
    printed = await run_children(
        """
        async def work(store, who):
            for number in range(40):
                token = 2 * number + int(who)
                claim = step(f"s{number}", token=token + 1, status=StepStatus.RUNNING, reason=who)
                standing = await store.claim_step(claim, NOW)
                if standing.reason == who:
                    done = claim.model_copy(update={"status": StepStatus.COMPLETED})
                    [standing] = await store.record_steps([done], NOW)
                print(standing.step_id, standing.reason, standing.status.value)
        """,
        uri,
        driver,
    )
    database = MongoDatabase(uri, deadline=PATIENT)
    stored = {one.step_id: one for one in await MongoExecutionStore(database, Codec()).list_steps("flow-1")}
    await database.aclose()
    assert len(stored) == 40
    assert all(one.status is StepStatus.COMPLETED for one in stored.values())
    for lines in printed:
        assert len(lines) == 40
        for line in lines:
            step_id, who, status = line.split()
            # Who was told of a completed call was told of the one that stands, or of one with a smaller token.
            assert status in ("running", "completed")
            assert stored[step_id].reason == who or int(who) < int(stored[step_id].reason or "0")


@pytest.mark.parametrize("driver", DRIVERS)
async def test_of_two_processes_that_finalize_the_longer_history_stands(uri: str, driver: str) -> None:
    await run_children(
        """
        async def work(store, who):
            for number in range(40):
                end = ended(f"e{number}", history_length=10 + (number + int(who)) % 2, output=Value.of(who))
                await store.finalize_execution(end, [step(execution_id=end.execution_id, token=1 + int(who))])
        """,
        uri,
        driver,
    )
    database = MongoDatabase(uri, deadline=PATIENT)
    store = MongoExecutionStore(database, Codec())
    for number in range(40):
        record = await store.get_execution(f"e{number}")
        assert record is not None
        assert (record.history_length, record.output) == (11, Value.of(str((number + 1) % 2)))
        assert [one.token for one in await store.list_steps(f"e{number}")] == [2]
    await database.aclose()


def test_the_server_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_TEST_MONGO_URI", "mongodb://elsewhere/")
    assert given_uri() == "mongodb://elsewhere/"
