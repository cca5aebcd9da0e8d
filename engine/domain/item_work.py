"""How a step that is run over a list begins its items, and what their ends mean for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus
from engine.domain.foreach import ItemsError, collect_input, collected, count_items
from engine.domain.step_state import StepState, Unit

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.actions import Action
    from engine.domain.plan import PlanStep
    from engine.domain.progress import ExecutionProgress

__all__ = ["ItemWork"]

DEFAULT_CONCURRENCY: Final = 100
"""Of a ``foreach`` that names none: with 500 calls of a run pending a server takes twice as long for the same work."""


class ItemWork:
    """The items of all steps of a run that have a ``foreach``."""

    def __init__(self, progress: ExecutionProgress) -> None:
        self._progress = progress

    def open(self, step: PlanStep, state: StepState, now: datetime) -> Action | None:
        """Begin a step: count its items and begin the first."""
        progress = self._progress
        state.n += 1
        state.run_id = progress.facts.run_id
        state.status = StepStatus.RUNNING
        state.started_at = now
        try:
            state.items = count_items(step, progress.values)
        except ItemsError as error:
            progress.work.fail_input(Unit(step, state), str(error), None, now)
            progress.end_when_idle()
            return None
        if state.items.count == 0:
            self._end(step, state, now)
            return None
        return self.begin_next(step, state, now)

    def begin_next(self, step: PlanStep, state: StepState, now: datetime) -> Action | None:
        """Begin one more item, if there is one and it may."""
        items, foreach = state.items, step.foreach
        if items is None or foreach is None or not items.has_more or not state.is_open:
            return None
        if len(items.open) >= (foreach.max_concurrency or DEFAULT_CONCURRENCY):
            return None
        item = items.take_next()
        unit = Unit(step, StepState(n=items.calls.get(item, 0)), item)
        items.open[item] = unit.state
        if items.has_more:
            self._progress.frontier_of(step).push(step.id)
        return self._progress.begin(unit, now)

    def ended(self, unit: Unit, now: datetime) -> None:
        """An item is over, however it ended."""
        progress = self._progress
        state = progress.steps[unit.step_id]
        items, item = state.items, unit.item
        if items is None or item is None:
            return
        del items.open[item]
        if unit.state.n > 1:
            items.calls[item] = unit.state.n
        state.attempts += unit.state.attempts
        if unit.state.status is StepStatus.COMPLETED and unit.state.output is not None:
            items.outputs[item] = unit.state.output
        elif unit.state.status is StepStatus.FAILED:
            items.failed[item] = unit.state.n
            if len(items.failed) > items.tolerated and items.error is None:
                items.error = unit.state.error
        whole = Unit(unit.step, state)
        items.was_cancelled = items.was_cancelled or unit.state.status is StepStatus.CANCELLED
        is_stopped = (items.has_more or items.was_cancelled) and not progress.may_go_on(whole)
        if items.open:
            if items.has_more:
                progress.frontier_of(unit.step).push(unit.step_id)
        elif is_stopped and items.error is None:
            progress.work.cancel(whole, None, now)
        elif is_stopped or items.is_over:
            self._end(unit.step, state, now)
        else:
            progress.frontier_of(unit.step).push(unit.step_id)

    def _end(self, step: PlanStep, state: StepState, now: datetime) -> None:
        progress, items = self._progress, state.items
        unit = Unit(step, state)
        if items is None:
            return
        if items.error is not None:
            progress.work.fail_items(unit, items.error, now)
            return
        if items.failed:
            count = len(items.failed)
            text = f"{count} of {items.count} items of step {step.id} failed; they give null"
            progress.warn("items_failed", text, step)
        output = collected(items)
        if output is not None:
            progress.work.complete_value(unit, output, now)
            return
        request = progress.work.compute_input(unit, now).model_copy(update={"collect": collect_input(items)})
        progress.due.append(progress.work.collect(unit, request))
