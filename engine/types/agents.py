"""Answers about agents, handoffs, and who uses whom."""

from __future__ import annotations

from typing import Literal, TypedDict

from engine.types.values import JsonObject

__all__ = ["Agent", "AgentImpact", "AgentPage", "AgentUse", "AgentUsePage", "AgentWarning", "Handoff", "HandoffPage"]


class AgentWarning(TypedDict):
    """Something that registration noticed."""

    code: str
    message: str


class Agent(TypedDict):
    """Answer of ``get_agent``."""

    agent_id: str
    name: str
    description: str | None
    capabilities: list[str]
    tools: list[str]
    config: JsonObject
    kind: str
    status: str
    version: int
    warnings: list[AgentWarning]
    created_at: str
    updated_at: str


class AgentPage(TypedDict):
    """Answer of ``list_agents``."""

    items: list[Agent]
    next_cursor: str | None


class Handoff(TypedDict):
    """Answer of ``get_handoff``."""

    handoff_id: str
    source_agent_id: str
    target_agent_id: str
    handoff_type: str
    data_mapping: dict[str, str]
    trigger_conditions: list[str]
    workflow_id: str | None
    status: str
    version: int
    created_at: str
    updated_at: str


class HandoffPage(TypedDict):
    """Answer of ``list_handoffs``."""

    items: list[Handoff]
    next_cursor: str | None


AgentUse = TypedDict(
    "AgentUse", {"workflow_id": str, "steps": list[str], "as": Literal["agent", "fallback", "handoff"]}
)


class AgentUsePage(TypedDict):
    """Answer of ``find_workflows``; a workflow that uses the agent in two ways comes twice."""

    items: list[AgentUse]
    next_cursor: str | None


class AgentImpact(TypedDict):
    """Answer of ``agent_impact``."""

    workflows: list[AgentUse]
    handoffs: list[Handoff]
