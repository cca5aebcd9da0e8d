"""Answers about how executions ended."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from pydantic import JsonValue

from engine.types.context import RecalledItem
from engine.types.executions import Cancel, ExecutionWarning
from engine.types.values import Error, JsonObject, Usage

__all__ = ["ExecutionResult", "HandoffTaken", "StepResult", "ToolCall"]


class ToolCall(TypedDict):
    """One use of a tool by an agent."""

    name: str
    arguments: JsonValue
    """What the model gave; text, cut to 2,000 characters, when it is larger."""
    duration: float
    error: str | None
    """What went back to the model in place of a result."""


class StepResult(TypedDict):
    """A step in a result."""

    status: str
    agent_id: str | None
    attempts: int
    output: JsonValue
    error: Error | None
    reason: str | None
    started_at: str | None
    completed_at: str | None
    duration: float | None
    usage: Usage
    tool_calls: NotRequired[list[ToolCall]]
    """The tools that its agent used, in order; absent when it used none."""
    context: NotRequired[list[RecalledItem]]
    """What ``context.recall`` gave it, best first; absent when nothing was recalled."""
    input: NotRequired[JsonValue]
    """What its agent got; kept when the execution asked for a trace."""
    transcript: NotRequired[JsonValue]
    """Prompts and replies of a model agent as a list of messages; kept when the execution asked for a trace."""
    iteration: NotRequired[int]
    """The turn of its ``repeat_until`` that made the output, from the second one on."""
    child_execution_id: NotRequired[str]
    """The execution that a step of type ``workflow`` ran."""
    reused_from: NotRequired[str]
    """In a rerun: the execution whose outcome of this step was kept."""


class HandoffTaken(TypedDict):
    """A handoff that was decided about, taken or not."""

    handoff_id: str
    source_step: str
    target_step: str
    source_agent_id: str
    target_agent_id: str
    taken: bool
    reason: str | None
    """In words: that its trigger fired, or what kept it from being taken."""
    values: JsonObject
    """What its conditions read, by path."""
    at: str


class ExecutionResult(TypedDict):
    """Answer of ``get_execution_result``, for failed and cancelled executions too."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    output: JsonValue
    steps: dict[str, StepResult]
    handoffs: list[HandoffTaken]
    warnings: list[ExecutionWarning]
    usage: Usage
    error: Error | None
    started_at: str | None
    completed_at: str | None
    duration: float | None
    cancel: NotRequired[Cancel]
    rerun_of: NotRequired[str]
    """The execution that this one is a rerun of."""
