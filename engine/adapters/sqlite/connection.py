"""One thread's connection: opened at first use, given up after a fault, and again when the file is replaced.

Every connection checks the schema's version when it opens, so no opening has to wait for another, and several
processes may open a new file at once: SQLite's own lock decides who makes the tables.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.failures import Failure, FailureTable
from engine.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.adapters.sqlite.schema import Schema

__all__ = ["LOCK_WAIT", "Session", "is_busy"]

LOCK_WAIT: Final = timedelta(seconds=5)
"""How long a call waits for another process before it fails."""

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNSURE = _DAMAGED | {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL}
_PRIMARY_CODE = 0xFF
_OPEN_AGAIN_SECONDS = 0.01


def _code(error: Exception) -> int:
    """Return SQLite's primary result code, or 0 for an error that has none."""
    return cast("int", getattr(error, "sqlite_errorcode", 0)) & _PRIMARY_CODE


def _name(error: Exception) -> str:
    return cast("str", getattr(error, "sqlite_errorname", type(error).__name__))


def is_busy(error: Exception) -> bool:
    """Return whether another connection held the lock for too long."""
    return _code(error) in _BUSY


def _is_damage(error: Exception) -> bool:
    return _code(error) in _DAMAGED


_ROWS = (
    Failure(
        sqlite3.Error,
        "has no room left on its disk; nothing was written. Free some space and repeat the call",
        lambda error: _code(error) == sqlite3.SQLITE_FULL,
    ),
    Failure(
        sqlite3.Error,
        "can't be written. Make the file and its folder writable for this user",
        lambda error: _code(error) == sqlite3.SQLITE_READONLY,
    ),
    Failure(
        sqlite3.Error,
        f"was locked by another process for {LOCK_WAIT.total_seconds():.0f} seconds; nothing was written. "
        "Look for a backup or a tool that holds it open, and repeat the call",
        is_busy,
    ),
    Failure(
        sqlite3.Error,
        "is damaged, or no SQLite database. Restore it from a backup, or move it away to begin anew",
        _is_damage,
    ),
    Failure(
        sqlite3.Error,
        "can't be opened. Check that its folder exists, that this user may write there, "
        "and that the process may open more files",
        lambda error: _code(error) == sqlite3.SQLITE_CANTOPEN,
    ),
    Failure(
        sqlite3.Error,
        "could not be read or written: the disk refused. Check its health, its free space and limits on file size",
        lambda error: _code(error) == sqlite3.SQLITE_IOERR,
    ),
    Failure(sqlite3.Error, "refused a statement; please report it with details.reason"),
    Failure(OSError, "can't be reached. Check that its folder exists and that this user may read and write there"),
)


class Session:
    """The connection of one thread to one file.

    Args:
        path: the file; it and its folder are made when they are missing.
        schema: what the file holds.
        scans: whether large parts of the file are read again and again, and should stay in memory.
    """

    def __init__(self, path: Path, schema: Schema, *, scans: bool = False) -> None:
        self._path = path
        self._schema = schema
        self._scans = scans
        self._failures = FailureTable("sqlite", f"The database {path}", _ROWS, _name)
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def connect(self) -> sqlite3.Connection:
        """Return the connection, opened and brought to the newest schema if need be.

        Raises:
            sqlite3.Error, OSError: as they come; ``recover`` takes them.
            StoreError: a newer Baton wrote the file.
        """
        if self._connection is not None:
            # A file that was deleted or replaced takes no more writes that anybody will read.
            if self._identity == self._identity_on_disk():
                return self._connection
            self.close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._schema.disposable and self._path.is_file() and not os.access(self._path, os.R_OK | os.W_OK):
            self._path.unlink()
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            if not (self._schema.disposable and _is_damage(error)):
                raise
            self._discard()
            self._connection = self._open()
        self._identity = self._identity_on_disk()
        return self._connection

    def recover(self, error: Exception) -> Exception:
        """Give up what ``error`` makes doubtful; return the error to raise in its place."""
        if isinstance(error, UnicodeEncodeError):
            return InvalidInputError("A text holds half a surrogate pair, which is no Unicode; repair or remove it")
        if _code(error) in _UNSURE:
            identity = self._identity
            self.close()
            if self._schema.disposable and _is_damage(error):
                try:
                    # Somebody else may have begun it anew already.
                    if identity == self._identity_on_disk():
                        self._discard()
                except OSError as refusal:
                    return self._failures.explain(refusal) or refusal
        return self._failures.explain(error) or error

    def roll_back(self) -> None:
        """End the open transaction, if there is one: after some faults SQLite has ended it already."""
        if self._connection is None or not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # Closing ends it too.
            self.close()

    def close(self) -> None:
        """Close the connection, if there is one; the next use opens another."""
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            # The last connection's close moves the log into the file. On a broken disk that fails, and loses nothing.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _identity_on_disk(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=LOCK_WAIT.total_seconds(), isolation_level=None, cached_statements=256
        )
        try:
            self._switch_to_wal(connection)
            # In WAL mode FULL syncs the log at every commit, so that a commit survives the machine's crash.
            connection.execute("PRAGMA synchronous = OFF" if self._schema.disposable else "PRAGMA synchronous = FULL")
            # A log that one large write has blown up shrinks to 64 MiB again.
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA trusted_schema = OFF")
            if self._scans:
                # The metrics of 100,000 executions scan an index of 14 MB: in half the time when it stays in memory.
                connection.execute("PRAGMA cache_size = -16384")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        # SQLite does not wait for the lock of this one switch when two openers could wait for each other.
        deadline = time.monotonic() + LOCK_WAIT.total_seconds()
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_OPEN_AGAIN_SECONDS)
            else:
                return

    def _migrate(self, connection: sqlite3.Connection) -> None:
        newest = len(self._schema.migrations)
        if self._version(connection) == newest:
            return
        # What fails in here is undone when ``_open`` closes the connection.
        connection.execute("BEGIN IMMEDIATE")
        for statements in self._schema.migrations[self._version(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int:
        (version,) = cast("tuple[int]", connection.execute("PRAGMA user_version").fetchone())
        newest = len(self._schema.migrations)
        if version > newest:
            raise StoreError(
                f"The database {self._path} was written by a newer version of Baton (schema {version}, this one "
                f"knows up to {newest}). Upgrade Baton, or give it another data_dir.",
                {"backend": "sqlite", "schema": version, "newest_known": newest},
            )
        return version
