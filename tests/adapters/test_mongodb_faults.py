"""MongoDB when it is away, killed, slow, locked or alone: what is lost, what is said, and how soon."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import AsyncMongoClient

from engine.adapters.codec import Codec
from engine.adapters.mongodb.connection import MongoDatabase
from engine.adapters.mongodb.context_store import MongoContextStore
from engine.adapters.mongodb.execution_store import MongoExecutionStore
from engine.domain.context import ContextFilter
from engine.errors import ConfigurationError, StoreError
from engine.ports.execution_store import ExecutionFilter
from tests.contract.samples import NOW, ended, execution, seconds, step
from tests.servers import UnavailableError, are_required, free_port, mongodb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from tests.servers import RunningServer

    Start = Callable[..., Awaitable[RunningServer]]

# PyMongo does not close a socket when it is cancelled while it connects.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)

RUN_1 = NOW + seconds(1)
DRIVERS = ("motor", "pymongo")
PASSWORD = "hunter2-very-secret"


@pytest.fixture
async def start(tmp_path: Path) -> AsyncGenerator[Start]:
    """Starts servers of the test's own, on one folder; they are stopped after it."""
    if mongodb.given_uri() is not None:
        pytest.skip("the server that BATON_TEST_MONGO_URI names is not ours to stop")
    servers: list[RunningServer] = []

    async def start_one(*options: str, port: int = 0) -> RunningServer:
        (tmp_path / "data").mkdir(exist_ok=True)
        try:
            servers.append(await mongodb.start(tmp_path / "data", port, *options))
        except UnavailableError as error:
            if are_required():
                raise
            pytest.skip(f"{mongodb.NAME} is not available: {error}")
        return servers[-1]

    yield start_one
    for server in servers:
        await server.stop()


def store_on(uri: str, driver: Any = "pymongo", **options: Any) -> tuple[MongoDatabase, MongoExecutionStore]:
    database = MongoDatabase(uri, driver, **options)
    return database, MongoExecutionStore(database, Codec())


def port_of(server: RunningServer) -> int:
    return int(server.uri.partition("127.0.0.1:")[2].partition("/")[0])


async def refusal_of(call: Awaitable[object]) -> StoreError:
    """The error that a call ends with, which tells nobody the password."""
    with pytest.raises(StoreError) as refused:
        await call
    told = refused.value.message + repr(refused.value.details)
    assert PASSWORD not in told
    assert "mongo_uri" in told
    return refused.value


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_dead_port_is_told_within_5_seconds(driver: str) -> None:
    port = free_port()
    database, store = store_on(f"mongodb://someone:{PASSWORD}@127.0.0.1:{port}/there", driver)
    for call in (store.get_execution("e"), store.record_steps([step()], RUN_1), store.check_health()):
        began_at = time.monotonic()
        refused = await refusal_of(call)
        assert time.monotonic() - began_at < 2.5
        assert f"127.0.0.1:{port}" in refused.message
        assert "can't be reached" in refused.message
    await database.aclose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_never_answers_is_given_up(driver: str) -> None:
    silent: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    database, store = store_on(f"mongodb://someone:{PASSWORD}@127.0.0.1:{port}/", driver)
    began_at = time.monotonic()
    await refusal_of(store.list_executions(ExecutionFilter(), limit=1, after=None))
    assert time.monotonic() - began_at < 2.5
    await database.aclose()
    listening.close()
    for writer in silent:
        writer.close()
        await writer.wait_closed()


async def test_one_outage_of_a_batch_is_one_for_the_circuit() -> None:
    database, store = store_on(f"mongodb://127.0.0.1:{free_port()}/", deadline=timedelta(milliseconds=400))
    calls = [store.record_steps([step(f"s{number}")], RUN_1) for number in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in answers)
    assert len({id(answer) for answer in answers}) == 20
    refused = await refusal_of(store.get_execution("e"))
    assert refused.details["reason"] != "circuit_open"
    await database.aclose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_passwords_and_rights_are_told_apart(start: Start, driver: str) -> None:
    server = await start()
    async with AsyncMongoClient[dict[str, Any]](server.uri) as client:
        for name, role in (("writer", "readWrite"), ("reader", "read")):
            roles = [{"role": role, "db": "there"}]
            await client["there"].command({"createUser": name, "pwd": PASSWORD, "roles": roles})
    await server.stop()
    server = await start("--auth")
    place = f"127.0.0.1:{port_of(server)}"

    database, store = store_on(f"mongodb://writer:{PASSWORD}@{place}/there", driver)
    await store.create_execution(execution(), b"plan")
    assert await store.record_steps([step()], RUN_1) == [step()]
    await database.aclose()

    database, store = store_on(f"mongodb://writer:{PASSWORD}-wrong@{place}/there", driver)
    refused = await refusal_of(store.get_execution("e"))
    assert "refuses user and password" in refused.message
    assert place in refused.message
    await database.aclose()

    database, store = store_on(f"mongodb://reader:{PASSWORD}@{place}/there", driver)
    assert "readWrite" in (await refusal_of(store.create_execution(execution(), None))).message
    await database.aclose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_stands_alone_is_enough(start: Start, driver: str) -> None:
    server = await start("--standalone")
    database, store = store_on(server.uri, driver, deadline=timedelta(seconds=10))
    await store.create_execution(execution(), b"plan")
    await store.record_steps([step()], RUN_1)
    _, end = await store.record_last_steps([step("b")], ended())
    assert end is not None
    assert await store.get_execution("flow-1") == end
    assert await store.acquire_lease("reconciler", "one", timedelta(minutes=1)) is not None
    assert (await store.workflow_aggregates("flow", NOW - seconds(9), NOW + seconds(9))).completed == 1
    await database.aclose()


