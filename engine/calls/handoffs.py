"""Handoffs between agents, and who uses whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import optional_text, plain, text
from engine.calls.base import Calls, on_own_loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine import types

__all__ = ["HandoffCalls"]


class HandoffCalls(Calls):
    """The calls of ``WorkflowEngine`` about handoffs and who uses whom."""

    @on_own_loop
    async def create_handoff(
        self,
        source_agent_id: str,
        target_agent_id: str,
        handoff_type: str = "sequential",
        data_mapping: Mapping[str, str] | None = None,
        trigger_conditions: Sequence[str] | None = None,
        *,
        workflow_id: str | None = None,
    ) -> str:
        """Store a handoff rule and return its id; executions that start from now on act by it.

        Args:
            source_agent_id: the agent whose steps hand over.
            target_agent_id: the agent that they hand over to.
            handoff_type: ``sequential``, ``parallel``, or ``escalation``: called when a step of the source is about
                to fail.
            data_mapping: key of the source's output to input key of the target.
            trigger_conditions: the events ``completion``, ``failure``, ``timeout``, of which one must have come, and
                conditions, which must all hold; none means ``completion``.
            workflow_id: the one workflow that it counts in; None: all.

        Raises:
            InvalidInputError: a field or a condition can't be used.
        """
        session = self._session()
        handoff = await session.handoffs.create_handoff(
            source_agent_id,
            target_agent_id,
            handoff_type,
            cast("dict[str, str] | None", plain(data_mapping)),
            cast("list[str] | None", plain(trigger_conditions)),
            workflow_id,
        )
        return handoff.handoff_id

    @on_own_loop
    async def get_handoff(self, handoff_id: str) -> types.Handoff:
        """Return a handoff."""
        session = self._session()
        return answers.handoff(await session.handoffs.get_handoff(text(handoff_id, "handoff_id")))

    @on_own_loop
    async def list_handoffs(
        self,
        source_agent_id: str | None = None,
        target_agent_id: str | None = None,
        workflow_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.HandoffPage:
        """Return a page of handoffs, oldest first."""
        session = self._session()
        items, following = await session.handoffs.list_handoffs(
            optional_text(source_agent_id, "source_agent_id"),
            optional_text(target_agent_id, "target_agent_id"),
            optional_text(workflow_id, "workflow_id"),
            limit,
            cursor,
        )
        return {"items": [answers.handoff(item) for item in items], "next_cursor": following}

    @on_own_loop
    async def find_workflows(
        self, agent_id: str, limit: int | None = None, cursor: str | None = None
    ) -> types.AgentUsePage:
        """Return a page of the active workflows that use an agent in their newest version, by their ids."""
        session = self._session()
        items, following = await session.graph.find_definitions(text(agent_id, "agent_id"), limit, cursor)
        return {"items": [answers.agent_use(item) for item in items], "next_cursor": following}

    @on_own_loop
    async def agent_impact(self, agent_id: str) -> types.AgentImpact:
        """Return all workflows and handoffs that would miss an agent."""
        session = self._session()
        return answers.agent_impact(await session.graph.agent_impact(text(agent_id, "agent_id")))

    @on_own_loop
    async def handoff_paths(self, source: str, target: str, max_hops: int = 6) -> list[list[str]]:
        """Return the paths of agent ids from ``source`` to ``target`` along handoffs, at most 100, shortest first."""
        session = self._session()
        return await session.graph.handoff_paths(text(source, "source"), text(target, "target"), max_hops)
