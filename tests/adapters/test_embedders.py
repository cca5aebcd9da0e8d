"""Embedders beyond their contract: what fails, how soon, what is told about it, and what is sent."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import math
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.embedding import MAX_BATCH_BYTES, MAX_TEXT_BYTES
from engine.adapters.hashing_embedder import HashingEmbedder
from engine.adapters.openai_embedder import MAX_BATCH, OpenAIEmbedder
from engine.adapters.pinecone_embedder import PineconeEmbedder
from engine.errors import ConfigurationError, EngineError, InvalidInputError, StoreError
from engine.testing.model_answers import ModelAnswer
from engine.testing.model_stub import ModelStub
from tests.servers import free_port
from tests.servers import pinecone as pinecone_stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.servers import RunningServer

CHECKOUT = Path(__file__).parents[2]
KEY = "sk-the-key-of-the-test"
PATIENCE = timedelta(seconds=2)
MODEL = "text-embedding-3-small"


async def failure_of(call: Awaitable[object]) -> EngineError:
    with pytest.raises(EngineError) as raised:
        await call
    return raised.value


def inputs(stub: ModelStub) -> list[list[str]]:
    return [request["body"]["input"] for request in stub.requests]


@pytest.fixture
async def openai() -> AsyncIterator[Callable[..., OpenAIEmbedder]]:
    made: list[OpenAIEmbedder] = []

    def make(stub: ModelStub | None = None, model: str = MODEL, **given: Any) -> OpenAIEmbedder:
        base_url = {} if stub is None else {"base_url": stub.base_url}
        embedder = OpenAIEmbedder(model, **{"api_key": KEY, "deadline": PATIENCE, **base_url, **given})
        made.append(embedder)
        return embedder

    yield make
    for embedder in made:
        await embedder.aclose()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A stub of Pinecone of the test's own, because it is made to fail."""
    server = await pinecone_stub.start(tmp_path)
    yield server
    await server.stop()


@pytest.fixture
async def hosted(server: RunningServer) -> AsyncIterator[Callable[..., PineconeEmbedder]]:
    made: list[PineconeEmbedder] = []

    def make(**given: Any) -> PineconeEmbedder:
        defaults = {"api_key": pinecone_stub.API_KEY, "control_host": server.uri, "deadline": PATIENCE}
        made.append(PineconeEmbedder(**{**defaults, **given}))
        return made[-1]

    yield make
    for embedder in made:
        await embedder.aclose()


# The built-in one.


async def test_the_way_of_counting_is_the_one_that_its_name_says() -> None:
    """If this fails, vectors that users have stored are compared with others of the same name: give it a new one."""
    embedder = HashingEmbedder()
    texts = ["The deployment failed because of the database.", "架構 für Übung", "a a a b", "!!!", "", "\ud800"]
    made = await embedder.embed_texts(texts, "document")
    rounded = [[round(value * 1e6) for value in values] for values in made]
    assert embedder.name == "hashing-512-v1"
    assert hashlib.sha256(json.dumps(rounded).encode()).hexdigest() == GOLDEN_VECTORS


GOLDEN_VECTORS = "519e7755b4f47b90f439771a32083a92c37fcd6204a81af6406b4bc8b7458158"


async def test_many_texts_let_the_loop_turn_between_them() -> None:
    text = " ".join(f"word{number}" for number in range(200))
    embedding = asyncio.create_task(HashingEmbedder().embed_texts([f"{text} {n}" for n in range(50)], "document"))
    turns = 0
    while not embedding.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 50
    assert len(embedding.result()) == 50


# Dimensions and names.


@pytest.mark.parametrize(
    ("model", "given", "dimension", "name", "asked"),
    [
        (MODEL, None, 1536, f"openai:{MODEL}", None),
        (MODEL, 1536, 1536, f"openai:{MODEL}", None),
        (MODEL, 256, 256, f"openai:{MODEL}:256", 256),
        ("text-embedding-3-large", None, 3072, "openai:text-embedding-3-large", None),
        ("text-embedding-ada-002", None, 1536, "openai:text-embedding-ada-002", None),
        ("openai/text-embedding-3-small", None, 1536, "openai:openai/text-embedding-3-small", None),
        ("nomic-embed-text", 768, 768, "openai:nomic-embed-text:768", None),
    ],
)
async def test_the_name_and_the_request_say_the_dimension(
    openai: Callable[..., OpenAIEmbedder], model: str, given: int | None, dimension: int, name: str, asked: int | None
) -> None:
    with ModelStub(dimension=dimension) as stub:
        embedder = openai(stub, model, dimension=given)
        assert (embedder.name, embedder.dimension) == (name, dimension)
        [values] = await embedder.embed_texts(["one"], "query")
        assert len(values) == dimension
        [request] = stub.requests
        expected = {"model": model, "input": ["one"], "encoding_format": "float"}
        assert request["body"] == expected | ({} if asked is None else {"dimensions": asked})
        assert request["headers"]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "dimension"), [("nomic-embed-text", None), (MODEL, 1537), ("text-embedding-ada-002", 512)]
)
def test_a_dimension_that_cannot_be_known_or_had_is_refused(model: str, dimension: int | None) -> None:
    with pytest.raises(ConfigurationError, match="embedding_dimension"):
        OpenAIEmbedder(model, KEY, None, dimension)


