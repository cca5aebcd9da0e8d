"""What the embedded database promises beyond the ports: threads, group commit, several processes, faults."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite import agent_store, analytics, connection, definition_store, execution_rows, handoff_store
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.domain.execution import (
    Event,
    ExecutionRecord,
    ExecutionStatus,
    LiveExecution,
    LiveStep,
    StepRecord,
    StepStatus,
    Value,
)
from engine.errors import EngineError, InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def execution(execution_id: str, **changes: Any) -> ExecutionRecord:
    given: dict[str, Any] = {"status": ExecutionStatus.PENDING, "input": Value.of({"q": execution_id}), **changes}
    return ExecutionRecord(
        execution_id=execution_id,
        definition_id="flow",
        version=1,
        plan_hash="sha256:plan",
        input_hash="sha256:input",
        created_at=NOW,
        **given,
    )


def step(token: int, **changes: Any) -> StepRecord:
    given: dict[str, Any] = {"execution_id": "flow-1", "run_id": "run-1", "status": StepStatus.COMPLETED, **changes}
    return StepRecord(step_id="a", token=token, **given)


def live_head(execution_id: str = "flow-1", token: int = 1) -> LiveExecution:
    return LiveExecution(
        execution_id=execution_id,
        definition_id="flow",
        version=1,
        token=token,
        status=ExecutionStatus.RUNNING,
        step_ids=["a"],
        created_at=NOW,
    )


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield database
    await database.aclose()


@pytest.fixture
def executions(database: SqliteDatabase) -> SqliteExecutionStore:
    return SqliteExecutionStore(database, Codec())


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("baton-sqlite")]


def run_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a program that has the names of this module's header and a store on the file of its first argument."""
    header = """
        import asyncio, os, sys
        from datetime import datetime, timedelta, UTC
        from pathlib import Path
        from engine.adapters.codec import Codec
        from engine.adapters.sqlite.database import SqliteDatabase
        from engine.adapters.sqlite.execution_store import SqliteExecutionStore
        from engine.domain.execution import ExecutionRecord, ExecutionStatus, StepRecord, StepStatus, Value
        from engine.errors import StoreError
        NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
        database = SqliteDatabase(Path(sys.argv[1]))
        store = SqliteExecutionStore(database, Codec())
        def execution(execution_id, text="q"):
            return ExecutionRecord(execution_id=execution_id, definition_id="flow", version=1, plan_hash="p",
                status=ExecutionStatus.PENDING, input=Value.of(text), input_hash="i", created_at=NOW)
        def step(token):
            return StepRecord(execution_id="flow-1", run_id="run-1", step_id="a", token=token,
                              status=StepStatus.COMPLETED)
        """
    program = textwrap.dedent(header) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(child: subprocess.Popen[str]) -> str:
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    return out


