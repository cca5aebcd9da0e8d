"""What operators ask of a run, as the Updates that Temporal delivers: read, checked, done.

A validator refuses before anything enters history; its error's type is an error code, so that a caller in any language
can tell why. An Update that comes before the plan is there is checked by its handler instead.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from engine.domain.expressions import json_size
    from engine.domain.gates import MAX_BY_CHARS, MAX_DATA_BYTES
    from engine.domain.json import JsonObject, JsonValue, json_fault
    from engine.domain.metrics import format_instant
    from engine.errors import ConflictError, EngineError, InvalidInputError

if TYPE_CHECKING:
    from engine.domain.gates import Gate
    from engine.domain.progress import ExecutionProgress

__all__ = ["act", "answer", "check_act", "check_answer", "check_pause", "check_resume", "pause", "resume"]

MAX_TEXT_CHARS = 2000
MAX_ARGUMENT_BYTES = MAX_DATA_BYTES + 4 * 1024
"""Data, and the words around them."""
_ANSWER = ("gate_id", "answer", "data", "by")
_SHORT_ANSWER = ("gate_id", "data", "by")
_PAUSE = ("by", "reason")
_ACT = ("step_id", "output", "by")


def check_answer(progress: ExecutionProgress | None, argument: JsonValue, answer: str | None) -> None:
    """Refuse an answer that can't be taken; ``answer`` is what the Update's name says."""
    with _refusals():
        given = _object(argument, _ANSWER if answer is None else _SHORT_ANSWER)
        if progress is not None:
            _gate(progress, given, answer)


def answer(progress: ExecutionProgress, argument: JsonValue, word: str | None) -> JsonObject:
    """Take an answer; ``word`` is what the Update's name says."""
    with _refusals():
        given = _object(argument, _ANSWER if word is None else _SHORT_ANSWER)
        gate = _gate(progress, given, word)
    return _answered(progress, gate, word or str(given.get("answer")), given.get("data"), given)


def check_act(progress: ExecutionProgress | None, argument: JsonValue) -> None:
    """Refuse to act on a step that waits for nobody."""
    with _refusals():
        given = _object(argument, _ACT)
        if progress is not None:
            progress.operators.check_ask(given.get("step_id"))


def act(progress: ExecutionProgress, argument: JsonValue, answer: str) -> JsonObject:
    """Retry or skip a failed step."""
    with _refusals():
        given = _object(argument, _ACT)
        gate = progress.operators.check_ask(given.get("step_id"))
    data: JsonValue = {"output": given.get("output")} if answer == "skip" else None
    return _answered(progress, gate, answer, data, given)


def check_pause(progress: ExecutionProgress | None, argument: JsonValue) -> None:
    """Refuse to pause what is paused or over."""
    with _refusals():
        _object(argument, _PAUSE)
        if progress is not None:
            progress.operators.check_pause()


def pause(progress: ExecutionProgress, argument: JsonValue) -> JsonObject:
    """Pause."""
    with _refusals():
        given = _object(argument, _PAUSE)
        progress.operators.check_pause()
    progress.operators.pause(_text(given, "by"), _text(given, "reason"), workflow.now())
    return {"status": "paused"}


def check_resume(progress: ExecutionProgress | None, argument: JsonValue) -> None:
    """Refuse to resume what is not paused."""
    with _refusals():
        _object(argument, _PAUSE)
        if progress is not None:
            progress.operators.check_resume()


def resume(progress: ExecutionProgress, argument: JsonValue) -> JsonObject:
    """Resume."""
    with _refusals():
        given = _object(argument, _PAUSE)
        progress.operators.check_resume()
    progress.operators.resume(_text(given, "by"), workflow.now())
    return {"status": progress.status.value}


def _gate(progress: ExecutionProgress, given: JsonObject, answer: str | None) -> Gate:
    gate_id = given.get("gate_id")
    if answer is not None and gate_id is None:
        gate_id = progress.gates.find_only(answer).record.gate_id
    with workflow.unsafe.imports_passed_through():
        return progress.operators.check_answer(
            gate_id, answer or given.get("answer"), given.get("data"), given.get("by")
        )


def _answered(progress: ExecutionProgress, gate: Gate, answer: str, data: JsonValue, given: JsonObject) -> JsonObject:
    now = workflow.now()
    by = _text(given, "by")
    progress.operators.answer_gate(gate, answer, data, by, now)
    return {"gate_id": gate.record.gate_id, "answer": answer, "by": by, "at": format_instant(now)}


def _object(argument: JsonValue, known: tuple[str, ...]) -> JsonObject:
    if argument is None:
        return {}
    fault = json_fault(argument, "argument")
    if fault is not None:
        raise InvalidInputError(f"{fault}; pass plain JSON", {"path": ""})
    if json_size(argument, limit=MAX_ARGUMENT_BYTES) > MAX_ARGUMENT_BYTES:
        raise InvalidInputError(f"The argument has at most {MAX_ARGUMENT_BYTES // 1024} KiB", {"path": ""})
    if not isinstance(argument, dict):
        raise InvalidInputError(f"Give one object with {', '.join(known)}", {"path": ""})
    for key in argument:
        if key not in known:
            raise InvalidInputError(f"There is no {key[:80]} here; known are {', '.join(known)}", {"path": key[:80]})
    _text(argument, "by", MAX_BY_CHARS)
    _text(argument, "reason")
    return argument


def _text(given: JsonObject, key: str, limit: int = MAX_TEXT_CHARS) -> str | None:
    value = given.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > limit:
        raise InvalidInputError(f"{key} must be a text of at most {limit} characters", {"path": key})
    return value


@contextmanager
def _refusals() -> Generator[None]:
    """An engine's error as Temporal carries it: its type is the code, its detail the error's details."""
    try:
        yield
    except (ConflictError, InvalidInputError) as error:
        # A cause would be printed behind it, with the same words, by Temporal's command line.
        raise _refusal(error) from None


def _refusal(error: EngineError) -> ApplicationError:
    return ApplicationError(error.message, error.details, type=error.code.value, non_retryable=True)
