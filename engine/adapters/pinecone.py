"""Vectors in Pinecone, through its own SDK, with its habits put right.

The SDK repeats a refused call up to three times over as long as it likes, which would make one call of a dead server
into four: it is told not to, and ``StoreGuard`` keeps the time. Its import and its TLS set-up take most of a second:
a thread does both at the first use. Pinecone's ids are ASCII, so others are kept percent-encoded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import string
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from pinecone.errors import (
    ApiError,
    ForbiddenError,
    NotFoundError,
    PineconeConnectionError,
    PineconeError,
    PineconeTimeoutError,
    PineconeTypeError,
    PineconeValueError,
    RateLimitError,
    ServiceError,
    UnauthorizedError,
)

from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import StoreGuard
from engine.errors import ConfigurationError, InvalidInputError
from engine.ports.health import StoreHealth
from engine.ports.vector_index import VectorItem, VectorMatch, VectorStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pinecone import AsyncIndex
    from pinecone.models.vectors.responses import DescribeIndexStatsResponse

    from engine.errors import StoreError

__all__ = ["CONTROL_HOST", "PineconeVectorIndex", "is_timeout", "reason_of"]

CONTROL_HOST: Final = "https://api.pinecone.io"
DEADLINE: Final = timedelta(seconds=2)
OPENING_DEADLINE: Final = timedelta(seconds=1.5)
"""For finding the index, and again for asking what it takes: with the call itself within 5 s."""
MAX_BATCH: Final = 100
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024 - 64 * 1024
"""Pinecone takes 2 MiB a request; the rest is for what stands around the vectors."""
MAX_DELETED: Final = 1000
MAX_ID: Final = 512

_CLOSED = "has been closed by this process; make a new engine to go on"
_NUMBER_BYTES = 25
"""Of a double and a comma in JSON, at most."""
_PLAIN = string.punctuation.replace("%", "") + " "
_TIMED_OUT = 408

_Batch = list[dict[str, object]]


class PineconeVectorIndex:
    """A ``VectorIndex`` on one index of Pinecone.

    Args:
        api_key: never told to anybody but Pinecone.
        index: its name, by which it is found when there is no ``host``.
        host: its address.
        dimension: numbers in the vectors that will be kept; the index must have been made for it.
        control_host: where an index is looked up by name; default: Pinecone's own.
        pool_size: most connections.
        deadline: how long a call may take.

    Raises:
        ConfigurationError: neither name nor host, or a host that is no address.
    """

    def __init__(
        self,
        api_key: str,
        index: str | None,
        host: str | None,
        *,
        dimension: int,
        control_host: str | None = None,
        pool_size: int = 10,
        deadline: timedelta = DEADLINE,
    ) -> None:
        if index is None and host is None:
            raise ConfigurationError(
                "pinecone_api_key is set, but neither pinecone_index nor pinecone_host; name the index to use",
                {"keys": ["pinecone_index", "pinecone_host"]},
            )
        self._api_key = api_key
        self._index_name = index
        self._host = host
        self._control_host = control_host or CONTROL_HOST
        self._dimension = dimension
        self._pool_size = pool_size
        self._attempt_seconds = deadline.total_seconds()
        address = _address(self._control_host if host is None else host)
        self._subject = f"Pinecone's index {index or ''} at {address}".replace("  ", " ")
        self._failures = FailureTable("pinecone", self._subject, _rows(dimension), reason_of)
        self._guard = StoreGuard(self._failures, deadline, pool_size)
        self._opening: asyncio.Task[AsyncIndex] | None = None
        self._is_fit = False
        self._closed = False

    async def upsert_vectors(self, namespace: str, items: Sequence[VectorItem]) -> None:
        """Keep vectors under their ids, in requests of at most 100 vectors and 2 MiB, one after the other.

        When one fails, those before it are kept; doing it all again changes nothing about them.

        Raises:
            InvalidInputError: a vector of another dimension, of zeros or of no numbers, or an id that is too long.
            StoreError: Pinecone does not answer, or refuses.
        """
        newest = {item.item_id: item for item in items}
        for item in newest.values():
            self._check_values(item.values)
        batches = list(_batches(newest.values()))
        if not batches:
            return
        index = await self._ready()
        for batch in batches:
            await self._guard.run(partial(index.upsert, vectors=batch, namespace=namespace))

    async def query_vectors(
        self, namespace: str, values: Sequence[float], *, top_k: int, where: Mapping[str, str] | None = None
    ) -> list[VectorMatch]:
        """Return the nearest ``top_k``, best first; equally near ones by id.

        Raises:
            InvalidInputError: a vector of another dimension, of zeros or of no numbers.
            StoreError: Pinecone does not answer, or refuses.
        """
        self._check_values(values)
        conditions = {key: {"$eq": value} for key, value in (where or {}).items()}
        _size_bytes(json.dumps(conditions, ensure_ascii=False))
        index = await self._ready()
        found = await self._guard.run(
            partial(
                index.query,
                vector=list(values),
                top_k=top_k,
                namespace=namespace,
                filter=conditions or None,
            )
        )
        matches = [VectorMatch(unquote(match.id), max(-1.0, min(1.0, match.score))) for match in found.matches]
        matches.sort(key=lambda match: (-match.score, match.item_id))
        return matches

    async def delete_vectors(self, namespace: str, item_ids: Sequence[str]) -> None:
        """Drop vectors; unknown ids and namespaces are no error.

        Raises:
            StoreError: Pinecone does not answer, or refuses.
        """
        # What no vector can have as its id is not there.
        stored = [stored for item_id in item_ids if 0 < len(stored := _stored_id(item_id)) <= MAX_ID]
        if not stored:
            return
        index = await self._ready()
        for start in range(0, len(stored), MAX_DELETED):
            await self._guard.run(partial(_delete, index, stored[start : start + MAX_DELETED], namespace))

    async def delete_namespace(self, namespace: str) -> None:
        """Drop all vectors of a namespace; an unknown one is no error. The index keeps its dimension.

        Raises:
            StoreError: Pinecone does not answer, or refuses.
        """
        index = await self._ready()
        await self._guard.run(partial(_delete, index, None, namespace))

    async def describe_namespace(self, namespace: str) -> VectorStats:
        """Return what the namespace holds; the dimension is the index's, and never None.

        Raises:
            StoreError: Pinecone does not answer, or refuses.
        """
        stats = await self._stats()
        summary = stats.namespaces.get(namespace or "__default__")
        return VectorStats(dimension=stats.dimension, count=0 if summary is None else summary.vector_count)

    async def check_health(self) -> StoreHealth:
        """Ask what the index holds.

        Raises:
            InvalidInputError: the index was made for other vectors.
            StoreError: Pinecone does not answer, or refuses.
        """
        stats = await self._stats()
        name = self._index_name or _address(self._host or "")
        held = f"{stats.total_vector_count} vectors of {stats.dimension} numbers"
        return StoreHealth(backend="pinecone", detail=f"index {name}: {held}")

    async def aclose(self) -> None:
        """Close the connections. Closing again does nothing."""
        self._closed = True
        opening, self._opening = self._opening, None
        if opening is None:
            return
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().close()

    async def _ready(self) -> AsyncIndex:
        """Return the open index once it is known to take our vectors."""
        index = await self._opened()
        if not self._is_fit:
            self._check_index(await self._guard.run(index.describe_index_stats, OPENING_DEADLINE))
        return index

    async def _stats(self) -> DescribeIndexStatsResponse:
        index = await self._opened()
        stats = await self._guard.run(index.describe_index_stats)
        self._check_index(stats)
        return stats

    async def _opened(self) -> AsyncIndex:
        if self._closed:
            raise self._closed_failure()
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # All who come while it is being opened wait for the same opening.
            opening = self._opening = asyncio.create_task(self._open(), name="baton pinecone")
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError as error:
            caller = asyncio.current_task()
            if not opening.cancelled() or caller is None or caller.cancelling():
                raise
            raise self._closed_failure() from error

    async def _open(self) -> AsyncIndex:
        # What a thread does here asks no server, and so has no deadline.
        with self._failures.translated():
            await asyncio.to_thread(_load_driver)
            host = self._host or await self._guard.run(self._look_up, OPENING_DEADLINE)
            return await asyncio.to_thread(_data_plane, self._api_key, host, self._attempt_seconds, self._pool_size)

    def _closed_failure(self) -> StoreError:
        return self._failures.failure(_CLOSED, "closed")

    async def _look_up(self) -> str:
        from pinecone import AsyncPinecone, RetryConfig

        once = RetryConfig(max_retries=0)
        control = AsyncPinecone(
            self._api_key, host=self._control_host, timeout=self._attempt_seconds, retry_config=once
        )
        async with control:
            described = await control.indexes.describe(self._index_name or "")
        if not described.host:
            raise self._failures.failure("is still being made; wait until Pinecone says that it is ready", "not_ready")
        return described.host

    def _check_index(self, stats: DescribeIndexStatsResponse) -> None:
        needed = f"Create an index with dimension {self._dimension} and metric cosine, and name it in pinecone_index"
        if stats.dimension != self._dimension:
            raise InvalidInputError(
                f"{self._subject} (pinecone_index) takes vectors of {stats.dimension or 'no'} numbers, "
                f"the embedder makes {self._dimension}. {needed}.",
                {"key": "pinecone_index", "index_dimension": stats.dimension, "dimension": self._dimension},
            )
        if stats.metric not in (None, "cosine"):
            raise InvalidInputError(
                f"{self._subject} (pinecone_index) ranks by {stats.metric}, not by cosine. {needed}.",
                {"key": "pinecone_index", "metric": stats.metric},
            )
        self._is_fit = True

    def _check_values(self, values: Sequence[float]) -> None:
        if len(values) != self._dimension:
            raise InvalidInputError(
                f"A vector has {len(values)} numbers; {self._subject} (pinecone_index) takes {self._dimension}. "
                "Use the embedder that the index was made for.",
                {"key": "pinecone_index", "index_dimension": self._dimension, "dimension": len(values)},
            )
        if not 0 < math.hypot(*values) < math.inf:
            raise InvalidInputError("A vector must have a direction: not all zeros, and only finite numbers")


def _load_driver() -> None:
    from pinecone import AsyncIndex, AsyncPinecone

    # Naming them is what loads them.
    _ = AsyncIndex, AsyncPinecone


def _data_plane(api_key: str, host: str, attempt_seconds: float, pool_size: int) -> AsyncIndex:
    """Return a client of the index that makes each call once; nothing is connected yet."""
    from pinecone import AsyncIndex, RetryConfig

    index = AsyncIndex(host=host, api_key=api_key, timeout=attempt_seconds, connection_pool_maxsize=pool_size)
    # The SDK 10.2 takes a retry policy for its control plane only. A test counts the requests of a refused call.
    http = index._http  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see above
    http._config = dataclasses.replace(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see above
        http._config,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see above
        retry_config=RetryConfig(max_retries=0),
    )
    # Reads the certificates, for a quarter of a second that the first call would take from the event loop.
    http._ensure_client()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see above
    return index


async def _delete(index: AsyncIndex, stored_ids: list[str] | None, namespace: str) -> None:
    """Drop vectors, or all of a namespace when there are no ids."""
    try:
        await index.delete(ids=stored_ids, delete_all=stored_ids is None, namespace=namespace)
    except NotFoundError as error:
        if "namespace" not in error.message.lower():
            raise


def _batches(items: Iterable[VectorItem]) -> Iterator[_Batch]:
    batch: _Batch = []
    batch_bytes = 0
    for item in items:
        metadata = dict(item.metadata)
        size_bytes = len(item.values) * _NUMBER_BYTES + MAX_ID + _size_bytes(json.dumps(metadata, ensure_ascii=False))
        if len(batch) == MAX_BATCH or (batch and batch_bytes + size_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append({"id": _checked_id(item.item_id), "values": list(item.values), "metadata": metadata})
        batch_bytes += size_bytes
    if batch:
        yield batch


def _checked_id(item_id: str) -> str:
    stored = _stored_id(item_id)
    if not 0 < len(stored) <= MAX_ID:
        raise InvalidInputError(
            f"An id of a vector has {len(stored)} characters as Pinecone takes it; it may have 1 to {MAX_ID}",
            {"length": len(stored), "limit": MAX_ID},
        )
    return stored


def _stored_id(item_id: str) -> str:
    _size_bytes(item_id)
    return quote(item_id, safe=_PLAIN)


def _size_bytes(text: str) -> int:
    """Return what a text takes as UTF-8. Raises ``InvalidInputError`` when it is no Unicode."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        message = "A text holds half a surrogate pair, which is no Unicode; repair or remove it"
        raise InvalidInputError(message) from error


