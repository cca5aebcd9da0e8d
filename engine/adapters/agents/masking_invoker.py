"""What agents give back shows no secret: one place in front of all kinds, so that none has to think of it.

A failure is raised anew and without a cause: Temporal writes an exception's causes into its history. The clients that
the kinds are built on log whole answers at level DEBUG, into handlers that are not ours, so their loggers are masked.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine.adapters.agents.forwarded_call import ForwardedCall
from engine.domain.agent_call import AgentFailure, AgentReply, FailureReason
from engine.masking import knows_secrets, mask_json, mask_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.domain.agent_call import AgentInvocation
    from engine.domain.execution import ToolCall
    from engine.domain.json import JsonValue
    from engine.ports.agent_invoker import AgentInvoker

__all__ = ["MaskingAgentInvoker"]

_CLIENTS_LOGGERS: Final = (
    "client",  # the name that mcp's session gives its own
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "mcp.client.stdio",
    "mcp.client.streamable_http",
    "mcp.shared.jsonrpc_dispatcher",
    "openai._base_client",
)
_INLINE_CHARS: Final = 20_000


class _MaskedLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not knows_secrets():
            return True
        message = record.getMessage()
        masked = mask_text(message)
        if masked != message:
            record.msg, record.args = masked, None
        if record.exc_info and record.exc_info[0] is not None:
            # Handlers take this text and do not format the exception again.
            record.exc_text = mask_text("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return True


_MASKED_LINES: Final = _MaskedLines()


class MaskingAgentInvoker:
    """Hands each call on, and masks what comes of it: replies, failures, progress.

    Args:
        invoker: that makes the calls; whoever made it closes it.
    """

    def __init__(self, invoker: AgentInvoker) -> None:
        self._invoker = invoker
        for name in _CLIENTS_LOGGERS:
            logging.getLogger(name).addFilter(_MASKED_LINES)

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Make one attempt.

        Raises:
            AgentFailure: what the invoker raises, masked; error, for another exception that shows a secret.
        """
        try:
            reply = await self._invoker.invoke_agent(replace(invocation, call=_MaskedCall(invocation.call)))
        except AgentFailure as failure:
            if not knows_secrets():
                raise
            masked = _masked_failure(failure)
        except Exception as error:
            if not knows_secrets() or not _shows_secret(error):
                raise
            masked = AgentFailure(FailureReason.ERROR, mask_text(f"{type(error).__name__}: {error}"))
        else:
            if not knows_secrets():
                return reply
            if _is_small(reply.output, reply.transcript):
                return _masked_reply(reply)
            return await asyncio.to_thread(_masked_reply, reply)
        # Outside of the handlers, so that it does not have the original as its context.
        raise masked


class _MaskedCall(ForwardedCall):
    """The call as an invoker sees it; what it tells the world through it is masked."""

    def heartbeat(self, progress: JsonValue = None) -> None:
        super().heartbeat(mask_json(progress))

    def emit(self, text: str) -> None:
        super().emit(mask_text(str(text)))


def _is_small(*values: JsonValue) -> bool:
    """Whether masking takes less than a thread does; what is large is not for the event loop."""
    left = _INLINE_CHARS
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        left -= len(value) + 10 if isinstance(value, str | dict | list) else 10
        if left < 0:
            return False
        if isinstance(value, dict):
            waiting += (*value, *value.values())
        elif isinstance(value, list):
            waiting += value
    return True


def _masked_reply(reply: AgentReply) -> AgentReply:
    return replace(
        reply,
        output=mask_json(reply.output),
        tool_calls=_masked_tool_calls(reply.tool_calls),
        warnings=[
            warning.model_copy(update={"code": mask_text(warning.code), "message": mask_text(warning.message)})
            for warning in reply.warnings
        ],
        transcript=mask_json(reply.transcript),
    )


def _masked_failure(failure: AgentFailure) -> AgentFailure:
    return AgentFailure(
        failure.reason,
        mask_text(failure.message),
        failure.retry_after,
        mask_json(failure.details),
        usage=failure.usage,
        tool_calls=_masked_tool_calls(failure.tool_calls),
    )


def _masked_tool_calls(calls: Sequence[ToolCall]) -> list[ToolCall]:
    return [
        call.model_copy(
            update={
                "name": mask_text(call.name),
                "arguments": mask_json(call.arguments),
                "error": None if call.error is None else mask_text(call.error),
            }
        )
        for call in calls
    ]


def _shows_secret(error: Exception) -> bool:
    # All that a log or Temporal's history would say of it, causes included.
    text = "".join(traceback.format_exception(error))
    return mask_text(text) != text
