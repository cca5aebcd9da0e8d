"""What an agent gave back, made safe before it travels on: its output is JSON, its failure is short and clean text."""

from __future__ import annotations

import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from engine.domain.agent_call import AgentFailure, FailureReason
from engine.domain.json import MAX_VALUE_BYTES, json_fault
from engine.masking import mask_text

if TYPE_CHECKING:
    from logging import Logger

    from engine.domain.json import JsonObject

__all__ = ["MAX_MESSAGE_CHARS", "bounded_text", "checked_failure", "checked_output", "failure_of", "log_failure"]

_MAX_TRACEBACK_CHARS: Final = 20_000
MAX_MESSAGE_CHARS: Final = 2_000
_MAX_ITEMS: Final = MAX_VALUE_BYTES // 2
"""No JSON text of the top size has more items: each takes a character and a comma."""


def checked_output(output: object) -> JsonObject:
    """Return ``output`` if it is a JSON object that stores and Temporal can carry.

    Raises:
        AgentFailure: invalid_output, naming the type or the path that is wrong.
    """
    if type(output) is not dict:
        raise AgentFailure(
            FailureReason.INVALID_OUTPUT,
            f"The agent's output is of type {type(output).__name__:.100}; it must be a JSON object (a dict)",
        )
    found = cast("dict[object, object]", output)
    fault = json_fault(found, "output")
    if fault is not None:
        raise AgentFailure(FailureReason.INVALID_OUTPUT, f"The agent's output is not JSON: {bounded_text(fault, 500)}")
    return cast("JsonObject", found)


def bounded_text(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return ``text`` cut to ``limit`` characters, with what UTF-8 can't hold replaced."""
    cut = text[:limit].encode("utf-8", "replace").decode()
    return cut if len(text) <= limit else cut[: limit - 1] + "…"


def failure_of(error: BaseException) -> AgentFailure:
    """Return the failure that an exception out of a user's code means; never raises, whatever ``str(error)`` does."""
    if isinstance(error, AgentFailure):
        return checked_failure(error)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a user's __str__ may do anything; the type's name still stands
        text = "(its text can't be had)"
    name = type(error).__name__
    return AgentFailure(FailureReason.ERROR, bounded_text(f"{name}: {text}" if text else name))


def checked_failure(failure: AgentFailure) -> AgentFailure:
    """Return a failure that a user's code raised, with reason, message, wait and details of the right types."""
    try:
        reason = FailureReason(failure.reason)
        message = bounded_text(str(failure.message))
        wait = failure.retry_after if isinstance(cast("object", failure.retry_after), timedelta) else None
        return AgentFailure(reason, message, wait, checked_output(failure.details))
    except AgentFailure as fault:
        return AgentFailure(
            FailureReason.ERROR, f"The agent raised AgentFailure with details that are no JSON: {fault.message}"
        )
    except BaseException as error:  # noqa: BLE001 - attributes of a subclass are a user's code
        return AgentFailure(
            FailureReason.ERROR,
            bounded_text(f"The agent raised a malformed AgentFailure ({type(error).__name__})"),
        )


def log_failure(logger: Logger, what: str, error: BaseException) -> None:
    """Log an exception of a user's code with its traceback, bounded, whatever the exception's own code does."""
    try:
        lines = "".join(traceback.format_exception(error, limit=50))
    except BaseException:  # noqa: BLE001 - formatting reads attributes that a user's class may define
        lines = f"{type(error).__name__} (its traceback can't be had)"
    logger.warning("%s\n%s", what, bounded_text(mask_text(lines), _MAX_TRACEBACK_CHARS))
