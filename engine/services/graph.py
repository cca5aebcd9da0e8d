"""Questions about who uses whom, asked before an agent is changed or taken away.

An agent that is not registered is refused rather than answered with nothing: most often the id is misspelt, and an
empty answer would read as "safe to remove".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.domain.page import MAX_LIMIT
from engine.errors import AgentNotFoundError, InvalidInputError
from engine.services.paging import next_cursor, parse_cursor, parse_limit

if TYPE_CHECKING:
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonObject
    from engine.domain.page import Position
    from engine.ports.agent_graph import AgentGraph, AgentUse
    from engine.ports.agent_store import AgentStore

__all__ = ["MAX_HOPS", "MAX_PATHS", "AgentImpact", "GraphService"]

MAX_HOPS: Final = 10
"""Most handoffs in a path that may be asked for: the work grows with the power of it."""
MAX_PATHS: Final = 100
"""Most paths in an answer."""


@dataclass(frozen=True, slots=True)
class AgentImpact:
    """What would change without an agent."""

    uses: list[AgentUse]
    """By workflow, then by role."""
    handoffs: list[Handoff]
    """From or to it, oldest first."""


class GraphService:
    """Answers from the graph of workflows, agents and handoffs.

    Args:
        graph: the graph.
        agents: says which agents there are.
    """

    def __init__(self, graph: AgentGraph, agents: AgentStore) -> None:
        self._graph = graph
        self._agents = agents

    async def find_definitions(
        self, agent_id: str, limit: int | None = None, cursor: str | None = None
    ) -> tuple[list[AgentUse], str | None]:
        """Return a page of the workflows that use an agent, by their ids, and the next page's cursor.

        A workflow that uses it in several roles comes once for each.

        Args:
            agent_id: as a step's agent, as its fallback, or as partner in a handoff.
            limit: 1 to 1000, 50 by default.
            cursor: of the page before, for the same agent.

        Raises:
            AgentNotFoundError: there is no such agent.
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        query: JsonObject = {"list": "agent uses", "agent_id": agent_id}
        size, after = parse_limit(limit), parse_cursor(cursor, query)
        await self._require(agent_id)
        page = await self._graph.list_agent_uses(agent_id, limit=size, after=after)
        return page.items, next_cursor(page, query)

    async def agent_impact(self, agent_id: str) -> AgentImpact:
        """Return everything that deactivating an agent would touch.

        Raises:
            AgentNotFoundError: there is no such agent.
        """
        await self._require(agent_id)
        uses: list[AgentUse] = []
        after: Position | None = None
        while True:
            page = await self._graph.list_agent_uses(agent_id, limit=MAX_LIMIT, after=after)
            uses += page.items
            after = page.next
            if after is None:
                return AgentImpact(uses, await self._graph.list_agent_handoffs(agent_id))

    async def handoff_paths(self, source_agent_id: str, target_agent_id: str, max_hops: int) -> list[list[str]]:
        """Return the ways from one agent to another along handoffs, at most 100, shortest first.

        Args:
            source_agent_id: where each path begins.
            target_agent_id: where each path ends; another agent than the source.
            max_hops: most handoffs in a path, 1 to 10.

        Raises:
            AgentNotFoundError: there is no such source or target.
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        if isinstance(max_hops, bool) or not isinstance(max_hops, int) or not 1 <= max_hops <= MAX_HOPS:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise InvalidInputError(f"max_hops must be a whole number from 1 to {MAX_HOPS}", {"path": "max_hops"})
        if source_agent_id == target_agent_id:
            raise InvalidInputError("An agent can't hand over to itself; name another target", {"path": "target"})
        await self._require(source_agent_id, target_agent_id)
        return await self._graph.find_handoff_paths(
            source_agent_id, target_agent_id, max_hops=max_hops, limit=MAX_PATHS
        )

    async def _require(self, *agent_ids: str) -> None:
        found = await self._agents.get_agents([*agent_ids])
        for agent_id in agent_ids:
            if agent_id not in found:
                raise AgentNotFoundError(agent_id)
