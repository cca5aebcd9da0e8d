"""Large values stay out of Temporal's history and arrive whole all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from runs import EngineFactory, create, decoded_sizes, echo, ended, events_of, finish, payloads_in, start

from engine.domain.messages import MAX_INLINE_OUTPUT_BYTES, MAX_PAYLOAD_BYTES
from engine.errors import InvalidInputError
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from temporalio.client import Client

    from engine.bootstrap import Stores

pytestmark = ON_BOTH_STORES

KIB = 1024


def text_of(size_bytes: int, letter: str = "x") -> str:
    return letter * size_bytes


async def test_large_inputs_and_outputs_arrive_whole_and_leave_history_small(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    seen: dict[str, Any] = {}

    def keep(given: Any) -> Any:
        seen.update(given)
        return {"title": given["title"], "body": given["body"] + "!"}

    engine = engine_factory(
        {"agent-big": {"title": "T", "body": text_of(300 * KIB), "huge": {"deep": text_of(KIB**2)}}, "agent-keep": keep}
    )
    given = {"topic": "cats", "files": [text_of(300 * KIB, "i")]}
    execution_id = await start(
        engine,
        [
            {"id": "big", "agent_id": "agent-big", "input_mapping": {"topic": "${input.topic}"}},
            {
                "id": "keep",
                "agent_id": "agent-keep",
                "input_mapping": {
                    "title": "${steps.big.output.title}",
                    "body": "${steps.big.output.body}",
                    "text": "<${steps.big.output.huge.deep}>",
                    "file": "${input.files[0]}",
                    "absent": "${steps.big.output.no ?? 7}",
                },
                "output_mapping": {"body": "${output.body}", "from": "${steps.big.output.body}", "n": "${input.topic}"},
            },
        ],
        given,
        output_mapping={"title": "${steps.big.output.title}", "body": "${steps.keep.output.body}", "all": "${input}"},
    )
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "completed"
    assert seen["title"] == "T"
    assert seen["body"] == text_of(300 * KIB)
    assert seen["text"] == f"<{text_of(KIB**2)}>"
    assert seen["file"] == given["files"][0]
    assert seen["absent"] == 7
    assert result["output"] == {"title": "T", "body": text_of(300 * KIB) + "!", "all": given}
    assert result["steps"]["keep"]["output"]["from"] == text_of(300 * KIB)
    assert result["steps"]["keep"]["output"]["n"] == "cats"
    events = await events_of(client, execution_id)
    assert max(decoded_sizes(events)) <= MAX_PAYLOAD_BYTES
    encodings = {payload.metadata["encoding"] for event in events for payload in payloads_in(event)}
    assert b"binary/zstd" in encodings


async def test_payloads_over_the_threshold_are_compressed_and_those_under_it_are_not(
    engine_factory: EngineFactory, client: Client
):
    engine = engine_factory({"agent-a": {"text": text_of(20 * KIB)}}, compression_threshold=2 * KIB)
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a"}], {"small": "s"})
    await finish(engine, execution_id)
    events = await events_of(client, execution_id)
    started = events[0].workflow_execution_started_event_attributes
    assert started.input.payloads[0].metadata["encoding"] == b"json/plain"
    (outcome,) = (
        event.activity_task_completed_event_attributes.result.payloads[0]
        for event in events
        if event.HasField("activity_task_completed_event_attributes")
    )
    assert outcome.metadata["encoding"] == b"binary/zstd"
    assert len(outcome.data) < 2 * KIB


async def test_whole_large_outputs_pass_through_the_default_mapping(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    large = {"rows": [text_of(100 * KIB, letter) for letter in "abcd"]}
    engine = engine_factory({"agent-a": large, "agent-echo": echo})
    execution_id = await start(
        engine,
        [
            {"id": "a", "agent_id": "agent-a"},
            {"id": "b", "agent_id": "agent-echo", "depends_on": ["a"]},
            {"id": "c", "agent_id": "agent-echo", "input_mapping": {"whole": "${steps.b.output}"}},
        ],
        {"file": text_of(400 * KIB)},
    )
    result = await ended(engine, stores, client, execution_id)
    assert result["output"] == {"whole": {"input": {"file": text_of(400 * KIB)}, "steps": {"a": large}}}
    assert max(decoded_sizes(await events_of(client, execution_id))) <= MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("count", [8, 40])
async def test_many_middling_outputs_join_in_one_call(
    engine_factory: EngineFactory, stores: Stores, client: Client, count: int
):
    """Each of them is inline; together they would be more than a payload may have, or nearly so."""
    text = text_of(31 * KIB)

    def join(given: Any) -> object:
        return {"joined": len(given["all"])}

    engine = engine_factory({"agent-a": {"text": text}, "agent-join": join})
    steps: list[dict[str, Any]] = [{"id": f"s{number}", "agent_id": "agent-a"} for number in range(count)]
    steps.append(
        {
            "id": "join",
            "agent_id": "agent-join",
            "input_mapping": {"all": "".join(f"${{steps.s{number}.output.text}}" for number in range(count))},
        }
    )
    execution_id = await start(engine, steps)
    result = await ended(engine, stores, client, execution_id)
    assert result["output"] == {"joined": count * len(text)}
    assert max(decoded_sizes(await events_of(client, execution_id))) <= MAX_PAYLOAD_BYTES


async def test_an_input_just_below_the_limit_leaves_room_for_the_rest_of_the_call(
    engine_factory: EngineFactory, client: Client
):
    parts = 8
    engine = engine_factory({"agent-a": {"text": text_of(MAX_INLINE_OUTPUT_BYTES - 24)}, "agent-b": {}})
    steps: list[dict[str, Any]] = [{"id": f"s{number}", "agent_id": "agent-a"} for number in range(parts)]
    steps.append({"id": "b", "agent_id": "agent-b", "depends_on": [step["id"] for step in steps]})
    execution_id = await start(engine, steps)
    assert (await finish(engine, execution_id))["status"] == "completed"
    assert max(decoded_sizes(await events_of(client, execution_id))) <= MAX_PAYLOAD_BYTES


async def test_many_declared_values_of_one_output_do_not_add_up_in_history(
    engine_factory: EngineFactory, stores: Stores, client: Client
):
    parts = {f"part{number}": text_of(15 * KIB, chr(97 + number)) for number in range(20)}
    engine = engine_factory({"agent-a": parts, "agent-echo": echo})
    steps: list[dict[str, Any]] = [{"id": "a", "agent_id": "agent-a", "input_mapping": dict.fromkeys(parts, 1)}]
    for half, keys in (("one", list(parts)[:10]), ("two", list(parts)[10:])):
        mapping = {key: f"${{steps.a.output.{key}}}" for key in keys}
        given = {f"in_{key}": f"${{input.{key}}}" for key in keys}
        steps.append({"id": half, "agent_id": "agent-echo", "input_mapping": mapping | given})
    execution_id = await start(engine, steps, parts)
    result = await ended(engine, stores, client, execution_id)
    got = result["output"]["one"] | result["output"]["two"]
    assert got == parts | {f"in_{key}": value for key, value in parts.items()}
    assert max(decoded_sizes(await events_of(client, execution_id))) <= MAX_PAYLOAD_BYTES


async def test_an_input_over_64_mib_is_refused_before_anything_is_written(
    engine_factory: EngineFactory, stores: Stores
):
    engine = engine_factory({"agent-a": {}})
    workflow_id = await create(engine, [{"id": "a", "agent_id": "agent-a"}])
    with pytest.raises(InvalidInputError, match="64 MiB"):
        await engine.execute_workflow(workflow_id, {"text": text_of(64 * KIB**2)})
    assert (await engine.list_executions(workflow_id))["items"] == []


async def test_an_output_over_64_mib_is_an_invalid_output(engine_factory: EngineFactory):
    half = text_of(33 * KIB**2)
    engine = engine_factory({"agent-a": {"a": half, "b": half}})
    execution_id = await start(
        engine, [{"id": "a", "agent_id": "agent-a", "retry_policy": {"max_retries": 0}, "timeout": 60}]
    )
    result = await finish(engine, execution_id)
    assert (result["status"], result["steps"]["a"]["reason"]) == ("failed", "invalid_output")
    assert str(64 * KIB**2) in result["error"]["message"]
