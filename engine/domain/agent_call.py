"""One call of an agent: what goes to an invoker, what a user's function sees of it, what comes back.

Failures travel as ``AgentFailure`` with a reason out of a closed list; the activity turns the reason into a retry
posture, so that no agent adapter retries or decides anything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from engine.domain.agent import PlanAgent
from engine.domain.execution import ExecutionWarning, ToolCall, Usage
from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "NON_RETRYABLE_REASONS",
    "AgentCall",
    "AgentFailure",
    "AgentInvocation",
    "AgentReply",
    "FailureReason",
]


class FailureReason(StrEnum):
    """Why an agent's call failed. The value is the Application Error's ``type`` in Temporal."""

    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    INVALID_OUTPUT = "invalid_output"
    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    ERROR = "error"


NON_RETRYABLE_REASONS: Final = (
    FailureReason.REFUSED,
    FailureReason.INVALID_REQUEST,
    FailureReason.UNAUTHORIZED,
)


class AgentFailure(Exception):  # noqa: N818 - the field's word; it is a result of a call, not a fault of ours
    """An agent's call ended without a usable reply.

    Args:
        reason: which of the known ways.
        message: for people; never holds a secret.
        retry_after: how long the provider asks to wait, when it says so.
        details: JSON data for programs, such as an HTTP status.
        usage: what the failed attempt cost all the same.
        tool_calls: the tools that it used.
    """

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        retry_after: timedelta | None = None,
        details: JsonObject | None = None,
        *,
        usage: Usage | None = None,
        tool_calls: Sequence[ToolCall] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details: JsonObject = details or {}
        self.usage = usage or Usage()
        self.tool_calls = list(tool_calls)


class AgentCall(Protocol):
    """What an agent's function sees of the call beside its input."""

    @property
    def execution_id(self) -> str:
        """The execution that calls."""
        ...

    @property
    def step_id(self) -> str:
        """The step that calls."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first attempt of this logical call."""
        ...

    @property
    def idempotency_key(self) -> str:
        """Equal over all attempts of one logical call; hand it to whatever must not happen twice."""
        ...

    @property
    def deadline(self) -> datetime:
        """When this attempt is given up (aware UTC)."""
        ...

    @property
    def context(self) -> list[JsonValue]:
        """What the step's ``context.recall`` found, best first: ``{text, score, source, created_at}``."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether the call's end was asked for; a long function looks at it and returns early."""
        ...

    def heartbeat(self, progress: JsonValue = None) -> None:
        """Tell Temporal that the call is alive. Baton heartbeats by itself; ``progress`` is shown in the UI."""
        ...

    def emit(self, text: str) -> None:
        """Publish a line of progress as an ``agent.progress`` event to whoever watches the execution."""
        ...


@dataclass(frozen=True, slots=True)
class AgentInvocation:
    """One attempt as an invoker gets it."""

    agent: PlanAgent
    input: JsonValue
    call: AgentCall
    reply_keys: Sequence[str] = ()
    """Top keys of the reply that the step's mappings, those of later steps and handoffs read; empty when they read
    none or the whole."""
    output_schema: JsonObject | None = None
    """JSON Schema of the step; the activity checks the reply by it, and a model may be told."""
    trace: bool = False
    """Whether ``AgentReply.transcript`` is wanted."""


@dataclass(frozen=True, slots=True)
class AgentReply:
    """What an agent answered: the output before any mapping, and what it cost."""

    output: JsonValue
    usage: Usage = field(default_factory=lambda: Usage(requests=1))
    tool_calls: Sequence[ToolCall] = ()
    warnings: Sequence[ExecutionWarning] = ()
    """Without ``step_id``, which the activity knows."""
    transcript: JsonValue = None
    """Prompts and replies as a list of messages, when ``AgentInvocation.trace`` asked for them."""
