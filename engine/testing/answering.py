"""People's part in a replay: each gate gets the answer that it had, and a run that was cancelled is cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from engine.errors import ConflictError, InvalidInputError
from engine.testing.offline import CANCEL_PATIENCE
from engine.testing.timeline import gate_key, runs_of

if TYPE_CHECKING:
    from engine import types
    from engine.facade import WorkflowEngine
    from engine.testing.recording import RecordedGate, Recording
    from engine.testing.timeline import Timeline

__all__ = ["RecordedPeople"]

_POLL: Final = 0.05
_UNASKED: Final = {"ask": "fail", "budget": "fail"}
"""What a gate is answered that the recording does not have, by its kind."""


class RecordedPeople:
    """Acts on one replay as people did on the recorded run.

    Args:
        engine: which has nothing but the replay.
        recording: of the run.
        timeline: of the recording.
    """

    def __init__(self, engine: WorkflowEngine, recording: Recording, timeline: Timeline) -> None:
        self._engine = engine
        self._recording = recording
        self._runs = runs_of(recording)
        self._timeline = timeline
        self._used: set[tuple[str, ...]] = set()
        self._answering: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def act(self, execution_id: str) -> None:
        """Answer and cancel, until cancelled itself.

        Raises:
            InvalidInputError: a gate is open that the recording can't answer, or does not take the answer.
        """
        if self._recording.status == "cancelled":
            self._answering["", "cancel"] = asyncio.create_task(self._cancel(execution_id))
        try:
            while True:
                for gate in (await self._engine.list_gates(limit=1000))["items"]:
                    address = gate["execution_id"], gate["gate_id"]
                    if address not in self._answering:
                        path = gate["execution_id"].removeprefix(execution_id).removeprefix("/")
                        found = self._recorded(path, gate)
                        self._answering[address] = asyncio.create_task(self._answer(path, gate, found))
                for task in [task for task in self._answering.values() if task.done()]:
                    task.result()
                await asyncio.sleep(_POLL)
        finally:
            for task in self._answering.values():
                task.cancel()
            await asyncio.gather(*self._answering.values(), return_exceptions=True)

    async def _cancel(self, execution_id: str) -> None:
        await self._timeline.until_cancel()
        await self._engine.cancel_execution(execution_id)

    def _recorded(self, path: str, gate: types.Gate) -> RecordedGate | None:
        """The recorded gate of this id, else the step's next one of this kind."""
        run = self._runs.get(path)
        kind, step_id = gate["kind"], gate["step_id"]
        gates = [] if run is None else [one for one in run.gates if (one.kind, one.step_id) == (kind, step_id)]
        unused = [one for one in gates if gate_key(path, one) not in self._used]
        found = next((one for one in unused if one.gate_id == gate["gate_id"]), unused[0] if unused else None)
        if found is not None:
            self._used.add(gate_key(path, found))
        return found

    async def _answer(self, path: str, gate: types.Gate, recorded: RecordedGate | None) -> None:
        if recorded is not None and recorded.status == "expired":
            self._timeline.played(gate_key(path, recorded))
            return
        answer = _UNASKED.get(gate["kind"])
        if recorded is not None and recorded.status == "answered":
            await self._timeline.until(recorded.at)
            answer = recorded.answer
        elif recorded is not None:
            # Nobody had answered when the run ended.
            self._timeline.played(gate_key(path, recorded))
            await asyncio.sleep(CANCEL_PATIENCE)
        if answer is None:
            raise InvalidInputError(
                f"The recording of {self._recording.execution_id} has no answer for gate {gate['gate_id']} of step "
                f"{gate['step_id']}",
                {"gate_id": gate["gate_id"], "step_id": gate["step_id"]},
            )
        given = (recorded.by, recorded.data) if recorded is not None and recorded.status == "answered" else (None, None)
        # One whose run has ended meanwhile needs none.
        with suppress(ConflictError):
            await self._engine.answer_gate(gate["execution_id"], gate["gate_id"], answer, *given)
        if recorded is not None:
            self._timeline.played(gate_key(path, recorded))
