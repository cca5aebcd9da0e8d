"""Records of what no agent's activity sees: the plan of a run, decisions of the workflow, the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from temporalio import activity

from activities.endings import terminal_record
from activities.failures import engine_application_error
from activities.operand_values import resolve
from engine import request_context
from engine.domain.execution import (
    ArtifactRef,
    Cancellation,
    ErrorPayload,
    Value,
)
from engine.domain.expressions import MissingPathError, json_size
from engine.domain.gate import Transition
from engine.domain.live import live_execution, live_step
from engine.domain.messages import (
    ACTIVITY_FINALIZE,
    ACTIVITY_LOAD_PLAN,
    ACTIVITY_RECORD_DECISIONS,
    ACTIVITY_RECORD_TRANSITION,
    ACTIVITY_REQUEST_CANCEL,
    MAX_INLINE_OUTPUT_BYTES,
    FinalizeInput,
    FinalizeResult,
    LoadPlanInput,
    LoadPlanResult,
    RecordDecisionsInput,
    RequestCancelInput,
)
from engine.domain.operands import missing_path
from engine.errors import EngineError, ErrorCode, LimitExceededError, StoreError

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.execution_runtime import ExecutionRuntime
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.plan_loader import PlanLoader
    from engine.ports.state_store import StateStore

_ASK_SECONDS = 2.0

_logger = logging.getLogger(__name__)


class RecordActivities:
    """Idempotent writes on behalf of the workflow."""

    def __init__(
        self,
        plans: PlanLoader,
        executions: ExecutionStore,
        artifacts: ArtifactStore,
        state: StateStore,
        runtime: ExecutionRuntime,
        search_attributes: list[str],
    ) -> None:
        """Take the ports, and the names of Baton's search attributes that the namespace has registered."""
        self._search_attributes = search_attributes
        self._plans = plans
        self._executions = executions
        self._artifacts = artifacts
        self._state = state
        self._runtime = runtime

    @activity.defn(name=ACTIVITY_LOAD_PLAN)
    async def load_plan(self, request: LoadPlanInput) -> LoadPlanResult:
        """Find or make the plan of a run, and its record."""
        request_context.execution_id.set(request.execution_id)
        try:
            loaded = await self._plans.load_plan(request)
        except EngineError as error:
            _logger.warning("Execution %s could not begin: %s", request.execution_id, error)
            raise engine_application_error(error) from error
        return loaded.model_copy(update={"search_attributes": self._search_attributes})

    @activity.defn(name=ACTIVITY_RECORD_DECISIONS)
    async def record_decisions(self, request: RecordDecisionsInput) -> None:
        """Store decisions of the workflow."""
        request_context.execution_id.set(request.execution_id)
        try:
            await self._executions.record_steps(request.decided, request.run_started_at)
        except EngineError as error:
            raise engine_application_error(error) from error

    @activity.defn(name=ACTIVITY_RECORD_TRANSITION)
    async def record_transition(self, change: Transition) -> None:
        """Store what has changed beside agents' calls: the status, gates, decisions."""
        request_context.execution_id.set(change.execution_id)
        try:
            await self._executions.record_transition(change)
            head = None if change.status is None else await self._executions.get_execution(change.execution_id)
        except EngineError as error:
            raise engine_application_error(error) from error
        shown = None if head is None else live_execution(head).model_copy(update={"token": change.token})
        try:
            await self._state.record_transition(
                change.execution_id,
                execution=None if shown is None or shown.status.is_terminal else shown,
                steps=[live_step(step) for step in change.steps],
                events=[*(event for step in change.steps for event in step.events), *change.events],
            )
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", change.execution_id, error)

    @activity.defn(name=ACTIVITY_REQUEST_CANCEL)
    async def request_cancel(self, request: RequestCancelInput) -> None:
        """Send Temporal's own cancellation to the run that asks."""
        request_context.execution_id.set(request.execution_id)
        try:
            await self._runtime.request_cancel(request.execution_id, request.reason)
        except EngineError as error:
            raise engine_application_error(error) from error

    @activity.defn(name=ACTIVITY_FINALIZE)
    async def finalize(self, request: FinalizeInput) -> FinalizeResult:
        """Write the end of an execution."""
        request_context.execution_id.set(request.execution_id)
        try:
            output, fault = await self._output(request)
            record = terminal_record(request, output, fault, await self._cancellation(request))
            stored = await self._executions.finalize_execution(record, request.decided)
        except EngineError as error:
            raise engine_application_error(error) from error
        await self._publish(stored, request)
        return FinalizeResult(output=output or Value(), status=record.status, error=fault)

    async def _output(self, request: FinalizeInput) -> tuple[Value | None, ErrorPayload | None]:
        if request.output is None:
            return None, None
        try:
            value = await resolve(request.output, request.execution_id, self._executions, self._artifacts)
        except MissingPathError as error:
            return None, ErrorPayload(
                code=ErrorCode.INVALID_INPUT,
                message=missing_path("The output mapping", error),
                details={"path": error.path.text},
            )
        except LimitExceededError as error:
            return None, ErrorPayload(code=error.code, message=error.message)
        if json_size(value, limit=MAX_INLINE_OUTPUT_BYTES) <= MAX_INLINE_OUTPUT_BYTES:
            return Value.of(value), None
        artifact_id, size_bytes = await self._artifacts.put_artifact(value)
        return Value(ref=ArtifactRef(artifact_id=artifact_id, size_bytes=size_bytes)), None

    async def _cancellation(self, request: FinalizeInput) -> Cancellation | None:
        """Who asked for the end, as Temporal's history has it; without an answer, as the workflow saw it."""
        if request.cancel is None:
            return None
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found = await self._runtime.find_cancel_request(request.execution_id)
        except (EngineError, TimeoutError) as error:
            _logger.warning("Who cancelled %s was not found out: %s", request.execution_id, error)
            return request.cancel
        return request.cancel if found is None else request.cancel.model_copy(update={"by": found.by, "at": found.at})

    async def _publish(self, stored: ExecutionRecord, request: FinalizeInput) -> None:
        events = [event for step in request.decided for event in step.events]
        try:
            await self._state.record_transition(
                request.execution_id,
                execution=live_execution(stored),
                steps=[live_step(step) for step in request.decided],
                events=[*events, *request.events, *stored.events[-1:]],
            )
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", request.execution_id, error)
