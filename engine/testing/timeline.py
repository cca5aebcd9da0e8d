"""What of a recording has been played, so that what came late in the recorded run comes late again.

The order of a run decides little: a failure, an answer or a cancellation ends what runs beside it. Each of them waits
for what had ended before it, and everything else for the failures. A changed definition may lack some of that; then
silence is enough.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from engine.domain.definition_graph import COMPENSATE
from engine.domain.ids import call_address

if TYPE_CHECKING:
    from engine.testing.recording import RecordedCall, RecordedGate, RecordedStep, Recording

__all__ = ["Timeline", "call_key", "is_clean_up", "runs_of"]

_QUIET: Final = 1.0
_QUIET_BEFORE_CANCEL: Final = 3.0
_SETTLE: Final = 0.1
_POLL: Final = 0.02

Key = tuple[str, ...]


def runs_of(recording: Recording, path: str = "") -> dict[str, Recording]:
    """Return a recording and those below it, by path: none, ``step.1``, ``step.1/inner.1``."""
    found = {path: recording}
    for address, child in recording.children.items():
        found |= runs_of(child, f"{path}/{address}" if path else address)
    return found


def call_key(path: str, step_id: str, step: RecordedStep, call: RecordedCall) -> Key:
    """Return what names a recorded call in a ``Timeline``."""
    if call.n is None:
        return path, step_id, str(step.calls.index(call))
    return path, call_address(step_id, call.item, call.n)


def gate_key(path: str, gate: RecordedGate) -> Key:
    """Return what names a recorded gate in a ``Timeline``."""
    return path, "gate", gate.kind, gate.gate_id


def is_clean_up(recording: Recording, step_id: str) -> bool:
    """Whether a step ran after the end of its run had been decided."""
    final = recording.definition.get("finally")
    final_ids = [step["id"] for step in final if isinstance(step, dict)] if isinstance(final, list) else []
    return step_id in final_ids or step_id.endswith(COMPENSATE)


class Timeline:
    """The calls and gates of a recording, in the order of their ends, and which of them have been played.

    Used by the engine's thread and by the caller's.
    """

    def __init__(self, recording: Recording) -> None:
        self._ends: dict[Key, str] = {}
        self._failures: set[Key] = set()
        self._before_cancel: set[Key] = set()
        self._played: set[Key] = set()
        self._heard_at = self._played_at = time.monotonic()
        for path, run in runs_of(recording).items():
            self._add(path, run)

    def _add(self, path: str, run: Recording) -> None:
        for step_id, step in run.steps.items():
            for call in step.calls:
                key = call_key(path, step_id, step, call)
                at = call.completed_at or step.completed_at
                if at is not None and not call.is_cancelled:
                    self._ends[key] = at
                if call.failure is not None:
                    self._failures.add(key)
                if run.status != "cancelled" or not is_clean_up(run, step_id):
                    self._before_cancel.add(key)
        for gate in run.gates:
            key = gate_key(path, gate)
            self._before_cancel.add(key)
            if gate.at is not None and gate.status == "answered":
                self._ends[key] = gate.at

    def heard(self) -> None:
        """Something goes on."""
        self._heard_at = time.monotonic()

    def played(self, key: Key) -> None:
        """A call was answered, or has begun to wait for its cancellation; a gate was answered, or is open."""
        self._played.add(key)
        self._heard_at = self._played_at = time.monotonic()

    async def until(self, instant: str | None = None) -> None:
        """Wait for all that had ended before an instant, or at all."""
        await self._until({key for key, at in self._ends.items() if instant is None or at < instant}, _QUIET)

    async def until_failures(self, instant: str | None) -> None:
        """Wait for the failures that had come before an instant; of none nothing is known."""
        if instant is not None:
            await self._until({key for key in self._failures if self._ends.get(key, instant) < instant}, _QUIET)

    async def until_cancel(self) -> None:
        """Wait for all that had begun when the run was cancelled."""
        self.heard()
        await self._until(self._before_cancel, _QUIET_BEFORE_CANCEL)

    async def _until(self, wanted: set[Key], quiet: float) -> None:
        if not wanted:
            return
        while not wanted <= self._played and time.monotonic() - self._heard_at < quiet:  # noqa: ASYNC110 - heard of in other threads
            await asyncio.sleep(_POLL)
        # What does not come is waited for once.
        self._played |= wanted
        # What was answered just now must reach the run first.
        await asyncio.sleep(max(_SETTLE - (time.monotonic() - self._played_at), 0))
