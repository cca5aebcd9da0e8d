"""What the reducer asks for, as Temporal's commands: begun, watched, and how each ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, assert_never, cast

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    TimeoutType,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.exceptions import (
    TimeoutError as ActivityTimeoutError,
)

with workflow.unsafe.imports_passed_through():
    from engine.domain.actions import Action, CallFailure, ComputeValue, InvokeAgent, StartChild, StartTimer
    from engine.domain.agent_call import FailureReason
    from engine.domain.execution import Usage
    from engine.domain.ids import AGENT_ACTIVITY_PREFIX
    from engine.domain.json import JsonObject
    from engine.domain.messages import (
        ACTIVITY_COMPUTE_VALUE,
        ChildResult,
        FailureDetails,
        ParentLink,
        StartEnvelope,
        StepOutcome,
    )
    from engine.errors import ErrorCode
    from workflows.activity_options import (
        MAX_SUMMARY_BYTES,
        REMOTE_RETRY,
        REMOTE_TIMEOUT,
        agent_activity_options,
        truncate_bytes,
    )

if TYPE_CHECKING:
    from asyncio import Task

Result: TypeAlias = "StepOutcome | ChildResult | CallFailure | BaseException | None"
"""What came of an action; None: a timer has fired."""

WORKER_SHUTDOWN = "WorkerShutdown"
"""Type of the failure that the SDK reports for an activity that a stopping worker cancelled."""


_KINDS: Final[Mapping[str, Literal["agent", "input", "store", "unasked"]]] = {
    "agent": "agent",
    "input": "input",
    "store": "store",
    "unasked": "unasked",
}


MAX_CHILD_STARTS: Final = 30
CHILD_START_PAUSE: Final = timedelta(seconds=1)


class _ChildStillOpenError(Exception):
    """A child's id belongs to an execution that does not end."""


class StepRunner:
    """Does what the reducer asks for; what has ended waits in ``ended`` for the workflow's loop."""

    def __init__(self) -> None:
        self.ended: deque[tuple[Action, Result]] = deque()
        self._open: dict[str, Task[StepOutcome] | Task[ChildResult] | Task[None]] = {}

    def start(self, action: Action, envelope: StartEnvelope) -> None:
        """Begin an action; ``envelope`` is of the run, whose options a child inherits."""
        match action:
            case InvokeAgent():
                handle: Task[StepOutcome] = workflow.start_activity(
                    AGENT_ACTIVITY_PREFIX + action.call.agent.agent_id,
                    action.call,
                    result_type=StepOutcome,
                    activity_id=action.activity_id,
                    **agent_activity_options(action.step, action.maximum_attempts, action.summary),
                )
                self._watch(action, handle)
            case ComputeValue():
                computing: Task[StepOutcome] = workflow.start_activity(
                    ACTIVITY_COMPUTE_VALUE,
                    action.request,
                    result_type=StepOutcome,
                    activity_id=action.address,
                    start_to_close_timeout=REMOTE_TIMEOUT,
                    retry_policy=REMOTE_RETRY,
                    summary=truncate_bytes(action.summary, MAX_SUMMARY_BYTES),
                )
                self._watch(action, computing)
            case StartTimer():
                self._watch(action, asyncio.create_task(_sleep(action)))
            case StartChild():
                self._watch(action, asyncio.create_task(_run_child(action, envelope)))
            case _:
                assert_never(action)

    def cancel(self, address: str) -> None:
        """Cancel what is open at an address; nothing happens when it has ended."""
        handle = self._open.get(address)
        if handle is not None:
            handle.cancel()

    def _watch(self, action: Action, handle: Task[StepOutcome] | Task[ChildResult] | Task[None]) -> None:
        self._open[action.address] = handle
        handle.add_done_callback(partial(self._end, action))

    def _end(self, action: Action, handle: Task[StepOutcome] | Task[ChildResult] | Task[None]) -> None:
        self._open.pop(action.address, None)
        if handle.cancelled():
            if not isinstance(action, StartTimer):
                self.ended.append((action, _cancelled()))
            return
        error = handle.exception()
        if error is None:
            self.ended.append((action, handle.result()))
        elif isinstance(error, ActivityError):
            self.ended.append((action, classify(error, action)))
        elif isinstance(error, ChildWorkflowError):
            self.ended.append((action, _child_failure(error)))
        elif isinstance(error, _ChildStillOpenError):
            self.ended.append((action, CallFailure("child", ErrorCode.CONFLICT, str(error), 0)))
        else:
            self.ended.append((action, error))


