"""How a development server is had: one for a data directory, shared by all processes that use it.

Who wants the server takes a shared file lock and joins the one that runs, or starts it;
`dev_server_supervisor` ends it when the last lock is gone, however its owner died. Starting never builds
or downloads, because that takes minutes: `build_binary` is a call of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.adapters.temporal import dev_server_supervisor as supervisor
from engine.adapters.temporal.dev_server_binary import (
    PassedOver,
    TemporalBinary,
    build_binary,
    examine_binaries,
    find_binary,
    last_lines,
    lock_now,
)
from engine.errors import EngineError, RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DevServerLease",
    "PassedOver",
    "TemporalBinary",
    "acquire_dev_server",
    "build_binary",
    "examine_binaries",
    "find_binary",
    "search_attributes",
]

_POLL_SECONDS = 0.02
_STOP_SECONDS = 10.0


def search_attributes() -> Mapping[str, str]:
    """Return the search attributes that every server of ours has: name to Temporal's name of the type."""
    return supervisor.SEARCH_ATTRIBUTES


@dataclass(frozen=True, slots=True)
class _ServerState:
    """What the supervisor wrote about its server."""

    address: str
    ui_url: str
    codec_port: int
    pid: int
    supervisor_pid: int
    version: str
    ready: bool


class DevServerLease:
    """A hold on the development server of one data directory; the server lives as long as somebody holds it.

    Attributes:
        address: ``127.0.0.1:port`` of the Temporal frontend.
        ui_url: where Temporal's Web UI is.
        codec_port: where the UI looks for a codec server; one of those who hold the server runs it.
        namespace: ``default``.
        version: the Temporal CLI's version.
    """

    namespace = "default"

    def __init__(self, directory: Path, holder: _HeldLock, state: _ServerState) -> None:
        self.address = state.address
        self.ui_url = state.ui_url
        self.codec_port = state.codec_port
        self.version = state.version
        self._directory = directory
        self._holder = holder
        self._supervisor_pid = state.supervisor_pid

    async def aclose(self) -> None:
        """Let go of the server; when nobody else holds it, return only once it has ended. Idempotent.

        Raises:
            RuntimeUnavailableError: it did not end within 10 seconds; the message has the process to end.
        """
        if self._holder.closed:
            return
        self._holder.close()
        until = time.monotonic() + _STOP_SECONDS
        while _runs_unheld(self._directory):
            if time.monotonic() > until:
                raise RuntimeUnavailableError(
                    f"The development server did not stop within {_STOP_SECONDS:.0f} s. "
                    f"End process {self._supervisor_pid}; the log is {self._directory / supervisor.LOG}."
                )
            await asyncio.sleep(_POLL_SECONDS)


async def acquire_dev_server(data_dir: Path, *, timeout: timedelta = timedelta(seconds=30)) -> DevServerLease:  # noqa: ASYNC109 - one deadline over several waits, and the messages name it
    """Join the development server of a data directory, or start it.

    Args:
        data_dir: the server's files lie in its folder ``temporal``, made when missing. One server per folder.
        timeout: for the whole, also for a server that is just stopping.

    Raises:
        RuntimeUnavailableError: there is no Temporal CLI, or the server does not start; the message has the
            last lines of its log.
    """
    directory = _directory(data_dir)
    until = time.monotonic() + timeout.total_seconds()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        holder = await _lock(directory / supervisor.HOLDERS_LOCK, fcntl.LOCK_SH, until)
        try:
            startup = await _lock(directory / "startup.lock", fcntl.LOCK_EX, until)
            try:
                state = await _join_or_start(directory, until)
            finally:
                startup.close()
        except BaseException:
            holder.close()
            raise
    except OSError as error:
        raise RuntimeUnavailableError(
            f"The development server can't use {directory}: {error.strerror}. Make it writable or set data_dir."
        ) from error
    return DevServerLease(directory, holder, state)


def _directory(data_dir: Path) -> Path:
    return data_dir.resolve() / "temporal"


