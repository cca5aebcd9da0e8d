"""An explanation for a terminal of 100 columns: how the execution stands, then why each step does."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from engine.domain.execution import ExecutionStatus
from engine.domain.explanation_words import end_in_words
from engine.domain.metrics import format_instant
from engine.domain.step_words import ICONS, counted, line

if TYPE_CHECKING:
    from engine.domain.execution import Event
    from engine.domain.explanation import Explanation, StepExplanation

__all__ = ["explanation_text"]

WIDTH: Final = 100
MAX_ID_CHARS: Final = 24
"""What follows a longer id begins on the next line."""
MAX_NOT_REACHED: Final = 10
"""Of more steps that were not reached only the ids are told."""
MAX_NAMED: Final = 50
_DECISION_CHARS: Final = len("compensated")
_OF_EXECUTION: Final = ("budget.exceeded", "execution.paused", "execution.resumed")


def explanation_text(explanation: Explanation) -> str:
    """Return the report."""
    lines = _head(explanation)
    steps = explanation.steps
    not_reached = [step for step in steps if step.decision == "not_reached"]
    folded = not_reached if len(not_reached) > MAX_NOT_REACHED else []
    shown = [step for step in steps if not folded or step.decision != "not_reached"]
    width = min(max((len(step.step_id) for step in shown), default=0), MAX_ID_CHARS)
    lines.append("")
    for step in shown:
        lines += _step_lines(step, width)
    if folded:
        more = f", … {len(folded) - MAX_NAMED} more" if len(folded) > MAX_NAMED else ""
        ids = ", ".join(step.step_id for step in folded[:MAX_NAMED]) + more
        lines += ["", *_wrapped(f"Not reached, {counted(len(folded), 'step')}: {ids}", "", "  ")]
    return "\n".join(lines)


def _head(explanation: Explanation) -> list[str]:
    record = explanation.record
    lines = _wrapped(
        f"{record.execution_id} (version {record.version} of {record.definition_id}) is {record.status}", "", "  "
    )
    if record.status in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
        end = end_in_words(record)
        lines += _wrapped(f"{end[:1].upper()}{end[1:]}.", "", "  ")
    if record.rerun_of is not None:
        lines += _wrapped(f"It is a rerun of {record.rerun_of}.", "", "  ")
    if record.parent_execution_id is not None:
        lines += _wrapped(f"It is a child of {record.parent_execution_id}.", "", "  ")
    for event in record.events:
        if event.type in _OF_EXECUTION:
            lines += _wrapped(_event_line(event), "", "  ")
    for warning in record.warnings:
        lines += _wrapped(f"Warning: {line(warning.message)}", "", "  ")
    return lines


def _event_line(event: Event) -> str:
    data = ", ".join(f"{key} {line(value, 80)}" for key, value in event.data.items() if value is not None)
    return f"{format_instant(event.at)} {event.type}" + (f": {data}" if data else "")


def _step_lines(step: StepExplanation, width: int) -> list[str]:
    indent = " " * (width + _DECISION_CHARS + 7)
    head = f" {ICONS[step.status]} {step.step_id:<{width}}  {step.decision:<{_DECISION_CHARS}}  "
    lines = _wrapped(step.because, indent, indent)
    if len(head) > len(indent):
        return [head.rstrip(), *lines]
    return [head + lines[0][len(head) :], *lines[1:]]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=True, break_on_hyphens=False
    )
