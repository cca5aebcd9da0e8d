"""Steps that execute another workflow: their input, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.actions import CallFailure, StartChild
from engine.domain.execution import Value
from engine.domain.expressions import MissingPathError, compile_template
from engine.domain.operands import Located, call_input, missing_path
from engine.errors import ErrorCode

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.actions import Action
    from engine.domain.expressions import Missing, Path
    from engine.domain.json import JsonValue
    from engine.domain.messages import ChildResult
    from engine.domain.operands import ValueSource
    from engine.domain.step_state import Unit
    from engine.domain.unit_work import UnitWork

__all__ = ["Children"]

MAX_CHILD_DEPTH: Final = 10


class Children:
    """Begins and ends the child executions of a run's units."""

    def __init__(self, work: UnitWork) -> None:
        self._work = work

    def start(self, unit: Unit, now: datetime) -> Action | None:
        """Resolve a child's input and begin it; a large input is made by an activity first."""
        work = self._work
        step = unit.step
        if work.facts.depth >= MAX_CHILD_DEPTH:
            message = f"Executions are children of each other {MAX_CHILD_DEPTH} deep; does a workflow execute itself?"
            work.fail(unit, CallFailure("child", ErrorCode.LIMIT_EXCEEDED, message, 0), now)
            return None
        given = work.calls.resolve(unit, step.input_mapping)
        if given.operands is not None:
            request = work.compute_input(unit, now, given).model_copy(update={"is_child_input": True})
            return work.compute(unit, request, f"{unit.name}: input")
        return self.begin(unit, Value.of(given.inline), now)

    def begin(self, unit: Unit, given: Value, now: datetime) -> StartChild | None:
        """Begin a child whose input is there."""
        work = self._work
        if given.ref is None and not isinstance(given.inline, dict):
            work.fail_input(unit, f"The input of step {unit.step_id} is no object, as an execution needs", None, now)
            return None
        address = work.address(unit)
        work.running[address] = unit
        if not unit.item:
            begun = work.records.of_waiting(unit, now, work.events_before(unit, now))
            work.waiting.append(begun.model_copy(update={"child_execution_id": self.child_id(unit)}))
        return StartChild(
            address=address,
            child_id=self.child_id(unit),
            summary=unit.name,
            step=unit.step,
            input=given,
            budget=work.budget.left(work.usage, work.agent_calls, now),
        )

    def child_id(self, unit: Unit) -> str:
        """The execution id of the unit's child."""
        work = self._work
        return f"{work.facts.execution_id}/{work.address(unit)}"

    def ended(self, address: str, result: ChildResult | CallFailure, now: datetime) -> Action | None:
        """A child execution has ended; return the call that makes its mapped output, when that is large."""
        work = self._work
        unit = work.running.pop(address)
        unit.state.attempts += 1
        work.usage += result.usage
        if isinstance(result, CallFailure):
            work.budget.calls += result.attempts
            work.end_failed(unit, result, now)
            return None
        work.budget.calls += result.calls
        mapping = unit.step.output_mapping
        unit.state.handed = result.output
        if mapping is None:
            work.complete_value(unit, result.output, now, child=self.child_id(unit))
            return None
        try:
            source = _ReplySource(work.calls.values_of(unit), result.output)
            mapped = call_input(compile_template(mapping), mapping, source)
        except MissingPathError as error:
            message = missing_path(f"The output mapping of step {unit.step_id}", error)
            work.fail(unit, CallFailure("child", "invalid_output", message, 0), now)
            return None
        if mapped.operands is None:
            unit.state.handed = _overlaid(result.output, mapped.inline)
            work.complete_value(unit, Value.of(mapped.inline), now, child=self.child_id(unit))
            return None
        return work.compute(unit, work.compute_input(unit, now, mapped), f"{unit.name}: output")


def _overlaid(reply: Value, mapped: JsonValue) -> Value:
    """What is handed over: the child's output, overlaid by the mapped one."""
    whole = reply.inline if isinstance(reply.inline, dict) else {}
    return Value.of({**whole, **(mapped if isinstance(mapped, dict) else {})})


class _ReplySource:
    """A unit's values, with ``output`` as what its child returned."""

    def __init__(self, values: ValueSource, output: Value) -> None:
        self._values = values
        self._output = output

    def locate(self, path: Path) -> Located | Missing:
        if path.root == "output":
            return Located(self._output, path.segments, "output", None)
        return self._values.locate(path)
