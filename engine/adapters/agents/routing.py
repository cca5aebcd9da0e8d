"""One invoker in front of the kinds: the kind frozen in the plan chooses, and an unknown one is told, not guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.agent_call import AgentFailure, FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.agent import AgentKind
    from engine.domain.agent_call import AgentInvocation, AgentReply
    from engine.ports.agent_invoker import AgentInvoker

__all__ = ["RoutingAgentInvoker"]


class RoutingAgentInvoker:
    """Hands each call to the invoker of its agent's kind.

    Args:
        invokers: kind to invoker; whoever made these closes them.
    """

    def __init__(self, invokers: Mapping[AgentKind, AgentInvoker]) -> None:
        self._invokers = dict(invokers)

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Make one attempt.

        Raises:
            AgentFailure: invalid_request for a kind without invoker; else whatever that invoker raises.
        """
        agent = invocation.agent
        invoker = self._invokers.get(agent.kind)
        if invoker is None:
            raise AgentFailure(
                FailureReason.INVALID_REQUEST,
                f"The agent {agent.agent_id} is of kind {agent.kind}, which is unsupported here; supported:"
                f" {', '.join(sorted(self._invokers)) or 'none'}",
                details={"agent_id": agent.agent_id, "kind": agent.kind},
            )
        return await invoker.invoke_agent(invocation)
