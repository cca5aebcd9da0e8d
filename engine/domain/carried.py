"""What a run tells the one that goes on with it: a part of the start envelope, under the rules of ``messages``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.execution import (
    BudgetLimits,
    Cancellation,
    ErrorPayload,
    ExecutionStatus,
    ExecutionWarning,
    StepRecord,
    StepStatus,
    Usage,
    Value,
)
from engine.domain.gate import GateRecord
from engine.domain.json import JsonValue
from engine.domain.plan import PlanStep

__all__ = [
    "CarriedEnding",
    "CarriedGate",
    "CarriedItems",
    "CarriedState",
    "CarriedUnit",
    "SettledStep",
]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class SettledStep(_Message):
    """A step that is over, as the next run of a continued execution needs it."""

    step_id: str
    run_id: str
    n: int
    """With ``run_id`` the address of the record that holds the output."""
    output: Value | None = None
    """None when nothing reads it any more, or when it is read from the record (``in_record``)."""
    in_record: bool = False
    status: StepStatus = StepStatus.COMPLETED
    """``failed``: and the execution went on."""
    is_continued: bool = True
    """Of a failed step: whether the execution went on."""
    is_supplied: bool = False
    """Skipped by an operator who gave its output."""
    error: ErrorPayload | None = None
    handed: Value | None = None
    declared: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """What later conditions read of an output that is in the record, by path (``output.kind``)."""
    absent: list[str] = Field(default_factory=list[str])
    """Paths that they read, and where nothing is."""
    lengths: dict[str, int] = Field(default_factory=dict[str, int])
    """Of lists in an output that is in the record, by path."""
    handed_in_record: bool = False
    """What it has handed over is large, and read from the record."""
    is_reused: bool = False
    """A rerun keeps it: it is its parent's to undo."""


class CarriedUnit(_Message):
    """A step, or an item of one, that has begun and waits: for its next call, an answer or an instant."""

    step_id: str
    item: int | None = None
    n: int
    run_id: str = ""
    choice: int = 0
    iteration: int = 1
    attempts: int = 0
    started_at: datetime | None = None
    output: Value | None = None
    output_n: int = 0
    in_record: bool = False
    error: ErrorPayload | None = None
    escalated: list[int] = Field(default_factory=list[int])
    waits_for: Literal["call", "gate", "instant"] = "call"
    due_at: datetime | None = None
    """The instant that it waits for."""


class CarriedItems(_Message):
    """How far a step has come that is run over a list."""

    step_id: str
    n: int
    count: int
    tolerated: int
    next: int
    again: list[int] = Field(default_factory=list[int])
    completed: list[tuple[int, int]] = Field(default_factory=list[tuple[int, int]])
    """First and last item of each stretch; their outputs are in the record."""
    failed: dict[int, int] = Field(default_factory=dict[int, int])
    calls: dict[int, int] = Field(default_factory=dict[int, int])
    error: ErrorPayload | None = None
    attempts: int = 0
    started_at: datetime | None = None


class CarriedGate(_Message):
    """A gate that was opened."""

    record: GateRecord
    failed: StepRecord | None = None
    """Of the step that has failed, when it asks what to do."""
    item: int | None = None
    n: int = 1
    escalated: bool = False
    """Whether it is the second gate of a step, after the first expired."""


class CarriedEnding(_Message):
    """An end that is decided, with what clean-up has still to do."""

    status: ExecutionStatus
    error: ErrorPayload | None = None
    cancel: Cancellation | None = None
    cleanup_started_at: datetime | None = None
    cancelled: list[str] = Field(default_factory=list[str])
    """Steps that the end has cancelled."""
    compensations: list[str] = Field(default_factory=list[str])
    """Steps still to be undone, in that order."""
    failed: ErrorPayload | None = None
    """Of the first ``finally`` step that failed."""


class CarriedState(_Message):
    """What a run hands to the run that continues it as new."""

    started_at: datetime
    settled: list[SettledStep] = Field(default_factory=list[SettledStep])
    """In order of completion."""
    decided: list[StepRecord] = Field(default_factory=list[StepRecord])
    usage: Usage = Field(default_factory=Usage)
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])
    added: list[PlanStep] = Field(default_factory=list[PlanStep])
    """Steps that handoffs have added."""
    queued: list[PlanStep] = Field(default_factory=list[PlanStep])
    """Steps that handoffs add once another has ended (``sequential``)."""
    queued_after: dict[str, list[str]] = Field(default_factory=dict[str, list[str]])
    """Step to the ids of those that begin one after another once it is over."""
    units: list[CarriedUnit] = Field(default_factory=list[CarriedUnit])
    items: list[CarriedItems] = Field(default_factory=list[CarriedItems])
    gates: list[CarriedGate] = Field(default_factory=list[CarriedGate])
    """Open ones, and the answered ones, whose second answers are refused."""
    paused: bool = False
    calls: int = 0
    """Agents' attempts so far."""
    grants: BudgetLimits | None = None
    """What operators have added to the budget."""
    breaches: int = 0
    handoffs_taken: int = 0
    handoffs_refused: int = 0
    ending: CarriedEnding | None = None
