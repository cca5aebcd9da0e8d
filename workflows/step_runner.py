"""Agent calls as Temporal activities: started, watched without one waiting task each, and their ends classified."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    TimeoutType,
    is_cancelled_exception,
)
from temporalio.exceptions import (
    TimeoutError as ActivityTimeoutError,
)

with workflow.unsafe.imports_passed_through():
    from engine.domain.agent_call import FailureReason
    from engine.domain.ids import AGENT_ACTIVITY_PREFIX
    from engine.domain.messages import FailureDetails, StepOutcome
    from engine.domain.progress import CallFailure, InvokeAgent
    from workflows.activity_options import agent_activity_options

if TYPE_CHECKING:
    from asyncio import Task

WORKER_SHUTDOWN = "WorkerShutdown"
"""Type of the failure that the SDK reports for an activity that a stopping worker cancelled."""


_KINDS: Final[Mapping[str, Literal["agent", "input", "store", "lost"]]] = {
    "agent": "agent",
    "input": "input",
    "store": "store",
    "unasked": "lost",
}


class StepRunner:
    """Runs agent calls; what has ended waits in ``ended`` for the workflow's loop."""

    def __init__(self) -> None:
        self.ended: deque[tuple[InvokeAgent, StepOutcome | CallFailure | BaseException]] = deque()
        self._open: dict[str, Task[StepOutcome]] = {}

    def start(self, action: InvokeAgent) -> None:
        """Schedule a call's activity."""
        handle = workflow.start_activity(
            AGENT_ACTIVITY_PREFIX + action.call.agent.agent_id,
            action.call,
            result_type=StepOutcome,
            activity_id=action.activity_id,
            **agent_activity_options(action.step, action.maximum_attempts, action.summary),
        )
        self._open[action.address] = handle
        handle.add_done_callback(partial(self._end, action))

    def cancel_all(self) -> None:
        """Cancel every open call, in the order they were started."""
        for handle in list(self._open.values()):
            handle.cancel()
        self._open.clear()

    def _end(self, action: InvokeAgent, handle: Task[StepOutcome]) -> None:
        self._open.pop(action.address, None)
        if handle.cancelled():
            self.ended.append((action, _cancelled()))
            return
        error = handle.exception()
        if error is None:
            self.ended.append((action, handle.result()))
        elif isinstance(error, ActivityError):
            self.ended.append((action, classify(error, action)))
        else:
            self.ended.append((action, error))


def classify(error: ActivityError, action: InvokeAgent) -> CallFailure:
    """Say how a call failed: by its agent, by a time limit, with its worker, or because it was cancelled."""
    cause = error.cause
    if is_cancelled_exception(error):
        return _cancelled()
    match cause:
        case ActivityTimeoutError(type=TimeoutType.HEARTBEAT):
            return _timed_out("lost", cause, "The worker that ran it was lost", action)
        case ActivityTimeoutError():
            return _timed_out("timeout", cause, _timeout_message(cause, action), action)
        case ApplicationError(type=reason) if reason == WORKER_SHUTDOWN:
            return CallFailure("lost", FailureReason.UNAVAILABLE, "The worker that ran it was stopped", 1)
        case ApplicationError():
            return _agent_failure(cause)
        case _:
            return CallFailure("agent", FailureReason.ERROR, str(cause or error), 1)


def _agent_failure(cause: ApplicationError) -> CallFailure:
    reason = cause.type or FailureReason.ERROR
    details = FailureDetails()
    if cause.details:
        details = FailureDetails.model_validate(cause.details[0])
    return CallFailure(
        _KINDS[details.cause],
        reason,
        cause.message,
        details.attempt,
        usage=details.usage,
        details=details.details,
        tool_calls=details.tool_calls,
    )


def _timeout_message(cause: ActivityTimeoutError, action: InvokeAgent) -> str:
    step = action.step
    if cause.type is TimeoutType.START_TO_CLOSE:
        return f"Agent {action.call.agent.agent_id} did not answer within {step.timeout.total_seconds():g} s"
    if cause.type is TimeoutType.SCHEDULE_TO_CLOSE and step.total_timeout is not None:
        return f"The step did not end within its total_timeout of {step.total_timeout.total_seconds():g} s"
    return cause.message


def _timed_out(
    kind: Literal["timeout", "lost"], cause: ActivityTimeoutError, message: str, action: InvokeAgent
) -> CallFailure:
    """The attempt that ran out of time reports nothing itself: its heartbeats do, and the failure before it."""
    before = cause.cause
    failed = FailureDetails(attempt=0)
    if isinstance(before, ApplicationError) and before.details:
        failed = FailureDetails.model_validate(before.details[0])
    match cause.last_heartbeat_details:
        case [{"attempt": int(attempt)}, *_]:
            attempts = max(attempt, failed.attempt)
        case _ if failed.attempt:
            attempts = failed.attempt if cause.type is TimeoutType.SCHEDULE_TO_CLOSE else failed.attempt + 1
        case _:
            attempts = 1 if action.step.total_timeout else action.maximum_attempts
    return CallFailure(kind, FailureReason.TIMEOUT, message, attempts, usage=failed.usage)


def _cancelled() -> CallFailure:
    return CallFailure("cancelled", "cancelled", "Cancelled before it ended", 0)
