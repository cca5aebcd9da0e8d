"""Every way in which a model's call fails: its reason, one request only, what it has cost, and no secret anywhere."""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from llm_samples import KEY, PERSON, FixedSecrets, failure_of, invocation, invoker_on, tool

from engine.domain.agent_call import FailureReason
from engine.testing import ModelStub

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def stream_of(*events: dict) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


def delta(text: str) -> dict:
    return {**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


async def failure_on(script, asked=None, **options):
    """Return the failure of one call, and the stub, after a call that opened the connection."""
    async with ModelStub(script) as stub:
        invoker = invoker_on(stub, **options)
        failure = await failure_of(invoker, asked or invocation())
        await invoker.aclose()
        await stub.until(lambda: stub.connections == 0)
    return failure, stub


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (301, "invalid_request"),
        (307, "invalid_request"),
        (400, "invalid_request"),
        (401, "unauthorized"),
        (402, "invalid_request"),
        (403, "unauthorized"),
        (404, "invalid_request"),
        (408, "timeout"),
        (409, "invalid_request"),
        (422, "invalid_request"),
        (429, "rate_limited"),
        (451, "refused"),
        (500, "unavailable"),
        (502, "unavailable"),
        (503, "unavailable"),
        (504, "unavailable"),
        (529, "unavailable"),
    ],
)
async def test_each_status_has_its_reason_and_one_request(status, reason):
    failure, stub = await failure_on(ModelStub.error(status))
    assert failure.reason == reason
    assert len(stub.requests) == 1
    assert failure.details["status"] == status
    assert failure.details["host"] == stub.base_url.split("/")[2]
    assert f"status {status}" in failure.message
    assert (failure.usage.requests, failure.usage.input_tokens, failure.usage.cost_usd) == (1, 0, None)
    assert failure.retry_after is None


async def test_the_provider_s_message_and_code_are_told():
    failure, _ = await failure_on(ModelStub.error(404))
    assert failure.message.endswith("404: The model does not exist.")
    assert failure.details["code"] == "model_not_found"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("header", "seconds"), [(7, 7), ("0", 0), ("soon", None), ("-1", None), (None, None)])
async def test_retry_after_in_seconds(status, header, seconds):
    failure, _ = await failure_on(ModelStub.error(status, retry_after=header))
    assert failure.retry_after == (None if seconds is None else timedelta(seconds=seconds))


async def test_retry_after_as_a_date():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    failure, _ = await failure_on(ModelStub.error(429, retry_after=moment))
    assert timedelta(seconds=50) <= failure.retry_after <= timedelta(seconds=60)


async def test_other_statuses_ask_for_no_wait():
    failure, _ = await failure_on(ModelStub.error(500, retry_after=9))
    assert failure.retry_after is None


