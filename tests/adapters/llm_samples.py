"""What the suites of model agents share: a call, secrets, tools, and an invoker on a stub."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from engine.adapters.agents.llm.invoker import LlmAgentInvoker
from engine.adapters.agents.llm.prices import ModelPrices
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentFailure, AgentInvocation, FailureReason
from engine.ports.tools import ResolvedTools, Tool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.testing import ModelStub

KEY = "sk-marker-0123456789"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@dataclass
class FixedCall:
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 1
    idempotency_key: str = "flow-1/run/step1/1"
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=30))
    context: list = field(default_factory=list)
    cancelled: bool = False
    emitted: list = field(default_factory=list)

    def heartbeat(self, progress=None): ...

    def emit(self, text):
        self.emitted.append(text)


class FixedSecrets:
    """Secrets by name; each use is kept with the host it was for."""

    def __init__(self, **values):
        self.values = values
        self.asked = []

    def fill_in(self, template, host):
        name = template.removeprefix("${secret.").removesuffix("}")
        self.asked.append((name, host))
        if name not in self.values:
            raise AgentFailure(FailureReason.INVALID_REQUEST, f"The secret {name} is not set")
        return self.values[name]


class FixedTools:
    """Tools by name; any other is missing."""

    def __init__(self, *tools: Tool):
        self.tools = {tool.name: tool for tool in tools}

    def why_unknown(self, name):
        return None if name in self.tools else "there is no such tool"

    async def resolve_tools(self, names, call):
        missing = {name: "there is no such tool" for name in names if name not in self.tools}
        return ResolvedTools([self.tools[name] for name in names if name in self.tools], missing)


def tool(name: str, invoke: Callable[..., Awaitable[object]], **properties: object) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return Tool(name, f"Does {name}.", parameters, invoke)


def invoker_on(stub: ModelStub | None, *tools: Tool, secrets=None, hosts=(), prices=None, **options) -> LlmAgentInvoker:
    """Return an invoker whose agents use the stub unless they name another endpoint."""
    options.setdefault("default_base_url", stub and stub.base_url)
    return LlmAgentInvoker(
        hosts, secrets or FixedSecrets(OPENAI_API_KEY=KEY), FixedTools(*tools), prices or ModelPrices(None), **options
    )


def invocation(
    given=None, *, tools=(), seconds=30, reply_keys=(), output_schema=None, trace=False, context=(), **config
):
    call = FixedCall(deadline=datetime.now(UTC) + timedelta(seconds=seconds), context=list(context))
    agent = PlanAgent(
        agent_id="agent-x", version=1, kind="llm", config={"model": "some-model", **config}, tools=list(tools)
    )
    value = {"question": "Why?"} if given is None else given
    return AgentInvocation(agent, value, call, reply_keys=list(reply_keys), output_schema=output_schema, trace=trace)


async def failure_of(invoker: LlmAgentInvoker, asked: AgentInvocation) -> AgentFailure:
    with pytest.raises(AgentFailure) as caught:
        await asyncio.wait_for(invoker.invoke_agent(asked), 20)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value


def sent(stub: ModelStub, number: int = -1) -> list[dict]:
    """Return the messages of a request."""
    return stub.requests[number]["body"]["messages"]
