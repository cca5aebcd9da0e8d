"""Pieces of a streamed answer, put together before the libraries see them.

A model sends an event for each token, and the libraries take a third of a millisecond for each event: a hundred
streams at once would take more than a core. Text is shown a few times a second at most, so deltas that came within a
tenth of a second become one, and every other event passes as it is, in its place.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final, cast

import pydantic_core

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MergedDeltas"]

_WINDOW_SECONDS: Final = 0.1
_MAX_UNREAD_BYTES: Final = 1024 * 1024
_DATA: Final = b"data: "
_DONE: Final = b"data: [DONE]"
_END: Final = b"\n\n"

_Event = dict[str, object]


class MergedDeltas:
    """Takes the bytes of a stream of events, and gives back the bytes of fewer.

    What is no event of the Chat Completions API, or is in another framing than ``data: {...}`` and a blank line, is
    given back unchanged. The mark at the end, ``data: [DONE]``, is taken out: a reader that goes on to the end of the
    bytes leaves the connection fit for the next request.

    Args:
        clock: seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_done = False
        """Whether the mark at the end has come."""
        self._clock = clock
        self._unread = b""
        self._is_foreign = False
        self._held: _Event | None = None
        self._held_pieces: list[str] = []
        self._held_call: int | None = None
        """Index of the tool's call whose arguments are held; None for text."""
        self._held_until = 0.0

    def take(self, part: bytes) -> bytes:
        """Return what can be passed on after ``part``: often nothing."""
        if b"\r" in part or self._is_foreign or len(self._unread) > _MAX_UNREAD_BYTES:
            # Other framing, or an event that is worth no waiting for.
            self._is_foreign = self._is_foreign or b"\r" in part
            return self.rest() + part
        *events, self._unread = (self._unread + part).split(_END)
        ready = [self._event(event) for event in events]
        if self._held is not None and self._clock() >= self._held_until:
            ready.append(self._release())
        return b"".join(ready)

    def rest(self) -> bytes:
        """Return what is left at the stream's end."""
        unread, self._unread = self._unread, b""
        return self._release() + unread

    def _event(self, raw: bytes) -> bytes:
        if raw == _DONE:
            self.is_done = True
            return self._release()
        event = _parsed(raw)
        found = None if event is None else _delta(event)
        if event is None or found is None:
            return self._release() + raw + _END
        call, piece = found
        released = b""
        if self._held is None or call != self._held_call:
            released = self._release()
            self._held, self._held_call = event, call
            self._held_until = self._clock() + _WINDOW_SECONDS
        self._held_pieces.append(piece)
        return released

    def _release(self) -> bytes:
        held, self._held = self._held, None
        if held is None:
            return b""
        text = "".join(self._held_pieces)
        self._held_pieces.clear()
        choice = cast("list[_Event]", held["choices"])[0]
        if self._held_call is None:
            choice["delta"] = {"content": text}
        else:
            choice["delta"] = {"tool_calls": [{"index": self._held_call, "function": {"arguments": text}}]}
        return _DATA + json.dumps(held).encode() + _END


def _parsed(raw: bytes) -> _Event | None:
    if not raw.startswith(_DATA) or b"\n" in raw or b"\r" in raw:
        return None
    try:
        event: object = pydantic_core.from_json(raw[len(_DATA) :])
    except ValueError:
        return None
    return cast("_Event", event) if isinstance(event, dict) else None


def _delta(event: _Event) -> tuple[int | None, str] | None:
    """Return the index of the tool's call (None: text) and the piece, when the event is nothing but a piece."""
    choice = _only(event.get("choices"))
    if choice is None or event.get("usage") or event.get("error"):
        return None
    delta = choice.get("delta")
    if not isinstance(delta, dict) or any(value for key, value in choice.items() if key != "delta"):
        return None
    found = cast("_Event", delta)
    content = found.get("content")
    if isinstance(content, str) and len(found) == 1:
        return None, content
    call = _only(found.get("tool_calls")) if len(found) == 1 else None
    function = None if call is None or call.keys() != {"index", "function"} else call["function"]
    if call is None or not isinstance(function, dict) or cast("_Event", function).keys() != {"arguments"}:
        return None
    index, arguments = call["index"], cast("_Event", function)["arguments"]
    return (index, arguments) if isinstance(index, int) and isinstance(arguments, str) else None


def _only(value: object) -> _Event | None:
    """Return the item of a list that holds one object and nothing else."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    only = items[0] if len(items) == 1 else None
    return cast("_Event", only) if isinstance(only, dict) else None
