"""Handoffs that lead out of the graph: those that add a step to the run, and those that take over a failing one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.admissions import handoff_event
from engine.domain.decisions import HandoffScope, events_of, fire, fire_escalation, handed_path
from engine.domain.expressions import Missing
from engine.domain.ids import call_address
from engine.domain.operands import OperandScope, Unavailable
from engine.domain.plan import PlanStep
from engine.domain.plan_values import UnitValues

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.actions import CallFailure
    from engine.domain.execution import Event
    from engine.domain.handoff import Handoff
    from engine.domain.json import JsonValue
    from engine.domain.plan import ExecutionPlan
    from engine.domain.plan_values import PlanValues
    from engine.domain.step_state import StepState, Unit

__all__ = ["Following", "next_agent"]

MAX_ID_CHARS: Final = 200
MAX_TOLD_REFUSALS: Final = 3
SOURCE_OUTPUT: Final = "source_output"


class Following:
    """Decides which steps handoffs add (``follow``).

    Attributes:
        added: the steps so far, in the order in which they may begin.
        queued: step id to those that begin one after another once it is over.
        refused: step id to the first of its handoffs that this run has not followed, in words.
    """

    def __init__(self, plan: ExecutionPlan, values: PlanValues) -> None:
        self.added: list[PlanStep] = []
        self.queued: dict[str, list[PlanStep]] = {}
        self.refused: dict[str, list[str]] = {}
        self._plan = plan
        self._values = values

    def decide(self, step: PlanStep, state: StepState, now: datetime) -> tuple[list[PlanStep], list[Event]]:
        """Decide about the handoffs from a step that has ended; return the steps that begin now, and all lines.

        Raises:
            TooLargeToDecideError: a condition reads a value that is not in memory.
        """
        parallel: list[PlanStep] = []
        in_turn: list[PlanStep] = []
        told: list[Event] = []
        known = {other.id for other in self.added} | {other.id for ones in self.queued.values() for other in ones}
        ended = f"step {step.id} ended as {state.status}"
        scope = HandoffScope(self._values, step.id)
        for index, handoff in enumerate(step.follows):
            firing = fire(handoff.trigger_conditions, events_of(state), ended, scope)
            target = f"{step.id}>{handoff.target_agent_id}"
            refusal = self._refusal(step, handoff, target, known) if firing.has_fired else firing.reason
            if refusal is None:
                known.add(target)
                chosen = parallel if handoff.handoff_type == "parallel" else in_turn
                chosen.append(self._step(step, handoff, target))
            elif len(words := self.refused.setdefault(step.id, [])) < MAX_TOLD_REFUSALS:
                words.append(f"not to {handoff.target_agent_id}: {refusal}")
            told.append(
                handoff_event(
                    now,
                    f"{call_address(step.id, None, state.n)}>{index:03d}:{handoff.handoff_id}",
                    target,
                    is_taken=refusal is None,
                    values=firing.values,
                    handoff_id=handoff.handoff_id,
                    source_step=step.id,
                    source_agent_id=handoff.source_agent_id,
                    target_agent_id=handoff.target_agent_id,
                    reason=refusal or firing.reason,
                )
            )
        if len(in_turn) > 1:
            self.queued[in_turn[0].id] = in_turn[1:]
        begun = [*parallel, *in_turn[:1]]
        self.added += begun
        return begun, told

    def next_after(self, step_id: str) -> PlanStep | None:
        """Return the step that begins because another one is over."""
        waiting = self.queued.pop(step_id, None)
        if not waiting:
            return None
        following = waiting[0]
        if len(waiting) > 1:
            self.queued[following.id] = waiting[1:]
        self.added.append(following)
        return following

    def _refusal(self, step: PlanStep, handoff: Handoff, target: str, known: set[str]) -> str | None:
        if step.foreach is not None:
            return "a foreach step hands nothing over"
        first, *chain = step.id.split(">")
        if handoff.target_agent_id in {*chain, handoff.source_agent_id, *self._first_agent(first)}:
            return f"{handoff.target_agent_id} is already in this chain of handoffs"
        if target in known:
            return f"another handoff has added {target}"
        if len(known) >= self._plan.max_handoffs:
            return f"the limit of max_handoffs ({self._plan.max_handoffs}) is reached"
        if len(target) > MAX_ID_CHARS:
            return "the chain of handoffs is too long for an id"
        return None

    def _first_agent(self, step_id: str) -> list[str]:
        return [step.agents[0] for step in self._plan.steps if step.id == step_id and step.agents]

    def _step(self, source: PlanStep, handoff: Handoff, target: str) -> PlanStep:
        defaults = self._plan.defaults
        if defaults is None:
            raise ValueError("The plan follows handoffs and has no defaults")
        mapping: JsonValue = self._mapping(source.id, handoff)
        follows = [other for other in self._plan.handoffs if other.source_agent_id == handoff.target_agent_id]
        return PlanStep(
            id=target,
            name=f"{source.name} > {handoff.target_agent_id}",
            agents=[handoff.target_agent_id],
            input_mapping=mapping,
            output_mapping=None,
            depends_on=[],
            timeout=defaults.timeout,
            total_timeout=defaults.total_timeout,
            retry=defaults.retry,
            follows=follows,
            escalations=[one for one in self._plan.escalations if one.source_agent_id == handoff.target_agent_id],
            handed=[SOURCE_OUTPUT] if follows else [],
            declared=[],
        )

    def _mapping(self, source_step: str, handoff: Handoff) -> JsonValue:
        """The template of a followed step's input: the keys that were handed over, or all of it."""
        scope = OperandScope(self._values)
        if not handoff.data_mapping:
            return self._whole(source_step, scope)
        mapping: dict[str, JsonValue] = {}
        for key, target in handoff.data_mapping.items():
            path = handed_path(source_step, (key,))
            try:
                found = scope.lookup(path)
            except Unavailable:
                mapping[target] = f"${{{path.text} ?? null}}"
                continue
            if not isinstance(found, Missing):
                mapping[target] = f"${{{path.text}}}"
        return mapping

    def _whole(self, source_step: str, scope: OperandScope) -> JsonValue:
        """All of what was handed over, key by key, so that more can be added; as one when it is large."""
        path = handed_path(source_step, ())
        try:
            found = scope.lookup(path)
        except Unavailable:
            found = None
        if not isinstance(found, dict):
            return f"${{{path.text}}}"
        return {key: f"${{{handed_path(source_step, (key,)).text}}}" for key in found}


