"""One workflow runs every definition: it asks the reducer what to do, does it, and reports what came of it.

All decisions are in ``engine.domain.progress``; here is only what waits. The work runs in a task of its own, so
that Temporal's cancellation, delivered once to the main coroutine, is a fact to act on and never an exception in
the middle of recording an end. Nothing here awaits in a ``finally`` or catches a bare exception: an eviction from
the worker's cache must pass through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NoReturn, TypeVar, cast

from temporalio import workflow
from temporalio.common import RawValue, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from engine.domain.actions import CallFailure, ComputeValue, InvokeAgent, StartChild, StartTimer
    from engine.domain.execution import Cancellation, ErrorPayload, ExecutionStatus, StepRecord, Value
    from engine.domain.expressions import MissingPathError
    from engine.domain.gate import GateRecord, Transition
    from engine.domain.json import JsonValue
    from engine.domain.messages import (
        ACTIVITY_FINALIZE,
        ACTIVITY_LOAD_PLAN,
        ACTIVITY_RECORD_DECISIONS,
        ACTIVITY_RECORD_TRANSITION,
        ACTIVITY_REQUEST_CANCEL,
        CANCEL_SIGNAL,
        CallInput,
        ChildResult,
        FinalizeInput,
        FinalizeResult,
        LoadPlanInput,
        LoadPlanResult,
        RecordDecisionsInput,
        RequestCancelInput,
        StartEnvelope,
        StepOutcome,
    )
    from engine.domain.plan import ExecutionPlan
    from engine.domain.progress import Ending, ExecutionProgress, RunFacts
    from engine.domain.step_table import step_table
    from engine.errors import ErrorCode
    from workflows.activity_options import (
        LOCAL_RETRY,
        LOCAL_TIMEOUT,
        MAX_SUMMARY_BYTES,
        REMOTE_RETRY,
        REMOTE_TIMEOUT,
        TELL_TIMEOUT,
        truncate_bytes,
    )
    from workflows.arguments import InvalidArguments, RunArguments, parse_arguments
    from workflows.step_runner import Result, StepRunner
    from workflows.updates import OperatorUpdates

R = TypeVar("R")

_MAX_REASON_BYTES: Final = 2000
MAX_TOLD_CHANGES: Final = 4


@workflow.defn(dynamic=True)
class InterpreterWorkflow(OperatorUpdates):
    """Runs the plan in its envelope, or the active version of the definition that its workflow type names.

    Arguments: the input (an object), and the ``StartEnvelope`` when Baton started it. Returns the execution's
    output; fails with an Application Error whose type is an error code; ends as cancelled when it was.
    """

    @workflow.init
    def __init__(self, args: Sequence[RawValue]) -> None:
        self._arguments: RunArguments | InvalidArguments = parse_arguments(args)
        self._runner = StepRunner()
        self._native_cancel: str | None = None
        self._signalled_cancel: str | None = None
        self._deadline_passed = False
        super().__init__()
        self._telling: asyncio.Task[None] | None = None

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> JsonValue:
        """Run to the end."""
        del args
        if isinstance(self._arguments, InvalidArguments):
            fail(ErrorPayload(code=ErrorCode.INVALID_INPUT, message=self._arguments.message))
        work = asyncio.create_task(self._work(self._arguments))
        while True:
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                reason = workflow.cancellation_reason()
                if reason is None or work.done():
                    raise
                self._native_cancel = truncate_bytes(reason, _MAX_REASON_BYTES)
                self._news = True

    @workflow.signal(name=CANCEL_SIGNAL, description="Cancel the execution; the argument is the reason")
    def cancel(self, reason: JsonValue = None) -> None:
        """Ask for cancellation, with a reason (a string)."""
        if self._signalled_cancel is None:
            text = reason if isinstance(reason, str) else "" if reason is None else str(reason)
            self._signalled_cancel = truncate_bytes(text, _MAX_REASON_BYTES)
            self._news = True

    async def _work(self, arguments: RunArguments) -> JsonValue:
        plan, envelope = await self._plan(arguments)
        info = workflow.info()
        carried = envelope.carried
        facts = RunFacts(
            execution_id=info.workflow_id,
            run_id=info.run_id,
            run_started_at=info.start_time,
            started_at=carried.started_at if carried else info.start_time,
            plan_hash=envelope.plan_hash,
            deadline_at=envelope.deadline_at,
            trace=envelope.options.trace,
            tags=envelope.options.tags,
            was_reset=info.run_id != info.original_execution_run_id,
            budget=envelope.options.budget,
            depth=envelope.parent.depth if envelope.parent else 0,
        )
        execution_input = Value(ref=envelope.input_ref) if envelope.input_ref else Value.of(arguments.input)
        reused = () if carried else envelope.reused
        progress = self._progress = ExecutionProgress(plan, execution_input, facts, carried, reused)
        if envelope.deadline_at is not None:
            deadline = asyncio.create_task(self._watch_deadline(envelope))
            deadline.add_done_callback(lambda _: None)
        await self._run_steps(progress, arguments, envelope)
        return await self._end(progress, envelope)

    async def _run_steps(self, progress: ExecutionProgress, arguments: RunArguments, envelope: StartEnvelope) -> None:
        while True:
            self._interrupt(progress)
            draining = workflow.info().is_continue_as_new_suggested()
            for action in progress.next_actions(workflow.now(), draining=draining):
                self._runner.start(action, envelope)
            for address in progress.take_cancelled():
                self._runner.cancel(address)
            workflow.set_current_details(step_table(progress))
            if progress.news.has_transition and self._telling is None:
                self._telling = asyncio.create_task(self._tell(progress, envelope))
            if progress.is_over:
                return
            if draining and progress.running == 0 and self._telling is None and progress.may_carry:
                await self._continue_as_new(progress, arguments, envelope)
                continue
            await workflow.wait_condition(lambda: self._news or bool(self._runner.ended))
            self._apply_ended(progress)

    async def _tell(self, progress: ExecutionProgress, envelope: StartEnvelope) -> None:
        """Record what has changed beside agents' calls, one change after the other."""
        while progress.news.has_transition:
            change = progress.news.take_transition(workflow.now())
            if change.status is not None and "BatonStatus" in envelope.search_attributes:
                shown = SearchAttributeKey.for_keyword("BatonStatus").value_set(change.status.value)
                workflow.upsert_search_attributes([shown])  # pyright: ignore[reportUnknownMemberType] # the SDK's own overload
            await self._record_transition(change)
        self._telling = None
        self._news = True

    async def _record_transition(self, change: Transition) -> None:
        await workflow.execute_activity(
            ACTIVITY_RECORD_TRANSITION,
            change,
            start_to_close_timeout=TELL_TIMEOUT,
            retry_policy=REMOTE_RETRY,
            summary=truncate_bytes(_transition_summary(change), MAX_SUMMARY_BYTES),
        )

    def _interrupt(self, progress: ExecutionProgress) -> None:
        self._news = False
        if self._native_cancel is not None or self._signalled_cancel is not None:
            reason = self._native_cancel or self._signalled_cancel
            progress.cancel(Cancellation(reason=reason or None, at=workflow.now()))
        if self._deadline_passed:
            progress.time_out()

    def _was_interrupted(self, envelope: StartEnvelope) -> bool:
        """Whether history has a reason for another end, also one that came too late.

        In a task whose closing command the server refused it may have been written; then the end is written again.
        """
        deadline = envelope.deadline_at
        return (
            workflow.cancellation_reason() is not None
            or self._signalled_cancel is not None
            or (deadline is not None and workflow.now() >= deadline)
        )

    def _apply_ended(self, progress: ExecutionProgress) -> None:
        while self._runner.ended:
            action, result = self._runner.ended.popleft()
            if isinstance(result, BaseException):
                raise result
            now = workflow.now()
            match action:
                case InvokeAgent():
                    self._apply_call(progress, action, result)
                case StartChild() if isinstance(result, (ChildResult, CallFailure)):
                    progress.apply_child(action.address, result, now)
                case ComputeValue() if isinstance(result, (StepOutcome, CallFailure)):
                    progress.apply_computed(action.address, result, action.request, now)
                case StartTimer():
                    progress.apply_timer(action.address, now)
                case _:
                    raise TypeError(f"{type(action).__name__} ended with {type(result).__name__}")

    def _apply_call(self, progress: ExecutionProgress, action: InvokeAgent, result: Result) -> None:
        if isinstance(result, CallFailure):
            progress.apply_failure(action.address, result, action.call, workflow.now())
        elif isinstance(result, StepOutcome):
            progress.apply_outcome(action.address, result, action.call, workflow.now())

    async def _plan(self, arguments: RunArguments) -> tuple[ExecutionPlan, StartEnvelope]:
        envelope = arguments.envelope
        if envelope is not None and envelope.plan is not None:
            return envelope.plan, envelope
        info = workflow.info()
        request = LoadPlanInput(
            execution_id=info.workflow_id,
            run_id=info.run_id,
            run_started_at=info.start_time,
            first_run_id=info.first_execution_run_id,
            definition_id=info.workflow_type,
            plan_hash=envelope.plan_hash or None if envelope else None,
            input=arguments.input if envelope is None or not envelope.plan_hash else None,
            input_ref=envelope.input_ref if envelope else None,
            version=envelope.version if envelope else None,
            parent=envelope.parent if envelope else None,
            options=envelope.options if envelope and envelope.parent else None,
        )
        try:
            loaded = await self._local_then_remote(ACTIVITY_LOAD_PLAN, request, LoadPlanResult, "load the plan")
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):
                raise ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True) from error
            raise
        if loaded.plan is None:
            fail(ErrorPayload(code=ErrorCode.INTERNAL_ERROR, message="The plan was loaded empty"))
        if envelope is not None and envelope.plan_hash:
            return loaded.plan, envelope
        if envelope is not None:
            _upsert_search_attributes(loaded)
            return loaded.plan, envelope.model_copy(update={"plan_hash": loaded.plan_hash})
        _upsert_search_attributes(loaded)
        envelope = StartEnvelope(
            interpreter_version=arguments.interpreter_version,
            plan_hash=loaded.plan_hash,
            input_ref=loaded.input_ref,
            search_attributes=loaded.search_attributes,
        )
        return loaded.plan, envelope

    async def _watch_deadline(self, envelope: StartEnvelope) -> None:
        if envelope.deadline_at is not None:
            left = envelope.deadline_at - workflow.now()
            if left.total_seconds() > 0:
                await workflow.sleep(left, summary="deadline of the execution")
            self._deadline_passed = True
            self._news = True

    async def _continue_as_new(
        self, progress: ExecutionProgress, arguments: RunArguments, envelope: StartEnvelope
    ) -> None:
        while progress.news.events or progress.gates.events:
            await self._record_transition(progress.news.take_transition(workflow.now()))
        # The next run may read what they hold from the store.
        while progress.decided:
            await self._record_some_decisions(progress)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._news or self._telling is not None or progress.news.has_transition:
            return
        carried = progress.carry()
        workflow.continue_as_new(
            args=[
                None if envelope.input_ref else arguments.input,
                envelope.model_copy(update={"carried": carried, "reused": []}),
            ]
        )

    async def _record_some_decisions(self, progress: ExecutionProgress) -> None:
        await workflow.execute_activity(
            ACTIVITY_RECORD_DECISIONS,
            RecordDecisionsInput(
                execution_id=progress.facts.execution_id,
                run_id=progress.facts.run_id,
                run_started_at=progress.facts.owned_since(workflow.now()),
                decided=progress.work.take_some_decided(),
            ),
            start_to_close_timeout=REMOTE_TIMEOUT,
            retry_policy=REMOTE_RETRY,
            summary="record decisions",
        )

    async def _end(self, progress: ExecutionProgress, envelope: StartEnvelope) -> JsonValue:
        if progress.recorded_output is not None and not self._was_interrupted(envelope):
            return _returned(progress.recorded_output, progress, envelope)
        if self._telling is not None:
            await self._telling
        ending = progress.ending or Ending(ExecutionStatus.COMPLETED)
        if ending.status is ExecutionStatus.CANCELLED and self._native_cancel is None:
            reason = self._signalled_cancel or (ending.cancel.reason if ending.cancel else None)
            await self._request_native_cancel(reason or "")
        output: CallInput | None = None
        if ending.status is ExecutionStatus.COMPLETED:
            try:
                output = progress.output_input()
            except MissingPathError as error:
                progress.fail_output(error)
                ending = progress.ending or ending
        workflow.set_current_details(step_table(progress))
        while progress.has_many_decided:
            await self._record_some_decisions(progress)
        result = await self._finalize(progress, ending, output, envelope)
        if ending.status is ExecutionStatus.CANCELLED:
            raise asyncio.CancelledError
        error = result.error or ending.error
        if error is not None:
            fail(error, _spent(progress) if envelope.parent else None)
        return _returned(result.output, progress, envelope)

    async def _finalize(
        self, progress: ExecutionProgress, ending: Ending, output: CallInput | None, envelope: StartEnvelope
    ) -> FinalizeResult:
        facts = progress.facts
        request = FinalizeInput(
            execution_id=facts.execution_id,
            definition_id=progress.plan.definition_id,
            version=progress.plan.version,
            plan_hash=envelope.plan_hash,
            run_id=facts.run_id,
            run_started_at=facts.owned_since(workflow.now()),
            history_length=workflow.info().get_current_history_length(),
            status=ending.status,
            output=output,
            error=ending.error,
            cancel=ending.cancel,
            started_at=facts.started_at,
            completed_at=workflow.now(),
            usage=progress.usage,
            decided=progress.take_decided(),
            warnings=progress.warnings,
            step_ids=progress.step_ids,
            events=progress.news.take_events(),
        ).model_copy(update=progress.admissions.counts)
        return await self._local_then_remote(ACTIVITY_FINALIZE, request, FinalizeResult, "record the end")

    async def _request_native_cancel(self, reason: str) -> None:
        info = workflow.info()
        await workflow.execute_activity(
            ACTIVITY_REQUEST_CANCEL,
            RequestCancelInput(execution_id=info.workflow_id, run_id=info.run_id, reason=reason),
            start_to_close_timeout=REMOTE_TIMEOUT,
            retry_policy=REMOTE_RETRY,
            summary="tell Temporal of the cancellation",
        )
        await workflow.wait_condition(lambda: self._native_cancel is not None)

    async def _local_then_remote(self, activity_type: str, request: object, result_type: type[R], summary: str) -> R:
        try:
            return await workflow.execute_local_activity(
                activity_type,
                request,
                result_type=result_type,
                start_to_close_timeout=LOCAL_TIMEOUT,
                retry_policy=LOCAL_RETRY,
                summary=summary,
            )
        except FailureError as error:
            # A local activity raises what failed it; only a remote one's failure comes wrapped.
            cause = error.cause if isinstance(error, ActivityError) else error
            if isinstance(cause, ApplicationError) and cause.non_retryable:
                raise
            return await workflow.execute_activity(
                activity_type,
                request,
                result_type=result_type,
                start_to_close_timeout=REMOTE_TIMEOUT,
                retry_policy=REMOTE_RETRY,
                summary=summary,
            )


