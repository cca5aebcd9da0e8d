"""Clients of models' endpoints: one for each address and key, on one checked transport an event loop.

The key is put in where a request leaves, and nowhere before: no library's object, exception or log holds it. Of the
headers that the libraries make only those pass that the API needs, because their clients also read headers from the
environment and tell the endpoint what machine this is. Importing this module takes seconds; it is done in a thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import httpcore2
import httpx2
from genai_prices import data_snapshot
from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from engine.adapters.agents.checked_transport import CheckedTransport, resolve_host
from engine.adapters.agents.llm.merged_deltas import MergedDeltas
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.json import MAX_VALUE_BYTES

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from engine.adapters.agents.allowed_hosts import AllowedHosts
    from engine.adapters.agents.checked_transport import Resolver

__all__ = ["ModelClients"]

_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_ERROR_BODY_TIMEOUT: Final = timedelta(seconds=1)
_MAX_ERROR_BODY_BYTES: Final = 64 * 1024
_REST_TIMEOUT: Final = timedelta(seconds=0.1)
_BROKEN: Final = (TimeoutError, httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)
_MAX_CLIENTS: Final = 64
_SENT_HEADERS: Final = ("Host", "Accept", "Content-Type", "Content-Length", "Transfer-Encoding")
_RECEIVED_HEADERS: Final = ("content-type", "retry-after", "location")
_COMPATIBLE: Final = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=False)


class ModelClients:
    """The clients of one event loop; they connect on first use.

    Args:
        hosts: where they may connect to.
        resolve: name and port to addresses; None for the system's resolver.
        tls: how servers are verified; None for the system's trust store.
    """

    def __init__(self, hosts: AllowedHosts, resolve: Resolver | None, tls: ssl.SSLContext | None) -> None:
        self._checked = CheckedTransport(hosts, resolve or resolve_host, tls)
        self._models: OrderedDict[tuple[str, str | None, str], OpenAIChatModel] = OrderedDict()
        # Read at the first answer, by the libraries and for its price; it takes a while.
        data_snapshot.get_snapshot()
        self.model("warm-up", None, "")

    def model(self, name: str, base_url: str | None, key: str) -> OpenAIChatModel:
        """Return the model ``name`` at ``base_url`` (None: OpenAI's), for requests with ``key``."""
        known = self._models.get((name, base_url, key))
        if known is None:
            known = self._models[name, base_url, key] = self._make(name, base_url, key)
            if len(self._models) > _MAX_CLIENTS:
                # Calls that use it keep it; the connections belong to the transport.
                self._models.popitem(last=False)
        else:
            self._models.move_to_end((name, base_url, key))
        return known

    async def aclose(self) -> None:
        """Close all connections."""
        self._models.clear()
        await self._checked.aclose()

    def _make(self, name: str, base_url: str | None, key: str) -> OpenAIChatModel:
        http_client = httpx2.AsyncClient(
            transport=_KeyedTransport(self._checked, key), trust_env=False, follow_redirects=False
        )
        client = AsyncOpenAI(
            api_key="put-in-by-the-transport",
            base_url=base_url or "https://api.openai.com/v1",
            max_retries=0,
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT.total_seconds()),
            http_client=http_client,
        )
        if base_url is None:
            return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))
        provider = OpenAICompatibleProvider("openai-compatible", openai_client=client)
        return OpenAIChatModel(name, provider=provider, profile=_COMPATIBLE)


class _KeyedTransport(httpx2.AsyncBaseTransport):
    """Sends the API's own headers with the key, and bounds what comes back."""

    def __init__(self, checked: CheckedTransport, key: str) -> None:
        self._checked = checked
        self._key = key

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {name: request.headers[name] for name in _SENT_HEADERS if name in request.headers}
        # Uncompressed, so that the limit below bounds what is kept in memory.
        headers |= {"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity", "User-Agent": "baton"}
        response = await self._checked.handle_async_request(
            httpx2.Request(
                request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
            )
        )
        received = {name: response.headers[name] for name in _RECEIVED_HEADERS if name in response.headers}
        if response.is_success:
            return httpx2.Response(
                response.status_code, headers=received, stream=_BoundedStream(response, request.url.host)
            )
        async with aclosing(response):
            body = await _start_of(response)
        return httpx2.Response(response.status_code, headers=received, content=body)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, response: httpx2.Response, host: str) -> None:
        self._response = response
        self._host = host

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        merged = MergedDeltas()
        parts = self._response.aiter_raw()
        try:
            async for part in parts:
                size += len(part)
                if size > MAX_VALUE_BYTES:
                    raise AgentFailure(
                        FailureReason.INVALID_OUTPUT,
                        f"The answer of {self._host} is larger than {MAX_VALUE_BYTES} bytes",
                    )
                if ready := merged.take(part):
                    yield ready
                if merged.is_done:
                    await _read_out(parts)
                    break
        except _BROKEN:
            if rest := merged.rest():
                yield rest
            raise
        if rest := merged.rest():
            yield rest

    async def aclose(self) -> None:
        await self._response.aclose()


async def _read_out(parts: AsyncIterator[bytes]) -> None:
    """Read the few bytes after the answer, so that the connection can be used again; without them it is closed."""
    with suppress(*_BROKEN):
        async with asyncio.timeout(_REST_TIMEOUT.total_seconds()):
            async for _ in parts:
                pass


async def _start_of(response: httpx2.Response) -> bytes:
    start = bytearray()
    # The status is the answer; a body that never came whole only makes the message shorter.
    with suppress(*_BROKEN):
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT.total_seconds()), aclosing(response.aiter_raw()) as parts:
            async for part in parts:
                start += part
                if len(start) >= _MAX_ERROR_BODY_BYTES:
                    break
    return bytes(start[:_MAX_ERROR_BODY_BYTES])
