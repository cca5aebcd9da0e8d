"""The agent's call and its own record, in one activity.

The order decides what a crash can cost: look for a finished outcome when the attempt is not the first, call the agent,
store its large output, write the fenced record, return. After the reply only the write is retried: a store fault
never repeats a call that somebody may have paid for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from temporalio import activity
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from activities.call_session import CallFacts, CallSession, deadline_of
from activities.endings import bare_output, terminal_record
from activities.failures import application_error, is_final, store_application_error
from activities.operand_values import fetch_operands, output_mapped, resolved_input
from activities.step_context import Recalled, recall_for, remember_output
from engine import request_context
from engine.domain.agent_call import AgentFailure, AgentInvocation, AgentReply, FailureReason
from engine.domain.execution import (
    ErrorPayload,
    Event,
    ExecutionRecord,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    ToolCall,
    Usage,
    Value,
    micros,
)
from engine.domain.expressions import Missing, MissingPathError, json_size, parse_path
from engine.domain.ids import call_address, idempotency_key
from engine.domain.live import live_execution, live_step
from engine.domain.messages import (
    MAX_DECLARED_BYTES,
    MAX_INLINE_OUTPUT_BYTES,
    AgentCallInput,
    FinalizeInput,
    StepOutcome,
)
from engine.domain.operands import declare, missing_path
from engine.errors import ErrorCode, LimitExceededError, StoreError

if TYPE_CHECKING:
    from engine.domain.json import JsonValue
    from engine.ports.agent_invoker import AgentInvoker
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.context_memory import ContextMemory
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore

T = TypeVar("T")

_logger = logging.getLogger(__name__)

WRITE_PATIENCE: Final = timedelta(seconds=30)
_NO_USAGE: Final = Usage()
_END_MARGIN: Final = timedelta(seconds=0.5)
_FIRST_WRITE_PAUSE: Final = 0.1
_LONGEST_WRITE_PAUSE: Final = 3.0


@dataclass(frozen=True)
class AgentActivities:
    """Activities of the types ``agent.<agent_id>``, and what they work with."""

    invoker: AgentInvoker
    executions: ExecutionStore
    artifacts: ArtifactStore
    state: StateStore
    memory: ContextMemory

    @activity.defn(dynamic=True)
    async def invoke_agent(self, args: Sequence[RawValue]) -> StepOutcome:
        """Make one attempt of a call; argument: ``AgentCallInput``."""
        call: AgentCallInput = activity.payload_converter().from_payload(args[0].payload, AgentCallInput)
        request_context.execution_id.set(call.execution_id)
        request_context.step_id.set(call.step_id)
        return await _Attempt(call, self).run()


class _Attempt:
    """One attempt of one logical call."""

    def __init__(self, call: AgentCallInput, parts: AgentActivities) -> None:
        info = activity.info()
        self.call = call
        self.parts = parts
        self.number = info.attempt
        self.run_id = info.workflow_run_id or ""
        self.started_at = info.started_time
        self.token = micros(info.started_time)
        self.deadline = deadline_of(info)
        self.address = call_address(call.step_id, call.item, call.n)
        self.usage = _NO_USAGE
        self.events: list[Event] = []
        self.tool_calls: list[ToolCall] = []
        self.recalled = Recalled()
        self.warnings: list[ExecutionWarning] = []
        self.handed: Value | None = None
        self.decided_recorded = not call.decided
        self._announcing = asyncio.Lock()
        self._is_answered = False

    async def run(self) -> StepOutcome:
        """Make the attempt."""
        if self.number > 1 or self.call.resumed:
            finished = await self._claim()
            if finished is not None:
                if finished.output.ref is None:
                    await remember_output(self.call, finished.output.inline, finished.completed_at, self.parts.memory)
                return finished
        else:
            self.events = [*self.call.events, self._event("step.started", agent_id=self.call.agent.agent_id)]
        facts = CallFacts(
            self.call.execution_id,
            self.call.step_id,
            self.number,
            idempotency_key(self.call.execution_id, self.run_id, self.address),
            self.deadline,
        )
        session = CallSession(facts, self.parts.state, self._announce)
        try:
            return await self._call_and_record(session)
        except asyncio.CancelledError:
            session.cancel()
            raise
        finally:
            await session.aclose()

    async def _call_and_record(self, session: CallSession) -> StepOutcome:
        call = self.call
        try:
            self.recalled = await recall_for(call, self.parts.memory, self.parts.executions, self.parts.artifacts)
            session.give_context(self.recalled.items)
            agent_input = await self._input()
            operands = await self._output_operands()
            reply = await self.parts.invoker.invoke_agent(
                AgentInvocation(call.agent, agent_input, session, call.reply_keys, call.output_schema, call.trace)
            )
            self.usage += reply.usage
            self.tool_calls += reply.tool_calls
            self.warnings += [warning.model_copy(update={"step_id": call.step_id}) for warning in reply.warnings]
            mapped = output_mapped(call, reply, operands)
            output = await self._kept(mapped)
            self.handed = await self._handed(reply.output, mapped)
        except AgentFailure as failure:
            self.usage += failure.usage
            self.tool_calls += failure.tool_calls
            await self._record_failure(failure)
            told = [event for event in self.events if event.type in ("step.started", "step.retried")]
            raise application_error(
                failure, call, self.number, self.usage, tool_calls=self.tool_calls, events=told
            ) from failure
        record = self._record(
            StepStatus.COMPLETED,
            output=output,
            agent_input=Value.of(agent_input) if call.trace else None,
            transcript=await self._transcript(reply),
            completed_at=datetime.now(UTC),
        )
        outcome = await self._record_outcome(record, session)
        await remember_output(call, mapped, outcome.completed_at, self.parts.memory)
        return outcome

    async def _transcript(self, reply: AgentReply) -> Value | None:
        if not self.call.trace or reply.transcript is None:
            return None
        try:
            return await self._kept(reply.transcript)
        except (AgentFailure, ApplicationError) as error:
            _logger.warning("The transcript of %s was not kept: %s", self.address, error)
            return None

    async def _input(self) -> JsonValue:
        items = self.recalled.items
        try:
            return await self._with_patience(
                lambda: resolved_input(self.call, items, self.parts.executions, self.parts.artifacts)
            )
        except MissingPathError as error:
            raise self._invalid_input(missing_path(f"The mapping of step {self.call.step_id}", error)) from error
        except LimitExceededError as error:
            raise self._invalid_input(error.message) from error
        except StoreError as error:
            raise store_application_error(error, self.number, self.usage, "unasked") from error

    def _invalid_input(self, message: str) -> ApplicationError:
        failure = AgentFailure(FailureReason.INVALID_REQUEST, message)
        return application_error(failure, self.call, self.number, self.usage, "input")

    async def _output_operands(self) -> dict[str, JsonValue | Missing]:
        """What the output mapping reads beside the reply, fetched before anything is paid for."""
        call = self.call
        try:
            return await self._with_patience(
                lambda: fetch_operands(
                    call.output_operands, call.execution_id, self.parts.executions, self.parts.artifacts
                )
            )
        except StoreError as error:
            raise store_application_error(error, self.number, self.usage, "unasked") from error

    async def _handed(self, reply: JsonValue, mapped: JsonValue) -> Value | None:
        """What handoffs read of the reply, overlaid by the mapped output: an object of those top keys."""
        paths = self.call.handed
        if not paths:
            return None
        whole = {**(reply if isinstance(reply, dict) else {}), **(mapped if isinstance(mapped, dict) else {})}
        keys = {segments[0] for text in paths if (segments := parse_path(text).segments)}
        reads_all = any(not parse_path(text).segments for text in paths)
        read = {key: value for key, value in whole.items() if reads_all or key in keys}
        return await self._kept(read, paths, MAX_DECLARED_BYTES)

    async def _kept(
        self, value: JsonValue, declared: list[str] | None = None, limit: int = MAX_INLINE_OUTPUT_BYTES
    ) -> Value:
        """The value itself, or a reference to it, with what lies at the declared paths, when it is large."""
        if json_size(value, limit=limit) <= limit:
            return Value.of(value)
        try:
            artifact = await self._with_patience(lambda: self.parts.artifacts.put_artifact(value))
        except LimitExceededError as error:
            raise AgentFailure(FailureReason.INVALID_OUTPUT, error.message) from error
        except StoreError as error:
            raise store_application_error(error, self.number, self.usage, "store") from error
        return Value(ref=declare(value, self.call.declared if declared is None else declared, artifact))

    async def _claim(self) -> StepOutcome | None:
        claim = self._record(StepStatus.RUNNING)
        try:
            stored = await self._with_patience(
                lambda: self.parts.executions.claim_step(claim, self.call.run_started_at)
            )
        except StoreError as error:
            raise store_application_error(error, self.number, self.usage, "unasked") from error
        if stored.status is StepStatus.COMPLETED and stored.output is not None:
            return self._outcome(stored)
        if stored.token != self.token:
            raise ApplicationError("A later attempt has taken over", type="superseded")
        self.usage = stored.usage
        self.tool_calls = [*stored.tool_calls]
        known = {event.id for event in stored.events}
        decided = [event for event in self.call.events if event.id not in known]
        self.events = [*decided, *stored.events, self._event("step.retried", attempt=self.number)]
        return None

    async def _announce(self) -> bool:
        """The call is still open after a moment: the record leaves pending, live state says running.

        Return whether that was said; the call may have been answered meanwhile.
        """
        async with self._announcing:
            if self._is_answered:
                return False
            running = self._record(StepStatus.RUNNING)
            try:
                await self.parts.executions.record_steps([*self.call.decided, running], self.call.run_started_at)
                self.decided_recorded = True
            except StoreError as error:
                _logger.warning("The start of %s was not recorded: %s", self.address, error)
            await self._publish([*self.call.decided, running], self.events)
            return True

    async def _end_announcement(self) -> None:
        """From here on nothing says running: it has the same token as the outcome, and would replace it."""
        self._is_answered = True
        async with self._announcing:
            pass

    async def _record_outcome(self, record: StepRecord, session: CallSession) -> StepOutcome:
        await self._end_announcement()
        records = [*self.call.decided, record]
        try:
            standing, end = await self._with_patience(lambda: self._store(records))
        except StoreError as error:
            _logger.error("The outcome of %s was not recorded: %s", self.address, error)  # noqa: TRY400 - the cause is in the message
            return self._outcome(record).model_copy(
                update={"unrecorded": True, "decided_recorded": self.decided_recorded}
            )
        self.decided_recorded = True
        stored = standing[-1]
        if stored.token != record.token:
            if stored.status is StepStatus.COMPLETED and stored.output is not None:
                return self._outcome(stored)
            raise ApplicationError("A later attempt has taken over", type="superseded")
        # In order: the start of a call that was over at once is told only now, and its lines come behind it.
        told = sorted([*session.take_lines(), *record.events], key=lambda event: event.id)
        await self._publish(records, told, end)
        outcome = self._outcome(record)
        return outcome if end is None else outcome.model_copy(update={"closed": True})

    async def _store(self, records: list[StepRecord]) -> tuple[list[StepRecord], ExecutionRecord | None]:
        end = self._end(records[-1])
        if end is None:
            return await self.parts.executions.record_steps(records, self.call.run_started_at), None
        return await self.parts.executions.record_last_steps(records, end)

    def _end(self, record: StepRecord) -> ExecutionRecord | None:
        """The execution's end, when this call is its last; any ``finalize`` of the same run outranks it."""
        closing = self.call.closing
        if closing is None or record.output is None or record.completed_at is None:
            return None
        request = FinalizeInput(
            execution_id=self.call.execution_id,
            definition_id=self.call.definition_id,
            version=self.call.version,
            plan_hash=closing.plan_hash,
            run_id=self.run_id,
            run_started_at=self.call.run_started_at,
            history_length=0,
            status=ExecutionStatus.COMPLETED,
            started_at=self.call.execution_started_at,
            completed_at=record.completed_at,
            usage=closing.usage + record.usage,
            warnings=[*closing.warnings, *record.warnings],
            step_ids=closing.step_ids,
            handoffs_taken=closing.handoffs_taken,
            handoffs_refused=closing.handoffs_refused,
        )
        return terminal_record(request, bare_output(record.output), None, None)

    async def _record_failure(self, failure: AgentFailure) -> None:
        """A failure that will be retried is stored; only the workflow knows that a call has failed for good."""
        if is_final(failure, self.call, self.number):
            return
        await self._end_announcement()
        record = self._record(
            StepStatus.RETRYING,
            error=ErrorPayload(
                code=ErrorCode.AGENT_ERROR,
                message=failure.message,
                details={**failure.details, "reason": failure.reason.value},
            ),
            reason=failure.reason.value,
        )
        try:
            await self.parts.executions.record_steps([*self.call.decided, record], self.call.run_started_at)
            self.decided_recorded = True
        except StoreError as error:
            _logger.warning("A failed attempt of %s was not recorded: %s", self.address, error)
        await self._publish([record], record.events)

    async def _publish(
        self, records: list[StepRecord], events: list[Event], end: ExecutionRecord | None = None
    ) -> None:
        decided_events = [event for record in self.call.decided for event in record.events]
        try:
            await self.parts.state.record_transition(
                self.call.execution_id,
                execution=None if end is None else live_execution(end),
                steps=[live_step(record) for record in records],
                events=[*decided_events, *events, *([] if end is None else end.events[-1:])],
            )
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", self.address, error)

    async def _with_patience(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat a store's call for up to 30 s; the heartbeats go on.

        Past the attempt's own end Temporal would repeat the agent's call because of the store.
        """
        left = self.deadline - _END_MARGIN - datetime.now(UTC)
        give_up_at = asyncio.get_running_loop().time() + min(WRITE_PATIENCE, left).total_seconds()
        pause = _FIRST_WRITE_PAUSE
        while True:
            try:
                return await write()
            except StoreError:
                if asyncio.get_running_loop().time() + pause > give_up_at:
                    raise
            # A claim is made before the call's own pulse begins.
            activity.heartbeat({"attempt": self.number})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WRITE_PAUSE)

    def _record(
        self,
        status: StepStatus,
        *,
        output: Value | None = None,
        agent_input: Value | None = None,
        transcript: Value | None = None,
        error: ErrorPayload | None = None,
        reason: str | None = None,
        completed_at: datetime | None = None,
    ) -> StepRecord:
        events = self.events
        if completed_at is not None:
            events = [*events, self._event("step.completed", completed_at, agent_id=self.call.agent.agent_id)]
        return StepRecord(
            execution_id=self.call.execution_id,
            run_id=self.run_id,
            step_id=self.call.step_id,
            item=self.call.item,
            n=self.call.n,
            iteration=self.call.iteration,
            token=self.token,
            status=status,
            agent_id=self.call.agent.agent_id,
            agent_version=self.call.agent.version,
            attempts=self.number,
            prior_attempts=self.call.prior_attempts,
            input=agent_input,
            output=output,
            error=error,
            reason=reason,
            started_at=self.started_at,
            completed_at=completed_at,
            usage=self.usage,
            events=events,
            warnings=[*self.recalled.warnings, *self.warnings],
            tool_calls=self.tool_calls,
            context=self.recalled.sources,
            handed=self.handed,
            transcript=transcript,
        )

    def _outcome(self, record: StepRecord) -> StepOutcome:
        # What is as by default takes no room in history.
        more = {
            "usage": None if record.usage == _NO_USAGE else record.usage,
            "attempts": None if record.attempts == 1 else record.attempts,
            "warnings": record.warnings or None,
            "handed": record.handed,
            "decided_recorded": None if self.decided_recorded else False,
        }
        given: dict[str, object] = {
            "output": record.output or Value(),
            "started_at": record.started_at or self.started_at,
            "completed_at": record.completed_at or self.started_at,
            "token": record.token,
            **{name: value for name, value in more.items() if value is not None},
        }
        return StepOutcome.model_validate(given)

    def _event(self, event_type: str, at: datetime | None = None, **data: JsonValue) -> Event:
        if self.call.item is not None:
            data = {**data, "item": self.call.item}
        return Event.at_instant(event_type, at or self.started_at, self.address, self.call.step_id, **data)
