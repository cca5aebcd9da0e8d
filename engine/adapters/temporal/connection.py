"""The one Temporal client of an engine on an event loop, made when it is first needed.

Where to connect is decided late: with no address configured, the data directory's development server is joined or
started, and let go again at the end. A driver's error never leaves here.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from engine.adapters.temporal.dev_server import acquire_dev_server, search_attributes
from engine.adapters.temporal.payloads import CodecServer, ZstdPayloadCodec, data_converter
from engine.errors import (
    ConfigurationError,
    EngineError,
    InternalError,
    InvalidInputError,
    PermissionDeniedError,
    RuntimeUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from temporalio.client import Interceptor
    from temporalio.runtime import Runtime

    from engine.adapters.temporal.dev_server import DevServerLease

_logger = logging.getLogger(__name__)

RPC_TIMEOUT: Final = timedelta(seconds=4)
CONNECT_TIMEOUT: Final = timedelta(seconds=5)


class ConnectOptions(Protocol):
    """Asked once, when the client is made."""

    def __call__(self) -> Mapping[str, object]:
        """Keyword arguments of ``Client.connect``."""
        ...


class TemporalConnection:
    """A lazily made client.

    Args:
        connect_options: where and how to connect; None for the development server of ``data_dir``.
        data_dir: of the engine.
        compression_threshold_bytes: payloads above it are compressed.
        interceptors: for client and workers.
        runtime: with the metrics endpoint of a worker, if any.
    """

    def __init__(
        self,
        connect_options: ConnectOptions | None,
        data_dir: Path,
        compression_threshold_bytes: int,
        interceptors: list[Interceptor],
        runtime: Runtime | None,
    ) -> None:
        self._connect_options = connect_options
        self._data_dir = data_dir
        self._threshold_bytes = compression_threshold_bytes
        self._converter = data_converter(compression_threshold_bytes)
        self._interceptors = interceptors
        self._runtime = runtime
        self._client: Client | None = None
        self._lease: DevServerLease | None = None
        self._codec_server: CodecServer | None = None
        self._registered: frozenset[str] | None = None
        self._lock = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the client has been made."""
        return self._client is not None

    @property
    def is_embedded(self) -> bool:
        """Whether the server is the data directory's own."""
        return self._connect_options is None

    @property
    def ui_url(self) -> str | None:
        """Address of Temporal's UI, when it is known: that of the development server."""
        return None if self._lease is None else self._lease.ui_url

    async def client(self) -> Client:
        """Return the client, connecting first when there is none.

        Raises:
            RuntimeUnavailableError: there is no server.
        """
        if self._client is None:
            async with self._lock:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def registered_search_attributes(self) -> frozenset[str]:
        """Those of Baton's search attributes that the namespace has, asked once."""
        if self._registered is None:
            from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest

            client = await self.client()
            with temporal_failures(client.service_client.config.target_host):
                answer = await client.operator_service.list_search_attributes(
                    ListSearchAttributesRequest(namespace=client.namespace), timeout=RPC_TIMEOUT
                )
            self._registered = frozenset(search_attributes()) & frozenset(answer.custom_attributes)
        return self._registered

    async def aclose(self) -> None:
        """Let go of the client and of the development server."""
        self._client = None
        self._registered = None
        codec_server, self._codec_server = self._codec_server, None
        if codec_server is not None:
            await codec_server.aclose()
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.aclose()

    async def _serve_codec(self, port: int) -> None:
        server = CodecServer(ZstdPayloadCodec(self._threshold_bytes))
        try:
            await server.start(port=port)
        except ConfigurationError:
            _logger.debug("Another process decodes payloads for the UI")
            return
        self._codec_server = server

    async def _connect(self) -> Client:
        if self._connect_options is not None:
            options = dict(await asyncio.to_thread(self._connect_options))
        else:
            self._lease = await acquire_dev_server(self._data_dir)
            await self._serve_codec(self._lease.codec_port)
            options = {"target_host": self._lease.address, "namespace": self._lease.namespace}
        address = str(options.get("target_host", "localhost:7233"))
        with temporal_failures(address):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT.total_seconds()):
                    return await Client.connect(
                        **{"target_host": address, **options},  # pyright: ignore[reportArgumentType] # the settings give what connect takes
                        data_converter=self._converter,
                        interceptors=self._interceptors,
                        runtime=self._runtime,
                    )
            except (TimeoutError, RuntimeError) as error:
                raise unreachable(address) from error


def unreachable(address: str) -> RuntimeUnavailableError:
    """The error for a server that does not answer."""
    return RuntimeUnavailableError(
        f"Temporal at {address} does not answer; start it, or run `./baton dev` for a local one and leave "
        "temporal_address unset",
        {"address": address},
    )


@contextmanager
def temporal_failures(address: str) -> Generator[None]:
    """Turn a gRPC error into ours."""
    try:
        yield
    except RPCError as error:
        raise _engine_error(error, address) from error


def _engine_error(error: RPCError, address: str) -> EngineError:
    match error.status:
        case (
            RPCStatusCode.UNAVAILABLE
            | RPCStatusCode.DEADLINE_EXCEEDED
            | RPCStatusCode.CANCELLED
            | RPCStatusCode.RESOURCE_EXHAUSTED
            | RPCStatusCode.ABORTED
        ):
            return unreachable(address)
        case RPCStatusCode.PERMISSION_DENIED | RPCStatusCode.UNAUTHENTICATED:
            return PermissionDeniedError(f"Temporal at {address} refuses the credentials: {error.message}")
        case RPCStatusCode.INVALID_ARGUMENT:
            return InvalidInputError(f"Temporal refuses the request: {error.message}")
        case RPCStatusCode.NOT_FOUND:
            return RuntimeUnavailableError(
                f"Temporal at {address} does not know what was asked for: {error.message}; check temporal_namespace",
                {"address": address},
            )
        case _:
            return InternalError(f"Temporal at {address} answered: {error.message}", {"status": error.status.name})