async def test_what_was_acknowledged_survives_a_kill(start: Start) -> None:
    server = await start()
    database, store = store_on(server.uri)
    acknowledged: list[str] = []

    async def write(worker: int) -> None:
        for number in range(10_000):
            execution_id = f"e{worker}-{number}"
            await store.create_execution(execution(execution_id), None)
            _, end = await store.record_last_steps([step(execution_id=execution_id)], ended(execution_id))
            assert end is not None
            acknowledged.append(execution_id)

    writers = [asyncio.create_task(write(worker)) for worker in range(8)]
    async with asyncio.timeout(60):
        while len(acknowledged) < 80:
            await asyncio.sleep(0.05)
    os.kill(server.pid, signal.SIGKILL)
    for writer in writers:
        await refusal_of(writer)
    await database.aclose()

    database, store = store_on((await start()).uri, deadline=timedelta(seconds=10))
    for execution_id in acknowledged:
        record = await store.get_execution(execution_id)
        assert record is not None
        assert record.status.is_terminal
        assert len(await store.list_steps(execution_id)) == 1
    await database.aclose()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_comes_back_is_used_again(start: Start, driver: str) -> None:
    server = await start(port=free_port())
    database, store = store_on(server.uri, driver)
    await store.record_steps([step("before")], RUN_1)
    await server.stop()
    for _ in range(6):
        await refusal_of(store.record_steps([step("while")], RUN_1))
    await start(port=port_of(server))
    async with asyncio.timeout(5):
        while True:
            try:
                await store.record_steps([step("after")], RUN_1)
                break
            except StoreError:
                await asyncio.sleep(0.1)
    assert {"before", "after"} <= {one.step_id for one in await store.list_steps("flow-1")}
    await database.aclose()


@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://u:{PASSWORD}@host/?tls=true&tlsInsecure=true&tlsAllowInvalidCertificates=true",
        f"mongodb://u:{PASSWORD}@ho st:port/",
        f"mongodb://u:{PASSWORD}:x@127.0.0.1:1/",
        f"mongodb://u:{PASSWORD}@127.0.0.1:1/a.b",
    ],
)
async def test_a_uri_that_the_driver_refuses(uri: str) -> None:
    database, store = store_on(uri)
    await refusal_of(store.get_execution("e"))
    await database.aclose()


@pytest.mark.parametrize("uri", ["mongodb://", f"mongodb://u:{PASSWORD}@/x", f"http://u:{PASSWORD}@h/"])
async def test_a_uri_without_a_server(uri: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        MongoDatabase(uri)
    assert PASSWORD not in refused.value.message


async def test_indexes_are_made_once_more_by_who_asks(start: Start) -> None:
    server = await start()
    database, store = store_on(server.uri, "motor", deadline=timedelta(seconds=10))
    await store.create_execution(execution(), None)
    async with AsyncMongoClient[dict[str, Any]](server.uri) as client:
        await client["baton"]["executions"].drop_indexes()
        with pytest.raises(StoreError):
            await store.list_executions(ExecutionFilter(), limit=1, after=None)
        await store.make_schema()
        names = {index["name"] async for index in await client["baton"]["executions"].list_indexes()}
    assert {"executions_by_time", "open_executions", "repeated_steps"} <= names
    assert len((await store.list_executions(ExecutionFilter(), limit=1, after=None)).items) == 1
    assert await MongoContextStore(database, Codec()).mark_unindexed(ContextFilter()) == 0
    await database.aclose()
