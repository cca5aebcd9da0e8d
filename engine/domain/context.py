"""Context items: a text worth finding again, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.json import JsonObject, JsonValue

__all__ = ["ContextFilter", "ContextItem", "ContextMatch", "ContextScope", "NamespaceOwner"]

ContextScope = Literal["execution", "workflow", "agent"]
"""Where a search looks: in one execution, in all executions of a workflow, in all calls of an agent. An item is found
in every scope whose id it carries: a step's output in all three, what a user added in those that were named."""


class ContextItem(BaseModel):
    """One text with its source."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    """The same for the same text of the same source, so that writing it again is no second item."""
    text: str
    text_hash: str
    """``sha256:<hex>`` of the text: tells whether what was indexed is what is stored."""
    definition_id: str | None = None
    execution_id: str | None = None
    step_id: str | None = None
    agent_id: str | None = None
    metadata: JsonObject = Field(default_factory=dict[str, JsonValue])
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ContextFilter:
    """Which items; None does not filter."""

    definition_id: str | None = None
    execution_id: str | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True)
class ContextMatch:
    """An item that a search found."""

    item: ContextItem
    score: float
    """0 to 1, greater is better; comparable within one search only."""


class NamespaceOwner(BaseModel):
    """Which embedder made the vectors of a namespace."""

    model_config = ConfigDict(frozen=True)

    embedder: str
    dimension: int
