"""One place turns a failure into what Temporal does about it."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from temporalio.exceptions import ApplicationError

from engine.domain.agent_call import NON_RETRYABLE_REASONS, AgentFailure
from engine.domain.messages import FailureDetails
from engine.errors import EngineError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.domain.execution import Event, ToolCall, Usage
    from engine.domain.messages import AgentCallInput, RetryDelays

MAX_MESSAGE_CHARS = 4000
MAX_TOOL_CALLS_BYTES = 16 * 1024
MAX_EVENTS = 20


def is_final(failure: AgentFailure, call: AgentCallInput, attempt: int) -> bool:
    """Whether Temporal will not repeat the call after this failure."""
    return (
        attempt >= call.maximum_attempts
        or failure.reason in NON_RETRYABLE_REASONS
        or failure.reason in call.non_retryable
    )


def application_error(
    failure: AgentFailure,
    call: AgentCallInput,
    attempt: int,
    usage: Usage,
    cause: Literal["agent", "input"] = "agent",
    tool_calls: Sequence[ToolCall] = (),
    events: Sequence[Event] = (),
) -> ApplicationError:
    """The Application Error of a failed attempt: its type is the reason, a provider's wait the next delay."""
    details = FailureDetails(
        attempt=attempt,
        usage=usage,
        cause=cause,
        details=failure.details,
        tool_calls=_latest(tool_calls),
        events=list(events)[-MAX_EVENTS:],
    )
    delay = failure.retry_after
    if delay is None and call.delays is not None:
        delay = _shortened(call.delays, attempt)
    return ApplicationError(
        failure.message[:MAX_MESSAGE_CHARS],
        details.model_dump(mode="json", exclude_unset=True),
        type=failure.reason.value,
        non_retryable=is_final(failure, call, attempt),
        next_retry_delay=delay,
    )


def _shortened(delays: RetryDelays, attempt: int) -> timedelta:
    """The policy's wait after an attempt, shortened by up to half at random."""
    # The exponent is bounded so that a thousand attempts do not overflow what is cut to the longest wait anyway.
    factor = delays.backoff_coefficient ** min(attempt - 1, 64)
    seconds = min(delays.initial_interval.total_seconds() * factor, delays.maximum_interval.total_seconds())
    return timedelta(seconds=random.uniform(seconds / 2, seconds))  # noqa: S311 - spreads load, guards nothing


def _latest(tool_calls: Sequence[ToolCall]) -> list[ToolCall]:
    """The last ones, as far as there is room for them in a failure's details."""
    taken: list[ToolCall] = []
    room_bytes = MAX_TOOL_CALLS_BYTES
    for call in reversed(tool_calls):
        room_bytes -= len(call.model_dump_json().encode())
        if room_bytes < 0:
            break
        taken.append(call)
    return taken[::-1]


def store_application_error(
    error: StoreError, attempt: int, usage: Usage, cause: Literal["store", "unasked"]
) -> ApplicationError:
    """A store's fault around an agent's call; once the agent has answered, nothing may repeat the call."""
    details = FailureDetails(attempt=attempt, usage=usage, cause=cause)
    return ApplicationError(
        error.message,
        details.model_dump(mode="json", exclude_unset=True),
        type=error.code.value,
        non_retryable=cause == "store",
    )


def engine_application_error(error: EngineError) -> ApplicationError:
    """Our own error across Temporal: its type is the code; only a retryable one is repeated."""
    return ApplicationError(error.message, error.details, type=error.code.value, non_retryable=not error.retryable)
