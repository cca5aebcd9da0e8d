"""Execution and step records: what the stores keep of a run, and the order of competing writes.

Two rules order writes, and every store enforces both. A step record is *fenced*: the greater ``token`` (the
server's start time of the attempt, or the workflow's time of a decision, in microseconds) stands. An execution
record belongs to the run that started last, and within one run to the finalize that saw the longer history.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "ArtifactRef",
    "BudgetLimits",
    "Cancellation",
    "ContextSource",
    "ErrorPayload",
    "Event",
    "ExecutionOptions",
    "ExecutionRecord",
    "ExecutionStatus",
    "ExecutionWarning",
    "LiveExecution",
    "LiveState",
    "LiveStep",
    "StepKind",
    "StepRecord",
    "StepStatus",
    "ToolCall",
    "Usage",
    "Value",
    "micros",
]


def micros(at: datetime) -> int:
    """Microseconds since the epoch: the unit of fence tokens."""
    return int(at.timestamp() * 1_000_000)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ExecutionStatus(StrEnum):
    """Where an execution stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self in _TERMINAL_EXECUTION


_TERMINAL_EXECUTION = (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED)


class StepStatus(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the step has ended."""
        return self in _TERMINAL_STEP


_TERMINAL_STEP = (StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED)


class Usage(_Record):
    """What calls cost. An unknown price is None, never 0."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tool_calls: int = 0
    cost_usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            tool_calls=self.tool_calls + other.tool_calls,
            cost_usd=sum(costs) if costs else None,
        )


class ErrorPayload(_Record):
    """An error inside an answer or a record: flat, as in API answers."""

    code: str
    message: str
    details: JsonObject = Field(default_factory=dict[str, JsonValue])


class ArtifactRef(_Record):
    """A value that lies in the ArtifactStore, with the parts of it that others are known to read."""

    artifact_id: str
    size_bytes: int
    declared: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Path (``output.plan.title``, ``input[0]``) to the value there, each at most 16 KiB."""
    absent: list[str] = Field(default_factory=list[str])
    """Paths at which nothing is, so that what is not declared is known to be large."""
    lengths: dict[str, int] = Field(default_factory=dict[str, int])
    """Of the lists at paths that are not declared because of their size."""


class Value(_Record):
    """A value between Baton's own parts: inline or by reference, so that user data is never taken for one."""

    inline: JsonValue = None
    ref: ArtifactRef | None = None

    @classmethod
    def of(cls, value: JsonValue) -> Self:
        """Wrap an inline value."""
        return cls(inline=value)


class Event(_Record):
    """One line of an execution's progress."""

    id: str
    """Sortable: the instant in milliseconds, what comes first within one, then the address and the type, so that a
    repeat has the same id."""
    type: str
    at: datetime
    step_id: str | None = None
    data: JsonObject = Field(default_factory=dict[str, JsonValue])

    @classmethod
    def at_instant(
        cls, event_type: str, at: datetime, address: str = "", step_id: str | None = None, **data: JsonValue
    ) -> Self:
        """Make an event whose id follows from its content; ``address`` tells apart what happens at one instant."""
        millis = int(at.timestamp() * 1000)
        event_id = f"{millis:013d}-{_rank(event_type)}-{address}-{event_type}"
        return cls(id=event_id, type=event_type, at=at, step_id=step_id, data=data)


def _rank(event_type: str) -> int:
    """Of events in one millisecond starts come first, then what goes on, then steps' ends, then the execution's."""
    match event_type:
        case "execution.started":
            return 0
        case "execution.completed" | "execution.failed" | "execution.cancelled":
            return 9
        case "step.completed" | "step.failed" | "step.cancelled" | "step.fell_back" | "step.skipped":
            return 3
        case _:
            return 1 if event_type.endswith(".started") else 2


class ExecutionWarning(_Record):
    """Something that did not stop the execution but should be read."""

    code: str
    message: str
    step_id: str | None = None


class Cancellation(_Record):
    """Who cancelled an execution, why and when."""

    reason: str | None = None
    by: str | None = None
    at: datetime | None = None


class BudgetLimits(_Record):
    """Limits of one execution; None is no limit."""

    tokens: int | None = None
    usd: float | None = None
    agent_calls: int | None = None
    seconds: float | None = None
    on_breach: Literal["fail", "ask"] = "fail"


