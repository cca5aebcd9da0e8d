"""Executions: started, followed, listed, cancelled and compared with Temporal."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import document, optional_text, plain, seconds, text
from engine.calls.base import Calls, new_request_id, on_own_loop, request
from engine.domain.execution import ExecutionStatus
from engine.errors import ExecutionNotFoundError
from engine.services.executions import parse_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine import types
    from engine.bootstrap import EngineSession
    from engine.calls.base import Document
    from engine.domain.json import JsonValue
    from engine.services.executions import StartedExecution
    from engine.settings import EngineSettings

__all__ = ["ExecutionCalls", "start_answer"]


def start_answer(session: EngineSession, settings: EngineSettings, started: StartedExecution) -> types.Execution:
    """Return what a call answers that has started an execution."""
    record = started.record
    ui_url = session.runtime.ui_url(record.execution_id, record.run_id, settings.temporal_namespace)
    return answers.execution(record, started.run, settings.temporal_namespace, settings.task_queue, ui_url)


class ExecutionCalls(Calls):
    """The calls of ``WorkflowEngine`` about executions."""

    @on_own_loop
    async def execute_workflow(
        self,
        workflow_id: str,
        input_data: Document | None = None,
        execution_options: Document | None = None,
    ) -> types.Execution:
        """Start an execution and return at once.

        ``execution_options``: ``priority`` (high, normal, low), ``timeout`` (seconds for the whole), ``trace``,
        ``idempotency_key`` (the same key and input return the same execution), ``version``, ``tags``, ``budget`` (which
        narrows the definition's).
        """
        session = self._session()
        start = parse_options(document(execution_options, "execution_options"))
        given = cast("JsonValue", plain({} if input_data is None else input_data))
        started = await session.executions.start_execution(text(workflow_id, "workflow_id"), given, start)
        return start_answer(session, self._settings, started)

    @on_own_loop
    async def get_execution_status(self, execution_id: str) -> types.ExecutionStatus:
        """Return where an execution stands, never older than a second while it is open."""
        session = self._session()
        view = await session.reads.read_status(text(execution_id, "execution_id"))
        may_ask = view.state.execution.status in (ExecutionStatus.WAITING, ExecutionStatus.PAUSED)
        gates = await session.operators.open_gate_ids(execution_id) if may_ask else None
        return answers.execution_status(view, gates)

    @on_own_loop
    async def get_execution_result(self, execution_id: str, wait: float = 0) -> types.ExecutionResult:
        """Return how an execution ended; a failed or cancelled one does not raise.

        Args:
            execution_id: of the execution.
            wait: seconds to wait for its end.

        Raises:
            InvalidInputError: it is still open after ``wait`` seconds.
        """
        session = self._session()
        patience = seconds(wait, "wait")
        result = await session.reads.read_result(text(execution_id, "execution_id"), patience)
        outputs = {step_id: await self._loaded(session, record.output) for step_id, record in result.steps.items()}
        traces = {
            step_id: answers.StepTrace(
                await self._loaded(session, record.input), await self._loaded(session, record.transcript)
            )
            for step_id, record in result.steps.items()
            if record.input is not None or record.transcript is not None
        }
        return answers.execution_result(result, await self._loaded(session, result.record.output), outputs, traces)

    @on_own_loop
    async def get_execution_input(self, execution_id: str) -> JsonValue:
        """Return what an execution was started with.

        Raises:
            ExecutionNotFoundError: there is none with this id.
        """
        session = self._session()
        record = await session.stores.executions.get_execution(text(execution_id, "execution_id"))
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        return await self._loaded(session, record.input)

    @on_own_loop
    async def list_executions(
        self,
        workflow_id: str | None = None,
        status: str | None = None,
        start_time: str | datetime | None = None,
        end_time: str | datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> types.ExecutionPage:
        """Return a page of executions, latest first; the times bound their creation."""
        session = self._session()
        items, live, following = await session.executions.list_executions(
            definition_id=optional_text(workflow_id, "workflow_id"),
            status=status,
            start_time=start_time.isoformat() if isinstance(start_time, datetime) else start_time,
            end_time=end_time.isoformat() if isinstance(end_time, datetime) else end_time,
            tags=plain(tags),
            limit=limit,
            cursor=cursor,
        )
        page = [answers.execution_item(item, live.get(item.execution_id)) for item in items]
        return {"items": page, "next_cursor": following}

    @on_own_loop
    async def cancel_execution(self, execution_id: str, reason: str | None = None) -> bool:
        """Ask for cancellation; True when it was asked for, False when the execution is over."""
        session = self._session()
        why = optional_text(reason, "reason")
        return await session.executions.cancel_execution(text(execution_id, "execution_id"), why)

    @on_own_loop
    async def repair_executions(self, execution_id: str | None = None) -> types.Repairs:
        """Compare all executions, or one, with Temporal now and make records and live state say what it says."""
        session = self._session()
        done = await session.verification.repair(optional_text(execution_id, "execution_id"))
        return {
            "checked": done.checked,
            "live_state": done.has_live,
            "repaired": [answers.repair(made) for made in done.repairs],
            "left": [answers.drift(found) for found in done.left],
        }

    @on_own_loop
    async def verify_executions(self) -> types.Verification:
        """Compare the records and live state of all executions with Temporal; nothing is changed."""
        found = await self._session().verification.verify()
        return {
            "checked": found.checked,
            "live_state": found.has_live,
            "drift": [answers.drift(item) for item in found.drift],
        }

    async def watch_execution(self, execution_id: str, from_event: str | None = None) -> AsyncIterator[types.Event]:
        """Yield an execution's events until it is over, from the one behind ``from_event`` (an event's id)."""
        request_id = new_request_id()
        with request(request_id):
            thread = self._thread()
            after = optional_text(from_event, "from_event")
            events = thread.content.reads.watch(text(execution_id, "execution_id"), after)
        try:
            while True:
                with request(request_id):
                    event = await thread.run(anext(events, None))
                if event is None:
                    return
                yield answers.event(event)
        finally:
            if thread.is_open:
                await thread.run(events.aclose())
