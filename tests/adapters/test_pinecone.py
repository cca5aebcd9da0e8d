"""Pinecone through its real SDK, on the stub of ``tests/servers``: what fails, how soon, and what is told about it."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pinecone import AsyncIndex, PineconeError

from engine.adapters.pinecone import MAX_BATCH, PineconeVectorIndex
from engine.errors import ConfigurationError, EngineError, InvalidInputError, StoreError
from engine.ports.vector_index import VectorItem
from tests.servers import free_port
from tests.servers import pinecone as stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.servers import RunningServer

CHECKOUT = Path(__file__).parents[2]
DIMENSION = 16
NAME = "small"
GIVE_UP_SECONDS = 5.0

CALLS: dict[str, Callable[[PineconeVectorIndex], Awaitable[object]]] = {
    "upsert": lambda index: index.upsert_vectors("space", [item("a")]),
    "query": lambda index: index.query_vectors("space", values(1), top_k=3),
    "delete": lambda index: index.delete_vectors("space", ["a"]),
    "delete all": lambda index: index.delete_namespace("space"),
    "describe": lambda index: index.describe_namespace("space"),
    "health": lambda index: index.check_health(),
}

OUTAGES: dict[str, dict[str, object]] = {
    "limited": {"fail": 429, "retry_after": 60},
    "broken": {"fail": 500},
    "unavailable": {"fail": 503},
    "cut": {"cut": True},
    "slow": {"delay": 8},
}


def values(seed: int, dimension: int = DIMENSION) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(0, 1) for _ in range(dimension)]


def item(item_id: str, dimension: int = DIMENSION, **metadata: str) -> VectorItem:
    return VectorItem(item_id, values(len(item_id), dimension), metadata)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A stub of the test's own, because it is made to fail."""
    server = await stub.start(tmp_path)
    stub.control(server.uri, "indexes", name=NAME, dimension=DIMENSION)
    yield server
    await server.stop()


@pytest.fixture
async def make(server: RunningServer) -> AsyncIterator[Callable[..., PineconeVectorIndex]]:
    made: list[PineconeVectorIndex] = []

    def make_index(by_name: bool = False, **given: Any) -> PineconeVectorIndex:
        host = None if by_name else f"{server.uri}/{NAME}"
        defaults = {"api_key": stub.API_KEY, "index": NAME, "host": host, "dimension": DIMENSION}
        index = PineconeVectorIndex(**{**defaults, "control_host": server.uri, **given})
        made.append(index)
        return index

    yield make_index
    for index in made:
        await index.aclose()


async def failure_of(call: Awaitable[object]) -> EngineError:
    with pytest.raises(EngineError) as raised:
        await call
    return raised.value


def requests(server: RunningServer) -> int:
    return sum(stub.counts(server.uri)["requests"].values())


# What fails.


@pytest.mark.parametrize("by_name", [False, True], ids=["host", "name"])
@pytest.mark.parametrize("outage", sorted(OUTAGES))
async def test_an_outage_is_a_store_error_in_time_at_the_first_use(
    server: RunningServer, make: Callable[..., PineconeVectorIndex], outage: str, by_name: bool
) -> None:
    stub.control(server.uri, times=None, **OUTAGES[outage])
    started = time.monotonic()
    failures = await asyncio.gather(*(failure_of(call(make(by_name))) for call in CALLS.values()))
    assert time.monotonic() - started < GIVE_UP_SECONDS
    for failure in failures:
        assert isinstance(failure, StoreError)
        assert failure.details["backend"] == "pinecone"
        assert server.uri.removeprefix("http://") in failure.message


