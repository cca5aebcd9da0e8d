"""What the reducer asks of the workflow, and how what was asked can end without an outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from engine.domain.execution import Cancellation, ErrorPayload, Event, ExecutionStatus, ToolCall, Usage
from engine.domain.json import JsonObject, JsonValue

if TYPE_CHECKING:
    from engine.domain.execution import BudgetLimits, Value
    from engine.domain.messages import AgentCallInput, ComputeInput
    from engine.domain.plan import PlanStep

__all__ = [
    "Action",
    "CallFailure",
    "ComputeValue",
    "Ending",
    "InvokeAgent",
    "StartChild",
    "StartTimer",
]


@dataclass(frozen=True, slots=True)
class InvokeAgent:
    """Schedule an agent's activity."""

    address: str
    activity_id: str
    summary: str
    step: PlanStep
    maximum_attempts: int
    call: AgentCallInput


@dataclass(frozen=True, slots=True)
class StartChild:
    """Start a child execution and wait for its end."""

    address: str
    child_id: str
    summary: str
    step: PlanStep
    input: Value
    budget: BudgetLimits | None = None
    """What is left of the run's budget."""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Wait until an instant."""

    address: str
    due_at: datetime
    summary: str


@dataclass(frozen=True, slots=True)
class ComputeValue:
    """Schedule the activity that makes a large value."""

    address: str
    summary: str
    request: ComputeInput


Action: TypeAlias = InvokeAgent | StartChild | StartTimer | ComputeValue


@dataclass(frozen=True, slots=True)
class CallFailure:
    """How a scheduled call ended without an outcome."""

    kind: Literal["agent", "timeout", "lost", "unasked", "cancelled", "input", "store", "child"]
    """``lost``: by a heartbeat timeout or a worker's shutdown. ``unasked``: a store kept the agent from being called.
    ``store``: the agent answered, and its output could not be kept. ``child``: a child execution failed; ``reason`` is
    then the code of its error."""
    reason: str
    message: str
    attempts: int
    usage: Usage = field(default_factory=Usage)
    details: JsonObject = field(default_factory=dict[str, JsonValue])
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    events: list[Event] = field(default_factory=list[Event])
    """What its attempts have told."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the execution ends; decided once."""

    status: ExecutionStatus
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None
