"""From a plan's step to Temporal's activity options, in one place."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, TypedDict

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from engine.domain.agent_call import NON_RETRYABLE_REASONS, FailureReason
    from engine.domain.plan import PlanStep

HEARTBEAT_TIMEOUT: Final = timedelta(seconds=15)
MAX_SUMMARY_BYTES: Final = 400

LOCAL_TIMEOUT: Final = timedelta(seconds=5)
LOCAL_RETRY: Final = RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=200))
REMOTE_TIMEOUT: Final = timedelta(seconds=30)
TELL_TIMEOUT: Final = timedelta(seconds=10)
"""Of what people wait to see: after a worker was lost it is told again so much sooner."""
REMOTE_RETRY: Final = RetryPolicy(maximum_interval=timedelta(seconds=10))
"""Unlimited: what it does must happen, and only a store or Temporal itself keeps it from happening."""


class AgentActivityOptions(TypedDict):
    """Keyword arguments of ``workflow.start_activity`` for an agent's call."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: workflow.ActivityCancellationType
    summary: str


def agent_activity_options(step: PlanStep, maximum_attempts: int, summary: str) -> AgentActivityOptions:
    """Options of one call of ``step``; a straggler's late write is fenced off, so nothing waits for a cancel."""
    retry = step.retry
    non_retryable = [*NON_RETRYABLE_REASONS, *retry.non_retryable]
    if FailureReason.TIMEOUT in retry.non_retryable:
        non_retryable.append("TemporalTimeout:StartToClose")
    return AgentActivityOptions(
        start_to_close_timeout=step.timeout,
        schedule_to_close_timeout=step.total_timeout,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=RetryPolicy(
            initial_interval=retry.initial_interval,
            backoff_coefficient=retry.backoff_coefficient,
            maximum_interval=retry.maximum_interval,
            maximum_attempts=maximum_attempts,
            non_retryable_error_types=non_retryable,
        ),
        cancellation_type=workflow.ActivityCancellationType.TRY_CANCEL,
        summary=truncate_bytes(summary, MAX_SUMMARY_BYTES),
    )


def truncate_bytes(text: str, limit: int) -> str:
    """Cut ``text`` to at most ``limit`` bytes of UTF-8 at a character's edge, an ellipsis marking the cut."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "…"
