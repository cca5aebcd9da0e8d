"""Several processes on one embedded database, and what it does when the disk or a file fails it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite import connection
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import LIVE_STATE
from engine.adapters.sqlite.state_store import SqliteStateStore
from engine.domain.execution import (
    Event,
    LiveStep,
    StepStatus,
)
from engine.errors import InvalidInputError, StoreError
from tests.adapters.sqlite_samples import (
    HOUR,
    NOW,
    execution,
    integrity,
    live_head,
    output_of,
    run_child,
    step,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield database
    await database.aclose()


@pytest.fixture
def executions(database: SqliteDatabase) -> SqliteExecutionStore:
    return SqliteExecutionStore(database, Codec())


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
    with pytest.raises(StoreError, match=r"newer version of Baton \(schema 999, this one knows up to \d+\)") as caught:
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
        waiting = [asyncio.create_task(database.write(lambda plain: None)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="was locked by another"):
            await first
        # They queued behind the first and have waited for the same lock; that it is free now is too late for them.
        other.execute("ROLLBACK")
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(error) for error in errors}) == 5
        assert all(isinstance(error, StoreError) and "was locked by another" in error.message for error in errors)
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
