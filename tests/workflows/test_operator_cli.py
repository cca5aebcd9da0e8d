"""Gates answered and executions held with Temporal's own command line, where nothing of Baton is needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from runs import EngineFactory, echo, events_of, finish, register, temporal_cli, until
from temporalio.client import Client

from engine import AgentFailure, FailureReason
from engine.domain.ids import AGENT_ACTIVITY_PREFIX

if TYPE_CHECKING:
    from engine import WorkflowEngine

ASK: dict[str, Any] = {
    "id": "ask",
    "type": "approval",
    "approval": {
        "question": "Ship ${input.version}?",
        "schema": {"type": "object", "properties": {"window": {"enum": ["day", "night"]}}, "required": ["window"]},
    },
}
SHIP: dict[str, Any] = {
    "id": "ship",
    "agent_id": "agent-echo",
    "input_mapping": {"window": "${steps.ask.output.data.window}", "by": "${steps.ask.output.by}"},
}
BUILD: dict[str, Any] = {
    "id": "build",
    "agent_id": "agent-builder",
    "on_error": "ask",
    "retry_policy": {"max_retries": 0},
}
BROKEN = AgentFailure(FailureReason.UNAVAILABLE, "No machine is free.")


async def update(client: Client, execution_id: str, name: str, argument: dict[str, Any] | None = None) -> str:
    """Send an Update as a person would, and return what the command line printed."""
    given = [] if argument is None else ["--input", json.dumps(argument)]
    return await temporal_cli(
        client, "workflow", "update", "execute", "--workflow-id", execution_id, "--name", name, *given, "-o", "json"
    )


async def refusal(client: Client, execution_id: str, name: str, argument: dict[str, Any] | None = None) -> str:
    """Send an Update that is refused, and return the reason that was printed."""
    with pytest.raises(AssertionError) as refused:
        await update(client, execution_id, name, argument)
    return str(refused.value)


async def updates_in_history(client: Client, execution_id: str) -> list[str]:
    """The names of the Updates that were taken."""
    return [
        event.workflow_execution_update_accepted_event_attributes.accepted_request.input.name
        for event in await events_of(client, execution_id)
        if event.HasField("workflow_execution_update_accepted_event_attributes")
    ]


async def asking(engine: WorkflowEngine, *steps: dict[str, Any], gate_id: str) -> str:
    """Start an execution and wait until its gate is open."""
    await register(engine, *sorted({step["agent_id"] for step in steps if "agent_id" in step}))
    workflow_id = await engine.create_workflow("Release", list(steps))
    execution_id = (await engine.execute_workflow(workflow_id, {"version": "1.4"}))["execution_id"]
    await until_open(engine, execution_id, gate_id)
    return execution_id


async def until_open(engine: WorkflowEngine, execution_id: str, gate_id: str) -> None:
    """Wait for a gate."""

    async def is_open() -> bool:
        return gate_id in [gate["gate_id"] for gate in (await engine.list_gates(execution_id))["items"]]

    await until(is_open, f"gate {gate_id} is open")


async def scheduled_agents(client: Client, execution_id: str) -> list[str]:
    """The types of the agents' activities that history has."""
    types = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in await events_of(client, execution_id)
    ]
    return [name for name in types if name.startswith(AGENT_ACTIVITY_PREFIX)]


