"""Answers about gates: the questions that executions wait with."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import JsonValue

from engine.types.values import JsonObject

__all__ = ["Gate", "GateAnswer", "GatePage", "GateState"]


class Gate(TypedDict):
    """A question of an execution, in a list of those that are open."""

    gate_id: str
    execution_id: str
    workflow_id: str
    step_id: str | None
    """Null for the question whether to spend more."""
    kind: Literal["approval", "ask", "budget"]
    """``ask``: a step has failed and asks what to do. ``budget``: the budget is spent."""
    question: str
    allowed: list[str]
    """The answers that it takes."""
    schema: JsonObject | None
    """JSON Schema of the data that comes with an answer."""
    assignees: list[str]
    opened_at: str
    expires_at: str | None


class GatePage(TypedDict):
    """Answer of ``list_gates``."""

    items: list[Gate]
    next_cursor: str | None


class GateState(Gate):
    """Answer of ``get_gate``: an open gate or one that was, with its answer."""

    status: Literal["open", "answered", "expired", "closed"]
    """``closed``: its execution went on or ended without an answer."""
    answer: str | None
    data: JsonValue
    by: str | None
    at: str | None
    """When it was answered or expired."""


class GateAnswer(TypedDict):
    """Answer of ``answer_gate``: what stands now."""

    gate_id: str
    answer: str
    by: str | None
    at: str
