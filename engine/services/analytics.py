"""Metrics over a time range: what is asked is checked first, then the store counts, then formulas are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.metrics import compute_metrics, parse_metric_names, parse_time_range
from engine.errors import AgentNotFoundError, DefinitionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from engine.ports.agent_store import AgentStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.execution_store import ExecutionAnalytics

__all__ = ["AnalyticsService"]

Metrics = dict[str, float | None]


class AnalyticsService:
    """Answers how well workflows and agents do.

    Args:
        analytics: what counts.
        definitions: asked whether a workflow exists; a deleted one still has metrics.
        agents: asked whether an agent exists.
        clock: the present, aware UTC.
    """

    def __init__(
        self,
        analytics: ExecutionAnalytics,
        definitions: DefinitionStore,
        agents: AgentStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._analytics = analytics
        self._definitions = definitions
        self._agents = agents
        self._clock = clock

    async def workflow_metrics(
        self, definition_id: str, time_range: object = None, metrics: object = None
    ) -> tuple[datetime, datetime, Metrics]:
        """Return the range that was meant and the metrics of the executions created in it.

        Args:
            definition_id: the workflow, deleted or not.
            time_range: as ``parse_time_range`` takes it; None is the last 30 days.
            metrics: names; None is all.

        Raises:
            InvalidInputError: a range or a name that can't be read; ``details.path`` names it.
            DefinitionNotFoundError: there never was such a workflow.
        """
        start, end = parse_time_range(time_range, self._clock())
        names = parse_metric_names(metrics, "workflow")
        if await self._definitions.get_definition(definition_id) is None:
            raise DefinitionNotFoundError(definition_id)
        aggregates = await self._analytics.workflow_aggregates(definition_id, start, end)
        return start, end, compute_metrics(aggregates, names, "workflow")

    async def agent_performance(
        self, agent_id: str, time_range: object = None, metrics: object = None
    ) -> tuple[datetime, datetime, Metrics]:
        """Return the range that was meant and the metrics of the agent's calls started in it.

        Args:
            agent_id: the agent.
            time_range: as ``parse_time_range`` takes it; None is the last 30 days.
            metrics: names; None is all.

        Raises:
            InvalidInputError: a range or a name that can't be read; ``details.path`` names it.
            AgentNotFoundError: there is no such agent.
        """
        start, end = parse_time_range(time_range, self._clock())
        names = parse_metric_names(metrics, "agent")
        if await self._agents.get_agent(agent_id) is None:
            raise AgentNotFoundError(agent_id)
        aggregates = await self._analytics.agent_aggregates(agent_id, start, end)
        return start, end, compute_metrics(aggregates, names, "agent")
