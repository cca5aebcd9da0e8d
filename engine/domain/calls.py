"""From a unit of work to what the workflow is asked to schedule for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.actions import InvokeAgent
from engine.domain.expressions import Template, compile_template
from engine.domain.ids import call_address
from engine.domain.json import JsonObject, JsonValue
from engine.domain.messages import AgentCallInput, CallInput, RecallInput, RetryDelays
from engine.domain.operands import call_input, call_input_with_context, locate_operands
from engine.domain.plan_values import PlanValues, UnitValues

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.call_records import RunFacts
    from engine.domain.execution import Event, StepRecord
    from engine.domain.messages import ClosingCall
    from engine.domain.operands import ValueSource
    from engine.domain.plan import ExecutionPlan, PlanStep
    from engine.domain.step_state import Unit

__all__ = ["Calls"]

_LOST: Final = " (again after a lost worker)"


class Calls:
    """Makes the calls of a run.

    Args:
        facts: of the run.
        plan: that it runs.
        values: what mappings read.
    """

    def __init__(self, facts: RunFacts, plan: ExecutionPlan, values: PlanValues) -> None:
        self._facts = facts
        self._plan = plan
        self._values = values
        self._recalls = plan.recalls
        self._templates: dict[str, tuple[Template, Template | None]] = {}

    def values_of(self, unit: Unit) -> ValueSource:
        """What a unit's mappings and conditions read."""
        is_escalated = 0 < len(unit.step.agents) <= unit.state.choice
        if unit.item is None and unit.step.repeat is None and not is_escalated:
            return self._values
        return UnitValues(self._values, unit)

    def agent_input(
        self, unit: Unit, handed: JsonObject, now: datetime, *, events: list[Event], deadline_at: datetime | None
    ) -> AgentCallInput:
        """Make the input of an agent's activity.

        Args:
            unit: what is called for; its state names the agent and the call's number.
            handed: what taken handoffs add to the step's mapping.
            now: the run's time.
            events: what was decided before the step was dispatched.
            deadline_at: when all that the call is a part of must be over.

        Raises:
            MissingPathError: a mapping reads what is not there.
        """
        step, state, facts = unit.step, unit.state, self._facts
        values = self.values_of(unit)
        input_template, output_template = self._templates_of(step)
        mapping = step.input_mapping
        if handed and isinstance(mapping, dict):
            mapping = {**handed, **mapping}
            input_template = compile_template(mapping)
        foreign = () if output_template is None else output_template.paths
        resolved = call_input_with_context(input_template, mapping, values)
        recall = self._recall(step, values)
        operands = locate_operands(tuple(path for path in foreign if path.root != "output"), values)
        agent_id = state.agent_id or ""
        # What is left out takes no room in history.
        more = {
            "output_mapping": step.output_mapping,
            "output_operands": operands,
            "declared": step.declared,
            "non_retryable": step.retry.non_retryable,
            "deadline_at": deadline_at,
            "prior_attempts": state.attempts,
            "fallback_from": step.agents[state.choice - 1] if 0 < state.choice < len(step.agents) else None,
            "trace": facts.trace,
            "tags": facts.tags,
            "iteration": state.iteration if state.iteration > 1 else None,
            "events": events,
            "handed": step.handed,
            "delays": _delays(step) if step.retry.jitter else None,
            "output_schema": step.output_schema,
            "reply_keys": step.reply_keys,
            "recall": recall,
            "remember_now": self._recalls,
        }
        given: dict[str, object] = {
            "execution_id": facts.execution_id,
            "definition_id": self._plan.definition_id,
            "version": self._plan.version,
            "step_id": step.id,
            "step_name": step.name,
            "n": state.n,
            "agent": self._plan.agents[agent_id],
            "input": resolved,
            "maximum_attempts": step.retry.maximum_attempts,
            "run_started_at": facts.owned_since(now),
            "execution_started_at": facts.started_at,
            **{name: value for name, value in more.items() if value},
        }
        if unit.item is not None:
            given["item"] = unit.item
        return AgentCallInput.model_validate(given)

    def invoke(
        self,
        unit: Unit,
        call: AgentCallInput,
        decided: list[StepRecord],
        closing: ClosingCall | None,
        maximum_attempts: int,
    ) -> InvokeAgent:
        """Make the action for a call; ``decided`` are records that travel with it."""
        step, state = unit.step, unit.state
        if decided or closing is not None:
            call = call.model_copy(update={"decided": decided, "closing": closing})
        address = call_address(step.id, unit.item, call.n)
        summary = step.name if unit.item is None else f"{step.name} [{unit.item}]"
        if state.choice >= len(step.agents):
            summary += f" (escalated to {state.agent_id})"
        elif state.choice:
            summary += f" (fallback {state.choice} of {len(step.agents) - 1})"
        if state.iteration > 1:
            summary += f" (turn {state.iteration})"
        if call.n > 1 and state.iteration == 1 and not state.choice:
            summary += f" (call {call.n})"
        if call.resumed:
            summary += _LOST
        return InvokeAgent(
            address=address,
            activity_id=f"{address}.{state.resumes}" if state.resumes else address,
            summary=summary,
            step=step,
            maximum_attempts=maximum_attempts,
            call=call,
        )

    def resolve(self, unit: Unit, mapping: JsonValue) -> CallInput:
        """Resolve a unit's mapping, or name its operands.

        Raises:
            MissingPathError: it reads what is not there.
        """
        return call_input(compile_template(mapping), mapping, self.values_of(unit))

    def _recall(self, step: PlanStep, values: ValueSource) -> RecallInput | None:
        if step.recall is None:
            return None
        query = step.recall.recall
        return RecallInput(
            query=call_input(compile_template(query), query, values),
            top_k=step.recall.top_k,
            scope=step.recall.scope,
        )

    def _templates_of(self, step: PlanStep) -> tuple[Template, Template | None]:
        templates = self._templates.get(step.id)
        if templates is None:
            output = None if step.output_mapping is None else compile_template(step.output_mapping)
            templates = self._templates[step.id] = (compile_template(step.input_mapping), output)
        return templates


def _delays(step: PlanStep) -> RetryDelays:
    return RetryDelays(
        initial_interval=step.retry.initial_interval,
        backoff_coefficient=step.retry.backoff_coefficient,
        maximum_interval=step.retry.maximum_interval,
    )
