"""The model's stub under the real clients: what they ask, what they make of each answer, what it notes of them."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from engine.testing import ModelStub

openai = pytest.importorskip("openai", reason="the extra llm is not installed")
pydantic_ai = pytest.importorskip("pydantic_ai", reason="the extra llm is not installed")

from pydantic import BaseModel  # noqa: E402
from pydantic_ai import Agent, NativeOutput, UnexpectedModelBehavior  # noqa: E402
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[2]
QUESTION = [{"role": "user", "content": "What is it?"}]


class Title(BaseModel):
    title: str
    pages: int


def client(stub, **options):
    return openai.AsyncOpenAI(base_url=stub.base_url, api_key="sk-test", max_retries=0, **options)


async def ask(stub, **options):
    async with client(stub) as asking:
        return await asking.chat.completions.create(**{"model": "gpt-test", "messages": QUESTION, **options})


def thinker(asking, **options):
    return Agent(OpenAIChatModel("gpt-test", provider=OpenAIProvider(openai_client=asking)), **options)


def unpacked(embedding):
    """A client that asks for base64 itself gets the text."""
    if isinstance(embedding, str):
        content = base64.b64decode(embedding)
        return list(struct.unpack(f"<{len(content) // 4}f", content))
    return embedding


async def test_a_text_is_answered_with_usage_and_the_request_is_kept():
    async with ModelStub("It is a lamp.") as stub:
        answer = await ask(stub, temperature=0)
    assert answer.choices[0].message.content == "It is a lamp."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "gpt-test"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len("It is a lamp.") // 4
    [request] = stub.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == "Bearer sk-test"
    assert request["body"] == {"model": "gpt-test", "messages": QUESTION, "temperature": 0}


async def test_a_list_is_followed_and_its_last_entry_repeated():
    async with ModelStub(["one", "two"]) as stub, client(stub) as asking:
        answers = [await asking.chat.completions.create(model="m", messages=QUESTION) for _ in range(3)]
        assert [one.choices[0].message.content for one in answers] == ["one", "two", "two"]
        assert stub.connections_made == stub.connections == 1


async def test_each_model_has_a_script_of_its_own():
    async with ModelStub(models={"small": "s", "large": ["l1", "l2"]}) as stub, client(stub) as asking:
        names = ["large", "small", "large"]
        answers = [await asking.chat.completions.create(model=name, messages=QUESTION) for name in names]
        assert [one.choices[0].message.content for one in answers] == ["l1", "s", "l2"]
        assert sorted([model.id async for model in asking.models.list()]) == ["large", "small"]
        with pytest.raises(openai.NotFoundError, match="medium"):
            await asking.chat.completions.create(model="medium", messages=QUESTION)


async def test_a_function_sees_the_request():
    async def answer(body):
        return {"asked": body["messages"][-1]["content"]}

    async with ModelStub(answer) as stub:
        got = await ask(stub)
    assert got.choices[0].message.content == '{"asked": "What is it?"}'


async def test_a_function_that_raises_is_an_error_for_client_and_test():
    def answer(body):
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        async with ModelStub(answer) as stub:
            with pytest.raises(openai.InternalServerError, match="missing"):
                await ask(stub)


async def test_a_stream_comes_in_words_with_usage_at_its_end():
    script = ModelStub.costing("It is a lamp.", input_tokens=11, output_tokens=7)
    async with ModelStub(script) as stub, client(stub) as asking:
        stream = await asking.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert words == ["It ", "is ", "a ", "lamp."]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (11, 7)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert stub.abandoned == 0


async def test_a_stream_without_usage_has_none():
    async with ModelStub("a b") as stub, client(stub) as asking:
        stream = await asking.chat.completions.create(model="m", messages=QUESTION, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_agent_uses_tools_and_gets_structured_output(streamed):
    script = [
        ModelStub.tools({"tool": "pages_of", "arguments": {"book": "Emma"}}, {"tool": "fail", "arguments": {}}),
        {"title": "Emma", "pages": 474},
    ]
    async with ModelStub(script) as stub, client(stub) as asking:
        agent = thinker(asking, output_type=Title)

        @agent.tool_plain
        def pages_of(book: str) -> int:
            return len(book) * 100

        @agent.tool_plain
        def fail() -> str:
            raise pydantic_ai.ModelRetry("not today")

        if streamed:
            async with agent.run_stream("Which book?") as result:
                output = await result.get_output()
                usage = result.usage
        else:
            done = await agent.run("Which book?")
            output, usage = done.output, done.usage
    assert output == Title(title="Emma", pages=474)
    assert usage.requests == 2
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    told = [message for message in stub.requests[1]["body"]["messages"] if message["role"] == "tool"]
    assert [(one["tool_call_id"], one["content"]) for one in told] == [
        ("call_1_0", "400"),
        ("call_1_1", '{"error":"not today"}'),
    ]


async def test_native_structured_output_is_json_in_the_content():
    async with ModelStub({"title": "Emma", "pages": 1}) as stub, client(stub) as asking:
        done = await thinker(asking, output_type=NativeOutput(Title)).run("Which?")
    assert done.output == Title(title="Emma", pages=1)
    assert stub.requests[0]["body"]["response_format"]["type"] == "json_schema"


async def test_output_against_the_schema_goes_back_to_the_model():
    async with ModelStub([{"title": "Emma"}, {"title": "Emma", "pages": 1}]) as stub, client(stub) as asking:
        done = await thinker(asking, output_type=Title).run("Which?")
    assert done.output.pages == 1
    assert len(stub.requests) == 2


async def test_arguments_that_are_no_json_are_sent_as_they_are():
    async with ModelStub({"tool": "f", "arguments": '{"a": '}) as stub:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        answer = await ask(stub, tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a": '
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_forced_error_is_the_clients_own(status, error):
    async with ModelStub(ModelStub.error(status, retry_after=7)) as stub:
        with pytest.raises(error) as caught:
            await ask(stub)
        async with client(stub) as asking:
            with pytest.raises(ModelHTTPError) as in_agent:
                await thinker(asking).run("Which?")
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.body["message"]
    assert in_agent.value.status_code == status


async def test_an_errors_body_can_be_anything():
    page = ModelStub.error(502, body="<html>Bad Gateway</html>")
    code = ModelStub.error(400, body={"error": {"message": "too much", "code": "context_length_exceeded"}})
    async with ModelStub([page, code, ModelStub.error(200, body="not json")]) as stub, client(stub) as asking:
        with pytest.raises(openai.InternalServerError) as caught:
            await asking.chat.completions.create(model="m", messages=QUESTION)
        assert caught.value.response.text == "<html>Bad Gateway</html>"
        with pytest.raises(openai.BadRequestError) as caught:
            await asking.chat.completions.create(model="m", messages=QUESTION)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(UnexpectedModelBehavior):
            await thinker(asking).run("Which?")


async def test_a_refusal_a_filter_and_the_limit_are_told_apart():
    script = [ModelStub.refusal("No."), ModelStub.filtered(), ModelStub.too_long('{"title": "Em')]
    async with ModelStub(script) as stub, client(stub) as asking:
        answers = [await asking.chat.completions.create(model="m", messages=QUESTION) for _ in script]
    found = [(one.choices[0].message.refusal, one.choices[0].finish_reason) for one in answers]
    assert found == [("No.", "stop"), (None, "content_filter"), (None, "length")]
    assert answers[2].choices[0].message.content == '{"title": "Em'


async def test_a_refusal_is_streamed_too():
    async with ModelStub(ModelStub.refusal("No, never.")) as stub, client(stub) as asking:
        stream = await asking.chat.completions.create(model="m", messages=QUESTION, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.refusal or "" for delta in deltas) == "No, never."
    assert all(not delta.content for delta in deltas)


async def test_a_slow_answer_runs_into_the_clients_timeout_and_is_abandoned():
    async with ModelStub(ModelStub.slow(30, "late")) as stub, client(stub, timeout=0.1) as asking:
        with pytest.raises(openai.APITimeoutError):
            await asking.chat.completions.create(model="m", messages=QUESTION)
        await stub.until(lambda: stub.abandoned == 1 and stub.answering == 0)


async def test_a_slow_error_comes_late():
    async with ModelStub(ModelStub.slow(0.2, ModelStub.error(503))) as stub:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(openai.InternalServerError):
            await ask(stub)
        assert asyncio.get_running_loop().time() - begun > 0.19


async def test_a_stream_can_trickle():
    async with ModelStub(ModelStub.trickle(0.3, "a b c d")) as stub, client(stub) as asking:
        now = asyncio.get_running_loop().time
        begun = now()
        stream = await asking.chat.completions.create(model="m", messages=QUESTION, stream=True)
        times = [now() - begun async for _ in stream]
    assert times[0] < 0.2 < times[-1]


@pytest.mark.parametrize("after", [0, 1])
async def test_an_answer_that_is_cut_is_a_connection_error(after):
    async with ModelStub(ModelStub.cut("It is a lamp.", after=after)) as stub, client(stub) as asking:
        with pytest.raises(openai.APIConnectionError):
            await asking.chat.completions.create(model="m", messages=QUESTION)
        with pytest.raises(ModelAPIError):
            await thinker(asking).run("Which?")
        assert stub.abandoned == 0


async def test_a_stream_is_cut_behind_its_pieces():
    async with ModelStub(ModelStub.cut("one two three", after=3)) as stub, client(stub) as asking:
        stream = await asking.chat.completions.create(model="m", messages=QUESTION, stream=True)
        words = []
        with pytest.raises(openai.APIConnectionError):
            async for chunk in stream:
                words.append(chunk.choices[0].delta.content)
    assert words == ["", "one ", "two "]


async def test_a_held_stream_goes_on_when_it_is_released():
    async with ModelStub(ModelStub.held("one two", after=2)) as stub, client(stub) as asking:
        stream = await asking.chat.completions.create(model="m", messages=QUESTION, stream=True)
        chunks = aiter(stream)
        first = [await anext(chunks), await anext(chunks)]
        assert [chunk.choices[0].delta.content for chunk in first] == ["", "one "]
        await stub.until(lambda: stub.holding == 1)
        stub.release()
        rest = [chunk.choices[0].delta.content async for chunk in chunks]
        assert rest == ["two", None]
        await stub.until(lambda: stub.answering == 0)
        assert (stub.holding, stub.most_answering, stub.abandoned) == (0, 1, 0)


async def test_a_cancelled_call_is_noticed_and_its_connection_gone():
    async with ModelStub(ModelStub.held("never")) as stub, client(stub) as asking:
        calls = [asyncio.create_task(thinker(asking).run("Which?")) for _ in range(3)]
        await stub.until(lambda: stub.holding == 3)
        assert stub.most_answering == stub.connections == 3
        calls[0].cancel()
        await stub.until(lambda: stub.abandoned == 1)
        assert (stub.holding, stub.connections) == (2, 2)
        stub.release()
        assert [done.output for done in await asyncio.gather(*calls[1:])] == ["never", "never"]
        with pytest.raises(asyncio.CancelledError):
            await calls[0]


async def test_waiting_for_what_does_not_come_says_how_things_stand():
    async with ModelStub() as stub:
        with pytest.raises(TimeoutError, match="0 requests"):
            await stub.until(lambda: stub.abandoned == 1, seconds=0.05)


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_vectors_follow_from_the_text(form):
    texts = ["the red lamp", "a red lamp on a table", "quarterly tax report", "the red lamp"]
    async with ModelStub() as stub, client(stub) as asking:
        given = {} if form is None else {"encoding_format": form}
        answer = await asking.embeddings.create(model="e", input=texts, dimensions=96, **given)
        single = await asking.embeddings.create(model="e", input=texts[0], **given)
    vectors = [unpacked(one.embedding) for one in answer.data]
    assert [one.index for one in answer.data] == [0, 1, 2, 3]
    assert {len(vector) for vector in vectors} == {96}
    assert vectors[0] == vectors[3]
    assert math.isclose(math.hypot(*vectors[0]), 1, rel_tol=1e-5)
    near, far = (sum(map(lambda a, b: a * b, vectors[0], other)) for other in vectors[1:3])
    assert near > far + 0.1
    assert len(unpacked(single.data[0].embedding)) == 256
    assert answer.usage.prompt_tokens > 0


async def test_vectors_have_a_script_of_errors():
    async with ModelStub(embeddings=[ModelStub.error(503), None]) as stub, client(stub) as asking:
        with pytest.raises(openai.InternalServerError):
            await asking.embeddings.create(model="e", input="a")
        assert (await asking.embeddings.create(model="e", input="a")).data[0].embedding
        with pytest.raises(openai.BadRequestError, match="input"):
            await asking.embeddings.create(model="e", input=["a", ""])


async def test_the_embedder_of_pydantic_ai_gets_its_vectors():
    from pydantic_ai.embeddings import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel

    async with ModelStub(dimension=32) as stub, client(stub) as asking:
        model = OpenAIEmbeddingModel("e", provider=OpenAIProvider(openai_client=asking))
        found = await Embedder(model).embed_documents(["a", "b"])
    assert [len(vector) for vector in found.embeddings] == [32, 32]


async def test_another_key_is_refused():
    async with ModelStub(api_key="sk-right") as stub:
        with pytest.raises(openai.AuthenticationError):
            await ask(stub)
        async with openai.AsyncOpenAI(base_url=stub.base_url, api_key="sk-right") as asking:
            assert await asking.chat.completions.create(model="m", messages=QUESTION)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"messages": []}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "does not match pattern"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": [*QUESTION, {"role": "tool", "tool_call_id": "x", "content": "1"}]}, "must be a response"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        ],
                    },
                    *QUESTION,
                ]
            },
            "did not have response messages: x",
        ),
    ],
)
async def test_what_the_api_refuses_is_refused(given, told):
    async with ModelStub() as stub:
        with pytest.raises(openai.BadRequestError, match=told):
            await ask(stub, **given)


async def test_other_addresses_and_broken_bodies_are_refused():
    async with ModelStub() as stub:
        for path, content, status in (("/nothing", b"{}", 404), ("/chat/completions", b"{", 400)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                await asyncio.to_thread(urllib.request.urlopen, stub.base_url + path, content)
            caught.value.close()
            assert caught.value.code == status


def test_it_serves_synchronous_code_and_leaves_nothing():
    before = set(threading.enumerate())
    with ModelStub("hello") as stub, openai.OpenAI(base_url=stub.base_url, api_key="k", max_retries=0) as asking:
        address = stub.base_url
        assert asking.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content == "hello"
    assert stub.connections == 0
    assert set(threading.enumerate()) <= before
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=2)


async def test_it_ends_with_answers_still_held():
    async with ModelStub(ModelStub.held("never")) as stub, client(stub) as asking:
        call = asyncio.create_task(asking.chat.completions.create(model="m", messages=QUESTION))
        await stub.until(lambda: stub.holding == 1)
        stub.__exit__(None, None, None)
        with pytest.raises(openai.APIConnectionError):
            await call
    assert (stub.abandoned, stub.connections, stub.holding) == (0, 0, 0)


@pytest.mark.parametrize("script", [[], 7, [b"bytes"], {"a": object}])
def test_a_script_of_something_else_is_refused_at_once(script):
    with pytest.raises(TypeError):
        ModelStub(script)


def test_importing_the_doubles_loads_no_temporal_and_no_client():
    heavy = "{'temporalio', 'httpx', 'httpx2', 'openai', 'pydantic_ai', 'click'}"
    program = f"import sys, engine.testing as t; t.ModelStub('a'); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
