"""Where the paths of a plan's mappings and conditions find their values during a run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.execution import StepStatus, Value
from engine.domain.expressions import MISSING, Missing, Path, compile_template
from engine.domain.messages import OperandRef
from engine.domain.operands import Located

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engine.domain.execution import ErrorPayload
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep
    from engine.domain.step_state import StepState, Unit

__all__ = ["PlanValues", "UnitValues", "condition_paths", "failure_of", "items_path", "read_steps"]

_NULL: Final = Value.of(None)


class PlanValues:
    """The roots ``input``, ``steps`` and ``execution`` over a run's live state."""

    def __init__(
        self,
        plan: ExecutionPlan,
        execution_input: Value,
        execution_id: str,
        started_at: datetime,
        steps: Mapping[str, StepState],
    ) -> None:
        self._input = execution_input
        self._steps = steps
        self._is_concluded = False
        tags: list[JsonValue] = [*plan.tags]
        self._facts: JsonObject = {
            "id": execution_id,
            "workflow_id": plan.definition_id,
            "version": plan.version,
            "tags": tags,
            "started_at": started_at.isoformat(),
        }
        self._execution = Value.of(self._facts)

    def conclude(self, status: str, error: ErrorPayload | None) -> None:
        """From here on clean-up reads: how the execution ended, and null of every step that has no output."""
        self._is_concluded = True
        shown = None if error is None else error.model_dump(mode="json")
        self._execution = Value.of({**self._facts, "status": status, "error": shown})

    def locate(self, path: Path) -> Located | Missing:
        """Find the value that ``path`` starts in; see ``operands.ValueSource``."""
        match path.root:
            case "input":
                return Located(self._input, path.segments, "input", OperandRef(execution_input=True))
            case "execution":
                return Located(self._execution, path.segments, "execution", None)
            case "steps":
                return self._locate_step(path.segments)
            case _:
                return MISSING

    def _locate_step(self, segments: tuple[str | int, ...]) -> Located | Missing:
        if len(segments) < 2 or str(segments[0]) not in self._steps:
            return MISSING
        step_id = str(segments[0])
        state = self._steps[step_id]
        match segments[1]:
            case "output":
                return self._locate_output(step_id, state, segments[2:])
            case "error":
                error = None if state.error is None else state.error.model_dump(mode="json")
                is_null = error is None and (state.status is StepStatus.SKIPPED or self._is_concluded)
                return Located(Value.of(error), () if is_null else segments[2:], "error", None)
            case "handed":
                return _locate_handed(step_id, state, segments[2:])
            case _:
                return MISSING

    def _locate_output(self, step_id: str, state: StepState, below: tuple[str | int, ...]) -> Located:
        is_null = state.output is not None and state.output.ref is None and state.output.inline is None
        has_none = state.status is StepStatus.SKIPPED and (not state.is_supplied or is_null)
        if has_none or state.is_continued or (self._is_concluded and not state.has_run):
            return Located(_NULL, (), "output", None)
        stored = OperandRef(step_id=step_id, run_id=state.run_id, n=state.n)
        if state.in_record:
            return Located(None, below, "output", stored, state.known, state.lengths)
        return Located(state.output or Value(), below, "output", stored)


def _locate_handed(step_id: str, state: StepState, below: tuple[str | int, ...]) -> Located:
    if state.items is not None and state.output is not None:
        return Located(state.output, below, "output", OperandRef(step_id=step_id, run_id=state.run_id, n=state.n))
    stored = OperandRef(step_id=step_id, run_id=state.run_id, n=state.n, handed=True)
    if state.handed_in_record:
        return Located(None, below, "source_output", stored, state.known)
    return Located(state.handed or Value.of({}), below, "source_output", stored)


class UnitValues:
    """What one unit reads: the run's values, its item, and what its turn before gave."""

    def __init__(self, values: PlanValues, unit: Unit) -> None:
        self._values = values
        self._unit = unit

    def locate(self, path: Path) -> Located | Missing:
        """Find the value that ``path`` starts in; see ``operands.ValueSource``."""
        unit = self._unit
        foreach = unit.step.foreach
        if foreach is not None and unit.item is not None:
            if path.root == "index":
                return Located(Value.of(unit.item), path.segments, "index", None)
            if path.root in ("item", foreach.name):
                return self._locate_item(foreach.items, unit.item, path)
        if path.root == "source_output":
            return Located(Value.of(failure_of(unit)), path.segments, "source_output", None)
        if unit.step.repeat is not None:
            if path.root == "iteration":
                return Located(Value.of(unit.state.iteration), path.segments, "iteration", None)
            if path.root == "steps" and path.segments[:2] == (unit.step_id, "output"):
                return self._locate_previous(path.segments[2:])
        return self._values.locate(path)

    def _locate_item(self, items: JsonValue, item: int, path: Path) -> Located | Missing:
        source = items_path(items)
        if source is None:
            listed = items if isinstance(items, list) else []
            return Located(Value.of(listed[item]), path.segments, "item", None)
        located = self._values.locate(
            Path(text=path.text, root=source.root, segments=(*source.segments, item, *path.segments))
        )
        if isinstance(located, Missing) and isinstance(source.default, list):
            return Located(Value.of(source.default[item]), path.segments, "item", None)
        return located

    def _locate_previous(self, below: tuple[str | int, ...]) -> Located:
        state = self._unit.state
        if state.iteration == 1 or (state.output is None and not state.in_record):
            return Located(_NULL, (), "output", None)
        stored = OperandRef(step_id=self._unit.step_id, item=self._unit.item, run_id=state.run_id, n=state.output_n)
        return Located(None if state.in_record else state.output, below, "output", stored, state.known)


def failure_of(unit: Unit) -> JsonObject:
    """Return what an escalation is handed over: ``{"error": {code, message, reason}}``."""
    error = unit.state.error
    if error is None:
        return {"error": None}
    reason = error.details.get("reason")
    return {"error": {"code": error.code, "message": error.message, "reason": reason}}


def items_path(items: JsonValue) -> Path | None:
    """Return the path that a ``foreach`` reads its list from; None when the list is given."""
    return _only_path(items) if isinstance(items, str) else None


@functools.lru_cache(maxsize=1024)
def _only_path(text: str) -> Path:
    return compile_template(text).paths[0]


def condition_paths(step: PlanStep) -> list[Path]:
    """Every path that decides what a step does, but those into what is handed over or replied."""
    texts = [step.when, step.repeat and step.repeat.condition]
    conditions = [parse_condition(text) for text in texts if text is not None]
    for edge in step.edges:
        conditions += parse_trigger(edge.trigger_conditions).conditions
    paths = [path for condition in conditions for path in condition.paths if path.root != "output"]
    source = None if step.foreach is None else items_path(step.foreach.items)
    return paths if source is None else [*paths, source]


def read_steps(step: PlanStep) -> set[str]:
    """The steps whose outputs a step's mappings and conditions read."""
    templates: list[JsonValue] = [step.input_mapping, step.output_mapping, step.transform]
    if step.recall is not None:
        templates.append(step.recall.recall)
    if step.approval is not None:
        templates.append(step.approval.question)
    if step.wait is not None:
        templates += [step.wait.seconds, step.wait.until]
    if step.compensation is not None:
        templates.append(step.compensation.input_mapping)
    paths = [path for template in templates if template is not None for path in compile_template(template).paths]
    paths += condition_paths(step)
    return {str(path.segments[0]) for path in paths if path.root == "steps" and path.segments}
