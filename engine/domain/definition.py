"""A workflow definition: what the user wrote, checked, in the user's own words and units (seconds).

The models hold one version's content. They are strict about types and unknown keys only where a user's dict
enters (``validation.parse_definition``); read back from a store or from history they ignore what they don't know.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.domain.context import ContextScope
from engine.domain.json import JsonObject, JsonValue

__all__ = [
    "FORMAT_VERSION",
    "Approval",
    "Budget",
    "Compensation",
    "ContextSpec",
    "DefinitionStatus",
    "DefinitionVersion",
    "Fallback",
    "ForEach",
    "RepeatUntil",
    "RetryPolicySpec",
    "Step",
    "StepDefaults",
    "StepType",
    "Wait",
    "WorkflowDefinition",
]

FORMAT_VERSION = 1
"""Version of the stored form; a definition with a greater one was saved by a newer Baton and is refused."""

DefinitionStatus = Literal["active", "archived"]
StepType = Literal["agent", "transform", "wait", "workflow", "approval"]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True)


class RetryPolicySpec(_Spec):
    """How a step's failed attempts are repeated; what is None comes from ``defaults`` or the settings."""

    max_retries: int | None = Field(default=None, ge=0, le=1000)
    """Attempts after the first one."""
    backoff_factor: float | None = Field(default=None, ge=1, le=1000)
    """Factor between two waits."""
    initial_interval: float | None = Field(default=None, gt=0, le=86400)
    """Seconds before the first retry; default 1."""
    max_interval: float | None = Field(default=None, gt=0, le=31536000)
    """Most seconds between two attempts; default 60."""
    jitter: bool | None = None
    """Whether each wait is shortened by up to half of it, at random; default: it is not."""
    non_retryable: list[str] | None = None
    """Failure reasons that end the call at once (``invalid_output``, ``timeout`` excepted: see docs)."""


class Fallback(_Spec):
    """The agent that is called when the step's own gives up."""

    agent_id: str
    on: list[str] | None = None
    """Failure reasons that it is called for; None: for all."""


class ContextSpec(_Spec):
    """What a step is reminded of before its agent is called."""

    recall: str = Field(min_length=1)
    """The text to find neighbours of, with ``${...}``."""
    top_k: int = Field(default=5, ge=1, le=100)
    """Most items."""
    scope: ContextScope = "workflow"


