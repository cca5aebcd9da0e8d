"""Reading an execution: from live state while it is fresh, checked against Temporal, else from the records.

Three places know an execution; their order of trust is Temporal, record, live state. An open execution is shown only
if Temporal was asked within the last second; a contradiction is repaired on the spot, with a guarded write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from engine.domain.execution import ExecutionRecord, LiveState, StepRecord
from engine.errors import ExecutionNotFoundError, InvalidInputError, RuntimeUnavailableError, StoreError
from engine.outages import OutageLog
from engine.services.repair import handoffs_of, standing_steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.domain.execution import Event
    from engine.ports.execution_runtime import ExecutionRuntime, RunDescription
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.state_store import StateStore
    from engine.services.repair import ExecutionRepairs

__all__ = ["ExecutionReads", "ExecutionResult", "ExecutionView"]

_logger = logging.getLogger(__name__)

MAX_AGE: Final = timedelta(seconds=1)
"""An open execution is never shown older than this."""
MAX_WAIT: Final = timedelta(hours=24)
_WATCH_WAIT: Final = timedelta(seconds=1)
_OVERLAP: Final = timedelta(seconds=5)
_EVENTS_A_READ: Final = 500
_MAX_CHECKED: Final = 10_000
NO_WORKER_HINT: Final = "No worker polls the task queue; start one with `python worker.py` or `./baton worker`"


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """What status shows."""

    state: LiveState
    hint: str | None = None
    stale: bool = False
    """Temporal could not be asked."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What a result shows."""

    record: ExecutionRecord
    steps: dict[str, StepRecord]
    """Step id to the record that stands, with the attempts of all its calls."""
    handoffs: list[Event]
    """``handoff.taken`` and ``handoff.refused``, in order."""


@dataclass(slots=True)
class _Checks:
    """When each execution was last found open in Temporal, by the process's clock; and who is asking."""

    at: OrderedDict[str, tuple[float, str | None]] = field(default_factory=OrderedDict[str, tuple[float, str | None]])
    asking: dict[str, asyncio.Task[_Checked]] = field(default_factory=dict[str, "asyncio.Task[_Checked]"])


@dataclass(frozen=True, slots=True)
class _Checked:
    run: RunDescription | None
    hint: str | None


