"""A definition's graph for a terminal of 100 columns: level by level, so that steps side by side may run at once."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus
from engine.domain.graph_layout import fold
from engine.domain.step_words import (
    ICONS,
    counted,
    line,
    listed,
    statuses_in_words,
    step_in_words,
    step_notes,
    trigger_in_words,
)

if TYPE_CHECKING:
    from engine.domain.definition_graph import AddedStep, DefinitionGraph, GraphStep, RunStates
    from engine.domain.graph_layout import Level

__all__ = ["graph_text"]

WIDTH: Final = 100
MAX_SHOWN: Final = 150
"""More steps than these are folded more tightly."""
MAX_STEPS: Final = (10, 5, 3)
"""Of a level, tried in this order."""
MAX_LEVELS: Final = 40
MAX_ADDED: Final = 20
"""Of the steps that a run added."""
MAX_ID_CHARS: Final = 28
"""What follows a longer id begins on the next line."""


def graph_text(graph: DefinitionGraph, run: RunStates | None = None) -> str:
    """Draw a graph as text, with the states of one execution when they are given."""
    lines = _wrapped("", _title(graph))
    if run is not None:
        statuses = [_status(step, run) for step in (*graph.main, *graph.final)]
        lines += _wrapped("", f"execution {run.execution_id} is {run.status}: {statuses_in_words(statuses)}")
    sections = [("", graph.main)]
    if graph.final:
        sections.append(("finally, however it ended", graph.final))
    for heading, steps in sections:
        lines += ["", *([heading] if heading else [])]
        width = min(max(len(step.step.id) for step in steps), MAX_ID_CHARS)
        for level in _folded(steps, run):
            lines += _level_lines(level, run, width)
    if run is not None and run.added:
        lines += ["", "added by this run"]
        lines += [text for added in run.added[:MAX_ADDED] for text in _added_lines(added)]
        if len(run.added) > MAX_ADDED:
            lines.append(f"     … {len(run.added) - MAX_ADDED} more")
    return "\n".join(lines)


def _folded(steps: list[GraphStep], run: RunStates | None) -> list[Level]:
    levels: list[Level] = []
    for most in MAX_STEPS:
        levels = fold(steps, run, most, MAX_LEVELS)
        if sum(len(level.shown) for level in levels) <= MAX_SHOWN:
            break
    return levels


def _title(graph: DefinitionGraph) -> str:
    version = graph.version
    levels = len({step.level for step in graph.main})
    size = f"{counted(len(graph.main), 'step')} in {counted(levels, 'level')}"
    more = f", {len(graph.final)} finally" if graph.final else ""
    return f"{line(version.definition.name)} ({version.definition_id}, version {version.version}): {size}{more}"


def _level_lines(level: Level, run: RunStates | None, width: int) -> list[str]:
    lines: list[str] = []
    number = f"{level.first + 1:>3}"
    for step in level.shown:
        lines += _step_lines(number, step, run, width)
        number = "   "
    if not level.hidden:
        return lines
    ids = f"{level.hidden[0].step.id} to {level.hidden[-1].step.id}"
    several = "" if level.first == level.last else f" in levels {level.first + 1} to {level.last + 1}"
    states = "" if run is None else f": {statuses_in_words([_status(step, run) for step in level.hidden])}"
    first = "   " if level.shown else "  …"
    return lines + _wrapped(f"{first}  ", f"… {len(level.hidden)} more{several}, {ids}{states}")


def _step_lines(number: str, step: GraphStep, run: RunStates | None, width: int) -> list[str]:
    icon = "" if run is None else f"{ICONS[_status(step, run)]} "
    head = f"{number}  {icon}{step.step.id}"
    indent = " " * (5 + len(icon) + width + 2)
    about = [f"{step_in_words(step.step)}{_after(step)}", *_conditions(step), *step_notes(step.step), *_behind(step)]
    lines = [text for said in about for text in _wrapped(indent, said)]
    if len(head) > len(indent) - 2:
        return [head, *lines]
    return [head + lines[0][len(head) :], *lines[1:]]


def _after(step: GraphStep) -> str:
    names = listed([edge.source for edge in step.edges])
    if not names:
        return ""
    match step.step.join:
        case "all":
            return f"  after {names}"
        case "any":
            return f"  after any of {names} (join any)"
        case "settled":
            return f"  after {names}, however they end (join settled)"


def _conditions(step: GraphStep) -> list[str]:
    said = [f"when {line(step.step.when)}"] if step.step.when is not None else []
    return said + [
        f"by handoff {handoff.handoff_id} from {edge.source}: {trigger_in_words(handoff)}"
        for edge in step.edges
        for handoff in edge.handoffs
    ]


def _behind(step: GraphStep) -> list[str]:
    return [
        f"{'escalates' if handoff.is_escalation else 'hands over'} to {handoff.target_agent_id} by "
        f"{handoff.handoff_id}: {trigger_in_words(handoff)}"
        for handoff in step.leaving
    ]


def _added_lines(added: AddedStep) -> list[str]:
    why = f"handed over by {added.source}" if added.kind == "handoff" else f"undoes {added.source}"
    return [f"     {ICONS[added.status]} {added.id}", *_wrapped(" " * 9, f"{added.agent_id}, {why}")]


def _status(step: GraphStep, run: RunStates) -> StepStatus:
    return run.steps.get(step.step.id, StepStatus.PENDING)


def _wrapped(indent: str, text: str) -> list[str]:
    """Fold a text at its blanks; only a word that is longer than a line is broken."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent) + ("  " if indent else ""),
        break_long_words=True,
        break_on_hyphens=False,
    )
