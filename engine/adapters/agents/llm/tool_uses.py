"""The tools that a model asks for: checked by their schema, run, recorded.

Whatever goes wrong in a tool goes back to the model as a text, because the model can do something about it. Only the
call's own end stops a tool.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.agents.replies import bounded_text, log_failure
from engine.domain.execution import ToolCall
from engine.domain.issues import IssueList, summary
from engine.domain.json import json_fault
from engine.domain.json_schema import check_value
from engine.ports.tools import Tool, ToolFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.adapters.agents.llm.spending import Spending
    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["AskedTool", "ToolUses", "parsed_arguments"]

_MAX_ARGUMENTS_CHARS: Final = 2_000
_MAX_RESULT_CHARS: Final = 200_000
_MAX_TOGETHER: Final = 16
_logger = logging.getLogger(__name__)


class _RefusedError(Exception):
    """The tool was not called, for the reason in the message."""


@dataclass(frozen=True, slots=True)
class AskedTool:
    """One use of a tool as the model asked for it; arguments may be JSON text."""

    name: str
    arguments: object


class ToolUses:
    """Runs the tools of one call.

    Args:
        tools: those that the model was told of.
        call: what the tools see of the call.
        spending: keeps a record of each use.
    """

    def __init__(self, tools: Sequence[Tool], call: AgentCall, spending: Spending) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._call = call
        self._spending = spending
        self._places = asyncio.Semaphore(_MAX_TOGETHER)

    async def run(self, asked: Sequence[AskedTool]) -> list[str]:
        """Run all at once, at most 16 together, and return what the model is told of each, in order."""
        if len(asked) == 1:
            return [await self._use(asked[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._use(item)) for item in asked]
        return [task.result() for task in tasks]

    async def _use(self, asked: AskedTool) -> str:
        async with self._places:
            started = time.monotonic()
            error: str | None = None
            try:
                return await self._result(asked)
            except (_RefusedError, ToolFailure) as failure:
                error = bounded_text(str(failure))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                error = "The call ended before the tool did"
                if task is None or task.cancelling():
                    raise
                error = "The tool was cancelled by its own code"
            except Exception as failure:  # noqa: BLE001 - a tool's code may raise anything; the model is told
                log_failure(_logger, f"the tool {asked.name:.100} failed", failure)
                error = bounded_text(f"{type(failure).__name__}: {failure}")
            finally:
                self._record(asked, time.monotonic() - started, error)
            return f"Error: {error}"

    async def _result(self, asked: AskedTool) -> str:
        tool = self._tools.get(asked.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise _RefusedError(f"There is no tool {asked.name:.100}; the tools are: {known}")
        arguments = parsed_arguments(asked.arguments)
        if isinstance(arguments, str):
            raise _RefusedError(f"The tool was not called, its arguments can't be used: {arguments}")
        issues = IssueList(arguments, prefix=("arguments",))
        check_value(tool.parameters, arguments, issues)
        if issues.has_errors():
            raise _RefusedError(summary("The tool was not called, its arguments do not fit", issues.in_order()))
        result = await tool.invoke(arguments, self._call)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, separators=(",", ":"))
        if len(text) > _MAX_RESULT_CHARS:
            raise _RefusedError(
                f"The result has {len(text)} characters, more than the {_MAX_RESULT_CHARS} allowed; ask for less"
            )
        return bounded_text(text, _MAX_RESULT_CHARS)

    def _record(self, asked: AskedTool, seconds: float, error: str | None) -> None:
        shown = ToolCall(
            name=bounded_text(asked.name, 200),
            arguments=_shown(asked.arguments),
            duration=timedelta(seconds=seconds),
            error=error,
        )
        self._spending.tool_calls.append(shown)


def parsed_arguments(given: object) -> JsonObject | str:
    """Return a tool's arguments as an object, or what is wrong with them; nothing given stands for no arguments."""
    value = given
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        import pydantic_core

        try:
            value = cast("object", pydantic_core.from_json(given, allow_inf_nan=False))
        except ValueError as error:
            return f"they are no JSON ({bounded_text(str(error), 200)})"
    if type(value) is not dict:
        return "they are no JSON object"
    found = cast("JsonObject", value)
    return json_fault(found, "arguments") or found


def _shown(given: object) -> JsonValue:
    value = parsed_arguments(given)
    if isinstance(value, str):
        return bounded_text(str(given), _MAX_ARGUMENTS_CHARS)
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _MAX_ARGUMENTS_CHARS else bounded_text(text, _MAX_ARGUMENTS_CHARS)
