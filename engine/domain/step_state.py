"""A step as the run sees it, and the items of one that is run over a list."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from engine.domain.execution import ErrorPayload, StepStatus, Value
from engine.domain.expressions import Missing
from engine.domain.json import JsonValue

if TYPE_CHECKING:
    from engine.domain.plan import PlanStep

__all__ = ["ItemStates", "StepState", "Unit"]


@dataclass(slots=True)
class StepState:
    """A step, or one item of a step that is run over a list."""

    status: StepStatus = StepStatus.PENDING
    agent_id: str | None = None
    n: int = 0
    run_id: str = ""
    choice: int = 0
    """Index into the step's agents; past them the escalations, in their order."""
    iteration: int = 1
    """Turn of a ``repeat``."""
    attempts: int = 0
    resumes: int = 0
    escalated: set[int] = field(default_factory=set[int])
    """The escalations that were tried."""
    started_at: datetime | None = None
    began_at: datetime | None = None
    """When its latest call began."""
    completed_at: datetime | None = None
    output: Value | None = None
    """Of the step; while it repeats, of the turn before."""
    output_n: int = 0
    """The call whose record holds the output of the turn before."""
    in_record: bool = False
    known: dict[str, JsonValue | Missing] = field(default_factory=dict[str, "JsonValue | Missing"])
    """What conditions read of an output that is in the record, by path."""
    lengths: dict[str, int] = field(default_factory=dict[str, int])
    """Of lists in an output that is in the record, by path."""
    error: ErrorPayload | None = None
    waiting_for: int = 0
    """Dependencies that have not settled."""
    handed: Value | None = None
    """What the handoffs from this step read: an object of top keys."""
    handed_in_record: bool = False
    note: str = ""
    """Why it was skipped."""
    is_continued: bool = False
    """It failed, and the execution goes on: its output is null."""
    is_supplied: bool = False
    """An operator skipped it with an output."""
    is_reused: bool = False
    """Its outcome is that of another execution, which this one is a rerun of."""
    items: ItemStates | None = None

    @property
    def has_run(self) -> bool:
        """Whether what depends on it may go on: it completed, was given an output, or its failure is passed over."""
        return self.status is StepStatus.COMPLETED or self.is_continued or self.is_supplied

    @property
    def is_open(self) -> bool:
        """Whether it has begun and not ended."""
        return self.status in (StepStatus.RUNNING, StepStatus.WAITING)


@dataclass(slots=True)
class ItemStates:
    """The items of a step that is run over a list."""

    count: int
    tolerated: int
    next: int = 0
    """The first item that has not begun."""
    again: list[int] = field(default_factory=list[int])
    """Items that an operator runs again, ascending; they come before ``next``."""
    open: dict[int, StepState] = field(default_factory=dict[int, StepState])
    outputs: dict[int, Value] = field(default_factory=dict[int, Value])
    """Of the completed items that are in memory."""
    recorded: set[int] = field(default_factory=set[int])
    """Completed items whose output only the record has."""
    failed: dict[int, int] = field(default_factory=dict[int, int])
    """Items that have failed to the ``n`` of their last call."""
    calls: dict[int, int] = field(default_factory=dict[int, int])
    """The ``n`` of items that needed more than one call."""
    was_cancelled: bool = False
    """Whether an item was."""
    error: ErrorPayload | None = None
    """Of the item whose failure passed what is tolerated."""

    @property
    def has_more(self) -> bool:
        """Whether an item could begin."""
        return self.error is None and (bool(self.again) or self.next < self.count)

    @property
    def is_over(self) -> bool:
        """Whether nothing is at work and nothing will be."""
        return not self.open and not self.has_more

    def take_next(self) -> int:
        """Return the item to begin."""
        if self.again:
            return self.again.pop(0)
        self.next += 1
        return self.next - 1


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What one call works for: a step, or one item of it; equal only to itself."""

    step: PlanStep
    state: StepState
    item: int | None = None

    @property
    def step_id(self) -> str:
        """Of the step."""
        return self.step.id

    @property
    def name(self) -> str:
        """For people: the step's name, with the item's index."""
        return self.step.name if self.item is None else f"{self.step.name} [{self.item}]"
