"""Every construct of definitions, recorded on the real server and played again to the same path and result.

The runs are those of the conformance cases, so that what is played again is what is promised elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import WorkflowEngine
from engine.errors import InvalidInputError
from engine.testing import Recording, ScriptedAgentInvoker, compare_runs, replay_recording
from tests.conformance.case_runner import run_case
from tests.conformance.cases import load
from tests.workflows.conftest import client

__all__ = ["client"]

CASES = Path(__file__).resolve().parents[1] / "conformance"
PLAYED = [
    "approval/a-gate-that-expires-may-escalate",
    "approval/a-gate-that-expires-may-have-a-default",
    "approval/a-rejection-fails-the-step",
    "approval/an-answer-is-the-steps-output",
    "budget/ask-opens-a-gate-and-continue-grants-the-same-again",
    "budget/a-run-narrows-the-budget",
    "budget/retries-and-fallbacks-count-as-calls",
    "compensate/a-compensation-that-fails-does-not-stop-the-rest",
    "compensate/a-cancelled-execution-is-undone",
    "edges/a-handoff-that-does-not-fire-skips-the-next-step",
    "edges/one-of-two-handoffs-is-enough-and-the-first-that-fires-maps",
    "escalation/each-item-escalates-by-itself",
    "escalation/the-next-one-is-tried-when-one-fails",
    "fallback/a-fallback-that-fails-is-followed-by-a-later-one",
    "finally/final-steps-are-a-graph-of-their-own",
    "finally/final-steps-run-after-a-failure-and-read-it",
    "follow/a-step-that-was-added-hands-over-further",
    "foreach/a-retry-runs-only-what-has-not-completed",
    "foreach/a-tolerated-failure-gives-null-and-one-warning",
    "foreach/each-item-repeats-by-itself",
    "foreach/running-items-end-before-the-step-fails",
    "on_error/a-skip-gives-the-step-an-output",
    "on_error/a-retry-that-fails-asks-again",
    "on_failure/a-cancel-with-an-open-gate-cleans-up",
    "on_failure/finish-lets-running-siblings-end-and-starts-nothing",
    "repeat/a-turn-reads-the-output-of-the-one-before",
    "rerun/a-list-an-answer-and-a-skip-are-kept",
    "rerun/what-was-kept-is-not-undone",
    "foreach/transforms-run-over-a-list",
    "wait/the-seconds-may-come-from-a-step",
    "wait/seconds-that-are-no-number-fail-the-step",
    "workflow/a-child-that-fails-may-be-run-again",
    "workflow/children-run-over-a-list",
    "workflow/a-workflow-that-calls-itself-ends-at-the-limit",
]
REFUSED = {
    "budget/seconds-are-counted-since-the-start": "budget's seconds",
    "finally/the-clean-up-has-its-own-time-limit": "cleanup_timeout",
    "on_failure/an-execution-past-its-timeout-fails": "deadline",
    "on_failure/finish-starts-no-new-turn-of-a-loop": "between two turns",
    "workflow/a-steps-timeout-is-the-childs": "made by call.1",
    "workflow/an-input-against-the-childs-schema-fails-the-step": "never began",
}


@pytest.fixture
def record_case(engine_config, client):
    """Run a case and record it, as a kept file has it."""

    async def record_case(name):
        observed, faults = await run_case(load(CASES / f"{name}.yaml"), engine_config, client)
        assert faults == []
        async with WorkflowEngine({**engine_config, "worker": "none"}) as engine:
            recording = await Recording.take(engine, observed.result["execution_id"])
        return Recording.model_validate_json(recording.model_dump_json())

    return record_case


@pytest.fixture
def replay(dev_server):
    """Replay on the session's server."""

    async def replay(recording, definition=None):
        config = {"temporal_address": dev_server.address, "task_queue": f"replay-{os.getpid()}-{id(recording)}"}
        return await replay_recording(recording, definition, config=config)

    return replay


