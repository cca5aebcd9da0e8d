"""Where handoffs live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.handoff import Handoff
    from engine.domain.page import Page, Position


class HandoffStore(Protocol):
    """Handoff rules. Every method raises ``StoreError`` when the store does not answer."""

    async def insert_handoff(self, handoff: Handoff) -> bool:
        """Store a new handoff. Return False, with nothing written, when the id is taken."""
        ...

    async def get_handoff(self, handoff_id: str) -> Handoff | None:
        """Return it, or None."""
        ...

    async def list_handoffs(
        self,
        *,
        source_agent_id: str | None,
        target_agent_id: str | None,
        definition_id: str | None,
        limit: int,
        after: Position | None,
    ) -> Page[Handoff]:
        """Return active handoffs, oldest first (creation order decides which one maps).

        ``definition_id`` selects those bound to that workflow. ``after``: ``(created_at as ISO text, handoff_id)``.
        """
        ...

    async def list_handoffs_among(self, agent_ids: list[str], definition_id: str) -> list[Handoff]:
        """Return active handoffs whose source is in ``agent_ids`` and that hold for this workflow, oldest first."""
        ...