class ForEach(_Spec):
    """A step that is run once for each item of a list; its output is the list of the outputs, in item order."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    items: str | list[JsonValue]
    """``${...}`` of a list, or the list itself; at most 10,000 items."""
    name: str = Field(default="item", alias="as")
    """What mappings of the step call the item; ``item`` and ``index`` (from 0) can always be read."""
    max_concurrency: int | None = Field(default=None, ge=1, le=500)
    """Most items at work at once; None: 100."""
    tolerate: int | str = 0
    """How many items may fail, each giving null: a count, or a share such as ``10%`` (rounded down)."""


class RepeatUntil(_Spec):
    """A step that is run again until a condition over its output holds."""

    condition: str
    """Over ``output`` (the agent's reply overlaid by the mapped output), ``iteration``, ``input`` and ``steps``."""
    max_iterations: int = Field(default=10, ge=1, le=1000)
    """At the cap the step completes with the last output and a warning."""


class Compensation(_Spec):
    """What undoes a completed step when the execution does not complete."""

    agent_id: str
    input_mapping: JsonObject | None = None
    """None: ``{input, steps: {<the step>: its output}}``."""


class Approval(_Spec):
    """A question to people; the step completes with ``{answer, data, by, at}``."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    question: str = Field(min_length=1)
    """May hold ``${...}``."""
    allowed: list[str] = Field(default_factory=lambda: ["approve", "reject"], min_length=1)
    """The answers that are taken."""
    form: JsonObject | None = Field(default=None, alias="schema")
    """JSON Schema that an answer's ``data`` must satisfy."""
    assignees: list[str] = Field(default_factory=list[str])
    """Labels to find gates by; they grant nothing."""
    timeout: float | None = Field(default=None, gt=0, le=31536000)
    """Seconds after which the gate expires; None: never."""
    on_timeout: Literal["default", "escalate", "fail"] = "fail"
    """``default``: the answer is ``default``. ``escalate``: one more gate opens, for ``escalate_to``."""
    default: str | None = None
    """The answer of a gate that expired; one of ``allowed``."""
    escalate_to: list[str] = Field(default_factory=list[str])
    """Assignees of the second gate."""
    fail_on: list[str] = Field(default_factory=lambda: ["reject"])
    """Answers that fail the step."""


class Wait(_Spec):
    """How long a step of type ``wait`` waits: ``seconds`` from its start, or ``until`` an instant."""

    seconds: float | str | None = None
    """A number, or ``${...}`` of one; at most a year."""
    until: str | None = None
    """ISO 8601 with an offset, or ``${...}`` of it; one that is past is no wait."""


class Budget(_Spec):
    """Limits of one execution, checked before each call; what runs may overshoot them."""

    tokens: int | None = Field(default=None, ge=1)
    """Input and output tokens of all calls."""
    usd: float | None = Field(default=None, gt=0)
    """Needs a price for every model."""
    agent_calls: int | None = Field(default=None, ge=1)
    """Attempts of agents, retries and fallbacks counted."""
    seconds: float | None = Field(default=None, gt=0)
    """Since the execution started."""
    on_breach: Literal["fail", "ask"] = "fail"
    """``ask``: a gate opens, and nothing new starts until it is answered."""


class StepDefaults(_Spec):
    """Values for every step that does not set its own."""

    timeout: float | None = Field(default=None, gt=0, le=31536000)
    total_timeout: float | None = Field(default=None, gt=0, le=31536000)
    retry_policy: RetryPolicySpec | None = None


class Step(_Spec):
    """One step of a definition; ``type`` says which of the fields count."""

    id: str
    name: str | None = None
    type: StepType = "agent"
    agent_id: str = ""
    """Of steps of type ``agent``, which need one."""
    input_mapping: JsonObject | None = None
    """Input keys to values with ``${...}``; None: ``{input, steps: outputs of the dependencies}``."""
    output_mapping: JsonObject | None = None
    """Output keys to values over ``${output...}``; None: the agent's reply as it is."""
    depends_on: list[str] = Field(default_factory=list[str])
    timeout: float | None = Field(default=None, gt=0, le=31536000)
    """Seconds for one attempt; default 300."""
    total_timeout: float | None = Field(default=None, gt=0, le=31536000)
    """Seconds for all attempts with the waits between; default: no limit."""
    retry_policy: RetryPolicySpec | None = None
    fallback: Fallback | list[Fallback] | None = None
    """The agents that are called in turn when the step's own gives up."""
    when: str | None = None
    """A condition; the step is skipped when it does not hold."""
    join: Literal["all", "any", "settled"] = "all"
    """Which of the dependencies must have completed: all, at least one, or none as long as all are over."""
    on_error: Literal["fail", "continue", "ask"] = "fail"
    """What becomes of a step that has failed for good. ``continue``: its output is null, and the execution goes on.
    ``ask``: a gate opens, to retry it, skip it or fail."""
    at_most_once: bool = False
    """Whether a call is never repeated: neither after a failure nor after its worker was lost."""
    output_schema: JsonObject | None = None
    """JSON Schema that the agent's reply must satisfy; otherwise the attempt fails with ``invalid_output``."""
    context: ContextSpec | None = None
    """What is recalled for the step, readable as ``${context}`` in its ``input_mapping``."""
    foreach: ForEach | None = None
    repeat_until: RepeatUntil | None = None
    compensate: Compensation | None = None
    transform: JsonObject | None = None
    """Of type ``transform``: what its output is, with ``${...}``."""
    wait: Wait | None = None
    """Of type ``wait``."""
    approval: Approval | None = None
    """Of type ``approval``."""
    workflow_id: str | None = None
    """Of type ``workflow``: what is executed as a child."""
    version: int | None = Field(default=None, ge=1)
    """Of type ``workflow``; None: the newest when the execution is accepted."""

    @property
    def fallbacks(self) -> list[Fallback]:
        """The fallbacks as a list."""
        if self.fallback is None:
            return []
        return self.fallback if isinstance(self.fallback, list) else [self.fallback]

    @property
    def called_agents(self) -> list[str]:
        """The step's agent and its fallbacks, in the order of their turns."""
        return [agent_id for agent_id in (self.agent_id, *(other.agent_id for other in self.fallbacks)) if agent_id]


class WorkflowDefinition(_Spec):
    """The content of one version."""

    name: str = Field(min_length=1)
    description: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    metadata: JsonObject = Field(default_factory=dict[str, JsonValue])
    input_schema: JsonObject | None = None
    defaults: StepDefaults | None = None
    output_mapping: JsonObject | None = None
    handoffs: Literal["edges", "follow", "off"] = "edges"
    """``edges``: handoffs govern the edges between steps of their agents. ``follow``: one whose target is no such step
    runs it as well. ``off``: they do nothing."""
    max_handoffs: int = Field(default=10, ge=1, le=1000)
    """Most steps that handoffs add to an execution (``follow``)."""
    on_failure: Literal["cancel", "finish"] = "cancel"
    """What becomes of running steps when one fails: they are cancelled, or may end."""
    budget: Budget | None = None
    cleanup_timeout: float = Field(default=300, gt=0, le=86400)
    """Seconds for all compensations and ``finally`` steps together."""
    steps: list[Step]
    final_steps: list[Step] = Field(default_factory=list[Step], alias="finally")
    """Run at the end of every execution, however it ended."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    def to_dict(self) -> JsonObject:
        """The definition as the dict that ``create_workflow`` takes: only what differs from a default."""
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)


class DefinitionVersion(_Spec):
    """One immutable stored version of a definition, with the state of its workflow around it."""

    definition_id: str
    version: int
    content_hash: str
    """``sha256:<hex>`` of the content's canonical JSON; equal content makes no new version."""
    status: DefinitionStatus = "active"
    definition: WorkflowDefinition
    created_at: datetime
    """When the workflow's first version was stored."""
    updated_at: datetime
    """When this version was stored."""
    format_version: int = FORMAT_VERSION
