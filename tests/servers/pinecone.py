"""Pinecone, which can't be had on a machine: a stub of it in a process of its own, and how tests speak to that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers import RunningServer
from tests.servers.pinecone_stub import API_KEY, DIMENSION, INDEX, MAX_REQUEST_BYTES

__all__ = ["API_KEY", "DIMENSION", "INDEX", "MAX_REQUEST_BYTES", "NAME", "control", "counts", "install", "start"]

NAME = "Pinecone"
_PROGRAM = "tests.servers.pinecone_stub"
# A proxy of the environment's has no way to this machine's loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def install() -> str:
    """Say what is there."""
    return "a stub of its data plane, in the standard library"


async def start(folder: Path) -> RunningServer:
    """Start the stub on a free port."""
    errors = folder / "stub.log"
    with errors.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _PROGRAM, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE, stderr=log
        )
    if process.stdout is None:
        raise RuntimeError("the stub was started without a pipe")
    async with asyncio.timeout(20):
        uri = (await process.stdout.readline()).decode().strip()
    if not uri:
        raise RuntimeError(f"the stub did not start: {errors.read_text()}")

    async def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    return RunningServer(uri=uri, version="stub", pid=process.pid, stop=stop)


def control(uri: str, route: str = "", **body: object) -> dict[str, Any]:
    """Tell the stub what to do: ``indexes`` makes one, ``counts`` forgets the counts, and "" sets the faults.

    Returns what it has counted: requests by kind, the connections that made one and are open, and the largest upsert
    in bytes and in vectors.
    """
    request = urllib.request.Request(f"{uri}/_control/{route}".rstrip("/"), json.dumps(body).encode())
    with _DIRECT.open(request, timeout=10) as reply:
        return json.load(reply)


def counts(uri: str) -> dict[str, Any]:
    """Return what ``control`` returns, and change nothing."""
    with _DIRECT.open(f"{uri}/_control", timeout=10) as reply:
        return json.load(reply)
