"""What a run showed, and how that differs from what its case expects; knows neither servers nor stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.json import JsonValue
    from tests.conformance.cases import ErrorExpectation, EventExpectation, Expectation, StepExpectation

__all__ = ["Observed", "differences", "misfits"]

ANYTHING: Final = "<any>"
INSTANT: Final = "<instant>"


@dataclass(slots=True)
class Observed:
    """What one run showed, in the shapes of the facade's answers."""

    result: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of ``get_execution_result``; empty when nothing ran."""
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Of ``watch_execution``."""
    refusal: dict[str, Any] | None = None
    """Code, message and details of the error by which the definition or the start was refused."""
    inputs: dict[str, list[JsonValue]] = field(default_factory=dict[str, "list[JsonValue]"])
    """By agent, one of each call, in the order of the calls."""
    at_once: dict[str, int] = field(default_factory=dict[str, int])
    children: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """The children's results by what follows ``<execution_id>/`` in their ids."""
    rerun: dict[str, Any] = field(default_factory=dict[str, Any])
    """What ``rerun_execution`` answered."""


def differences(expect: Expectation, observed: Observed) -> list[str]:
    """Return a line for each thing that is not as expected."""
    return list(_differences(expect, observed))


def misfits(expected: JsonValue, found: object, where: str, *, is_part: bool = False) -> Iterator[str]:
    """Yield where a value is another one. ``<any>`` stands for anything, ``<instant>`` for an instant in ISO 8601.

    Args:
        expected: as the case gives it.
        found: as it is.
        where: how to name the value.
        is_part: whether objects may have more keys than expected.
    """
    if expected == ANYTHING or (expected == INSTANT and _is_instant(found)):
        return
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [*expected, *([] if is_part else sorted(set(found) - set(expected)))]
        for key in keys:
            if key not in found:
                yield f"{where}.{key} is missing"
            elif key not in expected:
                yield f"{where}.{key} is there: {found[key]!r}"
            else:
                yield from misfits(expected[key], found[key], f"{where}.{key}", is_part=is_part)
    elif isinstance(expected, list) and isinstance(found, Sequence) and not isinstance(found, str):
        if len(expected) != len(found):
            yield f"{where} has {len(found)} items, not {len(expected)}: {found!r}"
            return
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from misfits(one, other, f"{where}[{number}]", is_part=is_part)
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        yield f"{where} is {found!r}, not {expected!r}"


def _differences(expect: Expectation, observed: Observed) -> Iterator[str]:
    if observed.refusal is not None or expect.refused is not None:
        if observed.refusal is None:
            yield "it was not refused"
        elif expect.refused is None:
            yield f"it was refused: {observed.refusal}"
        else:
            yield from _error_misfits(expect.refused, observed.refusal, "refusal")
        return
    yield from _ending_misfits(expect, observed.result)
    yield from _step_misfits(expect, observed.result["steps"])
    yield from _call_misfits(expect, observed)
    yield from _decision_misfits(expect, observed)
    for name, child in expect.children.items():
        yield from misfits(child.model_dump(exclude_unset=True), observed.children[name], name, is_part=True)
    for name in ("rerun", "reused"):
        wanted = getattr(expect, name)
        if wanted is not None:
            yield from misfits(wanted, observed.rerun.get(name), name)


def _ending_misfits(expect: Expectation, result: Mapping[str, Any]) -> Iterator[str]:
    if expect.status is not None:
        yield from misfits(expect.status, result["status"], f"status (error {result['error']})")
    if expect.has("output"):
        yield from misfits(expect.output, result["output"], "output")
    if expect.output_has is not None:
        yield from misfits(expect.output_has, result["output"], "output", is_part=True)
    if expect.has("error"):
        yield from _error_misfits(expect.error, result["error"], "error")
    if expect.cancel is not None:
        yield from misfits(expect.cancel, result.get("cancel", {}).get("reason"), "cancel.reason")
    if expect.warnings is not None:
        found = [warning["code"] for warning in result["warnings"]]
        yield from misfits(sorted(expect.warnings), sorted(found), "warnings")