@pytest.mark.parametrize(
    ("script", "reason", "told"),
    [
        (ModelStub.refusal("I won't."), "refused", "I won't."),
        (ModelStub.filtered("half"), "refused", "content filter"),
        (ModelStub.filtered(), "refused", "content filter"),
        (
            ModelStub.error(400, body={"error": {"message": "no", "code": "content_filter"}}),
            "refused",
            "status 400: no",
        ),
        (
            ModelStub.error(400, body={"error": {"message": "long", "code": "context_length_exceeded"}}),
            "invalid_request",
            "context window",
        ),
        (
            ModelStub.error(400, body={"error": {"message": "This model's maximum context length is 8 tokens."}}),
            "invalid_request",
            "context window",
        ),
        (
            ModelStub.error(429, body={"error": {"message": "pay", "code": "insufficient_quota"}}),
            "rate_limited",
            "pay",
        ),
        (ModelStub.too_long("half an ans"), "invalid_output", "max_tokens"),
        (ModelStub.cut("one two three", after=0), "unavailable", "broke the connection off"),
        (ModelStub.cut("one two three", after=1), "unavailable", "broke the connection off"),
        (ModelStub.cut("one two three", after=3), "unavailable", "broke the connection off"),
        (ModelStub.error(200, body=stream_of(delta("half"))), "unavailable", "middle of its answer"),
        (ModelStub.error(200, body="<html>Sign in</html>"), "invalid_output", "/v1"),
        (ModelStub.error(200, body={"choices": []}), "invalid_output", "/v1"),
        (ModelStub.error(200, body=""), "invalid_output", "/v1"),
        (ModelStub.error(200, body="data: {no json}\n\n"), "invalid_output", "/v1"),
        (
            ModelStub.error(200, body=stream_of(delta("a"), {"error": {"message": "busy", "code": "server_error"}})),
            "unavailable",
            "busy",
        ),
        (
            ModelStub.error(200, body=stream_of(delta("a"), {"error": {"message": "wait", "code": "429"}})),
            "rate_limited",
            "wait",
        ),
        (
            ModelStub.error(200, body=stream_of(delta("a"), {"error": {"message": "odd", "code": "odd"}})),
            "error",
            "odd",
        ),
        (
            ModelStub.error(200, body=stream_of(delta("a"), {"error": {"message": "no", "code": "content_filter"}})),
            "refused",
            "no",
        ),
    ],
)
async def test_what_goes_wrong_in_an_answer_has_its_reason_and_one_request(script, reason, told):
    failure, stub = await failure_on(script)
    assert failure.reason == reason
    assert told in failure.message
    assert len(stub.requests) == 1
    assert failure.usage.requests == 1
    assert failure.details["host"] == stub.base_url.split("/")[2]


async def test_a_structured_answer_that_was_cut_off_is_not_repaired():
    cut_off = ModelStub.too_long({"tool": "final_result", "arguments": '{"name": "Ad'})
    failure, stub = await failure_on(cut_off, invocation(output_schema=PERSON))
    assert failure.reason is FailureReason.INVALID_OUTPUT
    assert len(stub.requests) == 1


async def test_an_answer_over_the_limit_is_cut_off(monkeypatch):
    from engine.adapters.agents.llm import model_clients

    monkeypatch.setattr(model_clients, "MAX_VALUE_BYTES", 10_000)
    failure, stub = await failure_on("word " * 1_000)
    assert failure.reason is FailureReason.INVALID_OUTPUT
    assert "larger than 10000 bytes" in failure.message
    assert len(stub.requests) == 1


async def test_two_repairs_and_no_third():
    failure, stub = await failure_on({"name": "Ada"}, invocation(output_schema=PERSON))
    assert failure.reason is FailureReason.INVALID_OUTPUT
    assert "output.age" in failure.message
    assert len(stub.requests) == failure.usage.requests == 3
    assert failure.usage.input_tokens > 0


async def test_turns_bound_repairs_and_tools():
    failure, stub = await failure_on({"name": "Ada"}, invocation(output_schema=PERSON, max_turns=2))
    assert (failure.reason, len(stub.requests)) == (FailureReason.INVALID_OUTPUT, 2)

    async def look(arguments, call):
        return "nothing"

    script = {"tool": "look", "arguments": {}}
    async with ModelStub(script) as stub:
        invoker = invoker_on(stub, tool("look", look))
        failure = await failure_of(invoker, invocation(tools=["look"], max_turns=3))
        await invoker.aclose()
    assert failure.reason is FailureReason.ERROR
    assert "`max_turns`" in failure.message
    assert len(stub.requests) == len(failure.tool_calls) == failure.usage.tool_calls == 3


async def test_ten_turns_when_the_agent_says_nothing():
    async with ModelStub({"tool": "look", "arguments": {}}) as stub:
        invoker = invoker_on(stub)
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.ERROR
    assert len(stub.requests) == 10


@pytest.mark.parametrize("script", [ModelStub.slow(20, "late"), ModelStub.trickle(20, "one two three four five")])
async def test_the_call_s_deadline_bounds_all(script):
    async with ModelStub(["warm", script]) as stub:
        invoker = invoker_on(stub)
        await invoker.invoke_agent(invocation())
        asked = invocation(seconds=1)
        failure = await failure_of(invoker, asked)
        assert datetime.now(UTC) - asked.call.deadline < timedelta(seconds=1)
        await stub.until(lambda: stub.abandoned == 1, 2)
        await invoker.aclose()
    assert failure.reason is FailureReason.TIMEOUT
    assert failure.usage.requests == 1


