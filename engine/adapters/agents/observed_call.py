"""The call as users' code sees it: cancelled also when Baton stopped waiting, and silent from then on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engine.adapters.agents.forwarded_call import ForwardedCall

if TYPE_CHECKING:
    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonValue

__all__ = ["ObservedCall"]


class ObservedCall(ForwardedCall):
    """An ``AgentCall`` for one function's run.

    Args:
        call: the call that the function works for.
    """

    def __init__(self, call: AgentCall) -> None:
        super().__init__(call)
        self._given_up = threading.Event()

    def cancel(self) -> None:
        """Tell the function that nobody waits for it any more."""
        self._given_up.set()

    @property
    def cancelled(self) -> bool:
        """Whether the call's end was asked for, or nobody waits any more."""
        return self._given_up.is_set() or super().cancelled

    def heartbeat(self, progress: JsonValue = None) -> None:
        """As the call's, until nobody waits any more."""
        if not self._given_up.is_set():
            super().heartbeat(progress)

    def emit(self, text: str) -> None:
        """As the call's, until nobody waits any more."""
        if not self._given_up.is_set():
            super().emit(text)
