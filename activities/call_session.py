"""What goes on beside an agent's call while it is open: heartbeats, the first sign of life, lines of progress.

A call that ends within 50 ms costs nothing here: the pulse starts only then. From then on it announces the step as
running, heartbeats every second (so that a cancellation arrives within two) and publishes what the agent emits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from temporalio import activity

from engine.domain.execution import Event
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.domain.json import JsonValue
    from engine.ports.state_store import StateStore

_logger = logging.getLogger(__name__)

QUIET_SECONDS = 0.05
PULSE_SECONDS = 0.9
_MAX_LINES = 1000
_MAX_LINE_CHARS = 2000


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What an agent may know of its call."""

    execution_id: str
    step_id: str
    attempt: int
    idempotency_key: str
    deadline: datetime


class CallSession:
    """The ``AgentCall`` that an agent's function gets, and the pulse behind it.

    ``heartbeat`` and ``emit`` may be called from any thread. ``announce`` is awaited once, when the call has been
    open for 50 ms or emits its first line; False says that the call is over, and its end will take the lines along.
    """

    def __init__(self, facts: CallFacts, state: StateStore, announce: Callable[[], Awaitable[bool]]) -> None:
        self._context: list[JsonValue] = []
        self._facts = facts
        self._state = state
        self._announce = announce
        self._loop = asyncio.get_running_loop()
        self._progress: JsonValue = None
        self._lines: deque[Event] = deque(maxlen=_MAX_LINES)
        self._emitted = 0
        self._woken = asyncio.Event()
        self._cancelled = False
        self._beside: list[asyncio.Task[None]] = []
        self._starter = self._loop.call_later(QUIET_SECONDS, self._start_pulse)

    @property
    def execution_id(self) -> str:
        """The execution that calls."""
        return self._facts.execution_id

    @property
    def step_id(self) -> str:
        """The step that calls."""
        return self._facts.step_id

    @property
    def attempt(self) -> int:
        """1 for the first attempt of this logical call."""
        return self._facts.attempt

    @property
    def idempotency_key(self) -> str:
        """Equal over all attempts of one logical call."""
        return self._facts.idempotency_key

    @property
    def deadline(self) -> datetime:
        """When this attempt is given up."""
        return self._facts.deadline

    @property
    def context(self) -> list[JsonValue]:
        """What was recalled for the step, best first."""
        return self._context

    @property
    def cancelled(self) -> bool:
        """Whether the call's end was asked for."""
        return self._cancelled

    def heartbeat(self, progress: JsonValue = None) -> None:
        """Keep ``progress`` for the next heartbeat."""
        self._progress = progress

    def emit(self, text: str) -> None:
        """Publish a line of progress; beyond 1,000 unpublished lines the oldest are dropped."""
        self._emitted += 1
        now = datetime.now(self._facts.deadline.tzinfo)
        address = f"{self._facts.idempotency_key}.{self._facts.attempt}.{self._emitted:09d}"
        event = Event.at_instant("agent.progress", now, address, self._facts.step_id, text=str(text)[:_MAX_LINE_CHARS])
        self._lines.append(event)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def give_context(self, items: list[JsonValue]) -> None:
        """Let the agent read what was recalled."""
        self._context = items

    def cancel(self) -> None:
        """Tell the agent that its end is asked for."""
        self._cancelled = True

    async def aclose(self) -> None:
        """Stop the pulse and publish what is left."""
        self._starter.cancel()
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        await self._publish()

    def _wake(self) -> None:
        self._woken.set()
        if not self._beside and not self._starter.cancelled():
            self._starter.cancel()
            self._start_pulse()

    def _start_pulse(self) -> None:
        if not self._beside:
            step_id = self._facts.step_id
            self._beside = [
                self._loop.create_task(self._beat(), name=f"pulse of {step_id}"),
                self._loop.create_task(self._tell(), name=f"progress of {step_id}"),
            ]

    async def _beat(self) -> None:
        """Heartbeat, apart from all that asks a store: one that hangs must not look like a lost worker."""
        while True:
            activity.heartbeat(self._heartbeat_details())
            await asyncio.sleep(PULSE_SECONDS)

    async def _tell(self) -> None:
        if not await self._announce():
            return
        while True:
            await self._publish()
            await self._woken.wait()
            self._woken.clear()

    def _heartbeat_details(self) -> dict[str, JsonValue]:
        details: dict[str, JsonValue] = {"attempt": self._facts.attempt}
        if self._progress is not None:
            details["progress"] = self._progress
        return details

    def take_lines(self) -> list[Event]:
        """Hand over the lines that are not yet published."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    async def _publish(self) -> None:
        lines = self.take_lines()
        if not lines:
            return
        try:
            await self._state.record_transition(self._facts.execution_id, events=lines)
        except StoreError as error:
            _logger.warning("%d lines of progress were not published: %s", len(lines), error)


def deadline_of(info: activity.Info) -> datetime:
    """When Temporal gives this attempt up: by its own limit or by that of all attempts."""
    limit = info.started_time + (info.start_to_close_timeout or timedelta(minutes=5))
    if not info.schedule_to_close_timeout:
        return limit
    return min(limit, info.scheduled_time + info.schedule_to_close_timeout)