class ExecutionReads:
    """Reads executions."""

    def __init__(
        self,
        executions: ExecutionStore,
        state: StateStore,
        runtime: ExecutionRuntime,
        repairs: ExecutionRepairs,
    ) -> None:
        self._executions = executions
        self._state = state
        self._runtime = runtime
        self._repairs = repairs
        self._checks = _Checks()
        self._outages = OutageLog(_logger, "Reading live state")

    async def read_status(self, execution_id: str) -> ExecutionView:
        """Return an execution's state, never older than a second while it is open.

        Raises:
            ExecutionNotFoundError: no record of it.
        """
        live = await self._live_state(execution_id)
        if live is not None and live.execution.status.is_terminal and _is_whole(live):
            return ExecutionView(live)
        if live is None or live.execution.status.is_terminal:
            record = await self._record(execution_id)
            live = await self._repairs.rebuild_live_state(record)
            if record.status.is_terminal:
                return ExecutionView(live)
        try:
            hint, run = await self._check(execution_id)
        except RuntimeUnavailableError as error:
            _logger.warning("Execution %s is shown unchecked: %s", execution_id, error)
            return ExecutionView(live, stale=True)
        if run is None:
            return ExecutionView(live, hint=hint)
        record = await self._repairs.repaired(await self._record(execution_id), run.run)
        live = await self._repairs.rebuild_live_state(record)
        return ExecutionView(live, hint=None if record.status.is_terminal else hint)

    async def verified_record(self, execution_id: str) -> ExecutionRecord:
        """Return the record, repaired if Temporal contradicts it.

        Raises:
            ExecutionNotFoundError: no record of it.
            RuntimeUnavailableError: it is open and Temporal does not answer.
        """
        record = await self._record(execution_id)
        if record.status.is_terminal:
            return record
        await self._runtime.connect()
        return await self._repairs.repaired(record, await self._runtime.describe_run(execution_id))

    async def read_result(self, execution_id: str, wait: timedelta) -> ExecutionResult:
        """Return the end of an execution, waiting for it up to ``wait``.

        Raises:
            ExecutionNotFoundError: no record of it.
            InvalidInputError: it is still open.
        """
        record = await self._record(execution_id)
        steps: list[StepRecord] | None = None
        if not record.status.is_terminal and wait > timedelta(0):
            await self._runtime.connect()
            await self._runtime.await_close(execution_id, min(wait, MAX_WAIT))
            record, steps = await asyncio.gather(
                self._record(execution_id), self._executions.list_steps(execution_id, with_items=False)
            )
        if not record.status.is_terminal:
            record, steps = await self.verified_record(execution_id), None
        if not record.status.is_terminal:
            raise InvalidInputError(
                f"Execution {execution_id} is still {record.status}; ask again later or pass wait=seconds",
                {"execution_id": execution_id, "status": record.status.value},
            )
        steps = steps or await self._executions.list_steps(execution_id, with_items=False)
        if not _tell_all(record, steps):
            steps = await self._executions.list_steps(execution_id)
        return ExecutionResult(record, standing_steps(steps), handoffs_of(record, steps))

    async def live_states(self, execution_ids: list[str]) -> dict[str, LiveState]:
        """Return what live state has of these; nothing of it when the store is down."""
        if not execution_ids:
            return {}
        try:
            live = await self._state.get_live_states(execution_ids)
        except StoreError as error:
            self._outages.failed(error)
            return {}
        self._outages.worked()
        return live

    async def watch(self, execution_id: str, from_event: str | None) -> AsyncGenerator[Event]:
        """Yield events in order, from the one behind ``from_event``, until the execution is over.

        Each is yielded once. Events survive the live stream: what it lost is read from the records.

        Raises:
            ExecutionNotFoundError: no record of it.
        """
        record = await self._record(execution_id)
        seen: set[str] = set()
        floor = _floor(from_event)
        position: str | None = None
        while True:
            over = record.status.is_terminal
            if over:
                batch = await self._recorded_events(record)
            else:
                try:
                    batch, position = await self._state.read_events(
                        execution_id, after=position, limit=_EVENTS_A_READ, wait=_WATCH_WAIT
                    )
                except StoreError as error:
                    _logger.warning("The stream of %s was not read: %s", execution_id, error)
                    batch = await self._recorded_events(record)
                    await asyncio.sleep(_WATCH_WAIT.total_seconds())
            for event in batch:
                if event.id not in seen and event.id != from_event and event.id >= floor:
                    seen.add(event.id)
                    if from_event is None or event.id > from_event:
                        yield event
            if over:
                return
            if not batch or any(event.type.startswith("execution.") for event in batch):
                record = await self._latest(execution_id)

    async def _latest(self, execution_id: str) -> ExecutionRecord:
        try:
            return await self.verified_record(execution_id)
        except RuntimeUnavailableError:
            return await self._record(execution_id)

    async def _recorded_events(self, record: ExecutionRecord) -> list[Event]:
        steps = await self._executions.list_steps(record.execution_id)
        events = [*record.events, *(event for step in steps for event in step.events)]
        return sorted(events, key=lambda event: event.id)

    async def _record(self, execution_id: str) -> ExecutionRecord:
        record = await self._executions.get_execution(execution_id)
        if record is None:
            raise ExecutionNotFoundError(execution_id)
        return record

    async def _live_state(self, execution_id: str) -> LiveState | None:
        try:
            live = await self._state.get_live_state(execution_id)
        except StoreError as error:
            self._outages.failed(error)
            return None
        self._outages.worked()
        return live

    async def _check(self, execution_id: str) -> tuple[str | None, _Checked | None]:
        """Ask Temporal unless that was done within a second; return a hint, and the answer when it is not open."""
        checked_at, hint = self._checks.at.get(execution_id, (float("-inf"), None))
        if time.monotonic() - checked_at < MAX_AGE.total_seconds():
            return hint, None
        task = self._checks.asking.get(execution_id)
        if task is None:
            task = asyncio.create_task(self._ask(execution_id))
            self._checks.asking[execution_id] = task
            task.add_done_callback(lambda _: self._checks.asking.pop(execution_id, None))
        checked = await asyncio.shield(task)
        if checked.run is not None and checked.run.status == "running":
            self._checks.at[execution_id] = (time.monotonic(), checked.hint)
            if len(self._checks.at) > _MAX_CHECKED:
                self._checks.at.popitem(last=False)
            return checked.hint, None
        self._checks.at.pop(execution_id, None)
        return checked.hint, checked

    async def _ask(self, execution_id: str) -> _Checked:
        await self._runtime.connect()
        run, polled = await asyncio.gather(self._runtime.describe_run(execution_id), self._runtime.has_poller())
        return _Checked(run, None if polled else NO_WORKER_HINT)


def _is_whole(live: LiveState) -> bool:
    """Whether live state has all that a finished execution shows."""
    if live.execution.status != "completed":
        return bool(live.steps)
    return all(step_id in live.steps and live.steps[step_id].status.is_terminal for step_id in live.execution.step_ids)


def _tell_all(record: ExecutionRecord, steps: list[StepRecord]) -> bool:
    """Whether a result needs no records of items: they handed nothing over, and every step tells its own end."""
    ended = {step.step_id for step in steps if step.status.is_terminal}
    handoffs = record.handoffs_taken + record.handoffs_refused
    return ended.issuperset(record.step_ids) and len(handoffs_of(record, steps)) == handoffs


def _floor(from_event: str | None) -> str:
    """The least id worth reading: the instant of ``from_event`` less the overlap of writers."""
    if from_event is None:
        return ""
    millis = from_event.partition("-")[0]
    if not millis.isdecimal():
        raise InvalidInputError("from_event must be the id of an event", {"path": "from_event"})
    return f"{int(millis) - int(_OVERLAP.total_seconds() * 1000):013d}"
