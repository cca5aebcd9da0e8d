"""What is known: measurements of workflows and agents, and the state of what the engine needs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import plain, text
from engine.calls.base import Calls, on_own_loop
from engine.domain.metrics import format_instant
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import types
    from engine.calls.base import Document

__all__ = ["AnalyticsCalls"]


class AnalyticsCalls(Calls):
    """The calls of ``WorkflowEngine`` about measurements and health."""

    @on_own_loop
    async def get_workflow_metrics(
        self, workflow_id: str, time_range: str | Document | None = None, metrics: Sequence[str] | None = None
    ) -> types.WorkflowMetrics:
        """Return counts, rates and durations of a workflow's executions; no ``metrics`` means all."""
        session = self._session()
        start, end, values = await session.analytics.workflow_metrics(
            text(workflow_id, "workflow_id"), plain(time_range), plain(metrics)
        )
        return {
            "workflow_id": workflow_id,
            "time_range": {"start": format_instant(start), "end": format_instant(end)},
            "metrics": values,
        }

    @on_own_loop
    async def get_agent_performance(
        self, agent_id: str, time_range: str | Document | None = None, metrics: Sequence[str] | None = None
    ) -> types.AgentPerformance:
        """Return counts, rates and durations of an agent's calls; no ``metrics`` means all."""
        session = self._session()
        start, end, values = await session.analytics.agent_performance(
            text(agent_id, "agent_id"), plain(time_range), plain(metrics)
        )
        return {
            "agent_id": agent_id,
            "time_range": {"start": format_instant(start), "end": format_instant(end)},
            "metrics": values,
        }

    async def get_system_health(self) -> types.SystemHealth:
        """Report how Temporal, the workers and the stores are; never raises."""
        try:
            return await self._health_report()
        except EngineError as error:
            return answers.unusable(error, datetime.now(UTC))

    @on_own_loop
    async def _health_report(self) -> types.SystemHealth:
        return cast("types.SystemHealth", await self._session().health.report())
