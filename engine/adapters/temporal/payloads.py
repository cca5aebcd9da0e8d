"""Payloads are pydantic's JSON, compressed only when that pays, and readable by people in both forms.

Converters are built once for the process: Temporal makes a payload converter for each workflow run, and one
with a cache of its own would build every type's validator again in each of them. Short payloads, which
summaries are, stay JSON in history, and so does what the SDK itself writes for the UI. For the rest
Temporal's UI and CLI ask the codec server here. It holds no secret: who reaches it can only unpack bytes
that they already have.
"""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter, ToJsonOptions
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
    PayloadCodec,
)

from engine.adapters.codec import MAX_DECODED_BYTES, compress_zstd, declared_zstd_bytes, decompress_zstd
from engine.errors import ConfigurationError, EngineError, InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ZSTD = b"binary/zstd"
# The SDK's own messages: the live "current details" of a run and references to external storage.
_FOR_PEOPLE = b"json/protobuf"
# Temporal allows 400 bytes of summary; they must stay text in the UI whatever threshold is set.
_SUMMARY_BYTES = 512
_THREAD_BYTES = 128 * 1024

# One event's payloads: Temporal's own messages end at 4 MB, and base64 makes them a third longer.
_MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_HEAD_BYTES = 16 * 1024
_REQUEST_SECONDS = 10
_LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")

# Only what was set: defaults are the reader's, and every byte is kept in the history.
_JSON = PydanticJSONPlainPayloadConverter(ToJsonOptions(exclude_unset=True))
_CONVERTERS = tuple(
    _JSON if isinstance(converter, JSONPlainPayloadConverter) else converter
    for converter in DefaultPayloadConverter.default_encoding_payload_converters
)


class SharedPayloadConverter(CompositePayloadConverter):
    """Temporal's own encodings with pydantic's JSON in the place of ``json/plain``.

    Instances are cheap: all of them use the same converters, which are safe to share between threads.
    """

    def __init__(self) -> None:
        super().__init__(*_CONVERTERS)


class ZstdPayloadCodec(PayloadCodec):
    """Wraps a whole payload as ``binary/zstd`` when it is above the threshold and becomes smaller.

    Args:
        threshold_bytes: size of a payload with its metadata; 512 is the least that counts, so that
            summaries stay readable.
    """

    def __init__(self, threshold_bytes: int = 1024) -> None:
        self._threshold_bytes = max(threshold_bytes, _SUMMARY_BYTES)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return one payload for each given, compressed or untouched."""
        if sum(payload.ByteSize() for payload in payloads) <= _THREAD_BYTES:
            return [self._compressed(payload) for payload in payloads]
        return await asyncio.to_thread(lambda: [self._compressed(payload) for payload in payloads])

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as they were before ``encode``; those of other encodings pass.

        Raises:
            StoreError: one is damaged or too large. Temporal retries the task, so that a repaired worker
                goes on: a workflow must not fail for good because of a codec.
        """
        try:
            if sum(unpacked_bytes(payload) for payload in payloads) <= _THREAD_BYTES:
                return [_decompressed(payload) for payload in payloads]
            return await asyncio.to_thread(lambda: [_decompressed(payload) for payload in payloads])
        except (ValueError, DecodeError) as error:
            raise StoreError(
                f"A payload in Temporal's history can't be read: {error}. Look whether something other than "
                "Baton wrote it.",
                {"reason": str(error)},
            ) from error

    def _compressed(self, payload: Payload) -> Payload:
        size = payload.ByteSize()
        if size <= self._threshold_bytes or payload.metadata.get("encoding") in {_ZSTD, _FOR_PEOPLE}:
            return payload
        packed = Payload(metadata={"encoding": _ZSTD}, data=compress_zstd(payload.SerializeToString()))
        return packed if packed.ByteSize() < size else payload


def unpacked_bytes(payload: Payload) -> int:
    """Return the size in bytes that decoding ``payload`` takes, without decoding it.

    Raises:
        ValueError: it is ``binary/zstd`` and its frame is damaged or too large.
    """
    if payload.metadata.get("encoding") != _ZSTD:
        return payload.ByteSize()
    return declared_zstd_bytes(payload.data)


def data_converter(threshold_bytes: int) -> DataConverter:
    """Return the converter that every client, worker and replayer of Baton uses.

    Args:
        threshold_bytes: payloads above it are compressed.
    """
    return DataConverter(
        payload_converter_class=SharedPayloadConverter, payload_codec=ZstdPayloadCodec(threshold_bytes)
    )


def _decompressed(payload: Payload) -> Payload:
    if payload.metadata.get("encoding") != _ZSTD:
        return payload
    return Payload.FromString(decompress_zstd(payload.data))


