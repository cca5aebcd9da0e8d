"""People act on executions: gates are answered once, runs are held and go on, failed steps are repeated or skipped."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_shapes import fits

from engine import EngineError, WorkflowEngine, types

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.conftest import EngineFactory

SECONDS = 30
SOON_SECONDS = 1
"""In which a status has to show what an operator has done."""
SLACK = 5
"""The machine is shared, so that a test waits longer than is promised."""
FAST: dict[str, object] = {"retry_policy": {"max_retries": 0}}
APPROVE = {
    "id": "approve",
    "type": "approval",
    "depends_on": ["draft"],
    "approval": {
        "question": "Publish ${steps.draft.output.title}?",
        "assignees": ["ann", "bob"],
        "schema": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]},
    },
}
PUBLISH = {
    "id": "publish",
    "agent_id": "agent-publisher",
    "depends_on": ["approve"],
    "input_mapping": {"answer": "${steps.approve.output}"},
}


class Switch:
    """An agent that fails until it is mended, or is held until it is let go."""

    def __init__(self) -> None:
        self.is_mended = False
        self.is_held = False
        self.calls = 0

    async def __call__(self, given: object) -> object:
        self.calls += 1
        while self.is_held:
            await asyncio.sleep(0.01)
        if not self.is_mended:
            raise ValueError("it is broken")
        return {"mended": given}


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
async def engine(engine_factory: EngineFactory, switch: Switch) -> AsyncGenerator[WorkflowEngine]:
    """An engine with a workflow that asks for approval, and one whose step fails and asks what to do."""
    engine = engine_factory(
        {"agent-drafter": {"title": "Tides"}, "agent-publisher": lambda given: given, "agent-faulty": switch}
    )
    for name in ("Drafter", "Publisher", "Faulty"):
        await engine.register_agent(name=name, config={"function": "m:f"})
    draft = {"id": "draft", "agent_id": "agent-drafter", "input_mapping": {}}
    await engine.create_workflow(name="Publish", steps=[draft, APPROVE, PUBLISH], workflow_id="publish")
    faulty = {"id": "faulty", "agent_id": "agent-faulty", "input_mapping": {}, "on_error": "ask", **FAST}
    after = {"id": "after", "agent_id": "agent-publisher", "input_mapping": {"of": "${steps.faulty.output}"}}
    await engine.create_workflow(name="Ask", steps=[faulty, after], workflow_id="ask")
    yield engine


async def start(engine: WorkflowEngine, workflow_id: str) -> str:
    return (await engine.execute_workflow(workflow_id))["execution_id"]


async def until(engine: WorkflowEngine, execution_id: str, status: str) -> types.ExecutionStatus:
    async with asyncio.timeout(SECONDS):
        while True:
            found = await engine.get_execution_status(execution_id)
            fits(found, types.ExecutionStatus)
            if found["status"] == status:
                return found
            await asyncio.sleep(0.02)


async def soon(engine: WorkflowEngine, execution_id: str, status: str) -> None:
    began_at = time.monotonic()
    await until(engine, execution_id, status)
    assert time.monotonic() - began_at < SOON_SECONDS * SLACK


async def gates_of(engine: WorkflowEngine, **query: Any) -> list[types.Gate]:
    page = await engine.list_gates(**query)
    fits(page, types.GatePage)
    return page["items"]


async def only_gate(engine: WorkflowEngine, execution_id: str, *, other_than: str | None = None) -> types.Gate:
    """The one gate of an execution, as soon as it is listed and no longer another one."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = await gates_of(engine, execution_id=execution_id)
            if found and found[0]["gate_id"] != other_than:
                [gate] = found
                return gate
            await asyncio.sleep(0.02)


async def fault_of(call: Any) -> EngineError:
    with pytest.raises(EngineError) as raised:
        await call
    return raised.value


async def result_of(engine: WorkflowEngine, execution_id: str) -> types.ExecutionResult:
    result = await engine.get_execution_result(execution_id, wait=SECONDS)
    fits(result, types.ExecutionResult)
    return result


# Gates.


