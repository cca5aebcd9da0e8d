"""How an execution is followed to its end, and how its result is shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

from engine.cli.printing import instant, note, part, print_fields, print_table, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.facade import WorkflowEngine

_RESULT_SECONDS = 30
"""Between the last event and the stored result lies one write."""

_SKIPPED = {
    "join": "what it depends on did not complete",
    "handoff": "no handoff to it was taken",
    "when": "its condition does not hold",
    "operator": "skipped by an operator",
}
"""Reason of a skipped step to words; `baton execution explain` has the values."""

_HANDOFF_KEYS = ("handoff_id", "source_step", "source_agent_id", "target_agent_id", "target_step")
"""Of a handoff's event what its line says in other words, or is too long for it."""

_COLOURS = {
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    **dict.fromkeys(("retried", "skipped", "waiting", "paused", "opened", "expired", "exceeded"), "yellow"),
}


async def follow(engine: WorkflowEngine, execution_id: str, *, quiet: bool = False) -> dict[str, object]:
    """Wait for the end of an execution and return its result; each event is a line on stderr unless ``quiet``."""
    async for event in engine.watch_execution(execution_id):
        if not quiet:
            note(_event_line(cast("Mapping[str, object]", event)))
    result = await engine.get_execution_result(execution_id, wait=_RESULT_SECONDS)
    return cast("dict[str, object]", result)


def _event_line(event: Mapping[str, object]) -> str:
    kind = str(event["type"])
    colour = _COLOURS.get(kind.rpartition(".")[2])
    data = part(event, "data")
    hidden = _HANDOFF_KEYS if kind.startswith("handoff.") else ()
    told = [
        _told(name, value) for name, value in data.items() if value not in (None, "", [], {}) and name not in hidden
    ]
    if hidden:
        told = [f"from {shown(data.get('source_step'))} to {shown(data.get('target_agent_id'))}", *told]
    where = shown(event.get("step_id"))
    cells = [f"{kind:<20}", f"{where:<16}", *told] if told else [f"{kind:<20}", where] if where else [kind]
    return "  ".join([str(event["at"])[11:19], click.style(cells[0], fg=colour), *cells[1:]])


def _told(name: str, value: object) -> str:
    if isinstance(value, dict):
        found = cast("dict[str, object]", value)
        if name == "values":
            return ", ".join(f"{path} = {json.dumps(read, ensure_ascii=False)}" for path, read in found.items())
        return shown(found.get("message", found))
    return shown(value) if name in {"text", "message"} else f"{name}={shown(value)}"


def print_result(result: Mapping[str, object]) -> None:
    """Write an execution's result for people: what ran, what each step did, the error, the output."""
    duration = result.get("duration")
    took = f" in {duration:.1f} s" if isinstance(duration, int | float) else ""
    print_fields(
        {
            "execution": result.get("execution_id"),
            "workflow": f"{result.get('workflow_id')} (version {result.get('version')})",
            "status": f"{result.get('status')}{took}",
            "reason": part(result, "cancel").get("reason"),
            "error": _error_text(result.get("error")),
        }
    )
    print_steps(part(result, "steps"))
    for warning in cast("list[Mapping[str, object]]", result.get("warnings") or []):
        note(f"warning: {shown(warning.get('message'))}")
    if result.get("output") is not None:
        click.echo()
        click.echo(json.dumps(result["output"], ensure_ascii=False, indent=2))


def print_steps(steps: Mapping[str, object]) -> None:
    """Write a table of steps with their errors."""
    if not steps:
        return
    rows: list[list[str]] = []
    for step_id in steps:
        step = part(steps, step_id)
        rows.append(
            [
                step_id,
                shown(step.get("status")),
                shown(step.get("agent_id")),
                shown(step.get("attempts")),
                _time_text(step),
                _note(step),
            ]
        )
    click.echo()
    print_table(["STEP", "STATUS", "AGENT", "ATTEMPTS", "TIME", "NOTE"], rows)


def _note(step: Mapping[str, object]) -> str:
    reason = shown(step.get("reason"))
    if step.get("status") == "cancelled":
        return ""
    told = _error_text(step.get("error")) or _SKIPPED.get(reason, reason)
    return told or ("kept from the execution before" if step.get("reused_from") else "")


def _time_text(step: Mapping[str, object]) -> str:
    duration = step.get("duration")
    if isinstance(duration, int | float):
        return f"{duration:.1f} s"
    started = instant(step.get("started_at"))[11:]
    return f"since {started}" if started and not step.get("completed_at") else started


def _error_text(error: object) -> str:
    if not isinstance(error, dict):
        return ""
    told = cast("dict[str, object]", error)
    return f"{told.get('message')} ({told.get('code')})"
