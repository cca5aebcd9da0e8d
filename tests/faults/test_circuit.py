"""A store that is away is not hammered, and is in use again soon after it is back."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from engine.bootstrap import open_stores
from engine.errors import StoreError
from engine.settings import EngineSettings
from tests.servers.fault_proxy import FaultProxy
from tests.servers.fixtures import mongo_server, neo4j_server, pinecone_server, redis_server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from engine.bootstrap import Stores
    from tests.servers import RunningServer
    from tests.servers.fault_proxy import Mode

CALLERS: Final = 20
"""Twice the connections of a pool."""
SETTLING_SECONDS: Final = 3.0
"""For the first calls to run out of time."""
WATCHED_SECONDS: Final = 3.0
TRIES_A_SECOND: Final = 2
BACK_SECONDS: Final = 5
SLACK: Final = 2

STORES: Final[dict[str, tuple[str, Callable[[str], dict[str, object]], Callable[[Stores], Awaitable[object]]]]] = {
    "neo4j": (
        "neo4j_server",
        lambda uri: {"neo4j_uri": uri},
        lambda stores: stores.source_definitions.get_definition("unknown"),
    ),
    "mongodb": (
        "mongo_server",
        lambda uri: {"mongo_uri": uri},
        lambda stores: stores.executions.get_execution("unknown"),
    ),
    "mongodb, pymongo": (
        "mongo_server",
        lambda uri: {"mongo_uri": uri, "mongo_driver": "pymongo"},
        lambda stores: stores.executions.get_execution("unknown"),
    ),
    "redis": (
        "redis_server",
        lambda uri: {"redis_uri": uri},
        lambda stores: stores.state.get_live_state("unknown"),
    ),
    "pinecone": (
        "pinecone_server",
        lambda uri: {"pinecone_api_key": "the-key-of-the-stub", "pinecone_host": uri},
        lambda stores: stores.vectors.describe_namespace("unknown"),
    ),
}
"""The server's fixture, the settings that name it, and a call that needs it."""


@pytest.fixture(params=[*STORES])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(request: pytest.FixtureRequest, store: str) -> RunningServer:
    return request.getfixturevalue(STORES[store][0])


async def calls_on(ask: Callable[[], Awaitable[object]], stop: asyncio.Event, reasons: set[object]) -> None:
    while not stop.is_set():
        try:
            await ask()
        except StoreError as error:
            reasons.add(error.details["reason"])
        await asyncio.sleep(0.01)


async def seconds_until_answered(ask: Callable[[], Awaitable[object]]) -> float:
    began_at = time.monotonic()
    async with asyncio.timeout(60):
        while True:
            try:
                await ask()
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return time.monotonic() - began_at


@pytest.mark.parametrize("fault", ["drop", "hang"])
async def test_a_dead_server_gets_two_tries_a_second_and_is_found_again(
    store: str, server: RunningServer, tmp_path: Path, fault: Mode
):
    _, config, call = STORES[store]
    async with FaultProxy(server.uri) as proxy:
        settings = EngineSettings.load({"data_dir": str(tmp_path), **config(proxy.uri)})
        stores = open_stores(settings)

        async def ask() -> object:
            return await call(stores)

        try:
            await seconds_until_answered(ask)
            await proxy.switch(fault)
            stop, reasons = asyncio.Event(), set[object]()
            callers = [asyncio.create_task(calls_on(ask, stop, reasons)) for _ in range(CALLERS)]
            await asyncio.sleep(SETTLING_SECONDS)
            watched_at = time.monotonic()
            await asyncio.sleep(WATCHED_SECONDS)
            tries = proxy.accepted_since(watched_at)
            await proxy.switch("pass")
            back = await seconds_until_answered(ask)
            stop.set()
            await asyncio.gather(*callers)
        finally:
            await stores.closing.aclose()
    assert "circuit_open" in reasons
    assert tries >= 1, "nobody would have found out that it is back"
    assert tries <= TRIES_A_SECOND * WATCHED_SECONDS + 1
    assert back < timedelta(seconds=BACK_SECONDS * SLACK).total_seconds()


async def test_a_server_that_was_never_there_gets_two_tries_a_second(store: str, server: RunningServer, tmp_path: Path):
    _, config, call = STORES[store]
    async with FaultProxy(server.uri) as proxy:
        await proxy.switch("drop")
        stores = open_stores(EngineSettings.load({"data_dir": str(tmp_path), **config(proxy.uri)}))

        async def ask() -> object:
            return await call(stores)

        try:
            stop, reasons = asyncio.Event(), set[object]()
            callers = [asyncio.create_task(calls_on(ask, stop, reasons)) for _ in range(CALLERS)]
            await asyncio.sleep(SETTLING_SECONDS)
            watched_at = time.monotonic()
            await asyncio.sleep(WATCHED_SECONDS)
            tries = proxy.accepted_since(watched_at)
            stop.set()
            await asyncio.gather(*callers)
        finally:
            await stores.closing.aclose()
    assert 1 <= tries <= TRIES_A_SECOND * WATCHED_SECONDS + 1
