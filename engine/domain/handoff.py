"""A handoff: a stored rule that hands one agent's output to another when its trigger fires."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HANDOFF_TYPES", "Handoff", "HandoffType"]

HandoffType = Literal["sequential", "parallel", "escalation"]
HANDOFF_TYPES: tuple[HandoffType, ...] = ("sequential", "parallel", "escalation")


class Handoff(BaseModel):
    """A handoff between two agents, for all workflows or bound to one."""

    model_config = ConfigDict(frozen=True)

    handoff_id: str
    source_agent_id: str
    target_agent_id: str
    handoff_type: HandoffType = "sequential"
    data_mapping: dict[str, str] = Field(default_factory=dict[str, str])
    """Key of the source's output to input key of the target."""
    trigger_conditions: list[str] = Field(default_factory=list[str])
    definition_id: str | None = None
    """The one workflow it is bound to, or None for all."""
    status: Literal["active", "deleted"] = "active"
    version: int = 1
    created_at: datetime
    updated_at: datetime
