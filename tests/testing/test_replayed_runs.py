"""Recorded runs: what a recording keeps, that it plays the same path again, and what a changed definition shows."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from engine import AgentFailure, FailureReason, WorkflowEngine
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentInvocation
from engine.domain.expressions import RootsScope, compile_template
from engine.domain.ids import call_address
from engine.errors import InvalidInputError
from engine.testing import Recording, ReplayAgentInvoker, ScriptedAgentInvoker, compare_runs, replay_recording
from engine.testing.comparison import PathStep
from engine.testing.replies import rebuilt_reply

DEFINITION = {
    "name": "Article",
    "output_mapping": {"text": "${steps.review.output.text}", "points": "${steps.plan.output.points}"},
    "steps": [
        {
            "id": "plan",
            "agent_id": "agent-planner",
            "input_mapping": {"topic": "${input.topic}"},
            "output_mapping": {"points": "${output.plan.points}", "title": "On ${output.plan.title}, briefly"},
            "output_schema": {"type": "object", "required": ["plan", "mood"]},
        },
        {
            "id": "draft",
            "agent_id": "agent-writer",
            "input_mapping": {"points": "${steps.plan.output.points}"},
            "retry_policy": {"initial_interval": 0.01, "max_retries": 2},
        },
        {
            "id": "review",
            "agent_id": "agent-reviewer",
            "input_mapping": {"text": "${steps.draft.output.text}"},
            "fallback": {"agent_id": "agent-editor"},
        },
    ],
}
AGENTS = ("agent-planner", "agent-writer", "agent-reviewer", "agent-editor")
SCRIPTS = {
    "agent-planner": {"plan": {"points": ["a", "b"], "title": "Tea"}, "mood": "calm"},
    "agent-writer": [AgentFailure(FailureReason.RATE_LIMITED, "busy"), {"text": "a and b", "words": 3}],
    "agent-reviewer": AgentFailure(FailureReason.REFUSED, "not me"),
    "agent-editor": {"text": "A and B."},
}


@pytest.fixture
def record(engine_config):
    """Run a definition with scripted agents and record the run."""

    async def record(definition=DEFINITION, scripts=SCRIPTS, options=None, input_data=None):
        async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(scripts)) as engine:
            for agent_id in AGENTS:
                await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "nowhere:agent"})
            workflow_id = await engine.create_workflow(**definition)
            given = {"topic": "tea"} if input_data is None else input_data
            execution = await engine.execute_workflow(workflow_id, given, options)
            await engine.get_execution_result(execution["execution_id"], wait=30)
            return await Recording.take(engine, execution["execution_id"])

    return record


@pytest.fixture
def replay(dev_server):
    """Replay on the session's server; all else is what replay_recording chooses."""

    async def replay(recording, definition=None):
        config = {"temporal_address": dev_server.address, "task_queue": f"replay-{id(recording)}"}
        return await replay_recording(recording, definition, config=config)

    return replay


def changed(**steps):
    """The definition with other fields in some steps; None removes one."""
    definition = copy.deepcopy(DEFINITION)
    for step in definition["steps"]:
        step.update(steps.get(step["id"], {}))
        for key in [key for key, value in step.items() if value is None]:
            del step[key]
    return definition


async def test_a_recording_keeps_what_decided_each_step(record, tmp_path):
    recording = await record(options={"trace": True})
    assert recording.definition == DEFINITION
    assert recording.input == {"topic": "tea"}
    assert recording.output == {"text": "A and B.", "points": ["a", "b"]}
    plan, draft, review = recording.steps.values()
    assert plan.calls[0].reply == {"plan": {"points": ["a", "b"], "title": "Tea"}}
    assert not plan.calls[0].is_whole
    assert plan.calls[0].input == {"topic": "tea"}
    assert draft.calls[0].reply == {"text": "a and b", "words": 3}
    assert draft.calls[0].is_whole
    assert [(call.agent_id, call.failure and call.failure.reason) for call in review.calls] == [
        ("agent-reviewer", "refused"),
        ("agent-editor", None),
    ]
    recording.save(tmp_path / "run.json")
    assert Recording.load(tmp_path / "run.json") == recording


