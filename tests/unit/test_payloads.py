"""Payloads survive Temporal's own converter, stay readable where people read, and the UI can unpack the rest."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

import pytest
from pydantic import BaseModel
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from engine.adapters.codec import MAX_DECODED_BYTES, compress_zstd
from engine.adapters.temporal.payloads import (
    CodecServer,
    SharedPayloadConverter,
    ZstdPayloadCodec,
    data_converter,
)
from engine.errors import ConfigurationError, StoreError

LONG = {"plan": "build and test " * 500, "n": 1}
UI_ORIGIN = "http://localhost:8233"


class Plan(BaseModel):
    name: str
    sizes: dict[str, int] = {}


async def encode_one(converter, value):
    return (await converter.encode([value]))[0]


async def test_json_is_compact_and_short_payloads_stay_text():
    payload = await encode_one(data_converter(1024), {"b": [1, 2.5, None], "a": "é"})
    assert payload.metadata["encoding"] == b"json/plain"
    assert payload.data == '{"b":[1,2.5,null],"a":"é"}'.encode()


@pytest.mark.parametrize("threshold", [0, 1024])
async def test_the_longest_summary_stays_text(threshold):
    payload = await encode_one(data_converter(threshold), "s" * 400)
    assert payload.metadata["encoding"] == b"json/plain"


@pytest.mark.parametrize("value", [None, LONG, Plan(name="a" * 5000, sizes={"x": 1}), b"\x00" * 5000, "é" * 2000])
async def test_round_trip(value):
    converter = data_converter(1024)
    payloads = await converter.encode([value])
    hint = type(value) if isinstance(value, Plan) else None
    assert await converter.decode(payloads, [hint] if hint else None) == [value]


async def test_long_payloads_are_wrapped_whole():
    payload = await encode_one(data_converter(1024), LONG)
    assert payload.metadata == {"encoding": b"binary/zstd"}
    assert payload.ByteSize() < 300


async def test_what_does_not_shrink_passes():
    noise = Payload(metadata={"encoding": b"binary/plain"}, data=compress_zstd(bytes(range(256)) * 3)[:700])
    codec = ZstdPayloadCodec(0)
    assert await codec.encode([noise]) == [noise]


async def test_the_live_details_of_a_run_stay_readable():
    payload = await encode_one(data_converter(0), WorkflowMetadata(current_details="| step | state |\n" * 500))
    assert payload.metadata["encoding"] == b"json/protobuf"


async def test_encoding_twice_changes_nothing_and_foreign_encodings_pass():
    codec = ZstdPayloadCodec(0)
    once = await codec.encode([Payload(metadata={"encoding": b"json/plain"}, data=b'"' + b"a" * 5000 + b'"')])
    assert await codec.encode(once) == once
    foreign = [Payload(metadata={"encoding": b"binary/encrypted"}, data=b"x")]
    assert await codec.decode(foreign) == foreign


async def test_large_payloads_leave_the_event_loop(monkeypatch):
    moved = 0
    in_thread = asyncio.to_thread

    async def counted(function):
        nonlocal moved
        moved += 1
        return await in_thread(function)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    converter = data_converter(1024)
    assert await converter.decode(await converter.encode(["a" * 100_000])) == ["a" * 100_000]
    assert moved == 0
    # Compressed it is small: reading must go by the size that it will have.
    assert await converter.decode(await converter.encode(["a" * 200_000])) == ["a" * 200_000]
    assert moved == 2


@pytest.mark.parametrize(
    "data",
    [
        b"no frame",
        compress_zstd(b"a" * 2000)[:-5],
        compress_zstd(b"\xff\xff no payload"),
        compress_zstd(bytes(MAX_DECODED_BYTES + 1)),
    ],
    ids=["no frame", "cut", "no payload inside", "bomb"],
)
async def test_damage_is_an_ordinary_error_that_temporal_retries(data):
    with pytest.raises(StoreError, match="payload in Temporal's history can't be read") as caught:
        await ZstdPayloadCodec().decode([Payload(metadata={"encoding": b"binary/zstd"}, data=data)])
    assert not isinstance(caught.value, ApplicationError)


async def test_failures_keep_their_details():
    converter = data_converter(1024)
    failure = Failure()
    await converter.encode_failure(ApplicationError("no", LONG, type="invalid_output"), failure)
    assert failure.message == "no"
    assert failure.application_failure_info.details.payloads[0].metadata["encoding"] == b"binary/zstd"
    error = await converter.decode_failure(failure)
    assert isinstance(error, ApplicationError)
    assert error.details == (LONG,)


def test_runs_share_what_was_learnt_of_a_type():
    payload = SharedPayloadConverter().to_payloads([Plan(name="a")])[0]

    class Once(BaseModel):
        name: str

    first = SharedPayloadConverter()
    second = SharedPayloadConverter()
    assert first.from_payload(payload, Once) == Once(name="a")
    cache = second.converters[b"json/plain"]._type_adapter
    hits = cache.cache_info().hits
    assert second.from_payload(payload, Once) == Once(name="a")
    assert cache.cache_info().hits == hits + 1


def test_raw_values_pass():
    raw = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"1"))
    assert SharedPayloadConverter().to_payloads([raw]) == [raw.payload]


@pytest.fixture
async def codec_server():
    server = CodecServer(ZstdPayloadCodec(1024))
    url = await server.start()
    yield url.removeprefix("http://")
    await server.aclose()


async def send(address, data):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines), body


def request(method, target, body=b"", **headers):
    given = {"Host": "localhost", "Content-Length": str(len(body))} | headers
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def wire(payload):
    """The form in which Temporal's UI sends and takes a payload."""
    metadata = {name: base64.b64encode(value).decode() for name, value in payload.metadata.items()}
    return {"metadata": metadata, "data": base64.b64encode(payload.data).decode()}


