"""Processes that cache definitions over one Redis: how soon each sees what another has written, whatever Redis does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from engine.adapters.caching import CachedDefinitionStore, ReadCache
from engine.adapters.codec import Codec
from engine.adapters.redis.connection import RedisDatabase
from engine.adapters.redis.shared_cache import RedisSharedCache
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from tests.adapters.redis_samples import administrator
from tests.contract.samples import definition
from tests.servers import redis

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.servers import RunningServer

TTL = timedelta(seconds=300)
SOON = 1.0
"""Within this a write is seen everywhere."""


class Process:
    """What one process has: its own cache and connections, over the store and the Redis of all."""

    def __init__(self, uri: str, path: Path, ttl: timedelta = TTL) -> None:
        self.redis = RedisDatabase(uri, 5)
        self.shared = RedisSharedCache(self.redis)
        self.database = SqliteDatabase(path)
        self.source = SqliteDefinitionStore(self.database, Codec())
        self.definitions = CachedDefinitionStore(self.source, ReadCache(Codec(), ttl, self.shared))

    async def version(self) -> int:
        found = await self.definitions.get_definition("flow")
        assert found is not None
        return found.version

    async def until_listening(self) -> None:
        async with asyncio.timeout(10):
            while True:
                # The first read begins to listen.
                await self.version()
                if self.shared.listening_since is not None:
                    return
                await asyncio.sleep(0.02)

    async def seconds_until(self, version: int, began_at: float) -> float:
        async with asyncio.timeout(10):
            while await self.version() != version:
                await asyncio.sleep(0.005)
        return time.monotonic() - began_at

    async def aclose(self) -> None:
        await self.shared.aclose()
        await self.redis.aclose()
        await self.database.aclose()


@asynccontextmanager
async def two(uri: str, path: Path, ttl: timedelta = TTL) -> AsyncGenerator[tuple[Process, Process]]:
    here, there = Process(uri, path, ttl), Process(uri, path, ttl)
    try:
        await here.definitions.insert_definition(definition(version=1))
        await here.until_listening()
        await there.until_listening()
        yield here, there
    finally:
        await here.aclose()
        await there.aclose()


@pytest.fixture
async def flushed(redis_server: RunningServer) -> AsyncGenerator[RunningServer]:
    async with administrator(redis_server.uri) as client:
        await client.flushall()
    yield redis_server


async def test_a_write_is_seen_by_the_others_at_once(flushed: RunningServer, tmp_path: Path) -> None:
    async with two(flushed.uri, tmp_path / "baton.db") as (here, there):
        for version in range(2, 12):
            await here.definitions.append_version(definition(version=version))
            began_at = time.monotonic()
            assert await here.version() == version
            assert await there.seconds_until(version, began_at) < SOON


async def test_while_nothing_is_written_neither_redis_nor_the_store_is_asked(
    flushed: RunningServer, tmp_path: Path
) -> None:
    async with two(flushed.uri, tmp_path / "baton.db") as (here, there), administrator(flushed.uri) as client:
        await asyncio.sleep(1.1)
        await there.version()
        before = (await client.info("commandstats")).get("cmdstat_hmget", {}).get("calls", 0)
        # Behind the cache's back, so that whoever asks the store is found out.
        await here.source.append_version(definition(version=2))
        for _ in range(15):
            await asyncio.sleep(0.1)
            assert await there.version() == 1
        assert (await client.info("commandstats")).get("cmdstat_hmget", {}).get("calls", 0) == before


async def test_a_write_is_seen_in_another_process_within_a_second(flushed: RunningServer, tmp_path: Path) -> None:
    program = """
import asyncio, sys, time
from pathlib import Path
from tests.adapters.test_shared_caching import Process

async def main():
    process = Process(sys.argv[1], Path(sys.argv[2]))
    await process.until_listening()
    await asyncio.sleep(1.1)
    print(await process.version(), flush=True)
    while await process.version() == 1:
        await asyncio.sleep(0.005)
    print(time.time(), flush=True)
    await process.aclose()

asyncio.run(main())
"""
    path = tmp_path / "baton.db"
    here = Process(flushed.uri, path)
    await here.definitions.insert_definition(definition(version=1))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, flushed.uri, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with asyncio.timeout(60):
        assert await child.stdout.readline() == b"1\n"
        await here.definitions.append_version(definition(version=2))
        written_at = time.time()
        seen_at = float(await child.stdout.readline())
        assert await child.wait() == 0
    assert seen_at - written_at < SOON
    await here.aclose()


async def test_a_lost_message_costs_the_time_to_live_and_no_more(flushed: RunningServer, tmp_path: Path) -> None:
    ttl = timedelta(seconds=3)
    async with two(flushed.uri, tmp_path / "baton.db", ttl) as (here, there):
        await asyncio.sleep(1.1)
        await there.version()
        began_at = time.monotonic()
        # The message is lost before it is sent.
        await here.source.append_version(definition(version=2))
        seconds = await there.seconds_until(2, began_at)
    assert 1 < seconds < ttl.total_seconds() + 0.5


async def test_a_flushed_redis_costs_nothing_but_reads(flushed: RunningServer, tmp_path: Path) -> None:
    async with two(flushed.uri, tmp_path / "baton.db") as (here, there), administrator(flushed.uri) as client:
        for version in range(2, 5):
            await client.flushall()
            await here.definitions.append_version(definition(version=version))
            assert await there.seconds_until(version, time.monotonic()) < SOON
            await client.flushall()
            assert await here.version() == await there.version() == version


async def test_a_redis_that_is_killed_and_started_again_hides_no_write(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    port = urlsplit(server.uri).port
    async with two(server.uri, tmp_path / "baton.db") as (here, there):
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
        for version in (2, 3):
            await here.definitions.append_version(definition(version=version))
            assert await here.version() == version
            assert await there.seconds_until(version, time.monotonic()) < SOON + 0.5
        server = await redis.start(tmp_path, None, port)
        try:
            for version in range(4, 30):
                await here.definitions.append_version(definition(version=version))
                assert await here.version() == version
                assert await there.seconds_until(version, time.monotonic()) < SOON + 0.5
                await asyncio.sleep(0.1)
            assert here.shared.listening_since is not None
            assert there.shared.listening_since is not None
        finally:
            await server.stop()


async def test_a_write_while_redis_hangs_is_seen_and_costs_a_quarter_of_a_second(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    try:
        async with two(server.uri, tmp_path / "baton.db") as (here, there):
            os.kill(server.pid, signal.SIGSTOP)
            try:
                began_at = time.monotonic()
                await here.definitions.append_version(definition(version=2))
                assert time.monotonic() - began_at < 0.3
                began_at = time.monotonic()
                assert await here.version() == 2
                assert time.monotonic() - began_at < 0.25
                # It learns of the silence first, and then reads once a second.
                assert await there.seconds_until(2, began_at) < 2
            finally:
                os.kill(server.pid, signal.SIGCONT)
            # The old entry is still in Redis until the drop that is owed has gone there.
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert await here.version() == 2
                assert await there.version() == 2
                await asyncio.sleep(0.02)
            assert await here.shared.get_entries([("workflow:flow", "newest")]) == {}
    finally:
        await server.stop()
