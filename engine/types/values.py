"""Parts of many answers."""

from __future__ import annotations

from typing import TypedDict

from pydantic import JsonValue

__all__ = ["Error", "JsonObject", "Usage"]

JsonObject = dict[str, JsonValue]


class Error(TypedDict):
    """An error inside an answer."""

    code: str
    message: str
    details: JsonObject


class Usage(TypedDict):
    """What calls cost; an unknown price is null."""

    requests: int
    input_tokens: int
    output_tokens: int
    tool_calls: int
    cost_usd: float | None
