"""Whether a step runs: its join, the handoffs on its edges and its condition, each with the values that it rested on.

Pure rules over what the run has in memory. A value that is too large to be there can't be decided by, which is an
error of the definition: it says so instead of guessing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.conditions import Condition, Trigger, parse_condition, parse_trigger
from engine.domain.execution import StepStatus
from engine.domain.expressions import MISSING, Missing, Path, json_size, render_path
from engine.domain.operands import Located, OperandScope, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engine.domain.execution import Value
    from engine.domain.expressions import Scope
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.operands import ValueSource
    from engine.domain.plan import PlanEdge, PlanStep
    from engine.domain.plan_values import PlanValues
    from engine.domain.step_state import StepState

__all__ = [
    "Admission",
    "Firing",
    "HandoffDecision",
    "HandoffScope",
    "ReplyScope",
    "TooLargeToDecideError",
    "admit",
    "events_of",
    "fire",
    "fire_escalation",
    "handed_path",
    "holds",
]

MAX_SHOWN_BYTES: Final = 1024
"""A value in an event is cut to it."""
MAX_SHOWN_TOTAL_BYTES: Final = 8 * 1024
"""The values of one decision take no more than it; the rest is left out."""
MAX_SHOWN_STEPS: Final = 20
"""As many of the steps that a join waited for in vain are shown."""
TIMEOUT: Final = "timeout"


class TooLargeToDecideError(Exception):
    """A condition reads a value that lies outside of the run's memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.text)
        self.path = path

    def __str__(self) -> str:
        advice = "pass" if self.path.root == "input" else "let the agent reply with"
        return (
            f"What the step does depends on {self.path.text}, which is too large to decide by (over 16 KiB); "
            f"{advice} a smaller value"
        )


@dataclass(frozen=True, slots=True)
class HandoffDecision:
    """Whether a handoff on an edge was taken."""

    edge: PlanEdge
    is_taken: bool
    reason: str
    """In words, for people."""
    values: JsonObject = field(default_factory=dict[str, "JsonValue"])
    """What its conditions read."""


@dataclass(frozen=True, slots=True)
class Firing:
    """Whether a trigger fired, in words, and what its conditions read."""

    has_fired: bool
    reason: str
    values: JsonObject = field(default_factory=dict[str, "JsonValue"])


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a step is run, and why not."""

    refused_by: Literal["join", "handoff", "when"] | None = None
    reason: str = ""
    values: JsonObject = field(default_factory=dict[str, "JsonValue"])
    handoffs: list[HandoffDecision] = field(default_factory=list[HandoffDecision])
    """Of all edges that had something to hand over, in the order of the plan."""

    @property
    def mappings(self) -> list[PlanEdge]:
        """The first taken handoff of each edge: these give the step its additional inputs."""
        firsts: dict[str, PlanEdge] = {}
        for decision in self.handoffs:
            if decision.is_taken:
                firsts.setdefault(decision.edge.source_step, decision.edge)
        return list(firsts.values())


def admit(step: PlanStep, states: Mapping[str, StepState], values: PlanValues) -> Admission:
    """Decide about a step whose dependencies have all settled.

    Raises:
        TooLargeToDecideError: a condition reads a value that is not in memory.
    """
    refusal = _join_refusal(step, states)
    if refusal is not None:
        return Admission("join", *refusal)
    decisions = [
        _decide(edge, states[edge.source_step], values)
        for edge in step.edges
        if states[edge.source_step].status is not StepStatus.SKIPPED
    ]
    taken = {decision.edge.source_step for decision in decisions if decision.is_taken}
    refused = [decision for decision in decisions if decision.edge.source_step not in taken]
    if refused:
        first = refused[0]
        reason = f"no handoff from step {first.edge.source_step} was taken: {first.reason}"
        return Admission("handoff", reason, first.values, decisions)
    if step.when is not None:
        scope = OperandScope(values)
        if not holds(step.when, scope):
            shown = shown_values(_condition(step.when).paths, scope)
            return Admission("when", f"{step.when} does not hold", shown, decisions)
    return Admission(handoffs=decisions)


def _join_refusal(step: PlanStep, states: Mapping[str, StepState]) -> tuple[str, JsonObject] | None:
    missing = [name for name in step.depends_on if not states[name].has_run]
    if not missing or step.join == "settled" or (step.join == "any" and len(missing) < len(step.depends_on)):
        return None
    values: JsonObject = {f"steps.{name}": states[name].status.value for name in missing[:MAX_SHOWN_STEPS]}
    if step.join == "any":
        return "join is any, and none of its dependencies has completed", values
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"join is all, and {', '.join(missing[:5])}{more} did not complete", values


def _decide(edge: PlanEdge, source: StepState, values: PlanValues) -> HandoffDecision:
    ended = f"step {edge.source_step} ended as {source.status}"
    firing = fire(edge.trigger_conditions, events_of(source), ended, HandoffScope(values, edge.source_step))
    return HandoffDecision(edge, firing.has_fired, firing.reason, firing.values)


def fire(conditions: list[str], happened: tuple[str, ...], ended: str, scope: Scope) -> Firing:
    """Decide whether a trigger fires.

    Args:
        conditions: events and conditions of a handoff; no event means ``completion``.
        happened: the events of the source.
        ended: how the source ended, in words.
        scope: what the conditions read.

    Raises:
        TooLargeToDecideError: a condition reads a value that is not in memory.
    """
    trigger = _trigger(tuple(conditions))
    events = trigger.events or ("completion",)
    if not any(event in events for event in happened):
        return Firing(has_fired=False, reason=f"{ended}, not by {' or '.join(events)}")
    paths = tuple(path for condition in trigger.conditions for path in condition.paths)
    shown = shown_values(paths, scope)
    for condition in trigger.conditions:
        if not _evaluate(condition, scope):
            return Firing(has_fired=False, reason=f"{condition.text} does not hold", values=shown)
    return Firing(has_fired=True, reason="its trigger fired", values=shown)


def fire_escalation(conditions: list[str], happened: tuple[str, ...], ended: str, scope: Scope) -> Firing:
    """Decide whether an escalation fires: like ``fire``, but no event, or ``completion`` alone, means ``failure``."""
    trigger = _trigger(tuple(conditions))
    listened = [event for event in trigger.events if event != "completion"] or ["failure"]
    texts = [*listened, *(condition.text for condition in trigger.conditions)]
    return fire(texts, happened, ended, scope)


def events_of(source: StepState) -> tuple[str, ...]:
    """Return what a handoff can listen to in how a step ended."""
    if source.status is StepStatus.COMPLETED or source.is_supplied:
        return ("completion",)
    is_timeout = source.error is not None and source.error.details.get("reason") == TIMEOUT
    return ("failure", TIMEOUT) if is_timeout else ("failure",)


def holds(text: str, scope: Scope) -> bool:
    """Evaluate a condition.

    Raises:
        TooLargeToDecideError: it reads a value that is not in memory.
    """
    return _evaluate(_condition(text), scope)


def _evaluate(condition: Condition, scope: Scope) -> bool:
    watched = _Watched(scope)
    try:
        return condition.evaluate(watched)
    except Unavailable:
        raise TooLargeToDecideError(watched.last or condition.paths[0]) from None


class _Watched:
    """A scope that remembers what was asked for last."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.last: Path | None = None

    def lookup(self, path: Path) -> JsonValue | Missing:
        self.last = path
        return self._scope.lookup(path)


