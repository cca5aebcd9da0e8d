"""Vectors from the models that Pinecone hosts, through its own SDK, which is told to make each call once.

Its import and its TLS set-up take most of a second: a thread does both at the first use. What a model has no room for
is cut by Pinecone, at the end of the text.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, cast

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

from engine.adapters.embedding import KnownModel, batches, choose_dimension, sendable, unit
from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import StoreGuard
from engine.adapters.pinecone import CONTROL_HOST, is_timeout, reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from pinecone import AsyncPinecone
    from pinecone.models.inference.embed import DenseEmbedding, EmbeddingsList

__all__ = ["PineconeEmbedder"]

DEFAULT_MODEL: Final = "multilingual-e5-large"
DEADLINE: Final = timedelta(seconds=10)
MAX_BATCH: Final = 96

_MODELS: Final = {
    DEFAULT_MODEL: KnownModel(1024),
    "llama-text-embed-v2": KnownModel(1024, (384, 512, 768, 2048)),
}
_CLOSED = "have been closed by this process; make a new engine to go on"


class PineconeEmbedder:
    """An ``Embedder`` on Pinecone's inference; documents are passages, which its models tell from queries.

    Args:
        api_key: never told to anybody but Pinecone.
        model: its name; default: multilingual-e5-large.
        dimension: numbers in a vector; needed for a model that is not known here.
        control_host: where Pinecone is; default: its own.
        pool_size: most connections.
        deadline: how long a request may take; it has at most 96 texts.

    Raises:
        ConfigurationError: the dimension is missing or can't be had.
    """

    def __init__(
        self,
        api_key: str,
        model: str | None = None,
        dimension: int | None = None,
        *,
        control_host: str | None = None,
        pool_size: int = 10,
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._api_key = api_key
        self._model = model or DEFAULT_MODEL
        self._dimension = choose_dimension(self._model, dimension, _MODELS)
        self._control_host = control_host or CONTROL_HOST
        self._pool_size = pool_size
        self._attempt_seconds = deadline.total_seconds()
        host = self._control_host.rpartition("://")[2]
        self._failures = FailureTable("pinecone", f"Pinecone's models at {host}", _rows(self._model), reason_of)
        self._guard = StoreGuard(self._failures, deadline, pool_size)
        self._client: AsyncPinecone | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """``pinecone:<model>``, and ``:<dimension>`` unless it is the one that the model is known for."""
        return f"pinecone:{self._model}{self._dimension.suffix}"

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._dimension.numbers

    async def embed_texts(self, texts: Sequence[str], kind: Literal["document", "query"]) -> list[list[float]]:
        """Return a vector for each text, in order; of a long text the beginning counts.

        Raises:
            InvalidInputError: there is no vector of one of the texts.
            StoreError: Pinecone does not answer, refuses, or makes other vectors than configured.
        """
        parameters: dict[str, object] = {"input_type": "query" if kind == "query" else "passage", "truncate": "END"}
        if self._dimension.asked is not None:
            parameters["dimension"] = self._dimension.asked
        sent = [sendable(text) for text in texts]
        made: dict[str, list[float]] = {}
        for batch in batches(dict.fromkeys(sent), MAX_BATCH):
            client = await self._opened()
            call = partial(client.inference.embed, self._model, inputs=batch, parameters=parameters)
            made.update(zip(batch, self._vectors_of(await self._guard.run(call), len(batch)), strict=True))
        return [made[text] for text in sent]

    async def aclose(self) -> None:
        """Close the connections. Closing again does nothing."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _opened(self) -> AsyncPinecone:
        if self._client is None and not self._closed:
            with self._failures.translated():
                made = await asyncio.to_thread(
                    _make_client, self._api_key, self._control_host, self._attempt_seconds, self._pool_size
                )
            # Somebody else may have been quicker; one that was never used holds nothing.
            self._client = self._client or (None if self._closed else made)
        if self._client is None:
            raise self._failures.failure(_CLOSED, "closed")
        return self._client

    def _vectors_of(self, answer: EmbeddingsList, count: int) -> list[list[float]]:
        if answer.vector_type != "dense":
            raise self._failures.failure(
                f"make no dense vectors with {self._model}. Choose another embedding_model", "vector_type"
            )
        vectors = [entry.values for entry in cast("list[DenseEmbedding]", answer.data)]
        if len(vectors) != count:
            raise self._failures.failure("gave an answer with other vectors than were asked for; try again", "count")
        if (found := next((len(values) for values in vectors if len(values) != self.dimension), None)) is not None:
            raise self._failures.failure(
                f"make vectors of {found} numbers with {self._model}, not of {self.dimension}. "
                f"Set embedding_dimension to {found}",
                "dimension",
            )
        return [unit(values) for values in vectors]


def _make_client(api_key: str, control_host: str, attempt_seconds: float, pool_size: int) -> AsyncPinecone:
    """Return a client that makes each call once; nothing is connected yet."""
    from pinecone import AsyncPinecone, RetryConfig

    client = AsyncPinecone(
        api_key,
        host=control_host,
        timeout=attempt_seconds,
        retry_config=RetryConfig(max_retries=0),
        connection_pool_maxsize=pool_size,
    )
    # Reads the certificates, for a quarter of a second that the first call would take from the event loop.
    client.inference._http._ensure_client()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see above
    return client


def _rows(model: str) -> tuple[Failure, ...]:
    reach = "Check the network to it"
    check = "Check embedding_model, and that pinecone_api_key has no space or line break in it"
    return (
        Failure(UnauthorizedError, "refused the key. Correct pinecone_api_key"),
        Failure(ForbiddenError, "do not allow that. Check the rights and the quota of pinecone_api_key's project"),
        Failure(NotFoundError, f"have no {model}. Correct embedding_model"),
        Failure(RateLimitError, "have had too many requests and refuse more for now; try again", is_outage=True),
        Failure(ServiceError, "have a fault of their own and did not do it; try again", is_outage=True),
        Failure(ApiError, f"did not answer in time. {reach}", is_timeout, is_outage=True),
        Failure(ApiError, f"refused a request. {check}"),
        Failure(PineconeTimeoutError, f"did not answer in time. {reach}", is_outage=True),
        Failure(PineconeConnectionError, f"can't be reached, or broke off. {reach}", is_outage=True),
        Failure(PineconeValueError, f"can't be asked. {check}"),
        Failure(PineconeTypeError, f"can't be asked. {check}"),
        Failure(PineconeError, f"gave an answer that can't be read. {reach}"),
        Failure(OSError, f"can't be reached: this machine refused. {reach}", is_outage=True),
        Failure(RuntimeError, _CLOSED, lambda error: "has been closed" in str(error)),
    )
