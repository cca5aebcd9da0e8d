"""A recorded definition as it is run offline: without what waits, and without what can't be made again.

A wait is what it came to, a gate that nobody answered expires at once, and a step that waits for people or executes a
workflow, and never did in the recording, becomes a call that no recording answers: it fails and is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from engine.domain.definition import WorkflowDefinition
from engine.domain.definition_reads import agent_ids_of, all_steps, step_dependencies
from engine.errors import ErrorCode, InvalidInputError
from engine.testing.timeline import is_clean_up, runs_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.domain.definition import Step
    from engine.domain.json import JsonObject, JsonValue
    from engine.testing.recording import RecordedCall, RecordedGate, RecordedStep, Recording

__all__ = ["UNRECORDED", "OfflineWorkflow", "check_playable", "counts_attempts", "offline_agents", "offline_workflows"]

UNRECORDED: Final = "agent-unrecorded"
"""Whom the steps call that the recording knows nothing of."""
CANCEL_PATIENCE: Final = 5.0
"""Seconds that what was cancelled in the recording waits to be."""
_EXPIRES_SOON: Final = 0.1
_EXPIRES_AFTER_ANSWER: Final = 2.0
_NEVER_EXPIRES: Final = 3600.0
_NO_RETRIES: Final = {"retry_policy": {"max_retries": 0}}
_COMMON: Final = ("id", "name", "when", "join", "on_error")
_WAITING: Final = ("timeout", "total_timeout", "retry_policy", "at_most_once")


@dataclass(frozen=True, slots=True)
class OfflineWorkflow:
    """A workflow of the offline engine."""

    workflow_id: str
    definition: JsonObject
    runs: list[Recording]
    """The recorded executions that it is played for."""


def check_playable(recording: Recording) -> None:
    """Refuse what can't be played again.

    Raises:
        InvalidInputError: time or a retry has decided the run, or one of the executions that it made.
    """
    for path, run in runs_of(recording).items():
        why = _unplayable(run)
        if why is not None:
            whose = f", made by {path}," if path else ""
            raise InvalidInputError(
                f"Execution {run.execution_id}{whose} can't be played again: {why}",
                {"execution_id": run.execution_id},
            )


def _unplayable(run: Recording) -> str | None:
    code = None if run.error is None else run.error.get("code")
    if code == ErrorCode.EXECUTION_TIMEOUT:
        return "it passed its deadline, and a replay takes no time"
    if "seconds" in run.breaches:
        return "it reached the limit of its budget's seconds, and a replay takes no time"
    definition = WorkflowDefinition.model_validate(run.definition)
    loops = {step.id for step in all_steps(definition) if step.repeat_until is not None}
    for step_id, step in run.steps.items():
        if step.status == "cancelled" and is_clean_up(run, step_id):
            return f"step {step_id} was cut off by cleanup_timeout, and a replay takes no time"
        is_stopped = step_id in loops and definition.on_failure == "finish" and run.status == "failed"
        if is_stopped and any(call.is_cancelled for call in step.calls):
            return f"step {step_id} was stopped between two turns by on_failure, and its last reply is not kept"
    return None


def offline_workflows(definition: Mapping[str, JsonValue], recording: Recording) -> list[OfflineWorkflow]:
    """Return what is to be created: the workflows that steps execute before those that execute them."""
    runs: dict[tuple[str, int], list[Recording]] = {}
    for path, run in runs_of(recording).items():
        if path:
            runs.setdefault((run.workflow_id, run.version), []).append(run)
    names = {key: f"{key[0][:80]}.v{key[1]}" for key in runs}
    made = [
        OfflineWorkflow(names[key], offline_definition(of_key[0].definition, of_key, names), of_key)
        for key, of_key in runs.items()
    ]
    main = OfflineWorkflow(recording.workflow_id, offline_definition(definition, [recording], names), [recording])
    return [*made, main]


def offline_agents(workflows: Sequence[OfflineWorkflow]) -> list[str]:
    """Return every agent that may be called."""
    found: dict[str, None] = {}
    for workflow in workflows:
        found |= dict.fromkeys(agent_ids_of(WorkflowDefinition.model_validate(workflow.definition)))
        for run in workflow.runs:
            for handoff in run.handoffs:
                found |= dict.fromkeys((handoff.source_agent_id, handoff.target_agent_id))
    return list(found)


def offline_definition(
    definition: Mapping[str, JsonValue], runs: Sequence[Recording], names: Mapping[tuple[str, int], str]
) -> JsonObject:
    """Return a valid definition without what waits.

    Args:
        definition: as ``create_workflow`` takes it.
        runs: the executions that it is played for.
        names: workflow and version to the id that it has offline.
    """
    parsed = WorkflowDefinition.model_validate(definition)
    with_attempts = counts_attempts(definition, runs)
    changed: JsonObject = {**definition, "defaults": cast("JsonValue", _NO_RETRIES)}
    for section, steps in (("steps", parsed.steps), ("finally", parsed.final_steps)):
        if section not in definition:
            continue
        order = {step.id: place for place, step in enumerate(steps)}
        changed[section] = [
            _offline_step(_Place(step, raw, step_dependencies(step, order), runs, names), with_attempts=with_attempts)
            for step, raw in zip(steps, cast("list[JsonObject]", definition[section]), strict=True)
        ]
    return changed


def counts_attempts(definition: Mapping[str, JsonValue], runs: Sequence[Recording]) -> bool:
    """Whether a budget limits the attempts of agents, so that those that were repeated are repeated again."""
    budgets = [definition.get("budget"), *(run.budget for run in runs)]
    return any(isinstance(budget, dict) and budget.get("agent_calls") is not None for budget in budgets)


@dataclass(frozen=True, slots=True)
class _Place:
    """A step, and what is recorded of it."""

    step: Step
    raw: JsonObject
    after: list[str]
    runs: Sequence[Recording]
    names: Mapping[tuple[str, int], str]

    @property
    def recorded(self) -> list[RecordedStep]:
        return [run.steps[self.step.id] for run in self.runs if self.step.id in run.steps]

    @property
    def calls(self) -> list[RecordedCall]:
        return [call for step in self.recorded for call in step.calls]

    @property
    def gates(self) -> list[RecordedGate]:
        return [
            gate for run in self.runs for gate in run.gates if (gate.step_id, gate.kind) == (self.step.id, "approval")
        ]

    @property
    def statuses(self) -> set[str]:
        return {step.status for step in self.recorded}

    def without(self, *fields: str) -> JsonObject:
        return {key: value for key, value in self.raw.items() if key not in fields}

    def as_another(self) -> JsonObject:
        """What makes the step run or not, for one of another type."""
        kept = {key: self.raw[key] for key in _COMMON if key in self.raw}
        return {**kept, "depends_on": cast("JsonValue", self.after)}


def _offline_step(place: _Place, *, with_attempts: bool) -> JsonObject:
    offline = _of_type(place, with_attempts=with_attempts)
    is_kept = bool(place.recorded) and all(step.is_reused for step in place.recorded)
    return {key: value for key, value in offline.items() if not is_kept or key != "compensate"}


def _of_type(place: _Place, *, with_attempts: bool) -> JsonObject:
    match place.step.type:
        case "agent":
            return _agent_step(place, with_attempts=with_attempts)
        case "wait":
            return _wait_step(place)
        case "approval":
            return _approval_step(place)
        case "workflow":
            return _workflow_step(place)
        case "transform":
            return place.raw


def _agent_step(place: _Place, *, with_attempts: bool) -> JsonObject:
    """Without the check of a reply that is known in part only."""
    partial = any(not call.is_whole for call in place.calls)
    kept = place.without(*_WAITING, *(["output_schema"] if partial else []))
    attempts = max((call.attempts for call in place.calls), default=1)
    if not with_attempts or attempts == 1:
        return kept
    return {**kept, "retry_policy": {"max_retries": attempts - 1, "initial_interval": 0.01, "max_interval": 0.01}}


def _wait_step(place: _Place) -> JsonObject:
    if place.statuses == {"failed"}:
        return place.raw
    outputs = [step.output for step in place.recorded if step.status == "completed"]
    if outputs and all(output == outputs[0] for output in outputs):
        return {**place.as_another(), "type": "transform", "transform": outputs[0]}
    return {
        **place.as_another(),
        "type": "wait",
        "wait": {"seconds": CANCEL_PATIENCE if place.statuses == {"cancelled"} else 0},
    }


def _approval_step(place: _Place) -> JsonObject:
    gates = place.gates
    approval = cast("JsonObject", place.raw["approval"])
    if not gates:
        return place.raw if "failed" in place.statuses else _unrecorded_step(place)
    if approval.get("timeout") is None:
        return place.raw
    timeout = _NEVER_EXPIRES
    if any(gate.status == "expired" for gate in gates):
        is_answered = any(gate.status == "answered" for gate in gates)
        timeout = _EXPIRES_AFTER_ANSWER if is_answered else _EXPIRES_SOON
    return {**place.raw, "approval": {**approval, "timeout": timeout}}


def _workflow_step(place: _Place) -> JsonObject:
    made = [
        child
        for run in place.runs
        for address, child in run.children.items()
        if address.startswith((f"{place.step.id}.", f"{place.step.id}["))
        and child.workflow_id == place.step.workflow_id
        and place.step.version in (None, child.version)
    ]
    if not made:
        was_empty = place.statuses == {"completed"} and all(step.output == [] for step in place.recorded)
        if "failed" in place.statuses:
            raise InvalidInputError(
                f"Step {place.step.id} can't be played again: its execution of workflow {place.step.workflow_id} never "
                "began, so that the recording does not have that workflow",
                {"path": f"steps.{place.step.id}"},
            )
        return _unrecorded_step(place) if not was_empty else {**place.as_another(), **_EMPTY}
    versions = {child.version for child in made}
    if len(versions) > 1:
        raise InvalidInputError(
            f"Step {place.step.id} executed several versions of workflow {place.step.workflow_id}; name one in version",
            {"path": f"steps.{place.step.id}.version"},
        )
    name = place.names[made[0].workflow_id, made[0].version]
    return {**place.without(*_WAITING, "version"), "workflow_id": name}


_EMPTY: Final[JsonObject] = {"type": "transform", "foreach": {"items": []}, "transform": {}}


def _unrecorded_step(place: _Place) -> JsonObject:
    return {**place.as_another(), "type": "agent", "agent_id": UNRECORDED, "input_mapping": {}}
