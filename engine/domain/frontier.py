"""Which steps of a graph could begin: those whose dependencies have all settled, in definition order."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.domain.plan import PlanStep
    from engine.domain.step_state import StepState

__all__ = ["Frontier"]


class Frontier:
    """A graph of steps on its way.

    Args:
        steps: of the graph; they depend on each other alone.
        states: of these steps at least.

    Attributes:
        unsettled: how many steps are not over.
        settled_order: the ids of those that are, in order.
    """

    def __init__(self, steps: Sequence[PlanStep], states: Mapping[str, StepState]) -> None:
        self.unsettled = len(steps)
        self.settled_order: list[str] = []
        self._steps = list(steps)
        self._states = states
        self._order = {step.id: index for index, step in enumerate(steps)}
        self._dependants: dict[str, list[str]] = {step.id: [] for step in steps}
        self._ready: list[int] = []
        self._pushed: set[int] = set()
        self._is_closed = False
        for step in steps:
            states[step.id].waiting_for = len(step.depends_on)
            for dependency in step.depends_on:
                self._dependants[dependency].append(step.id)
            if not step.depends_on:
                heapq.heappush(self._ready, self._order[step.id])

    @property
    def has_ready(self) -> bool:
        """Whether a step could begin, or go on with its items."""
        return bool(self._ready)

    def pop(self) -> PlanStep:
        """Take the first step that could begin."""
        index = heapq.heappop(self._ready)
        self._pushed.discard(index)
        return self._steps[index]

    def push(self, step_id: str) -> None:
        """Put a step back that has something left to begin."""
        index = self._order[step_id]
        if index not in self._pushed:
            self._pushed.add(index)
            heapq.heappush(self._ready, index)

    def add(self, step: PlanStep) -> None:
        """Add a step that depends on none."""
        self._order[step.id] = len(self._steps)
        self._dependants[step.id] = []
        self._steps.append(step)
        self.unsettled += 1
        heapq.heappush(self._ready, self._order[step.id])

    def settle(self, step_id: str) -> None:
        """A step is over; what waited for it alone could begin."""
        self.unsettled -= 1
        self.settled_order.append(step_id)
        for dependant in self._dependants[step_id]:
            waiting = self._states[dependant]
            waiting.waiting_for -= 1
            if waiting.waiting_for == 0 and waiting.status is StepStatus.PENDING and not self._is_closed:
                heapq.heappush(self._ready, self._order[dependant])

    def restart(self) -> None:
        """After states were restored: only steps that have not begun, and wait for none, could begin."""
        self._ready = [
            index
            for index, step in enumerate(self._steps)
            if self._states[step.id].status is StepStatus.PENDING and not self._states[step.id].waiting_for
        ]

    def close(self) -> None:
        """From here on no step begins; those that have begun go on with their items."""
        self._ready = sorted(index for index in self._ready if self._states[self._steps[index].id].is_open)
        self._is_closed = True
