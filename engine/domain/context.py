"""Context items: a text worth finding again, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.json import JsonObject, JsonValue

__all__ = ["ContextFilter", "ContextItem", "ContextScope"]

ContextScope = Literal["execution", "workflow", "agent"]
"""Who may recall it: the execution that it came from, every execution of the workflow, every call of the agent."""


class ContextItem(BaseModel):
    """One text with its source."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    """The same for the same text of the same source, so that writing it again is no second item."""
    text: str
    text_hash: str
    """``sha256:<hex>`` of the text: tells whether what was indexed is what is stored."""
    scope: ContextScope
    definition_id: str | None = None
    execution_id: str | None = None
    step_id: str | None = None
    agent_id: str | None = None
    metadata: JsonObject = Field(default_factory=dict[str, JsonValue])
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ContextFilter:
    """Which items; None does not filter."""

    scope: ContextScope | None = None
    definition_id: str | None = None
    execution_id: str | None = None
    agent_id: str | None = None
