"""Two runs beside each other: where their paths part, and where their results do.

The order of a path is that of the definition's dependencies, not of the clock: two steps that may run at once come in
either order from run to run, and that is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from engine.domain.definition import WorkflowDefinition
from engine.domain.definition_graph import COMPENSATE, FOLLOWED
from engine.domain.definition_reads import all_steps, step_dependencies
from engine.domain.paths import MISSING, Missing, render_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.json import JsonObject, JsonValue
    from engine.testing.recording import RecordedCall, RecordedStep, Recording

__all__ = ["PathDifference", "PathStep", "RunComparison", "ValueDifference", "compare_runs"]

ChangeKind: TypeAlias = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class PathStep:
    """A step on a run's path."""

    step_id: str
    status: str
    """``completed``, ``failed``, ``skipped``, ``cancelled``; ``pending`` when the run ended before it."""
    agent_id: str | None
    fell_back_from: tuple[str, ...]
    """The agents that gave up before."""
    after: tuple[str, ...]
    """The steps that it waits for."""

    def to_dict(self) -> JsonObject:
        """Return it as JSON."""
        return {
            "step_id": self.step_id,
            "status": self.status,
            "agent_id": self.agent_id,
            "fell_back_from": list(self.fell_back_from),
            "after": list(self.after),
        }