@pytest.mark.parametrize(
    ("model", "dimension"), [("multilingual-e5-large", 512), ("llama-text-embed-v2", 100), ("new-model", None)]
)
def test_pinecones_models_too(model: str, dimension: int | None) -> None:
    with pytest.raises(ConfigurationError, match="embedding_dimension"):
        PineconeEmbedder("key", model, dimension)


async def test_other_vectors_than_configured_name_the_setting(
    openai: Callable[..., OpenAIEmbedder], hosted: Callable[..., PineconeEmbedder]
) -> None:
    with ModelStub(dimension=384) as stub:
        failure = await failure_of(openai(stub, "all-minilm", dimension=768).embed_texts(["one"], "query"))
    assert isinstance(failure, StoreError)
    assert "Set embedding_dimension to 384" in failure.message
    failure = await failure_of(hosted(model="of-another-kind", dimension=8).embed_texts(["one"], "query"))
    assert "embedding_model" in failure.message


async def test_pinecone_is_told_passages_from_queries_and_the_dimension(
    hosted: Callable[..., PineconeEmbedder],
) -> None:
    embedder = hosted(model="llama-text-embed-v2", dimension=768)
    assert (embedder.name, embedder.dimension) == ("pinecone:llama-text-embed-v2:768", 768)
    [passage] = await embedder.embed_texts(["one text"], "document")
    [query] = await embedder.embed_texts(["one text"], "query")
    assert passage[512] == 0
    assert query[512] > 0
    assert hosted().name == "pinecone:multilingual-e5-large"


# What is sent.


async def test_texts_come_in_batches_and_each_one_once(openai: Callable[..., OpenAIEmbedder]) -> None:
    with ModelStub(dimension=1536) as stub:
        embedder = openai(stub)
        texts = [f"text {number % 200}" for number in range(300)]
        made = await embedder.embed_texts(texts, "document")
        assert [len(batch) for batch in inputs(stub)] == [MAX_BATCH, 200 - MAX_BATCH]
        assert made[:100] == made[200:]
        assert len({tuple(values) for values in made}) == 200
        stub.requests.clear()
        await embedder.embed_texts([f"{number} " + "x" * 7000 for number in range(100)], "document")
        assert all(sum(map(len, batch)) <= MAX_BATCH_BYTES for batch in inputs(stub))
        assert sum(map(len, inputs(stub))) == 100


