"""The step table that Temporal's UI shows as the current details of an execution, and the plan in its details.

A row says in one line what a person would ask next: why a step was skipped, whom it waits for, how far its items are.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus
from engine.domain.ids import call_address
from engine.domain.step_words import ICONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from engine.domain.gate import GateRecord
    from engine.domain.plan import ExecutionPlan, PlanStep
    from engine.domain.progress import ExecutionProgress
    from engine.domain.step_state import ItemStates, StepState

__all__ = ["plan_table", "step_table"]

MAX_ROWS: Final = 50
MAX_TABLE_BYTES: Final = 20_000
MAX_NOTE_CHARS: Final = 240
MAX_TOLD_GATES: Final = 5
_RESERVED_BYTES: Final = 100
"""For the row that says how many are left out."""
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_FIRST: Final = (
    StepStatus.WAITING,
    StepStatus.RUNNING,
    StepStatus.FAILED,
    StepStatus.CANCELLED,
    StepStatus.PENDING,
)


def step_table(progress: ExecutionProgress) -> str:
    """Markdown: counts, the gates of no step, then a row a step; when they are too many, what waits and runs first."""
    states = progress.steps
    counts = Counter([state.status for state in states.values()])
    summary = ", ".join(f"{counts[status]} {status}" for status in StepStatus if status in counts)
    status = progress.status if progress.ending is None else progress.ending.status
    title = [f"**{status}** · {len(states)} steps: {summary}"]
    gates: dict[str, GateRecord] = {}
    for gate in progress.gates.open_gates:
        if gate.record.step_id is not None:
            gates[gate.record.step_id] = gate.record
        elif len(title) <= MAX_TOLD_GATES:
            title.append(f"{_cell(gate.record.question, MAX_NOTE_CHARS)} {_gate(gate.record)}")
    rows = [_row(progress, step_id, gates) for step_id in _shown(progress, counts)]
    return _table("\n\n".join(title), "| | step | agent | calls | |", 5, rows, len(states))


def plan_table(plan: ExecutionPlan) -> str:
    """Markdown: the frozen plan, a row a step, those of ``finally`` last."""
    numbered = [(str(number), step) for number, step in enumerate(plan.steps, start=1)]
    numbered += [("finally", step) for step in plan.final_steps]
    rows = [
        f"| {number} | {_cell(step.name)} | {_cell(_called(step))} | {_cell(', '.join(step.depends_on))} |"
        for number, step in numbered[:MAX_ROWS]
    ]
    title = f"**{_cell(plan.name)}**, version {plan.version}, {len(plan.steps)} steps"
    if plan.description:
        title += f"\n\n{_cell(plan.description, 500)}"
    return _table(title, "| | step | agent | after |", 4, rows, len(numbered))


def _shown(progress: ExecutionProgress, counts: Mapping[StepStatus, int]) -> list[str]:
    """The steps that have a row: it is asked for after every event, so no more steps are looked at than must be."""
    states, step_ids = progress.steps, progress.step_ids
    if len(step_ids) <= MAX_ROWS:
        return step_ids
    shown: list[str] = []
    for status in _FIRST:
        if status in counts:
            of_status = (step_id for step_id in step_ids if states[step_id].status is status)
            shown += islice(of_status, MAX_ROWS - len(shown))
    others = (step_id for step_id in step_ids if states[step_id].status not in _FIRST)
    return [*shown, *islice(others, MAX_ROWS - len(shown))]


def _row(progress: ExecutionProgress, step_id: str, gates: Mapping[str, GateRecord]) -> str:
    step, state = progress.plan_steps[step_id], progress.steps[step_id]
    has_called = step.foreach is None and step.type in ("agent", "workflow") and state.status is not StepStatus.SKIPPED
    calls = str(state.n) if has_called and state.n else ""
    note = " · ".join([*_outcome(step, state, gates.get(step_id)), *_work(progress, step, state)])
    status = f"{ICONS[state.status]}{_NO_BREAK}{state.status}"
    called = state.agent_id or _called(step, state)
    return f"| {status} | {_cell(step.name)} | {_cell(called)} | {calls} | {_cell(note, MAX_NOTE_CHARS)} |"


def _called(step: PlanStep, state: StepState | None = None) -> str:
    """Who does a step's work; a step without an agent is named by its type."""
    if step.agents:
        return ", then ".join(step.agents) if state is None else step.agents[0]
    if step.child is not None:
        return f"workflow {step.child.definition_id}"
    return step.type


def _outcome(step: PlanStep, state: StepState, gate: GateRecord | None) -> Iterator[str]:
    """What came of a step, and what is asked about it."""
    if state.error is not None:
        yield state.error.message
    if gate is not None:
        yield gate.question if gate.kind == "approval" else "what now?"
        yield _gate(gate)
    answered = state.output.inline if step.type == "approval" and state.output is not None else None
    if isinstance(answered, dict):
        yield f"{answered.get('answer')} by {answered.get('by') or 'nobody named'}"
    if state.is_continued:
        yield "the execution goes on"
    if state.note:
        yield state.note
    if state.is_reused:
        yield "as in the execution that this one repeats"


def _work(progress: ExecutionProgress, step: PlanStep, state: StepState) -> Iterator[str]:
    """How far a step is, who does it, and by whose handoff."""
    if state.items is not None:
        yield _items(state.items)
    if step.repeat is not None and state.n:
        yield f"turn {state.iteration} of at most {step.repeat.max_iterations}"
    if state.choice >= len(step.agents) > 0:
        yield "by escalation"
    elif state.choice:
        yield f"fallback {state.choice} of {len(step.agents) - 1}"
    due_at = progress.work.due_at.get(call_address(step.id, None, state.n))
    if due_at is not None and state.status is StepStatus.WAITING:
        yield f"until {_instant(due_at)}"
    if agents := progress.admissions.handed_by(step):
        yield f"handed over by {', '.join(agents)}"
    yield from progress.following.refused.get(step.id, ())


def _items(items: ItemStates) -> str:
    told = [f"{len(items.outputs) + len(items.recorded)} of {items.count} items done"]
    if items.open:
        told.append(f"{len(items.open)} at work")
    if items.failed:
        told.append(f"{len(items.failed)} failed")
    return ", ".join(told)


def _gate(gate: GateRecord) -> str:
    """Say how a gate is answered, by whom and until when."""
    who = f" asks {', '.join(gate.assignees)}" if gate.assignees else ""
    until = f", until {_instant(gate.expires_at)}" if gate.expires_at is not None else ""
    return f"gate {gate.gate_id}{who}: {' | '.join(gate.allowed)}{until}"


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _table(title: str, header: str, columns: int, rows: list[str], total: int) -> str:
    """Put a table together; ``total`` is how many rows there would be with room for all."""
    lines = [title, "", header, "|" + " --- |" * columns]
    size = sum(len(line.encode()) + 1 for line in lines)
    told = 0
    for row in rows:
        size += len(row.encode()) + 1
        if size > MAX_TABLE_BYTES - _RESERVED_BYTES:
            break
        lines.append(row)
        told += 1
    if told < total:
        lines.append(f"| … | {total - told} more |" + " |" * (columns - 2))
    return "\n".join(lines)


def _cell(text: str, limit: int = 120) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= limit else line[: limit - 1] + "…"
