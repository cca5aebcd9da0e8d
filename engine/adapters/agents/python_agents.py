"""Agents that are Python functions of the user: ``def f(input, call)``, sync or async, returning a JSON object.

The function is somebody else's code: it runs off the worker's event loop, and whatever it returns or raises, up to
``SystemExit``, ends as a reply or as an ``AgentFailure``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, cast

from engine.adapters.agents.agent_functions import AgentFunction, AgentFunctions
from engine.adapters.agents.function_runs import FunctionRuns
from engine.adapters.agents.replies import checked_output, failure_of, log_failure
from engine.domain.agent_call import AgentFailure, AgentReply, FailureReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.domain.agent_call import AgentCall, AgentInvocation
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["PythonAgentInvoker"]

_logger = logging.getLogger(__name__)


class PythonAgentInvoker:
    """Calls agents of kind ``python``, whose config is ``{function: "package.module:name"}``.

    Args:
        agent_modules: the setting of that name: import paths whose modules, and all below them, may be loaded.
        max_threads: most sync functions that run at once; others wait.
        functions: functions registered in code, under names that a config gives without a colon.
    """

    def __init__(
        self,
        agent_modules: Sequence[str],
        *,
        max_threads: int = 32,
        functions: Mapping[str, Callable[..., object]] | None = None,
    ) -> None:
        self._functions = AgentFunctions(agent_modules, functions or {})
        self._runs = FunctionRuns(max_threads)

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Call the function once.

        Cancelling returns at once: an async function is cancelled where it awaits, and any function sees
        ``call.cancelled``.

        Raises:
            AgentFailure: with its reason, for everything that the function or the way to it did wrong.
        """
        name = invocation.agent.config.get("function")
        function = self._functions.find(name)
        if function is None:
            function = await self._runs.load(partial(self._functions.load, str(name)))
        if function.is_async:
            outcome = await self._runs.run_async(invocation.call, partial(_answer_async, function, invocation.input))
        else:
            outcome = await self._runs.run(invocation.call, partial(_answer, function, invocation.input))
        if isinstance(outcome, AgentFailure):
            raise outcome
        return AgentReply(outcome)

    async def aclose(self) -> None:
        """Take no more calls and ask those that run to end; after 5 s what is stuck in a user's code is left behind."""
        await self._runs.aclose()


def _answer(function: AgentFunction, content: JsonValue, call: AgentCall) -> JsonObject | AgentFailure:
    try:
        result = _called(function, content, call)
        if inspect.iscoroutine(result):
            result.close()
            return AgentFailure(
                FailureReason.INVALID_OUTPUT,
                f"The function {function.name} returned a coroutine; declare the function itself `async def`",
            )
        return checked_output(result)
    except BaseException as error:  # noqa: BLE001 - whatever a user's code raises is the outcome of the call
        return _failure(function, error)


async def _answer_async(function: AgentFunction, content: JsonValue, call: AgentCall) -> JsonObject | AgentFailure:
    try:
        return checked_output(await cast("Awaitable[object]", _called(function, content, call)))
    except asyncio.CancelledError:
        if call.cancelled:
            return AgentFailure(FailureReason.UNAVAILABLE, f"The call of {function.name} was cancelled")
        return AgentFailure(FailureReason.ERROR, f"The function {function.name} was cancelled by its own code")
    except BaseException as error:  # noqa: BLE001 - as above
        return _failure(function, error)


def _called(function: AgentFunction, content: JsonValue, call: AgentCall) -> object:
    return function.function(content, call) if function.takes_call else function.function(content)


def _failure(function: AgentFunction, error: BaseException) -> AgentFailure:
    if not isinstance(error, AgentFailure):
        log_failure(_logger, f"the agent's function {function.name} failed", error)
    return failure_of(error)
