"""Debian's redis-server, from PATH or from its package; in memory unless a test asks for a file."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from tests.servers import RunningServer, UnavailableError, are_required, free_port

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "redis"

_START_SECONDS: Final = 20
_STOP_SECONDS: Final = 10


def install() -> str:
    """Get the server from Debian's package when it is missing; return its version and where it is."""
    if shutil.which("redis-server") is None:
        # On a machine that is somebody's own, what is installed for all is theirs to decide.
        if not are_required() or shutil.which("apt-get") is None or os.geteuid() != 0:
            raise UnavailableError("redis-server not found; install it (Debian: apt-get install redis-server)")
        # As a service it would take the usual port, and it is not needed.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", "redis-server"]
        done = subprocess.run(install, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            # A fresh machine has no lists of packages yet.
            subprocess.run(["apt-get", "update"], check=False, capture_output=True)
            done = subprocess.run(install, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise UnavailableError(f"apt-get install redis-server failed: {done.stderr.strip()[-300:]}")
    return f"{_version()} at {shutil.which('redis-server')}"


async def start(
    folder: Path, password: str | None = None, port: int | None = None, *options: str, is_kept: bool = False
) -> RunningServer:
    """Start a server in ``folder``.

    Args:
        folder: of this server alone.
        password: of the default user; None: no log-in.
        port: None: a free one.
        options: more of the server's own, ``--maxmemory 1mb`` as two.
        is_kept: data are written to the folder, and a second start goes on with them.
    """
    await asyncio.to_thread(install)
    keeping = ("--appendonly", "yes", "--appendfsync", "always") if is_kept else ("--appendonly", "no")
    asking = () if password is None else ("--requirepass", password)
    # Another program may take a free port before the server does.
    for attempt in range(3):
        chosen = port or free_port()
        own = ("--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(folder), "--save", "")
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                ["redis-server", *own, *keeping, *asking, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        if await _answers(process, chosen):
            break
        if port is not None or attempt == 2:
            raise RuntimeError(f"Redis did not start:\n{(folder / 'server.log').read_text()[-3000:]}")

    async def stop() -> None:
        process.terminate()
        # One that a test has paused.
        process.send_signal(signal.SIGCONT)
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    secret = "" if password is None else f":{password}@"
    return RunningServer(f"redis://{secret}127.0.0.1:{chosen}/0", _version(), process.pid, stop)


async def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it answers a PING before it ends, if only that it wants a password."""
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.write(b"PING\r\n")
        try:
            answer = await reader.readline()
        finally:
            writer.close()
        if answer.startswith((b"+PONG", b"-NOAUTH")) and process.poll() is None:
            return True
        await asyncio.sleep(0.02)
    process.kill()
    await asyncio.to_thread(process.wait)
    return False


def _version() -> str:
    said = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"v=([0-9.]+)", said)
    return found[1] if found else said.strip()