def integrity(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as plain:
        return plain.execute("PRAGMA integrity_check").fetchone()[0]


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
    assert set(own_threads()) == before
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
        while set(own_threads()) != before:
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
    for _ in range(5):
        await database.write(lambda plain: None)
    assert (database.commits, database.writes) == (5, 5)


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


# Several processes.


def test_processes_that_open_a_new_file_at_once_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "baton.db"
    children = [
        run_child(
            """
            prefix = sys.argv[2]
            async def main():
                for number in range(50):
                    assert await store.create_execution(execution(f"{prefix}-{number}"), None) is None
                    assert await store.get_execution(f"{prefix}-{number}") is not None
                await database.aclose()
            asyncio.run(main())
            """,
            path,
            prefix,
        )
        for prefix in ("a", "b", "c")
    ]
    for child in children:
        output_of(child)
    with contextlib.closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT count(*) FROM executions").fetchone() == (150,)
    assert integrity(path) == "ok"


async def test_two_databases_on_one_file_see_each_others_writes(
    tmp_path: Path, executions: SqliteExecutionStore
) -> None:
    second_database = SqliteDatabase(tmp_path / "baton.db")
    second = SqliteExecutionStore(second_database, Codec())
    for number in range(20):
        writer, reader = (executions, second) if number % 2 else (second, executions)
        assert await writer.create_execution(execution(f"flow-{number}"), None) is None
        assert await reader.get_execution(f"flow-{number}") is not None
        assert await reader.create_execution(execution(f"flow-{number}"), None) is not None
    await second_database.aclose()


async def test_events_of_another_process_are_noticed(tmp_path: Path) -> None:
    databases = [SqliteDatabase(tmp_path / "live.db", LIVE_STATE) for _ in range(2)]
    reader, writer = (SqliteStateStore(database, Codec(), HOUR) for database in databases)
    waiting = asyncio.create_task(reader.read_events("flow-1", after=None, limit=5, wait=timedelta(seconds=20)))
    await asyncio.sleep(0.02)
    event = Event.at_instant("step.started", NOW)
    await writer.record_transition("flow-1", events=[event])
    async with asyncio.timeout(10):
        events, _ = await waiting
    assert events == [event]
    for database in databases:
        await database.aclose()


@pytest.mark.parametrize("turn", range(5))
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "baton.db"
    child = run_child(
        """
        async def main():
            await store.create_execution(execution("flow-1"), None)
            for token in range(1, 1_000_000):
                await store.record_steps([step(token)], NOW)
                print(token, flush=True)
        asyncio.run(main())
        """,
        path,
    )
    assert child.stdout is not None
    acknowledged = 0
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged >= 10 + 7 * turn:
            break
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate(timeout=30)
    complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    acknowledged = max([acknowledged, *map(int, complete)])
    database = SqliteDatabase(path)
    store = SqliteExecutionStore(database, Codec())
    [stored] = await store.list_steps("flow-1")
    assert stored.token >= acknowledged
    # The fence holds over the crash: an attempt from before it changes nothing.
    assert await store.record_steps([step(1, status=StepStatus.FAILED)], NOW) == [stored]
    await database.aclose()
    assert integrity(path) == "ok"


# Faults.


def test_a_full_disk_is_an_error_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    child = run_child(
        """
        import resource
        async def main():
            await store.create_execution(execution("before"), None)
            limit = 2_000_000
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            written, failures = [], []
            for number in range(40):
                try:
                    await store.create_execution(execution(f"flow-{number}", os.urandom(100_000).hex()), None)
                    written.append(number)
                except StoreError as error:
                    failures.append(error)
            assert failures, "the limit was never reached"
            assert all(sys.argv[1] in error.message for error in failures)
            assert all(error.retryable for error in failures)
            assert await store.get_execution("before") is not None
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert await store.create_execution(execution("after", "x" * 100_000), None) is None
            for number in written:
                assert await store.get_execution(f"flow-{number}") is not None
            await database.aclose()
            print(failures[0].message)
        asyncio.run(main())
        """,
        tmp_path / "baton.db",
    )
    message = output_of(child)
    assert "Check its health, its free space" in message or "Free some space" in message
    assert integrity(tmp_path / "baton.db") == "ok"


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
    failure = connection.Session(tmp_path / "baton.db", LIVE_STATE).recover(error)
    assert isinstance(failure, StoreError)
    assert "no room left" in failure.message
    assert failure.__cause__ is error


@pytest.mark.parametrize("prepared", [False, True])
def test_a_read_only_folder_is_an_error_that_says_what_to_do(prepared: bool) -> None:
    # pytest's own folders are closed to others, and the child must not be root, who may write anywhere.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "baton.db"
        if prepared:
            output_of(run_child('asyncio.run(store.create_execution(execution("flow-1"), None))', path))
        folder.chmod(0o555)
        child = run_child(
            """
            if os.geteuid() == 0:
                os.setuid(65534)
            async def main():
                try:
                    await store.create_execution(execution("flow-2"), None)
                except StoreError as error:
                    print(error.message)
                await database.aclose()
            asyncio.run(main())
            """,
            path,
        )
        message = output_of(child)
        folder.chmod(0o755)
        assert str(path) in message
        assert "writ" in message


async def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    database = SqliteDatabase(tmp_path / "file" / "baton.db")
    with pytest.raises(StoreError, match=r"can't be reached\. Check that its folder exists") as caught:
        await database.write(lambda plain: None)
    assert caught.value.details == {"backend": "sqlite", "reason": "FileExistsError"}
    with pytest.raises(StoreError):
        await database.read(lambda plain: None)
    await database.aclose()


async def test_a_damaged_file_is_an_error_and_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "baton.db"
    path.write_bytes(b"no database at all, " * 1000)
    before = path.read_bytes()
    database = SqliteDatabase(path)
    for call in (database.read, database.write):
        with pytest.raises(StoreError, match=r"is damaged, or no SQLite database\. Restore it from a backup") as caught:
            await call(lambda plain: None)
        assert str(path) in caught.value.message
    await database.aclose()
    assert path.read_bytes() == before


async def test_a_fault_is_over_when_its_cause_is(tmp_path: Path) -> None:
    path = tmp_path / "baton.db"
    path.write_bytes(b"no database at all, " * 1000)
    database = SqliteDatabase(path)
    with pytest.raises(StoreError):
        await database.write(lambda plain: None)
    path.unlink()
    assert await database.write(lambda plain: 1) == 1
    await database.aclose()


@pytest.mark.parametrize("use", ["read", "write"])
async def test_a_damaged_live_state_is_begun_anew(tmp_path: Path, use: str) -> None:
    path = tmp_path / "live.db"
    path.write_bytes(b"no database at all, " * 1000)
    database = SqliteDatabase(path, LIVE_STATE)
    store = SqliteStateStore(database, Codec(), HOUR)
    if use == "read":
        assert await store.get_live_state("flow-1") is None
    await store.record_transition("flow-1", execution=live_head())
    assert await store.get_live_state("flow-1") is not None
    await database.aclose()


async def test_live_state_damaged_in_use_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    database = SqliteDatabase(path, LIVE_STATE)
    store = SqliteStateStore(database, Codec(), HOUR)
    await store.record_transition("flow-1", execution=live_head())

    def damaged(plain: sqlite3.Connection) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise error

    assert await store.get_live_state("flow-1") is not None
    with pytest.raises(StoreError, match="damaged"):
        await database.read(damaged)
    assert await store.get_live_state("flow-1") is None
    await store.record_transition("flow-1", execution=live_head(token=3))
    for _ in range(6):
        state = await store.get_live_state("flow-1")
        assert state is not None
        assert state.execution.token == 3
    await database.aclose()


async def test_a_position_of_a_lost_stream_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    database = SqliteDatabase(path, LIVE_STATE)
    store = SqliteStateStore(database, Codec(), HOUR)
    events = [Event.at_instant("step.started", NOW, str(number)) for number in range(5)]
    await store.record_transition("flow-1", events=events)
    _, position = await store.read_events("flow-1", after=None, limit=9, wait=timedelta(0))
    path.unlink()
    await store.record_transition("flow-1", events=events[:2])
    found, _ = await store.read_events("flow-1", after=position, limit=9, wait=timedelta(0))
    assert found == events[:2]
    await database.aclose()


async def test_a_file_replaced_in_use_is_opened_anew(
    tmp_path: Path, database: SqliteDatabase, executions: SqliteExecutionStore
) -> None:
    await executions.create_execution(execution("flow-1"), None)
    assert await executions.get_execution("flow-1") is not None
    for path in tmp_path.iterdir():
        path.unlink()
    await executions.create_execution(execution("flow-2"), None)
    assert await executions.get_execution("flow-1") is None
    with contextlib.closing(sqlite3.connect(tmp_path / "baton.db")) as plain:
        assert plain.execute("SELECT execution_id FROM executions").fetchall() == [("flow-2",)]


@pytest.mark.parametrize("schema_name", ["records", "live"])
async def test_a_file_of_a_newer_baton_is_refused_and_left_alone(tmp_path: Path, schema_name: str) -> None:
    path = tmp_path / "baton.db"
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA user_version = 999")
    database = SqliteDatabase(path, LIVE_STATE) if schema_name == "live" else SqliteDatabase(path)
    with pytest.raises(StoreError, match=r"newer version of Baton \(schema 999, this one knows up to 1\)") as caught:
        await database.write(lambda plain: None)
    assert "Upgrade" in caught.value.message
    await database.aclose()
    with contextlib.closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT name FROM sqlite_master").fetchall() == []


async def test_a_lock_that_lasts_is_an_error_for_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOCK_WAIT", timedelta(milliseconds=200))
    database = SqliteDatabase(tmp_path / "baton.db")
    await database.write(lambda plain: plain.execute("CREATE TABLE notes (n)"))
    with contextlib.closing(sqlite3.connect(tmp_path / "baton.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(database.write(lambda plain: None))
        await asyncio.sleep(0.05)
        waiting = [database.write(lambda plain: None) for _ in range(5)]
        errors = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert len({id(error) for error in errors}) == 6
        assert all(isinstance(error, StoreError) and "was locked by another" in error.message for error in errors)
        assert await database.read(lambda plain: plain.execute("SELECT count(*) FROM notes").fetchone()[0]) == 0
        other.execute("ROLLBACK")
    assert await database.write(lambda plain: 1) == 1
    await database.aclose()


def test_nobody_waits_longer_than_five_seconds() -> None:
    assert timedelta(seconds=5) >= connection.LOCK_WAIT


async def test_half_a_surrogate_pair_is_refused(executions: SqliteExecutionStore) -> None:
    for call in (executions.get_execution("\ud800"), executions.create_execution(execution("\ud800"), None)):
        with pytest.raises(InvalidInputError):
            await call


async def test_a_damaged_record_is_a_store_error_without_its_content(
    database: SqliteDatabase, executions: SqliteExecutionStore
) -> None:
    await executions.create_execution(execution("flow-1"), None)
    body = Codec().encode({"execution_id": "flow-1", "secret": "hunter2", "status": "hunter2"})
    for damaged in (body, body[:-3], b"", b"\xff\xff"):
        await database.write(lambda plain, d=damaged: plain.execute("UPDATE executions SET body = ?", (d,)) and None)
        with pytest.raises(StoreError) as caught:
            await executions.get_execution("flow-1")
        assert "hunter2" not in caught.value.message + repr(caught.value.details)


async def test_damaged_and_lost_chunks_are_found(database: SqliteDatabase) -> None:
    store = SqliteArtifactStore(database, Codec())
    artifact_id, _ = await store.put_artifact(["x"])
    change = "UPDATE artifact_chunks SET body = x'10a178'"
    await database.write(lambda plain: plain.execute(change) and None)
    with pytest.raises(StoreError, match="is damaged"):
        await store.get_artifact(artifact_id)
    await database.write(lambda plain: plain.execute("DELETE FROM artifact_chunks") and None)
    with pytest.raises(StoreError, match="is lost"):
        await store.get_artifact(artifact_id)


async def test_writers_with_other_settings_share_an_artifact(database: SqliteDatabase) -> None:
    value = ["x" * 10_000]
    stores = [SqliteArtifactStore(database, Codec(100, kind)) for kind in ("zstd", "gzip")]
    answers = [await store.put_artifact(value) for store in stores]
    assert answers[0] == answers[1]
    for store in stores:
        assert await store.get_artifact(answers[0][0]) == value


async def test_expired_live_state_is_cleared_away(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "live.db", LIVE_STATE)
    fleeting = SqliteStateStore(database, Codec(), timedelta(milliseconds=1))
    for number in range(15):
        step_entry = LiveStep(step_id="a", token=1, status=StepStatus.RUNNING)
        event = Event.at_instant("step.started", NOW)
        await fleeting.record_transition(f"old-{number}", execution=live_head(), steps=[step_entry], events=[event])
    await asyncio.sleep(0.01)
    lasting = SqliteStateStore(database, Codec(), HOUR)
    await lasting.record_transition("new", execution=live_head("new"))

    def rows(plain: sqlite3.Connection) -> list[int]:
        counts = ("SELECT count(*) FROM live", "SELECT count(*) FROM live_steps", "SELECT count(*) FROM events")
        return [plain.execute(count).fetchone()[0] for count in counts]

    assert await database.read(rows) == [1, 0, 0]
    await database.aclose()


# Plans and formats.

STATEMENTS = [
    *definition_store.LIST_STATEMENTS,
    *agent_store.LIST_STATEMENTS,
    *handoff_store.LIST_STATEMENTS,
    *execution_rows.LIST_STATEMENTS,
    *analytics.AGGREGATE_STATEMENTS,
]


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
async def test_lists_and_metrics_use_an_index_in_its_order(database: SqliteDatabase, number: int) -> None:
    statement = STATEMENTS[number]
    values = tuple(str(n) for n in range(statement.count("?")))
    explain = f"EXPLAIN QUERY PLAN {statement}"
    plan = await database.read(lambda plain: [row[3] for row in plain.execute(explain, values)])
    assert plan
    for line in plan:
        assert line.startswith("SEARCH"), plan
        assert "TEMP B-TREE" not in line, plan
    if statement in analytics.AGGREGATE_STATEMENTS:
        assert all("COVERING INDEX" in line for line in plan), plan


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
    assert Codec().decode(stored[0]) == Codec().decode(body)


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
