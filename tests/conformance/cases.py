"""A conformance case: a definition, agents that follow a script, what operators do, and what must come of it.

A case is data, so that whatever runs definitions can be held to it: a server, or the reducer alone. README.md beside
this file is the format's page. An unknown key, an agent without a script and a workflow that nobody made are errors
of the case and not of what it tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.cli.reading import read_object
from engine.domain.ids import slug
from engine.domain.json import JsonObject, JsonValue
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "Action",
    "Case",
    "CaseError",
    "ErrorExpectation",
    "Expectation",
    "HandoffRule",
    "Reply",
    "Script",
    "load",
]

Reason = Literal[
    "rate_limited", "unavailable", "timeout", "refused", "invalid_output", "invalid_request", "unauthorized", "error"
]
Pair: TypeAlias = Annotated[list[str], Field(min_length=2, max_length=2)]


class CaseError(Exception):
    """A file that is no case; the message names the file and every fault."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def has(self, name: str) -> bool:
        """Whether the case gives this key; null is given too."""
        return name in self.model_fields_set


class Reply(_Part):
    """What an agent does when it is called: it answers with ``reply`` or ``echo``, or fails."""

    reply: JsonValue = None
    echo: Literal[True] | str | None = None
    """True: the input. A key: what the input has there."""
    fail: Reason | None = None
    message: str = "It broke"
    hold: str | None = None
    """It answers only once this name is released."""
    pad: dict[str, int] = Field(default_factory=dict[str, int])
    """Keys that are added to the reply, each with a text of so many letters."""
    usage: dict[str, float] = Field(default_factory=dict[str, float])
    """``input_tokens``, ``output_tokens``, ``cost_usd``."""

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if sum(self.has(name) for name in ("reply", "echo", "fail")) != 1:
            raise ValueError("give one of reply, echo and fail")
        return self


class Script(_Part):
    """The replies of one agent in the order of its calls, retries counted; the last one repeats."""

    by: str | None = None
    """A key of the input: each value there has replies of its own."""
    cases: dict[str, list[Reply]] = Field(default_factory=dict[str, list[Reply]])
    """By the value as text."""
    otherwise: list[Reply] = Field(default_factory=list[Reply])
    """Without ``by`` all of them."""

    def replies_to(self, given: JsonValue) -> tuple[str, list[Reply]]:
        """Return which of the lists answers an input, and the list."""
        if self.by is None or not isinstance(given, dict):
            return "", self.otherwise
        value = given.get(self.by)
        name = value if isinstance(value, str) else str(value)
        return (name, self.cases[name]) if name in self.cases else ("", self.otherwise)


class HandoffRule(_Part):
    """A handoff, made before the execution starts."""

    source: str
    target: str
    type: Literal["sequential", "parallel", "escalation"] = "sequential"
    data_mapping: dict[str, str] = Field(default_factory=dict[str, str])
    when: list[str] = Field(default_factory=list[str])
    """Its ``trigger_conditions``."""


class Action(_Part):
    """One thing that is done or waited for while the execution runs."""

    wait_gate: str | JsonObject | None = None
    wait_status: str | None = None
    wait_step: dict[str, str] | None = None
    wait_calls: dict[str, int] | None = None
    wait_failed: dict[str, int] | None = None
    wait_end: Literal[True] | None = None
    release: str | None = None
    answer: JsonObject | None = None
    pause: Literal[True] | JsonObject | None = None
    resume: Literal[True] | JsonObject | None = None
    cancel: str | None = None
    retry_step: str | None = None
    skip_step: JsonObject | None = None
    update: JsonObject | None = None
    rerun: JsonObject | None = None
    refused: ErrorCode | None = Field(default=None, strict=False)
    """The action must be refused with this code."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set - {"refused"}) != 1:
            raise ValueError("an action has one key, beside refused")
        return self

    @property
    def kind(self) -> str:
        """Its key."""
        (name,) = self.model_fields_set - {"refused"}
        return name

    @property
    def argument(self) -> Any:
        """What stands behind its key."""
        return getattr(self, self.kind)


class ErrorExpectation(_Part):
    """What an error must say; only what is given counts."""

    code: ErrorCode | None = Field(default=None, strict=False)
    message: str | None = None
    message_contains: str | None = None
    details: JsonObject | None = None
    """What the details must hold among others."""


class StepExpectation(_Part):
    """Where a step must have ended."""

    status: str | None = None
    reason: str | None = None
    output: JsonValue = None
    output_has: JsonObject | None = None
    error: ErrorExpectation | None = None
    agent_id: str | None = None
    attempts: int | None = None


class HandoffExpectation(_Part):
    """A line of the result's handoffs."""

    source_step: str | None = None
    target_step: str | None = None
    source_agent_id: str | None = None
    target_agent_id: str | None = None
    taken: bool | None = None
    reason_contains: str | None = None
    values: JsonObject | None = None


