"""Agents that follow a script, on a real engine: by agent and by step, with failures, usage and tool calls."""

from __future__ import annotations

from engine import AgentFailure, FailureReason, WorkflowEngine
from engine.domain.agent_call import AgentReply
from engine.domain.execution import ExecutionWarning, ToolCall, Usage
from engine.testing import ScriptedAgentInvoker

STEPS = [
    {"id": "plan", "agent_id": "agent-writer", "retry_policy": {"initial_interval": 0.01}},
    {"id": "draft", "agent_id": "agent-writer", "depends_on": ["plan"], "fallback": {"agent_id": "agent-other"}},
]


async def run(config, invoker, steps=STEPS):
    async with WorkflowEngine(config, invoker=invoker) as engine:
        for name in ("Writer", "Other"):
            await engine.register_agent(name=name, config={"function": "nowhere:agent"})
        workflow_id = await engine.create_workflow(name="Scripted", steps=steps)
        execution = await engine.execute_workflow(workflow_id, {})
        return await engine.get_execution_result(execution["execution_id"], wait=30)


async def test_a_steps_script_goes_before_its_agents(engine_config):
    busy = AgentFailure(FailureReason.RATE_LIMITED, "too many requests")
    invoker = ScriptedAgentInvoker({"agent-writer": {"text": "agent"}}, steps={"plan": [busy, {"text": "step"}]})
    result = await run(engine_config, invoker)
    assert {name: step["output"] for name, step in result["steps"].items()} == {
        "plan": {"text": "step"},
        "draft": {"text": "agent"},
    }
    assert result["steps"]["plan"]["attempts"] == 2


async def test_a_steps_script_holds_for_its_fallback_too(engine_config):
    refused = AgentFailure(FailureReason.REFUSED, "no")
    invoker = ScriptedAgentInvoker(steps={"plan": {"n": 1}, "draft": [refused, {"n": 2}]})
    result = await run(engine_config, invoker)
    assert result["output"] == {"n": 2}
    assert result["steps"]["draft"]["agent_id"] == "agent-other"
    assert [call.agent.agent_id for call in invoker.calls] == ["agent-writer", "agent-writer", "agent-other"]


async def test_a_reply_brings_usage_tools_and_warnings(engine_config):
    usage = Usage(requests=2, input_tokens=30, output_tokens=12, tool_calls=1, cost_usd=0.5)
    reply = AgentReply(
        {"text": "done"},
        usage=usage,
        tool_calls=[ToolCall(name="search", arguments={"q": "x"})],
        warnings=[ExecutionWarning(code="tool_missing", message="no such tool")],
    )
    result = await run(engine_config, ScriptedAgentInvoker({"agent-writer": reply}), STEPS[:1])
    assert result["output"] == {"text": "done"}
    assert result["usage"] == usage.model_dump()
    [tool_call] = result["steps"]["plan"]["tool_calls"]
    assert (tool_call["name"], tool_call["arguments"]) == ("search", {"q": "x"})
    assert result["warnings"] == [{"code": "tool_missing", "message": "no such tool", "step_id": "plan"}]


async def test_without_a_script_the_call_fails_and_names_both(engine_config):
    result = await run(engine_config, ScriptedAgentInvoker(), STEPS[:1])
    assert result["status"] == "failed"
    assert result["steps"]["plan"]["error"]["message"] == "No script for agent agent-writer, nor for step plan"