async def _join_or_start(directory: Path, until: float) -> _ServerState:
    """Return the server's state once it answers; the caller holds the start-up lock and a holder's lock."""
    started = False
    while time.monotonic() < until:
        life = os.open(directory / supervisor.SUPERVISOR_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not lock_now(life, fcntl.LOCK_EX):
                state = _read_state(directory)
                # The process is asked for as well: one who is leaving may just have been looking at the lock.
                if state is not None and state.ready and _exists(state.supervisor_pid):
                    return state
            elif started:
                raise RuntimeUnavailableError(f"The Temporal development server did not start. {_log_words(directory)}")
            else:
                binary = await asyncio.to_thread(find_binary)
                if binary is None:
                    raise await asyncio.to_thread(_no_binary_error)
                _start_supervisor(directory, binary, life)
                started = True
        finally:
            os.close(life)
        await asyncio.sleep(_POLL_SECONDS)
    raise RuntimeUnavailableError(
        f"The Temporal development server of {directory} did not answer in time. {_log_words(directory)}"
    )


def _no_binary_error() -> RuntimeUnavailableError:
    reasons = [f"{one.path}: {one.reason}" for one in examine_binaries() if isinstance(one, PassedOver)]
    passed_over = f" Passed over: {'; '.join(reasons)}." if reasons else ""
    return RuntimeUnavailableError(
        "There is no usable Temporal server on this machine. Run `./baton doctor --fix` to get one, start one "
        f"with `./baton dev`, or set temporal_address to the one you have.{passed_over}",
        {"passed_over": reasons},
    )


def _start_supervisor(directory: Path, binary: TemporalBinary, life: int) -> None:
    """Start the supervisor with its lock, in a session of its own, so that Ctrl-C here does not reach it."""
    state_file = directory / supervisor.STATE
    if state_file.exists():
        # Kept, because the supervisor looks there for a server left behind; never taken for a running one.
        left = state_file.read_text(encoding="utf-8")
        state_file.write_text(left.replace('"ready": true', '"ready": false'), encoding="utf-8")
    log_file = directory / supervisor.LOG
    if log_file.exists():
        log_file.replace(log_file.with_suffix(".log.1"))
    request = {"directory": str(directory), "binary": str(binary.path), "version": binary.version}
    with log_file.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=(life,),
        )
    # It may end long before this process does; unread, it would stay as a zombie.
    threading.Thread(target=process.wait, name="baton-dev-server-reaper", daemon=True).start()


def _read_state(directory: Path) -> _ServerState | None:
    try:
        written = json.loads((directory / supervisor.STATE).read_text(encoding="utf-8"))
        return _ServerState(**cast("dict[str, object]", written))  # pyright: ignore[reportArgumentType] - our own file
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _runs_unheld(directory: Path) -> bool:
    """Tell whether the supervisor still runs although nobody holds its server, so that it is about to end."""
    with contextlib.ExitStack() as opened:
        life, holders = (
            os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
            for name in (supervisor.SUPERVISOR_LOCK, supervisor.HOLDERS_LOCK)
        )
        opened.callback(os.close, life)
        opened.callback(os.close, holders)
        if lock_now(life, fcntl.LOCK_SH):
            return False
        if lock_now(holders, fcntl.LOCK_EX) or not lock_now(holders, fcntl.LOCK_SH):
            return True
        # Somebody else holds it, or looked at it in this very moment as we do.
        return lock_now(holders, fcntl.LOCK_EX)


class _HeldLock:
    """A file lock of this process, held until it is closed; closing twice does nothing."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.closed = False
        _locks_held.add(self)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            _locks_held.discard(self)
            os.close(self.descriptor)


_locks_held: set[_HeldLock] = set()


def _close_locks_after_fork() -> None:
    """A forked child must not keep its parent's server alive."""
    for lock in list(_locks_held):
        lock.close()


os.register_at_fork(after_in_child=_close_locks_after_fork)


async def _lock(path: Path, kind: int, until: float) -> _HeldLock:
    lock = _HeldLock(path)
    try:
        while not lock_now(lock.descriptor, kind):
            if time.monotonic() > until:
                raise RuntimeUnavailableError(
                    f"Another process has been starting or stopping the development server of {path.parent} "
                    f"for too long. Look for it, end it and try again. {_log_words(path.parent)}"
                )
            await asyncio.sleep(_POLL_SECONDS)
    except BaseException:
        lock.close()
        raise
    return lock


def _log_words(directory: Path) -> str:
    log_file = directory / supervisor.LOG
    last = last_lines(log_file.read_bytes()) if log_file.exists() else ""
    return f"Its log is {log_file}" + (f" and ends with:\n{last}" if last else ", and it is empty.")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """Make sure that a Temporal server can be started here; what it takes is told on standard error."""
    try:
        if find_binary() is None:
            build_binary(_tell)
    except EngineError as error:
        _tell(error.message)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
