"""What a step is reminded of, and what its agent's reply must look like, on the real server."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from runs import FAST_RETRIES, finish, start, until

from engine.domain.agent_call import AgentFailure, AgentReply, FailureReason
from engine.domain.context import NamespaceOwner
from engine.domain.execution import ExecutionWarning, ToolCall, Usage
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from runs import EngineFactory

    from engine.bootstrap import Stores
    from engine.domain.agent_call import AgentCall

pytestmark = ON_BOTH_STORES

NOTES = "The lighthouse keeper counts the ships that pass at night"


def reminded(given: Any, call: AgentCall) -> dict[str, Any]:
    return {"given": given, "context": [*call.context]}


async def test_a_step_is_reminded_of_what_the_same_run_has_just_said(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"notes": NOTES}, "agent-b": reminded})
    steps = [
        {"id": "a", "agent_id": "agent-a"},
        {
            "id": "b",
            "agent_id": "agent-b",
            "depends_on": ["a"],
            "context": {"recall": "Who counts ${input.what}?", "top_k": 3},
            "input_mapping": {"best": "${context[0].text}", "what": "${input.what}", "all": "${context}"},
        },
    ]
    execution_id = await start(engine, steps, {"what": "ships"})
    result = await finish(engine, execution_id)
    assert result["status"] == "completed", result["error"]
    output = result["output"]
    (item,) = output["context"]
    assert NOTES in item["text"]
    assert item["source"] == {"execution_id": execution_id, "step_id": "a", "agent_id": "agent-a"}
    assert output["given"] == {"best": item["text"], "what": "ships", "all": [item]}
    (recorded,) = result["steps"]["b"]["context"]
    assert (recorded["source"], recorded["score"]) == (item["source"], item["score"])
    assert "context" not in result["steps"]["a"]


async def test_another_execution_of_the_workflow_is_reminded_and_another_workflow_is_not(
    engine_factory: EngineFactory,
):
    engine = engine_factory({"agent-a": [{"notes": NOTES}, {"notes": "Nothing new"}], "agent-b": reminded})
    recall = {"recall": "lighthouse keeper ships"}
    steps: list[dict[str, Any]] = [
        {"id": "a", "agent_id": "agent-a"},
        {"id": "b", "agent_id": "agent-b", "depends_on": ["a"], "context": recall},
    ]
    first = await start(engine, steps)
    await finish(engine, first)
    workflow_id = first.rpartition("-")[0]
    again = (await engine.execute_workflow(workflow_id, {}))["execution_id"]
    texts = [item["text"] for item in (await finish(engine, again))["output"]["context"]]
    assert any(NOTES in text for text in texts)
    elsewhere = await finish(
        engine, await start(engine, [{"id": "b", "agent_id": "agent-b", "context": recall}], {"x": 1})
    )
    assert elsewhere["output"]["context"] == []


async def test_a_text_is_found_through_the_facade_once_it_is_indexed(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": {"notes": NOTES}})
    execution_id = await start(engine, [{"id": "a", "agent_id": "agent-a"}])
    await finish(engine, execution_id)

    async def is_found() -> bool:
        return bool(await engine.search_context("lighthouse ships", execution_id=execution_id))

    await until(is_found, "the step's text is found")
    (match,) = await engine.search_context("lighthouse ships", scope="execution", execution_id=execution_id)
    assert match["source"] == {"execution_id": execution_id, "step_id": "a", "agent_id": "agent-a"}
    assert 0 < match["score"] <= 1


async def test_a_recall_that_is_impossible_is_a_warning_and_no_failure(engine_factory: EngineFactory, stores: Stores):
    await stores.context.put_namespace_owner("default", NamespaceOwner(embedder="somebody else's", dimension=3))
    engine = engine_factory({"agent-b": reminded})
    execution_id = await start(engine, [{"id": "b", "agent_id": "agent-b", "context": {"recall": "x"}}])
    result = await finish(engine, execution_id)
    assert (result["status"], result["output"]["context"]) == ("completed", [])
    (warning,) = result["warnings"]
    assert (warning["code"], warning["step_id"]) == ("context_unavailable", "b")
    assert "reindex" in warning["message"]


async def test_a_recall_that_reads_what_is_not_there_fails_the_step_as_a_mapping_does(engine_factory: EngineFactory):
    engine = engine_factory({"agent-b": reminded})
    steps = [{"id": "b", "agent_id": "agent-b", "context": {"recall": "${input.absent}"}}]
    result = await finish(engine, await start(engine, steps))
    assert (result["status"], result["steps"]["b"]["reason"]) == ("failed", "invalid_input")
    assert "input.absent" in result["error"]["message"]


async def test_a_reply_that_the_steps_schema_refuses_is_a_failed_attempt(engine_factory: EngineFactory):
    engine = engine_factory({"agent-a": [{"plan": 7}, {"plan": "a house"}]})
    schema = {"type": "object", "properties": {"plan": {"type": "string"}}, "required": ["plan"]}
    step = {"id": "a", "agent_id": "agent-a", "output_schema": schema, "retry_policy": FAST_RETRIES}
    result = await finish(engine, await start(engine, [step]))
    assert (result["output"], result["steps"]["a"]["attempts"]) == ({"plan": "a house"}, 2)
    engine = engine_factory({"agent-a": {}})
    result = await finish(engine, await start(engine, [step | {"retry_policy": {"max_retries": 0}}]))
    assert (result["status"], result["steps"]["a"]["reason"]) == ("failed", "invalid_output")
    assert "plan" in result["error"]["message"]


async def test_what_every_attempt_cost_and_used_counts_once(engine_factory: EngineFactory):
    spent = Usage(requests=2, input_tokens=10, output_tokens=5, tool_calls=1, cost_usd=0.5)
    used = ToolCall(name="look", arguments={"at": "a"}, duration=timedelta(seconds=0.25), error="It is dark")
    failed = AgentFailure(FailureReason.UNAVAILABLE, "Away", usage=spent, tool_calls=[used])
    reply = AgentReply(
        {"text": "done"},
        usage=spent,
        tool_calls=[used.model_copy(update={"error": None})],
        warnings=[ExecutionWarning(code="unknown_tool", message="No such tool")],
        transcript=[{"role": "user", "content": "hello"}],
    )
    engine = engine_factory({"agent-a": [failed, failed, reply]})
    step = {"id": "a", "agent_id": "agent-a", "retry_policy": FAST_RETRIES}
    execution_id = await start(engine, [step], {"topic": "t"}, {"trace": True})
    result = await finish(engine, execution_id)
    thrice = {"requests": 6, "input_tokens": 30, "output_tokens": 15, "tool_calls": 3, "cost_usd": 1.5}
    recorded = result["steps"]["a"]
    assert recorded["usage"] == thrice
    assert result["usage"] == thrice
    look = {"name": "look", "arguments": {"at": "a"}, "duration": 0.25, "error": "It is dark"}
    assert recorded["tool_calls"] == [look, look, look | {"error": None}]
    assert recorded["transcript"] == [{"role": "user", "content": "hello"}]
    assert recorded["input"]["input"] == {"topic": "t"}
    assert result["warnings"] == [{"code": "unknown_tool", "message": "No such tool", "step_id": "a"}]
    metrics = (await engine.get_agent_performance("agent-a"))["metrics"]
    assert {name: metrics[name] for name in ("input_tokens", "output_tokens", "tool_calls", "cost_usd")} == {
        name: thrice[name] for name in ("input_tokens", "output_tokens", "tool_calls", "cost_usd")
    }
    workflow_id = execution_id.rpartition("-")[0]
    assert (await engine.get_workflow_metrics(workflow_id))["metrics"]["cost_usd"] == 1.5


async def test_what_a_step_that_gave_up_cost_and_used_is_recorded(engine_factory: EngineFactory):
    spent = Usage(requests=1, input_tokens=10, tool_calls=1)
    used = ToolCall(name="look", arguments={"at": "a"}, error="It is dark")
    failed = AgentFailure(FailureReason.UNAVAILABLE, "Away", usage=spent, tool_calls=[used])
    engine = engine_factory({"agent-a": failed})
    step = {"id": "a", "agent_id": "agent-a", "retry_policy": FAST_RETRIES | {"max_retries": 1}}
    result = await finish(engine, await start(engine, [step]))
    recorded = result["steps"]["a"]
    assert (recorded["status"], recorded["usage"]["input_tokens"], len(recorded["tool_calls"])) == ("failed", 20, 2)
