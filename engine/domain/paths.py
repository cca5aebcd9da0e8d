r"""A path is data: a root, keys and indexes into JSON, read by a hand-written scanner.

``root.name["any key"][0]``: a name is ASCII letters, digits, ``_`` and ``-``; every other key is quoted, with
single or double quotes, JSON's escapes and ``\'``. The scanner only moves forward, so reading is linear in
the text's length, and lookups go through exact ``dict`` and ``list``, never through attributes: nothing that
a text says can run.

Quoted text that is a value (a default, a literal of a condition) refuses a bare ``${``, because nothing is
expanded there; ``$${`` writes one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from engine.domain.json import JsonValue

__all__ = [
    "MAX_EXPRESSION_CHARS",
    "MAX_INDEX_DIGITS",
    "MAX_NUMBER_CHARS",
    "MAX_PATH_SEGMENTS",
    "MISSING",
    "ExpressionError",
    "Missing",
    "Path",
    "RootsScope",
    "Scanner",
    "Scope",
    "parse_path",
    "read_path",
    "render_path",
    "walk",
]

MAX_EXPRESSION_CHARS: Final = 8_192
"""Longest condition or bare path."""
MAX_PATH_SEGMENTS: Final = 64
MAX_INDEX_DIGITS: Final = 15
MAX_NUMBER_CHARS: Final = 64

_DIGITS: Final = frozenset("0123456789")
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_NAME_START: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_NAME_CHARS: Final = _NAME_START | _DIGITS | {"-"}
_SPACES: Final = frozenset(" \t\r\n")
_ESCAPES: Final = {
    '"': '"',
    "'": "'",
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_LITERAL_WORDS: Final[dict[str, bool | None]] = {"null": None, "true": True, "false": False}
_quote: Final = json.JSONEncoder(ensure_ascii=False).encode


class Missing(Enum):
    """The type of ``MISSING``: no such path, as opposed to a null that is there."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING


