"""All the tools there are, by the names in agents' registrations.

Three forms: ``package.module:function``, ``mcp://server/tool`` (``mcp://server`` or ``mcp://server/*`` for all of a
server's), and the name of a function registered in code. A name that stands for nothing is left out of the call and
reported, because the agent may do well without it; a configured server that can't be used fails the call, because it
may be there at the next try.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine.adapters.agents.allowed_hosts import AllowedHosts
from engine.adapters.agents.tools.function_tools import FunctionTools
from engine.adapters.agents.tools.mcp_servers import McpServers
from engine.ports.tools import ResolvedTools, Tool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from engine.adapters.agents.checked_transport import Resolver
    from engine.adapters.agents.tools.mcp_servers import McpServerPlace
    from engine.domain.agent_call import AgentCall
    from engine.ports.secret_source import SecretSource

__all__ = ["AgentTools"]

_SCHEME: Final = "mcp://"
_MCP_NAME: Final = re.compile(r"mcp://(?P<server>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})(?:/(?P<tool>.+)?)?")
_NAME_CHARS: Final = 64
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")
_SHOWN_NAMES: Final = 20


class AgentTools:
    """Finds tools, as ``ToolSource`` says.

    Args:
        agent_modules: the setting of that name.
        servers: name to MCP server.
        secrets: fills secrets in for the servers.
        allowed_hosts: the setting of that name.
        max_threads: most sync functions that run at once; others wait.
        resolve: name and port to addresses, instead of the system's resolver.
        tls: how servers are verified; None for the system's trust store.

    Raises:
        ConfigurationError: an entry of ``allowed_hosts`` can't be read.
    """

    def __init__(
        self,
        agent_modules: Sequence[str],
        servers: Mapping[str, McpServerPlace],
        secrets: SecretSource,
        allowed_hosts: Sequence[str],
        *,
        max_threads: int = 32,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._functions = FunctionTools(agent_modules, max_threads=max_threads)
        self._servers = McpServers(servers, secrets, AllowedHosts(allowed_hosts), resolve=resolve, tls=tls)

    def why_unknown(self, name: str) -> str | None:
        """Return why a name can't be resolved, as far as that is known without importing or connecting; else None."""
        if not name.startswith(_SCHEME):
            return self._functions.why_unknown(name)
        found = _MCP_NAME.fullmatch(name)
        if found is None:
            return "it is not of the form mcp://server/tool"
        if found["server"] not in self._servers:
            return f"the setting `mcp_servers` names no server {found['server']}"
        return None

    async def resolve_tools(self, names: Sequence[str], call: AgentCall) -> ResolvedTools:
        """Find the tools, importing modules and starting MCP servers where need be, within the call's deadline.

        Raises:
            AgentFailure: unavailable or timeout, when a configured MCP server does not start or does not answer, or
                an import takes too long; invalid_request or unauthorized, when another try would end alike.
        """
        wanted = list(dict.fromkeys(names))
        missing = {name: why for name in wanted if (why := self.why_unknown(name)) is not None}
        servers = list(dict.fromkeys(_server_of(name) for name in wanted if name not in missing and _is_mcp(name)))
        offers = await asyncio.gather(
            *(self._servers.list_tools(server, call) for server in servers), return_exceptions=True
        )
        listed: dict[str, Sequence[Tool]] = {}
        for server, offer in zip(servers, offers, strict=True):
            if isinstance(offer, BaseException):
                raise offer
            listed[server] = offer
        tools = _Names()
        for name in wanted:
            if name in missing:
                continue
            found = _chosen(name, listed) if _is_mcp(name) else await self._functions.find_tool(name, call)
            if isinstance(found, str):
                missing[name] = found
            elif isinstance(found, Tool):
                tools.add("", found)
            else:
                for item in found:
                    tools.add(_server_of(name), item)
        return ResolvedTools(tools.all(), {name: missing[name] for name in wanted if name in missing})

    async def aclose(self) -> None:
        """End the servers of the running event loop and take no more calls."""
        try:
            await self._servers.aclose()
        finally:
            await self._functions.aclose()


class _Names:
    """Tools under names that a model's provider takes, each once."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._sources: set[tuple[str, str]] = set()

    def add(self, server: str, tool: Tool) -> None:
        # A server's tool may be named, and be among all of the server's.
        if server and (server, tool.name) in self._sources:
            return
        self._sources.add((server, tool.name))
        name = _valid(tool.name)
        if name in self._tools and server:
            name = _valid(f"{server}_{tool.name}")
        number = 2
        unique = name
        while unique in self._tools:
            unique = f"{name[: _NAME_CHARS - len(str(number)) - 1]}_{number}"
            number += 1
        self._tools[unique] = replace(tool, name=unique)

    def all(self) -> list[Tool]:
        return list(self._tools.values())


def _is_mcp(name: str) -> bool:
    return name.startswith(_SCHEME)


def _server_of(name: str) -> str:
    return name.removeprefix(_SCHEME).partition("/")[0]


def _chosen(name: str, listed: Mapping[str, Sequence[Tool]]) -> Sequence[Tool] | str:
    server = _server_of(name)
    wanted = name.removeprefix(_SCHEME).partition("/")[2]
    offered = listed[server]
    if wanted in ("", "*"):
        return offered
    found = [tool for tool in offered if tool.name == wanted]
    if found:
        return found[:1]
    names = ", ".join(tool.name for tool in offered[:_SHOWN_NAMES]) or "none"
    return f"the MCP server {server} has no tool {wanted}; it has {names}"


def _valid(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS] or "tool"
