"""What a tool gave back, made fit for a model: JSON of a bounded size, and failures as short, clean text."""

from __future__ import annotations

import json
from typing import Final, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python

from engine.adapters.agents.replies import bounded_text
from engine.domain.json import JsonValue, json_fault
from engine.masking import mask_text
from engine.ports.tools import ToolFailure

__all__ = ["MAX_RESULT_BYTES", "checked_result", "tool_failure"]

MAX_RESULT_BYTES: Final = 1024 * 1024
"""Of one result as JSON: more would not fit into any model's window."""


def checked_result(result: object) -> JsonValue:
    """Return what a tool gave as JSON; pydantic models, dataclasses, dates and their like are written as JSON.

    Raises:
        ToolFailure: it is no JSON, or too large.
    """
    fault = json_fault(result, "the result")
    if fault is not None:
        try:
            result = cast("object", to_jsonable_python(result))
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise tool_failure(f"The tool's result is not JSON: {error}") from None
        fault = json_fault(result, "the result")
    if fault is not None:
        raise tool_failure(f"The tool's result is not JSON: {fault}")
    value = cast("JsonValue", result)
    size = len(value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode())
    if size > MAX_RESULT_BYTES:
        raise tool_failure(f"The tool's result has {size} bytes; at most {MAX_RESULT_BYTES} go to a model")
    return value


def tool_failure(message: str) -> ToolFailure:
    """Return a failure whose message is bounded and shows no secret."""
    return ToolFailure(mask_text(bounded_text(message)))
