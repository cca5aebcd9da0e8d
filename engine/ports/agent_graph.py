"""Questions about who uses whom, for which definitions are kept as a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from engine.domain.handoff import Handoff
    from engine.domain.page import Page, Position

AgentRole: TypeAlias = Literal["agent", "fallback", "handoff"]
"""How a workflow uses an agent: a step's own, a step's fallback, or as partner in a handoff of one of its agents."""


@dataclass(frozen=True, slots=True)
class AgentUse:
    """A workflow that uses an agent in one role."""

    definition_id: str
    role: AgentRole
    step_ids: tuple[str, ...]
    """In the definition's order. For ``handoff``: the steps whose agent is the handoff's other side."""


class AgentGraph(Protocol):
    """Newest versions of active workflows, active agents and active handoffs, as a graph.

    Reads see every write acknowledged before. Raises ``StoreError`` when the store does not answer.
    """

    async def list_agent_uses(self, agent_id: str, *, limit: int, after: Position | None) -> Page[AgentUse]:
        """Return the workflows that use an agent, one entry a role, by ``(definition_id, role)``.

        A handoff that is bound to a workflow counts for that one only.
        """
        ...

    async def list_agent_handoffs(self, agent_id: str) -> list[Handoff]:
        """Return the handoffs from or to an agent, oldest first."""
        ...

    async def find_handoff_paths(
        self, source_agent_id: str, target_agent_id: str, *, max_hops: int, limit: int
    ) -> list[list[str]]:
        """Return paths of agent ids from source to target along handoffs, shortest first, then by their ids.

        No agent comes twice in a path. At most ``limit`` of them, of at most ``max_hops`` handoffs.
        """
        ...
