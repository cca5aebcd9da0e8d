"""Why each step of an execution ran, was skipped, was called again or was never reached, told from its records.

Only what is recorded is said: a fact that no record holds is left out, because a guess reads like a fact. Dependencies
and rules come from the frozen plan, so an update of the definition changes nothing of what is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.definition_graph import COMPENSATE, FOLLOWED
from engine.domain.execution import ExecutionStatus, StepStatus
from engine.domain.explanation_words import (
    MAX_SHOWN_STEPS,
    attempts_in_words,
    call_clauses,
    end_in_words,
    few,
    gate_clauses,
    last_gate,
    status_in_words,
    with_values,
)
from engine.domain.step_history import StepHistory, step_histories
from engine.domain.step_words import line, listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.domain.execution import Event, ExecutionRecord, StepRecord
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.plan import ExecutionPlan, PlanStep

__all__ = ["Decision", "Explanation", "StepExplanation", "explain"]

Decision = Literal[
    "ran",
    "skipped",
    "fell_back",
    "escalated",
    "handed_over",
    "waited",
    "failed",
    "cancelled",
    "not_reached",
    "reused",
    "compensated",
    "finally",
]
"""What became of a step; ``ran`` also while it runs, ``waited`` also while it waits."""

_ENDED: Final = {StepStatus.FAILED: "failed", StepStatus.CANCELLED: "cancelled"}


@dataclass(frozen=True, slots=True)
class StepExplanation:
    """Why one step is where it is."""

    step_id: str
    decision: Decision
    because: str
    """One sentence, with the values."""
    status: StepStatus
    values: JsonObject = field(default_factory=dict[str, "JsonValue"])
    """What it rested on: by path, ``steps.<id>`` being a dependency's status."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an execution went as it did."""

    record: ExecutionRecord
    steps: list[StepExplanation]
    """The plan's in definition order, then those that the run added, then the final ones."""


def explain(record: ExecutionRecord, records: Iterable[StepRecord], plan: ExecutionPlan) -> Explanation:
    """Tell why the steps of an execution, open or over, are where they are.

    Args:
        record: of the execution.
        records: all step records of it.
        plan: that it runs.
    """
    found = list(records)
    return Explanation(record, _Explainer(record, found, plan).steps())


