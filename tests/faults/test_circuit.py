"""A store that is away is not hammered, and is in use again soon after it is back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from store_servers import SERVERS, store_config

from engine.bootstrap import open_stores
from engine.errors import StoreError
from engine.settings import EngineSettings
from tests.servers.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
"""What is promised is tested at twice its length, on a machine that does much else."""

CALLS: Final[dict[str, Callable[[Stores], Awaitable[object]]]] = {
    "neo4j": lambda stores: stores.source_definitions.get_definition("unknown"),
    "mongodb": lambda stores: stores.executions.get_execution("unknown"),
    "redis": lambda stores: stores.state.get_live_state("unknown"),
    "pinecone": lambda stores: stores.vectors.describe_namespace("unknown"),
}
"""A call that needs the store."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a dead server saw, and how its callers fared."""

    tries: int
    """Connections while the circuit was open."""
    reasons: set[object]
    back_seconds: float


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


async def watched(store: str, uri: str, fault: Mode, config: dict[str, object], *, is_new: bool) -> Watched:
    """Let many callers loose on a server that is away, from the beginning (``is_new``) or after it was there."""
    async with FaultProxy(uri) as proxy:
        stores = open_stores(EngineSettings.load({**config, **store_config(store, proxy.uri)}))

        async def ask() -> object:
            return await CALLS[store](stores)

        stop, reasons = asyncio.Event(), set[object]()
        try:
            if not is_new:
                await seconds_until_answered(ask)
            await proxy.switch(fault)
            callers = [asyncio.create_task(calls_on(ask, stop, reasons)) for _ in range(CALLERS)]
            await asyncio.sleep(SETTLING_SECONDS)
            watched_at = time.monotonic()
            await asyncio.sleep(WATCHED_SECONDS)
            tries = proxy.accepted_since(watched_at)
            await proxy.switch("pass")
            back_seconds = await seconds_until_answered(ask)
            stop.set()
            await asyncio.gather(*callers)
        finally:
            await stores.closing.aclose()
    return Watched(tries, reasons, back_seconds)


WAYS: Final[dict[str, tuple[Mode, bool]]] = {
    "drops": ("drop", False),
    "hangs": ("hang", False),
    "was never there": ("drop", True),
}
"""How a server is away: a fault, and whether it is so from the beginning."""
DRIVERS: Final[dict[str, list[dict[str, object]]]] = {
    "mongodb": [{"mongo_driver": name} for name in ("motor", "pymongo")]
}
"""Settings of a store's drivers, where there is a choice."""


@pytest.fixture(scope="module", params=[*CALLS])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, store: str) -> RunningServer:
    return request.getfixturevalue(SERVERS[store])


@pytest.fixture(scope="module")
async def deaths(
    store: str, server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Watched]]:
    """What came of each way to be away, with each driver; all at the same time."""
    drivers = DRIVERS.get(store, [{}])
    seen = await asyncio.gather(
        *(
            watched(
                store, server.uri, fault, {"data_dir": str(tmp_path_factory.mktemp("circuit")), **driver}, is_new=is_new
            )
            for fault, is_new in WAYS.values()
            for driver in drivers
        )
    )
    return {way: seen[n * len(drivers) : (n + 1) * len(drivers)] for n, way in enumerate(WAYS)}


@pytest.mark.parametrize("way", [*WAYS])
def test_a_dead_server_gets_two_tries_a_second(deaths: dict[str, list[Watched]], way: str):
    for death in deaths[way]:
        assert "circuit_open" in death.reasons
        assert death.tries <= TRIES_A_SECOND * WATCHED_SECONDS + 1


@pytest.mark.parametrize("way", [*WAYS])
def test_it_is_in_use_again_soon_after_its_return(deaths: dict[str, list[Watched]], way: str):
    for death in deaths[way]:
        assert death.tries >= 1, "nobody would have found out that it is back"
        assert death.back_seconds < BACK_SECONDS * SLACK
