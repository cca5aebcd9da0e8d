"""A template is compiled once and its result is never read again as an expression.

``${path}`` inside a string is replaced by the value found there, ``${path ?? literal}`` falls back to the
literal when the path is missing or null, and ``$${`` is a literal ``${`` (so a dollar sign can't stand
directly before a ``${path}``). A string that is exactly one ``${path}`` keeps the value's type; in longer
text strings stand as they are and everything else as compact JSON. Keys of objects are never expanded.

A resolved value may share containers with the scope and with the template: it is read, never changed.
The size of a result is counted while it is built, as if it were written out, so that values which repeat
each other stop at the limit before they exist.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from engine.domain.paths import (
    MISSING,
    ExpressionError,
    Missing,
    Path,
    RootsScope,
    Scanner,
    Scope,
    parse_path,
    read_path,
    render_path,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from engine.domain.json import JsonValue

__all__ = [
    "HANDOFF_ROOTS",
    "INPUT_ROOTS",
    "MAX_TEMPLATE_CHARS",
    "MAX_TEMPLATE_DEPTH",
    "MAX_TEMPLATE_NODES",
    "MAX_TEMPLATE_PATHS",
    "MAX_TEXT_CHARS",
    "MISSING",
    "OUTPUT_ROOTS",
    "ExpressionError",
    "Missing",
    "MissingPathError",
    "Path",
    "ResolvedTooLargeError",
    "RootsScope",
    "Scope",
    "Template",
    "compile_template",
    "json_size",
    "parse_path",
    "read_path",
    "render_path",
    "walk",
]

INPUT_ROOTS: Final = ("input", "steps", "execution", "context")
"""What an input mapping reads; a ``foreach`` adds ``item``, ``index`` and its own name, a ``repeat_until``
``iteration``."""
OUTPUT_ROOTS: Final = ("output", "input", "steps", "execution")
"""What an output mapping and ``repeat_until`` read."""
HANDOFF_ROOTS: Final = ("source_output", "input", "execution")
"""What a handoff's trigger reads; it belongs to agents, so not the steps of one workflow."""

MAX_TEMPLATE_CHARS: Final = 65_536
"""Longest string that holds a ``${``; a string without one may have any length."""
MAX_TEMPLATE_DEPTH: Final = 64
"""Most containers inside each other in a template."""
MAX_TEMPLATE_NODES: Final = 20_000
"""Most values in a template, containers and scalars."""
MAX_TEMPLATE_PATHS: Final = 20_000
"""Most ``${}`` in a template, repeated ones counted."""
MAX_TEXT_CHARS: Final = 64 * 1024 * 1024
"""Longest interpolated text when the caller gives no limit: the top size of any value."""

_quote: Final = json.JSONEncoder(ensure_ascii=False).encode


class MissingPathError(LookupError):
    """Nothing is at ``path``, and it has no default."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"nothing is at {self.path.text}; a default helps: ${{{self.path.text} ?? null}}"


class ResolvedTooLargeError(ValueError):
    """What a template yields would pass ``limit_bytes`` of JSON text."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the resolved value passes {self.limit_bytes} bytes; map fewer or smaller values"


def json_size(value: JsonValue, limit: int | None = None) -> int:
    """Count the UTF-8 bytes of the compact JSON text of ``value`` without building it.

    A value that occurs twice counts twice. Above ``limit`` counting stops: the answer is then some number
    greater than the limit.

    Raises:
        TypeError: something in it is no JSON.
    """
    size = 0
    for piece in _json_pieces(value):
        size += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
        if limit is not None and size > limit:
            break
    return size


