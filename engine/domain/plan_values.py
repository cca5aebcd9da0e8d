"""Where the paths of a plan's mappings find their values during a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.domain.conditions import parse_condition, parse_trigger
from engine.domain.execution import ErrorPayload, StepStatus, Value
from engine.domain.expressions import MISSING, Missing, Path, compile_template
from engine.domain.messages import OperandRef
from engine.domain.operands import Located

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engine.domain.json import JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["PlanValues", "StepState", "condition_paths"]


@dataclass(slots=True)
class StepState:
    """A step as the run sees it."""

    status: StepStatus = StepStatus.PENDING
    agent_id: str | None = None
    n: int = 0
    run_id: str = ""
    choice: int = 0
    """Index into the step's agents."""
    attempts: int = 0
    resumes: int = 0
    started_at: datetime | None = None
    completed_at: datetime | None = None
    output: Value | None = None
    in_record: bool = False
    known: dict[str, JsonValue | Missing] = field(default_factory=dict[str, "JsonValue | Missing"])
    """What conditions read of an output that is in the record, by path."""
    error: ErrorPayload | None = None
    waiting_for: int = 0
    """Dependencies that have not settled."""
    handed: Value | None = None
    """What the handoffs from this step read: an object of top keys."""
    note: str = ""
    """Why it was skipped."""
    is_continued: bool = False
    """It failed, and the execution goes on: its output is null."""

    @property
    def has_run(self) -> bool:
        """Whether what depends on it may go on: it completed, or its failure is passed over."""
        return self.status is StepStatus.COMPLETED or self.is_continued


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
        self._plan = plan
        self._input = execution_input
        self._steps = steps
        tags: list[JsonValue] = [*plan.tags]
        self._execution = Value.of(
            {
                "id": execution_id,
                "workflow_id": plan.definition_id,
                "version": plan.version,
                "tags": tags,
                "started_at": started_at.isoformat(),
            }
        )

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

    def still_read(self, steps: list[PlanStep]) -> set[str]:
        """The steps whose outputs are read by the mappings of ``steps`` or by the execution's output."""
        templates = [compile_template(self._plan.output)]
        for step in steps:
            templates.append(compile_template(step.input_mapping))
            if step.output_mapping is not None:
                templates.append(compile_template(step.output_mapping))
            if step.recall is not None:
                templates.append(compile_template(step.recall.recall))
        paths = [path for template in templates for path in template.paths]
        for step in steps:
            paths += condition_paths(step)
        return {str(path.segments[0]) for path in paths if path.root == "steps" and path.segments}

    def _locate_step(self, segments: tuple[str | int, ...]) -> Located | Missing:
        if len(segments) < 2 or str(segments[0]) not in self._steps:
            return MISSING
        step_id = str(segments[0])
        state = self._steps[step_id]
        is_skipped = state.status is StepStatus.SKIPPED
        if (segments[1] == "output" and (is_skipped or state.is_continued)) or (segments[1] == "error" and is_skipped):
            return Located(Value.of(None), (), str(segments[1]), None)
        if segments[1] == "handed":
            return Located(state.handed or Value.of({}), segments[2:], "source_output", None)
        if segments[1] == "output":
            stored = OperandRef(step_id=step_id, run_id=state.run_id, n=state.n)
            if state.in_record:
                return Located(None, segments[2:], "output", stored, state.known)
            return Located(state.output or Value(), segments[2:], "output", stored)
        if segments[1] == "error":
            error = None if state.error is None else state.error.model_dump(mode="json")
            return Located(Value.of(error), segments[2:], "error", None)
        return MISSING


def condition_paths(step: PlanStep) -> list[Path]:
    """Every path that decides whether a step runs, but those into what is handed over."""
    conditions = [] if step.when is None else [parse_condition(step.when)]
    for edge in step.edges:
        conditions += parse_trigger(edge.trigger_conditions).conditions
    return [path for condition in conditions for path in condition.paths]
