"""What counts as JSON here, checked where data of users and agents enters.

Exact types only (no subclasses, no tuples), string keys, finite numbers, integers of 64 bits, at most 64
levels deep: the intersection of what JSON, MessagePack and every store keep unchanged.
"""

from __future__ import annotations

import math
from typing import cast

from pydantic import JsonValue

__all__ = ["MAX_DEPTH", "MAX_VALUE_BYTES", "JsonObject", "JsonValue", "json_fault"]

JsonObject = dict[str, JsonValue]

MAX_DEPTH = 64
MAX_VALUE_BYTES = 64 * 1024 * 1024
"""Top size of one value, an execution's input or a step's output."""


def json_fault(value: object, path: str = "") -> str | None:
    """Return what keeps ``value`` from being JSON, with the path to it, or None when nothing does."""
    stack: list[tuple[object, str, int]] = [(value, path, 0)]
    while stack:
        item, where, depth = stack.pop()
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        fault = _number_fault(item)
        if fault is None and kind in (dict, list):
            if depth >= MAX_DEPTH:
                return f"{where or 'the value'} is nested deeper than {MAX_DEPTH} levels"
            if kind is dict:
                for key, child in cast("dict[object, object]", item).items():
                    if type(key) is not str:
                        return f"{where or 'the value'} has the key {key!r:.60}, which is not a string"
                    stack.append((child, f"{where}.{key}" if where else key, depth + 1))
            else:
                for index, child in enumerate(cast("list[object]", item)):
                    stack.append((child, f"{where}[{index}]", depth + 1))
        elif fault is not None:
            return f"{where or 'the value'} {fault}"
    return None


def _number_fault(item: object) -> str | None:
    kind = type(item)
    if kind is int:
        return None if -(2**63) <= cast("int", item) < 2**64 else "is an integer of more than 64 bits"
    if kind is float:
        return None if math.isfinite(cast("float", item)) else f"is {item!r}, which JSON can't hold"
    if kind in (dict, list):
        return None
    return f"is of type {kind.__name__}, which JSON can't hold"