def _json_pieces(value: JsonValue) -> Iterator[str]:
    # A stack of iterators instead of recursion: a value's depth is the agent's to choose.
    outer: list[tuple[Iterator[tuple[str, JsonValue]], str]] = []
    children: Iterator[tuple[str, JsonValue]] = iter((("", value),))
    end = ""
    while True:
        for prefix, child in children:
            if type(child) is dict or type(child) is list:
                outer.append((children, end))
                is_object = type(child) is dict
                yield prefix + ("{" if is_object else "[")
                children, end = _members(child), "}" if is_object else "]"
                break
            yield prefix + _scalar_json(child)
        else:
            yield end
            if not outer:
                return
            children, end = outer.pop()


def _members(container: dict[str, JsonValue] | list[JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    comma = ""
    if isinstance(container, dict):
        for key, value in container.items():
            yield f"{comma}{_quote(key)}:", value
            comma = ","
    else:
        for value in container:
            yield comma, value
            comma = ","


def _scalar_json(value: JsonValue) -> str:
    if isinstance(value, str):
        return _quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    raise TypeError(f"{type(value).__name__} is no JSON value; give plain dicts, lists and scalars")


class _Meter:
    """The bytes that a result may still take; without a limit nothing is counted."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def charge(self, size: int) -> None:
        self.used += size
        if self.used > self.limit:
            raise ResolvedTooLargeError(self.limit)

    def charge_value(self, value: JsonValue) -> None:
        self.charge(json_size(value, self.limit - self.used))


class _Node(Protocol):
    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    value: JsonValue
    size: int

    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue:  # noqa: ARG002 - it reads nothing
        if meter is not None:
            meter.charge(self.size)
        return self.value


@dataclass(frozen=True, slots=True, eq=False)
class _Single:
    path: Path

    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue:
        value = _found(scope, self.path)
        if meter is not None:
            meter.charge_value(value)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    parts: tuple[str | Path, ...]

    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue:
        limit = MAX_TEXT_CHARS if meter is None else meter.limit
        room = limit if meter is None else limit - meter.used
        pieces: list[str] = []
        for part in self.parts:
            for piece in (part,) if isinstance(part, str) else _text_pieces(_found(scope, part)):
                room -= len(piece)
                if room < 0:
                    raise ResolvedTooLargeError(limit)
                pieces.append(piece)
        text = "".join(pieces)
        if meter is not None:
            meter.charge_value(text)
        return text


@dataclass(frozen=True, slots=True, eq=False)
class _List:
    items: tuple[_Node, ...]
    size: int

    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue:
        if meter is not None:
            meter.charge(self.size)
        return [item.resolve(scope, meter) for item in self.items]


@dataclass(frozen=True, slots=True, eq=False)
class _Object:
    members: tuple[tuple[str, _Node], ...]
    size: int

    def resolve(self, scope: Scope, meter: _Meter | None) -> JsonValue:
        if meter is not None:
            meter.charge(self.size)
        return {key: node.resolve(scope, meter) for key, node in self.members}


def _found(scope: Scope, path: Path) -> JsonValue:
    value = read_path(scope, path)
    if value is MISSING:
        raise MissingPathError(path)
    return value


def _text_pieces(value: JsonValue) -> Iterator[str]:
    return iter((value,)) if isinstance(value, str) else _json_pieces(value)


class Template:
    """A compiled mapping value; made by ``compile_template``, never changed, used for many results.

    Attributes:
        paths: the distinct paths (a path with another default is another one), in order of appearance.
        single: the path when the whole value is a string that is exactly one ``${path}``, else None.
    """

    __slots__ = ("_root", "paths", "single")

    def __init__(self, root: _Node, paths: tuple[Path, ...]) -> None:
        self._root = root
        self.paths = paths
        self.single = root.path if isinstance(root, _Single) else None

    def resolve(self, scope: Scope, max_bytes: int | None = None) -> JsonValue:
        """Replace each path by its value.

        Args:
            scope: where the values are.
            max_bytes: most bytes the result may take as compact JSON text. None counts nothing, and holds
                only each interpolated text to ``MAX_TEXT_CHARS`` characters.

        Returns:
            The value, to be read only: its containers may be the scope's own.

        Raises:
            MissingPathError: nothing is at a path that has no default.
            ResolvedTooLargeError: the result would pass ``max_bytes``.
        """
        return self._root.resolve(scope, None if max_bytes is None else _Meter(max_bytes))


def compile_template(value: JsonValue, *, roots: Collection[str] | None = None) -> Template:
    """Compile any JSON value whose strings may hold ``${}``; the value itself is copied.

    Args:
        value: the mapping, or one value of it.
        roots: the roots that its paths may have; None allows any.

    Raises:
        ExpressionError: an expression that can't be read, an unknown root, a value that is no JSON, or a
            limit of this module passed. ``text`` is the string at fault, empty when it is no string.
    """
    compiler = _Compiler(roots)
    root = compiler.node(value, 0)
    return Template(root, tuple(compiler.paths.values()))


class _Compiler:
    """One compilation: what it met so far, against the limits."""

    def __init__(self, roots: Collection[str] | None) -> None:
        # Keyed by the default's text too: 1, 1.0 and true are equal as keys, but not as defaults.
        self.paths: dict[tuple[str, str], Path] = {}
        self._roots = roots
        self._nodes = 0
        self._references = 0

    def node(self, value: JsonValue, depth: int) -> _Node:
        self._nodes += 1
        if self._nodes > MAX_TEMPLATE_NODES:
            raise ExpressionError(f"the mapping has more than {MAX_TEMPLATE_NODES} values; split it", 0, "")
        if isinstance(value, str):
            return self._text(value)
        if not isinstance(value, (dict, list)):
            return self._constant(value)
        if depth == MAX_TEMPLATE_DEPTH:
            raise ExpressionError(f"the mapping is nested deeper than {MAX_TEMPLATE_DEPTH} levels", 0, "")
        separators = 2 + max(0, len(value) - 1)
        if isinstance(value, list):
            items = tuple(self.node(item, depth + 1) for item in value)
            if all(isinstance(item, _Constant) for item in items):
                return self._constant([item.value for item in items if isinstance(item, _Constant)])
            return _List(items, separators)
        members = tuple((key, self.node(item, depth + 1)) for key, item in value.items())
        if all(isinstance(node, _Constant) for _, node in members):
            return self._constant({key: node.value for key, node in members if isinstance(node, _Constant)})
        return _Object(members, separators + sum(json_size(key) + 1 for key in value))

    def _constant(self, value: JsonValue) -> _Constant:
        try:
            return _Constant(value, json_size(value))
        except TypeError as error:
            raise ExpressionError(str(error), 0, "") from error

    def _text(self, text: str) -> _Node:
        if "${" not in text:
            return self._constant(text)
        scanner = Scanner(text, limit=MAX_TEMPLATE_CHARS, roots=self._roots, advice="Write $${ for a literal ${.")
        parts: list[str | Path] = []
        literal: list[str] = []
        while (found := text.find("${", scanner.position)) >= 0:
            is_escaped = found > scanner.position and text[found - 1] == "$"
            literal.append(text[scanner.position : found - 1 if is_escaped else found])
            scanner.position = found + 2
            if is_escaped:
                literal.append("${")
                continue
            before = "".join(literal)
            parts.extend((before, self._reference(scanner)) if before else (self._reference(scanner),))
            literal.clear()
        literal.append(text[scanner.position :])
        if after := "".join(literal):
            parts.append(after)
        first = parts[0]
        if len(parts) > 1:
            return _Text(tuple(parts))
        return _Single(first) if isinstance(first, Path) else self._constant(first)

    def _reference(self, scanner: Scanner) -> Path:
        start = scanner.position - 2
        self._references += 1
        if self._references > MAX_TEMPLATE_PATHS:
            raise scanner.error(f"the mapping has more than {MAX_TEMPLATE_PATHS} ${{}}; split it", start)
        path = scanner.reference()
        self.paths.setdefault((path.text, repr(path.default)), path)
        return path
