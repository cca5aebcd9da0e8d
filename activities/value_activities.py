"""Values that are too large for a run's memory, made where the stores are: of a mapping, or of a list's items."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.failures import engine_application_error
from activities.operand_values import resolve
from engine import request_context
from engine.domain.execution import ArtifactRef, Event, StepRecord, Value, micros
from engine.domain.expressions import MissingPathError, json_size, parse_path
from engine.domain.ids import call_address
from engine.domain.live import live_step
from engine.domain.messages import ACTIVITY_COMPUTE_VALUE, MAX_INLINE_OUTPUT_BYTES, ComputeInput, StepOutcome
from engine.domain.operands import declare, missing_path
from engine.errors import EngineError, ErrorCode, LimitExceededError, StoreError

if TYPE_CHECKING:
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.messages import CollectInput
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValueActivities:
    """Makes values and records the steps that they are outputs of."""

    executions: ExecutionStore
    artifacts: ArtifactStore
    state: StateStore

    @activity.defn(name=ACTIVITY_COMPUTE_VALUE)
    async def compute_value(self, request: ComputeInput) -> StepOutcome:
        """Make the value; with its end the step's record is written, unless it is only a child's input."""
        request_context.execution_id.set(request.execution_id)
        request_context.step_id.set(request.record.step_id)
        try:
            return await self._computed(request)
        except MissingPathError as error:
            message = missing_path(f"The mapping of step {request.record.step_id}", error)
            raise ApplicationError(message, type=ErrorCode.INVALID_INPUT, non_retryable=True) from error
        except LimitExceededError as error:
            raise ApplicationError(error.message, type=ErrorCode.INVALID_INPUT, non_retryable=True) from error
        except EngineError as error:
            raise engine_application_error(error) from error

    async def _computed(self, request: ComputeInput) -> StepOutcome:
        if request.decided:
            await self.executions.record_steps(request.decided, request.run_started_at)
        if request.collect is not None:
            made = await self._collected(request.execution_id, request.record, request.collect)
        elif request.input is not None:
            made = await resolve(request.input, request.execution_id, self.executions, self.artifacts)
        else:
            made = None
        output = await self._kept(made, request.declared)
        completed_at = datetime.now(UTC)
        outcome = StepOutcome(
            output=output,
            attempts=0,
            started_at=request.record.started_at or completed_at,
            completed_at=completed_at,
            token=micros(completed_at),
            handed=await self._handed(made, request.handed),
        )
        if not request.is_child_input:
            await self._record(request, outcome)
        return outcome

    async def _record(self, request: ComputeInput, outcome: StepOutcome) -> None:
        blank = request.record
        address = call_address(blank.step_id, blank.item, blank.n)
        data: JsonObject = {} if blank.item is None else {"item": blank.item}
        ended = Event.at_instant("step.completed", outcome.completed_at, address, blank.step_id, **data)
        record = blank.model_copy(
            update={
                "token": outcome.token,
                "output": outcome.output,
                "handed": outcome.handed,
                "completed_at": outcome.completed_at,
                "events": [*blank.events, ended],
            }
        )
        await self.executions.record_steps([record], request.run_started_at)
        records = [*request.decided, record]
        try:
            await self.state.record_transition(
                request.execution_id,
                steps=[live_step(one) for one in records],
                events=[event for one in records for event in one.events],
            )
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", request.execution_id, error)

    async def _collected(self, execution_id: str, blank: StepRecord, collect: CollectInput) -> list[JsonValue]:
        """The outputs of a step's items in their order, null where there is none."""
        latest: dict[int, StepRecord] = {}
        for record in await self.executions.list_steps(execution_id):
            if record.step_id == blank.step_id and record.item is not None and record.output is not None:
                latest[record.item] = record
        outputs: list[JsonValue] = [None] * collect.count
        for first, last in collect.completed:
            for item in range(first, last + 1):
                found = latest.get(item)
                if found is None or found.output is None:
                    raise StoreError(f"The output of {blank.step_id}[{item}] of {execution_id} is not in the store")
                outputs[item] = await self._loaded(found.output)
        return outputs

    async def _loaded(self, output: Value) -> JsonValue:
        return output.inline if output.ref is None else await self.artifacts.get_artifact(output.ref.artifact_id)

    async def _kept(self, made: JsonValue, declared: list[str]) -> Value:
        if json_size(made, limit=MAX_INLINE_OUTPUT_BYTES) <= MAX_INLINE_OUTPUT_BYTES:
            return Value.of(made)
        artifact = await self.artifacts.put_artifact(made)
        if not declared:
            return Value(ref=ArtifactRef(artifact_id=artifact[0], size_bytes=artifact[1]))
        return Value(ref=declare(made, declared, artifact))

    async def _handed(self, made: JsonValue, paths: list[str]) -> Value | None:
        if not paths or not isinstance(made, dict):
            return None
        keys = {segments[0] for text in paths if (segments := parse_path(text).segments)}
        reads_all = any(not parse_path(text).segments for text in paths)
        read: dict[str, JsonValue] = {key: value for key, value in made.items() if reads_all or key in keys}
        return await self._kept(read, paths)
