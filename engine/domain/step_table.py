"""The step table that Temporal's UI shows as the current details of an execution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from engine.domain.plan import ExecutionPlan
    from engine.domain.plan_values import StepState
    from engine.domain.progress import ExecutionProgress

__all__ = ["plan_table", "step_table"]

MAX_ROWS: Final = 50
MAX_TABLE_BYTES: Final = 20_000
_ICONS: Final = {
    StepStatus.PENDING: "·",
    StepStatus.RUNNING: "▶",
    StepStatus.RETRYING: "↻",
    StepStatus.WAITING: "⏸",
    StepStatus.COMPLETED: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.SKIPPED: "↷",
    StepStatus.CANCELLED: "⊘",
}
_RANK: Final = {StepStatus.RUNNING: 0, StepStatus.FAILED: 1, StepStatus.CANCELLED: 2, StepStatus.PENDING: 3}


def step_table(progress: ExecutionProgress) -> str:
    """Markdown: counts, then a row a step; running and failed steps first when there are too many to show."""
    steps = progress.plan.steps
    states = progress.steps
    counts: dict[StepStatus, int] = {}
    for step in steps:
        status = states[step.id].status
        counts[status] = counts.get(status, 0) + 1
    shown = steps
    if len(steps) > MAX_ROWS:
        shown = sorted(steps, key=lambda step: _RANK.get(states[step.id].status, 4))[:MAX_ROWS]
    summary = ", ".join(f"{counts[status]} {status}" for status in StepStatus if status in counts)
    rows = [_row(step.name, states[step.id]) for step in shown]
    if len(shown) < len(steps):
        rows.append(f"| … | {len(steps) - len(shown)} more | | | |")
    return _table(f"**{len(steps)} steps:** {summary}", "| | step | agent | calls | error |", 5, rows)


def plan_table(plan: ExecutionPlan) -> str:
    """Markdown: the frozen plan, a row a step."""
    rows = [
        f"| {index} | {_cell(step.name)} | {_cell(', then '.join(step.agents))} | {_cell(', '.join(step.depends_on))} |"
        for index, step in enumerate(plan.steps[:MAX_ROWS], start=1)
    ]
    if len(plan.steps) > MAX_ROWS:
        rows.append(f"| … | {len(plan.steps) - MAX_ROWS} more | | |")
    title = f"**{_cell(plan.name)}**, version {plan.version}, {len(plan.steps)} steps"
    if plan.description:
        title += f"\n\n{_cell(plan.description, 500)}"
    return _table(title, "| | step | agent | after |", 4, rows)


def _row(name: str, state: StepState) -> str:
    calls = str(state.n) if state.n else ""
    error = state.error.message if state.error is not None else state.note
    agent = state.agent_id or ""
    return f"| {_ICONS[state.status]} {state.status} | {_cell(name)} | {_cell(agent)} | {calls} | {_cell(error)} |"


def _table(title: str, header: str, columns: int, rows: list[str]) -> str:
    lines = [title, "", header, "|" + " --- |" * columns]
    size = sum(len(line.encode()) + 1 for line in lines)
    for row in rows:
        size += len(row.encode()) + 1
        if size > MAX_TABLE_BYTES - 100:
            break
        lines.append(row)
    return "\n".join(lines)


def _cell(text: str, limit: int = 120) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= limit else line[: limit - 1] + "…"
