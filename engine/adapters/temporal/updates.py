"""Updates: how a run is asked to change, and what its refusal says.

A run refuses with an Application Error whose type is one of our codes, and that becomes the caller's error. Anything
else a refusal may say is a fault of Baton's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from temporalio.client import WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from engine.errors import ConflictError, EngineError, ErrorCode, InternalError, InvalidInputError

if TYPE_CHECKING:
    from temporalio.client import Client

    from engine.domain.json import JsonObject

__all__ = ["UPDATE_TIMEOUT", "send_update"]

UPDATE_TIMEOUT: Final = timedelta(seconds=10)
_REFUSALS: Final[dict[str | None, type[EngineError]]] = {
    ErrorCode.CONFLICT: ConflictError,
    ErrorCode.INVALID_INPUT: InvalidInputError,
}
_ENDED_MEANWHILE: Final = "AcceptedUpdateCompletedWorkflow"
"""The server's type for an update that was taken by a run which ended before it answered."""


async def send_update(client: Client, execution_id: str, name: str, argument: JsonObject) -> JsonObject:
    """Return what the current run's handler of an update returned.

    Raises:
        InvalidInputError, ConflictError: the run refused it.
        ConflictError: no open run has this id.
        TimeoutError: there was no answer in time.
        RPCError: the server could not be asked.
    """
    handle = client.get_workflow_handle(execution_id)
    try:
        async with asyncio.timeout(UPDATE_TIMEOUT.total_seconds()):
            answer: object = await handle.execute_update(  # pyright: ignore[reportUnknownMemberType] # one overload is untyped
                name, argument, result_type=dict
            )
            return cast("JsonObject", answer)
    except WorkflowUpdateFailedError as error:
        raise _refusal(error.cause, execution_id, name) from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The SDK hides that its caller was cancelled.
            raise asyncio.CancelledError from error
        raise TimeoutError from error
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise _over(execution_id) from error
        raise


def _refusal(cause: BaseException, execution_id: str, name: str) -> EngineError:
    if not isinstance(cause, ApplicationError):
        return InternalError(f"The update {name} failed: {cause}", {"execution_id": execution_id})
    if cause.type == _ENDED_MEANWHILE:
        return _over(execution_id)
    kind = _REFUSALS.get(cause.type)
    if kind is None:
        return InternalError(
            f"The update {name} failed with {cause.type}: {cause.message}", {"execution_id": execution_id}
        )
    details = cause.details[0] if cause.details else None
    return kind(cause.message, cast("Mapping[str, object]", details) if isinstance(details, Mapping) else None)


def _over(execution_id: str) -> ConflictError:
    return ConflictError("The execution is over", {"execution_id": execution_id})
