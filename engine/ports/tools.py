"""Tools that a model may call: Python functions and tools of MCP servers, behind one shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue


class ToolFailure(Exception):  # noqa: N818 - a result that goes back to the model, not a fault of ours
    """A tool's call ended without a result. The message, for the model, is ``str(failure)``."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, ready to be called."""

    name: str
    """As the model sees it: 1 to 64 letters, digits, ``_`` and ``-``; unique within a call."""
    description: str
    parameters: JsonObject
    """JSON Schema of the arguments: an object."""
    invoke: Callable[[JsonObject, AgentCall], Awaitable[JsonValue]]
    """Calls it with arguments that fit ``parameters``, or raises ``ToolFailure`` for everything that goes wrong in
    there. Cancelling the awaiting task returns promptly."""


@dataclass(frozen=True, slots=True)
class ResolvedTools:
    """What names stand for."""

    tools: Sequence[Tool]
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name as registered to why there is no such tool; the call goes without it."""


class ToolSource(Protocol):
    """Finds tools by the names in an agent's registration.

    A name is ``package.module:function``, ``mcp://server/tool``, ``mcp://server`` for all tools of a server, or one
    under which a function was registered in code.
    """

    def why_unknown(self, name: str) -> str | None:
        """Return why a name can't be resolved, as far as that is known without importing or connecting; else None."""
        ...

    async def resolve_tools(self, names: Sequence[str], call: AgentCall) -> ResolvedTools:
        """Find the tools, importing modules and starting MCP servers where need be, within the call's deadline.

        Raises:
            AgentFailure: unavailable or timeout, when a configured MCP server does not start or does not answer;
                invalid_request or unauthorized, when it may not be asked or refuses.
        """
        ...
