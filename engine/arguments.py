"""What callers of the facade may pass, made plain: the first look at each argument, before any service sees it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import cast

from engine.domain.json import JsonValue, json_fault
from engine.errors import InvalidInputError

__all__ = ["document", "json_value", "optional_text", "plain", "seconds", "text"]


def plain(value: object) -> object:
    """Mappings and sequences of the caller as dicts and lists; everything else as it is, to be checked."""
    match value:
        case dict() | str():
            return cast("object", value)
        case Mapping():
            return {key: plain(item) for key, item in cast("Mapping[object, object]", value).items()}
        case tuple():
            return [plain(item) for item in cast("tuple[object, ...]", value)]
        case _:
            return value


def document(value: object, path: str) -> Mapping[str, object] | None:
    """Require an object.

    Raises:
        InvalidInputError: it is something else.
    """
    if value is None or isinstance(value, Mapping):
        return cast("Mapping[str, object] | None", value)
    raise InvalidInputError(f"{path} must be an object, not {type(value).__name__}", {"path": path})


def json_value(value: object, path: str) -> JsonValue:
    """Require JSON.

    Raises:
        InvalidInputError: it is something else.
    """
    given = plain(value)
    if (fault := json_fault(given, path)) is not None:
        raise InvalidInputError(f"{fault}; it must be JSON", {"path": path})
    return cast("JsonValue", given)


def text(value: object, path: str) -> str:
    """Require a text that is not empty.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{path} must be a text that is not empty", {"path": path})
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{path} holds half a surrogate pair, which is no Unicode; repair it", {"path": path}
        ) from error
    return value


def optional_text(value: object, path: str) -> str | None:
    """Require a text that is not empty, or None."""
    return None if value is None else text(value, path)


def seconds(value: object, path: str) -> timedelta:
    """Require a number of seconds, 0 or more.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 86400 * 365:
        raise InvalidInputError(f"{path} must be a number of seconds, 0 or more", {"path": path})
    return timedelta(seconds=value)
