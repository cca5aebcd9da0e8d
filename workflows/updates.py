"""The Updates of every execution: what operators send through the facade, Temporal's CLI or its UI.

A handler is as short as its name; what it may do is decided in ``operators``. A handler that waits for a plan that
never comes ends with its run.
"""

from __future__ import annotations

from typing import cast

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.progress import ExecutionProgress
    from workflows import operators


class OperatorUpdates:
    """The handlers and their validators."""

    def __init__(self) -> None:
        self._news = False
        self._progress: ExecutionProgress | None = None

    @workflow.update(
        name="answer_gate",
        description="Answer a gate: {gate_id, answer, data, by}",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def answer_gate(self, argument: JsonValue = None) -> JsonObject:
        """Answer a gate, once."""
        return self._acted(operators.answer(await self._begun(), argument, None))

    @answer_gate.validator
    def check_answer_gate(self, argument: JsonValue = None) -> None:
        """Refuse an answer that can't be taken."""
        operators.check_answer(self._progress, argument, None)

    @workflow.update(
        name="approve",
        description="Answer approve: {gate_id, data, by}; gate_id may be left out when one gate is open",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def approve(self, argument: JsonValue = None) -> JsonObject:
        """Answer ``approve``."""
        return self._acted(operators.answer(await self._begun(), argument, "approve"))

    @approve.validator
    def check_approve(self, argument: JsonValue = None) -> None:
        """Refuse an answer that can't be taken."""
        operators.check_answer(self._progress, argument, "approve")

    @workflow.update(
        name="reject",
        description="Answer reject: {gate_id, data, by}; gate_id may be left out when one gate is open",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def reject(self, argument: JsonValue = None) -> JsonObject:
        """Answer ``reject``."""
        return self._acted(operators.answer(await self._begun(), argument, "reject"))

    @reject.validator
    def check_reject(self, argument: JsonValue = None) -> None:
        """Refuse an answer that can't be taken."""
        operators.check_answer(self._progress, argument, "reject")

    @workflow.update(
        name="pause",
        description="Start nothing new; what runs ends: {by, reason}",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def pause(self, argument: JsonValue = None) -> JsonObject:
        """Pause."""
        return self._acted(operators.pause(await self._begun(), argument))

    @pause.validator
    def check_pause(self, argument: JsonValue = None) -> None:
        """Refuse what is paused or over."""
        operators.check_pause(self._progress, argument)

    @workflow.update(
        name="resume", description="Go on: {by}", unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON
    )
    async def resume(self, argument: JsonValue = None) -> JsonObject:
        """Resume."""
        return self._acted(operators.resume(await self._begun(), argument))

    @resume.validator
    def check_resume(self, argument: JsonValue = None) -> None:
        """Refuse what is not paused."""
        operators.check_resume(self._progress, argument)

    @workflow.update(
        name="retry_step",
        description="Run a failed step again that waits for an operator: {step_id, by}",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def retry_step(self, argument: JsonValue = None) -> JsonObject:
        """Retry."""
        return self._acted(operators.act(await self._begun(), argument, "retry"))

    @retry_step.validator
    def check_retry_step(self, argument: JsonValue = None) -> None:
        """Refuse a step that waits for nobody."""
        operators.check_act(self._progress, argument)

    @workflow.update(
        name="skip_step",
        description="Skip a failed step that waits for an operator: {step_id, output, by}",
        unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON,
    )
    async def skip_step(self, argument: JsonValue = None) -> JsonObject:
        """Skip."""
        return self._acted(operators.act(await self._begun(), argument, "skip"))

    @skip_step.validator
    def check_skip_step(self, argument: JsonValue = None) -> None:
        """Refuse a step that waits for nobody."""
        operators.check_act(self._progress, argument)

    async def _begun(self) -> ExecutionProgress:
        """The run's state, once its plan is there."""
        if self._progress is None:
            await workflow.wait_condition(lambda: self._progress is not None)
        return cast("ExecutionProgress", self._progress)

    def _acted(self, answer: JsonObject) -> JsonObject:
        self._news = True
        return answer
