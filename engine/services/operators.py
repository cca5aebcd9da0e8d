"""What people do to a running execution: answer its gates, hold it, let it go on, repeat or pass over a step.

The run decides: each act is an Update that its validator takes or refuses, so that two answers to one gate can't both
stand. The record is asked first, because it is there when Temporal has forgotten the run.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from engine.domain.expressions import json_size
from engine.domain.gate import Transition
from engine.domain.gates import MAX_BY_CHARS, MAX_DATA_BYTES
from engine.domain.metrics import format_instant
from engine.domain.page import MAX_LIMIT
from engine.errors import ConflictError, ExecutionNotFoundError, InvalidInputError, StoreError
from engine.outages import OutageLog
from engine.ports.execution_store import GateFilter
from engine.services.paging import next_cursor, parse_cursor, parse_limit

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord
    from engine.domain.gate import GateRecord
    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.execution_runtime import ExecutionRuntime
    from engine.ports.execution_store import ExecutionStore
    from engine.services.execution_reads import ExecutionReads

__all__ = ["MAX_ARGUMENT_BYTES", "OperatorService"]

_logger = logging.getLogger(__name__)

MAX_ARGUMENT_BYTES: Final = MAX_DATA_BYTES
"""Of what an operator hands over in one act: it stays in the run's history and in the records."""
_RECORDS_AT_ONCE: Final = 10


