"""The process between the development server and its users: it ends the server when none is left.

A lock, not a count, says whether somebody is left: every user holds `holders.lock` shared, and the kernel
lets go of it even for a process that was killed. The supervisor's own life is a lock as well
(`supervisor.lock`, inherited from whoever started it), so that nobody trusts a process id in a file that
a crash left behind.

Run by path with `python -I -S`, on the standard library alone: it starts in a few milliseconds whatever
the user's environment looks like. A server that dies while it is used is started again on its ports,
because everything that it accepted is in its file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DATABASE",
    "HOLDERS_LOCK",
    "LOG",
    "SEARCH_ATTRIBUTES",
    "STATE",
    "SUPERVISOR_LOCK",
    "Ports",
    "server_arguments",
]

SEARCH_ATTRIBUTES = {
    "BatonWorkflow": "Keyword",
    "BatonVersion": "Int",
    "BatonStatus": "Keyword",
    "BatonTags": "KeywordList",
    "BatonTenant": "Keyword",
}

# In <data_dir>/temporal/.
DATABASE = "temporal.db"
LOG = "server.log"
STATE = "server.json"
HOLDERS_LOCK = "holders.lock"
SUPERVISOR_LOCK = "supervisor.lock"

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.1
_STARTING_POLL_SECONDS = 0.01
_ORPHAN_SECONDS = 5.0
_PORT_ATTEMPTS = 3
_FIRST_PORT = 17000
_PORT_SETS = 3000
_PR_SET_PDEATHSIG = 1


class Ports(NamedTuple):
    """Where one server listens, on the loopback interface only."""

    frontend: int
    ui: int
    http: int
    codec: int
    """Where whoever uses the server may decode payloads for its UI."""


def server_arguments(database: Path, ports: Ports) -> list[str]:
    """Return the arguments of `temporal` for a server that is fast and keeps what it accepted.

    One history shard polls 20 times a second unless told otherwise, which makes each step 100 ms.
    The write-ahead log with full synchronisation is the fastest file that is still safe against a power cut.
    """
    attributes = [f"{name}={kind}" for name, kind in SEARCH_ATTRIBUTES.items()]
    return [
        *("server", "start-dev", "--ip", _LOOPBACK),
        *("--port", str(ports.frontend), "--ui-port", str(ports.ui), "--http-port", str(ports.http)),
        *("--ui-codec-endpoint", f"http://{_LOOPBACK}:{ports.codec}"),
        *("--db-filename", str(database), "--log-level", "error"),
        *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2"),
        *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=10000"),
        *("--dynamic-config-value", "history.timerProcessorMaxPollRPS=10000"),
        *("--dynamic-config-value", "history.visibilityProcessorMaxPollRPS=10000"),
        *("--dynamic-config-value", "system.enableActivityEagerExecution=true"),
        *(part for attribute in attributes for part in ("--search-attribute", attribute)),
    ]


class _Supervisor:
    """One server process after the other, from the first user to the last."""

    def __init__(self, directory: Path, binary: str, version: str) -> None:
        self._directory = directory
        self._binary = binary
        self._version = version
        self._database = directory / DATABASE
        self._holders = os.open(directory / HOLDERS_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        self._over = False

    def ask_to_stop(self) -> None:
        self._over = True

    def run(self) -> int:
        """Serve until nobody is left; the exit code is 1 when the server can't be started."""
        self._end_orphan()
        ports = _usual_ports(self._directory)
        was_ready = False
        failures = 0
        try:
            while True:
                with (self._directory / LOG).open("ab") as log:
                    log_start = log.tell()
                    server = self._start(ports, log)
                ready = self._watch(server, ports)
                if self._over:
                    # A graceful stop waits a second or more for clients, and none is left. The file is made for
                    # a power cut, and a start after a kill is as quick as one after a graceful stop.
                    server.kill()
                    server.wait()
                    return 0
                if ready:
                    was_ready, failures = True, 0
                    _say(f"the server ended with {server.returncode}; starting it again")
                    continue
                failures += 1
                if failures >= _PORT_ATTEMPTS or not self._ports_were_taken(log_start):
                    return 1
                # Users know the address of a server that has been ready: only a new one may move.
                ports = ports if was_ready else _free_ports()
        finally:
            (self._directory / STATE).unlink(missing_ok=True)

    def _start(self, ports: Ports, log: IO[bytes]) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(  # noqa: S603 - the binary that find_binary chose, no shell
            [self._binary, *server_arguments(self._database, ports)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - this process has one thread
        )
        self._publish(ports, server.pid, ready=False)
        return server

    def _watch(self, server: subprocess.Popen[bytes], ports: Ports) -> bool:
        """Wait for the server's death or the last user's leave; tell whether it ever answered."""
        ready = False
        while server.poll() is None:
            self._over = self._over or self._nobody_is_left()
            if self._over:
                break
            if not ready and _answers(ports.http):
                ready = True
                self._publish(ports, server.pid, ready=True)
            time.sleep(_POLL_SECONDS if ready else _STARTING_POLL_SECONDS)
        return ready

    def _nobody_is_left(self) -> bool:
        """Take the lock for good when it is free: who comes now waits until this process has ended."""
        try:
            fcntl.flock(self._holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _publish(self, ports: Ports, pid: int, *, ready: bool) -> None:
        state = {
            "address": f"{_LOOPBACK}:{ports.frontend}",
            "ui_url": f"http://{_LOOPBACK}:{ports.ui}",
            "codec_port": ports.codec,
            "pid": pid,
            "supervisor_pid": os.getpid(),
            "version": self._version,
            "ready": ready,
        }
        partial = self._directory / f"{STATE}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self._directory / STATE)

    def _ports_were_taken(self, log_start: int) -> bool:
        with (self._directory / LOG).open("rb") as log:
            log.seek(log_start)
            return b"address already in use" in log.read()

    def _end_orphan(self) -> None:
        """End the server of a supervisor that was killed: two servers on one file would damage it."""
        try:
            pid = int(json.loads((self._directory / STATE).read_text(encoding="utf-8"))["pid"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return
        until = time.monotonic() + _ORPHAN_SECONDS
        while self._is_our_server(pid) and time.monotonic() < until:
            _say(f"ending the server {pid} that a killed supervisor left behind")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _is_our_server(self, pid: int) -> bool:
        return f"--db-filename {self._database} " in _command_line(pid)


def _usual_ports(directory: Path) -> Ports:
    """Return the ports of this directory, so that links to the UI stay right; others when they are taken."""
    digest = hashlib.sha256(str(directory).encode()).digest()
    first = _FIRST_PORT + len(Ports._fields) * (int.from_bytes(digest[:4], "big") % _PORT_SETS)
    ports = Ports(*range(first, first + len(Ports._fields)))
    return ports if all(_is_free(port) for port in ports) else _free_ports()


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


def _free_ports() -> Ports:
    with contextlib.ExitStack() as closing:
        sockets = [closing.enter_context(socket.socket()) for _ in Ports._fields]
        for candidate in sockets:
            candidate.bind((_LOOPBACK, 0))
        return Ports(*(candidate.getsockname()[1] for candidate in sockets))


def _answers(http_port: int) -> bool:
    """Ask the frontend itself for its namespace: an open port comes before a server that serves."""
    try:
        with socket.create_connection((_LOOPBACK, http_port), timeout=1) as connection:
            connection.sendall(b"GET /api/v1/namespaces/default HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return connection.recv(64).split(b"\r\n")[0].split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _command_line(pid: int) -> str:
    """Return the command line of a process, empty when there is no such process (any more)."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    asked = subprocess.run(  # noqa: S603 - a number is all that varies
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=5,
    )
    return asked.stdout


def _die_with_parent() -> Callable[[], None] | None:
    """Return what keeps the server from outliving a killed supervisor; Linux only, see `_end_orphan`."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    supervisor_pid = os.getpid()

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:
            os._exit(1)

    return ask_the_kernel


def _say(text: str) -> None:
    sys.stderr.write(f"supervisor: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """Run as a program: the only argument is JSON with `directory`, `binary` and `version`."""
    request = json.loads(sys.argv[1])
    supervisor = _Supervisor(Path(request["directory"]), request["binary"], request["version"])
    signal.signal(signal.SIGTERM, lambda _number, _frame: supervisor.ask_to_stop())
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
