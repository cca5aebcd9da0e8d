"""An MCP server at an address: every request goes only where ``allowed_hosts`` lets it.

Between the ``mcp`` package and the network stands a transport that turns each fault of the way, a refusal, a redirect,
a status, a broken connection, into the answer of that one request. Left alone, such a fault would take down the whole
connection with all calls that are under way.
"""

from __future__ import annotations

import json
import re
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

import httpcore2
import httpx2
from mcp.client.streamable_http import streamable_http_client

from engine.adapters.agents.checked_transport import CheckedTransport
from engine.adapters.agents.replies import bounded_text
from engine.adapters.agents.statuses import reason_of_status
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.masking import mask_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Mapping

    from mcp.client.streamable_http import TransportStreams  # pyright: ignore[reportPrivateImportUsage] # exported nowhere

    from engine.adapters.agents.allowed_hosts import AllowedHosts
    from engine.adapters.agents.checked_transport import Resolver
    from engine.adapters.agents.tools.mcp_voice import ServerVoice

__all__ = ["FAULT_CODE", "open_http"]

FAULT_CODE: Final = -32099
"""Of the error that stands for a fault of the way, out of the codes that JSON-RPC leaves to servers."""

_CONNECT_SECONDS: Final = 5.0
_GOODBYE_SECONDS: Final = 2.0
_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
_SESSION_LOST: Final = 404
_FAULTS_OF_THE_WAY: Final = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpx2.DecodingError,
    OSError,
)
_KEPT_HEADERS: Final = ("content-type", "mcp-session-id", "mcp-protocol-version", "set-cookie")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


@asynccontextmanager
async def open_http(
    url: str,
    headers: Callable[[], Mapping[str, str]],
    hosts: AllowedHosts,
    resolve: Resolver,
    tls: ssl.SSLContext | None,
    voice: ServerVoice,
) -> AsyncGenerator[TransportStreams]:
    """Make the streams of a server's streamable HTTP endpoint; nothing is sent yet.

    Args:
        url: the endpoint.
        headers: what to send along, asked for at each request; may raise ``AgentFailure``.
        hosts: where requests may go.
        resolve: name and port to addresses.
        tls: how the server is verified; None for the system's trust store.
        voice: gets why the way is closed.
    """
    transport = _FaultAnsweringTransport(CheckedTransport(hosts, resolve, tls), headers, voice)
    # No limit on reading: a call's own deadline ends it, and the stream of notifications is silent for hours.
    limits = httpx2.Timeout(_CONNECT_SECONDS, read=None, pool=None)
    async with (
        httpx2.AsyncClient(transport=transport, trust_env=False, timeout=limits) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=_MAX_EVENT_BYTES) as streams,
    ):
        yield streams


class _FaultAnsweringTransport(httpx2.AsyncBaseTransport):
    def __init__(
        self, transport: CheckedTransport, headers: Callable[[], Mapping[str, str]], voice: ServerVoice
    ) -> None:
        self._transport = transport
        self._headers = headers
        self._voice = voice

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            self._add_headers(request)
            if request.method == "DELETE":
                # It says goodbye; nobody waits long for the answer.
                request.extensions["timeout"] = httpx2.Timeout(_GOODBYE_SECONDS).as_dict()
            response = await self._transport.handle_async_request(request)
            if response.status_code >= 300 or _is_json(response):
                return await self._read(request, response)
        except AgentFailure as failure:
            self._voice.refusal = failure
            return _answer(request, failure.message)
        except _FAULTS_OF_THE_WAY as error:
            said = f": {error}" if str(error) else f": {type(error).__name__}"
            return _answer(request, f"it can't be reached, or broke the connection off{said}")
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _add_headers(self, request: httpx2.Request) -> None:
        for name, value in self._headers().items():
            if _HEADER_VALUE.fullmatch(value) is None:
                raise AgentFailure(
                    FailureReason.INVALID_REQUEST,
                    f"The header {name:.200} for the MCP server {self._voice.server} holds characters that no header"
                    " can have",
                    details={"setting": "mcp_servers", "mcp_server": self._voice.server},
                )
            # The protocol's own ones stand.
            if name not in request.headers:
                request.headers[name] = value

    async def _read(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        """Read an answer that is no stream, and put the fault in its place when that is what it is."""
        status = response.status_code
        async with aclosing(response):
            body = await _body_of(response)
        if body is None:
            return _answer(request, f"its answer has more than {_MAX_ANSWER_BYTES} bytes")
        if status in (_SESSION_LOST, httpx2.codes.METHOD_NOT_ALLOWED) or status < 300 or _is_error(body):
            kept = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
            return httpx2.Response(status, headers=kept, content=body, request=request)
        if status < 400:
            message = (
                f"it answers with a redirect (HTTP {status}), which is not followed; write the address itself into"
                " `mcp_servers`"
            )
        else:
            message = f"it answers with HTTP {status}"
        self._voice.refusal = AgentFailure(
            reason_of_status(status),
            f"The MCP server {self._voice.server} can't be used: {message}",
            details={"mcp_server": self._voice.server, "status": status},
        )
        return _answer(request, message)


async def _body_of(response: httpx2.Response) -> bytes | None:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MAX_ANSWER_BYTES:
            return None
    return bytes(body)


def _is_json(response: httpx2.Response) -> bool:
    return response.headers.get("content-type", "").lower().startswith("application/json")


def _is_error(body: bytes) -> bool:
    """Whether an answer's body says in JSON-RPC's words what is wrong."""
    try:
        found = cast("object", json.loads(body))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(cast("dict[str, object]", found).get("error"), dict)


def _answer(request: httpx2.Request, message: str) -> httpx2.Response:
    error = {"code": FAULT_CODE, "message": mask_text(bounded_text(message))}
    return httpx2.Response(502, json={"jsonrpc": "2.0", "id": None, "error": error}, request=request)
