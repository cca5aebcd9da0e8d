"""A model's text on its way to whoever watches: whole lines, at most five pieces a second, nothing twice.

A model gives a few characters at a time; one event for each would drown the stream of an execution.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProgressText"]

_PAUSE_SECONDS: Final = 0.2
_MAX_PIECE_CHARS: Final = 2000
"""As much as one event of progress holds."""


class ProgressText:
    """Collects text and emits it in pieces that, put together, are the text.

    A piece ends with a line where one has ended, after 200 ms wherever the text is by then.

    Args:
        emit: takes a piece of at most 2,000 characters.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._waiting = ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        """Take the next characters."""
        if not text:
            return
        self._waiting += text
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._emit_lines)

    def flush(self) -> None:
        """Emit what is left."""
        self._stop_timer()
        text, self._waiting = self._waiting, ""
        self._emit_pieces(text)

    def discard(self) -> None:
        """Emit no more: the call was given up."""
        self._stop_timer()
        self._waiting = ""

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _emit_lines(self) -> None:
        end = self._waiting.rfind("\n") + 1 or len(self._waiting)
        text, rest = self._waiting[:end], self._waiting[end:]
        self._timer, self._waiting = None, ""
        self._emit_pieces(text)
        self.add(rest)

    def _emit_pieces(self, text: str) -> None:
        while text:
            end = len(text)
            if end > _MAX_PIECE_CHARS:
                end = text.rfind("\n", 0, _MAX_PIECE_CHARS) + 1 or _MAX_PIECE_CHARS
            self._emit(text[:end])
            text = text[end:]
