"""Live state written behind its writer's back: a step never waits for what may be lost at any time.

A wrapper with the port it wraps. What is asked for within 100 ms leaves together, one write an execution,
so that short steps cost less than a write each; an execution's end leaves at once. An execution has one write at a
time, and what comes meanwhile gathers behind it, because events of two writes at once would lose their order. What goes
wrong is logged, once an outage, because the port's callers do nothing else. When the store hangs, what waits is kept
and more is dropped: readers rebuild live state from the records.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.errors import StoreError
from engine.outages import OutageLog

if TYPE_CHECKING:
    from datetime import timedelta

    from engine.domain.execution import Event, LiveExecution, LiveState, LiveStep
    from engine.ports.state_store import StateStore

__all__ = ["WriteBehindStateStore"]

_logger = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.1
"""Far less than the second that a status may be old, and as often as a watcher's eye wants news."""
MAX_WAITING: Final = 1000


@dataclass(slots=True)
class _Transition:
    execution: LiveExecution | None = None
    steps: list[LiveStep] = field(default_factory=list["LiveStep"])
    events: list[Event] = field(default_factory=list["Event"])


class WriteBehindStateStore:
    """A ``StateStore`` whose writes return at once; it does not own the store that it wraps."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._gathered: dict[str, _Transition] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._outages = OutageLog(_logger, "Writing live state")

    async def record_transition(
        self,
        execution_id: str,
        *,
        execution: LiveExecution | None = None,
        steps: list[LiveStep] | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Ask for a write, and go on."""
        transition = self._gathered.get(execution_id)
        if transition is None:
            if len(self._gathered) + len(self._writing) >= MAX_WAITING:
                self._outages.failed("too many writes are waiting")
                return
            transition = self._gathered[execution_id] = _Transition()
        transition.execution = execution or transition.execution
        transition.steps.extend(steps or ())
        transition.events.extend(events or ())
        if execution is not None and execution.status.is_terminal:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._flush)

    async def get_live_state(self, execution_id: str) -> LiveState | None:
        """See ``StateStore``."""
        return await self._store.get_live_state(execution_id)

    async def get_live_states(self, execution_ids: list[str]) -> dict[str, LiveState]:
        """See ``StateStore``."""
        return await self._store.get_live_states(execution_ids)

    async def read_events(
        self, execution_id: str, *, after: str | None, limit: int, wait: timedelta
    ) -> tuple[list[Event], str | None]:
        """See ``StateStore``."""
        return await self._store.read_events(execution_id, after=after, limit=limit, wait=wait)

    async def aclose(self) -> None:
        """Wait until all that was asked for is written."""
        self._flush()
        while self._writing:
            await asyncio.wait(list(self._writing.values()))

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for execution_id in [execution_id for execution_id in self._gathered if execution_id not in self._writing]:
            self._begin(execution_id)

    def _begin(self, execution_id: str) -> None:
        task = asyncio.create_task(self._write(execution_id, self._gathered.pop(execution_id)))
        self._writing[execution_id] = task
        task.add_done_callback(lambda done: self._end(execution_id, done))

    def _end(self, execution_id: str, task: asyncio.Task[None]) -> None:
        del self._writing[execution_id]
        if execution_id in self._gathered and not task.cancelled():
            self._begin(execution_id)

    async def _write(self, execution_id: str, transition: _Transition) -> None:
        try:
            await self._store.record_transition(
                execution_id,
                execution=transition.execution,
                steps=transition.steps or None,
                events=transition.events or None,
            )
        except StoreError as error:
            self._outages.failed(error)
        else:
            self._outages.worked()
