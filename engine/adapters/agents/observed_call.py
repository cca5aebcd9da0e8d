"""The call as users' code sees it: cancelled also when Baton stopped waiting, and silent from then on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonValue

__all__ = ["ObservedCall"]


class ObservedCall:
    """An ``AgentCall`` for one function's run.

    Args:
        call: the call that the function works for.
    """

    def __init__(self, call: AgentCall) -> None:
        self._call = call
        self._given_up = threading.Event()

    def cancel(self) -> None:
        """Tell the function that nobody waits for it any more."""
        self._given_up.set()

    @property
    def execution_id(self) -> str:
        """As the call's."""
        return self._call.execution_id

    @property
    def step_id(self) -> str:
        """As the call's."""
        return self._call.step_id

    @property
    def attempt(self) -> int:
        """As the call's."""
        return self._call.attempt

    @property
    def idempotency_key(self) -> str:
        """As the call's."""
        return self._call.idempotency_key

    @property
    def deadline(self) -> datetime:
        """As the call's."""
        return self._call.deadline

    @property
    def context(self) -> list[JsonValue]:
        """As the call's."""
        return self._call.context

    @property
    def cancelled(self) -> bool:
        """Whether the call's end was asked for, or nobody waits any more."""
        return self._given_up.is_set() or self._call.cancelled

    def heartbeat(self, progress: JsonValue = None) -> None:
        """As the call's, until nobody waits any more."""
        if not self._given_up.is_set():
            self._call.heartbeat(progress)

    def emit(self, text: str) -> None:
        """As the call's, until nobody waits any more."""
        if not self._given_up.is_set():
            self._call.emit(text)
