"""What is done after the end of an execution is decided: completed steps are undone, and ``finally`` is run."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.domain.actions import Ending
from engine.domain.execution import ExecutionStatus, StepStatus
from engine.domain.frontier import Frontier

if TYPE_CHECKING:
    from engine.domain.execution import ErrorPayload
    from engine.domain.plan import PlanStep
    from engine.domain.progress import ExecutionProgress
    from engine.domain.step_state import Unit

__all__ = ["CLEANUP_TIMER", "Cleanup", "steps_to_undo"]

CLEANUP_TIMER: Final = "execution:cleanup"


def steps_to_undo(progress: ExecutionProgress) -> list[PlanStep]:
    """Return the compensations of completed steps, the last completed first; none when the execution completed.

    What a rerun has reused stays as it is: another execution did it.
    """
    ending = progress.ending
    if ending is None or ending.status is ExecutionStatus.COMPLETED:
        return []
    found: list[PlanStep] = []
    for step_id in reversed(progress.main.settled_order):
        compensation = progress.plan_steps[step_id].compensation
        state = progress.steps[step_id]
        if compensation is not None and state.status is StepStatus.COMPLETED and not state.is_reused:
            found.append(compensation)
    return found


class Cleanup:
    """The rest of a run once its end is decided.

    Args:
        progress: of the run.
        undo: compensations, the first to run first.
        started_at: when clean-up began.

    Attributes:
        undoing: the compensation that is at work.
        failed: the error of the first ``finally`` step that failed.
    """

    def __init__(self, progress: ExecutionProgress, undo: list[PlanStep], started_at: datetime) -> None:
        self.started_at = started_at
        self.deadline_at = started_at + progress.plan.cleanup_timeout
        self.undo = deque(undo)
        self.undoing: PlanStep | None = None
        self.frontier = Frontier(progress.plan.final_steps, progress.steps)
        self.failed: ErrorPayload | None = None
        self.is_timed_out = False
        self._progress = progress
        self._final_ids = {step.id for step in progress.plan.final_steps}
        self._has_ended = False

    @property
    def may_begin(self) -> bool:
        """Whether another call could begin."""
        if self.is_timed_out or self.undoing is not None:
            return False
        return bool(self.undo) or self.frontier.has_ready

    @property
    def has_more(self) -> bool:
        """Whether anything is left to be done."""
        if self.is_timed_out:
            return False
        has_steps = self.frontier.has_ready if self.failed else self.frontier.unsettled > 0
        return bool(self.undo) or self.undoing is not None or has_steps

    def owns(self, unit: Unit) -> bool:
        """Whether a unit is a part of clean-up."""
        return unit.step is self.undoing or unit.step_id in self._final_ids

    def complete(self, unit: Unit) -> bool:
        """Take the end of a compensation; return whether the unit was one."""
        if unit.step is not self.undoing:
            return False
        self.undoing = None
        return True

    def fail(self, unit: Unit, now: datetime) -> None:
        """A compensation or a ``finally`` step has failed for good."""
        progress, step, error = self._progress, unit.step, unit.state.error
        if error is None:
            return
        if self.complete(unit):
            progress.warn("compensation_failed", f"Step {step.id} failed: {error.message}", step)
            return
        if step.on_error == "continue":
            unit.state.is_continued = True
            progress.warn("step_failed", f"Step {step.id} failed, and the execution went on: {error.message}", step)
        elif self.failed is None:
            self.failed = error.model_copy(update={"message": f"Step {step.id} failed: {error.message}"})
            self.frontier.close()
        progress.settle(step, now)

    def time_out(self, now: datetime) -> None:
        """Its time is over: what runs is cancelled, and the rest is left."""
        progress = self._progress
        if not self.has_more and not progress.work.running:
            return
        self.is_timed_out = True
        seconds = progress.plan.cleanup_timeout.total_seconds()
        progress.warn("cleanup_timeout", f"Clean-up did not end within {seconds:g} s; what was left is not done", None)
        progress.work.cancelled.extend(progress.work.running)
        progress.close_waiting(now)

    def end(self) -> None:
        """Everything is done: a ``finally`` step that failed turns a completed execution into a failed one."""
        progress, ending = self._progress, self._progress.ending
        if self._has_ended or ending is None:
            return
        self._has_ended = True
        progress.work.cancelled.append(CLEANUP_TIMER)
        if self.failed is None:
            return
        if ending.status is ExecutionStatus.COMPLETED:
            progress.ending = Ending(ExecutionStatus.FAILED, self.failed)
        else:
            progress.warn("finally_failed", self.failed.message, None)