def fail(error: ErrorPayload, spent: ChildResult | None = None) -> NoReturn:
    """End the run as failed: the Application Error's type is the error's code; a parent learns what was spent."""
    details: list[object] = [error.details] if spent is None else [error.details, spent.model_dump(mode="json")]
    raise ApplicationError(error.message, *details, type=error.code, non_retryable=True)


def _spent(progress: ExecutionProgress, output: Value | None = None) -> ChildResult:
    return ChildResult(output=output or Value(), usage=progress.usage, calls=progress.budget.calls)


def _returned(output: Value, progress: ExecutionProgress, envelope: StartEnvelope) -> JsonValue:
    """What the run returns: the bare output, or a reference to a large one; to a parent, with what was spent."""
    if envelope.parent is not None:
        return cast("JsonValue", _spent(progress, output).model_dump(mode="json"))
    if output.ref is None:
        return output.inline
    return output.ref.model_dump(mode="json", exclude={"declared", "absent", "lengths"})


def _transition_summary(change: Transition) -> str:
    """What the timeline of Temporal's UI says of a change."""
    told = [_gate_summary(gate) for gate in change.gates]
    if change.status is not None:
        told.append(f"execution {change.status}")
    if not change.gates:
        told += [f"{_address(step)} {step.status}" for step in change.steps]
    left_out = len(told) - MAX_TOLD_CHANGES
    if left_out > 0:
        told = [*told[:MAX_TOLD_CHANGES], f"{left_out} more"]
    return "record: " + (", ".join(told) or "events")


def _gate_summary(gate: GateRecord) -> str:
    if gate.status == "answered":
        return f"gate {gate.gate_id} answered {gate.answer} by {gate.by or 'nobody named'}"
    return f"gate {gate.gate_id} {'opened' if gate.status == 'open' else gate.status}"


def _address(step: StepRecord) -> str:
    return step.step_id if step.item is None else f"{step.step_id}[{step.item}]"


def _upsert_search_attributes(loaded: LoadPlanResult) -> None:
    plan = loaded.plan
    if plan is None:
        return
    updates = [
        SearchAttributeKey.for_keyword("BatonWorkflow").value_set(plan.definition_id),
        SearchAttributeKey.for_int("BatonVersion").value_set(plan.version),
        SearchAttributeKey.for_keyword_list("BatonTags").value_set(plan.tags),
        SearchAttributeKey.for_keyword("BatonTenant").value_set("default"),
    ]
    registered = [update for update in updates if update.key.name in loaded.search_attributes]
    if registered:
        workflow.upsert_search_attributes(registered)  # pyright: ignore[reportUnknownMemberType] # the SDK's own overload