class _Explainer:
    """What all steps of one execution are told from."""

    def __init__(self, record: ExecutionRecord, records: list[StepRecord], plan: ExecutionPlan) -> None:
        self._record = record
        self._histories = step_histories(record, records)
        self._main = {step.id: step for step in plan.steps}
        self._final = {step.id: step for step in plan.final_steps}
        self._planned = self._main | self._final
        self._added = [
            step_id for step_id, history in self._histories.items() if step_id not in self._planned and history.is_added
        ]
        shown = {*self._planned, *self._added}
        self._taken: dict[str, list[Event]] = {}
        """Step to the handoffs by which it was run or went on."""
        self._refused: dict[str, list[Event]] = {}
        """Step to the handoffs from it that no other step tells of."""
        for event in _handoffs(record, records):
            source, target = str(event.data.get("source_step")), str(event.data.get("target_step"))
            if event.type == "handoff.taken":
                self._taken.setdefault(target, []).append(event)
            elif target == source or target not in shown:
                self._refused.setdefault(source, []).append(event)

    def steps(self) -> list[StepExplanation]:
        return [self._step(step_id) for step_id in (*self._main, *self._added, *self._final)]

    def _step(self, step_id: str) -> StepExplanation:
        history = self._histories.get(step_id) or StepHistory(step_id, is_over=self._is_over)
        status = history.status
        last = history.last
        if last is not None and last.reused_from is not None:
            because = f"Its outcome was taken over from execution {last.reused_from}."
            return StepExplanation(step_id, "reused", because, status, {"execution_id": last.reused_from})
        match status:
            case StepStatus.PENDING:
                return self._not_reached(step_id)
            case StepStatus.SKIPPED:
                return _skipped(history)
            case StepStatus.FAILED | StepStatus.CANCELLED:
                return self._ended_badly(history)
            case _:
                return self._ran(history)

    def _ran(self, history: StepHistory) -> StepExplanation:
        step_id, status = history.step_id, history.status
        decision = self._decision(history)
        begun, values = self._beginning(step_id)
        # Of a step that a run added the handoff or the undone step is the beginning itself.
        if step_id in self._planned:
            begun = f"{_verb(status)} {begun}"
        clauses = [begun, *self._story(history)]
        gate = last_gate(history.events)
        if gate is not None:
            values |= gate
        return StepExplanation(step_id, decision, _sentence(clauses), status, values)

    def _ended_badly(self, history: StepHistory) -> StepExplanation:
        step_id, status, last = history.step_id, history.status, history.last
        word = _ENDED[status]
        decision: Decision = "failed" if status is StepStatus.FAILED else "cancelled"
        values: JsonObject = {}
        clauses: list[str] = []
        calls = history.calls
        if last is None:
            clauses.append("Its items were at work when the execution ended")
        elif status is StepStatus.FAILED:
            reason = last.reason or (last.error.code if last.error else None)
            said = f"It failed{attempts_in_words(calls)}" + (f" with {reason}" if reason else "")
            clauses.append(f"{said}: {line(last.error.message)}" if last.error is not None else said)
            values["attempts"] = sum(call.attempts for call in calls)
            if last.error is not None:
                values["error.code"] = last.error.code
            if last.reason is not None:
                values["error.details.reason"] = last.reason
        else:
            begun = "while it was at work" if last.started_at is not None else "before it was called"
            clauses.append(f"It was {word} {begun}, and {end_in_words(self._record)}")
        clauses += self._story(history)
        planned = self._planned.get(step_id)
        if status is StepStatus.FAILED and planned is not None and planned.on_error == "continue":
            clauses.append("its on_error is continue")
        return StepExplanation(step_id, decision, _sentence(clauses), status, values)

    def _story(self, history: StepHistory) -> list[str]:
        """What happened between a step's beginning and where it stands, a clause each."""
        planned = self._planned.get(history.step_id)
        clauses = call_clauses(history, planned.repeat.condition if planned and planned.repeat else None)
        escalated = [
            f"handoff {_id(event)} escalated it to {event.data.get('target_agent_id')}{with_values(_values(event))}"
            for event in self._escalations(history.step_id)
        ]
        refused = [
            f"handoff {_id(event)} to {event.data.get('target_agent_id')} was refused: "
            f"{line(event.data.get('reason'))}{with_values(_values(event))}"
            for event in self._refused.get(history.step_id, [])
        ]
        gates = gate_clauses(history.events)
        clauses += [*few(escalated, "escalation"), *few(gates, "gate"), *few(refused, "refused handoff")]
        if any(
            warning.code == "max_iterations" and warning.step_id == history.step_id
            for warning in (*self._record.warnings, *(history.last.warnings if history.last else []))
        ):
            clauses.append("its last turn was the last one allowed")
        if f"{history.step_id}{COMPENSATE}" in self._added:
            clauses.append(f"it was undone by {history.step_id}{COMPENSATE}")
        return clauses

    def _beginning(self, step_id: str) -> tuple[str, JsonObject]:
        """Why a step was begun, behind "It ran", and the values of that."""
        taken = [event for event in self._taken.get(step_id, []) if not _is_escalation(event)]
        values: JsonObject = {}
        for event in taken:
            values |= _values(event)
        planned = self._planned.get(step_id)
        if planned is None:
            return self._addition(step_id, taken), values
        clauses = [self._after(planned, values)]
        if step_id in self._final:
            clauses.insert(0, "at the end of the execution")
        if planned.when is not None:
            clauses.append(f"as its condition held ({line(planned.when)})")
        clauses += [
            f"by handoff {_id(event)} from {event.data.get('source_step')}: {line(event.data.get('reason'))}"
            f"{with_values(_values(event))}"
            for event in taken
        ]
        return ", ".join(clause for clause in clauses if clause), values

    def _addition(self, step_id: str, taken: list[Event]) -> str:
        if step_id.endswith(COMPENSATE):
            undone = step_id.removesuffix(COMPENSATE)
            return f"It undoes step {undone}, which had completed; {end_in_words(self._record)}"
        if not taken:
            return f"It was added by a handoff from {step_id.rpartition(FOLLOWED)[0]}"
        event = taken[-1]
        return (
            f"Step {event.data.get('source_step')} handed over to {event.data.get('target_agent_id')} "
            f"by handoff {_id(event)}: {line(event.data.get('reason'))}{with_values(_values(event))}"
        )

    def _after(self, planned: PlanStep, values: JsonObject) -> str:
        if not planned.depends_on:
            return "" if planned.id in self._final else "with nothing to wait for"
        values |= {f"steps.{name}": self._status(name).value for name in planned.depends_on[:MAX_SHOWN_STEPS]}
        names = [f"{name} ({status_in_words(self._status(name))})" for name in planned.depends_on]
        join = f" (join {planned.join})" if planned.join != "all" else ""
        return f"after {listed(names)}{join}"

    def _decision(self, history: StepHistory) -> Decision:
        """What became of a step that runs, waits or has completed."""
        step_id = history.step_id
        planned = self._planned.get(step_id)
        if step_id.endswith(COMPENSATE):
            return "compensated"
        if step_id in self._final:
            return "finally"
        if history.status is StepStatus.WAITING or (planned is not None and planned.type in ("approval", "wait")):
            return "waited"
        if self._escalations(step_id) and (planned is None or planned.foreach is None):
            return "escalated"
        if any(event.type == "step.fell_back" and "item" not in event.data for event in history.events):
            return "fell_back"
        return "ran" if planned is not None else "handed_over"

    def _not_reached(self, step_id: str) -> StepExplanation:
        planned = self._planned.get(step_id)
        if planned is None:
            return self._not_begun(step_id)
        open_names = [name for name in planned.depends_on if not self._status(name).is_terminal]
        lost = [
            name
            for name in planned.depends_on
            if self._status(name) in (StepStatus.PENDING, StepStatus.FAILED, StepStatus.CANCELLED)
        ]
        values: JsonObject = {
            f"steps.{name}": self._status(name).value
            for name in (lost if self._is_over else open_names)[:MAX_SHOWN_STEPS]
        }
        if self._record.status is ExecutionStatus.COMPLETED:
            because = "Nothing is recorded of it."
        elif self._is_over:
            because = f"It was not reached: {end_in_words(self._record)}{self._of_them('; it depends on', lost)}."
        elif step_id in self._final:
            because = f"It runs when the execution ends{self._of_them(', after', planned.depends_on)}."
        elif open_names:
            because = f"It waits{self._of_them(' for', open_names)}."
        else:
            because = "Nothing is recorded of it yet, and it has nothing to wait for."
        return StepExplanation(step_id, "not_reached", because, StepStatus.PENDING, values)

    def _not_begun(self, step_id: str) -> StepExplanation:
        """Of a step that a handoff has added, and whose turn has not come."""
        begun, values = self._beginning(step_id)
        end = end_in_words(self._record) if self._is_over else "nothing is recorded of it yet"
        return StepExplanation(step_id, "not_reached", _sentence([begun, end]), StepStatus.PENDING, values)

    def _of_them(self, before: str, names: list[str]) -> str:
        shown = [f"{name} ({status_in_words(self._status(name))})" for name in names]
        return f"{before} {listed(shown)}" if names else ""

    def _escalations(self, step_id: str) -> list[Event]:
        return [event for event in self._taken.get(step_id, []) if _is_escalation(event)]

    def _status(self, step_id: str) -> StepStatus:
        history = self._histories.get(step_id)
        return StepStatus.PENDING if history is None else history.status

    @property
    def _is_over(self) -> bool:
        return self._record.status.is_terminal


