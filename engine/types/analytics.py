"""Answers about what is measured, and how the parts are."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["AgentPerformance", "Component", "SystemHealth", "TimeRange", "WorkflowMetrics"]


class TimeRange(TypedDict):
    """The range that a report covers."""

    start: str
    end: str


class WorkflowMetrics(TypedDict):
    """Answer of ``get_workflow_metrics``; ``handoffs_taken`` and ``handoffs_refused`` are a workflow's only."""

    workflow_id: str
    time_range: TimeRange
    metrics: dict[str, float | None]


class AgentPerformance(TypedDict):
    """Answer of ``get_agent_performance``."""

    agent_id: str
    time_range: TimeRange
    metrics: dict[str, float | None]


class Component(TypedDict):
    """One part of the system in a health report; ``backend`` is null while it does not answer."""

    status: Literal["up", "degraded", "down", "no_worker"]
    backend: str | None
    latency_ms: float | None
    version: str | None
    detail: str | None


class SystemHealth(TypedDict):
    """Answer of ``get_system_health``."""

    status: Literal["healthy", "degraded", "unhealthy"]
    components: dict[str, Component]
    checked_at: str
