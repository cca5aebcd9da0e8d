"""Merged deltas: fewer events that say the same, wherever the bytes were cut, and no event out of its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adapters.agents.llm.merged_deltas import MergedDeltas

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(delta, finish_reason=None, **more) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({**HEAD, "choices": [choice], **more}).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event({"content": piece})


def arguments(piece: str, index: int = 0) -> bytes:
    return event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})


def named(index: int = 0) -> bytes:
    call = {"index": index, "id": f"call-{index}", "type": "function", "function": {"name": "look", "arguments": ""}}
    return event({"tool_calls": [call]})


def said(stream: bytes) -> list:
    """Return what a stream says: neighbouring pieces together, all other events as they are."""
    found: list = []
    for raw in stream.split(b"\n\n"):
        if not raw.startswith(b"data: {"):
            found.append(raw)
            continue
        [choice] = json.loads(raw[6:])["choices"]
        delta = choice["delta"]
        calls = delta.get("tool_calls", [{}])
        if delta.keys() == {"content"} and not choice["finish_reason"]:
            key, piece = "text", delta["content"]
        elif delta.keys() == {"tool_calls"} and calls[0].keys() == {"index", "function"}:
            key, piece = calls[0]["index"], calls[0]["function"]["arguments"]
        else:
            found.append(raw)
            continue
        if found and isinstance(found[-1], list) and found[-1][0] == key:
            found[-1][1] += piece
        else:
            found.append([key, piece])
    return found


def merged(parts, seconds=0.0) -> bytes:
    ticks = iter(number * seconds for number in range(100_000))
    deltas = MergedDeltas(lambda: next(ticks))
    return b"".join([*map(deltas.take, parts), deltas.rest()])


def test_pieces_within_the_window_become_one():
    stream = [event({"role": "assistant", "content": ""}), *map(text, "abc"), event({}, "stop"), b"data: [DONE]\n\n"]
    assert merged(stream) == stream[0] + text("abc") + stream[-2]


def test_the_mark_at_the_end_is_taken_out_and_told():
    deltas = MergedDeltas()
    assert deltas.take(text("a") + b"data: [DO") == b""
    assert not deltas.is_done
    assert deltas.take(b"NE]\n\n") == text("a")
    assert deltas.is_done


def test_pieces_of_arguments_become_one_for_each_call():
    stream = [named(0), arguments('{"a'), arguments('":1}'), named(1), arguments("{", 1), arguments("}", 1)]
    assert merged(stream) == named(0) + arguments('{"a":1}') + named(1) + arguments("{}", 1)


def test_a_piece_passes_on_when_its_time_is_over():
    now = [0.0]
    deltas = MergedDeltas(lambda: now[0])
    assert deltas.take(text("a")) == b""
    now[0] = 0.05
    assert deltas.take(text("b")) == b""
    now[0] = 0.11
    assert deltas.take(text("c")) == text("abc")
    assert deltas.rest() == b""


@pytest.mark.parametrize(
    "odd",
    [
        b": ping\n\n",
        b"event: error\ndata: {}\n\n",
        b"data: {no json}\n\n",
        b"data: [1]\n\n",
        b"<html>",
        b"\n\n\n\n",
        b'data: {"error": {"message": "busy"}}\n\n',
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [{"index": 1, "delta": {"content": "x"}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": []}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": "x", "reasoning": "y"}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": null}]}\n\n',
        event({"content": "x"}, usage={"prompt_tokens": 1}),
        event({"content": "x"}, "stop"),
        event({"refusal": "no"}),
    ],
)
def test_every_other_event_passes_unchanged_in_its_place(odd):
    assert merged([text("a"), text("b"), odd]) == text("ab") + odd


def test_another_framing_passes_unchanged_and_at_once():
    stream = text("a").replace(b"\n", b"\r\n")
    deltas = MergedDeltas()
    assert deltas.take(stream) == stream
    assert deltas.take(text("b")) == text("b")
    assert deltas.rest() == b""


def test_a_body_without_end_marks_is_not_kept():
    deltas = MergedDeltas()
    body = [b"x" * 100_000] * 100
    passed = [deltas.take(part) for part in body]
    assert any(passed[:20])
    assert b"".join([*passed, deltas.rest()]) == b"".join(body)


PIECES = st.one_of(
    st.text(max_size=5).map(text),
    st.builds(arguments, st.text(max_size=5), st.integers(0, 1)),
    st.builds(named, st.integers(0, 1)),
    st.just(event({}, "stop")),
    st.just(b": ping\n\n"),
)


@given(st.lists(PIECES, max_size=20), st.integers(1, 50), st.sampled_from([0.0, 0.03, 1.0]))
def test_the_same_is_said_wherever_the_bytes_are_cut(events, size, seconds):
    stream = b"".join(events)
    parts = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert said(merged(parts, seconds)) == said(stream)