class HandoffScope:
    """The run's values, with ``source_output`` as what a step has handed over, and nothing of ``steps``.

    A handoff belongs to agents: the steps of one workflow are not its to read, and may not be over.
    """

    def __init__(self, values: PlanValues, source_step: str) -> None:
        self._scope = OperandScope(values)
        self._source_step = source_step

    def lookup(self, path: Path) -> JsonValue | Missing:
        """The value at ``path``."""
        if path.root == "steps":
            return MISSING
        if path.root == "source_output":
            path = handed_path(self._source_step, path.segments)
        return self._scope.lookup(path)


class ReplyScope:
    """A unit's values, with ``output`` as its reply overlaid by its mapped output."""

    def __init__(self, values: ValueSource, reply: Value) -> None:
        self._scope = OperandScope(values)
        self._reply = reply

    def lookup(self, path: Path) -> JsonValue | Missing:
        """The value at ``path``."""
        if path.root != "output":
            return self._scope.lookup(path)
        return Located(self._reply, path.segments, "source_output", None).read()


def handed_path(source_step: str, segments: tuple[str | int, ...]) -> Path:
    """Return the path by which a run finds what a step has handed over."""
    own = (source_step, "handed", *segments)
    return Path(text=render_path("steps", own), root="steps", segments=own)


def shown_values(paths: Iterable[Path], scope: Scope) -> JsonObject:
    """Return what conditions have read, cut to a size for an event."""
    shown: JsonObject = {}
    room_bytes = MAX_SHOWN_TOTAL_BYTES
    for path in paths:
        if room_bytes <= 0:
            break
        try:
            value = scope.lookup(path)
        except Unavailable:
            shown[path.text] = "(too large to be shown)"
            continue
        if isinstance(value, Missing):
            value = None
        is_large = json_size(value, limit=MAX_SHOWN_BYTES) > MAX_SHOWN_BYTES
        shown[path.text] = shortened = _cut(value) if is_large else value
        room_bytes -= len(path.text) + json_size(shortened, limit=MAX_SHOWN_BYTES)
    return shown


def _cut(value: JsonValue) -> JsonValue:
    return f"{value[:200]}…" if isinstance(value, str) else "(too large to be shown)"


@functools.lru_cache(maxsize=1024)
def _condition(text: str) -> Condition:
    return parse_condition(text)


@functools.lru_cache(maxsize=1024)
def _trigger(texts: tuple[str, ...]) -> Trigger:
    return parse_trigger(texts)