async def test_the_same_definition_takes_the_same_path_to_the_same_result(record, replay):
    recording = await record()
    again = await replay(recording)
    found = compare_runs(recording, again)
    assert found.to_dict()["path"] == []
    assert found.to_dict()["result"] == []
    assert found.is_equal
    assert [(step.step_id, step.after) for step in found.path_after] == [
        ("plan", ()),
        ("draft", ("plan",)),
        ("review", ("draft",)),
    ]
    assert found.path_after[2].fell_back_from == ("agent-reviewer",)


async def test_a_changed_mapping_shows_in_inputs_and_output(record, replay):
    recording = await record(options={"trace": True})
    definition = changed(draft={"input_mapping": {"points": "${steps.plan.output.points[0]}"}})
    definition["output_mapping"] = {"text": "${steps.review.output.text}", "title": "${steps.plan.output.title}"}
    found = compare_runs(recording, await replay(recording, definition))
    assert found.path == ()
    assert [difference.to_dict() for difference in found.result] == [
        {"path": "output.points", "kind": "removed", "before": ["a", "b"]},
        {"path": "output.title", "kind": "added", "after": "On Tea, briefly"},
        {"path": "steps.draft.input.points", "kind": "changed", "before": ["a", "b"], "after": "a"},
    ]


async def test_steps_and_order_that_changed_show_in_the_path(record, replay):
    recording = await record()
    definition = changed(draft={"input_mapping": {"topic": "${input.topic}"}})
    del definition["steps"][2]
    definition["output_mapping"] = {"text": "${steps.draft.output.text}"}
    found = compare_runs(recording, await replay(recording, definition))
    draft, review = found.path
    assert (draft.step_id, draft.kind, draft.before.after, draft.after.after) == ("draft", "changed", ("plan",), ())
    assert (review.step_id, review.kind, review.after) == ("review", "removed", None)


async def test_a_step_that_was_not_recorded_fails_and_is_named(record, replay):
    recording = await record()
    definition = changed()
    definition["steps"].append({"id": "print", "agent_id": "agent-printer", "depends_on": ["review"]})
    again = await replay(recording, definition)
    assert again.status == "failed"
    assert again.steps["print"].error["message"] == f"The recording of {recording.execution_id} has no step print"
    assert again.steps["print"].reason == "invalid_request"
    added = compare_runs(recording, again).path[0]
    assert (added.kind, added.after) == ("added", PathStep("print", "failed", "agent-printer", (), ("review",)))


async def test_another_agent_takes_over_the_answer_but_not_the_failure(record, replay):
    recording = await record()
    again = await replay(recording, changed(draft={"agent_id": "agent-new"}, review={"fallback": None}))
    assert again.steps["draft"].output == {"text": "a and b", "words": 3}
    assert again.steps["review"].reason == "refused"
    found = compare_runs(recording, again)
    assert [difference.step_id for difference in found.path] == ["draft", "review"]
    assert found.result[0].to_dict() == {"path": "status", "kind": "changed", "before": "completed", "after": "failed"}


async def test_a_failure_comes_after_what_had_ended_and_cancels_what_ran(record, replay):
    async def slow(data):
        await asyncio.sleep(60)

    async def late(data):
        await asyncio.sleep(0.4)
        raise AgentFailure(FailureReason.UNAUTHORIZED, "no key")

    definition = {
        "name": "Beside",
        "steps": [
            {"id": "fails", "agent_id": "agent-planner"},
            {"id": "ends", "agent_id": "agent-writer"},
            {"id": "follows", "agent_id": "agent-writer", "depends_on": ["ends"]},
            {"id": "runs", "agent_id": "agent-reviewer"},
            {"id": "never", "agent_id": "agent-writer", "depends_on": ["fails"]},
        ],
    }
    scripts = {"agent-planner": late, "agent-writer": {"n": 1}, "agent-reviewer": slow}
    recording = await record(definition, scripts)
    assert {step_id: step.status for step_id, step in recording.steps.items()} == {
        "fails": "failed",
        "ends": "completed",
        "follows": "completed",
        "runs": "cancelled",
        "never": "pending",
    }
    again = await replay(recording)
    assert compare_runs(recording, again).to_dict() == {**compare_runs(recording, recording).to_dict()}


