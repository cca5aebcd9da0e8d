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
    "ContextSpec",
    "DefinitionStatus",
    "DefinitionVersion",
    "Fallback",
    "RetryPolicySpec",
    "Step",
    "StepDefaults",
    "WorkflowDefinition",
]

FORMAT_VERSION = 1
"""Version of the stored form; a definition with a greater one was saved by a newer Baton and is refused."""

DefinitionStatus = Literal["active", "archived"]


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


class StepDefaults(_Spec):
    """Values for every step that does not set its own."""

    timeout: float | None = Field(default=None, gt=0, le=31536000)
    total_timeout: float | None = Field(default=None, gt=0, le=31536000)
    retry_policy: RetryPolicySpec | None = None


class Step(_Spec):
    """One agent call of a definition."""

    id: str
    name: str | None = None
    type: Literal["agent"] = "agent"
    agent_id: str
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
    fallback: Fallback | None = None
    when: str | None = None
    """A condition; the step is skipped when it does not hold."""
    join: Literal["all", "any", "settled"] = "all"
    """Which of the dependencies must have completed: all, at least one, or none as long as all are over."""
    on_error: Literal["fail", "continue"] = "fail"
    """What a step that has failed for good does to the execution; ``continue``: its output is null."""
    at_most_once: bool = False
    """Whether a call is never repeated: neither after a failure nor after its worker was lost."""
    output_schema: JsonObject | None = None
    """JSON Schema that the agent's reply must satisfy; otherwise the attempt fails with ``invalid_output``."""
    context: ContextSpec | None = None
    """What is recalled for the step, readable as ``${context}`` in its ``input_mapping``."""


class WorkflowDefinition(_Spec):
    """The content of one version."""

    name: str = Field(min_length=1)
    description: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    metadata: JsonObject = Field(default_factory=dict[str, JsonValue])
    input_schema: JsonObject | None = None
    defaults: StepDefaults | None = None
    output_mapping: JsonObject | None = None
    handoffs: Literal["edges", "off"] = "edges"
    """Whether handoffs govern the edges between steps of their agents."""
    on_failure: Literal["cancel", "finish"] = "cancel"
    """What becomes of running steps when one fails: they are cancelled, or may end."""
    steps: list[Step]

    def to_dict(self) -> JsonObject:
        """The definition as the dict that ``create_workflow`` takes: only what differs from a default."""
        return self.model_dump(mode="json", exclude_defaults=True)


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