@dataclass(frozen=True, slots=True)
class PathDifference:
    """A step that only one run has, or that went another way."""

    step_id: str
    kind: ChangeKind
    before: PathStep | None
    after: PathStep | None

    def to_dict(self) -> JsonObject:
        """Return it as JSON."""
        return {
            "step_id": self.step_id,
            "kind": self.kind,
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A value that only one run has, or that differs; ``path`` reads ``output.plan.items[0]``."""

    path: str
    kind: ChangeKind
    before: JsonValue = None
    after: JsonValue = None

    def to_dict(self) -> JsonObject:
        """Return it as JSON; a value that is not there has no key."""
        told: JsonObject = {"path": self.path, "kind": self.kind}
        if self.kind != "added":
            told["before"] = self.before
        if self.kind != "removed":
            told["after"] = self.after
        return told


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What ``compare_runs`` found."""

    path_before: tuple[PathStep, ...]
    path_after: tuple[PathStep, ...]
    path: tuple[PathDifference, ...]
    result: tuple[ValueDifference, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.path and not self.result

    def to_dict(self) -> JsonObject:
        """Return it as JSON."""
        return {
            "equal": self.is_equal,
            "path": [one.to_dict() for one in self.path],
            "result": [one.to_dict() for one in self.result],
            "path_before": [one.to_dict() for one in self.path_before],
            "path_after": [one.to_dict() for one in self.path_after],
        }


def compare_runs(before: Recording, after: Recording) -> RunComparison:
    """Compare two finished runs: the steps that ran, and status, outputs and errors.

    Messages of errors are not compared, nor are attempts, times and usage: the instant of an answer counts as that of
    the other run. The inputs of steps are compared where both know them (recorded with the option ``trace``), except
    of steps that recall context: a replay has no memory of others.
    """
    after = _at_the_instants_of(before, after)
    steps_before, steps_after = _path(before), _path(after)
    by_id_before = {step.step_id: step for step in steps_before}
    by_id_after = {step.step_id: step for step in steps_after}
    path: list[PathDifference] = []
    for step_id in dict.fromkeys((*by_id_before, *by_id_after)):
        old, new = by_id_before.get(step_id), by_id_after.get(step_id)
        if old != new:
            kind: ChangeKind = "added" if old is None else "removed" if new is None else "changed"
            path.append(PathDifference(step_id, kind, old, new))
    both = [step_id for step_id in before.steps if step_id in after.steps]
    recalling = _recalling(before) | _recalling(after)
    result = (
        *_differences("status", (), before.status, after.status),
        *_differences("output", (), before.output, after.output),
        *_differences("error", (), _error(before.error), _error(after.error)),
        *(
            difference
            for step_id in both
            for difference in _step_differences(
                step_id, before.steps[step_id], after.steps[step_id], with_input=step_id not in recalling
            )
        ),
    )
    return RunComparison(tuple(steps_before), tuple(steps_after), tuple(path), result)


def _at_the_instants_of(before: Recording, after: Recording) -> Recording:
    """The later run with the earlier one's instants wherever an approval's answer is told."""
    instants: dict[str, str] = {}
    for step in WorkflowDefinition.model_validate(after.definition).steps:
        if step.approval is not None and step.id in before.steps and step.id in after.steps:
            old, new = before.steps[step.id].output, after.steps[step.id].output
            if isinstance(old, dict) and isinstance(new, dict):
                old_at, new_at = old.get("at"), new.get("at")
                if isinstance(old_at, str) and isinstance(new_at, str):
                    instants[new_at] = old_at
    if not instants:
        return after
    text = after.model_dump_json()
    for new_at, old_at in instants.items():
        text = text.replace(new_at, old_at)
    return after.model_validate_json(text)


def _path(run: Recording) -> list[PathStep]:
    """The run's steps, each behind those that it waits for; at last what the run itself added."""
    definition = WorkflowDefinition.model_validate(run.definition)
    waits_for: dict[str, list[str]] = {}
    for steps in (definition.steps, definition.final_steps):
        order = {step.id: place for place, step in enumerate(steps)}
        found = {step.id: step_dependencies(step, order) for step in steps}
        waits_for |= {step_id: found[step_id] for step_id in _in_order(found)}
    for step_id in sorted(run.steps.keys() - waits_for.keys()):
        waits_for[step_id] = _source_of(step_id)
    return [
        _path_step(step_id, run.steps[step_id], after) for step_id, after in waits_for.items() if step_id in run.steps
    ]


def _in_order(waits_for: dict[str, list[str]]) -> list[str]:
    placed: dict[str, None] = {}
    while len(placed) < len(waits_for):
        ready = [step_id for step_id in waits_for if step_id not in placed and placed.keys() >= set(waits_for[step_id])]
        placed.update(dict.fromkeys(ready))
        if not ready:
            break
    return list(placed)


def _source_of(step_id: str) -> list[str]:
    """The step that an added one follows or undoes."""
    if step_id.endswith(COMPENSATE):
        return [step_id.removesuffix(COMPENSATE)]
    source, _, _ = step_id.rpartition(FOLLOWED)
    return [source] if source else []


def _path_step(step_id: str, step: RecordedStep, waits_for: list[str]) -> PathStep:
    units: dict[int | None, list[RecordedCall]] = {}
    for call in step.calls:
        units.setdefault(call.item, []).append(call)
    # An item's last call is its end, and what ended before it fell back.
    fell_back = [
        call.agent_id
        for _, calls in sorted(units.items(), key=lambda unit: -1 if unit[0] is None else unit[0])
        for call in calls[:-1]
        if call.failure is not None
    ]
    return PathStep(step_id, step.status, step.agent_id, tuple(fell_back), tuple(waits_for))


def _recalling(run: Recording) -> set[str]:
    definition = WorkflowDefinition.model_validate(run.definition)
    return {step.id for step in all_steps(definition) if step.context is not None}


def _step_differences(
    step_id: str, before: RecordedStep, after: RecordedStep, *, with_input: bool
) -> Iterator[ValueDifference]:
    place = (step_id,)
    yield from _differences("steps", (*place, "output"), before.output, after.output)
    yield from _differences("steps", (*place, "error"), _error(before.error), _error(after.error))
    if with_input:
        old_calls, new_calls = _last_calls(before), _last_calls(after)
        for item in (item for item in old_calls if item in new_calls):
            old, new = old_calls[item], new_calls[item]
            if old.has_input and new.has_input:
                of_item = (*place, "input") if item is None else (*place, "items", item, "input")
                yield from _differences("steps", of_item, old.input, new.input)


def _last_calls(step: RecordedStep) -> dict[int | None, RecordedCall]:
    """The last call of the step or of each of its items."""
    return {call.item: call for call in step.calls}


def _error(error: JsonObject | None) -> JsonValue:
    """What of an error is the same from run to run."""
    if error is None:
        return None
    details = cast("JsonObject", error.get("details") or {})
    return {"code": error.get("code"), "reason": details.get("reason")}


def _differences(
    root: str, place: Sequence[str | int], before: JsonValue | Missing, after: JsonValue | Missing
) -> Iterator[ValueDifference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _differences(root, (*place, key), before.get(key, MISSING), after.get(key, MISSING))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            old = before[index] if index < len(before) else MISSING
            new = after[index] if index < len(after) else MISSING
            yield from _differences(root, (*place, index), old, new)
    elif isinstance(before, Missing):
        yield ValueDifference(render_path(root, place), "added", after=cast("JsonValue", after))
    elif isinstance(after, Missing):
        yield ValueDifference(render_path(root, place), "removed", before=before)
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield ValueDifference(render_path(root, place), "changed", before, after)
