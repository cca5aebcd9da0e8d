"""Typed reading of JSON objects: what another step sent is checked where it is used.

Each reader raises `ValueError` with the name of the key, since a wrong mapping in a definition is the most
likely cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.domain.json import JsonObject


def read_text(source: JsonObject, key: str) -> str:
    """The non-empty text under `key`."""
    value = source.get(key)
    if not isinstance(value, str) or not value:
        raise _mismatch(key, "a text that is not empty", "is", value)
    return value


def read_count(source: JsonObject, key: str) -> int:
    """The whole number under `key`."""
    value = source.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mismatch(key, "a whole number", "is", value)
    return value


def read_flag(source: JsonObject, key: str) -> bool:
    """The true or false under `key`."""
    value = source.get(key)
    if not isinstance(value, bool):
        raise _mismatch(key, "true or false", "is", value)
    return value


def read_object(source: JsonObject, key: str) -> JsonObject:
    """The object under `key`."""
    value = source.get(key)
    if not isinstance(value, dict):
        raise _mismatch(key, "an object", "is", value)
    return value


def read_rows(source: JsonObject, key: str) -> list[JsonObject]:
    """The list of objects under `key`."""
    value = source.get(key)
    if not isinstance(value, list):
        raise _mismatch(key, "a list of objects", "is", value)
    rows: list[JsonObject] = []
    for item in value:
        if not isinstance(item, dict):
            raise _mismatch(key, "a list of objects", "holds", item)
        rows.append(item)
    return rows


def read_texts(source: JsonObject, key: str) -> list[str]:
    """The list of texts under `key`."""
    value = source.get(key)
    if not isinstance(value, list):
        raise _mismatch(key, "a list of texts", "is", value)
    texts: list[str] = []
    for item in value:
        if not isinstance(item, str):
            raise _mismatch(key, "a list of texts", "holds", item)
        texts.append(item)
    return texts


def _mismatch(key: str, wanted: str, verb: str, found: object) -> ValueError:
    kinds: dict[type, str] = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    kind = "missing or null" if found is None else kinds.get(type(found), "a number")
    return ValueError(f"'{key}' must be {wanted}; it {verb} {kind}")
