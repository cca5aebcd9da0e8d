"""Reruns on a real server: what is called again, what is kept, and that the two make one result."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engine import EngineError, WorkflowEngine
from engine.cli.root import baton
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.types import ExecutionResult

NO_RETRY = {"retry_policy": {"max_retries": 0}}


class Steps:
    """Answers each step's calls by name, and counts them."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.called: Counter[str] = Counter()
        self.inputs: dict[str, Any] = {}

    def __call__(self, given: Any, call: Any) -> Any:
        self.called[call.step_id] += 1
        self.inputs[call.step_id] = given
        answer = self.answers.get(call.step_id, {"by": call.step_id, "time": self.called[call.step_id]})
        if isinstance(answer, Exception):
            raise answer
        return answer(given) if callable(answer) else answer


class World:
    """An engine whose agents all answer by ``steps``, with the workflow ``flow``."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.steps = Steps()
        agents = dict.fromkeys(("agent-a", "agent-b", "agent-c"), self.steps)
        self.engine = WorkflowEngine(config, invoker=ScriptedAgentInvoker(agents))

    async def create(self, steps: list[dict[str, Any]], **fields: Any) -> None:
        for name in "ABC":
            await self.engine.register_agent(name=name, config={"function": "m:f"})
        await self.engine.create_workflow(
            name="Flow", workflow_id="flow", steps=[with_agent(step) for step in steps], defaults=NO_RETRY, **fields
        )

    async def run(self, given: dict[str, Any] | None = None) -> ExecutionResult:
        started = await self.engine.execute_workflow("flow", given)
        return await self.result(started["execution_id"])

    async def result(self, execution_id: str) -> ExecutionResult:
        return await self.engine.get_execution_result(execution_id, wait=30)

    async def rerun(self, execution_id: str, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], ExecutionResult]:
        """Start a rerun and wait for its end; calls are counted from its start."""
        self.steps.called.clear()
        answer: Any = await self.engine.rerun_execution(execution_id, *args, **kwargs)
        return answer, await self.result(answer["execution_id"])


def with_agent(step: dict[str, Any]) -> dict[str, Any]:
    return step if step.get("type") else {"agent_id": "agent-a", **step}


def after(*ids: str) -> list[dict[str, Any]]:
    """A chain in which each step reads the one before."""
    steps: list[dict[str, Any]] = [{"id": ids[0], "input_mapping": {"topic": "${input.topic ?? null}"}}]
    for before, name in pairwise(ids):
        steps.append({"id": name, "input_mapping": {"before": f"${{steps.{before}.output}}"}})
    return steps


@pytest.fixture
async def world(engine_config: dict[str, object]) -> AsyncIterator[World]:
    made = World(engine_config)
    yield made
    await made.engine.aclose()


async def test_a_redrive_goes_on_where_the_parent_failed(world: World):
    await world.create(after("a", "b", "c"))
    world.steps.answers["b"] = ValueError("no")
    parent = await world.run({"topic": "cats"})
    assert (parent["status"], parent["steps"]["a"]["status"]) == ("failed", "completed")
    del world.steps.answers["b"]
    answer, result = await world.rerun(parent["execution_id"])
    assert (answer["parent_execution_id"], answer["rerun"], answer["reused"]) == (
        *(parent["execution_id"], ["b", "c"], ["a"]),
    )
    assert answer["workflow_id"] == "flow"
    assert answer["temporal"]["workflow_id"] == answer["execution_id"] != parent["execution_id"]
    assert (result["status"], result["output"]) == ("completed", {"by": "c", "time": 1})
    assert world.steps.called == {"b": 1, "c": 1}
    assert world.steps.inputs["b"] == {"before": parent["steps"]["a"]["output"]}
    kept = result["steps"]["a"]
    assert kept.get("reused_from") == parent["execution_id"]
    assert (kept["output"], kept["started_at"], kept["attempts"]) == (
        *(parent["steps"]["a"]["output"], parent["steps"]["a"]["started_at"], 1),
    )
    assert result.get("rerun_of") == parent["execution_id"]
    assert "reused_from" not in result["steps"]["b"]
    assert result["started_at"] is not None
    assert result["started_at"] >= answer["created_at"]
    assert await world.result(parent["execution_id"]) == parent


async def test_the_status_of_a_rerun_shows_what_is_kept_and_begins_with_its_own_steps(world: World):
    await world.create(after("a", "b"))
    parent = await world.run()
    answer, result = await world.rerun(parent["execution_id"], "b")
    status = await world.engine.get_execution_status(answer["execution_id"])
    assert status["progress"] == {"total": 2, "completed": 2, "failed": 0, "skipped": 0, "running": 0}
    assert status["started_at"] == result["started_at"]
    events = [event async for event in world.engine.watch_execution(answer["execution_id"])]
    told = [(event["type"], event["step_id"], event["data"].get("reused_from")) for event in events]
    assert told[0][0] == "execution.started"
    assert ("step.completed", "a", parent["execution_id"]) in told
    assert ("step.completed", "b", None) in told
    assert told[-1][0] == "execution.completed"
    assert [step_id for kind, step_id, _ in told if kind == "step.started"].count("a") == 0


async def test_a_chosen_step_runs_with_what_rests_on_it_and_its_sources_do_not(world: World):
    steps = [*after("a", "b"), {"id": "c", "input_mapping": {}}, {"id": "d", "depends_on": ["b", "c"]}]
    await world.create(steps)
    parent = await world.run({"topic": "cats"})
    preview: Any = await world.engine.rerun_execution(parent["execution_id"], ["c"], preview=True)
    answer, result = await world.rerun(parent["execution_id"], ["c"])
    assert (preview["rerun"], preview["reused"]) == (answer["rerun"], answer["reused"]) == (["c", "d"], ["a", "b"])
    assert preview["saves"]["agent_calls"] == 2
    assert preview["saves"]["seconds"] >= 0
    assert (preview["saves"]["tokens"], preview["saves"]["cost_usd"]) == (0, None)
    assert world.steps.called == {"c": 1, "d": 1}
    assert world.steps.inputs["d"]["steps"]["b"] == parent["steps"]["b"]["output"]
    assert result["status"] == "completed"
    assert len((await world.engine.list_executions())["items"]) == 2


async def test_reruns_of_reruns_keep_the_lineage(world: World):
    await world.create(after("a", "b", "c"))
    first = await world.run({"topic": "cats"})
    _, second = await world.rerun(first["execution_id"], "b")
    answer, third = await world.rerun(second["execution_id"], "c")
    assert answer["parent_execution_id"] == second["execution_id"] == third.get("rerun_of")
    assert [third["steps"][name].get("reused_from") for name in "abc"] == [
        *(first["execution_id"], second["execution_id"], None),
    ]
    assert third["steps"]["b"]["output"] == second["steps"]["b"]["output"]
    assert world.steps.inputs["c"] == {"before": second["steps"]["b"]["output"]}


async def test_other_input_runs_what_reads_the_change(world: World):
    await world.create([*after("a", "b"), {"id": "c", "input_mapping": {"n": "${input.n ?? 1}"}}])
    parent = await world.run({"topic": "cats"})
    answer, result = await world.rerun(parent["execution_id"], input_data={"topic": "cats", "n": 2})
    assert (answer["rerun"], world.steps.inputs["c"], result["status"]) == (["c"], {"n": 2}, "completed")
    assert await world.engine.get_execution_input(answer["execution_id"]) == {"topic": "cats", "n": 2}
    answer, _ = await world.rerun(parent["execution_id"], input_data={"topic": "dogs"})
    assert (answer["rerun"], world.steps.inputs["a"]) == (["a", "b"], {"topic": "dogs"})


async def test_the_latest_version_runs_changed_steps_or_is_refused_with_reasons(world: World):
    await world.create(after("a", "b", "c"))
    world.steps.answers["c"] = ValueError("no")
    parent = await world.run()
    a, b, c = [with_agent(step) for step in after("a", "b", "c")]
    await world.engine.update_workflow("flow", {"steps": [a, b, {**c, "agent_id": "agent-b"}]})
    del world.steps.answers["c"]
    answer, result = await world.rerun(parent["execution_id"], version="latest")
    assert (answer["version"], answer["rerun"], result["status"]) == (2, ["c"], "completed")
    assert result["steps"]["c"]["agent_id"] == "agent-b"
    await world.engine.update_workflow("flow", {"steps": [a, {**b, "input_mapping": {"x": "${steps.a.output.by}"}}, c]})
    with pytest.raises(EngineError) as refused:
        await world.engine.rerun_execution(parent["execution_id"], version="latest")
    assert refused.value.code == "invalid_input"
    assert refused.value.details["reasons"] == [
        {"step_id": "b", "path": "steps[1].input_mapping", "why": "it is not what the parent ran"}
    ]
    answer, result = await world.rerun(parent["execution_id"], "b", version="latest")
    assert (answer["version"], answer["rerun"], world.steps.inputs["b"]) == (3, ["b", "c"], {"x": "a"})
    answer, _ = await world.rerun(parent["execution_id"])
    assert answer["version"] == 1


async def test_skips_and_passed_over_failures_are_kept_and_can_be_read(world: World):
    await world.create(
        [
            {"id": "odd", "when": "input.n = 1"},
            {"id": "weak", "on_error": "continue"},
            {
                "id": "merge",
                "join": "settled",
                "depends_on": ["odd"],
                "when": "steps.weak.error != null",
                "input_mapping": {"odd": "${steps.odd.output}", "why": "${steps.weak.error.details.reason}"},
            },
        ]
    )
    world.steps.answers["weak"] = ValueError("no")
    parent = await world.run({"n": 2})
    assert parent["status"] == "completed"
    answer, result = await world.rerun(parent["execution_id"], "merge")
    assert (answer["reused"], world.steps.called) == (["odd", "weak"], {"merge": 1})
    assert world.steps.inputs["merge"] == {"odd": None, "why": "error"}
    assert [result["steps"][name]["status"] for name in ("odd", "weak")] == ["skipped", "failed"]
    assert result["steps"]["odd"]["reason"] == "when"
    assert result["steps"]["weak"]["error"] == parent["steps"]["weak"]["error"]


async def test_a_step_that_was_undone_runs_again(world: World):
    await world.create(
        [
            {"id": "look"},
            {"id": "book", "depends_on": ["look"], "compensate": {"agent_id": "agent-b"}},
            {"id": "pay", "depends_on": ["book"]},
        ]
    )
    world.steps.answers["pay"] = ValueError("no")
    parent = await world.run()
    assert world.steps.called["book:compensate"] == 1
    del world.steps.answers["pay"]
    answer, result = await world.rerun(parent["execution_id"])
    assert (answer["rerun"], answer["reused"], result["status"]) == (["book", "pay"], ["look"], "completed")
    assert world.steps.called == {"book": 1, "pay": 1}


async def test_finally_runs_in_every_rerun_also_when_all_else_is_kept(world: World):
    await world.create(after("a", "b"), **{"finally": [with_agent({"id": "tidy"})]})
    world.steps.answers["tidy"] = ValueError("no")
    parent = await world.run()
    assert parent["status"] == "failed"
    del world.steps.answers["tidy"]
    answer, result = await world.rerun(parent["execution_id"])
    assert (answer["rerun"], answer["reused"]) == (["tidy"], ["a", "b"])
    assert world.steps.called == {"tidy": 1}
    assert (result["status"], result["output"]) == ("completed", parent["steps"]["b"]["output"])


@pytest.mark.parametrize("size", [10, 3_000, 60_000, 400_000])
async def test_outputs_of_any_size_are_kept(world: World, size: int):
    await world.create(
        [
            {"id": "a"},
            {"id": "b", "when": "steps.a.output.kind = 'x'", "input_mapping": {"text": "${steps.a.output.text}"}},
        ],
        output_mapping={"a": "${steps.a.output}", "b": "${steps.b.output}"},
    )
    world.steps.answers["a"] = {"text": "t" * size, "kind": "x"}
    world.steps.answers["b"] = lambda given: {"size": len(given["text"])}
    parent = await world.run()
    assert parent["status"] == "completed"
    _, result = await world.rerun(parent["execution_id"], "b")
    assert (world.steps.called, result["output"]) == ({"b": 1}, parent["output"])
    _, again = await world.rerun(result["execution_id"], "b")
    assert again["output"] == parent["output"]


async def test_a_handoff_from_a_kept_step_is_decided_anew_for_one_that_runs(world: World):
    await world.create([{"id": "a"}, {"id": "b", "agent_id": "agent-b", "depends_on": ["a"], "input_mapping": {}}])
    await world.engine.create_handoff(
        "agent-a", "agent-b", data_mapping={"plan": "given"}, trigger_conditions=["source_output.done = true"]
    )
    world.steps.answers["a"] = {"plan": "p", "done": True}
    parent = await world.run()
    assert [line["taken"] for line in parent["handoffs"]] == [True]
    _, result = await world.rerun(parent["execution_id"], "b")
    assert (world.steps.called, world.steps.inputs["b"]) == ({"b": 1}, {"given": "p"})
    assert [(line["source_step"], line["taken"]) for line in result["handoffs"]] == [("a", True)]


async def test_steps_that_handoffs_add_run_again_though_their_source_is_kept(world: World):
    await world.create([{"id": "a"}, {"id": "c", "agent_id": "agent-c"}], handoffs="follow")
    await world.engine.create_handoff("agent-a", "agent-b", data_mapping={"plan": "given"})
    world.steps.answers["a"] = {"plan": "p"}
    world.steps.answers["a>agent-b"] = ValueError("no")
    parent = await world.run()
    assert parent["status"] == "failed"
    del world.steps.answers["a>agent-b"]
    answer, result = await world.rerun(parent["execution_id"])
    assert (answer["rerun"], answer["reused"]) == ([], ["a", "c"])
    assert world.steps.called == {"a>agent-b": 1}
    assert world.steps.inputs["a>agent-b"] == {"given": "p"}
    assert (result["status"], result["steps"]["a>agent-b"]["status"]) == ("completed", "completed")


async def test_steps_of_every_type_are_kept(world: World):
    await world.engine.create_workflow(
        name="Inner", workflow_id="inner", steps=[with_agent({"id": "i", "input_mapping": {}})]
    )
    await world.create(
        [
            {"id": "list", "foreach": {"items": [1, 2, 3]}, "input_mapping": {"n": "${item}"}},
            {"id": "made", "type": "transform", "transform": {"first": "${steps.list.output[0].n}"}},
            {"id": "nap", "type": "wait", "wait": {"seconds": 0}},
            {"id": "child", "type": "workflow", "workflow_id": "inner"},
            {"id": "ask", "type": "approval", "approval": {"question": "Go on?"}},
            {"id": "last", "agent_id": "agent-b", "depends_on": ["list", "made", "nap", "child", "ask"]},
        ]
    )
    await world.engine.create_handoff(
        "agent-a", "agent-b", data_mapping={"all": "given"}, trigger_conditions=["size(source_output) = 3"]
    )
    world.steps.answers["list"] = lambda given: {"n": given["n"] * 10}
    started = await world.engine.execute_workflow("flow")
    gate_id = await open_gate(world.engine, started["execution_id"])
    await world.engine.answer_gate(started["execution_id"], gate_id, "approve", by="anna")
    parent = await world.result(started["execution_id"])
    assert parent["status"] == "completed"
    first = world.steps.inputs["last"]
    preview: Any = await world.engine.rerun_execution(parent["execution_id"], "last", preview=True)
    assert preview["saves"]["agent_calls"] == 4
    answer, result = await world.rerun(parent["execution_id"], "last")
    assert answer["reused"] == ["list", "made", "nap", "child", "ask"]
    assert (world.steps.called, world.steps.inputs["last"]) == ({"last": 1}, first)
    assert first["steps"]["made"] == {"first": 10}
    assert first["steps"]["ask"]["by"] == "anna"
    assert result["status"] == "completed"
    for name in answer["reused"]:
        assert result["steps"][name]["output"] == parent["steps"][name]["output"]


async def open_gate(engine: WorkflowEngine, execution_id: str) -> str:
    for _ in range(200):
        items = (await engine.list_gates(execution_id))["items"]
        if items:
            return items[0]["gate_id"]
        await asyncio.sleep(0.05)
    raise AssertionError("no gate was opened")


async def test_what_is_kept_is_counted_once(world: World):
    await world.create(after("a", "b"))
    parent = await world.run()
    await world.rerun(parent["execution_id"], "b")
    metrics = (await world.engine.get_agent_performance("agent-a"))["metrics"]
    assert (metrics["call_count"], metrics["error_count"]) == (3, 0)


async def test_an_open_parent_and_arguments_that_mean_nothing_are_refused(world: World):
    running = asyncio.Event()

    async def hang(given: object) -> object:
        running.set()
        await asyncio.sleep(600)
        return given

    await world.create(after("plan", "write"))
    world.steps.answers["plan"] = hang
    started = await world.engine.execute_workflow("flow")
    with pytest.raises(EngineError) as refused:
        await world.engine.rerun_execution(started["execution_id"])
    assert refused.value.code == "conflict"
    await world.engine.cancel_execution(started["execution_id"])
    await world.result(started["execution_id"])
    for arguments, words in (
        ({"from_step": "wrte"}, "did you mean 'write'"),
        ({"from_step": []}, "from_step must be"),
        ({"version": "newest"}, "version must be"),
        ({"preview": "yes"}, "preview must be"),
        ({"input_data": "x"}, "input_data must be"),
    ):
        with pytest.raises(EngineError, match=words) as refused:
            await world.engine.rerun_execution(started["execution_id"], **arguments)
        assert refused.value.code == "invalid_input"
    with pytest.raises(EngineError) as refused:
        await world.engine.rerun_execution("no-such")
    assert refused.value.code == "execution_not_found"
    assert len((await world.engine.list_executions())["items"]) == 1


async def test_the_command_previews_and_runs(world: World, monkeypatch: pytest.MonkeyPatch):
    await world.create(after("a", "b"))
    parent = await world.run()
    for key in ("temporal_address", "task_queue", "data_dir"):
        monkeypatch.setenv(f"BATON_{key.upper()}", str(world.config[key]))
    monkeypatch.setenv("BATON_WORKER", "none")

    async def command(*arguments: str) -> Any:
        line = ["execution", "rerun", parent["execution_id"], *arguments]
        return await asyncio.to_thread(CliRunner().invoke, baton, line)

    shown = await command("--from-step", "b", "--preview")
    assert shown.exit_code == 0
    assert "runs again" in shown.stdout
    assert "agent calls 1" in shown.stdout
    preview = json.loads((await command("--from-step", "b", "--preview", "-o", "json")).stdout)
    assert (preview["rerun"], preview["reused"]) == (["b"], ["a"])
    done = await command("--from-step", "b", "--watch", "-o", "json")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert (result["status"], result["rerun_of"]) == ("completed", parent["execution_id"])
    assert "runs again: b; keeps: a" in done.stderr
    assert (await command()).exit_code == 2
    assert "Nothing of execution" in (await command()).stderr