@pytest.mark.parametrize("name", PLAYED)
async def test_a_recorded_run_is_played_to_the_same_end(record_case, replay, name):
    recording = await record_case(name)
    found = compare_runs(recording, await replay(recording)).to_dict()
    assert (found["path"], found["result"]) == ([], [])


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
async def test_what_time_has_decided_is_refused(record_case, replay, name, why):
    recording = await record_case(name)
    with pytest.raises(InvalidInputError, match=why):
        await replay(recording)


@pytest.fixture
def record(engine_config):
    """Run a definition with scripted agents and record the run."""

    async def record(definition, scripts):
        async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker(scripts)) as engine:
            for agent_id in scripts:
                await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "nowhere:agent"})
            workflow_id = await engine.create_workflow(**definition)
            execution = await engine.execute_workflow(workflow_id, {}, {"trace": True})
            await engine.get_execution_result(execution["execution_id"], wait=30)
            return await Recording.take(engine, execution["execution_id"])

    return record


ITEMS = {
    "name": "Items",
    "steps": [{"id": "each", "agent_id": "agent-a", "foreach": {"items": [1, 2]}, "input_mapping": {"n": "${item}"}}],
}


async def test_a_changed_mapping_of_items_shows_item_by_item(record, replay):
    recording = await record(ITEMS, {"agent-a": lambda given: {"was": given["n"]}})
    assert sorted((call.item, call.n, call.reply["was"]) for call in recording.steps["each"].calls) == [
        (0, 1, 1),
        (1, 1, 2),
    ]
    step = {**ITEMS["steps"][0], "input_mapping": {"n": "${item}", "at": "${index}"}}
    again = await replay(recording, {**ITEMS, "steps": [step]})
    assert again.steps["each"].output == [{"was": 1}, {"was": 2}]
    found = compare_runs(recording, again)
    assert found.path == ()
    assert [(one.path, one.after) for one in found.result] == [
        ("steps.each.items[0].input.at", 0),
        ("steps.each.items[1].input.at", 1),
    ]


async def test_an_item_that_was_not_recorded_is_named(record, replay):
    recording = await record(ITEMS, {"agent-a": {"was": 1}})
    step = {**ITEMS["steps"][0], "foreach": {"items": [1, 2, 3]}}
    again = await replay(recording, {**ITEMS, "steps": [step]})
    assert again.status == "failed"
    assert "no answer of agent agent-a for step each[2]" in again.steps["each"].error["message"]


@pytest.mark.parametrize(
    "step",
    [
        {"id": "new", "type": "approval", "approval": {"question": "Ship?"}, "depends_on": ["each"]},
        {"id": "new", "type": "workflow", "workflow_id": "other", "depends_on": ["each"]},
    ],
)
async def test_a_step_that_the_recording_never_reached_fails_and_is_named(record, replay, step):
    recording = await record(ITEMS, {"agent-a": {"was": 1}})
    changed = {**ITEMS, "steps": [*ITEMS["steps"], step]}
    again = await replay(recording, changed)
    assert again.definition == changed
    assert (again.steps["new"].status, again.steps["new"].agent_id) == ("failed", None)
    assert "has no step new" in again.steps["new"].error["message"]


async def test_a_recording_of_the_first_format_is_played(record, replay, tmp_path):
    definition = {"name": "Old", "steps": [{"id": "a", "agent_id": "agent-a"}]}
    recording = await record(definition, {"agent-a": {"was": 1}})
    old = recording.model_dump(mode="json", exclude={"handoffs", "gates", "children", "budget", "breaches"})
    old["format_version"] = 1
    for call in old["steps"]["a"]["calls"]:
        for field in ("item", "n", "attempts", "completed_at", "is_cancelled"):
            del call[field]
    path = tmp_path / "old.json"
    Recording.model_validate(old).save(path)
    loaded = Recording.load(path)
    assert compare_runs(loaded, await replay(loaded)).is_equal