def _address(host: str) -> str:
    """Return the host and port of an address, without what else may stand in it."""
    try:
        parts = urlsplit(host if "://" in host else f"https://{host}")
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise _no_address() from error
    # Pinecone takes no password in an address, and its SDK would log it.
    if not name or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise _no_address()
    return name if port is None else f"{name}:{port}"


def _no_address() -> ConfigurationError:
    return ConfigurationError(
        "pinecone_host is no address of an index; copy it from Pinecone's console: index-abc123.svc.pinecone.io",
        {"key": "pinecone_host"},
    )


def reason_of(error: Exception) -> str:
    """Return the status of an answer that refuses, as ``http_401``, or the class of another error."""
    return f"http_{error.status_code}" if isinstance(error, ApiError) else type(error).__name__


def _rows(dimension: int) -> tuple[Failure, ...]:
    create = f"Create it with dimension {dimension} and metric cosine, or correct pinecone_index and pinecone_host"
    reach = "Check pinecone_host, pinecone_index and the network"
    check = "Check pinecone_host, and that pinecone_api_key has no space or line break in it"
    return (
        Failure(UnauthorizedError, "refused the key. Set pinecone_api_key to a key of the index's project"),
        Failure(ForbiddenError, "does not allow that. Check the rights and the quota of pinecone_api_key's project"),
        Failure(NotFoundError, f"was not found (pinecone_index). {create}"),
        Failure(RateLimitError, "has had too many requests and refuses more for now; try again", is_outage=True),
        Failure(ServiceError, "has a fault of its own and did not do it; try again", is_outage=True),
        Failure(ApiError, f"did not answer in time. {reach}", is_timeout, is_outage=True),
        Failure(ApiError, "refused a request; please report it with details.reason"),
        Failure(PineconeTimeoutError, f"did not answer in time. {reach}", is_outage=True),
        Failure(PineconeConnectionError, f"can't be reached, or broke off. {reach}", is_outage=True),
        Failure(PineconeValueError, f"can't be asked. {check}"),
        Failure(PineconeTypeError, f"can't be asked. {check}"),
        Failure(PineconeError, f"gave an answer that can't be read. {reach}"),
        Failure(OSError, f"can't be reached: this machine refused. {reach}", is_outage=True),
        Failure(RuntimeError, _CLOSED, _is_use_after_close),
    )


def _is_use_after_close(error: Exception) -> bool:
    return "has been closed" in str(error)


def is_timeout(error: Exception) -> bool:
    """Return whether Pinecone says that it had no time."""
    return isinstance(error, ApiError) and error.status_code == _TIMED_OUT
