"""Agents that follow a script: each call gets the next entry of its step's script, or else of its agent's."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, cast

from engine.domain.agent_call import AgentFailure, AgentInvocation, AgentReply, FailureReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.domain.json import JsonValue

__all__ = ["ScriptedAgentInvoker"]


class ScriptedAgentInvoker:
    """Answers each agent's calls from a script instead of calling anything.

    Args:
        scripts: agent id to what it answers: an object (always the same), a list (one entry a call, the last one
            again and again), or a function of the input, or of input and ``AgentCall``, plain or async. An entry that
            is an exception is raised; one that is an ``AgentReply`` brings usage, tool calls and warnings with it.
            Functions run on the engine's own loop, in another thread than the test: wait there for a
            ``threading.Event``, looking at it between sleeps, and not for one of asyncio.
        steps: step id to a script of the same forms, which goes before that of the step's agent. Every attempt of a
            step and its fallbacks count as calls.

    Example:
        ``WorkflowEngine(invoker=ScriptedAgentInvoker({"agent-writer": {"text": "done"}}))``
    """

    def __init__(
        self, scripts: Mapping[str, object] | None = None, *, steps: Mapping[str, object] | None = None
    ) -> None:
        self.calls: list[AgentInvocation] = []
        """Every call so far, in order."""
        self._scripts = {("agent", name): script for name, script in (scripts or {}).items()}
        self._scripts |= {("step", name): script for name, script in (steps or {}).items()}
        self._counts: dict[tuple[str, str], int] = {}
        self._take_call: dict[Callable[..., object], bool] = {}

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Answer from the script.

        Raises:
            AgentFailure: the script says so, or there is none for the agent and the step.
        """
        self.calls.append(invocation)
        agent_id, step_id = invocation.agent.agent_id, invocation.call.step_id
        key = ("step", step_id) if ("step", step_id) in self._scripts else ("agent", agent_id)
        if key not in self._scripts:
            raise AgentFailure(FailureReason.INVALID_REQUEST, f"No script for agent {agent_id}, nor for step {step_id}")
        entry = self._next_entry(key)
        if callable(entry) and not isinstance(entry, type):
            entry = await self._called(entry, invocation)
        if isinstance(entry, AgentFailure):
            raise entry
        if isinstance(entry, Exception):
            raise AgentFailure(FailureReason.ERROR, f"{type(entry).__name__}: {entry}")
        return entry if isinstance(entry, AgentReply) else AgentReply(cast("JsonValue", entry))

    def _next_entry(self, key: tuple[str, str]) -> object:
        script = self._scripts[key]
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if isinstance(script, list):
            entries = cast("Sequence[object]", script)
            return entries[min(count, len(entries)) - 1]
        return script

    async def _called(self, function: Callable[..., object], invocation: AgentInvocation) -> object:
        if function not in self._take_call:
            self._take_call[function] = len(inspect.signature(function).parameters) > 1
        try:
            answer = (
                function(invocation.input, invocation.call) if self._take_call[function] else function(invocation.input)
            )
            if inspect.isawaitable(answer):
                return await answer
        except (AgentFailure, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a script may raise anything, as an agent may
            return error
        return answer