@pytest.mark.parametrize("outage", sorted(OUTAGES))
async def test_an_outage_is_a_store_error_in_time_later(
    server: RunningServer, make: Callable[..., PineconeVectorIndex], outage: str
) -> None:
    indexes = [make() for _ in CALLS]
    await asyncio.gather(*(index.upsert_vectors("space", [item("a")]) for index in indexes))
    stub.control(server.uri, times=None, **OUTAGES[outage])
    started = time.monotonic()
    calls = zip(CALLS.values(), indexes, strict=True)
    failures = await asyncio.gather(*(failure_of(call(index)) for call, index in calls))
    assert time.monotonic() - started < GIVE_UP_SECONDS
    assert {type(failure) for failure in failures} == {StoreError}
    stub.control(server.uri)
    for call, index in zip(CALLS.values(), indexes, strict=True):
        await call(index)


async def test_a_server_that_hangs_or_is_gone_is_given_up_in_time(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    used = make()
    await used.upsert_vectors("space", [item("a")])
    os.kill(server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        tried = [used, make(), make(by_name=True)]
        failures = await asyncio.gather(*(failure_of(CALLS["query"](index)) for index in tried))
        assert time.monotonic() - started < GIVE_UP_SECONDS
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert {type(failure) for failure in failures} == {StoreError}
    assert await used.query_vectors("space", values(1), top_k=1)

    gone = [make(host=f"http://127.0.0.1:{free_port()}"), make(host="no-such-host.invalid")]
    started = time.monotonic()
    failures = await asyncio.gather(*(failure_of(CALLS["query"](index)) for index in gone))
    assert time.monotonic() - started < GIVE_UP_SECONDS
    assert {type(failure) for failure in failures} == {StoreError}
    assert "pinecone_host" in failures[0].message


async def test_what_is_a_little_slow_is_waited_for(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    index = make(by_name=True)
    stub.control(server.uri, times=None, delay=0.7)
    await index.upsert_vectors("space", [item("a")])
    assert [match.item_id for match in await index.query_vectors("space", values(1), top_k=1)] == ["a"]


async def test_a_refused_call_is_sent_once(server: RunningServer, make: Callable[..., PineconeVectorIndex]) -> None:
    index = make()
    await index.upsert_vectors("space", [item("a")])
    for fault in ({"fail": 503}, {"fail": 429}, {"cut": True}):
        stub.control(server.uri, "counts")
        stub.control(server.uri, times=None, **fault)
        await failure_of(index.query_vectors("space", values(1), top_k=1))
        assert stub.counts(server.uri)["requests"] == {"POST /query": 1}
        stub.control(server.uri)
        await index.query_vectors("space", values(1), top_k=1)
    unopened = make(by_name=True)
    stub.control(server.uri, "counts")
    stub.control(server.uri, times=None, fail=503)
    await failure_of(unopened.query_vectors("space", values(1), top_k=1))
    assert stub.counts(server.uri)["requests"] == {"GET /indexes": 1}


# The circuit.


@pytest.mark.parametrize("by_name", [False, True], ids=["open", "unopened"])
async def test_the_circuit_opens_probes_twice_a_second_and_closes(
    server: RunningServer, make: Callable[..., PineconeVectorIndex], by_name: bool
) -> None:
    index = make(by_name)
    if not by_name:
        await index.upsert_vectors("space", [item("a")])
    stub.control(server.uri, times=None, fail=503)
    for _ in range(5):
        assert (await failure_of(index.query_vectors("space", values(1), top_k=1))).details["reason"] == "http_503"
    stub.control(server.uri, "counts")
    started = time.monotonic()
    reasons: list[object] = []
    while (elapsed := time.monotonic() - started) < 2.5:
        failures = [failure_of(index.query_vectors("space", values(1), top_k=1)) for _ in range(4)]
        reasons.extend(failure.details["reason"] for failure in await asyncio.gather(*failures))
        await asyncio.sleep(0.01)
    assert 1 <= requests(server) <= 2 * elapsed + 1
    assert reasons.count("circuit_open") > len(reasons) * 0.8
    stub.control(server.uri)
    recovered = time.monotonic()
    while time.monotonic() - recovered < 5:
        try:
            await index.query_vectors("space", values(1), top_k=1)
            break
        except StoreError:
            await asyncio.sleep(0.05)
    assert time.monotonic() - recovered < 2
    await asyncio.gather(*(index.query_vectors("space", values(1), top_k=1) for _ in range(20)))


# Requests and connections.


@pytest.mark.parametrize("dimension", [DIMENSION, 3072])
async def test_upserts_come_in_batches_that_pinecone_takes(
    server: RunningServer, make: Callable[..., PineconeVectorIndex], dimension: int
) -> None:
    stub.control(server.uri, "indexes", name="batches", dimension=dimension)
    index = make(host=f"{server.uri}/batches", dimension=dimension)
    items = [item(f"item-{number}", dimension, text="é" * 200) for number in range(205)]
    await index.upsert_vectors("space", items)
    counts = stub.counts(server.uri)
    assert counts["largest_batch"] <= MAX_BATCH
    assert counts["largest_bytes"] <= stub.MAX_REQUEST_BYTES
    least = max(math.ceil(205 / MAX_BATCH), math.ceil(205 * dimension * 18 / stub.MAX_REQUEST_BYTES))
    assert least <= counts["requests"]["POST /vectors/upsert"] <= 2 * least
    assert (await index.describe_namespace("space")).count == 205


async def test_a_failed_batch_is_told_and_may_be_repeated(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    index = make()
    await index.upsert_vectors("other", [item("a")])
    items = [item(f"item-{number}") for number in range(250)]
    stub.control(server.uri, times=1, fail=503)
    await failure_of(index.upsert_vectors("space", items))
    await index.upsert_vectors("space", items)
    assert (await index.describe_namespace("space")).count == 250


async def test_a_large_vector_is_refused_by_pinecone_in_our_words(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    failure = await failure_of(make().upsert_vectors("space", [item("a", text="x" * 3_000_000)]))
    assert isinstance(failure, StoreError)
    assert failure.details["reason"] == "http_400"


async def test_there_are_never_more_connections_than_the_pool_has(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    index = make(pool_size=4)
    await index.upsert_vectors("space", [item("a")])
    stub.control(server.uri, times=None, delay=0.1)
    working = asyncio.gather(*(index.query_vectors("space", values(1), top_k=1) for _ in range(40)))
    most = 0
    while not working.done():
        most = max(most, (await asyncio.to_thread(stub.counts, server.uri))["connections"])
    await working
    assert 2 <= most <= 4


async def test_the_index_is_looked_up_and_asked_once(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    index = make(by_name=True)
    assert requests(server) == 0
    await asyncio.gather(*(index.upsert_vectors("space", [item(f"item-{number}")]) for number in range(10)))
    stub_counts = stub.counts(server.uri)["requests"]
    assert stub_counts["GET /indexes"] == 1
    await asyncio.gather(*(index.query_vectors("space", values(1), top_k=1) for _ in range(10)))
    after = stub.counts(server.uri)["requests"]
    assert after == {**stub_counts, "POST /query": 10}


# What is told.


async def test_a_wrong_key_names_its_setting(make: Callable[..., PineconeVectorIndex]) -> None:
    for by_name in (False, True):
        for call in CALLS.values():
            failure = await failure_of(call(make(by_name, api_key="wrong-key-1234")))
            assert isinstance(failure, StoreError)
            assert "pinecone_api_key" in failure.message
            assert failure.details == {"backend": "pinecone", "reason": "http_401"}


async def test_a_missing_index_says_what_to_create(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    for given in ({"by_name": True, "index": "missing"}, {"host": f"{server.uri}/missing"}):
        for call in CALLS.values():
            failure = await failure_of(call(make(**given)))
            assert isinstance(failure, StoreError)
            assert "pinecone_index" in failure.message
            assert f"dimension {DIMENSION} and metric cosine" in failure.message


async def test_an_index_for_other_vectors_is_refused_until_it_is_made_anew(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    for wrong in ({"dimension": 1536}, {"dimension": DIMENSION, "metric": "euclidean"}):
        stub.control(server.uri, "indexes", name="other", **wrong)
        stub.control(server.uri, "counts")
        index = make(host=f"{server.uri}/other")
        for call in CALLS.values():
            failure = await failure_of(call(index))
            assert isinstance(failure, InvalidInputError)
            assert "pinecone_index" in failure.message
            assert str(wrong.get("metric", 1536)) in failure.message
            assert f"dimension {DIMENSION} and metric cosine" in failure.message
        assert "POST /vectors/upsert" not in stub.counts(server.uri)["requests"]
        stub.control(server.uri, "indexes", name="other", dimension=DIMENSION)
        await index.upsert_vectors("space", [item("a")])


async def test_a_vector_of_another_dimension_names_the_index(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    failure = await failure_of(make().upsert_vectors("space", [item("a", 512)]))
    assert isinstance(failure, InvalidInputError)
    assert failure.details == {"key": "pinecone_index", "index_dimension": DIMENSION, "dimension": 512}
    assert requests(server) == 0


async def test_an_id_that_pinecone_cannot_take_is_refused(make: Callable[..., PineconeVectorIndex]) -> None:
    index = make()
    for item_id in ("", "x" * 513, "é" * 100):
        with pytest.raises(InvalidInputError, match="512"):
            await index.upsert_vectors("space", [VectorItem(item_id, values(1))])
    await index.delete_vectors("space", ["", "x" * 513])
    await index.upsert_vectors("space", [VectorItem("x" * 512, values(1)), VectorItem("é" * 80, values(1))])
    found = await index.query_vectors("space", values(1), top_k=2)
    assert {match.item_id for match in found} == {"x" * 512, "é" * 80}


def test_an_index_that_nobody_named_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pinecone_index"):
        PineconeVectorIndex("key", None, None, dimension=8)
    for host in ("", "https://", "ftp://host.io", "http://host:port", "https://[broken"):
        with pytest.raises(ConfigurationError, match="pinecone_host"):
            PineconeVectorIndex("key", "name", host, dimension=8)


async def test_the_key_and_the_hosts_credentials_are_told_to_nobody(
    server: RunningServer, make: Callable[..., PineconeVectorIndex], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = stub.API_KEY
    told: list[str] = []
    index = make(by_name=True)
    for fault in ({}, *OUTAGES.values(), {"fail": 401}, {"fail": 403}, {"fail": 404}, {"fail": 400}):
        stub.control(server.uri, times=None, **({**fault, "delay": 3} if "delay" in fault else fault))
        for call in (CALLS["upsert"], CALLS["query"]):
            try:
                told.append(repr(await call(index)))
            except EngineError as error:
                told += [*traceback.format_exception(error), repr(error.details), str(error.to_response())]
        told += [repr(index), str(index), repr(vars(index)["_opening"])]
        index = make(by_name=True) if fault else index
    with pytest.raises(ConfigurationError) as refused:
        make(host="http://somebody:pass-word@127.0.0.1:1")
    told.append(str(refused.value.to_response()))
    with_newline = make(api_key="first-line\nsecond-line")
    failure = await failure_of(with_newline.check_health())
    assert isinstance(failure, StoreError)
    told += [failure.message, *traceback.format_exception(failure)]
    assert len(caplog.records) > 20
    for text in (*told, caplog.text):
        for secret_text in (key, key[-4:] + "'", "pass-word", "somebody", "second-line"):
            assert secret_text not in text


# Opening and closing.


async def test_closing_lets_every_connection_go(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    before = asyncio.all_tasks()
    index = make(by_name=True)
    await asyncio.gather(*(index.upsert_vectors("space", [item("a")]) for _ in range(5)))
    await index.aclose()
    await index.aclose()
    assert asyncio.all_tasks() <= before
    deadline = time.monotonic() + 5
    while (left := stub.counts(server.uri)["connections"]) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert left == 0
    failure = await failure_of(index.query_vectors("space", values(1), top_k=1))
    assert failure.details["reason"] == "closed"
    gc.collect()


async def test_closing_what_was_never_used_or_is_being_opened(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    await make().aclose()
    index = make(by_name=True)
    stub.control(server.uri, times=None, delay=1)
    waiting = asyncio.create_task(failure_of(index.check_health()))
    await asyncio.sleep(0.3)
    await index.aclose()
    failure = await waiting
    assert failure.details["reason"] == "closed"


async def test_a_caller_that_is_cancelled_takes_nobody_with_it(
    server: RunningServer, make: Callable[..., PineconeVectorIndex]
) -> None:
    index = make(by_name=True)
    stub.control(server.uri, times=None, delay=0.3)
    first, second = (asyncio.create_task(index.upsert_vectors("space", [item("a")])) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await index.describe_namespace("space")).count == 1


async def test_the_loop_turns_while_the_sdk_is_loaded(server: RunningServer) -> None:
    program = """
import asyncio, sys
from datetime import timedelta
from engine.adapters.pinecone import PineconeVectorIndex

async def main():
    assert "pinecone.async_client.async_index" not in sys.modules and "httpx" not in sys.modules
    index = PineconeVectorIndex(sys.argv[1], None, sys.argv[2], dimension=16, deadline=timedelta(seconds=20))
    turns = 0
    asking = asyncio.create_task(index.query_vectors("space", [1.0] * 16, top_k=1))
    while not asking.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert asking.result() == []
    await index.aclose()
    print(turns)

asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stub.API_KEY, f"{server.uri}/{NAME}",
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    assert int(output) > 20


# The stub itself: what the adapter does not use, through the real SDK.


async def test_the_stub_speaks_the_rest_of_the_vector_api(server: RunningServer) -> None:
    async with AsyncIndex(host=f"{server.uri}/{NAME}", api_key=stub.API_KEY) as index:
        await index.upsert(
            vectors=[{"id": f"doc-{n}", "values": values(n), "metadata": {"n": str(n)}} for n in range(7)],
            namespace="s",
        )
        await index.upsert(vectors=[("default", values(9))])
        await index.update(id="doc-1", set_metadata={"seen": "yes"}, namespace="s")
        fetched = (await index.fetch(ids=["doc-1", "nobody"], namespace="s")).vectors
        assert list(fetched) == ["doc-1"]
        assert fetched["doc-1"].metadata == {"n": "1", "seen": "yes"}
        assert fetched["doc-1"].values == pytest.approx(values(1))
        listed = [one.id async for page in index.list(prefix="doc-", limit=3, namespace="s") for one in page.vectors]
        assert listed == [f"doc-{n}" for n in range(7)]
        found = await index.query(
            vector=values(1), top_k=9, namespace="s", include_metadata=True,
            filter={"$and": [{"n": {"$in": ["1", "2"]}}, {"seen": {"$eq": "yes"}}]},
        )  # fmt: skip
        assert [(match.id, match.metadata) for match in found.matches] == [("doc-1", {"n": "1", "seen": "yes"})]
        assert (await index.describe_namespace(name="s")).record_count == 7
        await index.delete(filter={"n": {"$eq": "2"}}, namespace="s")
        assert {name: one.vector_count for name, one in (await index.describe_index_stats()).namespaces.items()} == {
            "s": 6,
            "__default__": 1,
        }
        await index.delete(delete_all=True, namespace="s")
        namespaces = [one.name async for page in index.list_namespaces() for one in page.namespaces]
        assert namespaces == ["__default__"]
        with pytest.raises(PineconeError, match="dimension"):
            await index.upsert(vectors=[("wrong", [1.0])])
        with pytest.raises(PineconeError, match="Namespace not found"):
            await index.delete(ids=["x"], namespace="nowhere")
        with pytest.raises(PineconeError, match="operator"):
            await index.query(vector=values(1), top_k=1, filter={"n": {"$like": "1"}})
