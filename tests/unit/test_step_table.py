"""Which steps have a row in the table that Temporal's UI shows, and in which order."""

from __future__ import annotations

import random

from reducing import NOW, chain, complete, progress_of

from engine.domain.execution import StepStatus
from engine.domain.step_table import MAX_ROWS, step_table

URGENT = [
    StepStatus.WAITING,
    StepStatus.RUNNING,
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.PENDING,
]


def rows(table: str) -> list[str]:
    """The second cell of each row below the header."""
    return [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| ") and " --- " not in line][1:]


def test_few_steps_stand_as_the_definition_has_them_those_of_finally_last():
    steps = [{"id": "a"}, {"id": "b", "depends_on": ["a"]}]
    progress = progress_of(steps, **{"finally": [{"id": "end", "agent_id": "agent-a"}]})
    (first,) = progress.next_actions(NOW)
    complete(progress, first)
    progress.next_actions(NOW)
    table = step_table(progress)
    assert rows(table) == ["a", "b", "end"]
    assert table.startswith("**running** · 3 steps: 1 pending, 1 running, 1 completed")


def test_of_many_steps_the_urgent_ones_come_first_each_kind_in_order():
    progress = progress_of(chain(400))
    chance = random.Random(6)
    for kinds in (list(StepStatus), [StepStatus.COMPLETED, StepStatus.SKIPPED], [StepStatus.PENDING]):
        for state in progress.steps.values():
            state.status = chance.choice(kinds)
        ranked = sorted(
            progress.steps,
            key=lambda step_id: (
                URGENT.index(status) if (status := progress.steps[step_id].status) in URGENT else len(URGENT)
            ),
        )
        *shown, left_out = rows(step_table(progress))
        assert shown == ranked[:MAX_ROWS]
        assert left_out == f"{400 - MAX_ROWS} more"
