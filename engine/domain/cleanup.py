"""What is done after the end of an execution is decided: completed steps are undone, and ``finally`` is run."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.domain.frontier import Frontier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.execution import ErrorPayload
    from engine.domain.plan import ExecutionPlan, PlanStep
    from engine.domain.step_state import StepState

__all__ = ["CLEANUP_TIMER", "Cleanup"]

CLEANUP_TIMER: Final = "execution:cleanup"


class Cleanup:
    """The rest of a run once its end is decided.

    Args:
        plan: of the run.
        states: of all steps.
        undo: compensations, the first to run first.
        started_at: when clean-up began.

    Attributes:
        undoing: the compensation that is at work.
        failed: the error of the first ``finally`` step that failed.
        is_timed_out: whether its time is over.
        has_told: whether its timer was opened.
    """

    def __init__(
        self, plan: ExecutionPlan, states: Mapping[str, StepState], undo: list[PlanStep], started_at: datetime
    ) -> None:
        self.started_at = started_at
        self.deadline_at = started_at + plan.cleanup_timeout
        self.undo = deque(undo)
        self.undoing: PlanStep | None = None
        self.frontier = Frontier(plan.final_steps, states)
        self.failed: ErrorPayload | None = None
        self.is_timed_out = False
        self.has_told = False

    @property
    def may_begin(self) -> bool:
        """Whether another call could begin."""
        if self.is_timed_out or self.undoing is not None:
            return False
        return bool(self.undo) or (self.failed is None and self.frontier.has_ready)

    @property
    def has_more(self) -> bool:
        """Whether anything is left to be done."""
        if self.is_timed_out:
            return False
        return bool(self.undo) or self.undoing is not None or (self.failed is None and self.frontier.unsettled > 0)
