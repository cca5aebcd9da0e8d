"""Live state and progress events of open executions: fast, and never the only copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import timedelta

    from engine.domain.execution import Event, LiveExecution, LiveState, LiveStep


class StateStore(Protocol):
    """Live state. All of it may vanish at any time; callers then rebuild it from records.

    Entries carry tokens: one with a smaller token never replaces one with a greater. Everything written has a time to
    live. Raises ``StoreError`` when the store does not answer; callers of writes log that and go on.
    """

    async def record_transition(
        self,
        execution_id: str,
        *,
        execution: LiveExecution | None = None,
        steps: list[LiveStep] | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Write what changed in one round trip: the head, step entries, events appended to the stream.

        An event whose id the stream holds already may be appended again; readers drop repeats by id.
        """
        ...

    async def get_live_state(self, execution_id: str) -> LiveState | None:
        """Return the state, or None when the head is not there (steps without a head count as nothing)."""
        ...

    async def get_live_states(self, execution_ids: list[str]) -> dict[str, LiveState]:
        """Return the states that are there, by id, in one round trip."""
        ...

    async def read_events(
        self, execution_id: str, *, after: str | None, limit: int, wait: timedelta
    ) -> tuple[list[Event], str | None]:
        """Return events in order of writing behind the stream position ``after`` (None: from the start).

        Waits up to ``wait`` for one when there is none. Returns them with the position of the last one
        (``after`` itself when none came). A position of a stream that has vanished starts over.
        """
        ...
