"""What the embedded database promises beyond the ports: threads, group commit, plans, its stored format."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import threading
from typing import TYPE_CHECKING

import pytest

from engine.adapters.codec import Codec
from engine.adapters.packing import instant_text
from engine.adapters.sqlite import (
    agent_graph,
    agent_store,
    analytics,
    context_store,
    definition_store,
    execution_rows,
    gate_rows,
    handoff_store,
)
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import RECORDS, TENANT, Schema
from engine.domain.execution import (
    Value,
)
from engine.errors import EngineError, StoreError
from engine.ports.execution_store import Aggregates
from tests.adapters.sqlite_samples import (
    NOW,
    execution,
    integrity,
    output_of,
    own_threads,
    run_child,
    step,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield database
    await database.aclose()


@pytest.fixture
def executions(database: SqliteDatabase) -> SqliteExecutionStore:
    return SqliteExecutionStore(database, Codec())


# Threads and event loops.


async def test_making_a_database_touches_nothing(tmp_path: Path) -> None:
    before = own_threads()
    database = SqliteDatabase(tmp_path / "below" / "baton.db")
    assert not (tmp_path / "below").exists()
    assert own_threads() == before
    await database.aclose()
    assert not (tmp_path / "below").exists()


async def test_closing_ends_the_threads_and_is_idempotent(tmp_path: Path) -> None:
    before = set(own_threads())
    database = SqliteDatabase(tmp_path / "baton.db")
    store = SqliteExecutionStore(database, Codec())
    await store.create_execution(execution("flow-1"), None)
    assert await store.get_execution("flow-1") is not None
    assert set(own_threads()) > before
    await asyncio.gather(database.aclose(), database.aclose())
    await database.aclose()
    assert set(own_threads()) <= before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baton.db"]
    with pytest.raises(StoreError, match=r"closed by this process; make a new engine"):
        await store.get_execution("flow-1")


async def test_closing_finishes_what_is_queued(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "baton.db")
    store = SqliteExecutionStore(database, Codec())
    writes = [asyncio.create_task(store.create_execution(execution(f"flow-{n}"), None)) for n in range(300)]
    await asyncio.sleep(0)
    await database.aclose()
    assert await asyncio.gather(*writes) == [None] * 300


async def test_a_forgotten_database_ends_its_threads(tmp_path: Path) -> None:
    before = set(own_threads())

    async def forget() -> None:
        await SqliteDatabase(tmp_path / "baton.db").read(lambda plain: None)

    await forget()
    gc.collect()
    async with asyncio.timeout(10):
        while set(own_threads()) - before:
            await asyncio.sleep(0.01)


def test_one_database_serves_loops_one_after_another_and_at_once(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "baton.db")
    store = SqliteExecutionStore(database, Codec())
    asyncio.run(store.create_execution(execution("first"), None))

    async def many(prefix: str) -> None:
        await asyncio.gather(*(store.create_execution(execution(f"{prefix}-{n}"), None) for n in range(50)))

    threads = [threading.Thread(target=lambda p=prefix: asyncio.run(many(p))) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        total = await database.read(lambda plain: plain.execute("SELECT count(*) FROM executions").fetchone()[0])
        await database.aclose()
        return total

    assert asyncio.run(count()) == 151


def test_an_interpreter_that_never_closes_exits(tmp_path: Path) -> None:
    child = run_child(
        """
        asyncio.run(store.create_execution(execution("flow-1"), None))
        print("done")
        """,
        tmp_path / "baton.db",
    )
    assert output_of(child) == "done\n"
    assert integrity(tmp_path / "baton.db") == "ok"


def test_a_loop_closed_under_a_write_leaves_the_database_usable(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "baton.db")
    entered, release = threading.Event(), threading.Event()

    def slow(plain: sqlite3.Connection) -> None:
        entered.set()
        release.wait(30)

    async def abandon() -> None:
        task = asyncio.create_task(database.write(slow))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()

    asyncio.run(abandon())
    release.set()

    async def go_on() -> None:
        assert await database.write(lambda plain: 7) == 7
        await database.aclose()

    asyncio.run(go_on())


# Group commit.


async def test_concurrent_writes_share_commits(database: SqliteDatabase, executions: SqliteExecutionStore) -> None:
    await executions.create_execution(execution("flow-1"), None)
    writes, commits = database.writes, database.commits
    answers = await asyncio.gather(*(executions.record_steps([step(n + 1)], NOW) for n in range(200)))
    assert len(answers) == 200
    assert database.writes - writes == 200
    assert database.commits - commits <= 100


async def test_writes_of_one_caller_are_a_commit_each(database: SqliteDatabase) -> None:
    for _ in range(50):
        await database.write(lambda plain: None)
    assert (database.commits, database.writes) == (50, 50)


async def test_where_writes_crowd_those_of_different_moments_share_a_commit(database: SqliteDatabase) -> None:
    for _ in range(20):
        await asyncio.gather(*(database.write(lambda plain: None) for _ in range(20)))
        commits = database.commits
        first = asyncio.create_task(database.write(lambda plain: None))
        await asyncio.sleep(0.002)
        await database.write(lambda plain: None)
        await first
        if database.commits - commits == 1:
            return
    pytest.fail("no write has waited for another")


async def test_a_failing_write_undoes_only_itself(database: SqliteDatabase) -> None:
    await database.write(lambda plain: plain.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)"))
    gate = threading.Event()

    def hold(plain: sqlite3.Connection) -> None:
        gate.wait(30)

    def insert(number: int) -> Callable[[sqlite3.Connection], int]:
        def work(plain: sqlite3.Connection) -> int:
            plain.execute("INSERT INTO notes VALUES (?)", (number,))
            if number % 10 == 3:
                raise ZeroDivisionError(number)
            return number

        return work

    holding = asyncio.create_task(database.write(hold))
    writes = [asyncio.create_task(database.write(insert(n))) for n in range(50)]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    await holding
    for number, answer in enumerate(answers):
        if number % 10 == 3:
            assert isinstance(answer, ZeroDivisionError)
        else:
            assert answer == number
    stored = await database.read(lambda plain: [n for (n,) in plain.execute("SELECT n FROM notes")])
    assert stored == [n for n in range(50) if n % 10 != 3]


async def test_a_constraint_violated_is_a_store_error_that_undoes_only_itself(database: SqliteDatabase) -> None:
    await database.write(lambda plain: plain.execute("CREATE TABLE notes (n INTEGER PRIMARY KEY)"))

    def insert(number: int) -> Callable[[sqlite3.Connection], None]:
        return lambda plain: plain.execute("INSERT INTO notes VALUES (?)", (number,)) and None

    answers = await asyncio.gather(*(database.write(insert(n)) for n in (1, 2, 1, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), type(None), StoreError, type(None)]
    assert isinstance(answers[2], StoreError)
    assert answers[2].details["reason"] == "SQLITE_CONSTRAINT_PRIMARYKEY"


async def test_reads_do_not_wait_for_a_write(database: SqliteDatabase) -> None:
    await database.write(lambda plain: plain.execute("CREATE TABLE notes (n)"))
    gate = threading.Event()

    def hold(plain: sqlite3.Connection) -> None:
        plain.execute("INSERT INTO notes VALUES (1)")
        gate.wait(30)

    holding = asyncio.create_task(database.write(hold))
    count = "SELECT count(*) FROM notes"
    try:
        async with asyncio.timeout(10):
            assert await database.read(lambda plain: plain.execute(count).fetchone()[0]) == 0
    finally:
        gate.set()
    await holding
    assert await database.read(lambda plain: plain.execute(count).fetchone()[0]) == 1


async def test_cancelled_calls_never_mix_up_answers(executions: SqliteExecutionStore) -> None:
    ids = [f"flow-{number}" for number in range(20)]
    for execution_id in ids:
        await executions.create_execution(execution(execution_id), None)
    order = random.Random(7)
    answered = 0

    async def ask(execution_id: str, token: int) -> None:
        nonlocal answered
        record = await executions.get_execution(execution_id)
        assert record is not None
        assert record.input == Value.of({"q": execution_id})
        [written] = await executions.record_steps([step(token, execution_id=execution_id)], NOW)
        assert (written.execution_id, written.token >= token) == (execution_id, True)
        answered += 1

    for turn in range(100):
        calls = [asyncio.create_task(ask(order.choice(ids), turn * 100 + n)) for n in range(30)]
        for _ in range(order.randrange(4)):
            await asyncio.sleep(0)
        for call in order.sample(calls, 15):
            call.cancel()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    assert answered >= 1500


# Plans and formats.

STATEMENTS = [
    *definition_store.LIST_STATEMENTS,
    *agent_store.LIST_STATEMENTS,
    *handoff_store.LIST_STATEMENTS,
    *agent_graph.LIST_STATEMENTS,
    *context_store.LIST_STATEMENTS,
    *execution_rows.LIST_STATEMENTS,
    *gate_rows.LIST_STATEMENTS,
    *analytics.AGGREGATE_STATEMENTS,
]


def parameter_count(statement: str) -> int:
    """As SQLite counts: a ``?`` is one more than the greatest before, and ``?6`` is the sixth wherever it stands."""
    greatest = 0
    for number in re.findall(r"\?(\d*)", statement):
        greatest = max(greatest, int(number)) if number else greatest + 1
    return greatest


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
async def test_lists_and_metrics_use_an_index_in_its_order(database: SqliteDatabase, number: int) -> None:
    statement = STATEMENTS[number]
    explain = f"EXPLAIN QUERY PLAN {statement}"
    values = tuple(str(n) for n in range(parameter_count(statement)))
    plan = await database.read(lambda plain: [row[3] for row in plain.execute(explain, values)])
    assert plan
    for line in plan:
        assert line.startswith("SEARCH"), plan
        assert "TEMP B-TREE" not in line, plan
    if statement in analytics.AGGREGATE_STATEMENTS:
        assert all("COVERING INDEX" in line for line in plan), plan


async def test_executions_of_an_older_file_are_measured_with_the_new_ones(tmp_path: Path) -> None:
    older = SqliteDatabase(tmp_path / "baton.db", Schema(RECORDS.migrations[:5]))
    before = execution("flow-0").model_dump(mode="json", exclude={"handoffs_taken", "handoffs_refused"})
    row = (TENANT, "flow-0", "flow", "failed", instant_text(NOW), 0, 0, 0, 0, 0, 0, 0, Codec().encode(before))
    await older.write(
        lambda plain: (
            plain.execute(
                """INSERT INTO executions (tenant, execution_id, definition_id, status, created_at, history_length,
                   retries, fallbacks, requests, input_tokens, output_tokens, tool_calls, body)
                   VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)""",
                row,
            )
            and None
        )
    )
    await older.aclose()

    database = SqliteDatabase(tmp_path / "baton.db")
    store = SqliteExecutionStore(database, Codec())
    assert await store.workflow_aggregates("flow", NOW, NOW) == Aggregates(count=1, failed=1)
    ended = execution("flow-1").model_copy(update={"handoffs_taken": 2, "handoffs_refused": 1})
    await store.finalize_execution(ended, [])
    found = await store.workflow_aggregates("flow", NOW, NOW)
    assert (found.count, found.handoffs_taken, found.handoffs_refused) == (2, 2, 1)
    await store.finalize_execution(execution("flow-0").model_copy(update={"handoffs_refused": 4}), [])
    found = await store.workflow_aggregates("flow", NOW, NOW)
    assert (found.count, found.handoffs_taken, found.handoffs_refused) == (2, 2, 5)
    await database.aclose()
    assert integrity(tmp_path / "baton.db") == "ok"


async def test_bounds_and_position_are_both_in_the_index(database: SqliteDatabase) -> None:
    for statement in execution_rows.LIST_STATEMENTS[:4]:
        explain = f"EXPLAIN QUERY PLAN {statement}"
        values = tuple(str(n) for n in range(statement.count("?")))
        [line] = await database.read(lambda plain, e=explain, v=values: [r[3] for r in plain.execute(e, v)])
        assert "created_at>" in line, line
        assert "(created_at,execution_id)<(" in line or "created_at<" in line, line


async def test_the_stored_format_is_the_one_of_the_first_release(
    database: SqliteDatabase, executions: SqliteExecutionStore
) -> None:
    """A row as schema 1 and format 1 wrote it. If this fails, stored data of users can't be read any more."""
    body = bytes.fromhex(GOLDEN_STEP)
    row = ("default", "flow-1", "run-1", "a", -1, 1, 100, "completed", 0, 0, 0, 0, 0, 0, body)
    await database.write(
        lambda plain: (
            plain.execute(
                """INSERT INTO steps (tenant, execution_id, run_id, step_id, item, n, token, status, retries, fallback,
               requests, input_tokens, output_tokens, tool_calls, body) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)""",
                row,
            )
            and None
        )
    )
    golden = step(100, agent_id="agent-a", output=Value.of({"answer": 42}), started_at=NOW, attempts=1)
    assert await executions.list_steps("flow-1") == [golden]
    await executions.record_steps([golden], NOW)
    [stored] = await database.read(lambda plain: plain.execute("SELECT body FROM steps").fetchall())
    then, now = Codec().decode(body), Codec().decode(stored[0])
    # Fields may be added; those of the first release keep their names and forms.
    assert {key: now[key] for key in then} == then


