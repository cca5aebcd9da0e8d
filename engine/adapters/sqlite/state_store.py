"""Live state and the stream of progress events in a file of its own that is never synced and may be lost.

An execution's head, steps and events expire together, each write giving them their full time again; writers clear
away a few expired ones now and then. Readers of the stream are woken by writers of their own process and look for
those of others every 50 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import pack, unpack
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.schema import TENANT
from engine.domain.execution import Event, LiveExecution, LiveState, LiveStep

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.ports.health import StoreHealth

__all__ = ["MAX_EVENTS", "SqliteStateStore"]

MAX_EVENTS: Final = 1000
"""Events kept of an execution; up to a tenth more until they are trimmed."""

_POLL: Final = timedelta(milliseconds=50)
_PURGE_EVERY_WRITES: Final = 100
_PURGE_EXECUTIONS: Final = 20

_GET_LIFE = "SELECT expires_at, event_count FROM live WHERE tenant = ? AND execution_id = ?"
_PUT_HEAD = """INSERT INTO live (tenant, execution_id, expires_at, event_count, token, head) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, execution_id) DO UPDATE SET
        expires_at = excluded.expires_at, event_count = excluded.event_count,
        head = CASE WHEN excluded.token >= coalesce(token, excluded.token) THEN excluded.head ELSE head END,
        token = CASE WHEN excluded.token >= coalesce(token, excluded.token) THEN excluded.token ELSE token END"""
_PUT_STEP = """INSERT INTO live_steps (tenant, execution_id, step_id, token, body) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (tenant, execution_id, step_id) DO UPDATE SET token = excluded.token, body = excluded.body
    WHERE excluded.token >= token"""
_ADD_EVENT = "INSERT INTO events (tenant, execution_id, body) VALUES (?, ?, ?)"
_TRIM_EVENTS = """DELETE FROM events WHERE tenant = ?1 AND execution_id = ?2 AND position <=
    (SELECT position FROM events WHERE tenant = ?1 AND execution_id = ?2
     ORDER BY position DESC LIMIT 1 OFFSET ?3)"""
_GET_HEAD = """SELECT head FROM live
    WHERE tenant = ? AND execution_id = ? AND expires_at > ? AND head IS NOT NULL"""
_GET_STEPS = "SELECT body FROM live_steps WHERE tenant = ? AND execution_id = ?"
_GET_EVENTS = """SELECT e.position, e.body FROM live AS l
    CROSS JOIN events AS e ON e.tenant = l.tenant AND e.execution_id = l.execution_id
    WHERE l.tenant = ? AND l.execution_id = ? AND l.expires_at > ? AND e.position > ?
    ORDER BY e.position LIMIT ?"""
_EPOCH = "SELECT epoch FROM stream"
_EXPIRED = "SELECT execution_id FROM live WHERE tenant = ? AND expires_at <= ? LIMIT ?"
_DROP = (
    "DELETE FROM live WHERE tenant = ? AND execution_id = ?",
    "DELETE FROM live_steps WHERE tenant = ? AND execution_id = ?",
    "DELETE FROM events WHERE tenant = ? AND execution_id = ?",
)


class SqliteStateStore:
    """A ``StateStore`` on an embedded database of schema ``LIVE_STATE``, which it does not own.

    Args:
        database: the file; nothing else lies in it.
        codec: packs the entries.
        ttl: how long an execution's live state lasts after its last write.
    """

    def __init__(self, database: SqliteDatabase, codec: Codec, ttl: timedelta) -> None:
        self._database = database
        self._codec = codec
        self._ttl = ttl
        self._writes = 0
        self._lock = threading.Lock()
        self._readers: dict[str, set[_Wake]] = {}

    async def record_transition(
        self,
        execution_id: str,
        *,
        execution: LiveExecution | None = None,
        steps: list[LiveStep] | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Write what changed in one transaction: the head, step entries, events appended to the stream."""
        head = (None, None) if execution is None else (execution.token, pack(self._codec, execution))
        entries = [(step.step_id, step.token, pack(self._codec, step)) for step in steps or ()]
        lines = [pack(self._codec, event) for event in events or ()]
        now = time.time()
        expires_at = now + self._ttl.total_seconds()
        purge = self._writes % _PURGE_EVERY_WRITES == 0
        self._writes += 1

        def transition(connection: sqlite3.Connection) -> None:
            if purge:
                _purge_some(connection, now)
            count = _event_count(connection, execution_id, now) + len(lines)
            trim = count > MAX_EVENTS + MAX_EVENTS // 10
            kept = MAX_EVENTS if trim else count
            connection.execute(_PUT_HEAD, (TENANT, execution_id, expires_at, kept, *head))
            for entry in entries:
                connection.execute(_PUT_STEP, (TENANT, execution_id, *entry))
            for line in lines:
                connection.execute(_ADD_EVENT, (TENANT, execution_id, line))
            if trim:
                connection.execute(_TRIM_EVENTS, (TENANT, execution_id, MAX_EVENTS))

        await self._database.write(transition)
        if lines:
            self._wake_readers(execution_id)

    async def get_live_state(self, execution_id: str) -> LiveState | None:
        """Return the state, or None when the head is not there."""
        return (await self.get_live_states([execution_id])).get(execution_id)

    async def get_live_states(self, execution_ids: list[str]) -> dict[str, LiveState]:
        """Return the states that are there, by id."""
        now = time.time()

        def get(connection: sqlite3.Connection) -> dict[str, LiveState]:
            states: dict[str, LiveState] = {}
            for execution_id in execution_ids:
                key = (TENANT, execution_id)
                row = cast("tuple[bytes] | None", connection.execute(_GET_HEAD, (*key, now)).fetchone())
                if row is None:
                    continue
                bodies = cast("list[tuple[bytes]]", connection.execute(_GET_STEPS, key).fetchall())
                steps = [unpack(self._codec, LiveStep, body) for (body,) in bodies]
                states[execution_id] = LiveState(
                    execution=unpack(self._codec, LiveExecution, row[0]), steps={step.step_id: step for step in steps}
                )
            return states

        return await self._database.read(get)

    async def read_events(
        self, execution_id: str, *, after: str | None, limit: int, wait: timedelta
    ) -> tuple[list[Event], str | None]:
        """Return events behind ``after`` with the position of the last one, waiting up to ``wait`` for one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        with self._woken(execution_id) as wake:
            while True:
                wake.event.clear()
                events, position = await self._read_events(execution_id, after, limit)
                remaining = deadline - loop.time()
                if events or remaining <= 0:
                    return events, position
                # Running out of time here is how writes of other processes are noticed: by the next look.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining, _POLL.total_seconds())):
                        await wake.event.wait()

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    async def _read_events(self, execution_id: str, after: str | None, limit: int) -> tuple[list[Event], str | None]:
        now = time.time()

        def read(connection: sqlite3.Connection) -> tuple[list[Event], str | None]:
            (epoch,) = cast("tuple[str]", connection.execute(_EPOCH).fetchone())
            behind = _place(after, epoch)
            found = connection.execute(_GET_EVENTS, (TENANT, execution_id, now, behind, limit)).fetchall()
            rows = cast("list[tuple[int, bytes]]", found)
            events = [unpack(self._codec, Event, body) for _, body in rows]
            return events, f"{rows[-1][0]}-{epoch}" if rows else after

        return await self._database.read(read)

    @contextlib.contextmanager
    def _woken(self, execution_id: str) -> Generator[_Wake]:
        wake = _Wake()
        with self._lock:
            self._readers.setdefault(execution_id, set()).add(wake)
        try:
            yield wake
        finally:
            with self._lock:
                readers = self._readers[execution_id]
                readers.discard(wake)
                if not readers:
                    del self._readers[execution_id]

    def _wake_readers(self, execution_id: str) -> None:
        with self._lock:
            wakes = list(self._readers.get(execution_id, ()))
        for wake in wakes:
            # A reader whose loop was closed meanwhile waits for nothing.
            with contextlib.suppress(RuntimeError):
                wake.loop.call_soon_threadsafe(wake.event.set)


class _Wake:
    """A waiting reader; it may live on another event loop than the writer."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()


def _place(position: str | None, epoch: str) -> int:
    """Return the place behind which to read: the start for a position of a lost file, or no position at all."""
    number, _, of_epoch = (position or "").partition("-")
    is_known = of_epoch == epoch and number.isascii() and number.isdecimal() and len(number) < 19
    return int(number) if is_known else 0


def _event_count(connection: sqlite3.Connection, execution_id: str, now: float) -> int:
    """Return how many events the execution has, once nothing of an expired one is left."""
    key = (TENANT, execution_id)
    row = cast("tuple[float, int] | None", connection.execute(_GET_LIFE, key).fetchone())
    if row is None:
        return 0
    expires_at, count = row
    if expires_at > now:
        return count
    _drop(connection, execution_id)
    return 0


def _purge_some(connection: sqlite3.Connection, now: float) -> None:
    expired = connection.execute(_EXPIRED, (TENANT, now, _PURGE_EXECUTIONS)).fetchall()
    for (execution_id,) in cast("list[tuple[str]]", expired):
        _drop(connection, execution_id)


def _drop(connection: sqlite3.Connection, execution_id: str) -> None:
    for statement in _DROP:
        connection.execute(statement, (TENANT, execution_id))
