"""One file, one writer thread with group commit, two readers: SQLite used from asyncio without blocking it.

The writer runs all that has queued while the last transaction was being synced in one next transaction. When one
of those writes fails, the transaction is rolled back and each is run again in its own, so that one's failure is
nobody else's; hence a unit of work may run more than once and must have no effect but on the database. Answers
are handed out only after the commit.

Where writes crowd, the writer lets a few more come before it begins: a transaction of ten costs little more than one
of a single write, because most of it is threads that wait for each other. Writes that come one by one never wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

from engine.adapters.sqlite.connection import Session, is_busy
from engine.adapters.sqlite.schema import RECORDS, Schema
from engine.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["SqliteDatabase"]

T = TypeVar("T")

_READERS = 2
_MAX_BATCH = 256
_CROWD: Final = 16
_CROWD_SECONDS: Final = 0.1
"""As many writes within as long are a crowd, when at least two of them came at once."""
_GATHER_SECONDS: Final = 0.008


@dataclass(slots=True, eq=False)
class _Job:
    """A unit of work, and where its answer goes; without work it ends its thread."""

    work: Callable[[sqlite3.Connection], object] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[object]
    result: object = None
    error: Exception | None = None


_Queue: TypeAlias = "queue.SimpleQueue[_Job | None]"
"""Jobs in order; None ends the thread when nobody is left to be told."""


@dataclass(slots=True)
class _Counts:
    commits: int = 0
    writes: int = 0


class SqliteDatabase:
    """A database file, shared by the stores on it; whoever made it closes it.

    Making one touches nothing: threads and file come with the first call. It serves any number of event loops, and
    other processes may use the same file. One that is never closed ends its threads when it is collected or the
    interpreter exits.

    Args:
        path: the file; its folder is made when missing, readable for its owner only.
        schema: what the file holds: ``RECORDS`` (synced) or ``LIVE_STATE`` (may be lost).
    """

    def __init__(self, path: Path, schema: Schema = RECORDS) -> None:
        self._path = path
        self._schema = schema
        self._counts = _Counts()
        self._writes: _Queue = queue.SimpleQueue()
        self._reads: _Queue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def commits(self) -> int:
        """Transactions committed by this object so far."""
        return self._counts.commits

    @property
    def writes(self) -> int:
        """Writes acknowledged by this object so far; with group commit more than ``commits``."""
        return self._counts.writes

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a transaction on the writer's thread; return its result once committed.

        ``work`` may run more than once. A caller cancelled while it waits may or may not have written.

        Raises:
            StoreError: the file can't be written, is locked for too long, damaged, too new, or closed here.
        """
        return cast("T", await self._ask(self._writes, work))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on a reader's thread, on one snapshot that has every write acknowledged before.

        Raises:
            StoreError: the file can't be read, is damaged, too new, or closed here.
        """
        return cast("T", await self._ask(self._reads, work))

    async def aclose(self) -> None:
        """Finish what is queued, close the connections and end the threads. Closing again does nothing."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        if not threads:
            return
        loop = asyncio.get_running_loop()
        *readers, writer = (_Job(None, loop, loop.create_future()) for _ in threads)
        for end in readers:
            self._reads.put(end)
        try:
            for end in readers:
                await end.future
        finally:
            # The writer's connection goes last: SQLite folds its log into the file when the last one closes, and
            # none does when all close at once.
            self._writes.put(writer)
        await writer.future
        for thread in threads:
            # Each has said that it is at its end, so this waits for nothing.
            thread.join()

    async def _ask(self, inbox: _Queue, work: Callable[[sqlite3.Connection], object]) -> object:
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        with self._lock:
            if self._closed:
                raise StoreError(
                    f"The database {self._path} has been closed by this process; make a new engine to go on.",
                    {"backend": "sqlite", "reason": "closed"},
                )
            if not self._threads:
                self._start()
            inbox.put(job)
        return await job.future

    def _start(self) -> None:
        # The threads know the queues but not this object, so that it can be collected while they wait.
        writer = _Writer(self._writes, Session(self._path, self._schema), self._counts)
        scans = not self._schema.disposable
        readers = [_Reader(self._reads, Session(self._path, self._schema, scans=scans)) for _ in range(_READERS)]
        for number, target in enumerate((writer.run, *(reader.run for reader in readers))):
            name = f"baton-sqlite-{'reader' if number else 'writer'}"
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        weakref.finalize(self, _end_threads, self._writes, self._reads)