async def test_an_execution_waits_for_an_answer_and_goes_on_with_it(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    gate = await only_gate(engine, execution_id)
    status = await until(engine, execution_id, "waiting")
    assert status.get("gates") == [gate["gate_id"]] == ["approve.1"]
    assert status["steps"]["approve"]["status"] == "waiting"
    assert status["current_steps"] == ["approve"]
    assert {key: gate[key] for key in ("execution_id", "workflow_id", "step_id", "kind", "question", "assignees")} == {
        "execution_id": execution_id,
        "workflow_id": "publish",
        "step_id": "approve",
        "kind": "approval",
        "question": "Publish Tides?",
        "assignees": ["ann", "bob"],
    }
    assert (gate["allowed"], gate["schema"]) == (["approve", "reject"], APPROVE["approval"]["schema"])
    waiting = (await engine.list_executions(status="waiting"))["items"]
    assert [item["execution_id"] for item in waiting] == [execution_id]

    answered = await engine.answer_gate(execution_id, "approve.1", "approve", by="ann", data={"price": 3})
    fits(answered, types.GateAnswer)
    assert (answered["gate_id"], answered["answer"], answered["by"]) == ("approve.1", "approve", "ann")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answered["at"])
    result = await result_of(engine, execution_id)
    assert result["status"] == "completed"
    output: Any = result["output"]
    assert {key: output["answer"][key] for key in ("answer", "data", "by")} == {
        "answer": "approve",
        "data": {"price": 3},
        "by": "ann",
    }
    assert await gates_of(engine) == []
    gone = await engine.get_gate(execution_id, "approve.1")
    fits(gone, types.GateState)
    assert (gone["status"], gone["answer"], gone["by"], gone["data"]) == ("answered", "approve", "ann", {"price": 3})
    assert gone["at"] == answered["at"]
    assert "gates" not in await engine.get_execution_status(execution_id)
    events = [event["type"] async for event in engine.watch_execution(execution_id)]
    for opened, after in (("gate.opened", "gate.answered"), ("gate.answered", "execution.completed")):
        assert events.index(opened) < events.index(after)


async def test_gates_are_found_by_assignee_and_workflow(engine: WorkflowEngine):
    publishing, asking = await start(engine, "publish"), await start(engine, "ask")
    for execution_id in (publishing, asking):
        await only_gate(engine, execution_id)

    async def found(**query: Any) -> set[str]:
        return {gate["execution_id"] for gate in await gates_of(engine, **query)}

    assert await found() == {publishing, asking}
    assert await found(workflow_id="ask") == {asking}
    assert await found(assignee="bob") == {publishing}
    assert await found(assignee="bob", workflow_id="ask") == set()
    assert await found(execution_id="none") == set()


