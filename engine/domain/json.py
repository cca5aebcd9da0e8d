"""What counts as JSON here, checked where data of users and agents enters.

Exact types only (no subclasses, no tuples), string keys, text that UTF-8 can hold, finite numbers, integers of 64
bits, at most 64 levels deep: the intersection of what JSON, MessagePack and every store keep unchanged. The check is
bounded for hostile data too: an object that is referred to from many places is looked at once a level and counted
as often as it would be written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple, cast

from pydantic import JsonValue

__all__ = ["MAX_DEPTH", "MAX_VALUE_BYTES", "JsonObject", "JsonValue", "json_fault"]

JsonObject = dict[str, JsonValue]

MAX_DEPTH: Final = 64
MAX_VALUE_BYTES: Final = 64 * 1024 * 1024
"""Top size of one value, an execution's input or a step's output."""
_MAX_ITEMS: Final = MAX_VALUE_BYTES // 2
"""No JSON text of the top size has more items: each takes a character and a comma."""
_QUOTED_CHARS: Final = 60


class _Place(NamedTuple):
    """A position by its last key, so that a path is written only for a fault that is found."""

    above: _Place | None
    key: str | int


class _Seen(NamedTuple):
    container: object
    times: int
    place: _Place | None


def json_fault(value: object, path: str = "") -> str | None:
    """Return what keeps ``value`` from being JSON, with the path to it, or None when nothing does."""
    fault = _scalar_fault(value)
    if fault is not None:
        return f"{path or 'the value'} {fault}"
    level = {id(value): _Seen(value, 1, None)} if _is_container(value) else {}
    items = 0
    depth = 0
    while level:
        if depth == MAX_DEPTH:
            place = next(iter(level.values())).place
            return f"{_written(path, place)} is nested deeper than {MAX_DEPTH} levels"
        below: dict[int, _Seen] = {}
        for seen in level.values():
            items += seen.times * len(cast("list[object]", seen.container))
            if items > _MAX_ITEMS:
                return f"{path or 'the value'} holds more than {_MAX_ITEMS} items"
            fault = _children_fault(seen, path, below)
            if fault is not None:
                return fault
        level = below
        depth += 1
    return None


def _children_fault(seen: _Seen, path: str, below: dict[int, _Seen]) -> str | None:
    children: Iterable[tuple[object, object]]
    if type(seen.container) is dict:
        mapping = cast("dict[object, object]", seen.container)
        fault = next(filter(None, map(_key_fault, mapping)), None)
        if fault is not None:
            return f"{_written(path, seen.place)} {fault}"
        children = mapping.items()
    else:
        children = enumerate(cast("list[object]", seen.container))
    for key, child in children:
        if _is_container(child):
            known = below.get(id(child))
            place = _Place(seen.place, cast("str | int", key))
            below[id(child)] = _Seen(child, seen.times + (known.times if known else 0), place)
            continue
        fault = _scalar_fault(child)
        if fault is not None:
            return f"{_written(path, _Place(seen.place, cast('str | int', key)))} {fault}"
    return None


def _is_container(item: object) -> bool:
    return type(item) is dict or type(item) is list


def _written(path: str, place: _Place | None) -> str:
    parts: list[str] = []
    while place is not None:
        parts.append(f"[{place.key}]" if isinstance(place.key, int) else f".{place.key[:_QUOTED_CHARS]}")
        place = place.above
    return (path + "".join(reversed(parts))).removeprefix(".") or "the value"


def _key_fault(key: object) -> str | None:
    if type(key) is not str:
        return f"has the key {key!r:.60}, which is not a string"
    fault = _text_fault(key)
    return None if fault is None else f"has a key that {fault}"


def _text_fault(text: str) -> str | None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"has half of a surrogate pair ({text!a:.60}), which UTF-8 can't hold"
    return None


def _scalar_fault(item: object) -> str | None:
    kind = type(item)
    if item is None or kind is bool or kind is dict or kind is list:
        return None
    if kind is str:
        return _text_fault(cast("str", item))
    if kind is int:
        return None if -(2**63) <= cast("int", item) < 2**64 else "is an integer of more than 64 bits"
    if kind is float:
        return None if math.isfinite(cast("float", item)) else f"is {item!r}, which JSON can't hold"
    return f"is of type {kind.__name__}, which JSON can't hold"
