"""A run's decisions about which steps run, kept as far as inputs and events need them later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.decisions import Admission, TooLargeToDecideError, admit, handed_path
from engine.domain.execution import Event, StepRecord, StepStatus, micros
from engine.domain.expressions import Missing
from engine.domain.ids import call_address
from engine.domain.operands import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engine.domain.call_records import RunFacts
    from engine.domain.json import JsonObject
    from engine.domain.plan import PlanStep
    from engine.domain.plan_values import PlanValues
    from engine.domain.step_state import StepState

__all__ = ["Admissions", "TooLargeToDecideError", "handoff_event"]

MAX_TOLD_HANDOFFS: Final = 200
"""As many of the handoffs to one step are told of; a step that more lead to says how many are left out."""


class Admissions:
    """Decides about steps whose dependencies have settled.

    Args:
        facts: of the run.
        states: the steps.
        values: what conditions read.

    Attributes:
        must_join: whether a step was skipped, or failed without ending the execution; only then a join can refuse.
        taken: how many handoffs were, of all kinds.
        refused: how many were not.
    """

    def __init__(self, facts: RunFacts, states: Mapping[str, StepState], values: PlanValues) -> None:
        self.must_join = False
        self.taken = 0
        self.refused = 0
        self._facts = facts
        self._states = states
        self._values = values
        self._with_handoffs: dict[str, Admission] = {}
        self._events: dict[str, list[Event]] = {}

    def decide(self, step: PlanStep) -> Admission:
        """Decide whether a step is run.

        Raises:
            TooLargeToDecideError: a condition reads a value that is not in memory.
        """
        if step.when is None and not step.edges and not self.must_join:
            return _ADMITTED
        admission = admit(step, self._states, self._values)
        if admission.handoffs:
            self._with_handoffs[step.id] = admission
        return admission

    def count(self, taken: list[bool]) -> None:
        """Count handoffs that were decided."""
        self.taken += sum(taken)
        self.refused += len(taken) - sum(taken)

    @property
    def counts(self) -> dict[str, int]:
        """The counts by the names of the record's fields; nothing when there are none."""
        counts = {"handoffs_taken": self.taken, "handoffs_refused": self.refused}
        return counts if any(counts.values()) else {}

    def readmit(self, steps: list[PlanStep]) -> None:
        """Decide again about steps that an earlier run has admitted: their later calls want what was handed over."""
        for step in steps:
            if not step.edges:
                continue
            try:
                self.decide(step)
            except TooLargeToDecideError:
                # It was in the earlier run's memory, and is in a record now: what it would add is not there.
                continue

    def inputs(self, step: PlanStep) -> JsonObject:
        """Return the inputs that taken handoffs add, as a mapping: those of their keys that were handed over."""
        admission = self._with_handoffs.get(step.id)
        added: JsonObject = {}
        for edge in () if admission is None else admission.mappings:
            for key, target in edge.data_mapping.items():
                path = handed_path(edge.source_step, (key,))
                located = self._values.locate(path)
                try:
                    is_there = not isinstance(located, Missing) and not isinstance(located.read(), Missing)
                except Unavailable:
                    # Only the activity can tell whether a large reply has the key.
                    added.setdefault(target, f"${{{path.text} ?? null}}")
                    continue
                if is_there:
                    added.setdefault(target, f"${{{path.text}}}")
        return added

    def handed_by(self, step: PlanStep) -> list[str]:
        """Return the agents whose handoffs to a step were taken."""
        admission = self._with_handoffs.get(step.id)
        return [] if admission is None else [edge.source_agent_id for edge in admission.mappings]

    def events(self, step: PlanStep, now: datetime) -> list[Event]:
        """Return a line for each handoff that was taken or refused before the step's first call.

        They are of the instant at which they were first asked for, so that the call's record and that of its failure
        tell of the same events.
        """
        if step.id not in self._with_handoffs:
            return []
        if step.id not in self._events:
            self._events[step.id] = self._handoff_events(step, self._with_handoffs[step.id], now)
        return self._events[step.id]

    def _handoff_events(self, step: PlanStep, admission: Admission, now: datetime) -> list[Event]:
        told = [
            handoff_event(
                now,
                f"{call_address(step.id, None, 1)}:{index:03d}:{decision.edge.handoff_id}",
                step.id,
                is_taken=decision.is_taken,
                handoff_id=decision.edge.handoff_id,
                source_step=decision.edge.source_step,
                source_agent_id=decision.edge.source_agent_id,
                target_agent_id=decision.edge.target_agent_id,
                reason=decision.reason,
                values=decision.values,
            )
            for index, decision in enumerate(admission.handoffs[:MAX_TOLD_HANDOFFS])
        ]
        left_out = len(admission.handoffs) - len(told)
        if left_out:
            last = told[-1]
            reason = f"{last.data['reason']} (and {left_out} more handoffs to this step, not listed)"
            told[-1] = last.model_copy(update={"data": {**last.data, "reason": reason}})
        return told

    def skipped_record(self, step: PlanStep, admission: Admission, now: datetime) -> StepRecord:
        """Return the record of a step that is not run, with what that rested on."""
        n = self._states[step.id].n
        skipped = Event.at_instant(
            "step.skipped",
            now,
            call_address(step.id, None, n),
            step.id,
            because=admission.refused_by,
            reason=admission.reason,
            values=admission.values,
        )
        return StepRecord(
            execution_id=self._facts.execution_id,
            run_id=self._facts.run_id,
            step_id=step.id,
            n=n,
            token=micros(now),
            status=StepStatus.SKIPPED,
            kind=step.type,
            agent_id=step.agents[0] if step.agents else None,
            reason=admission.refused_by,
            completed_at=now,
            events=[*self.events(step, now), skipped],
        )


def handoff_event(
    at: datetime, address: str, target_step: str, *, is_taken: bool, values: JsonObject, **facts: str
) -> Event:
    """Return the line that tells of a decided handoff; ``facts`` are its other data."""
    return Event.at_instant(
        "handoff.taken" if is_taken else "handoff.refused",
        at,
        address,
        target_step,
        target_step=target_step,
        values=values,
        **facts,
    )


_ADMITTED = Admission()
