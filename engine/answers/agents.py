"""From agents and handoffs to answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from engine import types
    from engine.domain.agent import Agent
    from engine.domain.handoff import Handoff
    from engine.ports.agent_graph import AgentUse
    from engine.services.graph import AgentImpact

__all__ = ["agent", "agent_impact", "agent_use", "handoff"]


def agent(stored: Agent) -> types.Agent:
    """Answer of ``get_agent``."""
    return {
        "agent_id": stored.agent_id,
        "name": stored.name,
        "description": stored.description,
        "capabilities": stored.capabilities,
        "tools": stored.tools,
        "config": stored.config,
        "kind": stored.kind,
        "status": stored.status,
        "version": stored.version,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in stored.warnings],
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
    }


def handoff(stored: Handoff) -> types.Handoff:
    """Answer of ``get_handoff``."""
    return {
        "handoff_id": stored.handoff_id,
        "source_agent_id": stored.source_agent_id,
        "target_agent_id": stored.target_agent_id,
        "handoff_type": stored.handoff_type,
        "data_mapping": stored.data_mapping,
        "trigger_conditions": stored.trigger_conditions,
        "workflow_id": stored.definition_id,
        "status": stored.status,
        "version": stored.version,
        "created_at": format_instant(stored.created_at),
        "updated_at": format_instant(stored.updated_at),
    }


def agent_use(use: AgentUse) -> types.AgentUse:
    """An item of ``find_workflows``."""
    return {"workflow_id": use.definition_id, "steps": list(use.step_ids), "as": use.role}


def agent_impact(impact: AgentImpact) -> types.AgentImpact:
    """Answer of ``agent_impact``."""
    return {
        "workflows": [agent_use(use) for use in impact.uses],
        "handoffs": [handoff(stored) for stored in impact.handoffs],
    }