async def test_what_endpoints_refuse_is_sent_otherwise(openai: Callable[..., OpenAIEmbedder]) -> None:
    with ModelStub(dimension=1536) as stub:
        texts = ["", " \n", "\ud800", "é" * 10_000, "nul\x00", "🚀" * 5_000]
        made = await openai(stub).embed_texts(texts, "document")
        [sent] = inputs(stub)
    assert [len(values) for values in made] == [1536] * 6
    assert made[0] == made[1]
    assert all(text.strip() and len(text.encode()) <= MAX_TEXT_BYTES for text in sent)
    assert sent[2] == "é" * (MAX_TEXT_BYTES // 2)


async def test_pinecone_gets_no_more_texts_than_it_takes(
    server: RunningServer, hosted: Callable[..., PineconeEmbedder]
) -> None:
    made = await hosted().embed_texts([f"text {number}" for number in range(200)] + ["", "\ud800"], "document")
    assert [len(values) for values in made] == [1024] * 202
    counts = pinecone_stub.counts(server.uri)
    assert counts["requests"] == {"POST /embed": 3}
    assert counts["largest_batch"] == 96


async def test_the_order_is_the_one_of_the_texts_whatever_the_answers(openai: Callable[..., OpenAIEmbedder]) -> None:
    def reverse(body: dict[str, Any]) -> ModelAnswer:
        data = [{"index": place, "embedding": [1.0, float(text)]} for place, text in enumerate(body["input"])]
        return ModelAnswer(body={"data": data[::-1]})

    with ModelStub(embeddings=reverse) as stub:
        made = await openai(stub, "numbers", dimension=2).embed_texts(["3", "1", "2", "1"], "document")
    assert [round(high / low) for low, high in made] == [3, 1, 2, 1]
    assert {round(math.hypot(*values), 9) for values in made} == {1.0}


# What fails.

OUTAGES: dict[str, object] = {
    "limited": ModelStub.error(429, retry_after=60),
    "broken": ModelStub.error(500),
    "unavailable": ModelStub.error(503),
    "cut": ModelStub.cut("x"),
    "slow": ModelStub.slow(20, "x"),
}


@pytest.mark.parametrize("outage", sorted(OUTAGES))
async def test_an_outage_is_one_request_and_a_store_error_in_time(
    openai: Callable[..., OpenAIEmbedder], outage: str
) -> None:
    with ModelStub(embeddings=OUTAGES[outage]) as stub:
        started = time.monotonic()
        failure = await failure_of(openai(stub).embed_texts(["one"], "query"))
        assert time.monotonic() - started < PATIENCE.total_seconds() + 1
        assert len(stub.requests) == 1
        host = stub.base_url.removeprefix("http://").removesuffix("/v1")
    assert isinstance(failure, StoreError)
    assert failure.details["backend"] == "openai"
    assert f"{host} (embedding_base_url)" in failure.message


@pytest.mark.parametrize(
    "fault", [{"fail": 429, "retry_after": 60}, {"fail": 503}, {"cut": True}, {"delay": 8}], ids=str
)
async def test_pinecones_outage_too(
    server: RunningServer, hosted: Callable[..., PineconeEmbedder], fault: dict[str, object]
) -> None:
    embedder = hosted()
    pinecone_stub.control(server.uri, times=None, **fault)
    started = time.monotonic()
    failure = await failure_of(embedder.embed_texts(["one"], "query"))
    assert time.monotonic() - started < PATIENCE.total_seconds() + 2
    assert isinstance(failure, StoreError)
    assert server.uri.removeprefix("http://") in failure.message
    assert pinecone_stub.counts(server.uri)["requests"] == {"POST /embed": 1}
    pinecone_stub.control(server.uri)
    assert len(await embedder.embed_texts(["one"], "query")) == 1


async def test_an_endpoint_that_is_not_there_is_given_up_in_time(openai: Callable[..., OpenAIEmbedder]) -> None:
    for address in (f"http://127.0.0.1:{free_port()}/v1", "http://no-such-host.invalid/v1"):
        started = time.monotonic()
        failure = await failure_of(openai(base_url=address).embed_texts(["one"], "query"))
        assert time.monotonic() - started < PATIENCE.total_seconds() + 1
        assert isinstance(failure, StoreError)
        assert "embedding_base_url" in failure.message


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, "embedding_api_key"),
        (403, "embedding_api_key"),
        (404, "embedding_model"),
        (302, "redirects"),
        (418, "http_418"),
    ],
)
async def test_a_refusal_names_its_setting(openai: Callable[..., OpenAIEmbedder], status: int, named: str) -> None:
    with ModelStub(embeddings=ModelStub.error(status)) as stub:
        failure = await failure_of(openai(stub).embed_texts(["one"], "query"))
        assert len(stub.requests) == 1
    assert isinstance(failure, StoreError)
    assert failure.details == {"backend": "openai", "reason": f"http_{status}"}
    assert named in f"{failure.message} {failure.details}"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_text_that_is_refused_is_invalid_input(openai: Callable[..., OpenAIEmbedder], status: int) -> None:
    with ModelStub(embeddings=ModelStub.error(status, message="maximum context length is 512")) as stub:
        failure = await failure_of(openai(stub).embed_texts(["one"], "query"))
    assert isinstance(failure, InvalidInputError)
    assert "maximum context length is 512" in failure.message


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        {},
        {"data": []},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": "AAAA"}]},
        {"data": [{"index": 0, "embedding": [1.0, None]}]},
        {"data": {"index": 0}},
        [1],
    ],
    ids=str,
)
async def test_an_answer_that_is_none_is_a_store_error(openai: Callable[..., OpenAIEmbedder], body: Any) -> None:
    with ModelStub(embeddings=lambda _: ModelAnswer(body=body)) as stub:
        failure = await failure_of(openai(stub, "m", dimension=1).embed_texts(["one"], "query"))
    assert isinstance(failure, StoreError)
    assert "can't be read" in failure.message


async def test_a_vector_without_a_direction_is_the_texts_fault(openai: Callable[..., OpenAIEmbedder]) -> None:
    answer = {"data": [{"index": 0, "embedding": [0.0, 0.0]}]}
    with ModelStub(embeddings=lambda _: ModelAnswer(body=answer)) as stub:
        failure = await failure_of(openai(stub, "m", dimension=2).embed_texts(["one"], "query"))
    assert isinstance(failure, InvalidInputError)


