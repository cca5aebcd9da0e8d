"""Vectors from any endpoint that speaks OpenAI's ``/embeddings``, without OpenAI's own package.

One request is all there is to that protocol, so the plain HTTP client serves, and the embedder works without the extra
for model agents. It is used without its session on purpose: no redirects, no proxies of the environment, no retries.
Loading it and reading the certificates takes a quarter of a second: a thread does both at the first use.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from engine.adapters.embedding import KnownModel, batches, choose_dimension, sendable, unit
from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import StoreGuard
from engine.errors import ConfigurationError, InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    import httpx2

__all__ = ["OpenAIEmbedder"]

BASE_URL: Final = "https://api.openai.com/v1"
DEADLINE: Final = timedelta(seconds=10)
CONNECT_TIMEOUT: Final = timedelta(seconds=3)
MAX_BATCH: Final = 128
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024

_MODELS: Final = {
    "text-embedding-3-small": KnownModel(1536, range(1, 1536)),
    "text-embedding-3-large": KnownModel(3072, range(1, 3072)),
    "text-embedding-ada-002": KnownModel(1536),
}
_EXCERPT_CHARS: Final = 200
_KEY = re.compile(r"[\x21-\x7e]+")
_OK = 200
_OF_THE_TEXTS = frozenset({400, 413, 422})


class _RefusedError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(status)
        self.status = status
        self.told = told


class _UnreadableError(Exception):
    """An answer that is not what was asked for."""


class OpenAIEmbedder:
    """An ``Embedder`` on an OpenAI-compatible endpoint; documents and queries are treated alike.

    Args:
        model: its name at the endpoint.
        api_key: told to that endpoint only; None for one that wants none.
        base_url: what stands before ``/embeddings``; default: OpenAI's own.
        dimension: numbers in a vector; needed for a model that is not OpenAI's.
        pool_size: most connections.
        deadline: how long a request may take; it has at most 128 texts.

    Raises:
        ConfigurationError: the dimension is missing or can't be had, or the address or the key can't be used.
    """

    def __init__(
        self,
        model: str,
        api_key: str | None = None,
        base_url: str | None = None,
        dimension: int | None = None,
        *,
        pool_size: int = 10,
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._model = model
        self._dimension = choose_dimension(model, dimension, _MODELS)
        address = base_url or BASE_URL
        self._url = f"{address.rstrip('/')}/embeddings"
        self._host = _host_of(address)
        self._headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "baton"}
        if api_key is not None:
            if not _KEY.fullmatch(api_key):
                raise ConfigurationError(
                    "embedding_api_key can't be used: it has a space, a line break or a character beyond ASCII",
                    {"path": "embedding_api_key"},
                )
            self._headers["Authorization"] = f"Bearer {api_key}"
        subject = f"The embedding endpoint at {self._host} (embedding_base_url)"
        self._failures = FailureTable("openai", subject, _rows(model), _reason)
        self._guard = StoreGuard(self._failures, deadline, pool_size)
        self._connect_seconds = min(CONNECT_TIMEOUT, deadline).total_seconds()
        self._pool_size = pool_size
        self._transport: httpx2.AsyncBaseTransport | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """``openai:<model>``, and ``:<dimension>`` unless it is the one that the model is known for."""
        return f"openai:{self._model}{self._dimension.suffix}"

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._dimension.numbers

    async def embed_texts(self, texts: Sequence[str], kind: Literal["document", "query"]) -> list[list[float]]:  # noqa: ARG002 - the port's
        """Return a vector for each text, in order; of a long text the first 8,000 bytes count.

        Raises:
            InvalidInputError: the endpoint refuses one of the texts.
            StoreError: it does not answer, refuses all, or makes other vectors than configured.
        """
        sent = [sendable(text) for text in texts]
        made: dict[str, list[float]] = {}
        for batch in batches(dict.fromkeys(sent), MAX_BATCH):
            made.update(zip(batch, await self._embed(batch), strict=True))
        return [made[text] for text in sent]

    async def aclose(self) -> None:
        """Close the connections. Closing again does nothing."""
        self._closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _embed(self, batch: list[str]) -> list[list[float]]:
        transport = await self._opened()
        content: dict[str, object] = {"model": self._model, "input": batch, "encoding_format": "float"}
        if self._dimension.asked is not None:
            content["dimensions"] = self._dimension.asked
        body = json.dumps(content).encode("ascii")
        try:
            answer = await self._guard.run(partial(self._send, transport, body))
        except StoreError as failure:
            raise self._said(failure) from failure.__cause__
        with self._failures.translated():
            vectors = await asyncio.to_thread(_vectors_of, answer, len(batch))
        if (found := len(vectors[0])) != self.dimension:
            raise self._failures.failure(
                f"makes vectors of {found} numbers with {self._model}, not of {self.dimension}. "
                f"Set embedding_dimension to {found}",
                "dimension",
            )
        return vectors

    def _said(self, failure: StoreError) -> StoreError | InvalidInputError:
        """Return the failure to raise: what is wrong with the texts is not the endpoint's failure."""
        cause = failure.__cause__
        if isinstance(cause, _RefusedError) and cause.status in _OF_THE_TEXTS:
            told = f": {cause.told}" if cause.told else ""
            return InvalidInputError(
                f"The embedding endpoint at {self._host} refuses a text, or the model {self._model}{told}",
                {"status": cause.status, "host": self._host},
            )
        return failure

    async def _opened(self) -> httpx2.AsyncBaseTransport:
        if self._transport is None and not self._closed:
            made = await asyncio.to_thread(_make_transport, self._pool_size)
            # Somebody else may have been quicker; one that was never used holds nothing.
            self._transport = self._transport or (None if self._closed else made)
        if self._transport is None:
            raise self._failures.failure("has been closed by this process; make a new engine to go on", "closed")
        return self._transport

    async def _send(self, transport: httpx2.AsyncBaseTransport, body: bytes) -> bytes:
        import httpx2

        limits = httpx2.Timeout(None, connect=self._connect_seconds)
        request = httpx2.Request(
            "POST", self._url, headers=self._headers, content=body, extensions={"timeout": limits.as_dict()}
        )
        try:
            async with aclosing(await transport.handle_async_request(request)) as response:
                answer = await _read(response)
        except httpx2.TimeoutException as error:
            raise TimeoutError from error
        except httpx2.TransportError as error:
            raise ConnectionError from error
        except httpx2.DecodingError as error:
            raise _UnreadableError from error
        if response.status_code != _OK:
            told = _told_by(answer) if response.status_code in _OF_THE_TEXTS else ""
            raise _RefusedError(response.status_code, told)
        return answer


