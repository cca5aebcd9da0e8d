"""Which steps of a large graph are shown: the first of each level and, of an execution, those that call for attention.

A graph of a thousand steps is looked at for its shape and for what went wrong in it, so the rest becomes a count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.domain.definition_graph import GraphStep
from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from engine.domain.definition_graph import RunStates

__all__ = ["Level", "fold"]

_RANK: Final = {
    StepStatus.FAILED: 0,
    StepStatus.WAITING: 1,
    StepStatus.RETRYING: 2,
    StepStatus.RUNNING: 3,
    StepStatus.CANCELLED: 4,
}
_LAST_LEVELS: Final = 3


@dataclass(frozen=True, slots=True)
class Level:
    """Steps that may run at the same time; or, with none shown, all steps of several levels."""

    first: int
    last: int
    shown: list[GraphStep]
    """In definition order."""
    hidden: list[GraphStep] = field(default_factory=list[GraphStep])


def fold(steps: list[GraphStep], run: RunStates | None, most_steps: int, most_levels: int) -> list[Level]:
    """Arrange steps by level.

    Args:
        steps: all of them.
        run: where they stand, when an execution is shown.
        most_steps: of a level, the fold not counted.
        most_levels: of the graph, the fold not counted.
    """
    by_level: dict[int, list[GraphStep]] = {}
    for step in steps:
        by_level.setdefault(step.level, []).append(step)
    levels = [_level(number, by_level[number], run, most_steps) for number in sorted(by_level)]
    if len(levels) <= most_levels + 1:
        return levels
    end = min(_LAST_LEVELS, most_levels // 2)
    first, last = most_levels - end, len(levels) - end
    hidden = [step for level in levels[first:last] for step in (*level.shown, *level.hidden)]
    return [*levels[:first], Level(first, last - 1, [], hidden), *levels[last:]]


def _level(number: int, steps: list[GraphStep], run: RunStates | None, most: int) -> Level:
    if len(steps) <= most + 1:
        return Level(number, number, steps)
    ranked = sorted(range(len(steps)), key=lambda index: (_rank(steps[index], run), index))
    kept = set(ranked[:most])
    return Level(
        number,
        number,
        [step for index, step in enumerate(steps) if index in kept],
        [step for index, step in enumerate(steps) if index not in kept],
    )


def _rank(step: GraphStep, run: RunStates | None) -> int:
    return 0 if run is None else _RANK.get(run.steps.get(step.step.id, StepStatus.PENDING), len(_RANK))