async def test_an_input_that_could_not_be_made_is_no_answer(record, replay):
    definition = {
        "name": "Unasked",
        "steps": [{"id": "plan", "agent_id": "agent-planner", "input_mapping": {"x": "${input.missing}"}}],
    }
    recording = await record(definition)
    assert recording.steps["plan"].calls == []
    assert compare_runs(recording, await replay(recording)).is_equal
    definition["steps"][0]["input_mapping"] = {"x": "${input.missing ?? null}"}
    again = await replay(recording, definition)
    assert "has no answer for step plan, which was failed there" in again.steps["plan"].error["message"]


async def test_a_definition_or_input_that_cannot_be_used_is_refused(record, replay):
    recording = await record()
    with pytest.raises(InvalidInputError) as caught:
        await replay(recording, {**DEFINITION, "stepps": []})
    assert "stepps" in str(caught.value.details["issues"])
    with pytest.raises(InvalidInputError, match="topic"):
        await replay(recording, {**DEFINITION, "input_schema": {"properties": {"topic": {"type": "integer"}}}})


async def test_an_open_execution_is_not_recorded(engine_factory):
    async def slow(data):
        await asyncio.sleep(60)

    engine = engine_factory({"agent-planner": slow})
    await engine.register_agent(name="Planner", agent_id="agent-planner", config={"function": "nowhere:agent"})
    workflow_id = await engine.create_workflow(name="Open", steps=[{"id": "plan", "agent_id": "agent-planner"}])
    execution = await engine.execute_workflow(workflow_id, {})
    with pytest.raises(InvalidInputError, match="still"):
        await Recording.take(engine, execution["execution_id"])
    await engine.cancel_execution(execution["execution_id"])
    await engine.get_execution_result(execution["execution_id"], wait=30)


async def test_what_a_step_recalled_is_not_compared(record, replay):
    remembering = {
        "id": "draft",
        "agent_id": "agent-writer",
        "depends_on": ["plan"],
        "context": {"recall": "${input.topic}"},
        "input_mapping": {"known": "${context}"},
    }
    definition = {"name": "Reminded", "steps": [{"id": "plan", "agent_id": "agent-planner"}, remembering]}
    scripts = {"agent-planner": {"text": "tea is hot"}, "agent-writer": {"text": "a cup"}}
    recording = await record(definition, scripts, {"trace": True})
    [item] = recording.steps["draft"].calls[0].input["known"]
    assert "tea" in item["text"]
    assert compare_runs(recording, await replay(recording)).is_equal


async def test_large_values_are_recorded_whole(record, replay):
    definition = {"name": "Large", "steps": [{"id": "plan", "agent_id": "agent-planner"}]}
    recording = await record(definition, {"agent-planner": {"text": "y" * 300_000}}, input_data={"text": "x" * 300_000})
    assert recording.input == {"text": "x" * 300_000}
    assert recording.steps["plan"].calls[0].reply == {"text": "y" * 300_000}
    assert compare_runs(recording, await replay(recording)).is_equal


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "can't be read"),
        ("{", "no valid JSON"),
        ("[]", "no recording"),
        ('{"format": "baton-recording", "format_version": 3}', "update it"),
        ('{"format": "baton-recording", "format_version": 1}', "no whole recording: execution_id"),
        ('{"format": "baton-recording", "format_version": 1, "input": NaN}', "can't be used: input"),
    ],
)
def test_a_file_that_is_no_recording_says_why(tmp_path, content, told):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=told):
        Recording.load(path)


