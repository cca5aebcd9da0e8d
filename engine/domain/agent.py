"""A registered agent: a versioned record whose ``config`` chooses how it is called."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.json import JsonObject, JsonValue

__all__ = ["Agent", "AgentKind", "AgentStatus", "AgentWarning", "PlanAgent", "kind_of"]

AgentKind = Literal["llm", "python", "http"]
AgentStatus = Literal["active", "inactive"]


class AgentWarning(BaseModel):
    """Something that registration noticed and did not refuse."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class Agent(BaseModel):
    """One immutable version of an agent."""

    model_config = ConfigDict(frozen=True)

    agent_id: str
    name: str
    description: str | None = None
    capabilities: list[str] = Field(default_factory=list[str])
    tools: list[str] = Field(default_factory=list[str])
    config: JsonObject = Field(default_factory=dict[str, JsonValue])
    kind: AgentKind
    status: AgentStatus = "active"
    version: int = 1
    content_hash: str
    warnings: list[AgentWarning] = Field(default_factory=list[AgentWarning])
    created_at: datetime
    """When the agent's first version was registered."""
    updated_at: datetime
    """When this version was registered."""


class PlanAgent(BaseModel):
    """An agent as an execution froze it at its start."""

    model_config = ConfigDict(frozen=True)

    agent_id: str
    version: int
    kind: AgentKind
    config: JsonObject
    tools: list[str] = Field(default_factory=list[str])


def kind_of(config: JsonObject) -> AgentKind | None:
    """The kind that a config's keys choose (``kind`` itself, else by model, function or url), or None."""
    named = config.get("kind")
    if named in ("llm", "python", "http"):
        return named
    if named is not None:
        return None
    for key, kind in (("model", "llm"), ("function", "python"), ("url", "http")):
        if key in config:
            return kind  # pyright: ignore[reportReturnType] # the table's second column is of the kind
    return None
