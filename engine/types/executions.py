"""Answers about executions: how they were started, where they stand, why, and what was repaired."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from engine.types.values import Error, JsonObject

__all__ = [
    "Cancel",
    "Drift",
    "Event",
    "Execution",
    "ExecutionExplanation",
    "ExecutionItem",
    "ExecutionPage",
    "ExecutionStatus",
    "ExecutionWarning",
    "Progress",
    "Repair",
    "Repairs",
    "Rerun",
    "RerunPreview",
    "Savings",
    "StepExplanation",
    "StepStatus",
    "TemporalRun",
    "Verification",
]


class ExecutionWarning(TypedDict):
    """Something that did not stop an execution but should be read."""

    code: str
    message: str
    step_id: str | None


class TemporalRun(TypedDict):
    """Where an execution is found in Temporal."""

    workflow_id: str
    run_id: str | None
    namespace: str
    task_queue: str
    ui_url: str | None


class Execution(TypedDict):
    """Answer of ``execute_workflow``."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    created_at: str
    deadline_at: str | None
    warnings: list[ExecutionWarning]
    temporal: TemporalRun


class Rerun(Execution):
    """Answer of ``rerun_execution``."""

    parent_execution_id: str
    """The execution whose outcomes are kept."""
    rerun: list[str]
    """The steps that run again, in definition order; those of ``finally`` always do."""
    reused: list[str]
    """The steps that keep what they came to."""


class Savings(TypedDict):
    """What the kept steps took when they ran."""

    agent_calls: int
    """Attempts of agents."""
    tokens: int
    """Input and output."""
    cost_usd: float | None
    seconds: float
    """From each step's first start to its end, added up."""


class RerunPreview(TypedDict):
    """Answer of ``rerun_execution`` with ``preview``: what it would do."""

    rerun: list[str]
    reused: list[str]
    saves: Savings


class Progress(TypedDict):
    """How many steps stand where."""

    total: int
    completed: int
    failed: int
    skipped: int
    running: int


class StepStatus(TypedDict):
    """A step in a status."""

    status: str
    agent_id: str | None
    attempts: int
    started_at: str | None
    completed_at: str | None
    error: Error | None


class Cancel(TypedDict):
    """Why, by whom and when an execution was cancelled."""

    reason: str | None
    by: str | None
    at: str | None


class ExecutionItem(TypedDict):
    """An execution in a list; ``progress`` and ``current_steps`` only while it is open."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    progress: Progress | None
    current_steps: list[str] | None
    error: Error | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    cancel: NotRequired[Cancel]


class ExecutionStatus(TypedDict):
    """Answer of ``get_execution_status``."""

    execution_id: str
    workflow_id: str
    version: int
    status: str
    progress: Progress
    current_steps: list[str]
    steps: dict[str, StepStatus]
    error: Error | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    hint: NotRequired[str]
    stale: NotRequired[bool]
    cancel: NotRequired[Cancel]
    gates: NotRequired[list[str]]
    """The open gates by their ids, oldest first, while the execution is waiting or paused."""


class ExecutionPage(TypedDict):
    """Answer of ``list_executions``."""

    items: list[ExecutionItem]
    next_cursor: str | None


class Event(TypedDict):
    """One line of an execution's progress."""

    id: str
    type: str
    at: str
    step_id: str | None
    data: JsonObject


class StepExplanation(TypedDict):
    """Why a step of an execution is where it is."""

    step_id: str
    decision: Literal[
        "ran",
        "skipped",
        "fell_back",
        "escalated",
        "handed_over",
        "waited",
        "failed",
        "cancelled",
        "not_reached",
        "reused",
        "compensated",
        "finally",
    ]
    """What became of it; ``ran`` also while it runs, ``waited`` also while it waits."""
    because: str
    """One sentence, with the values."""
    values: JsonObject
    """What it rested on: ``steps.<id>`` is a dependency's status, other paths what conditions read."""


class ExecutionExplanation(TypedDict):
    """Answer of ``explain_execution``."""

    execution_id: str
    steps: list[StepExplanation]
    """The definition's, then those that the run added, then the ``finally`` steps."""
    text: str
    """The same for people, at most 100 columns wide."""


class Repair(TypedDict):
    """What was made right, in the record or in live state: its status before (null: there was none) and after."""

    execution_id: str
    what: Literal["record", "live_state"]
    before: str | None
    after: str


class Drift(TypedDict):
    """An execution that its places tell differently: its status in each (null: not there), and what is wrong."""

    execution_id: str
    record: str | None
    temporal: str | None
    live: str | None
    text: str


class Repairs(TypedDict):
    """Answer of ``repair_executions``; ``left`` is what only its starter or an operator can make right.

    ``live_state``: whether it answered, so that it was compared too.
    """

    checked: int
    live_state: bool
    repaired: list[Repair]
    left: list[Drift]


class Verification(TypedDict):
    """Answer of ``verify_executions``; ``live_state``: whether it answered, so that it was compared too."""

    checked: int
    live_state: bool
    drift: list[Drift]