async def _sleep(action: StartTimer) -> None:
    left = action.due_at - workflow.now()
    if left > timedelta(0):
        await workflow.sleep(left, summary=truncate_bytes(action.summary, MAX_SUMMARY_BYTES))


async def _run_child(action: StartChild, envelope: StartEnvelope) -> ChildResult:
    """Start a child execution and wait for its end; a cancellation reaches it, and is waited for."""
    child, step = action.step.child, action.step
    if child is None:
        raise ValueError(f"Step {step.id} executes no workflow")
    info = workflow.info()
    depth = 1 if envelope.parent is None else envelope.parent.depth + 1
    options = envelope.options.model_copy(
        update={"timeout": child.timeout, "idempotency_key": None, "budget": action.budget}
    )
    started = StartEnvelope(
        interpreter_version=envelope.interpreter_version,
        plan_hash="",
        input_ref=action.input.ref,
        options=options,
        deadline_at=None if child.timeout is None else workflow.now() + child.timeout,
        search_attributes=envelope.search_attributes,
        parent=ParentLink(execution_id=info.workflow_id, step_id=step.id, depth=depth),
        version=child.version,
    )
    for _ in range(MAX_CHILD_STARTS):
        try:
            result: ChildResult = await workflow.execute_child_workflow(
                child.definition_id,
                args=[action.input.inline, started],
                id=action.child_id,
                result_type=ChildResult,
                cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
                priority=Priority(priority_key=info.priority.priority_key) if info.priority else Priority.default,
                static_summary=truncate_bytes(f"{action.summary} of {info.workflow_id}", MAX_SUMMARY_BYTES),
            )
        except WorkflowAlreadyStartedError:
            # The child of a run that was reset is closing.
            await workflow.sleep(CHILD_START_PAUSE, summary="the same child of an earlier run is still open")
        else:
            return result
    raise _ChildStillOpenError(f"Execution {action.child_id} of an earlier run is still open; cancel it")


def _child_failure(error: ChildWorkflowError) -> CallFailure:
    if is_cancelled_exception(error):
        # By the run itself, or by somebody who cancelled the child alone: then the step has failed.
        message = f"Execution {error.workflow_id} was cancelled"
        return CallFailure("child", ErrorCode.AGENT_ERROR, message, 0, details={"execution_id": error.workflow_id})
    cause = error.cause
    if not isinstance(cause, ApplicationError):
        return CallFailure("child", ErrorCode.AGENT_ERROR, str(cause or error), 0)
    details: JsonObject = {"execution_id": error.workflow_id}
    usage, calls = Usage(), 0
    if len(cause.details) > 1:
        spent = ChildResult.model_validate(cause.details[1])
        usage, calls = spent.usage, spent.calls
    if cause.details and isinstance(cause.details[0], dict):
        details["details"] = cast("JsonObject", cause.details[0])
    return CallFailure("child", cause.type or ErrorCode.AGENT_ERROR, cause.message, calls, usage=usage, details=details)


def classify(error: ActivityError, action: Action) -> CallFailure:
    """Say how a call failed: by its agent, by a time limit, with its worker, or because it was cancelled."""
    cause = error.cause
    if is_cancelled_exception(error):
        return _cancelled()
    if not isinstance(action, InvokeAgent):
        return _value_failure(error)
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


def _value_failure(error: ActivityError) -> CallFailure:
    """A large value could not be made: by the mapping's fault, or because it is too large."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        kind: Literal["input", "child"] = "input" if cause.type == ErrorCode.INVALID_INPUT else "child"
        return CallFailure(kind, cause.type or ErrorCode.INTERNAL_ERROR, cause.message, 0)
    return CallFailure("child", ErrorCode.INTERNAL_ERROR, str(cause or error), 0)


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
        events=details.events,
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
    return CallFailure(kind, FailureReason.TIMEOUT, message, attempts, usage=failed.usage, events=failed.events)


def _cancelled() -> CallFailure:
    return CallFailure("cancelled", "cancelled", "Cancelled before it ended", 0)
