"""Tools of model agents: what the model is told of them, what comes back to it, what is recorded."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from llm_samples import PERSON, failure_of, invocation, invoker_on, sent, tool

from engine.domain.agent_call import AgentFailure, FailureReason
from engine.ports.tools import Tool, ToolFailure
from engine.testing import ModelStub

ASK = {"tool": "look", "arguments": {"word": "a"}}
WORD = {"word": {"type": "string"}}


async def reply_of(script, *tools: Tool, names=("look",), **config):
    """Return the reply, and the stub that it came from."""
    async with ModelStub(script) as stub:
        invoker = invoker_on(stub, *tools)
        reply = await invoker.invoke_agent(invocation(tools=names, **config))
        await invoker.aclose()
    return reply, stub


def told(stub: ModelStub) -> list[str]:
    """Return what the last request tells of tools, in order."""
    return [message["content"] for message in sent(stub) if message["role"] == "tool"]


async def test_a_result_goes_back_and_is_recorded():
    async def look(arguments, call):
        await asyncio.sleep(0.02)
        return {"found": [arguments["word"], call.step_id]}

    reply, stub = await reply_of([ASK, "Done."], tool("look", look, **WORD))
    assert reply.output == {"text": "Done."}
    assert told(stub) == ['{"found":["a","step1"]}']
    [use] = reply.tool_calls
    assert (use.name, use.arguments, use.error) == ("look", {"word": "a"}, None)
    assert use.duration >= timedelta(seconds=0.02)
    assert (reply.usage.requests, reply.usage.tool_calls) == (2, 1)
    [function] = stub.requests[0]["body"]["tools"]
    assert function["function"]["name"] == "look"
    assert function["function"]["description"] == "Does look."
    assert stub.requests[0]["body"]["tool_choice"] == "auto"


async def test_a_text_goes_back_as_it_is():
    async def look(arguments, call):
        return 'a "text"'

    _, stub = await reply_of([ASK, "Done."], tool("look", look, **WORD))
    assert told(stub) == ['a "text"']


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (ToolFailure("no such word"), "Error: no such word"),
        (ValueError("odd"), "Error: ValueError: odd"),
        (AgentFailure(FailureReason.UNAVAILABLE, "gone"), "Error: AgentFailure: gone"),
        (TimeoutError("slow"), "Error: TimeoutError: slow"),
        (asyncio.CancelledError(), "Error: The tool was cancelled by its own code"),
    ],
)
async def test_what_a_tool_raises_goes_back_to_the_model(raised, shown):
    async def look(arguments, call):
        raise raised

    reply, stub = await reply_of([ASK, "Done."], tool("look", look, **WORD))
    assert reply.output == {"text": "Done."}
    assert told(stub) == [shown]
    assert f"Error: {reply.tool_calls[0].error}" == shown


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"tool": "look", "arguments": {}}, "arguments.word"),
        ({"tool": "look", "arguments": {"word": 5}}, "arguments.word"),
        ({"tool": "look", "arguments": '{"word": "a"'}, "no JSON"),
        ({"tool": "look", "arguments": "[]"}, "no JSON object"),
        ({"tool": "lok", "arguments": {}}, "the tools are: look"),
    ],
)
async def test_arguments_that_do_not_fit_reach_no_tool(asked, shown):
    async def look(arguments, call):
        raise AssertionError

    reply, stub = await reply_of([asked, "Done."], tool("look", look, **WORD))
    assert shown in told(stub)[0]
    assert len(reply.tool_calls) == 1
    assert reply.tool_calls[0].error


async def test_several_tools_run_together_and_answer_in_order():
    both = asyncio.Barrier(2)

    async def look(arguments, call):
        async with asyncio.timeout(5), both:
            return arguments["word"]

    asked = ModelStub.tools(*({"tool": "look", "arguments": {"word": word}} for word in "ab"))
    reply, stub = await reply_of([asked, "Done."], tool("look", look, **WORD))
    assert told(stub) == ["a", "b"]
    assert {use.arguments["word"] for use in reply.tool_calls} == {"a", "b"}


async def test_tools_and_structured_output_go_together():
    async def look(arguments, call):
        return "36"

    person = {"name": "Ada", "age": 36}
    reply, stub = await reply_of([ASK, person], tool("look", look, **WORD), output_schema=PERSON)
    assert reply.output == person
    assert [each["function"]["name"] for each in stub.requests[0]["body"]["tools"]] == ["look", "final_result"]


async def test_a_tool_asked_for_beside_the_output_runs_too():
    ran = []

    async def look(arguments, call):
        ran.append(arguments)
        return ""

    person = {"name": "Ada", "age": 36}
    asked = ModelStub.tools(ASK, {"tool": "final_result", "arguments": person})
    reply, stub = await reply_of(asked, tool("look", look, **WORD), output_schema=PERSON)
    assert (reply.output, ran, len(stub.requests)) == (person, [{"word": "a"}], 1)


async def test_a_tool_may_have_the_output_s_name():
    async def final_result(arguments, call):
        return "not this one"

    async with ModelStub(
        [{"tool": "final_result", "arguments": {}}, {"tool": "final_result_", "arguments": {"x": 1}}]
    ) as stub:
        invoker = invoker_on(stub, tool("final_result", final_result))
        reply = await invoker.invoke_agent(invocation(tools=["final_result"], reply_keys=["x"]))
        await invoker.aclose()
    assert reply.output == {"x": 1}
    assert told(stub) == ["not this one"]


async def test_a_missing_tool_is_a_warning():
    reply, stub = await reply_of("Done.", names=["look", "mcp://s/t"])
    assert [warning.code for warning in reply.warnings] == ["unknown_tool"] * 2
    assert "mcp://s/t" in reply.warnings[1].message
    assert "tools" not in stub.requests[0]["body"]


async def test_large_arguments_are_recorded_in_part_and_a_large_result_is_refused():
    async def look(arguments, call):
        return "x" * 300_000

    asked = {"tool": "look", "arguments": {"word": "é" * 5_000}}
    reply, stub = await reply_of([asked, "Done."], tool("look", look, **WORD))
    assert isinstance(reply.tool_calls[0].arguments, str)
    assert len(reply.tool_calls[0].arguments) == 2_000
    assert "ask for less" in told(stub)[0]


async def test_a_tool_ends_with_the_call_and_is_recorded():
    ended = asyncio.Event()

    async def look(arguments, call):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    asked = ModelStub.tools(ASK, ASK)
    async with ModelStub(["warm", asked]) as stub:
        invoker = invoker_on(stub, tool("look", look, **WORD))
        await invoker.invoke_agent(invocation())
        started = time.monotonic()
        failure = await failure_of(invoker, invocation(tools=["look"], seconds=0.7))
        assert time.monotonic() - started < 2
        await invoker.aclose()
    assert failure.reason is FailureReason.TIMEOUT
    assert ended.is_set()
    assert [use.error for use in failure.tool_calls] == ["The call ended before the tool did"] * 2


async def test_a_failure_keeps_the_tools_and_tokens_before_it():
    async def look(arguments, call):
        return "x"

    script = [ModelStub.costing(ASK, input_tokens=10, output_tokens=5), ModelStub.error(503, retry_after=4)]
    async with ModelStub(script) as stub:
        invoker = invoker_on(stub, tool("look", look, **WORD))
        failure = await failure_of(invoker, invocation(tools=["look"]))
        await invoker.aclose()
    assert failure.reason is FailureReason.UNAVAILABLE
    assert failure.retry_after == timedelta(seconds=4)
    assert (failure.usage.requests, failure.usage.input_tokens, failure.usage.output_tokens) == (2, 10, 5)
    assert [use.name for use in failure.tool_calls] == ["look"]


async def test_a_server_of_tools_that_does_not_start_fails_the_call():
    async with ModelStub("Yes.") as stub:
        invoker = invoker_on(stub)

        async def resolve_tools(names, call):
            raise AgentFailure(FailureReason.UNAVAILABLE, "The MCP server s does not start")

        invoker._tools.resolve_tools = resolve_tools
        failure = await failure_of(invoker, invocation(tools=["mcp://s/t"]))
        await invoker.aclose()
    assert failure.reason is FailureReason.UNAVAILABLE
    assert stub.requests == []