def next_agent(unit: Unit, failure: CallFailure, values: PlanValues, now: datetime) -> tuple[int | None, list[Event]]:
    """Find who is called when a call has failed for good; ``unit.state.error`` is its error.

    Return the index of the agent: into the step's agents, and past them into its escalations. None: nobody. The lines
    tell of the escalations that were looked at.

    Raises:
        TooLargeToDecideError: a condition reads a value that is not in memory.
    """
    step, state = unit.step, unit.state
    told: list[Event] = []
    if failure.kind in ("input", "store", "child", "cancelled"):
        return None, told
    agents = len(step.agents)
    for index in range(state.choice + 1, agents):
        reasons = step.fallback_reasons[index - 1] if index <= len(step.fallback_reasons) else []
        if not reasons or failure.reason in reasons:
            return index, told
    if failure.kind not in ("agent", "timeout"):
        return None, told
    happened = ("failure", "timeout") if failure.reason == "timeout" else ("failure",)
    scope = OperandScope(UnitValues(values, unit))
    for index in range(max(state.choice + 1 - agents, 0), len(step.escalations)):
        if index in state.escalated:
            continue
        handoff = step.escalations[index]
        firing = fire_escalation(handoff.trigger_conditions, happened, f"the call failed ({failure.reason})", scope)
        told.append(
            handoff_event(
                now,
                f"{call_address(step.id, unit.item, state.n)}!{index:03d}:{handoff.handoff_id}",
                step.id,
                is_taken=firing.has_fired,
                values=firing.values,
                handoff_id=handoff.handoff_id,
                source_step=step.id,
                source_agent_id=handoff.source_agent_id,
                target_agent_id=handoff.target_agent_id,
                reason=firing.reason,
            )
        )
        if firing.has_fired:
            state.escalated.add(index)
            return agents + index, told
    return None, told