class ExpressionError(ValueError):
    """A text that is no expression, or passes a limit.

    Attributes:
        message: what is wrong and what to write instead.
        position: 0-based index of the offending character in ``text``.
        text: the whole string as it was given.
    """

    def __init__(self, message: str, position: int, text: str) -> None:
        super().__init__(message, position, text)
        self.message = message
        self.position = position
        self.text = text

    def __str__(self) -> str:
        return f"{self.message} (at character {self.position + 1})"


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path.

    Attributes:
        root: the first name: ``input``, ``steps``, ``output`` and so on.
        segments: keys (``str``) and list indexes (``int``) after the root.
        text: the path as ``render_path`` writes it, without ``${}`` and default.
        default: the scalar after ``??``; ``MISSING`` when none is given. It stands for null as well.
    """

    root: str
    segments: tuple[str | int, ...]
    text: str
    default: JsonValue | Missing = MISSING


class Scope(Protocol):
    """Where paths find their values. An implementation may raise its own errors, which pass through."""

    def lookup(self, path: Path) -> JsonValue | Missing:
        """Return the value at ``path``, ignoring its default; ``MISSING`` when nothing is there."""
        ...


class RootsScope:
    """A scope over a mapping from root to value; it keeps the mapping, and copies nothing."""

    __slots__ = ("_roots",)

    def __init__(self, roots: Mapping[str, JsonValue]) -> None:
        self._roots = roots

    def lookup(self, path: Path) -> JsonValue | Missing:
        """Return the value at ``path``, or ``MISSING``."""
        value = self._roots.get(path.root, MISSING)
        return value if value is MISSING else walk(value, path.segments)


def walk(value: JsonValue, segments: Sequence[str | int]) -> JsonValue | Missing:
    """Follow ``segments`` into ``value``: a string is a key of a dict, an integer an index of a list.

    Anything else, a negative index too, is ``MISSING``. Subclasses of dict and list are not entered.
    """
    for segment in segments:
        if type(segment) is str:
            if type(value) is not dict or segment not in value:
                return MISSING
            value = value[segment]
        elif type(segment) is int and type(value) is list and 0 <= segment < len(value):
            value = value[segment]
        else:
            return MISSING
    return value


def read_path(scope: Scope, path: Path) -> JsonValue | Missing:
    """Look ``path`` up and apply its default to a missing or null value."""
    value = scope.lookup(path)
    if value is None or value is MISSING:
        return value if path.default is MISSING else path.default
    return value


def render_path(root: str, segments: Sequence[str | int]) -> str:
    """Write a path so that ``parse_path`` gives it back: ``steps.a.output``, ``input["any key"][0]``."""
    written = [root]
    for segment in segments:
        if isinstance(segment, int):
            written.append(f"[{segment}]")
        elif segment and all(char in _NAME_CHARS for char in segment):
            written.append(f".{segment}")
        else:
            written.append(f"[{_quote(segment)}]")
    return "".join(written)


def parse_path(text: str) -> Path:
    """Parse a bare path, without ``${}`` and default, of any root.

    Raises:
        ExpressionError: it is no path, or longer than ``MAX_EXPRESSION_CHARS``.
    """
    scanner = Scanner(text, limit=MAX_EXPRESSION_CHARS)
    scanner.skip_spaces()
    path = scanner.path()
    scanner.skip_spaces()
    if not scanner.at_end():
        raise scanner.error(f"expected '.', '[' or the end of the path, found {scanner.found()}")
    return path


class Scanner:
    """A cursor over one text that moves forward only; templates and conditions share it.

    Args:
        text: what to read.
        limit: most characters ``text`` may have.
        roots: the roots that a path may have; None allows any.
        known_words: more words to suggest when a root is unknown.
        advice: a sentence to end an unknown root's message with.
    """

    __slots__ = ("_advice", "_known_words", "_roots", "position", "text")

    def __init__(
        self,
        text: str,
        *,
        limit: int,
        roots: Collection[str] | None = None,
        known_words: Iterable[str] = (),
        advice: str = "",
    ) -> None:
        self.text = text
        self.position = 0
        self._roots = roots
        self._known_words = known_words
        self._advice = advice
        if len(text) > limit:
            raise self.error(f"the text has {len(text)} characters; at most {limit} are allowed", limit)

    def error(self, message: str, position: int | None = None) -> ExpressionError:
        """Make the error for ``position``, by default the current one."""
        return ExpressionError(message, self.position if position is None else position, self.text)

    def found(self) -> str:
        """Describe what stands here, for a message."""
        if self.at_end():
            return "the end"
        return repr(self.peek_word()[:40] or self.text[self.position])

    def at_end(self) -> bool:
        """Tell whether all of the text is read."""
        return self.position >= len(self.text)

    def skip_spaces(self) -> None:
        """Go to the next character that is no white space."""
        while self.position < len(self.text) and self.text[self.position] in _SPACES:
            self.position += 1

    def peek(self) -> str:
        """Return the character here, or the empty string at the end."""
        return self.text[self.position : self.position + 1]

    def take(self, symbol: str) -> bool:
        """Step over ``symbol`` if it stands here."""
        if not self.text.startswith(symbol, self.position):
            return False
        self.position += len(symbol)
        return True

    def expect(self, symbol: str, place: str) -> None:
        """Step over white space and ``symbol``, or raise an error that names the place."""
        self.skip_spaces()
        if not self.take(symbol):
            raise self.error(f"expected {symbol!r} {place}, found {self.found()}")

    def peek_word(self) -> str:
        """Return the run of name characters that starts here; it may be empty."""
        end = self.position
        while end < len(self.text) and self.text[end] in _NAME_CHARS:
            end += 1
        return self.text[self.position : end]

    def reference(self) -> Path:
        """Read ``path }`` or ``path ?? literal }``, the rest of a ``${``."""
        self.skip_spaces()
        path = self.path()
        self.skip_spaces()
        if self.take("??"):
            path = Path(path.root, path.segments, path.text, self.literal())
        self.expect("}", "after the path (${} holds one path, and ?? with a literal at most)")
        return path

    def path(self) -> Path:
        """Read a root and its segments, and check the root."""
        start = self.position
        root = self.peek_word()
        if not root or root[0] not in _NAME_START:
            raise self.error(f"expected a path such as input.name, found {self.found()}")
        if self._roots is not None and root not in self._roots:
            raise self._unknown_root(root)
        self.position += len(root)
        segments: list[str | int] = []
        while self.peek() in (".", "["):
            if len(segments) == MAX_PATH_SEGMENTS:
                raise self.error(f"the path has more than {MAX_PATH_SEGMENTS} segments", start)
            segments.append(self._name_segment() if self.take(".") else self._bracket_segment())
        return Path(root, tuple(segments), render_path(root, segments))

    def _unknown_root(self, root: str) -> ExpressionError:
        from difflib import get_close_matches

        roots = sorted(self._roots or ())
        shown = root if len(root) <= 40 else f"{root[:40]}..."
        near = get_close_matches(root[:80], [*roots, *self._known_words], n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        readable = ", ".join(roots)
        return self.error(f"unknown root {shown!r}{guess} Readable here: {readable}. {self._advice}".rstrip())

    def _name_segment(self) -> str:
        name = self.peek_word()
        if not name:
            raise self.error(f"expected a name after '.', found {self.found()}; other keys go in ['...']")
        self.position += len(name)
        return name

    def _bracket_segment(self) -> str | int:
        self.position += 1
        self.skip_spaces()
        if self.peek() in ('"', "'"):
            segment: str | int = self.string()
        else:
            start = self.position
            while self.peek() in _DIGITS:
                self.position += 1
            digits = self.text[start : self.position]
            if not digits:
                raise self.error(f'expected an index from 0 or a quoted key after "[", found {self.found()}')
            if len(digits) > MAX_INDEX_DIGITS or (digits[0] == "0" and len(digits) > 1):
                raise self.error("write the index without leading zeros and with at most 15 digits", start)
            segment = int(digits)
        self.expect("]", "after the index or key")
        return segment

    def literal(self) -> str | float | bool | None:
        """Read a JSON scalar: null, true, false, a number or quoted text."""
        self.skip_spaces()
        char = self.peek()
        if char in ('"', "'"):
            return self.quoted_value()
        if char == "-" or char in _DIGITS:
            return self.number()
        word = self.peek_word()
        if word not in _LITERAL_WORDS:
            raise self.error(f"expected null, true, false, a number or quoted text, found {self.found()}")
        self.position += len(word)
        return _LITERAL_WORDS[word]

    def quoted_value(self) -> str:
        """Read quoted text that is a value: a bare ``${`` in it is refused, ``$${`` is a literal ``${``."""
        start = self.position
        value = self.string()
        if "${" in value.replace("$${", ""):
            message = "nothing is expanded inside quotes; write the path without them, or $${ for a literal ${"
            raise self.error(message, start)
        return value.replace("$${", "${")

    def string(self) -> str:
        """Read quoted text and its escapes."""
        opening = self.position
        quote = self.text[opening]
        self.position += 1
        pieces: list[str] = []
        start = self.position
        while (char := self.peek()) != quote:
            if not char:
                raise self.error(f"the text opened here has no closing {quote}", opening)
            if char == "\\":
                pieces.append(self.text[start : self.position])
                pieces.append(self._escape())
                start = self.position
            else:
                self.position += 1
        pieces.append(self.text[start : self.position])
        self.position += 1
        return "".join(pieces)

    def _escape(self) -> str:
        start = self.position
        char = self.text[start + 1 : start + 2]
        if char in _ESCAPES:
            self.position += 2
            return _ESCAPES[char]
        code = self._code_unit()
        if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.position):
            low = self._code_unit()
            if 0xDC00 <= low < 0xE000:
                return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
        if 0xD800 <= code < 0xE000:
            raise self.error("half of a surrogate pair; write both halves or the character itself", start)
        return chr(code)

    def _code_unit(self) -> int:
        digits = self.text[self.position + 2 : self.position + 6]
        known = self.text.startswith("\\u", self.position) and len(digits) == 4
        if not known or not all(digit in _HEX_DIGITS for digit in digits):
            raise self.error("unknown escape; use those of JSON, and double a backslash that is meant as one")
        self.position += 6
        return int(digits, 16)

    def number(self) -> float:
        """Read a JSON number; without fraction and exponent it is an ``int``."""
        start = self.position
        self.take("-")
        whole = self._digits()
        fraction = self._digits() if self.take(".") else None
        exponent = None
        if self.peek() in ("e", "E"):
            self.position += 1
            if not self.take("-"):
                self.take("+")
            exponent = self._digits()
        written = self.text[start : self.position]
        incomplete = not whole or fraction == "" or exponent == "" or self.peek() in _NAME_CHARS
        if incomplete or (whole[0] == "0" and len(whole) > 1):
            raise self.error("this is no number; write it as JSON does, and text in quotes", start)
        if len(written) > MAX_NUMBER_CHARS:
            raise self.error(f"the number has more than {MAX_NUMBER_CHARS} characters", start)
        if fraction is None and exponent is None:
            return int(written)
        value = float(written)
        if math.isinf(value):
            raise self.error("the number is too large", start)
        return value

    def _digits(self) -> str:
        start = self.position
        while self.peek() in _DIGITS:
            self.position += 1
        return self.text[start : self.position]
