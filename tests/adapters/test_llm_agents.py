"""Model agents against a stub of the API: what is asked, what is taken for an answer, what a call leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
import time

import pytest
from llm_samples import KEY, PERSON, FixedSecrets, failure_of, invocation, invoker_on, sent

from engine.adapters.agents.llm.prices import ModelPrices
from engine.domain.agent_call import FailureReason
from engine.testing import ModelStub

PERSON_A = {"name": "Ada", "age": 36}


@pytest.fixture
async def ask():
    """Ask one stub after another; the invokers are closed at the end."""
    opened = []

    async def asking(stub, asked, **options):
        opened.append(invoker_on(stub, **options))
        return await opened[-1].invoke_agent(asked)

    yield asking
    for invoker in opened:
        await invoker.aclose()


async def test_free_text_is_an_object_with_text(ask):
    async with ModelStub("Because.") as stub:
        asked = invocation(instructions="Answer ${input.question} in short.", temperature=0.5, max_tokens=50)
        reply = await ask(stub, asked)
    assert reply.output == {"text": "Because."}
    [request] = stub.requests
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    body = request["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0.5, 50)
    assert sent(stub) == [
        {"role": "system", "content": "Answer Why? in short."},
        {"role": "user", "content": "Why?"},
    ]
    assert "tools" not in body


async def test_only_the_api_s_own_headers_leave_the_machine(ask, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Other: of-the-environment\nAuthorization: of-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with ModelStub("Yes.") as stub:
        await ask(stub, invocation())
    assert "of-the-environment" not in str(stub.requests)
    assert set(stub.requests[0]["headers"]) == {
        "host", "accept", "content-type", "content-length", "authorization", "accept-encoding", "user-agent",
    }  # fmt: skip


@pytest.mark.parametrize("by", ["agent", "step"])
async def test_a_schema_makes_validated_output(ask, by):
    asked = invocation(output_schema=PERSON if by == "step" else None)
    if by == "agent":
        asked.agent.config["output_schema"] = PERSON
    async with ModelStub(PERSON_A) as stub:
        reply = await ask(stub, asked)
    assert reply.output == PERSON_A
    [told] = stub.requests[0]["body"]["tools"]
    assert told["function"]["name"] == "final_result"
    assert told["function"]["parameters"]["properties"].keys() == {"name", "age"}
    assert stub.requests[0]["body"]["tool_choice"] == "required"


async def test_the_agent_s_schema_is_taken_before_the_step_s(ask):
    asked = invocation(output_schema=PERSON)
    asked.agent.config["output_schema"] = {"properties": {"x": {"type": "integer"}}, "required": ["x"]}
    async with ModelStub({"x": 1}) as stub:
        assert (await ask(stub, asked)).output == {"x": 1}


async def test_a_recursive_schema_is_told_and_checked(ask):
    schema = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "required": ["tree"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name"],
            }
        },
    }
    wrong = {"tree": {"name": "a", "below": [{"below": []}]}}
    right = {"tree": {"name": "a", "below": [{"name": "b"}]}}
    async with ModelStub([wrong, right]) as stub:
        assert (await ask(stub, invocation(output_schema=schema))).output == right
    assert "$defs" in stub.requests[0]["body"]["tools"][0]["function"]["parameters"]
    assert "output.tree.below[0].name" in sent(stub)[-1]["content"]


async def test_keys_that_are_read_make_an_object_with_them(ask):
    async with ModelStub({"plan": ["a"], "cost": 3}) as stub:
        reply = await ask(stub, invocation(reply_keys=["plan", "cost", "plan"]))
    assert reply.output == {"plan": ["a"], "cost": 3}
    function = stub.requests[0]["body"]["tools"][0]["function"]
    assert function["parameters"]["required"] == ["plan", "cost"]
    assert not function.get("strict")


async def test_only_text_read_is_free_text(ask):
    async with ModelStub("Because.") as stub:
        assert (await ask(stub, invocation(reply_keys=["text"]))).output == {"text": "Because."}
    assert "tools" not in stub.requests[0]["body"]


@pytest.mark.parametrize("text", ['{"name": "Ada", "age": 36}', '```json\n{"name": "Ada", "age": 36}\n```\n'])
async def test_an_object_as_text_is_taken_too(ask, text):
    async with ModelStub(text) as stub:
        assert (await ask(stub, invocation(output_schema=PERSON))).output == PERSON_A
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "Ada", "age": "36"}, "output.age"),
        ({"name": "Ada"}, "output.age"),
        ({"tool": "final_result", "arguments": '{"name": "Ada", '}, "no JSON"),
        ({"tool": "final_result", "arguments": "[1]"}, "no JSON object"),
        ({"tool": "final_result", "arguments": '{"name": "Ada", "age": 1' + "0" * 30 + "}"}, "64 bits"),
        ("Ada is 36.", "no JSON"),
        ("", "empty"),
    ],
)
async def test_what_does_not_fit_is_repaired(ask, wrong, told):
    async with ModelStub([wrong, PERSON_A]) as stub:
        reply = await ask(stub, invocation(output_schema=PERSON))
    assert reply.output == PERSON_A
    assert reply.usage.requests == len(stub.requests) == 2
    assert reply.usage.tool_calls == 0
    assert told in sent(stub)[-1]["content"]


async def test_an_empty_text_is_asked_for_again(ask):
    async with ModelStub(["", "Because."]) as stub:
        assert (await ask(stub, invocation())).output == {"text": "Because."}


async def test_usage_is_summed_over_repairs_and_priced(ask, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text('["some-model"]\ninput = 2.0\noutput = 10.0\n')
    script = [
        ModelStub.costing({"name": 1}, input_tokens=100, output_tokens=10),
        ModelStub.costing(PERSON_A, input_tokens=200, output_tokens=20),
    ]
    async with ModelStub(script) as stub:
        reply = await ask(stub, invocation(output_schema=PERSON), prices=ModelPrices(file))
        unpriced = await ask(stub, invocation(output_schema=PERSON))
    assert (reply.usage.requests, reply.usage.input_tokens, reply.usage.output_tokens) == (2, 300, 30)
    assert reply.usage.cost_usd == pytest.approx((300 * 2 + 30 * 10) / 1e6)
    assert unpriced.usage.cost_usd is None


async def test_usage_that_nobody_told_has_no_cost(ask, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text('["some-model"]\ninput = 2.0\noutput = 10.0\n')
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    body = f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\ndata: [DONE]\n\n"
    async with ModelStub(ModelStub.error(200, body=body)) as stub:
        reply = await ask(stub, invocation(), prices=ModelPrices(file))
    assert reply.output == {"text": "Yes."}
    assert (reply.usage.requests, reply.usage.input_tokens, reply.usage.cost_usd) == (1, 0, None)


async def test_text_arrives_while_the_call_runs_in_a_few_pieces(ask):
    text = "".join(f"line {number}\n" for number in range(40)) + "the end"
    asked = invocation()
    async with ModelStub(ModelStub.trickle(1.2, text)) as stub:
        task = asyncio.create_task(ask(stub, asked))
        await stub.until(lambda: bool(asked.call.emitted))
        assert not task.done()
        reply = await task
    assert reply.output == {"text": text}
    assert "".join(asked.call.emitted) == text
    assert 2 <= len(asked.call.emitted) <= 12
    assert all(piece.endswith("\n") for piece in asked.call.emitted[:-1])


async def test_a_text_without_lines_comes_in_pieces_of_what_an_event_holds(ask):
    asked = invocation()
    async with ModelStub("x" * 5_000) as stub:
        await ask(stub, asked)
    assert "".join(asked.call.emitted) == "x" * 5_000
    assert max(map(len, asked.call.emitted)) <= 2_000


async def test_structured_output_emits_no_arguments(ask):
    asked = invocation(output_schema=PERSON)
    async with ModelStub(PERSON_A) as stub:
        await ask(stub, asked)
    assert asked.call.emitted == []


@pytest.mark.parametrize("after", [0, 2])
async def test_cancelling_ends_the_request_at_once(after):
    async with ModelStub(ModelStub.held("one two three four", after=after)) as stub:
        invoker = invoker_on(stub)
        task = asyncio.create_task(invoker.invoke_agent(asked := invocation()))
        await stub.until(lambda: stub.holding == 1, 20)
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stub.until(lambda: stub.abandoned == 1, 2)
        assert time.monotonic() - started < 2
        emitted = list(asked.call.emitted)
        await asyncio.sleep(0.3)
        assert asked.call.emitted == emitted
        await invoker.aclose()


async def test_many_calls_at_once_are_all_answered():
    async with ModelStub(lambda body: f"to {body['messages'][-1]['content']}") as stub:
        invoker = invoker_on(stub)
        replies = await asyncio.gather(
            *(invoker.invoke_agent(invocation({"question": str(number)})) for number in range(100))
        )
        await invoker.aclose()
    assert [reply.output["text"] for reply in replies] == [f"to {number}" for number in range(100)]
    assert len(stub.requests) == 100


async def test_connections_are_used_again_and_closed_at_the_end():
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub)
        for _ in range(3):
            await invoker.invoke_agent(invocation())
        assert stub.connections_made == 1
        await invoker.aclose()
        await stub.until(lambda: stub.connections == 0)
        await invoker.invoke_agent(invocation())
        await invoker.aclose()
        await invoker.aclose()
        await stub.until(lambda: stub.connections == 0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    gc.collect()


async def test_an_answer_ends_with_its_mark_even_when_the_stream_does_not():
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        choice = {"index": 0, "delta": {"content": "Yes."}, "finish_reason": "stop"}
        event = json.dumps(
            {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        )
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {event}\n\ndata: [DONE]\n\n".encode()
        )
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        invoker = invoker_on(None, default_base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        reply = await asyncio.wait_for(invoker.invoke_agent(invocation()), 15)
        await invoker.aclose()
    assert reply.output == {"text": "Yes."}


async def test_closing_ends_calls_that_are_open():
    async with ModelStub(["warm", ModelStub.held("one two three", after=2)]) as stub:
        invoker = invoker_on(stub)
        await invoker.invoke_agent(invocation())
        task = asyncio.create_task(failure_of(invoker, invocation()))
        await stub.until(lambda: stub.holding == 1)
        await invoker.aclose()
        assert (await task).reason is FailureReason.UNAVAILABLE
        await stub.until(lambda: stub.connections == 0)


async def test_a_stream_with_carriage_returns_is_read_too(ask):
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [({"content": "a"}, None), ({"content": "b"}, None), ({}, "stop")]
    events = [{**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas]
    body = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events) + "data: [DONE]\r\n\r\n"
    async with ModelStub(ModelStub.error(200, body=body)) as stub:
        assert (await ask(stub, invocation())).output == {"text": "ab"}


def test_two_loops_have_connections_of_their_own():
    with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub)

        async def call_and_close():
            try:
                return (await invoker.invoke_agent(invocation())).output
            finally:
                await invoker.aclose()

        answers = []
        threads = [threading.Thread(target=lambda: answers.append(asyncio.run(call_and_close()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [{"text": "Yes."}] * 2
        assert stub.connections_made == 2


async def test_each_key_goes_with_its_own_agent_and_new_ones_are_used(ask):
    secrets = FixedSecrets(A="key-of-a", B="key-of-b")
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub, secrets=secrets)
        for name in ("A", "B", "A"):
            await invoker.invoke_agent(invocation(api_key=f"${{secret.{name}}}"))
        secrets.values["A"] = "new-key-of-a"
        await invoker.invoke_agent(invocation(api_key="${secret.A}"))
        await invoker.aclose()
    keys = [request["headers"]["authorization"].removeprefix("Bearer ") for request in stub.requests]
    assert keys == ["key-of-a", "key-of-b", "key-of-a", "new-key-of-a"]
    assert {host for _, host in secrets.asked} == {stub.base_url.split("/")[2]}


async def test_an_endpoint_that_is_not_openai_s_needs_no_key(ask):
    async with ModelStub("Yes.") as stub:
        await ask(stub, invocation(), secrets=FixedSecrets())
    assert stub.requests[0]["headers"]["authorization"] == "Bearer no-key"


async def test_an_endpoint_that_wants_a_key_all_the_same_tells_why_there_was_none():
    async with ModelStub("Yes.", api_key="right") as stub:
        invoker = invoker_on(stub, secrets=FixedSecrets())
        failure = await failure_of(invoker, invocation())
        await invoker.aclose()
    assert failure.reason is FailureReason.UNAUTHORIZED
    assert "OPENAI_API_KEY is not set" in failure.message


async def test_the_default_key_does_not_go_where_an_agents_config_points():
    async with ModelStub("Yes.", api_key="right") as stub, ModelStub("Yes.") as other:
        host = stub.base_url.split("/")[2]
        secrets = FixedSecrets(OPENAI_API_KEY=KEY)
        invoker = invoker_on(other, secrets=secrets, hosts=[host])
        failure = await failure_of(invoker, invocation(base_url=stub.base_url))
        named = await failure_of(invoker, invocation(base_url=stub.base_url, api_key="${secret.OPENAI_API_KEY}"))
        await invoker.aclose()
    assert [request["headers"]["authorization"] for request in stub.requests] == ["Bearer no-key", f"Bearer {KEY}"]
    assert "api_key: ${secret.OPENAI_API_KEY}" in failure.message
    assert "api_key:" not in named.message


@pytest.mark.parametrize("config", [{}, {"base_url": "https://api.openai.com/v1"}])
async def test_openai_needs_its_key(config):
    failure = await failure_of(invoker_on(None, secrets=FixedSecrets()), invocation(**config))
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert "OPENAI_API_KEY" in failure.message


async def test_openai_is_allowed_without_an_entry_and_asked_at_its_address():
    asked_for = []

    async def resolve(host, port):
        asked_for.append((host, port))
        return ["127.0.0.1"]

    failure = await failure_of(invoker_on(None, resolve=resolve), invocation())
    assert asked_for == [("api.openai.com", 443)]
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert "loopback" in failure.message


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:9/v1", "http://api.openai.com/v1", "http://169.254.169.254/v1", "https://other.example/v1"],
)
async def test_another_host_needs_an_entry_and_costs_no_request(base_url):
    secrets = FixedSecrets(OPENAI_API_KEY=KEY)
    failure = await failure_of(invoker_on(None, secrets=secrets), invocation(base_url=base_url))
    assert failure.reason is FailureReason.INVALID_REQUEST
    assert failure.details["setting"] == "allowed_hosts"
    assert failure.usage.requests == 0
    assert secrets.asked == []


async def test_an_agent_s_own_endpoint_is_used_when_it_is_listed(ask):
    async with ModelStub("mine") as stub, ModelStub("default") as other:
        host = stub.base_url.split("/")[2]
        assert (await ask(other, invocation(base_url=stub.base_url), hosts=[host])).output == {"text": "mine"}
        assert (await ask(other, invocation(), hosts=[host])).output == {"text": "default"}


async def test_a_trace_has_all_messages_and_no_credentials(ask):
    asked = invocation(instructions="Be short.", output_schema=PERSON, trace=True)
    async with ModelStub(["Ada", PERSON_A]) as stub:
        reply = await ask(stub, asked)
        silent = await ask(stub, invocation(output_schema=PERSON))
    assert [message["role"] for message in reply.transcript] == ["system", "user", "assistant", "user", "assistant"]
    assert reply.transcript[-1]["tool_calls"][0]["arguments"] == PERSON_A
    json.dumps(reply.transcript, allow_nan=False)
    assert KEY not in str(reply.transcript)
    assert silent.transcript is None


async def test_nothing_secret_is_logged(ask, caplog):
    async with ModelStub(["Yes.", ModelStub.error(401), ModelStub.cut("x")]) as stub:
        with caplog.at_level(logging.DEBUG):
            invoker = invoker_on(stub)
            await invoker.invoke_agent(invocation())
            for _ in range(2):
                await failure_of(invoker, invocation())
            await invoker.aclose()
    assert len(stub.requests) == 3
    assert KEY not in caplog.text


async def test_the_loop_keeps_its_beat_while_the_libraries_load():
    script = """
import asyncio, sys, time
sys.path.insert(0, "tests/adapters")
from llm_samples import invocation, invoker_on
from engine.testing import ModelStub
assert not {"openai", "pydantic_ai", "httpx2"} & sys.modules.keys()
async def beat(gaps):
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.02)
        gaps.append(time.monotonic() - began)
async def main():
    gaps = []
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub)
        beats = asyncio.create_task(beat(gaps))
        await invoker.invoke_agent(invocation())
        beats.cancel()
        await invoker.aclose()
    print(max(gaps))
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2


async def test_a_missing_extra_is_told_with_the_way_to_get_it():
    script = """
import asyncio, sys
sys.path.insert(0, "tests/adapters")
from llm_samples import failure_of, invocation, invoker_on
sys.modules["openai"] = None
failure = asyncio.run(failure_of(invoker_on(None), invocation()))
print(failure.reason, failure.message)
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("invalid_request")
    assert "./baton install llm" in done.stdout
