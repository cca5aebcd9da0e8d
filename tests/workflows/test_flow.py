"""What decides whether a step runs, on the real server: joins, conditions, handoffs, failures that are passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from runs import FAST_RETRIES, Gate, echo, ended, finish, start, until

from engine.domain.agent_call import AgentFailure, FailureReason
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from runs import EngineFactory
    from temporalio.client import Client

    from engine import WorkflowEngine
    from engine.bootstrap import Stores

pytestmark = ON_BOTH_STORES

NO_RETRIES: dict[str, Any] = {"max_retries": 0}
FAILS = AgentFailure(FailureReason.ERROR, "It broke")


async def told(engine: WorkflowEngine, execution_id: str) -> list[Any]:
    return [event async for event in engine.watch_execution(execution_id)]


def statuses(result: Any) -> dict[str, str]:
    return {step_id: step["status"] for step_id, step in result["steps"].items()}


@pytest.mark.parametrize(("kind", "ran"), [("feature", "plan"), ("bug", "fix")])
async def test_an_if_else_runs_one_branch_and_merges(
    engine_factory: EngineFactory, stores: Stores, client: Client, kind: str, ran: str
):
    engine = engine_factory({"agent-plan": {"by": "plan"}, "agent-fix": {"by": "fix"}, "agent-end": echo})
    steps = [
        {"id": "plan", "agent_id": "agent-plan", "when": "${input.kind} = 'feature'"},
        {"id": "fix", "agent_id": "agent-fix", "when": "input.kind != 'feature'"},
        {
            "id": "end",
            "agent_id": "agent-end",
            "join": "any",
            "input_mapping": {"plan": "${steps.plan.output.by}", "fix": "${steps.fix.output.by}"},
        },
    ]
    execution_id = await start(engine, steps, {"kind": kind})
    result = await ended(engine, stores, client, execution_id)
    skipped = "fix" if ran == "plan" else "plan"
    assert statuses(result) == {ran: "completed", skipped: "skipped", "end": "completed"}
    assert result["output"] == {ran: ran, skipped: None}
    assert result["steps"][skipped]["reason"] == "when"
    (event,) = [event for event in await told(engine, execution_id) if event["type"] == "step.skipped"]
    assert (event["step_id"], event["data"]["because"]) == (skipped, "when")
    assert event["data"]["values"] == {"input.kind": kind}
    status = await engine.get_execution_status(execution_id)
    assert status["progress"] == {"total": 3, "completed": 2, "failed": 0, "skipped": 1, "running": 0}


async def test_what_depends_on_a_skipped_step_is_skipped_unless_its_join_says_otherwise(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"text": "a"}, "agent-b": echo})
    steps = [
        {"id": "a", "agent_id": "agent-a", "when": "input.x = 1"},
        {"id": "all", "agent_id": "agent-b", "depends_on": ["a"]},
        {"id": "any", "agent_id": "agent-b", "depends_on": ["a"], "join": "any"},
        {"id": "settled", "agent_id": "agent-b", "join": "settled", "input_mapping": {"x": "${steps.a.output.text}"}},
    ]
    result = await finish(engine, await start(engine, steps))
    assert statuses(result) == {"a": "skipped", "all": "skipped", "any": "skipped", "settled": "completed"}
    assert result["output"] == {"all": None, "any": None, "settled": {"x": None}}
    assert [result["steps"][name]["reason"] for name in ("a", "all", "any")] == ["when", "join", "join"]


async def test_an_execution_of_skipped_steps_alone_completes(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {}})
    result = await finish(engine, await start(engine, [{"id": "a", "agent_id": "agent-a", "when": "input.x"}]))
    assert (result["status"], result["output"], result["steps"]["a"]["attempts"]) == ("completed", None, 0)


async def test_a_failure_that_is_passed_over_can_be_handled_by_a_later_step(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": FAILS, "agent-b": echo, "agent-c": {"text": "never"}})
    steps = [
        {"id": "a", "agent_id": "agent-a", "on_error": "continue", "retry_policy": NO_RETRIES},
        {
            "id": "handle",
            "agent_id": "agent-b",
            "join": "settled",
            "when": "steps.a.error != null",
            "input_mapping": {"error": "${steps.a.error.message}", "output": "${steps.a.output.text}"},
        },
        {"id": "other", "agent_id": "agent-c", "depends_on": ["a"], "when": "steps.a.error = null"},
    ]
    result = await finish(engine, await start(engine, steps))
    assert result["status"] == "completed"
    assert statuses(result) == {"a": "failed", "handle": "completed", "other": "skipped"}
    assert result["output"]["handle"] == {"error": "It broke", "output": None}
    assert [warning["code"] for warning in result["warnings"]] == ["step_failed"]


async def test_running_steps_may_end_before_the_execution_fails(engine_factory: EngineFactory):
    gate = Gate({"text": "done"})
    engine = engine_factory({"agent-a": FAILS, "agent-slow": gate, "agent-c": {}})
    steps = [
        {"id": "slow", "agent_id": "agent-slow"},
        {"id": "a", "agent_id": "agent-a", "retry_policy": NO_RETRIES},
        {"id": "after", "agent_id": "agent-c", "depends_on": ["slow"]},
    ]
    execution_id = await start(engine, steps, on_failure="finish")

    async def has_failed() -> bool:
        status = await engine.get_execution_status(execution_id)
        return status["steps"]["a"]["status"] == "failed" or bool(gate.attempts)

    await until(has_failed, "the slow step runs")
    gate.is_open = True
    result = await finish(engine, execution_id)
    assert (result["status"], gate.cancelled) == ("failed", 0)
    assert statuses(result) == {"slow": "completed", "a": "failed", "after": "pending"}


@pytest.mark.parametrize(("reason", "by"), [("rate_limited", "agent-b"), ("error", None)])
async def test_a_fallback_is_called_for_the_reasons_that_it_names(
    engine_factory: EngineFactory, reason: str, by: str | None
):
    engine = engine_factory({"agent-a": AgentFailure(FailureReason(reason), "No"), "agent-b": {"text": "b"}})
    step = {
        "id": "a",
        "agent_id": "agent-a",
        "retry_policy": NO_RETRIES,
        "fallback": {"agent_id": "agent-b", "on": ["rate_limited", "timeout"]},
    }
    result = await finish(engine, await start(engine, [step]))
    assert result["status"] == ("completed" if by else "failed")
    assert result["steps"]["a"]["agent_id"] == (by or "agent-a")


async def test_a_call_that_may_happen_once_is_not_retried(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": [FAILS, {"text": "second"}]})
    result = await finish(engine, await start(engine, [{"id": "a", "agent_id": "agent-a", "at_most_once": True}]))
    assert (result["status"], result["steps"]["a"]["attempts"]) == ("failed", 1)


async def test_waits_with_jitter_end_in_the_retry_all_the_same(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": [FAILS, FAILS, {"text": "third"}]})
    step = {"id": "a", "agent_id": "agent-a", "retry_policy": FAST_RETRIES | {"jitter": True}}
    result = await finish(engine, await start(engine, [step]))
    assert (result["status"], result["steps"]["a"]["attempts"]) == ("completed", 3)


# Handoffs on the edges.

PAIR: list[dict[str, Any]] = [
    {"id": "plan", "agent_id": "agent-plan", "output_mapping": {"title": "${output.title}"}},
    {"id": "build", "agent_id": "agent-build", "depends_on": ["plan"], "input_mapping": {"own": "mine"}},
]


@pytest.mark.parametrize("done", [True, False])
async def test_a_handoff_runs_the_next_step_or_keeps_it_from_running(
    engine_factory: EngineFactory, stores: Stores, client: Client, done: bool
):
    reply = {"title": "A house", "plan_complete": done, "parts": ["door"]}
    engine = engine_factory({"agent-plan": reply, "agent-build": echo})
    await engine.register_agent("Plan", config={"function": "m:plan"})
    await engine.register_agent("Build", config={"function": "m:build"})
    handoff_id = await engine.create_handoff(
        "agent-plan",
        "agent-build",
        data_mapping={"parts": "parts", "title": "own", "absent": "absent"},
        trigger_conditions=["completion", "source_output.plan_complete = true"],
    )
    execution_id = await start(engine, PAIR)
    result = await ended(engine, stores, client, execution_id)
    assert result["status"] == "completed"
    (handoff,) = result["handoffs"]
    assert (handoff["handoff_id"], handoff["taken"]) == (handoff_id, done)
    assert (handoff["source_step"], handoff["target_step"]) == ("plan", "build")
    assert handoff["values"] == {"source_output.plan_complete": done}
    if done:
        assert result["output"] == {"own": "mine", "parts": ["door"]}
        assert result["steps"]["plan"]["output"] == {"title": "A house"}
    else:
        assert (result["steps"]["build"]["status"], result["steps"]["build"]["reason"]) == ("skipped", "handoff")
        assert "plan_complete" in handoff["reason"]
    counted = await engine.get_workflow_metrics(result["workflow_id"], metrics=["handoffs_taken", "handoffs_refused"])
    assert counted["metrics"] == {"handoffs_taken": int(done), "handoffs_refused": int(not done)}
    wanted = "handoff.taken" if done else "handoff.refused"
    assert wanted in [event["type"] for event in await told(engine, execution_id)]


async def test_a_large_value_is_handed_over_by_reference(engine_factory: EngineFactory):
    text = "x" * 100_000
    engine = engine_factory({"agent-plan": {"title": "T", "text": text, "ok": True}, "agent-build": echo})
    await engine.register_agent("Plan", config={"function": "m:plan"})
    await engine.register_agent("Build", config={"function": "m:build"})
    await engine.create_handoff(
        "agent-plan", "agent-build", data_mapping={"text": "text"}, trigger_conditions=["source_output.ok"]
    )
    result = await finish(engine, await start(engine, PAIR))
    assert result["steps"]["build"]["output"] == {"own": "mine", "text": text}


async def test_one_handoff_of_a_pair_that_fires_is_enough_and_the_first_one_maps(engine_factory: EngineFactory):
    engine = engine_factory({"agent-plan": {"title": "T", "n": 2}, "agent-build": echo})
    await engine.register_agent("Plan", config={"function": "m:plan"})
    await engine.register_agent("Build", config={"function": "m:build"})
    for condition, target in (
        ("source_output.n = 1", "one"),
        ("source_output.n = 2", "two"),
        ("source_output.n > 0", "three"),
    ):
        await engine.create_handoff(
            "agent-plan", "agent-build", data_mapping={"n": target}, trigger_conditions=[condition]
        )
    result = await finish(engine, await start(engine, PAIR))
    assert result["output"] == {"own": "mine", "two": 2}
    assert [handoff["taken"] for handoff in result["handoffs"]] == [False, True, True]


async def test_a_failure_that_is_passed_over_hands_over_by_its_own_event(engine_factory: EngineFactory):
    engine = engine_factory({"agent-plan": FAILS, "agent-build": echo, "agent-other": echo})
    for name in ("Plan", "Build", "Other"):
        await engine.register_agent(name, config={"function": f"m:{name.lower()}"})
    await engine.create_handoff("agent-plan", "agent-build", trigger_conditions=["failure"])
    await engine.create_handoff("agent-plan", "agent-other")
    steps = [
        {"id": "plan", "agent_id": "agent-plan", "on_error": "continue", "retry_policy": NO_RETRIES},
        {"id": "build", "agent_id": "agent-build", "depends_on": ["plan"], "input_mapping": {}},
        {"id": "other", "agent_id": "agent-other", "depends_on": ["plan"], "input_mapping": {}},
    ]
    result = await finish(engine, await start(engine, steps))
    assert statuses(result) == {"plan": "failed", "build": "completed", "other": "skipped"}


async def test_a_workflow_may_turn_handoffs_off(engine_factory: EngineFactory):
    engine = engine_factory({"agent-plan": {"title": "T"}, "agent-build": echo})
    await engine.register_agent("Plan", config={"function": "m:plan"})
    await engine.register_agent("Build", config={"function": "m:build"})
    await engine.create_handoff("agent-plan", "agent-build", trigger_conditions=["source_output.never"])
    result = await finish(engine, await start(engine, PAIR, handoffs="off"))
    assert (result["output"], result["handoffs"]) == ({"own": "mine"}, [])


async def test_a_condition_alone_makes_a_step_wait_for_what_it_reads(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"ok": True}, "agent-b": {"text": "b"}})
    steps = [{"id": "b", "agent_id": "agent-b", "when": "steps.a.output.ok"}, {"id": "a", "agent_id": "agent-a"}]
    result = await finish(engine, await start(engine, steps))
    assert statuses(result) == {"b": "completed", "a": "completed"}


async def test_at_most_once_outweighs_the_defaults_of_the_workflow(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": [FAILS, {"text": "second"}]})
    steps = [{"id": "a", "agent_id": "agent-a", "at_most_once": True}]
    defaults = {"retry_policy": {"max_retries": 3}}
    result = await finish(engine, await start(engine, steps, defaults=defaults))
    assert (result["status"], result["steps"]["a"]["attempts"]) == ("failed", 1)
