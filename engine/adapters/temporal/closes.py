"""How a run stands and how it closed: from Temporal's lists, its description and the last events of its history."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import TYPE_CHECKING, Final, cast

from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryReverseRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from engine.domain.execution import Cancellation, ErrorPayload, Value
from engine.domain.messages import ACTIVITY_REQUEST_CANCEL, CANCEL_SIGNAL
from engine.errors import ErrorCode
from engine.ports.execution_runtime import RunDescription, RunPage, RunStatus, RunSummary

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from temporalio.api.history.v1 import HistoryEvent
    from temporalio.api.workflow.v1 import WorkflowExecutionInfo
    from temporalio.client import Client, WorkflowExecutionDescription

    from engine.domain.json import JsonValue

_STATUSES: Final[dict[WorkflowExecutionStatus, RunStatus]] = {
    WorkflowExecutionStatus.RUNNING: "running",
    WorkflowExecutionStatus.CONTINUED_AS_NEW: "running",
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
}
_LISTED: Final[dict[RunStatus, str]] = {
    "running": "'Running'",
    "completed": "'Completed'",
    "failed": "'Failed'",
    "cancelled": "'Canceled'",
    "terminated": "'Terminated'",
    "timed_out": "'TimedOut'",
}
"""Each status as a list's query has it."""
_OVER_RATE_SECONDS: Final = 0.1
_LAST_EVENTS: Final = 20
_MAX_PAGES: Final = 100
_CODES: Final = frozenset(code.value for code in ErrorCode)


async def list_runs(
    client: Client,
    task_queue: str,
    statuses: Collection[RunStatus],
    closed_since: datetime | None,
    limit: int,
    after: bytes | None,
) -> RunPage:
    """Return a page of a task queue's runs; see ``ExecutionRuntime.list_runs``.

    A server lets lists have a small share of its rate. Whoever is over it waits: the caller sets the limit.
    """
    from engine.adapters.temporal.connection import RPC_TIMEOUT

    queue = task_queue.replace("'", "''")
    wanted = ", ".join(_LISTED[status] for status in sorted(statuses or _LISTED))
    query = f"TaskQueue = '{queue}' AND ExecutionStatus IN ({wanted})"
    if closed_since is not None:
        query += f" AND CloseTime >= '{closed_since.astimezone(UTC).isoformat()}'"
    request = ListWorkflowExecutionsRequest(
        namespace=client.namespace, query=query, page_size=limit, next_page_token=after or b""
    )
    while True:
        try:
            answer = await client.workflow_service.list_workflow_executions(request, timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is not RPCStatusCode.RESOURCE_EXHAUSTED:
                raise
            await asyncio.sleep(_OVER_RATE_SECONDS)
        else:
            return RunPage([_summary(run) for run in answer.executions], answer.next_page_token or None)


def _summary(run: WorkflowExecutionInfo) -> RunSummary:
    return RunSummary(
        execution_id=run.execution.workflow_id,
        run_id=run.execution.run_id,
        status=_STATUSES[WorkflowExecutionStatus(run.status)],
        started_at=run.start_time.ToDatetime(tzinfo=UTC),
        closed_at=run.close_time.ToDatetime(tzinfo=UTC) if run.HasField("close_time") else None,
    )


async def describe_close(client: Client, described: WorkflowExecutionDescription) -> RunDescription:
    """Describe a run; for a closed one read from its last events what it returned or who ended it."""
    status = _STATUSES.get(described.status or WorkflowExecutionStatus.RUNNING, "running")
    base = RunDescription(
        run_id=described.run_id,
        status=status,
        started_at=described.start_time,
        closed_at=described.close_time,
        history_length=described.history_length,
        definition_id=described.workflow_type,
    )
    if status == "running":
        return base
    return await _with_close(client, described, base)


async def _with_close(client: Client, described: WorkflowExecutionDescription, base: RunDescription) -> RunDescription:
    output: Value | None = None
    error: ErrorPayload | None = None
    reason: str | None = None
    by: str | None = None
    for event in await _last_events(client, described.id, described.run_id):
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
                payloads = event.workflow_execution_completed_event_attributes.result.payloads
                values = await client.data_converter.decode(payloads) if payloads else [None]
                output = Value.of(cast("JsonValue", values[0]))
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
                failure = event.workflow_execution_failed_event_attributes.failure
                code = failure.application_failure_info.type
                error = ErrorPayload(code=code if code in _CODES else ErrorCode.INTERNAL_ERROR, message=failure.message)
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
                attributes = event.workflow_execution_terminated_event_attributes
                reason, by = attributes.reason or None, attributes.identity or None
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
                request = event.workflow_execution_cancel_requested_event_attributes
                reason, by = request.cause or None, request.identity or None
            case _:
                pass
    return RunDescription(
        run_id=base.run_id,
        status=base.status,
        started_at=base.started_at,
        closed_at=base.closed_at,
        history_length=base.history_length,
        definition_id=base.definition_id,
        output=output,
        error=error,
        close_reason=reason,
        closed_by=by,
    )


async def find_cancel_request(client: Client, execution_id: str) -> Cancellation | None:
    """Who asked first for the current run's cancellation, from the end of its history.

    Behind a request that Baton itself made on a signal stands whoever sent the signal.
    """
    request: Cancellation | None = None
    was_signalled = False
    token = b""
    for _ in range(_MAX_PAGES):
        events, token = await _events_backwards(client, execution_id, "", token)
        for event in events:
            match event.event_type:
                case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
                    asked = event.workflow_execution_cancel_requested_event_attributes
                    request = _cancellation(event, asked.cause, asked.identity)
                case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                    name = event.activity_task_scheduled_event_attributes.activity_type.name
                    was_signalled = was_signalled or name == ACTIVITY_REQUEST_CANCEL
                case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED if was_signalled:
                    signal = event.workflow_execution_signaled_event_attributes
                    if signal.signal_name == CANCEL_SIGNAL:
                        return _cancellation(event, request.reason if request else None, signal.identity)
                case _:
                    pass
        if not token or not was_signalled:
            break
    return request


def _cancellation(event: HistoryEvent, reason: str | None, identity: str) -> Cancellation:
    return Cancellation(reason=reason or None, by=identity or None, at=event.event_time.ToDatetime(tzinfo=UTC))


async def _last_events(client: Client, execution_id: str, run_id: str) -> list[HistoryEvent]:
    return (await _events_backwards(client, execution_id, run_id, b""))[0]


async def _events_backwards(
    client: Client, execution_id: str, run_id: str, token: bytes
) -> tuple[list[HistoryEvent], bytes]:
    from engine.adapters.temporal.connection import RPC_TIMEOUT

    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace, maximum_page_size=_LAST_EVENTS, next_page_token=token
    )
    request.execution.workflow_id = execution_id
    request.execution.run_id = run_id
    answer = await client.workflow_service.get_workflow_execution_history_reverse(request, timeout=RPC_TIMEOUT)
    return list(answer.history.events), answer.next_page_token
