"""MCP servers as the settings name them: started at first use, one connection of each on an event loop.

A server that broke fails the calls that were under way; the next one starts it anew, at most twice a second.
The ``mcp`` package takes more than a second to load, so it is loaded in a thread, when the first tool is asked for.
"""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from engine.adapters.agents.tools.mcp_voice import ServerVoice
from engine.adapters.agents.tools.tool_results import tool_failure
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.ports.tools import Tool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mcp.client.streamable_http import TransportStreams  # pyright: ignore[reportPrivateImportUsage] # exported nowhere
    from mcp_types import Tool as ListedTool

    from engine.adapters.agents.allowed_hosts import AllowedHosts
    from engine.adapters.agents.checked_transport import Resolver
    from engine.adapters.agents.tools.mcp_link import McpLink
    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.secret_source import SecretSource

__all__ = ["McpServerPlace", "McpServers"]

_BETWEEN_STARTS_SECONDS: Final = 0.5
_LINK_MODULE: Final = "engine.adapters.agents.tools.mcp_link"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class McpServerPlace:
    """How a server is reached: started by ``command``, or at ``url``; one of both is there."""

    command: Sequence[str] = ()
    """Program and arguments."""
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Variables for the program, with ``${secret.NAME}`` to be filled in."""
    url: str | None = None
    """Its streamable HTTP endpoint."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Headers for ``url``, with ``${secret.NAME}`` to be filled in."""


class McpServers:
    """The servers, and what they offer.

    Args:
        places: name to place.
        secrets: fills secrets in, at each start of a program and at each HTTP request.
        hosts: where HTTP requests may go.
        resolve: name and port to addresses; None for the system's resolver.
        tls: how servers are verified; None for the system's trust store.
    """

    def __init__(
        self,
        places: Mapping[str, McpServerPlace],
        secrets: SecretSource,
        hosts: AllowedHosts,
        *,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._places = dict(places)
        self._secrets = secrets
        self._hosts = hosts
        self._resolve = resolve
        self._tls = tls
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Connection]] = WeakKeyDictionary()
        self._is_closed = False

    def __contains__(self, server: str) -> bool:
        return server in self._places

    async def list_tools(self, server: str, call: AgentCall) -> Sequence[Tool]:
        """Return the tools that a server of the settings offers, under its own names, starting it if need be.

        Raises:
            AgentFailure: unavailable or timeout, with the server's name and its last lines; invalid_request or
                unauthorized, when a secret is missing, its host is not allowed, it wants other credentials or the
                extra ``llm`` is not installed.
        """
        await _load_link()
        connection = self._connection(server)
        listed = await connection.link().list_tools(_seconds_left(call))
        return [_tool_of(connection, item) for item in listed]

    async def aclose(self) -> None:
        """End the connections of the running event loop, and their programs; start no more."""
        self._is_closed = True
        connections = self._connections.pop(asyncio.get_running_loop(), {})
        if connections:
            await asyncio.gather(*(connection.aclose() for connection in connections.values()))

    def _connection(self, server: str) -> _Connection:
        if self._is_closed:
            raise AgentFailure(FailureReason.UNAVAILABLE, "The worker is stopping and starts no MCP servers any more")
        connections = self._connections.setdefault(asyncio.get_running_loop(), {})
        if server not in connections:
            opened = partial(self._open, self._places[server])
            connections[server] = _Connection(server, opened)
        return connections[server]

    def _open(
        self, place: McpServerPlace, voice: ServerVoice, ended: Callable[[], None]
    ) -> AbstractAsyncContextManager[TransportStreams]:
        if place.url is None:
            from engine.adapters.agents.tools.mcp_stdio import basic_environment, open_stdio

            environ = {name: self._secrets.fill_in(text, None) for name, text in place.env.items()}
            return open_stdio(place.command, {**basic_environment(), **environ}, voice, ended)
        from engine.adapters.agents.checked_transport import resolve_host
        from engine.adapters.agents.tools.mcp_http import open_http

        parts = urlsplit(place.url)
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        host = f"{name}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"

        def headers() -> Mapping[str, str]:
            return {name: self._secrets.fill_in(text, host) for name, text in place.headers.items()}

        return open_http(place.url, headers, self._hosts, self._resolve or resolve_host, self._tls, voice)


class _Connection:
    """A server on one event loop: the link that stands, or the next one."""

    def __init__(
        self,
        server: str,
        opened: Callable[[ServerVoice, Callable[[], None]], AbstractAsyncContextManager[TransportStreams]],
    ) -> None:
        self.server = server
        self._opened = opened
        self._link: McpLink | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._started_at: float | None = None
        self._is_closed = False

    def link(self) -> McpLink:
        """Return the link, begun anew when the last one is over."""
        from engine.adapters.agents.tools.mcp_link import McpLink

        if self._is_closed:
            raise AgentFailure(FailureReason.UNAVAILABLE, f"The connection to the MCP server {self.server} is closed")
        if self._link is not None and self._link.is_over:
            ending = asyncio.create_task(self._link.aclose())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._link = None
        if self._link is None:
            now = asyncio.get_running_loop().time()
            start_at = now if self._started_at is None else max(now, self._started_at + _BETWEEN_STARTS_SECONDS)
            self._started_at = start_at
            voice = ServerVoice(self.server)
            self._link = McpLink(partial(self._opened, voice), voice, start_at - now)
        return self._link

    async def aclose(self) -> None:
        self._is_closed = True
        if self._link is not None:
            await self._link.aclose()
        if self._ending:
            await asyncio.wait(self._ending)


def _tool_of(connection: _Connection, listed: ListedTool) -> Tool:
    return Tool(
        name=listed.name,
        description=listed.description or listed.title or "",
        parameters=listed.input_schema,
        invoke=partial(_invoke, connection, listed.name),
    )


async def _invoke(connection: _Connection, name: str, given: JsonObject, call: AgentCall) -> JsonValue:
    from engine.adapters.agents.tools.mcp_results import result_of

    try:
        return result_of(await connection.link().call_tool(name, given, _seconds_left(call)))
    except AgentFailure as failure:
        raise tool_failure(failure.message) from None


async def _load_link() -> None:
    try:
        await asyncio.to_thread(importlib.import_module, _LINK_MODULE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        raise AgentFailure(
            FailureReason.INVALID_REQUEST,
            "Tools of MCP servers need the extra `llm`, which is not installed; run ./baton install llm",
        ) from None


def _seconds_left(call: AgentCall) -> float:
    return (call.deadline - datetime.now(UTC)).total_seconds()