async def test_the_circuit_opens_and_closes(openai: Callable[..., OpenAIEmbedder]) -> None:
    is_well = False

    def answer(body: dict[str, Any]) -> ModelAnswer:
        if is_well:
            return ModelAnswer(body={"data": [{"index": 0, "embedding": [1.0]}]})
        return ModelStub.error(503)

    with ModelStub(embeddings=answer) as stub:
        embedder = openai(stub, "m", dimension=1)
        reasons = [(await failure_of(embedder.embed_texts(["one"], "query"))).details["reason"] for _ in range(8)]
        assert reasons == [*["http_503"] * 5, "http_503", *["circuit_open"] * 2]
        is_well = True
        await asyncio.sleep(0.6)
        assert await embedder.embed_texts(["one"], "query") == [[1.0]]


@pytest.mark.parametrize(
    "address",
    ["host/v1", "ftp://host", "https://", "http://user:pass-word@host/v1", "http://h:x", "http://h/v1?a=b"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="embedding_base_url") as raised:
        OpenAIEmbedder(MODEL, KEY, address)
    assert "pass-word" not in str(raised.value)


async def test_the_key_is_told_to_nobody(
    openai: Callable[..., OpenAIEmbedder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    for script in (None, ModelStub.error(401), ModelStub.error(400), ModelStub.error(500), ModelStub.cut("x")):
        with ModelStub(embeddings=script, dimension=1536, api_key="another") as stub:
            embedder = openai(stub)
            failure = await failure_of(embedder.embed_texts(["one"], "query"))
            told += [repr(embedder), failure.message, json.dumps(failure.details), *traceback.format_exception(failure)]
    with pytest.raises(ConfigurationError, match="embedding_api_key") as raised:
        OpenAIEmbedder(MODEL, f"{KEY}\nsecond-line")
    told.append(str(raised.value))
    for text in (*told, caplog.text):
        assert KEY not in text
        assert "second-line" not in text


async def test_a_wrong_key_and_model_of_pinecone_name_their_settings(
    hosted: Callable[..., PineconeEmbedder], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for given, named in [
        ({"api_key": "wrong-key-1234"}, "pinecone_api_key"),
        ({"api_key": "wrong-key\nsecond-line"}, "pinecone_api_key"),
        ({"model": "missing", "dimension": 8}, "embedding_model"),
    ]:
        failure = await failure_of(hosted(**given).embed_texts(["one"], "query"))
        assert isinstance(failure, StoreError)
        assert named in failure.message
        for text in (failure.message, *traceback.format_exception(failure), caplog.text):
            assert "wrong-key" not in text
            assert "second-line" not in text


# Opening and closing.


async def test_there_are_never_more_connections_than_the_pool_has(openai: Callable[..., OpenAIEmbedder]) -> None:
    with ModelStub(dimension=1536) as stub:
        embedder = openai(stub, pool_size=3)
        made = await asyncio.gather(*(embedder.embed_texts([f"text {n}"], "query") for n in range(30)))
        assert len({tuple(values) for [values] in made}) == 30
        assert stub.connections_made <= 3


async def test_closing_lets_every_connection_go(
    openai: Callable[..., OpenAIEmbedder], hosted: Callable[..., PineconeEmbedder], server: RunningServer
) -> None:
    before = asyncio.all_tasks()
    with ModelStub(dimension=1536) as stub:
        for embedder in (openai(stub), hosted()):
            await asyncio.gather(*(embedder.embed_texts(["one"], "query") for _ in range(5)))
            await embedder.aclose()
            await embedder.aclose()
            failure = await failure_of(embedder.embed_texts(["one"], "query"))
            assert failure.details["reason"] == "closed"
        assert asyncio.all_tasks() <= before
        deadline = time.monotonic() + 5
        while (
            left := stub.connections + pinecone_stub.counts(server.uri)["connections"]
        ) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert left == 0
    gc.collect()


async def test_making_one_loads_no_client_and_the_loop_turns_while_it_is_loaded() -> None:
    program = """
import asyncio, sys
from engine.adapters.openai_embedder import OpenAIEmbedder

async def main():
    embedder = OpenAIEmbedder("m", "key", sys.argv[1], 8)
    assert "httpx2" not in sys.modules
    turns = 0
    asking = asyncio.create_task(embedder.embed_texts(["one"], "query"))
    while not asking.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len(asking.result()[0]) == 8
    assert not {"openai", "httpx", "pydantic_ai"} & set(sys.modules)
    await embedder.aclose()
    print(turns)

asyncio.run(main())
"""
    with ModelStub(dimension=8) as stub:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", program, stub.base_url,
            cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    assert int(output) > 10
