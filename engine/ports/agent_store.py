"""Where agents live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.agent import Agent, AgentStatus
    from engine.domain.page import Page, Position


class AgentStore(Protocol):
    """Immutable versions of agents, numbered from 1 without gaps.

    Reads see every write acknowledged before. Every method raises ``StoreError`` when the store does not answer.
    """

    async def insert_agent(self, agent: Agent) -> bool:
        """Store version 1 of a new id. Return False, with nothing written, when the id is taken."""
        ...

    async def append_agent(self, agent: Agent) -> bool:
        """Store the next version; False, with nothing written, when the newest is not ``agent.version - 1``."""
        ...

    async def get_agent(self, agent_id: str, version: int | None = None) -> Agent | None:
        """Return that version, or the newest; None when there is none."""
        ...

    async def get_agents(self, agent_ids: list[str]) -> dict[str, Agent]:
        """Return the newest versions of those ids that exist, by id, in one round trip."""
        ...

    async def list_agents(
        self, *, capabilities: list[str], status: AgentStatus | None, limit: int, after: Position | None
    ) -> Page[Agent]:
        """Return newest versions that have all ``capabilities``, latest created agent first.

        ``after`` is the position ``(created_at as ISO text, agent_id)``.
        """
        ...
