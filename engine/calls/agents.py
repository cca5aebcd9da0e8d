"""Agents: the registry that steps name them from."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import optional_text, plain, text
from engine.calls.base import Calls, on_own_loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import types
    from engine.calls.base import Document
    from engine.domain.json import JsonObject

__all__ = ["AgentCalls"]


class AgentCalls(Calls):
    """The calls of ``WorkflowEngine`` about agents."""

    @on_own_loop
    async def register_agent(
        self,
        name: str,
        description: str | None = None,
        capabilities: Sequence[str] | None = None,
        tools: Sequence[str] | None = None,
        config: Document | None = None,
        agent_id: str | None = None,
    ) -> str:
        """Register an agent, or a new version of it, and return its id: derived from the name unless given."""
        session = self._session()
        agent = await session.agents.register_agent(
            name,
            description,
            cast("list[str] | None", plain(capabilities)),
            cast("list[str] | None", plain(tools)),
            cast("JsonObject | None", plain(config)),
            optional_text(agent_id, "agent_id"),
        )
        return agent.agent_id

    @on_own_loop
    async def get_agent(self, agent_id: str) -> types.Agent:
        """Return an agent's newest version."""
        session = self._session()
        return answers.agent(await session.agents.get_agent(text(agent_id, "agent_id")))

    @on_own_loop
    async def list_agents(
        self,
        capabilities: Sequence[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.AgentPage:
        """Return a page of agents that have all ``capabilities``, newest first."""
        session = self._session()
        wanted = cast("list[str] | None", plain(capabilities))
        items, following = await session.agents.list_agents(wanted, status, limit, cursor)
        return {"items": [answers.agent(item) for item in items], "next_cursor": following}
