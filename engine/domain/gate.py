"""A gate: a question that holds a run until somebody answers it, as the stores keep it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.execution import Event, ExecutionStatus, StepRecord
from engine.domain.json import JsonObject, JsonValue

__all__ = ["GateKind", "GateRecord", "GateStatus", "Transition"]

GateKind = Literal["approval", "ask", "budget"]
"""``approval``: a step's question. ``ask``: a step has failed; retry, skip or fail? ``budget``: spend more?"""
GateStatus = Literal["open", "answered", "expired", "closed"]
"""``closed``: its execution went on or ended without an answer."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class GateRecord(_Record):
    """What is known of one gate, addressed by (execution, gate)."""

    execution_id: str
    gate_id: str
    definition_id: str
    run_id: str
    token: int
    """Fence: the run's instant of the change in microseconds; the greater one stands."""
    kind: GateKind
    status: GateStatus
    step_id: str | None = None
    """None for ``budget``."""
    question: str
    allowed: list[str]
    form: JsonObject | None = None
    """JSON Schema of an answer's data."""
    assignees: list[str] = Field(default_factory=list[str])
    opened_at: datetime
    expires_at: datetime | None = None
    answer: str | None = None
    data: JsonValue = None
    by: str | None = None
    at: datetime | None = None
    """When it was answered or expired."""


class Transition(_Record):
    """What changed in an execution that no agent's call records: its status, its gates, its decisions."""

    execution_id: str
    run_id: str
    run_started_at: datetime
    token: int
    """Microseconds of the run's instant at which it was decided."""
    status: ExecutionStatus | None = None
    """``running``, ``waiting`` or ``paused``; None leaves it."""
    events: list[Event] = Field(default_factory=list[Event])
    """Of the execution, to be added to its record."""
    gates: list[GateRecord] = Field(default_factory=list[GateRecord])
    steps: list[StepRecord] = Field(default_factory=list[StepRecord])
