"""What is new in a run that no agent's call tells of: its status, its gates, who waits, what was decided of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import Event, ExecutionStatus, micros
from engine.domain.gate import Transition
from engine.domain.payloads import take_payload

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.gate import GateRecord
    from engine.domain.progress import ExecutionProgress

__all__ = ["News"]

MAX_PART_BYTES: Final = 48 * 1024
"""Of the gates, of the records and of the events in one transition."""
MAX_LEFT_EVENTS: Final = 100
"""As many may wait for the next transition, or for the end, which has room for them."""


class News:
    """Collects what a run has to tell.

    Attributes:
        events: of the execution itself, not yet told.
    """

    def __init__(self, progress: ExecutionProgress) -> None:
        self.events: list[Event] = []
        self._progress = progress
        self._told_status = ExecutionStatus.RUNNING

    @property
    def is_quiet(self) -> bool:
        """Whether an agent's last call may tell of the end: nothing else is left to be told."""
        gates = self._progress.gates
        was_running = self._told_status is ExecutionStatus.RUNNING
        return was_running and not self.events and not gates.changed and not gates.events

    def take_events(self) -> list[Event]:
        """Hand over what was not told of the execution itself."""
        events, self.events = [*self._progress.gates.events, *self.events], []
        self._progress.gates.events = []
        return sorted(events, key=lambda event: event.id)

    @property
    def has_transition(self) -> bool:
        """Whether something has changed that no agent's call records."""
        progress = self._progress
        is_open = progress.ending is None
        # What waits for siblings to end has no call that would take its record along.
        is_late = progress.work.must_tell or progress.failing is not None or self._is_waiting
        is_held_up = is_open and is_late and bool(progress.decided)
        has_new_status = is_open and progress.status is not self._told_status
        has_many_events = len(self.events) + len(progress.gates.events) > MAX_LEFT_EVENTS
        return has_new_status or is_held_up or has_many_events or bool(progress.gates.changed or progress.work.waiting)

    @property
    def _is_waiting(self) -> bool:
        """Whether only people, or time, are waited for: no call comes soon that would take records along."""
        progress = self._progress
        waits = progress.is_paused or bool(progress.work.timers) or bool(progress.gates.open_gates)
        return waits and progress.running == 0

    def take_transition(self, now: datetime) -> Transition:
        """Hand over what has changed beside agents' calls."""
        status = self._progress.status
        told, self._told_status = self._told_status, status
        if status is not told and status is ExecutionStatus.WAITING:
            self.events.append(Event.at_instant("execution.waiting", now))
        gates = self._take_gates()
        waiting = take_payload(self._progress.work.waiting, MAX_PART_BYTES)
        return Transition(
            execution_id=self._progress.facts.execution_id,
            run_id=self._progress.facts.run_id,
            run_started_at=self._progress.facts.owned_since(now),
            token=micros(now),
            status=status if status is not told and self._progress.ending is None else None,
            events=self._take_some_events(),
            gates=gates,
            steps=[*self._progress.work.take_some_decided(), *waiting] if self._progress.decided else waiting,
        )

    def tell_status(self) -> None:
        """The run before has told of the status that this one begins with."""
        self._told_status = self._progress.status

    def _take_gates(self) -> list[GateRecord]:
        changed = self._progress.gates.changed
        taken = take_payload(list(changed.values()), MAX_PART_BYTES)
        for gate in taken:
            del changed[gate.gate_id]
        return taken

    def _take_some_events(self) -> list[Event]:
        self.events = self.take_events()
        return take_payload(self.events, MAX_PART_BYTES)