class CodecServer:
    """Answers ``POST /encode`` and ``POST /decode`` of Temporal's UI and CLI (``--codec-endpoint``).

    HTTP as far as those two speak it: one request a connection, a body of up to 8 MiB with its length, and
    browsers only from pages on loopback.

    Args:
        codec: what ``data_converter`` of the same deployment uses.
    """

    def __init__(self, codec: ZstdPayloadCodec) -> None:
        self._codec = codec
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen and return the URL to give to Temporal; port 0 takes a free one.

        Raises:
            ConfigurationError: the address can't be listened on.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise ConfigurationError(
                f"The codec server can't listen on {host}:{port}: {error.strerror or error}. "
                "Choose another address or port.",
                {"host": host, "port": port},
            ) from error
        bound_port: int = self._server.sockets[0].getsockname()[1]
        return f"http://[{host}]:{bound_port}" if ":" in host else f"http://{host}:{bound_port}"

    async def aclose(self) -> None:
        """Stop listening and end the connections that are open. A second call does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        # Cut off rather than cancelled: asyncio's streams report a cancelled handler as a fault.
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(list(self._connections))
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None  # noqa: S101 - a stream's callback always runs in a task
        self._connections[connection] = writer
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                writer.write(await self._respond(reader))
                await writer.drain()
        except (ConnectionError, EOFError, TimeoutError):
            return  # the other side went away or fell silent, so that nobody is left to be told
        finally:
            del self._connections[connection]
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        origin = ""
        try:
            method, path, headers = await _read_head(reader)
            origin = headers.get("origin", "")
            status, body = await self._answer(method, path, headers, reader)
        except _RefusedRequestError as error:
            status, body = error.status, _message(error.message)
        except EngineError as error:
            status, body = HTTPStatus.BAD_REQUEST, _message(error.message)
        return _response(status, body, origin)

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], reader: asyncio.StreamReader
    ) -> tuple[HTTPStatus, bytes]:
        origin = headers.get("origin")
        if origin and not _LOOPBACK_ORIGIN.fullmatch(origin):
            raise _RefusedRequestError(HTTPStatus.FORBIDDEN, "pages on this origin may not ask")
        if path not in {"/encode", "/decode"}:
            raise _RefusedRequestError(HTTPStatus.NOT_FOUND, "there are only /encode and /decode")
        if method == "OPTIONS":
            return HTTPStatus.NO_CONTENT, b""
        if method != "POST":
            raise _RefusedRequestError(HTTPStatus.METHOD_NOT_ALLOWED, "use POST")
        payloads = _parse(await _read_body(reader, headers))
        if path == "/encode":
            answer = await self._codec.encode(payloads)
        else:
            _check_total(payloads)
            answer = await self._codec.decode(payloads)
        return HTTPStatus.OK, json_format.MessageToJson(Payloads(payloads=answer), indent=None).encode()


class _RefusedRequestError(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise _RefusedRequestError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers end at {_MAX_HEAD_BYTES} bytes"
        ) from error
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _RefusedRequestError(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return words[0], words[1].partition("?")[0], headers


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        raise _RefusedRequestError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
    if len(length) > len(str(_MAX_BODY_BYTES)) or int(length) > _MAX_BODY_BYTES:
        raise _RefusedRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY_BYTES} bytes are taken")
    return await reader.readexactly(int(length))


def _parse(body: bytes) -> Sequence[Payload]:
    try:
        return json_format.Parse(body, Payloads(), ignore_unknown_fields=True).payloads
    except (json_format.ParseError, ValueError) as error:
        raise InvalidInputError(
            f"The body can't be read: {error}. Send payloads as Temporal's JSON has them, in base64."
        ) from error


def _check_total(payloads: Sequence[Payload]) -> None:
    # A worker's payloads came through Temporal and its limits; these may be a thousand bombs in one body.
    try:
        total = sum(map(unpacked_bytes, payloads))
    except ValueError as error:
        raise InvalidInputError(f"A payload can't be unpacked: {error}. Send it as it is stored.") from error
    if total > MAX_DECODED_BYTES:
        raise InvalidInputError(
            f"The payloads unpack to {total} bytes, at most {MAX_DECODED_BYTES} are. Send fewer at a time."
        )


def _message(text: str) -> bytes:
    return json.dumps({"message": text}).encode()


def _response(status: HTTPStatus, body: bytes, origin: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Vary: Origin",
    ]
    if _LOOPBACK_ORIGIN.fullmatch(origin):
        lines += [
            f"Access-Control-Allow-Origin: {origin}",
            "Access-Control-Allow-Methods: POST, OPTIONS",
            "Access-Control-Allow-Headers: Authorization, Content-Type, X-Namespace",
            "Access-Control-Allow-Credentials: true",
        ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
