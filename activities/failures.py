"""One place turns a failure into what Temporal does about it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio.exceptions import ApplicationError

from engine.domain.agent_call import NON_RETRYABLE_REASONS, AgentFailure
from engine.domain.messages import FailureDetails
from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.domain.execution import Usage
    from engine.domain.messages import AgentCallInput

MAX_MESSAGE_CHARS = 4000


def is_final(failure: AgentFailure, call: AgentCallInput, attempt: int) -> bool:
    """Whether Temporal will not repeat the call after this failure."""
    return (
        attempt >= call.maximum_attempts
        or failure.reason in NON_RETRYABLE_REASONS
        or failure.reason in call.non_retryable
    )


def application_error(
    failure: AgentFailure, call: AgentCallInput, attempt: int, usage: Usage, *, invalid_input: bool = False
) -> ApplicationError:
    """The Application Error of a failed attempt: its type is the reason, a provider's wait the next delay."""
    details = FailureDetails(attempt=attempt, usage=usage, invalid_input=invalid_input, details=failure.details)
    delay: timedelta | None = failure.retry_after
    return ApplicationError(
        failure.message[:MAX_MESSAGE_CHARS],
        details.model_dump(mode="json", exclude_unset=True),
        type=failure.reason.value,
        non_retryable=is_final(failure, call, attempt),
        next_retry_delay=delay,
    )


def engine_application_error(error: EngineError) -> ApplicationError:
    """Our own error across Temporal: its type is the code; only a retryable one is repeated."""
    return ApplicationError(error.message, error.details, type=error.code.value, non_retryable=not error.retryable)
