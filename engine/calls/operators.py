"""What people do to running executions: gates answered, runs held, steps repeated or passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import answers
from engine.arguments import json_value, optional_text, text
from engine.calls.base import Calls, on_own_loop

if TYPE_CHECKING:
    from engine import types

__all__ = ["OperatorCalls"]


class OperatorCalls(Calls):
    """The calls of ``WorkflowEngine`` by which people act on executions."""

    @on_own_loop
    async def list_gates(
        self,
        execution_id: str | None = None,
        workflow_id: str | None = None,
        assignee: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.GatePage:
        """Return a page of open gates, oldest first.

        Args:
            execution_id: only those of this execution.
            workflow_id: only those of this workflow's executions.
            assignee: only those with this one among their assignees.
            limit: 1 to 1,000.
            cursor: ``next_cursor`` of the page before.
        """
        items, following = await self._session().operators.list_gates(
            execution_id=optional_text(execution_id, "execution_id"),
            definition_id=optional_text(workflow_id, "workflow_id"),
            assignee=optional_text(assignee, "assignee"),
            limit=limit,
            cursor=cursor,
        )
        return {"items": [answers.gate(item) for item in items], "next_cursor": following}

    @on_own_loop
    async def get_gate(self, execution_id: str, gate_id: str) -> types.GateState:
        """Return a gate, open or not, with its answer.

        Raises:
            ExecutionNotFoundError: there is no execution with this id.
            InvalidInputError: it has no such gate.
        """
        operators = self._session().operators
        return answers.gate_state(
            await operators.get_gate(text(execution_id, "execution_id"), text(gate_id, "gate_id"))
        )

    @on_own_loop
    async def answer_gate(
        self, execution_id: str, gate_id: str, answer: str, by: str | None = None, data: object = None
    ) -> types.GateAnswer:
        """Answer an open gate; the first answer stands.

        Args:
            execution_id: of the execution that waits.
            gate_id: as ``list_gates`` names it.
            answer: one of the gate's ``allowed``.
            by: who answers; kept in the record.
            data: JSON that goes with it, by the gate's ``schema``.

        Raises:
            InvalidInputError: no such gate, an answer that it does not take, or data that does not fit.
            ConflictError: the gate is not open any more; ``details.answer`` is the one that stands.
        """
        taken = await self._session().operators.answer_gate(
            text(execution_id, "execution_id"),
            text(gate_id, "gate_id"),
            text(answer, "answer"),
            data=json_value(data, "data"),
            by=optional_text(by, "by"),
        )
        return answers.gate_answer(taken)

    @on_own_loop
    async def pause_execution(self, execution_id: str, by: str | None = None, reason: str | None = None) -> bool:
        """Let nothing new start in an execution, while what runs goes on to its end; True.

        Raises:
            ConflictError: it is paused already, or over.
        """
        await self._session().operators.pause_execution(
            text(execution_id, "execution_id"), by=optional_text(by, "by"), reason=optional_text(reason, "reason")
        )
        return True

    @on_own_loop
    async def resume_execution(self, execution_id: str, by: str | None = None) -> bool:
        """Let a paused execution go on; True.

        Raises:
            ConflictError: it is not paused, or over.
        """
        await self._session().operators.resume_execution(text(execution_id, "execution_id"), by=optional_text(by, "by"))
        return True

    @on_own_loop
    async def retry_step(self, execution_id: str, step_id: str, by: str | None = None) -> bool:
        """Begin again with a failed step that asks what to do (``on_error: ask``); True.

        Raises:
            InvalidInputError: no such step.
            ConflictError: the step does not ask, or the execution is over.
        """
        await self._session().operators.retry_step(
            text(execution_id, "execution_id"), text(step_id, "step_id"), by=optional_text(by, "by")
        )
        return True

    @on_own_loop
    async def skip_step(self, execution_id: str, step_id: str, output: object = None, by: str | None = None) -> bool:
        """Pass over a failed step that asks what to do, with ``output`` in the place of its own; True.

        Raises:
            InvalidInputError: no such step, or ``output`` is no JSON.
            ConflictError: the step does not ask, or the execution is over.
        """
        await self._session().operators.skip_step(
            text(execution_id, "execution_id"),
            text(step_id, "step_id"),
            output=json_value(output, "output"),
            by=optional_text(by, "by"),
        )
        return True