def _end_threads(writes: _Queue, reads: _Queue) -> None:
    for inbox in (writes, *[reads] * _READERS):
        inbox.put(None)


@dataclass(slots=True)
class _Writer:
    """Runs writes, as many in a transaction as have queued."""

    inbox: _Queue
    session: Session
    counts: _Counts
    ends: list[_Job | None] = field(default_factory=list["_Job | None"])
    latest: deque[float] = field(default_factory=lambda: deque((float("-inf"),) * _CROWD, _CROWD))
    """When each of the last writes ended; those of one transaction ended together."""

    def run(self) -> None:
        """Serve the queue until its end."""
        while not self.ends:
            first = self.inbox.get()
            if self._is_crowded():
                time.sleep(_GATHER_SECONDS)
            jobs = self._take(first)
            if jobs:
                _deliver(self._commit(jobs))
                self.latest.extend((time.monotonic(),) * len(jobs))
            del first, jobs
        self.session.close()
        _deliver([end for end in self.ends if end is not None])

    def _is_crowded(self) -> bool:
        return time.monotonic() - self.latest[0] < _CROWD_SECONDS and len(set(self.latest)) < _CROWD

    def _take(self, first: _Job | None) -> list[_Job]:
        """Return ``first`` and what waits behind it, without callers that are gone; keep an end for later."""
        jobs: list[_Job] = []
        job = first
        while True:
            if job is None or job.work is None:
                self.ends.append(job)
            elif not job.future.cancelled():
                jobs.append(job)
            if len(jobs) >= _MAX_BATCH:
                return jobs
            try:
                job = self.inbox.get_nowait()
            except queue.Empty:
                return jobs

    def _commit(self, jobs: list[_Job]) -> list[_Job]:
        """Run the jobs in one transaction, or each in its own when that fails; return all that have an answer."""
        try:
            connection = self.session.connect()
            connection.execute("BEGIN IMMEDIATE")
        except Exception as error:  # noqa: BLE001 - raised where the job's answer is awaited
            if is_busy(error) and not self.ends:
                # Whoever queued meanwhile has waited for the same lock; another turn would double the wait.
                with contextlib.suppress(queue.Empty):
                    jobs = [*jobs, *self._take(self.inbox.get_nowait())]
            _fail(self.session, jobs, error)
            return jobs
        try:
            for job in jobs:
                job.result = _work_of(job)(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - raised where the job's answer is awaited
            self.session.roll_back()
            if len(jobs) > 1:
                for job in jobs:
                    self._commit([job])
            else:
                _fail(self.session, jobs, error)
        else:
            self.counts.commits += 1
            self.counts.writes += len(jobs)
        return jobs


@dataclass(slots=True)
class _Reader:
    """Runs reads one by one."""

    inbox: _Queue
    session: Session

    def run(self) -> None:
        """Serve the queue until its end."""
        while (job := self.inbox.get()) is not None:
            if job.work is None:
                break
            if not job.future.cancelled():
                self._answer(job)
                _deliver([job])
            del job
        self.session.close()
        if job is not None:
            _deliver([job])

    def _answer(self, job: _Job) -> None:
        try:
            connection = self.session.connect()
            connection.execute("BEGIN")
            try:
                job.result = _work_of(job)(connection)
            finally:
                self.session.roll_back()
        except Exception as error:  # noqa: BLE001 - raised where the job's answer is awaited
            _fail(self.session, [job], error)


def _work_of(job: _Job) -> Callable[[sqlite3.Connection], object]:
    if job.work is None:
        raise TypeError("an end is no work")
    return job.work


def _fail(session: Session, jobs: Sequence[_Job], error: Exception) -> None:
    for job in jobs:
        # An exception of its own for each, because raising one adds to its traceback.
        job.result, job.error = None, session.recover(error)


def _deliver(jobs: list[_Job]) -> None:
    """Wake each event loop once, with all the answers that are its own."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, answered in by_loop.items():
        # A loop that was closed meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, answered)


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)