def _skipped(history: StepHistory) -> StepExplanation:
    last = history.last
    told = [event for event in history.events if event.type == "step.skipped"]
    values = _values(told[-1]) if told else {}
    reason = told[-1].data.get("reason") if told else None
    if last is not None and last.reason == "operator":
        by = str(reason) if str(reason).startswith("skipped by ") else "skipped by an operator"
        clauses = [f"It was {line(by)}", *call_clauses(history, None), *gate_clauses(history.events)]
        gate = last_gate(history.events) or {}
        return StepExplanation(history.step_id, "skipped", _sentence(clauses), StepStatus.SKIPPED, values | gate)
    because = f"It was skipped: {line(reason)}{with_values(values)}" if reason else "It was skipped"
    return StepExplanation(history.step_id, "skipped", _sentence([because]), StepStatus.SKIPPED, values)


def _handoffs(record: ExecutionRecord, records: list[StepRecord]) -> list[Event]:
    every = (*record.events, *(event for step in records for event in step.events))
    events = {event.id: event for event in every if event.type.startswith("handoff.")}
    return [events[event_id] for event_id in sorted(events)]


def _is_escalation(event: Event) -> bool:
    return event.data.get("source_step") == event.data.get("target_step")


def _id(event: Event) -> str:
    return str(event.data.get("handoff_id"))


def _values(event: Event) -> JsonObject:
    values = event.data.get("values")
    return dict(values) if isinstance(values, dict) else {}


def _verb(status: StepStatus) -> str:
    match status:
        case StepStatus.COMPLETED:
            return "It ran"
        case StepStatus.WAITING:
            return "It waits; it began"
        case StepStatus.RETRYING:
            return "It is called again after a failure; it began"
        case _:
            return "It is running; it began"


def _sentence(clauses: list[str]) -> str:
    return f"{'; '.join(clause for clause in clauses if clause).rstrip('.')}."
