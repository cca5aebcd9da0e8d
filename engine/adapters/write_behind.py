"""Live state written behind its writer's back: a step never waits for what may be lost at any time.

A wrapper with the port it wraps. Writes leave in the order they were asked for; what goes wrong is logged, because the
port's callers do nothing else. When the store hangs, what waits is kept and more is dropped: readers rebuild live
state from the records.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from engine.errors import StoreError

if TYPE_CHECKING:
    from datetime import timedelta

    from engine.domain.execution import Event, LiveExecution, LiveState, LiveStep
    from engine.ports.state_store import StateStore

__all__ = ["WriteBehindStateStore"]

_logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1000


class WriteBehindStateStore:
    """A ``StateStore`` whose writes return at once; it does not own the store that it wraps."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._waiting: set[asyncio.Task[None]] = set()

    async def record_transition(
        self,
        execution_id: str,
        *,
        execution: LiveExecution | None = None,
        steps: list[LiveStep] | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Ask for a write, and go on."""
        if len(self._waiting) >= MAX_WAITING:
            _logger.warning("Live state of %s was not written: too many writes are waiting", execution_id)
            return
        task = asyncio.create_task(self._write(execution_id, execution, steps, events))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

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
        while self._waiting:
            await asyncio.wait(list(self._waiting))

    async def _write(
        self,
        execution_id: str,
        execution: LiveExecution | None,
        steps: list[LiveStep] | None,
        events: list[Event] | None,
    ) -> None:
        try:
            await self._store.record_transition(execution_id, execution=execution, steps=steps, events=events)
        except StoreError as error:
            _logger.warning("Live state of %s was not written: %s", execution_id, error)
