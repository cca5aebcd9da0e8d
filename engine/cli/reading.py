"""What the user hands over in files and options, as JSON values.

YAML is read by the rules of JSON: a plain word is a number only where JSON says so, true, false and null are what
YAML 1.2 calls so, and all else stays text. YAML 1.1 would turn the key `on` of a fallback into true, `12:30` into
750 and a date into an object that no store keeps. A key given twice is refused, because one of the two would be lost.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml

from engine.domain.json import json_fault
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from engine.domain.json import JsonObject, JsonValue


class _JsonWordsLoader(yaml.SafeLoader):
    """The safe loader with JSON's scalars and without repeated keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", list("-0123456789")),
    ("merge", r"<<", ["<"]),
):
    _JsonWordsLoader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType] - PyYAML's stub has no types
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def read_object(source: str, what: str) -> JsonObject:
    """Read one object from a YAML or JSON file, or from standard input for ``-``.

    Args:
        source: the path, or ``-``.
        what: what it should hold, for messages: ``a workflow definition``.

    Raises:
        InvalidInputError: no such file, not readable, or not an object.
    """
    value = _parse(_text_of(source), source)
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{_name(source)} must hold {what}: keys and values, not {type(value).__name__}", {"path": source}
        )
    return value


def read_objects(source: str, what: str) -> list[JsonObject]:
    """Read one object or a list of them; otherwise as `read_object`."""
    value = _parse(_text_of(source), source)
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, dict) for item in items):
        raise InvalidInputError(f"{_name(source)} must hold {what}, one or a list of them", {"path": source})
    return cast("list[JsonObject]", items)


def read_input(text: str | None, pairs: Sequence[str]) -> JsonObject:
    """Return the input of an execution.

    Args:
        text: ``@file``, ``-`` for standard input, or a JSON object; None for none.
        pairs: ``key=value``; they win over ``text``. See `merge_pairs`.

    Raises:
        InvalidInputError: not an object, or a pair that can't be used.
    """
    value: JsonObject = {}
    if text is not None and (text == "-" or text.startswith("@")):
        value = read_object(text.removeprefix("@"), "the input")
    elif text is not None:
        parsed = _parse_json(text, "--input")
        if not isinstance(parsed, dict):
            raise InvalidInputError('--input takes @FILE, - or a JSON object such as \'{"path": "src"}\'')
        value = parsed
    return merge_pairs(value, pairs)


def read_value(text: str, option: str) -> JsonValue:
    """Return the value of an option: ``@file``, ``-`` for standard input, or JSON.

    Raises:
        InvalidInputError: none of these.
    """
    if text == "-" or text.startswith("@"):
        source = text.removeprefix("@")
        return _parse(_text_of(source), source)
    return _parse_json(text, option)


def merge_pairs(target: JsonObject, pairs: Iterable[str]) -> JsonObject:
    """Set ``key=value`` pairs in ``target`` and return it; ``a.b=1`` sets ``b`` in the object ``a``.

    A value is JSON where it is JSON, else text.

    Raises:
        InvalidInputError: no ``=``, or the path leads through something that is no object.
    """
    for pair in pairs:
        path, equals, text = pair.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise InvalidInputError(f"-i takes KEY=VALUE or KEY.KEY=VALUE, not {pair!r}", {"path": path})
        place = target
        for key in keys[:-1]:
            below = place.setdefault(key, {})
            if not isinstance(below, dict):
                raise InvalidInputError(f"-i {path}=... can't be set: {key} is not an object", {"path": path})
            place = below
        place[keys[-1]] = _json_or_text(text)
    return target


def _json_or_text(text: str) -> JsonValue:
    try:
        return _parse_json(text, "-i")
    except InvalidInputError:
        return text


def _text_of(source: str) -> str:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{source} can't be read: {error.strerror}", {"path": source}) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{_name(source)} is not a text in UTF-8", {"path": source}) from error


def _parse(text: str, source: str) -> JsonValue:
    if source.endswith(".json"):
        return _parse_json(text, source)
    try:
        value = cast("object", yaml.load(text, Loader=_JsonWordsLoader))  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InvalidInputError(
            f"{_name(source)} is no valid YAML{where}: {error.problem}", {"path": source}
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInputError(f"{_name(source)} is no valid YAML: {error}", {"path": source}) from error
    return _checked(value, source)


def _parse_json(text: str, source: str) -> JsonValue:
    try:
        value = cast("object", json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant))
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{_name(source)} is no valid JSON, line {error.lineno}: {error.msg}", {"path": source}
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{_name(source)} is no valid JSON: {error}", {"path": source}) from error
    return _checked(value, source)


def _checked(value: object, source: str) -> JsonValue:
    fault = json_fault(value)
    if fault is not None:
        raise InvalidInputError(f"{_name(source)} can't be used: {fault}", {"path": source})
    return cast("JsonValue", value)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _name(source: str) -> str:
    return "standard input" if source == "-" else source