@pytest.mark.parametrize(
    ("mapping", "reply", "rebuilt"),
    [
        ({"a": "${output.x}"}, {"x": 1, "lost": 2}, {"x": 1}),
        ({"a": "${output.x.y[1].z}"}, {"x": {"y": [0, {"z": None}]}}, {"x": {"y": [None, {"z": None}]}}),
        ({"a": "${output.x.y}", "b": "${output.x}"}, {"x": {"y": 1, "z": 2}}, {"x": {"y": 1, "z": 2}}),
        ({"a": ["${output.x}", {"b": "${output.y}"}], "c": 7}, {"x": [], "y": {}}, {"x": [], "y": {}}),
        ({"a": "<${output.x}> of ${input.n}: ${output.y}"}, {"x": "one", "y": "a: b"}, {"x": "one", "y": "a: b"}),
        ({"a": "${output.x}", "b": "no ${output.x}"}, {"x": 5}, {"x": 5}),
        ({"a": "${output.x ?? 3}"}, {}, {"x": 3}),
        ({"a": "${input.n}"}, {"x": 1}, {}),
        ({"a": '${output["a b"]}${output.y}'}, {"a b": "p", "y": "q"}, None),
        ("${output}", {"x": 1}, {"x": 1}),
        ({"a": "${output}"}, ["x"], ["x"]),
    ],
)
def test_a_reply_is_rebuilt_so_that_its_mapping_yields_the_same(mapping, reply, rebuilt):
    def mapped(value):
        return compile_template(mapping).resolve(RootsScope({"output": value, "input": {"n": 9}}))

    found, _ = rebuilt_reply(mapping, mapped(reply))
    assert mapped(found) == mapped(reply)
    if rebuilt is not None:
        assert found == rebuilt


async def test_several_calls_of_a_step_are_told_apart_by_input_and_else_by_order():
    def call(reply, **fields):
        return {"agent_id": "agent-writer", "reply": reply, **fields}

    calls = [call("a", has_input=True, input={"n": 1}), call("b", has_input=True, input={"n": 2})]
    recording = Recording.model_validate(
        {
            "execution_id": "e",
            "workflow_id": "w",
            "version": 1,
            "definition": {},
            "input": {},
            "status": "completed",
            "steps": {
                "by_input": {"status": "completed", "calls": calls},
                "by_order": {"status": "completed", "calls": [call("a"), call("b")]},
            },
        }
    )
    invoker = ReplayAgentInvoker(recording)
    agent = PlanAgent(agent_id="agent-writer", version=1, kind="python", config={}, tools=[])

    calls = Counter()

    async def answer(step_id, given, attempt=1):
        calls[step_id] += attempt == 1
        key = f"e/run/{call_address(step_id, None, calls[step_id])}"
        seen = SimpleNamespace(execution_id="e", step_id=step_id, attempt=attempt, idempotency_key=key)
        return (await invoker.invoke_agent(AgentInvocation(agent, given, seen))).output

    assert [await answer("by_input", {"n": n}) for n in (2, 1, 2)] == ["b", "a", "b"]
    order = [("by_order", {}), ("by_order", {}, 2), ("by_order", {}), ("by_order", {})]
    assert [await answer(*one) for one in order] == ["a", "a", "b", "b"]


async def test_differences_tell_types_and_places_apart(record):
    recording = await record()
    other = recording.model_copy(
        update={"output": {"text": "A and B.", "points": ["a", {"odd key": True}, None]}, "status": "completed"}
    )
    before = recording.model_copy(update={"output": {"text": "A and B.", "points": ["a", {"odd key": 1}]}})
    found = json.loads(json.dumps(compare_runs(before, other).to_dict()))
    assert found["result"] == [
        {"path": 'output.points[1]["odd key"]', "kind": "changed", "before": 1, "after": True},
        {"path": "output.points[2]", "kind": "added", "after": None},
    ]
    assert found["equal"] is False
