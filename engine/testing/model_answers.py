"""What a model's stub is told to answer: plain values for the usual, named makers for what goes wrong.

A text is a text, an object is structured output, ``{"tool": name, "arguments": {...}}`` is the use of a tool. All
else is made by a function whose name says what happens; they nest, as in ``slow(2, error(503))``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from json import dumps
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["ModelAnswer", "ToolUse", "as_answer"]

_ERRORS = {
    400: ("invalid_request_error", None, "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "permission_denied", "You have no access to this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist."),
    408: ("server_error", None, "The request took too long."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded."),
}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the model wants called; arguments that are a text are sent as they are, valid JSON or not."""

    name: str
    arguments: JsonValue


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One answer of the stub; made from a script's entry by ``as_answer`` or by a function of this module."""

    text: str | None = None
    is_data: bool = False
    """Whether ``data`` is the answer."""
    data: JsonValue = None
    tools: tuple[ToolUse, ...] = ()
    refusal: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    status: int = 200
    retry_after: float | str | None = None
    body: JsonValue = None
    """Of an answer that is an error, or of any other status: an object as JSON, a text as it is."""
    wait: float = 0
    """Seconds before the first byte."""
    spread: float = 0
    """Seconds over which the pieces of a stream are spread."""
    cut_after: int | None = None
    held_after: int | None = None


def as_answer(entry: object) -> ModelAnswer:
    """Return what an entry of a script stands for.

    Raises:
        TypeError: it is none of the forms.
    """
    match entry:
        case None:
            return ModelAnswer()
        case ModelAnswer():
            return entry
        case str():
            return ModelAnswer(text=entry)
        case {"tool": str()} if set(cast("Mapping[str, object]", entry)) <= {"tool", "arguments"}:
            return tools(cast("Mapping[str, object]", entry))
        case dict():
            return json(cast("JsonObject", entry))
        case _:
            raise TypeError(
                f"A model's script holds texts, objects, answers of ModelStub's makers or functions, "
                f"not {type(entry).__name__}"
            )


def json(value: JsonValue) -> ModelAnswer:
    """Answer with structured output: the output tool's arguments when the request has one, else JSON as text.

    Raises:
        TypeError: it can't be written as JSON.
    """
    dumps(value)
    return ModelAnswer(is_data=True, data=value)


def tools(*uses: Mapping[str, object]) -> ModelAnswer:
    """Use several tools in one answer: each ``{"tool": name, "arguments": {...}}``."""
    made = [ToolUse(cast("str", use["tool"]), cast("JsonValue", use.get("arguments", {}))) for use in uses]
    return ModelAnswer(tools=tuple(made))


def error(
    status: int, *, retry_after: float | str | None = None, body: JsonValue = None, message: str | None = None
) -> ModelAnswer:
    """Answer with an HTTP status and an error of the API's form.

    Args:
        status: 401, 429, 500, 503 or any other; 200 with a ``body`` that is no JSON is possible too.
        retry_after: the header of that name: seconds, or an HTTP date.
        body: in place of the API's form: an object, or a text as it is, such as a proxy's page.
        message: the error's message in the API's form.
    """
    if body is None:
        kind, code, told = _ERRORS.get(status, ("server_error", None, f"Status {status}."))
        body = {"error": {"message": message or told, "type": kind, "param": None, "code": code}}
    return ModelAnswer(status=status, retry_after=retry_after, body=body)


def refusal(text: str = "I can't help with that.") -> ModelAnswer:
    """Refuse in the model's own words: ``message.refusal``, no content."""
    return ModelAnswer(refusal=text)


def filtered(text: str = "") -> ModelAnswer:
    """End with the finish reason ``content_filter``, after as much text as is given."""
    return ModelAnswer(text=text, finish_reason="content_filter")


def too_long(entry: object) -> ModelAnswer:
    """End with the finish reason ``length``: the entry is what came before the limit, as a text cut off in it."""
    return replace(as_answer(entry), finish_reason="length")


def costing(entry: object, *, input_tokens: int, output_tokens: int) -> ModelAnswer:
    """Answer with these numbers as usage; without it they follow from the sizes of request and answer."""
    return replace(as_answer(entry), input_tokens=input_tokens, output_tokens=output_tokens)


def slow(seconds: float, entry: object) -> ModelAnswer:
    """Answer after ``seconds`` in which nothing is sent."""
    return replace(as_answer(entry), wait=seconds)


def trickle(seconds: float, entry: object) -> ModelAnswer:
    """Spread a streamed answer over ``seconds``; one that is not streamed comes at their end."""
    return replace(as_answer(entry), spread=seconds)


def held(entry: object, *, after: int = 0) -> ModelAnswer:
    """Hold an answer open until ``release()``, after so many pieces of its stream."""
    return replace(as_answer(entry), held_after=after)


def cut(entry: object, *, after: int = 1) -> ModelAnswer:
    """Close the connection in mid-answer: after so many pieces of a stream, or in the middle of the body.

    ``after=0`` closes it before the first byte.
    """
    return replace(as_answer(entry), cut_after=after)
