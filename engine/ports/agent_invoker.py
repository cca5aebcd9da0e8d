"""How an agent is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.agent_call import AgentInvocation, AgentReply


class AgentInvoker(Protocol):
    """Calls agents of one or more kinds, once a call: no retries, no decisions.

    Cancelling the awaiting task stops the call if the agent lets itself be stopped, and must return promptly either
    way. Allow-lists hold here, at call time, because a plan may come from anybody who reaches Temporal.
    """

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Make one attempt.

        Raises:
            AgentFailure: with its reason, for everything that the agent or the way to it did wrong.
        """
        ...
