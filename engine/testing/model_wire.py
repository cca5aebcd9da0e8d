"""The OpenAI API as a stub speaks it: checks of a request, the bodies and streams of an answer, vectors of texts.

Requests are refused where the real API refuses them and a client is known to go wrong: names of tools, answers to
tool calls, options of streams. What the stub can't know, such as the limits of a model, it does not check.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from engine.testing.model_answers import ModelAnswer, ToolUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["Message", "completion", "composed", "embeddings", "embeddings_fault", "request_fault", "stream_events"]

_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_WORDS: Final = re.compile(r"\S+\s*|\s+")
_ARGUMENT_CHARS: Final = 12
_CHARS_A_TOKEN: Final = 4
_MAX_INPUTS: Final = 2048


@dataclass(frozen=True, slots=True)
class Message:
    """The assistant's message of one answer."""

    id: str
    model: str
    content: str | None
    refusal: str | None
    calls: list[JsonObject]
    finish_reason: str
    usage: JsonObject


def request_fault(body: JsonObject) -> str | None:
    """Return why the API would refuse a chat request, or None."""
    messages = body.get("messages")
    if not isinstance(body.get("model"), str):
        return "you must provide a model parameter"
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        return "'messages' must be an array of objects that is not empty"
    if body.get("stream_options") is not None and not body.get("stream"):
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled"
    return _tools_fault(body) or _format_fault(body) or _calls_fault(cast("list[JsonObject]", messages))


def _tools_fault(body: JsonObject) -> str | None:
    for place, name in enumerate(_tool_names(body)):
        if not _TOOL_NAME.fullmatch(name):
            return f"Invalid 'tools[{place}].function.name': string does not match pattern '^[a-zA-Z0-9_-]+$'"
    if body.get("tool_choice") is not None and not body.get("tools"):
        return "'tool_choice' is only allowed when 'tools' are specified"
    return None


def _format_fault(body: JsonObject) -> str | None:
    match body.get("response_format"):
        case None | {"type": "text" | "json_object"} | {"type": "json_schema", "json_schema": {"name": str()}}:
            return None
        case _:
            return "Invalid 'response_format'"


def _calls_fault(messages: list[JsonObject]) -> str | None:
    """Every call of a tool is answered directly behind it, and nothing else is."""
    open_ids: set[str] = set()
    for message in messages:
        if message.get("role") == "tool":
            call_id = str(message.get("tool_call_id"))
            if call_id not in open_ids:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
            open_ids.discard(call_id)
            continue
        if open_ids:
            break
        open_ids = {str(call["id"]) for call in cast("list[JsonObject]", message.get("tool_calls") or [])}
    if open_ids:
        return (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. These did not have response messages: {', '.join(sorted(open_ids))}"
        )
    return None


def _tool_names(body: JsonObject) -> list[str]:
    offered = cast("list[JsonObject]", body.get("tools") or [])
    return [str(cast("JsonObject", tool.get("function") or {}).get("name", "")) for tool in offered]


def composed(body: JsonObject, answer: ModelAnswer, *, number: int, request_bytes: int, output_tool: str) -> Message:
    """Make the message that an answer is to this request.

    Args:
        body: of the request.
        answer: what the script says.
        number: of the request; ids are made of it.
        request_bytes: its size; tokens are counted by it unless the answer says how many.
        output_tool: name, or start of the name, of the tool by which a client takes structured output.
    """
    content, uses = answer.text, answer.tools
    if answer.is_data:
        taking = next((name for name in _tool_names(body) if name.startswith(output_tool)), None)
        if taking is None:
            content = json.dumps(answer.data, ensure_ascii=False)
        else:
            uses = (ToolUse(taking, answer.data),)
    calls: list[JsonObject] = [
        {
            "id": f"call_{number}_{place}",
            "type": "function",
            "function": {"name": use.name, "arguments": _arguments_text(use.arguments)},
        }
        for place, use in enumerate(uses)
    ]
    written = len(content or answer.refusal or "") + len(json.dumps(calls) if calls else "")
    return Message(
        id=f"chatcmpl-stub-{number}",
        model=str(body["model"]),
        content=content,
        refusal=answer.refusal,
        calls=calls,
        finish_reason=answer.finish_reason or ("tool_calls" if calls else "stop"),
        usage=_usage(
            _tokens(request_bytes) if answer.input_tokens is None else answer.input_tokens,
            _tokens(written) if answer.output_tokens is None else answer.output_tokens,
        ),
    )


def _arguments_text(arguments: JsonValue) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _tokens(size: int) -> int:
    return max(1, size // _CHARS_A_TOKEN)


def _usage(input_tokens: int, output_tokens: int) -> JsonObject:
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total}


