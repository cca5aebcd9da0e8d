"""The execution plan: a definition with everything resolved that a run needs, frozen at its start and hashed.

The interpreter never looks anything up, so an update of a definition or an agent can't touch a running execution.
``plan_compiler`` makes it, once, outside the workflow.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.agent import PlanAgent
from engine.domain.context import ContextScope
from engine.domain.definition import StepType
from engine.domain.execution import BudgetLimits, ExecutionWarning
from engine.domain.expressions import render_path
from engine.domain.handoff import Handoff
from engine.domain.hashing import content_hash
from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "DEFAULT_CLEANUP_TIMEOUT",
    "DEFAULT_STEP_TIMEOUT",
    "ExecutionPlan",
    "PlanApproval",
    "PlanChild",
    "PlanDefaults",
    "PlanEdge",
    "PlanForEach",
    "PlanRecall",
    "PlanRepeat",
    "PlanStep",
    "PlanWait",
    "RetryPolicy",
    "output_of",
]

DEFAULT_STEP_TIMEOUT: Final = timedelta(seconds=300)
DEFAULT_CLEANUP_TIMEOUT: Final = timedelta(seconds=300)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RetryPolicy(_Frozen):
    """Temporal's retry policy in Temporal's words; ``maximum_attempts`` is at least 1 (0 would mean unlimited)."""

    maximum_attempts: int
    backoff_coefficient: float
    initial_interval: timedelta
    maximum_interval: timedelta
    jitter: bool = False
    non_retryable: list[str] = Field(default_factory=list[str])
    """Failure reasons that end the call at once, beside those that always do."""


class PlanRecall(_Frozen):
    """What a step is reminded of."""

    recall: str
    """Template of the text to find neighbours of."""
    top_k: int
    scope: ContextScope


class PlanForEach(_Frozen):
    """What a step is run over."""

    items: JsonValue
    """The list, or the template (``${...}``) of it."""
    name: str
    max_concurrency: int | None = None
    tolerated: int | None = None
    """How many items may fail; None: ``tolerated_share`` of them."""
    tolerated_share: float = 0.0


class PlanRepeat(_Frozen):
    """Until when a step is run again."""

    condition: str
    max_iterations: int


class PlanWait(_Frozen):
    """How long a step waits: a number of seconds, an instant, or a template of one of them."""

    seconds: float | str | None = None
    until: str | None = None


class PlanApproval(_Frozen):
    """What a gate asks, and what comes of an answer or of none."""

    question: str
    """A template."""
    allowed: list[str]
    form: JsonObject | None = None
    assignees: list[str] = Field(default_factory=list[str])
    timeout: timedelta | None = None
    on_timeout: Literal["default", "escalate", "fail"] = "fail"
    default: str | None = None
    escalate_to: list[str] = Field(default_factory=list[str])
    fail_on: list[str] = Field(default_factory=list[str])


class PlanChild(_Frozen):
    """The workflow that a step executes, pinned."""

    definition_id: str
    version: int
    timeout: timedelta | None = None
    """Of the child as a whole."""


class PlanEdge(_Frozen):
    """A handoff that governs a dependency between two steps."""

    handoff_id: str
    source_step: str
    source_agent_id: str
    target_agent_id: str
    trigger_conditions: list[str]
    data_mapping: dict[str, str]


class PlanStep(_Frozen):
    """A step with nothing left to look up."""

    id: str
    name: str
    type: StepType = "agent"
    agents: list[str]
    """The agent, then its fallbacks; empty for other types."""
    input_mapping: JsonValue
    """A template; an object but for a step that a handoff adds."""
    output_mapping: JsonObject | None
    depends_on: list[str]
    """Direct dependencies in definition order: those named and those referred to."""
    timeout: timedelta
    total_timeout: timedelta | None
    retry: RetryPolicy
    when: str | None = None
    join: Literal["all", "any", "settled"] = "all"
    on_error: Literal["fail", "continue", "ask"] = "fail"
    at_most_once: bool = False
    fallback_reasons: list[list[str]] = Field(default_factory=list[list[str]])
    """For each fallback the reasons that it is called for; empty: all."""
    edges: list[PlanEdge] = Field(default_factory=list[PlanEdge])
    """Handoffs from direct dependencies, the first made first."""
    escalations: list[Handoff] = Field(default_factory=list[Handoff])
    """Escalation handoffs from the step's agent, the first made first."""
    follows: list[Handoff] = Field(default_factory=list[Handoff])
    """Handoffs that add a step when this one has ended, the first made first."""
    handed: list[str] = Field(default_factory=list[str])
    """Paths (``source_output.plan``) that handoffs and ``repeat`` read; ``source_output`` reads all."""
    foreach: PlanForEach | None = None
    repeat: PlanRepeat | None = None
    transform: JsonObject | None = None
    wait: PlanWait | None = None
    approval: PlanApproval | None = None
    child: PlanChild | None = None
    compensation: PlanStep | None = None
    """The step that undoes this one."""
    output_schema: JsonObject | None = None
    """JSON Schema of the agent's reply."""
    recall: PlanRecall | None = None
    reply_keys: list[str] = Field(default_factory=list[str])
    """Top keys of the reply that mappings and handoffs read, for model agents without a schema."""
    declared: list[str]
    """Paths (``output.plan.title``) below the step's output that mappings read: a large output stays a reference."""


class PlanDefaults(_Frozen):
    """How steps are called that a run adds itself."""

    timeout: timedelta = DEFAULT_STEP_TIMEOUT
    total_timeout: timedelta | None = None
    retry: RetryPolicy


class ExecutionPlan(_Frozen):
    """What one execution runs."""

    definition_id: str
    version: int
    name: str
    description: str | None = None
    definition_hash: str
    tags: list[str]
    steps: list[PlanStep]
    """In definition order; dependencies may point forwards, cycles are impossible."""
    output: JsonValue
    """Template of the execution's output."""
    declared_input: list[str]
    """Paths (``input.topic``) below the input that mappings read."""
    agents: dict[str, PlanAgent]
    on_failure: Literal["cancel", "finish"] = "cancel"
    final_steps: list[PlanStep] = Field(default_factory=list[PlanStep])
    """Run at the end, however it came."""
    cleanup_timeout: timedelta = DEFAULT_CLEANUP_TIMEOUT
    budget: BudgetLimits | None = None
    handoffs: list[Handoff] = Field(default_factory=list[Handoff])
    """Those that steps which a run adds may follow, the first made first."""
    escalations: list[Handoff] = Field(default_factory=list[Handoff])
    """Those that take over added steps, the first made first."""
    max_handoffs: int = 10
    defaults: PlanDefaults | None = None
    """Set when handoffs may add steps."""
    warnings: list[ExecutionWarning] = Field(default_factory=list[ExecutionWarning])

    @property
    def recalls(self) -> bool:
        """Whether any step is reminded of anything, so that every step's text must be findable at once."""
        return any(step.recall is not None for step in (*self.steps, *self.final_steps))

    def hash(self) -> str:
        """The content hash by which the plan is stored and referred to."""
        return content_hash(self.model_dump(mode="json"))


def output_of(step_id: str) -> str:
    """Return the mapping value that is a step's whole output."""
    return "${" + render_path("steps", (step_id, "output")) + "}"