class EventExpectation(_Part):
    """An event; what its data must hold among others."""

    type: str
    step: str | None = None
    data: JsonObject = Field(default_factory=dict[str, JsonValue])


class ChildExpectation(_Part):
    """How a child execution must have ended."""

    status: str | None = None
    output: JsonValue = None
    version: int | None = None


class Expectation(_Part):
    """What must come of it; only what is given is compared."""

    refused: ErrorExpectation | None = None
    """The definition, a handoff or the start must be refused; nothing runs."""
    status: str | None = None
    output: JsonValue = None
    output_has: JsonObject | None = None
    error: ErrorExpectation | None = None
    cancel: str | None = None
    """The reason of the cancellation."""
    steps: dict[str, StepExpectation] = Field(default_factory=dict[str, StepExpectation])
    only: bool = False
    """Whether ``steps`` names every step of the result."""
    order: list[Pair] = Field(default_factory=list[Pair])
    """The first ended before the second started."""
    calls: dict[str, int] = Field(default_factory=dict[str, int])
    at_once: dict[str, int] = Field(default_factory=dict[str, int])
    """Most calls of an agent that ran at the same time."""
    inputs: dict[str, list[JsonValue]] = Field(default_factory=dict[str, list[JsonValue]])
    handoffs: list[HandoffExpectation] | None = None
    warnings: list[str] | None = None
    events: list[str | EventExpectation] = Field(default_factory=list[str | EventExpectation])
    no_events: list[str] = Field(default_factory=list[str])
    children: dict[str, ChildExpectation] = Field(default_factory=dict[str, ChildExpectation])
    """By what follows ``<execution_id>/`` in the child's id."""
    rerun: list[str] | None = None
    reused: list[str] | None = None


class Case(_Part):
    """One case."""

    title: str
    definition: JsonObject
    workflows: list[JsonObject] = Field(default_factory=list[JsonObject])
    """More definitions, made before."""
    handoffs: list[HandoffRule] = Field(default_factory=list[HandoffRule])
    input: JsonObject = Field(default_factory=dict[str, JsonValue])
    options: JsonObject = Field(default_factory=dict[str, JsonValue])
    agents: dict[str, Script] = Field(default_factory=dict[str, Script])
    actions: list[Action] = Field(default_factory=list[Action])
    expect: Expectation

    @model_validator(mode="before")
    @classmethod
    def _scripts_as_objects(cls, given: Any) -> Any:
        """A script is written as a list, or with ``by`` as an object whose key ``else`` is what is left."""
        if not isinstance(given, dict) or not isinstance(given.get("agents"), dict):
            return given
        agents = {name: _script_as_object(script) for name, script in given["agents"].items()}
        return given | {"agents": agents}

    @model_validator(mode="after")
    def _nothing_is_missing(self) -> Self:
        named = {name for document in self.documents for name in _values_of(document, "agent_id")}
        named |= {name for rule in self.handoffs for name in (rule.source, rule.target)}
        if silent := sorted(str(name) for name in named - set(self.agents)):
            raise ValueError(f"no script for {', '.join(silent)}")
        made = {slug(str(document.get("name"))) for document in self.documents}
        children = {name for document in self.documents for name in _values_of(document, "workflow_id")}
        if unknown := sorted(str(name) for name in children - made):
            raise ValueError(f"no workflow {', '.join(unknown)}")
        return self

    @property
    def documents(self) -> list[JsonObject]:
        """All definitions, that of the case last."""
        return [*self.workflows, self.definition]


def load(path: Path) -> Case:
    """Read a case.

    Raises:
        CaseError: the file is no case.
    """
    document = read_object(str(path), "a conformance case")
    try:
        return Case.model_validate(document)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise CaseError(f"{path.name}: {'; '.join(faults)}") from error


def _script_as_object(script: Any) -> Any:
    if isinstance(script, list):
        return {"otherwise": script}
    if isinstance(script, dict):
        return {"otherwise" if key == "else" else key: value for key, value in script.items()}
    return script


def _values_of(value: JsonValue, key: str) -> Iterator[str]:
    """Every text that stands behind ``key`` anywhere in a definition's steps."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            elif name not in ("input_mapping", "output_mapping", "transform", "metadata"):
                yield from _values_of(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _values_of(inner, key)