class ExecutionOptions(_Record):
    """What an execution was started with beside its input."""

    priority: Literal["high", "normal", "low"] = "normal"
    timeout: timedelta | None = None
    trace: bool = False
    idempotency_key: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    budget: BudgetLimits | None = None
    """Narrows the definition's."""


class ToolCall(_Record):
    """One use of a tool by an agent, as its step's record keeps it."""

    name: str
    arguments: JsonValue = None
    """What the model gave; a text cut to 2,000 characters when it is larger."""
    duration: timedelta = timedelta(0)
    error: str | None = None
    """What went back to the model in place of a result."""


class ContextSource(_Record):
    """A context item that a step was given, and where it came from."""

    item_id: str
    score: float
    execution_id: str | None = None
    step_id: str | None = None
    agent_id: str | None = None


StepKind = Literal["agent", "transform", "wait", "workflow", "approval", "foreach"]
"""What made the record. ``foreach``: the step as a whole, whose items have records of their own."""


class StepRecord(_Record):
    """What is known of one logical call, addressed by (execution, run, step, item, n)."""

    execution_id: str
    run_id: str
    step_id: str
    item: int | None = None
    n: int = 1
    token: int
    """Fence: microseconds since the epoch; the greater one stands."""
    status: StepStatus
    kind: StepKind = "agent"
    agent_id: str | None = None
    agent_version: int | None = None
    attempts: int = 0
    """Attempts of this logical call so far."""
    prior_attempts: int = 0
    """Attempts of the step's earlier logical calls."""
    input: Value | None = None
    """Kept only when the execution asked for a trace."""
    output: Value | None = None
    error: ErrorPayload | None = None
    reason: str | None = None
    """Why it failed (a FailureReason), was skipped or cancelled."""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    usage: Usage = Field(default_factory=Usage)
    events: list[Event] = Field(default_factory=list[Event])
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])
    tool_calls: list[ToolCall] = Field(default_factory=list[ToolCall])
    """Of all attempts of this logical call, in order."""
    context: list[ContextSource] = Field(default_factory=list[ContextSource])
    """What was recalled for it."""
    handed: Value | None = None
    """What handoffs read of the reply and the output: an object of those top keys."""
    transcript: Value | None = None
    """Prompts and replies as a list of messages; kept only when the execution asked for a trace."""
    iteration: int = 1
    """Turn of a ``repeat_until``."""
    child_execution_id: str | None = None
    """The execution that a step of type ``workflow`` ran."""
    reused_from: str | None = None
    """The execution whose recorded outcome this is, in a rerun."""


class ExecutionRecord(_Record):
    """What is known of one execution; its steps are records of their own."""

    execution_id: str
    definition_id: str
    version: int
    plan_hash: str
    status: ExecutionStatus
    input: Value
    input_hash: str
    options: ExecutionOptions = Field(default_factory=ExecutionOptions)
    step_ids: list[str] = Field(default_factory=list[str])
    """The plan's steps in definition order."""
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    deadline_at: datetime | None = None
    run_id: str | None = None
    run_started_at: datetime | None = None
    """Start of the run that owns the record; a later run takes it over."""
    history_length: int = 0
    """Of the finalize that wrote the end; within one run the longer history wins."""
    output: Value | None = None
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])
    usage: Usage = Field(default_factory=Usage)
    events: list[Event] = Field(default_factory=list[Event])
    status_token: int = 0
    """Of the ``Transition`` that set ``running``, ``waiting`` or ``paused``; a smaller one changes nothing."""
    parent_execution_id: str | None = None
    """The execution that this one is a child of."""
    rerun_of: str | None = None
    """The execution that this one is a rerun of."""
    rerun_steps: list[str] = Field(default_factory=list[str])
    """What runs again in a rerun; the other steps are reused."""
    handoffs_taken: int = 0
    handoffs_refused: int = 0


class LiveStep(_Record):
    """A step as live state shows it."""

    step_id: str
    token: int
    status: StepStatus
    agent_id: str | None = None
    attempts: int = 0
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: ErrorPayload | None = None


class LiveExecution(_Record):
    """The head of an execution's live state."""

    execution_id: str
    definition_id: str
    version: int
    token: int
    """Microseconds; a head with a smaller token never replaces one with a greater."""
    status: ExecutionStatus
    step_ids: list[str]
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None


class LiveState(_Record):
    """The head with the steps that have been heard of."""

    execution: LiveExecution
    steps: dict[str, LiveStep] = Field(default_factory=dict[str, LiveStep])
