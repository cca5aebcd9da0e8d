"""A call handed on: what stands between an agent and its call changes what it must, and forwards the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonValue

__all__ = ["ForwardedCall"]


class ForwardedCall:
    """An ``AgentCall`` that is another one in all that a subclass does not override.

    Args:
        call: the other one.
    """

    def __init__(self, call: AgentCall) -> None:
        self._call = call

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
        """As the call's."""
        return self._call.cancelled

    def heartbeat(self, progress: JsonValue = None) -> None:
        """As the call's."""
        self._call.heartbeat(progress)

    def emit(self, text: str) -> None:
        """As the call's."""
        self._call.emit(text)
