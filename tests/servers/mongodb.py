"""A server that speaks MongoDB's protocol: SecantusDB, built by cargo from its crate into the user's cache.

No package registry has MongoDB's own. ``BATON_TEST_MONGO_URI`` names a real one to use in its place: each test has a
database of its own there and drops it, and tests that stop their server are skipped.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from pymongo import AsyncMongoClient, MongoClient

from tests.servers import RunningServer, UnavailableError, cache_folder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

NAME: Final = "mongodb"

_CRATE: Final = "secantus-mdb"
_VERSION: Final = "0.5.3-beta.196"
_PROGRAM: Final = "secantusd-rs"
# Without the first two a build takes 8 minutes in place of 3.
_BUILD: Final = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}
_OPTIONS: Final = ("--sync-on-commit", "--cache-size", "256M", "--log-file-max", "16MB", "--log-level", "ERROR")
_LISTENING: Final = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_START_SECONDS: Final = 30
_STOP_SECONDS: Final = 20


def given_uri() -> str | None:
    """The server that the environment names, if it does."""
    return os.environ.get("BATON_TEST_MONGO_URI") or None


def install() -> str:
    """Build the server unless it is there; return its version and where it is, or that another one is used."""
    if given_uri() is not None:
        return "the server that BATON_TEST_MONGO_URI names"
    folder = cache_folder(f"secantus-{_VERSION}")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "bin" / _PROGRAM).exists():
            _build(folder)
    return f"SecantusDB {_VERSION} in {folder}"


async def start(folder: Path, port: int = 0, *options: str) -> RunningServer:
    """Start a server whose data lie in ``folder`` and stay there; a second start goes on with them.

    Args:
        folder: of this server alone.
        port: 0: a free one.
        options: more of the server's own, such as ``--auth``.
    """
    if (uri := given_uri()) is not None:
        return RunningServer(uri, await asyncio.to_thread(_version, uri), 0, _leave)
    await asyncio.to_thread(install)
    program = cache_folder(f"secantus-{_VERSION}") / "bin" / _PROGRAM
    place = ("--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder))
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *place, *_OPTIONS, *options],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def stop() -> None:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    end = time.monotonic() + _START_SECONDS
    while (listening := _LISTENING.search(log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > end:
            await stop()
            raise RuntimeError(f"{_PROGRAM} did not start (exit code {process.poll()}):\n{log.read_text()[-3000:]}")
        await asyncio.sleep(0.02)
    return RunningServer(f"mongodb://127.0.0.1:{listening[1]}/?directConnection=true", _VERSION, process.pid, stop)


@asynccontextmanager
async def scratch_database(uri: str) -> AsyncGenerator[str]:
    """Give the URI of a database of its own on a server, which is dropped in the end."""
    name = f"baton-test-{uuid4().hex}"
    parts = urlsplit(uri)
    yield urlunsplit(parts._replace(path=f"/{name}"))
    async with AsyncMongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=5000) as client:
        await client.drop_database(name)


def _build(folder: Path) -> None:
    if missing := [program for program in ("cargo", "cmake", "make", "cc", "c++") if shutil.which(program) is None]:
        raise UnavailableError(
            f"{', '.join(missing)} not found; install Rust (https://rustup.rs) and, on Debian, "
            "apt-get install build-essential cmake; or name a MongoDB server in BATON_TEST_MONGO_URI"
        )
    target = folder / "target"
    command = ["cargo", "install", _CRATE, "--version", f"={_VERSION}", "--locked", "--ignore-rust-version", "--quiet"]
    done = subprocess.run(
        [*command, "--root", folder, "--target-dir", target],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **_BUILD},
    )
    shutil.rmtree(target, ignore_errors=True)
    if done.returncode != 0:
        raise UnavailableError(f"cargo could not build {_CRATE} {_VERSION}: {done.stderr[-2000:]}")


def _version(uri: str) -> str:
    client: MongoClient[dict[str, object]] = MongoClient(uri, serverSelectionTimeoutMS=5000)
    with client:
        return str(client.server_info()["version"])


async def _leave() -> None:
    """The server is not ours."""