async def test_an_answer_that_can_not_be_taken_changes_nothing(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    before = await only_gate(engine, execution_id)
    for gate_id, answer, data, path in (
        ("none.1", "approve", {"price": 3}, "gate_id"),
        ("approve.1", "perhaps", {"price": 3}, "answer"),
        ("approve.1", "approve", {"price": "much"}, "data.price"),
        ("approve.1", "approve", None, "data"),
    ):
        error = await fault_of(engine.answer_gate(execution_id, gate_id, answer, data=data))
        issues: Any = error.details.get("issues", [{"path": error.details.get("path")}])
        assert (error.code, issues[0]["path"]) == ("invalid_input", path)
    assert await only_gate(engine, execution_id) == before


async def test_of_many_answers_at_once_one_stands(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    answers = await asyncio.gather(
        *(
            engine.answer_gate(
                execution_id, "approve.1", ("approve", "reject")[number % 2], f"user-{number}", {"price": number}
            )
            for number in range(6)
        ),
        return_exceptions=True,
    )
    [taken] = [answer for answer in answers if isinstance(answer, dict)]
    refused = [answer for answer in answers if isinstance(answer, EngineError)]
    assert [error.code for error in refused] == ["conflict"] * 5
    for error in refused:
        assert (error.details["answer"], error.details["by"]) == (taken["answer"], taken["by"])
    result = await result_of(engine, execution_id)
    assert result["status"] == ("completed" if taken["answer"] == "approve" else "failed")
    late = await fault_of(engine.answer_gate(execution_id, "approve.1", "approve", "late", {"price": 1}))
    assert (late.code, late.details["answer"], late.details["by"]) == ("conflict", taken["answer"], taken["by"])


async def test_a_rejection_fails_the_step_by_name(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    await engine.answer_gate(execution_id, "approve.1", "reject", "ann", {"price": 0})
    result = await result_of(engine, execution_id)
    error: Any = result["error"]
    assert (result["status"], error["code"], error["details"]["reason"]) == ("failed", "agent_error", "refused")
    assert "ann" in error["message"]
    assert result["steps"]["publish"]["status"] == "pending"


async def test_the_gates_of_a_cancelled_execution_are_gone(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    await engine.cancel_execution(execution_id, "no longer wanted")
    assert (await result_of(engine, execution_id))["status"] == "cancelled"
    assert await gates_of(engine) == []
    error = await fault_of(engine.answer_gate(execution_id, "approve.1", "approve", data={"price": 1}))
    assert (error.code, error.details["answer"]) == ("conflict", None)
    assert (await engine.get_gate(execution_id, "approve.1"))["status"] == "closed"


# Steps that ask.


async def test_a_failed_step_is_tried_again_when_it_is_mended(engine: WorkflowEngine, switch: Switch):
    execution_id = await start(engine, "ask")
    gate = await only_gate(engine, execution_id)
    assert (gate["kind"], gate["step_id"], gate["allowed"]) == ("ask", "faulty", ["retry", "skip", "fail"])
    assert "it is broken" in gate["question"]
    assert await engine.retry_step(execution_id, "faulty", by="ann") is True
    again = await only_gate(engine, execution_id, other_than=gate["gate_id"])
    switch.is_mended = True
    await engine.answer_gate(execution_id, again["gate_id"], "retry")
    result = await result_of(engine, execution_id)
    assert (result["status"], result["output"]) == ("completed", {"of": {"mended": {}}})
    assert (result["steps"]["faulty"]["attempts"], switch.calls) == (3, 3)
    assert (await engine.get_gate(execution_id, gate["gate_id"]))["by"] == "ann"


@pytest.mark.parametrize("output", [None, {"instead": [1]}, "a text"])
async def test_a_failed_step_is_skipped_with_an_output_in_its_place(engine: WorkflowEngine, output: object):
    execution_id = await start(engine, "ask")
    await only_gate(engine, execution_id)
    assert await engine.skip_step(execution_id, "faulty", output, "ann") is True
    result = await result_of(engine, execution_id)
    step = result["steps"]["faulty"]
    assert (result["status"], result["output"]) == ("completed", {"of": output})
    assert (step["status"], step["reason"], step["output"]) == ("skipped", "operator", output)


async def test_a_step_that_does_not_ask_is_left_alone(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    for act in (engine.retry_step, engine.skip_step):
        assert (await fault_of(act(execution_id, "approve"))).code == "conflict"
        assert (await fault_of(act(execution_id, "nowhere"))).code == "invalid_input"
    assert (await engine.get_execution_status(execution_id))["status"] == "waiting"


# Holding.


async def test_nothing_new_starts_in_a_paused_execution_until_it_goes_on(engine: WorkflowEngine, switch: Switch):
    switch.is_held, switch.is_mended = True, True
    execution_id = await start(engine, "ask")
    async with asyncio.timeout(SECONDS):
        while not switch.calls:
            await asyncio.sleep(0.02)
    assert await engine.pause_execution(execution_id, by="ann", reason="lunch") is True
    await soon(engine, execution_id, "paused")
    paused = (await engine.list_executions(status="paused"))["items"]
    assert [item["execution_id"] for item in paused] == [execution_id]
    assert (await fault_of(engine.pause_execution(execution_id))).code == "conflict"
    switch.is_held = False
    async with asyncio.timeout(SECONDS):
        while (await engine.get_execution_status(execution_id))["steps"]["faulty"]["status"] != "completed":
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert (await engine.get_execution_status(execution_id))["steps"]["after"]["status"] == "pending"
    assert await engine.resume_execution(execution_id, by="bob") is True
    result = await result_of(engine, execution_id)
    assert result["status"] == "completed"
    events = {event["type"]: event async for event in engine.watch_execution(execution_id)}
    assert events["execution.paused"]["data"] == {"by": "ann", "reason": "lunch"}
    assert events["execution.resumed"]["data"]["by"] == "bob"
    assert (await fault_of(engine.resume_execution(execution_id))).code == "conflict"


async def test_a_gate_of_a_paused_execution_can_be_answered(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    await engine.pause_execution(execution_id)
    await soon(engine, execution_id, "paused")
    await engine.answer_gate(execution_id, "approve.1", "approve", data={"price": 2})
    await asyncio.sleep(0.3)
    assert (await engine.get_execution_status(execution_id))["status"] == "paused"
    await engine.resume_execution(execution_id)
    assert (await result_of(engine, execution_id))["status"] == "completed"


async def test_what_does_not_run_can_not_be_resumed(engine: WorkflowEngine):
    execution_id = await start(engine, "publish")
    await only_gate(engine, execution_id)
    assert (await fault_of(engine.resume_execution(execution_id))).code == "conflict"
    await engine.cancel_execution(execution_id)
    await result_of(engine, execution_id)
    for call in (engine.pause_execution, engine.resume_execution):
        error = await fault_of(call(execution_id))
        assert (error.code, error.details["status"]) == ("conflict", "cancelled")
