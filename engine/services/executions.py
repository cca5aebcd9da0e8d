"""Starting, cancelling and listing executions.

The record comes before the run: it is the durable guard of an idempotency key, and it outlives Temporal's retention.
So a start is: check everything, write the record, start the run under the record's id, whoever else does the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, cast

from engine.domain.budgets import BUDGET_UNITS
from engine.domain.execution import BudgetLimits, ExecutionOptions, ExecutionRecord, ExecutionStatus
from engine.domain.hashing import content_hash
from engine.domain.ids import is_idempotency_key, keyed_execution_id
from engine.domain.messages import StartEnvelope
from engine.domain.metrics import parse_instant
from engine.domain.plan import ExecutionPlan
from engine.domain.reused import reused_record, reused_steps
from engine.errors import (
    ConflictError,
    ExecutionNotFoundError,
    InternalError,
    InvalidInputError,
)
from engine.ports.execution_runtime import StartedRun, StartRequest
from engine.ports.execution_store import ExecutionFilter
from engine.services.definitions import MAX_VERSION
from engine.services.paging import next_cursor, parse_cursor, parse_labels, parse_limit
from engine.services.plans import new_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from engine.domain.execution import LiveState, StepRecord, Value
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.execution_runtime import ExecutionRuntime
    from engine.ports.execution_store import ExecutionStore
    from engine.services.execution_reads import ExecutionReads
    from engine.services.plans import PlanService, PreparedPlan

__all__ = ["ExecutionService", "KeptPart", "StartOptions", "StartedExecution", "parse_options"]

MAX_TIMEOUT: Final = timedelta(days=365)
_OPTIONS: Final = ("priority", "timeout", "trace", "idempotency_key", "version", "tags", "budget")


@dataclass(frozen=True, slots=True)
class StartOptions:
    """``execution_options``, parsed."""

    options: ExecutionOptions
    version: int | None


@dataclass(frozen=True, slots=True)
class StartedExecution:
    """An accepted execution: its record, and the run that was started or joined for it."""

    record: ExecutionRecord
    run: StartedRun | None
    """None when the execution had been started before, under the same key, and its run is not asked for."""


@dataclass(frozen=True, slots=True)
class KeptPart:
    """What a rerun takes over from an execution that is over."""

    parent_id: str
    rerun: list[str]
    """The steps that run again."""
    steps: list[StepRecord]
    """The parent's records of those that don't."""


class ExecutionService:
    """Starts, cancels and lists executions."""

    def __init__(
        self,
        plans: PlanService,
        executions: ExecutionStore,
        runtime: ExecutionRuntime,
        reads: ExecutionReads,
        clock: Callable[[], datetime],
        new_ulid: Callable[[], str],
        interpreter_version: int,
    ) -> None:
        self._plans = plans
        self._executions = executions
        self._runtime = runtime
        self._reads = reads
        self._clock = clock
        self._new_ulid = new_ulid
        self._interpreter_version = interpreter_version

    async def start_execution(self, definition_id: str, input_data: JsonValue, start: StartOptions) -> StartedExecution:
        """Accept an execution and start its run.

        Raises:
            DefinitionNotFoundError, AgentNotFoundError, InvalidInputError: nothing was written.
            ConflictError: the idempotency key was used with other input.
            RuntimeUnavailableError: Temporal does not answer. The record may be there; repeating the call with the
                same key is safe.
        """
        prepared = await self._plans.prepare_plan(definition_id, start.version)
        stored_input = await self._plans.stored_input(prepared, input_data)
        return await self.start_prepared(prepared, stored_input, input_data, start.options)

    async def start_prepared(
        self,
        prepared: PreparedPlan,
        stored_input: Value,
        input_data: JsonValue,
        options: ExecutionOptions,
        kept: KeptPart | None = None,
    ) -> StartedExecution:
        """Write the record of an execution whose plan and input were checked, and start its run.

        Args:
            prepared: what it runs.
            stored_input: its input, as ``PlanService.stored_input`` made it.
            input_data: the same as plain data.
            options: it is started with.
            kept: what it takes over from another execution.

        Raises:
            ConflictError, RuntimeUnavailableError: as ``start_execution``.
        """
        await self._plans.check_budget(prepared.plan, options.budget)
        await self._runtime.connect()
        definition_id, key, now = prepared.plan.definition_id, options.idempotency_key, self._clock()
        execution_id = keyed_execution_id(definition_id, key) if key else f"{definition_id}-{self._new_ulid()}"
        record = new_record(execution_id, prepared, stored_input, input_data, options, now)
        steps: list[StepRecord] = []
        if kept is not None:
            record = record.model_copy(update={"rerun_of": kept.parent_id, "rerun_steps": kept.rerun})
            steps = [reused_record(step, execution_id, kept.parent_id, now) for step in kept.steps]
        existing = await self._executions.create_execution(record, prepared.encoded, steps)
        if existing is not None:
            return await self._join(existing, content_hash(input_data))
        started, _ = await asyncio.gather(
            self._started(record, prepared.plan, steps), self._plans.publish_start(record, steps)
        )
        return started

    async def cancel_execution(self, execution_id: str, reason: str | None) -> bool:
        """Ask for cancellation; return False when the execution is over.

        Raises:
            ExecutionNotFoundError: no such execution.
        """
        record = await self._executions.get_execution(execution_id)
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        if record.status.is_terminal:
            return False
        await self._runtime.connect()
        if await self._runtime.request_cancel(execution_id, reason):
            return True
        await self._reads.verified_record(execution_id)
        return False

    async def list_executions(
        self,
        *,
        definition_id: str | None,
        status: object,
        start_time: object,
        end_time: object,
        tags: object,
        limit: object,
        cursor: object,
    ) -> tuple[list[ExecutionRecord], dict[str, LiveState], str | None]:
        """Return a page of records, the live states of its open ones, and the next cursor."""
        query = ExecutionFilter(
            definition_id=definition_id,
            status=_parse_status(status),
            start_time=None if start_time is None else parse_instant(start_time, "start_time"),
            end_time=None if end_time is None else parse_instant(end_time, "end_time"),
            tags=tuple(parse_labels(tags, "tags")),
        )
        words: JsonObject = {
            "list": "executions",
            "workflow_id": definition_id,
            "status": query.status.value if query.status else None,
            "start_time": query.start_time.isoformat() if query.start_time else None,
            "end_time": query.end_time.isoformat() if query.end_time else None,
            "tags": list(query.tags),
        }
        page = await self._executions.list_executions(
            query, limit=parse_limit(limit), after=parse_cursor(cursor, words)
        )
        live = await self._reads.live_states([item.execution_id for item in page.items if not item.status.is_terminal])
        return page.items, live, next_cursor(page, words)

    async def _join(self, existing: ExecutionRecord, input_hash: str) -> StartedExecution:
        if existing.input_hash != input_hash:
            key = existing.options.idempotency_key
            raise ConflictError(
                f"The idempotency key {key} was used with other input; use another key or the same input",
                {"execution_id": existing.execution_id, "idempotency_key": key},
            )
        if existing.status is not ExecutionStatus.PENDING or existing.run_id is not None:
            return StartedExecution(existing, None)
        encoded = await self._executions.get_plan(existing.plan_hash)
        if encoded is None:
            raise InternalError(f"The plan of execution {existing.execution_id} is not in the store")
        return await self._started(existing, ExecutionPlan.model_validate_json(encoded))

    async def _started(
        self, record: ExecutionRecord, plan: ExecutionPlan, reused: Sequence[StepRecord] = ()
    ) -> StartedExecution:
        try:
            return StartedExecution(record, await self._start_run(record, plan, reused))
        except ConflictError:
            # It has run to its end already: the record says how.
            latest = await self._executions.get_execution(record.execution_id)
            return StartedExecution(latest or record, None)

    async def _start_run(
        self, record: ExecutionRecord, plan: ExecutionPlan, reused: Sequence[StepRecord]
    ) -> StartedRun:
        return await self._runtime.start_run(
            StartRequest(
                execution_id=record.execution_id,
                plan=plan,
                plan_hash=record.plan_hash,
                input=record.input.inline,
                envelope=StartEnvelope(
                    interpreter_version=self._interpreter_version,
                    plan_hash=record.plan_hash,
                    input_ref=record.input.ref,
                    options=record.options,
                    deadline_at=record.deadline_at,
                    reused=reused_steps(plan, reused, record.created_at) if reused else [],
                ),
            )
        )


def parse_options(raw: Mapping[str, object] | None) -> StartOptions:
    """Parse ``execution_options``.

    Raises:
        InvalidInputError: an unknown option or a value of the wrong type, named by its path.
    """
    given = dict(raw or {})
    for key in given:
        if key not in _OPTIONS:
            raise _bad_option(key, f"is no execution option; known are {', '.join(_OPTIONS)}")
    version = given.get("version")
    if version is not None and (
        not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < MAX_VERSION
    ):
        raise _bad_option("version", "must be the number of a version, 1 or more")
    trace = given.get("trace") if given.get("trace") is not None else False
    if not isinstance(trace, bool):
        raise _bad_option("trace", "must be true or false")
    return StartOptions(
        options=ExecutionOptions(
            priority=_parse_priority(given.get("priority")),
            timeout=_parse_timeout(given.get("timeout")),
            trace=trace,
            idempotency_key=_parse_key(given.get("idempotency_key")),
            tags=parse_labels(given.get("tags"), "execution_options.tags"),
            budget=_parse_budget(given.get("budget")),
        ),
        version=version,
    )


def _parse_priority(value: object) -> Literal["high", "normal", "low"]:
    if value is None:
        return "normal"
    if value not in ("high", "normal", "low"):
        raise _bad_option("priority", "must be high, normal or low")
    return value


def _parse_timeout(value: object) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_TIMEOUT.total_seconds():
        raise _bad_option("timeout", "must be seconds, more than 0 and at most a year")
    return timedelta(seconds=value)


def _parse_budget(value: object) -> BudgetLimits | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise _bad_option("budget", f"must be an object of {', '.join(BUDGET_UNITS)} to numbers over 0")
    limits: dict[str, float] = {}
    for unit, amount in cast("dict[object, object]", value).items():
        if unit not in BUDGET_UNITS:
            raise _bad_option(f"budget.{unit}", f"is no limit; known are {', '.join(BUDGET_UNITS)}")
        is_number = isinstance(amount, (int, float)) and not isinstance(amount, bool) and 0 < amount < float("inf")
        if not is_number or (unit in ("tokens", "agent_calls") and not isinstance(amount, int)):
            whole = "a whole number" if unit in ("tokens", "agent_calls") else "a number"
            raise _bad_option(f"budget.{unit}", f"must be {whole} over 0")
        limits[cast("str", unit)] = cast("float", amount)
    return BudgetLimits.model_validate(limits)


def _parse_key(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not is_idempotency_key(value):
        raise _bad_option("idempotency_key", "must be 1 to 200 of A-Z a-z 0-9 . _ : -")
    return value


def _parse_status(value: object) -> ExecutionStatus | None:
    if value is None:
        return None
    try:
        return ExecutionStatus(cast("str", value))
    except ValueError as error:
        known = ", ".join(ExecutionStatus)
        raise InvalidInputError(f"status must be one of {known}", {"path": "status"}) from error


def _bad_option(key: str, fault: str) -> InvalidInputError:
    return InvalidInputError(f"execution_options.{key} {fault}", {"path": f"execution_options.{key}"})