async def test_a_gate_is_approved_with_what_the_step_hands_on(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    execution_id = await asking(engine, ASK, SHIP, gate_id="ask.1")
    printed = await update(client, execution_id, "approve", {"by": "ada", "data": {"window": "night"}})
    answered = json.loads(printed)["result"]
    assert (answered["gate_id"], answered["answer"], answered["by"]) == ("ask.1", "approve", "ada")
    result = await finish(engine, execution_id)
    assert (result["status"], result["output"]) == ("completed", {"window": "night", "by": "ada"})
    gate = await engine.get_gate(execution_id, "ask.1")
    assert (gate["status"], gate["answer"], gate["by"], gate["at"]) == ("answered", "approve", "ada", answered["at"])


async def test_a_gate_that_is_rejected_fails_its_step(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    execution_id = await asking(engine, ASK, SHIP, gate_id="ask.1")
    await update(client, execution_id, "answer_gate", {"gate_id": "ask.1", "answer": "reject", "by": "ada"})
    result = await finish(engine, execution_id)
    assert result["status"] == "failed"
    assert result["steps"]["ask"]["error"]["message"] == "rejected by ada"
    assert result["steps"]["ship"]["status"] == "pending"


async def test_what_is_refused_says_why_and_leaves_nothing_in_history(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    execution_id = await asking(engine, ASK, SHIP, gate_id="ask.1")
    reasons: list[tuple[str, dict[str, Any] | None, str]] = [
        ("answer_gate", {"gate_id": "none.1", "answer": "approve"}, "There is no gate none.1; open are: ask.1"),
        ("answer_gate", {"gate_id": "ask.1", "answer": "maybe"}, "allowed are approve, reject"),
        ("answer_gate", {"gate": "ask.1"}, "There is no gate here; known are gate_id, answer, data, by"),
        ("approve", {"data": {"window": "noon"}}, "type: invalid_input"),
        ("approve", None, "The data for gate ask.1"),
        ("retry_step", {"step_id": "ask"}, "waits for no operator"),
        ("resume", {}, "is not paused"),
    ]
    for name, argument, reason in reasons:
        assert reason in await refusal(client, execution_id, name, argument)
    assert await updates_in_history(client, execution_id) == []
    await update(client, execution_id, "approve", {"data": {"window": "day"}})
    assert (await finish(engine, execution_id))["output"] == {"window": "day", "by": None}
    assert await updates_in_history(client, execution_id) == ["approve"]
    await refusal(client, execution_id, "approve", {"data": {"window": "day"}})


async def test_the_second_answer_is_a_conflict(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo, "agent-builder": BROKEN})
    execution_id = await asking(engine, ASK, SHIP, BUILD, gate_id="ask.1")
    await until_open(engine, execution_id, "build.1")
    await update(client, execution_id, "approve", {"data": {"window": "day"}, "by": "ada"})
    second = {"gate_id": "ask.1", "answer": "reject", "by": "eve"}
    assert "type: conflict" in await refusal(client, execution_id, "answer_gate", second)
    await update(client, execution_id, "skip_step", {"step_id": "build", "output": {"version": "0"}})
    result = await finish(engine, execution_id)
    assert (result["status"], result["steps"]["ask"]["output"]["by"]) == ("completed", "ada")
    assert (result["steps"]["build"]["status"], result["steps"]["build"]["output"]) == ("skipped", {"version": "0"})


async def test_a_held_execution_starts_nothing_until_it_is_resumed(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-echo": echo})
    execution_id = await asking(engine, ASK, SHIP, gate_id="ask.1")
    assert json.loads(await update(client, execution_id, "pause", {"by": "ada", "reason": "a freeze"}))["result"] == {
        "status": "paused"
    }
    assert "paused already" in await refusal(client, execution_id, "pause")
    await update(client, execution_id, "approve", {"data": {"window": "day"}})
    # The task that took the answer would have scheduled the step.
    assert await scheduled_agents(client, execution_id) == []
    resumed = json.loads(await update(client, execution_id, "resume"))["result"]
    assert resumed == {"status": "running"}
    assert (await finish(engine, execution_id))["status"] == "completed"
    assert await scheduled_agents(client, execution_id) == [f"{AGENT_ACTIVITY_PREFIX}agent-echo"]


async def test_a_failed_step_is_run_again(engine_factory: EngineFactory, client: Client):
    engine = engine_factory({"agent-builder": [BROKEN, BROKEN, {"version": "1.4"}]})
    execution_id = await asking(engine, BUILD, gate_id="build.1")
    await update(client, execution_id, "retry_step", {"step_id": "build", "by": "ada"})
    await until_open(engine, execution_id, "build.2")
    await update(client, execution_id, "answer_gate", {"gate_id": "build.2", "answer": "retry"})
    result = await finish(engine, execution_id)
    assert (result["status"], result["output"]) == ("completed", {"version": "1.4"})
    assert result["steps"]["build"]["attempts"] == 3