async def test_a_deadline_that_has_passed_costs_no_request():
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub)
        failure = await failure_of(invoker, invocation(seconds=-1))
        await invoker.aclose()
    assert failure.reason is FailureReason.TIMEOUT
    assert stub.requests == []


async def test_nobody_there_is_unavailable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        invoker = invoker_on(None, default_base_url=base_url)
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.UNAVAILABLE


async def test_a_name_without_address_is_unavailable():
    async def resolve(host, port):
        raise OSError("no such name")

    invoker = invoker_on(None, default_base_url="http://models.example/v1", resolve=resolve)
    failure = await failure_of(invoker, invocation())
    assert failure.reason is FailureReason.UNAVAILABLE
    assert "no such name" in failure.message


async def test_a_server_that_speaks_no_http_is_unavailable():
    async def talk(reader, writer):
        writer.write(b"220 mail ready\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        invoker = invoker_on(None, default_base_url=f"http://127.0.0.1:{port}/v1")
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.UNAVAILABLE


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"max_turns": 0}, "max_turns"),
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": "http://[::1/v1"}, "base_url"),
        ({"base_url": "http://me:hunter2@127.0.0.1/v1"}, "base_url"),
        ({"base_url": "http://127.0.0.1/v1?key=hunter2"}, "base_url"),
        ({"instructions": "Be ${input.missing}."}, "input.missing"),
        ({"instructions": "Be ${input."}, "instructions"),
        ({"instructions": "Use ${secret.KEY}."}, "instructions"),
        ({"output_schema": {"type": 5}}, "schema"),
        ({"output_schema": {"type": "array"}}, "object"),
        ({"output_schema": {"$ref": "https://example.com/schema"}}, "schema"),
        ({"api_key": "${secret.OTHER}"}, "OTHER"),
    ],
)
async def test_an_unusable_config_is_refused_before_any_request(config, told):
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub, hosts=["127.0.0.1"])
        failure = await failure_of(invoker, invocation(**config))
        await invoker.aclose()
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert told in failure.message
    assert "hunter2" not in failure.message + str(failure.details)
    assert stub.requests == []


@pytest.mark.parametrize("key", ["sk-marker\r\nX-Other: 1", "sk-marker\n", "sk marker", "sk-märker", "sk-\x00marker"])
async def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub, secrets=FixedSecrets(OPENAI_API_KEY=key))
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert "api_key" in failure.message
    assert "rker" not in "".join(traceback.format_exception(failure))
    assert stub.requests == []


@pytest.mark.parametrize(
    "script",
    [
        ModelStub.error(401, message=f"Incorrect API key provided: {KEY}."),
        ModelStub.error(500),
        ModelStub.cut("one two"),
        ModelStub.error(200, body="<html>"),
    ],
)
async def test_no_failure_shows_the_key(script):
    failure, stub = await failure_on(script)
    assert stub.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(traceback.format_exception(failure)) + repr(vars(failure))


async def test_an_error_page_is_not_quoted_and_a_long_message_is_cut():
    failure, _ = await failure_on(ModelStub.error(502, body="<html>" + "x" * 10_000))
    assert failure.message.endswith("status 502")
    failure, _ = await failure_on(ModelStub.error(400, message="no\x1b[31m\n" + "é" * 10_000))
    assert len(failure.message) < 700
    assert "\x1b" not in failure.message
    assert "\n" not in failure.message


async def test_an_error_body_that_never_ends_does_not_hide_the_status():
    async def stall(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(stall, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        invoker = invoker_on(None, default_base_url=f"http://127.0.0.1:{port}/v1")
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.RATE_LIMITED


async def test_text_before_a_failure_has_been_emitted():
    asked = invocation()
    await failure_on(ModelStub.error(200, body=stream_of(delta("half"))), asked)
    assert asked.call.emitted == ["half"]