def _make_transport(pool_size: int) -> httpx2.AsyncBaseTransport:
    import httpx2

    return httpx2.AsyncHTTPTransport(trust_env=False, limits=httpx2.Limits(max_connections=pool_size))


async def _read(response: httpx2.Response) -> bytes:
    answer = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            answer += part
            if len(answer) > MAX_RESPONSE_BYTES:
                raise _UnreadableError
    return bytes(answer)


def _vectors_of(answer: bytes, count: int) -> list[list[float]]:
    """Return the vectors of an answer in the order of the texts, at unit length and all of one dimension."""
    import pydantic_core

    try:
        body = pydantic_core.from_json(answer, allow_inf_nan=False)
        by_place = {entry["index"]: [float(value) for value in entry["embedding"]] for entry in body["data"]}
        vectors = [by_place[place] for place in range(count)]
    except (ValueError, TypeError, LookupError) as error:
        raise _UnreadableError from error
    if len({len(values) for values in vectors}) != 1:
        raise _UnreadableError
    return [unit(values) for values in vectors]


def _told_by(answer: bytes) -> str:
    """Return the beginning of the message in an answer that refuses; "" when there is none."""
    try:
        body: object = json.loads(answer)
    except ValueError:
        return ""
    error = cast("dict[str, object]", body).get("error") if isinstance(body, dict) else None
    message = cast("dict[str, object]", error).get("message") if isinstance(error, dict) else error
    return " ".join(message.split())[:_EXCERPT_CHARS] if isinstance(message, str) else ""


def _host_of(address: str) -> str:
    """Return the host and port of an address; what else may stand in it is never told."""
    try:
        parts = urlsplit(address)
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise _no_address() from error
    if not name or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query or parts.fragment:
        raise _no_address()
    return name if port is None else f"{name}:{port}"


def _no_address() -> ConfigurationError:
    return ConfigurationError(
        "embedding_base_url is no address of an endpoint; it looks like https://host/v1, without user and password",
        {"path": "embedding_base_url"},
    )


def _reason(error: Exception) -> str:
    return f"http_{error.status}" if isinstance(error, _RefusedError) else type(error).__name__


def _has_status(*statuses: int) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, _RefusedError) and error.status in statuses


def _is_redirect(error: Exception) -> bool:
    return isinstance(error, _RefusedError) and error.status // 100 == 3


def _is_fault(error: Exception) -> bool:
    return isinstance(error, _RefusedError) and error.status // 100 == 5


def _rows(model: str) -> tuple[Failure, ...]:
    reach = "Check embedding_base_url and the network"
    return (
        Failure(_RefusedError, "refused the key. Correct embedding_api_key, or its rights", _has_status(401, 403)),
        Failure(
            _RefusedError,
            f"knows no /embeddings there, or no model {model}. Check embedding_base_url and embedding_model",
            _has_status(404, 405),
        ),
        Failure(
            _RefusedError,
            "has had too many requests, or the quota of embedding_api_key is used up",
            _has_status(429),
            is_outage=True,
        ),
        Failure(_RefusedError, f"did not answer in time. {reach}", _has_status(408), is_outage=True),
        Failure(_RefusedError, "has a fault of its own and did not do it; try again", _is_fault, is_outage=True),
        Failure(
            _RefusedError,
            "sends elsewhere, and redirects are not followed. Put the final address into embedding_base_url",
            _is_redirect,
        ),
        Failure(_RefusedError, "refused a request; details.reason has its status"),
        Failure(
            _UnreadableError, "gave an answer that can't be read. Check that embedding_base_url speaks OpenAI's API"
        ),
        Failure(TimeoutError, f"did not answer in time. {reach}", is_outage=True),
        Failure(OSError, f"can't be reached, or broke off. {reach}", is_outage=True),
    )