def _step_misfits(expect: Expectation, steps: Mapping[str, Any]) -> Iterator[str]:
    for step_id, wanted in expect.steps.items():
        if step_id not in steps:
            yield f"there is no step {step_id}"
        else:
            yield from _one_step_misfits(wanted, steps[step_id], f"steps.{step_id}")
    if expect.only and (more := sorted(set(steps) - set(expect.steps))):
        yield f"there are steps that nobody expected: {', '.join(more)}"
    for first, second in expect.order:
        ended, started = (steps.get(first, {}).get("completed_at"), steps.get(second, {}).get("started_at"))
        if ended is None or started is None or ended > started:
            yield f"{first} ended at {ended}, and {second} started at {started}"


def _one_step_misfits(wanted: StepExpectation, found: Mapping[str, Any], where: str) -> Iterator[str]:
    for name in ("status", "reason", "output", "agent_id", "attempts"):
        if wanted.has(name):
            yield from misfits(getattr(wanted, name), found[name], f"{where}.{name}")
    if wanted.output_has is not None:
        yield from misfits(wanted.output_has, found["output"], f"{where}.output", is_part=True)
    if wanted.has("error"):
        yield from _error_misfits(wanted.error, found["error"], f"{where}.error")


def _error_misfits(wanted: ErrorExpectation | None, found: Any, where: str) -> Iterator[str]:
    if wanted is None or found is None:
        if found is not None or wanted is not None:
            yield f"{where} is {found!r}, not {wanted!r}"
        return
    for name in ("code", "message"):
        if wanted.has(name):
            yield from misfits(getattr(wanted, name), found[name], f"{where}.{name}")
    if wanted.message_contains is not None and wanted.message_contains not in found["message"]:
        yield f"{where}.message is {found['message']!r}, without {wanted.message_contains!r}"
    if wanted.details is not None:
        yield from misfits(wanted.details, found["details"], f"{where}.details", is_part=True)


def _call_misfits(expect: Expectation, observed: Observed) -> Iterator[str]:
    for agent_id, count in expect.calls.items():
        yield from misfits(count, len(observed.inputs.get(agent_id, [])), f"calls of {agent_id}")
    for agent_id, most in expect.at_once.items():
        yield from misfits(most, observed.at_once.get(agent_id, 0), f"calls of {agent_id} at once")
    for agent_id, inputs in expect.inputs.items():
        yield from misfits([*inputs], observed.inputs.get(agent_id, []), f"inputs of {agent_id}")


def _decision_misfits(expect: Expectation, observed: Observed) -> Iterator[str]:
    if expect.handoffs is not None:
        found = observed.result["handoffs"]
        if len(found) != len(expect.handoffs):
            yield f"there are {len(found)} handoffs, not {len(expect.handoffs)}: {found!r}"
        for wanted, line in zip(expect.handoffs, found, strict=False):
            where = f"handoff {line['source_agent_id']} -> {line['target_agent_id']}"
            plain = wanted.model_dump(exclude_unset=True, exclude={"reason_contains"})
            yield from misfits(plain, line, where, is_part=True)
            if wanted.reason_contains is not None and wanted.reason_contains not in line["reason"]:
                yield f"{where} gives the reason {line['reason']!r}, without {wanted.reason_contains!r}"
    yield from _event_misfits(expect.events, observed.events)
    told = Counter(event["type"] for event in observed.events)
    for name in expect.no_events:
        if told[name]:
            yield f"there is an event {name}"


def _event_misfits(wanted: Sequence[str | EventExpectation], told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Events must come in the order given; others may stand between."""
    left = iter(told)
    for one in wanted:
        event = _event_of(one)
        if not any(_is_event(event, found) for found in left):
            lines = [f"{found['type']} {found['step_id'] or ''}".strip() for found in told]
            yield f"no event {one!r} in its place among {lines}"
            return


def _event_of(wanted: str | EventExpectation) -> Mapping[str, Any]:
    """``step.skipped b`` is the event of that type and step."""
    if isinstance(wanted, str):
        name, _, step = wanted.partition(" ")
        return {"type": name, **({"step_id": step} if step else {})}
    step_id = {} if wanted.step is None else {"step_id": wanted.step}
    return {"type": wanted.type, "data": wanted.data, **step_id}


def _is_event(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return not any(misfits(dict(wanted), found, "event", is_part=True))


def _is_instant(found: object) -> bool:
    if not isinstance(found, str):
        return False
    try:
        return datetime.fromisoformat(found).tzinfo is not None
    except ValueError:
        return False