def completion(message: Message) -> JsonObject:
    """Return the body of an answer that is not streamed."""
    told: JsonObject = {"role": "assistant", "content": message.content, "refusal": message.refusal}
    if message.calls:
        told["tool_calls"] = cast("JsonValue", message.calls)
    choice: JsonObject = {"index": 0, "message": told, "logprobs": None, "finish_reason": message.finish_reason}
    return {**_head(message, "chat.completion"), "choices": [choice], "usage": message.usage}


def stream_events(message: Message, *, include_usage: bool) -> list[bytes]:
    """Return the events of a streamed answer: one a word of text, tools' arguments in pieces, usage at the end."""
    deltas: list[JsonObject] = [{"role": "assistant", "content": "" if message.content is not None else None}]
    deltas += [{"content": word} for word in _WORDS.findall(message.content or "")]
    deltas += [{"refusal": word} for word in _WORDS.findall(message.refusal or "")]
    for place, call in enumerate(message.calls):
        deltas += _call_deltas(place, call)
    head = _head(message, "chat.completion.chunk")
    found: list[JsonObject] = [_chunk(head, delta, None) for delta in deltas]
    found.append(_chunk(head, {}, message.finish_reason))
    if include_usage:
        found = [{**chunk, "usage": None} for chunk in found]
        found.append({**head, "choices": [], "usage": message.usage})
    return [*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in found), b"data: [DONE]\n\n"]


def _call_deltas(place: int, call: JsonObject) -> list[JsonObject]:
    function = cast("JsonObject", call["function"])
    arguments = cast("str", function["arguments"])
    first: JsonObject = {"index": place, **call, "function": {"name": function["name"], "arguments": ""}}
    pieces = [arguments[start : start + _ARGUMENT_CHARS] for start in range(0, len(arguments), _ARGUMENT_CHARS)]
    rest: list[JsonObject] = [{"index": place, "function": {"arguments": piece}} for piece in pieces]
    return [{"tool_calls": [piece]} for piece in (first, *rest)]


def _head(message: Message, kind: str) -> JsonObject:
    return {
        "id": message.id,
        "object": kind,
        "created": int(time.time()),
        "model": message.model,
        "system_fingerprint": None,
    }


def _chunk(head: JsonObject, delta: JsonObject, finish_reason: str | None) -> JsonObject:
    choice: JsonObject = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**head, "choices": [choice]}


def embeddings_fault(body: JsonObject) -> str | None:
    """Return why the API would refuse a request for vectors, or None."""
    inputs = _inputs(body)
    if not isinstance(body.get("model"), str):
        return "you must provide a model parameter"
    if not inputs or len(inputs) > _MAX_INPUTS or any(one in ("", []) for one in inputs):
        return f"'$.input' is invalid: 1 to {_MAX_INPUTS} texts that are not empty"
    if body.get("encoding_format") not in (None, "float", "base64"):
        return "'encoding_format' must be float or base64"
    return None


def embeddings(body: JsonObject, dimension: int, request_bytes: int) -> JsonObject:
    """Return the vectors of a request's texts: equal for equal texts, near for texts that share words."""
    asked = body.get("dimensions")
    size = asked if isinstance(asked, int) else dimension
    is_packed = body.get("encoding_format") == "base64"
    data: list[JsonValue] = []
    for place, one in enumerate(_inputs(body)):
        values = _vector(one, size)
        packed = base64.b64encode(struct.pack(f"<{size}f", *values)).decode() if is_packed else None
        data.append({"object": "embedding", "index": place, "embedding": packed or cast("JsonValue", values)})
    tokens = _tokens(request_bytes)
    usage: JsonObject = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _inputs(body: JsonObject) -> Sequence[JsonValue]:
    """A text or a list of them; texts may be given as lists of tokens."""
    given = body.get("input")
    if isinstance(given, list) and not (given and isinstance(given[0], int)):
        return given
    return [] if given is None else [given]


def _vector(text: JsonValue, dimension: int) -> list[float]:
    words: Iterable[str] = map(str, text) if isinstance(text, list) else re.findall(r"\w+", str(text).lower())
    values = [0.0] * dimension
    for word in (*words, ""):
        digest = hashlib.sha256(word.encode()).digest()
        # The empty word keeps a text of signs only from a vector of zeros, and weighs too little to matter.
        weight = 1.0 if word else 0.01
        for start in (0, 8, 16):
            place = int.from_bytes(digest[start : start + 7]) % dimension
            values[place] += weight if digest[start + 7] % 2 else -weight
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]