async def test_the_ui_gets_text(codec_server):
    payloads = await data_converter(1024).encode([LONG, "short"])
    body = json.dumps({"payloads": [wire(payload) for payload in payloads]}).encode()
    ui = {"Origin": UI_ORIGIN, "Content-Type": "application/json", "X-Namespace": "default"}
    status, headers, answer = await send(codec_server, request("POST", "/decode?preserveStorageRefs=true", body, **ui))
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == UI_ORIGIN
    shown = json.loads(answer)["payloads"]
    assert [base64.b64decode(item["metadata"]["encoding"]) for item in shown] == [b"json/plain"] * 2
    assert [json.loads(base64.b64decode(item["data"])) for item in shown] == [LONG, "short"]


async def test_encode_is_what_the_worker_reads(codec_server):
    plain = SharedPayloadConverter().to_payloads([LONG])[0]
    body = json.dumps({"payloads": [wire(plain)]}).encode()
    status, _, answer = await send(codec_server, request("POST", "/encode", body))
    item = json.loads(answer)["payloads"][0]
    packed = Payload(
        metadata={"encoding": base64.b64decode(item["metadata"]["encoding"])},
        data=base64.b64decode(item["data"]),
    )
    assert status == 200
    assert packed.metadata["encoding"] == b"binary/zstd"
    assert await data_converter(1024).decode([packed]) == [LONG]


async def test_preflight(codec_server):
    status, headers, body = await send(
        codec_server,
        request(
            "OPTIONS",
            "/decode",
            **{
                "Origin": UI_ORIGIN,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type,x-namespace",
            },
        ),
    )
    assert (status, body) == (204, b"")
    assert headers["Access-Control-Allow-Origin"] == UI_ORIGIN
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert {"Content-Type", "X-Namespace"} <= set(headers["Access-Control-Allow-Headers"].split(", "))


BOMB = Payload(metadata={"encoding": b"binary/zstd"}, data=compress_zstd(bytes(MAX_DECODED_BYTES - 10)))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", "/decode"), 405),
        (request("POST", "/download", b"{}"), 404),
        (request("POST", "/decode", b"{}", Origin="https://elsewhere.example"), 403),
        (request("POST", "/decode", b"{}", Origin="http://localhost.elsewhere.example"), 403),
        (request("OPTIONS", "/decode", Origin="null"), 403),
        (request("POST", "/decode", b"no json"), 400),
        (request("POST", "/decode", b'{"payloads": 1}'), 400),
        (request("POST", "/decode", b'{"payloads": [{"data": "a"}]}'), 400),
        (request("POST", "/decode", b"{}", **{"Content-Length": "99999999999"}), 413),
        (request("POST", "/decode", b"{}", **{"Content-Length": "-1"}), 411),
        (request("POST", "/decode", b"{}", **{"Content-Length": "²"}), 411),
        (request("POST", "/decode", Cookie="a" * 20_000), 431),
        (b"hello\r\n\r\n", 400),
        (request("POST", "/decode", json.dumps({"payloads": [wire(BOMB)] * 2}).encode()), 400),
    ],
)
async def test_refusals(codec_server, data, status):
    answered, headers, body = await send(codec_server, data)
    assert answered == status
    assert json.loads(body)["message"]
    assert "Access-Control-Allow-Origin" not in headers


async def test_closing_ends_open_connections_and_frees_the_port(caplog):
    server = CodecServer(ZstdPayloadCodec())
    port = int((await server.start()).rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /decode HTTP/1.1\r\n")
    await writer.drain()
    while not server._connections:
        await asyncio.sleep(0)
    await server.aclose()
    await server.aclose()
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()
    assert not server._connections
    assert "ERROR" not in [record.levelname for record in caplog.records]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_taken_port_is_said(codec_server):
    host, port = codec_server.rsplit(":", 1)
    with pytest.raises(ConfigurationError, match="can't listen on"):
        await CodecServer(ZstdPayloadCodec()).start(host, int(port))
