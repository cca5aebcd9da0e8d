"""How a step's fields are said in a few words, alike in every listing and drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.conditions import EVENTS
from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.domain.definition import Fallback, Step
    from engine.domain.definition_graph import GraphHandoff

__all__ = ["ICONS", "counted", "line", "listed", "statuses_in_words", "step_in_words", "step_notes", "trigger_in_words"]

ICONS: Final = {
    StepStatus.PENDING: "·",
    StepStatus.RUNNING: "▶",
    StepStatus.RETRYING: "↻",
    StepStatus.WAITING: "◔",
    StepStatus.COMPLETED: "✓",
    StepStatus.FAILED: "✗",
    StepStatus.SKIPPED: "↷",
    StepStatus.CANCELLED: "⊘",
}
MAX_LINE_CHARS: Final = 300
MAX_LISTED: Final = 8


def line(text: object, limit: int = MAX_LINE_CHARS) -> str:
    """Return a user's text on one line, without what a terminal would act on, cut to ``limit`` characters."""
    words = " ".join(str(text).split())
    shown = "".join(char if char.isprintable() else "�" for char in words)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def listed(names: Sequence[str], most: int = MAX_LISTED) -> str:
    """Return names by comma; of many the first few and how many more there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])}, … {len(names) - most + 1} more"


def counted(count: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def statuses_in_words(statuses: Sequence[StepStatus]) -> str:
    """Return ``3 completed, 1 running``."""
    return ", ".join(f"{statuses.count(status)} {status}" for status in StepStatus if status in statuses)


def step_in_words(step: Step) -> str:
    """Return what the step does: its agent, or its type with what belongs to it."""
    match step.type:
        case "agent":
            return step.agent_id
        case "transform":
            return "transform"
        case "workflow":
            return f"workflow {step.workflow_id}" + (f", version {step.version}" if step.version else "")
        case "wait" if step.wait is not None and step.wait.until is not None:
            return f"wait until {line(step.wait.until)}"
        case "wait":
            seconds = step.wait.seconds if step.wait is not None else None
            return f"wait {f'{seconds:g}' if isinstance(seconds, int | float) else line(seconds)} s"
        case "approval":
            return f"approval: {line(step.approval.question)}" if step.approval is not None else "approval"


def step_notes(step: Step) -> list[str]:
    """Return what else decides how the step runs, a line each."""
    notes: list[str] = []
    if step.foreach is not None:
        items = step.foreach.items
        over = line(items) if isinstance(items, str) else counted(len(items), "item")
        notes.append(
            f"\N{MULTIPLICATION SIGN} for each of {over} as {step.foreach.name}"
            + (f", {step.foreach.max_concurrency} at once" if step.foreach.max_concurrency else "")
            + (f", {step.foreach.tolerate} may fail" if step.foreach.tolerate else "")
        )
    if step.repeat_until is not None:
        loop = step.repeat_until
        notes.append(f"↻ until {line(loop.condition)}, at most {counted(loop.max_iterations, 'turn')}")
    if step.approval is not None:
        notes.append(f"answers {listed(step.approval.allowed)}{_asked(step)}")
    notes += [f"else {_fallback_in_words(fallback)}" for fallback in step.fallbacks]
    if step.on_error != "fail":
        notes.append(f"on error {step.on_error}")
    if step.at_most_once:
        notes.append("called at most once")
    if step.compensate is not None:
        notes.append(f"undone by {step.compensate.agent_id}")
    return notes


def trigger_in_words(handoff: GraphHandoff) -> str:
    """Return when a handoff fires: ``failure or timeout, if source_output.score < 0.5``."""
    events = [text for text in handoff.trigger_conditions if text in EVENTS]
    conditions = [line(text) for text in handoff.trigger_conditions if text not in EVENTS]
    shown = " or ".join(events or ["failure" if handoff.is_escalation else "completion"])
    return f"{shown}, if {' and '.join(conditions)}" if conditions else shown


def _fallback_in_words(fallback: Fallback) -> str:
    return f"{fallback.agent_id} on {', '.join(fallback.on)}" if fallback.on else fallback.agent_id


def _asked(step: Step) -> str:
    approval = step.approval
    if approval is None:
        return ""
    asked = f", of {listed(approval.assignees)}" if approval.assignees else ""
    if approval.timeout is None:
        return asked
    match approval.on_timeout:
        case "default":
            end = f"then {approval.default}"
        case "escalate":
            end = f"then of {listed(approval.escalate_to)}" if approval.escalate_to else "then once more"
        case "fail":
            end = "then it fails"
    return f"{asked}, within {approval.timeout:g} s, {end}"