class OperatorService:
    """Reads gates and acts on executions.

    Args:
        executions: has the gates and says whether an execution is over.
        runtime: takes the acts to the run.
        reads: makes a record right that Temporal contradicts.
    """

    def __init__(self, executions: ExecutionStore, runtime: ExecutionRuntime, reads: ExecutionReads) -> None:
        self._executions = executions
        self._runtime = runtime
        self._reads = reads
        self._outages = OutageLog(_logger, "Reading the gates of waiting executions")

    async def list_gates(
        self,
        *,
        execution_id: str | None = None,
        definition_id: str | None = None,
        assignee: str | None = None,
        limit: object = None,
        cursor: object = None,
    ) -> tuple[list[GateRecord], str | None]:
        """Return a page of open gates, oldest first, and the next page's cursor.

        A gate whose execution is over is left out, and closed: nobody was left to say so when it ended.

        Raises:
            InvalidInputError: ``limit`` or ``cursor`` can't be used.
        """
        query = GateFilter(execution_id=execution_id, definition_id=definition_id, assignee=assignee)
        words: JsonObject = {
            "list": "gates",
            "execution_id": execution_id,
            "workflow_id": definition_id,
            "assignee": assignee,
        }
        page = await self._executions.list_gates(query, limit=parse_limit(limit), after=parse_cursor(cursor, words))
        return await self._still_open(page.items), next_cursor(page, words)

    async def get_gate(self, execution_id: str, gate_id: str) -> GateRecord:
        """Return a gate, open or not.

        Raises:
            ExecutionNotFoundError: no such execution.
            InvalidInputError: it has no such gate.
        """
        record = await self._record(execution_id)
        gate = await self._executions.get_gate(execution_id, gate_id)
        if gate is None:
            raise InvalidInputError(
                f"Execution {execution_id} has no gate with the gate_id {gate_id}; list_gates names the open ones",
                {"path": "gate_id", "execution_id": execution_id, "gate_id": gate_id},
            )
        if gate.status == "open" and record.status.is_terminal:
            return await self._closed(gate, record)
        return gate

    async def open_gate_ids(self, execution_id: str) -> list[str] | None:
        """Return the ids of an execution's open gates, oldest first; None when the store does not answer."""
        try:
            page = await self._executions.list_gates(GateFilter(execution_id=execution_id), limit=MAX_LIMIT, after=None)
        except StoreError as error:
            self._outages.failed(error)
            return None
        self._outages.worked()
        return [gate.gate_id for gate in page.items]

    async def answer_gate(
        self, execution_id: str, gate_id: str, answer: str, *, data: JsonValue, by: str | None
    ) -> JsonObject:
        """Answer an open gate; return ``{gate_id, answer, by, at}``.

        Raises:
            ExecutionNotFoundError: no such execution.
            InvalidInputError: no such gate, an answer that is not allowed, or data against the gate's schema.
            ConflictError: the gate is not open any more; ``details.answer`` is the one that stands.
            RuntimeUnavailableError: no answer from the run in time; whether it was taken is unknown.
        """
        argument = _argument(gate_id=gate_id, answer=answer, data=data, by=by)
        return await self._act(execution_id, "answer_gate", argument)

    async def pause_execution(self, execution_id: str, *, by: str | None, reason: str | None) -> None:
        """Let nothing new start; what runs goes on to its end.

        Raises:
            ExecutionNotFoundError: no such execution.
            ConflictError: it is over, or paused already.
            RuntimeUnavailableError: no answer from the run in time; whether it was taken is unknown.
        """
        await self._act(execution_id, "pause", _argument(by=by, reason=reason))

    async def resume_execution(self, execution_id: str, *, by: str | None) -> None:
        """Let a paused execution go on.

        Raises:
            ExecutionNotFoundError: no such execution.
            ConflictError: it is over, or not paused.
            RuntimeUnavailableError: no answer from the run in time; whether it was taken is unknown.
        """
        await self._act(execution_id, "resume", _argument(by=by))

    async def retry_step(self, execution_id: str, step_id: str, *, by: str | None) -> None:
        """Begin again with a failed step that asks what to do.

        Raises:
            ExecutionNotFoundError: no such execution.
            InvalidInputError: no such step.
            ConflictError: the execution is over, or the step does not ask.
            RuntimeUnavailableError: no answer from the run in time; whether it was taken is unknown.
        """
        await self._act(execution_id, "retry_step", _argument(step_id=step_id, by=by))

    async def skip_step(self, execution_id: str, step_id: str, *, output: JsonValue, by: str | None) -> None:
        """Pass over a failed step that asks what to do, with ``output`` in the place of its own.

        Raises:
            ExecutionNotFoundError: no such execution.
            InvalidInputError: no such step.
            ConflictError: the execution is over, or the step does not ask.
            RuntimeUnavailableError: no answer from the run in time; whether it was taken is unknown.
        """
        await self._act(execution_id, "skip_step", _argument(step_id=step_id, output=output, by=by))

    async def _act(self, execution_id: str, name: str, argument: JsonObject) -> JsonObject:
        record = await self._record(execution_id)
        if record.status.is_terminal:
            raise await self._over(record, argument)
        await self._runtime.connect()
        try:
            return await self._runtime.send_update(execution_id, name, argument)
        except ConflictError:
            record = await self._reads.verified_record(execution_id)
            if record.status.is_terminal:
                raise await self._over(record, argument) from None
            raise

    async def _over(self, record: ExecutionRecord, argument: JsonObject) -> ConflictError:
        """The error for an act on an execution that is over; for an answer, with the one that stands."""
        details: dict[str, object] = {"execution_id": record.execution_id, "status": record.status.value}
        message = f"Execution {record.execution_id} is {record.status}; it takes no orders any more"
        if isinstance(gate_id := argument.get("gate_id"), str):
            gate = await self.get_gate(record.execution_id, gate_id)
            at = None if gate.at is None else format_instant(gate.at)
            details |= {"gate_id": gate_id, "status": gate.status, "answer": gate.answer, "by": gate.by, "at": at}
            if gate.answer is not None and gate.by is not None:
                message += f"; gate {gate_id} was answered {gate.answer} by {gate.by}"
        return ConflictError(message, details)

    async def _record(self, execution_id: str) -> ExecutionRecord:
        record = await self._executions.get_execution(execution_id)
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        return record

    async def _still_open(self, gates: list[GateRecord]) -> list[GateRecord]:
        gate_of = {gate.execution_id: gate for gate in gates}
        places = asyncio.Semaphore(_RECORDS_AT_ONCE)

        async def read(execution_id: str) -> ExecutionRecord | None:
            async with places:
                return await self._executions.get_execution(execution_id)

        records = await asyncio.gather(*(read(execution_id) for execution_id in gate_of))
        ended = {record.execution_id: record for record in records if record is not None and record.status.is_terminal}
        for gate in gates:
            if gate.execution_id in ended:
                await self._closed(gate, ended[gate.execution_id])
        return [gate for gate in gates if gate.execution_id not in ended]

    async def _closed(self, gate: GateRecord, record: ExecutionRecord) -> GateRecord:
        """Close a gate with its own token: an answer that was written meanwhile has a greater one, and stands."""
        closed = gate.model_copy(update={"status": "closed"})
        await self._executions.record_transition(
            Transition(
                execution_id=gate.execution_id,
                run_id=record.run_id or gate.run_id,
                run_started_at=record.run_started_at or record.created_at,
                token=gate.token,
                gates=[closed],
            )
        )
        return closed


def _argument(**given: JsonValue) -> JsonObject:
    """The argument of an Update: what was given, without nulls.

    Raises:
        InvalidInputError: it is too large; ``details.path`` names what is.
    """
    if isinstance(by := given.get("by"), str) and len(by) > MAX_BY_CHARS:
        raise InvalidInputError(f"by must be a text of at most {MAX_BY_CHARS} characters", {"path": "by"})
    argument: JsonObject = {key: value for key, value in given.items() if value is not None}
    sizes = {key: json_size(value, limit=MAX_ARGUMENT_BYTES) for key, value in argument.items()}
    if sum(sizes.values()) > MAX_ARGUMENT_BYTES:
        path = max(sizes, key=lambda key: sizes[key])
        raise InvalidInputError(
            f"{path} is larger than {MAX_ARGUMENT_BYTES // 1024} KiB; pass a reference to it instead",
            {"path": path, "limit_bytes": MAX_ARGUMENT_BYTES},
        )
    return argument
