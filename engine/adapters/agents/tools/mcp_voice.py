"""What an MCP server let be heard of itself while one connection stood: the end of a story that an error tells."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.adapters.agents.replies import bounded_text
from engine.masking import mask_text

if TYPE_CHECKING:
    from engine.domain.agent_call import AgentFailure

__all__ = ["ServerVoice"]

_LINES: Final = 10
_LINE_CHARS: Final = 300
_STORY_CHARS: Final = 1_000
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ServerVoice:
    """Kept by the transport, read when something failed. No secret that was resolved here is in its texts."""

    server: str
    exit_code: int | None = None
    stray_lines: int = 0
    """Lines of standard output that are no messages."""
    refusal: AgentFailure | None = None
    """Why the way to it is closed, when the transport knows: the last such reason."""
    _first_stray: str = ""
    _last_lines: deque[str] = field(default_factory=lambda: deque[str](maxlen=_LINES))

    def add_error_line(self, line: bytes) -> None:
        """Keep a line of its standard error, and log it at debug level."""
        text = _clean(line)
        if text:
            self._last_lines.append(text)
            _logger.debug("MCP server %s: %s", self.server, text)

    def add_stray_line(self, line: bytes) -> None:
        """Count a line of its standard output that is no message."""
        text = _clean(line)
        if text:
            self.stray_lines += 1
            self._first_stray = self._first_stray or text
            _logger.debug("MCP server %s wrote a line to its standard output that is no message: %s", self.server, text)

    def story(self) -> str:
        """Return what there is to say, beginning with ``; ``, or an empty text."""
        parts: list[str] = []
        if self.exit_code is not None:
            parts.append(f"its exit code is {self.exit_code}")
        if self.stray_lines:
            parts.append(
                f"{self.stray_lines} lines of its standard output are no JSON-RPC messages, the first is"
                f" {self._first_stray!r}"
            )
        if self._last_lines:
            last = "\n".join(self._last_lines)
            shown = last if len(last) <= _STORY_CHARS else f"…{last[-_STORY_CHARS:]}"
            parts.append(f"its last lines of standard error are:\n{shown}")
        return "".join(f"; {part}" for part in parts)


def _clean(line: bytes) -> str:
    text = mask_text(line.decode("utf-8", "replace").rstrip())
    return bounded_text("".join(char if char.isprintable() else " " for char in text).strip(), _LINE_CHARS)