GOLDEN_STEP = (
    "10de0013ac657865637574696f6e5f6964a6666c6f772d31a672756e5f6964a572756e2d31a7737465705f6964a161a46974656dc0a1"
    "6e01a5746f6b656e64a6737461747573a9636f6d706c65746564a86167656e745f6964a76167656e742d61ad6167656e745f76657273"
    "696f6ec0a8617474656d70747301a5696e707574c0a66f757470757482a6696e6c696e6581a6616e737765722aa3726566c0a5657272"
    "6f72c0a6726561736f6ec0aa737461727465645f6174b4323032362d30332d30315431323a30303a30305aac636f6d706c657465645f"
    "6174c0a5757361676585a8726571756573747300ac696e7075745f746f6b656e7300ad6f75747075745f746f6b656e7300aa746f6f6c"
    "5f63616c6c7300a8636f73745f757364c0a66576656e747390a87761726e696e677390"
)


async def test_health_fails_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "baton.db").mkdir()
    database = SqliteDatabase(tmp_path / "baton.db")
    with pytest.raises(EngineError):
        await SqliteExecutionStore(database, Codec()).check_health()
    await database.aclose()


async def test_a_commit_is_synced(database: SqliteDatabase) -> None:
    modes = ("PRAGMA journal_mode", "PRAGMA synchronous")
    assert await database.read(lambda plain: [plain.execute(mode).fetchone()[0] for mode in modes]) == ["wal", 2]
