"""Tools that are Python functions of the user: found as python agents are, called with arguments that were checked.

A name ``package.module:function`` reaches only what ``agent_modules`` allows; a name without a colon stands for a
function registered in code, also by one of the listed modules, which are imported for it. All of a function's code,
its module's import and its result's serializers included, runs off the worker's event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from pydantic import ValidationError

from engine.adapters.agents.agent_functions import AgentFunctions, is_async_function
from engine.adapters.agents.function_runs import FunctionRuns
from engine.adapters.agents.replies import failure_of, log_failure
from engine.adapters.agents.tools.signatures import signature_of
from engine.adapters.agents.tools.tool_results import checked_result, tool_failure
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.ports.tools import Tool, ToolFailure
from engine.tools import registered_tool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.adapters.agents.tools.signatures import FunctionSignature
    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["FunctionTools"]

_FAULTS_SHOWN: Final = 5
_logger = logging.getLogger(__name__)


class FunctionTools:
    """Finds and calls them.

    Args:
        agent_modules: the setting of that name.
        max_threads: most sync functions that run at once; others wait.
    """

    def __init__(self, agent_modules: Sequence[str], *, max_threads: int = 32) -> None:
        self._agent_modules = tuple(agent_modules)
        self._functions = AgentFunctions(agent_modules, {})
        self._runs = FunctionRuns(max_threads)
        self._known: dict[str, tuple[Callable[..., object], Tool]] = {}

    def why_unknown(self, name: str) -> str | None:
        """Return why ``name`` can't be found, without importing anything.

        A plain name that nothing is registered under yet is not unknown while there are modules that may do it.
        """
        if ":" in name:
            try:
                self._functions.find(name)
            except AgentFailure as failure:
                return failure.message
            return None
        if registered_tool(name) is None and not self._agent_modules:
            return (
                "no function is registered under this name, and there is no module in the setting `agent_modules` that"
                " could register one"
            )
        return None

    async def find_tool(self, name: str, call: AgentCall) -> Tool | str:
        """Return the tool, named after its function, or why there is none.

        Raises:
            AgentFailure: timeout, when its module is not imported before the call's deadline.
        """
        function, tool = self._known.get(name, (None, None))
        # A notebook registers a function anew, and the new one is meant.
        if tool is not None and (":" in name or function is registered_tool(name)):
            return tool
        why = self.why_unknown(name)
        if why is not None:
            return why
        try:
            async with asyncio.timeout(_seconds_left(call)):
                return await self._runs.load(partial(self._load, name))
        except AgentFailure as failure:
            return failure.message
        except TimeoutError:
            raise AgentFailure(
                FailureReason.TIMEOUT, f"The modules for the tool {name:.200} take longer to import than the step has"
            ) from None

    async def aclose(self) -> None:
        """Take no more calls and ask those that run to end; after 5 s what is stuck in a user's code is left behind."""
        await self._runs.aclose()

    def _load(self, name: str) -> Tool | str:
        if ":" in name:
            function = self._functions.import_function(name)
        else:
            faults = [] if registered_tool(name) is not None else self._import_modules()
            registered = registered_tool(name)
            if registered is None:
                return "; ".join(["no function is registered under this name", *faults])
            function = registered
        try:
            signature = signature_of(function)
        except ValueError as fault:
            return f"the function can't be a tool: {fault}"
        except BaseException as error:  # noqa: BLE001 - reading annotations runs the module's own code
            return f"the function can't be a tool: {failure_of(error).message}"
        called = _ToolFunction(name, function, is_async_function(function))
        tool = Tool(
            name=getattr(function, "__name__", type(function).__name__),
            description=signature.description,
            parameters=signature.parameters,
            invoke=partial(self._invoke, called, signature),
        )
        self._known[name] = (function, tool)
        return tool

    def _import_modules(self) -> list[str]:
        faults: list[str] = []
        for path in self._agent_modules:
            try:
                importlib.import_module(path)
            except BaseException as error:  # noqa: BLE001 - a module's code may raise anything, SystemExit too
                log_failure(_logger, f"the import of the module {path}, which may register tools, failed", error)
                faults.append(f"the module {path} can't be imported: {failure_of(error).message}")
        return faults

    async def _invoke(
        self, function: _ToolFunction, signature: FunctionSignature, given: JsonObject, call: AgentCall
    ) -> JsonValue:
        try:
            async with asyncio.timeout(_seconds_left(call)):
                if function.is_async:
                    outcome = await self._runs.run_async(call, partial(_answer_async, function, signature, given))
                else:
                    outcome = await self._runs.run(call, partial(_answer, function, signature, given))
        except TimeoutError:
            raise tool_failure("The tool did not end before the step's deadline") from None
        except AgentFailure as failure:
            raise tool_failure(failure.message) from None
        if isinstance(outcome, ToolFailure):
            raise outcome
        return outcome


@dataclass(frozen=True, slots=True)
class _ToolFunction:
    name: str
    function: Callable[..., object]
    is_async: bool


def _answer(
    function: _ToolFunction, signature: FunctionSignature, given: JsonObject, call: AgentCall
) -> JsonValue | ToolFailure:
    try:
        result = _called(function, signature, given, call)
        if inspect.iscoroutine(result):
            result.close()
            return tool_failure("The tool's function returned a coroutine; declare the function itself `async def`")
        return checked_result(result)
    except BaseException as error:  # noqa: BLE001 - whatever a user's code raises is the outcome of the call
        return _failure(function, error)


async def _answer_async(
    function: _ToolFunction, signature: FunctionSignature, given: JsonObject, call: AgentCall
) -> JsonValue | ToolFailure:
    try:
        return checked_result(await cast("Awaitable[object]", _called(function, signature, given, call)))
    except asyncio.CancelledError:
        return tool_failure("The tool's call was cancelled")
    except BaseException as error:  # noqa: BLE001 - as above
        return _failure(function, error)


def _called(function: _ToolFunction, signature: FunctionSignature, given: JsonObject, call: AgentCall) -> object:
    try:
        arguments = signature.arguments.validate_python(given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        texts = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:_FAULTS_SHOWN]]
        raise tool_failure(f"The arguments don't fit: {'; '.join(texts)}") from None
    if signature.call_parameter is not None:
        arguments = {**arguments, signature.call_parameter: call}
    return function.function(**arguments)


def _failure(function: _ToolFunction, error: BaseException) -> ToolFailure:
    if isinstance(error, ToolFailure):
        return tool_failure(str(error))
    if not isinstance(error, AgentFailure):
        log_failure(_logger, f"the tool {function.name} failed", error)
    return tool_failure(failure_of(error).message)


def _seconds_left(call: AgentCall) -> float:
    return max((call.deadline - datetime.now(UTC)).total_seconds(), 0.0)
