"""The clauses of an explanation: calls, gates, values and ends in words, each from what is recorded of it alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from engine.domain.execution import ExecutionStatus, StepStatus
from engine.domain.step_words import counted, line, statuses_in_words

if TYPE_CHECKING:
    from engine.domain.execution import Event, ExecutionRecord, StepRecord
    from engine.domain.json import JsonObject, JsonValue
    from engine.domain.step_history import StepHistory

__all__ = [
    "MAX_SHOWN_STEPS",
    "attempts_in_words",
    "call_clauses",
    "end_in_words",
    "few",
    "gate_clauses",
    "last_gate",
    "status_in_words",
    "with_values",
]

MAX_SHOWN_STEPS: Final = 20
"""As many dependencies are among the values."""
MAX_SHOWN_VALUES: Final = 6
MAX_VALUE_CHARS: Final = 80
MAX_CLAUSES: Final = 5
"""Of one kind in a sentence."""
_GATE_EVENTS: Final = {"gate.opened": "opened", "gate.answered": "answered", "gate.expired": "expired"}


def status_in_words(status: StepStatus) -> str:
    """Return a status; of a step that nothing is recorded of ``not begun``."""
    return "not begun" if status is StepStatus.PENDING else status.value


def with_values(values: JsonObject) -> str:
    """Return `` (input.kind = "bug", ...)``; nothing without values."""
    shown = [f"{line(path)} = {_value(value)}" for path, value in list(values.items())[:MAX_SHOWN_VALUES]]
    if len(values) > MAX_SHOWN_VALUES:
        shown.append(f"… {len(values) - MAX_SHOWN_VALUES} more")
    return f" ({', '.join(shown)})" if shown else ""


def attempts_in_words(calls: list[StepRecord]) -> str:
    """Return `` after 3 attempts``; nothing for one or none."""
    attempts = sum(call.attempts for call in calls)
    return f" after {counted(attempts, 'attempt')}" if attempts > 1 else ""


def end_in_words(record: ExecutionRecord) -> str:
    """Return how an execution has ended, with its error or who cancelled it."""
    match record.status:
        case ExecutionStatus.FAILED:
            return "the execution failed" + (f" ({line(record.error.message)})" if record.error else "")
        case ExecutionStatus.CANCELLED:
            cancel = record.cancel
            by = f" by {line(cancel.by)}" if cancel is not None and cancel.by else ""
            return f"the execution was cancelled{by}" + (
                f" ({line(cancel.reason)})" if cancel is not None and cancel.reason else ""
            )
        case ExecutionStatus.COMPLETED:
            return "the execution completed"
        case _:
            return "the execution has not ended"


def few(clauses: list[str], noun: str) -> list[str]:
    """Return the first clauses of many, and how many more there are."""
    if len(clauses) <= MAX_CLAUSES:
        return clauses
    return [*clauses[:MAX_CLAUSES], f"{len(clauses) - MAX_CLAUSES} more times so ({noun})"]


def call_clauses(history: StepHistory, condition: str | None) -> list[str]:
    """Return what is told of a step's calls: those that gave up, attempts, turns, items, a child, what was recalled.

    Args:
        history: of the step.
        condition: of its ``repeat_until``.
    """
    fell_back = [event for event in history.events if event.type == "step.fell_back"]
    gave_up = [event for event in fell_back if "item" not in event.data]
    clauses = few(
        [
            f"{event.data.get('agent_id')} failed with {event.data.get('reason')} "
            f"({line(event.data.get('message'), 120)}), so the next agent was called"
            for event in gave_up
        ],
        "call that fell back",
    )
    last = history.last
    attempts = sum(call.attempts for call in history.calls)
    if last is not None and last.status is not StepStatus.FAILED and attempts > 1:
        by = f", the last by {last.agent_id}" if gave_up and last.agent_id else ""
        clauses.append(f"it took {counted(attempts, 'attempt')}{by}")
    if condition is not None and last is not None:
        clauses.append(f"turn {last.iteration} of repeating until {line(condition)}")
    if history.items:
        statuses = [item.status for item in history.items.values()]
        clauses.append(f"{counted(len(statuses), 'item')}: {statuses_in_words(statuses)}")
    if len(fell_back) > len(gave_up):
        clauses.append(f"{counted(len(fell_back) - len(gave_up), 'call')} for items fell back to the next agent")
    if last is not None and last.child_execution_id is not None:
        clauses.append(f"it ran as execution {last.child_execution_id}")
    if last is not None and last.context:
        clauses.append(f"{counted(len(last.context), 'text')} of the context memory was given to it")
    return clauses


def gate_clauses(events: list[Event]) -> list[str]:
    """Return what became of each gate of a step: the last that is known."""
    gates: dict[str, Event] = {}
    for event in events:
        if event.type in _GATE_EVENTS:
            gates[str(event.data.get("gate_id"))] = event
    clauses: list[str] = []
    for gate_id, event in gates.items():
        match event.type:
            case "gate.answered":
                by = f" by {line(event.data['by'])}" if event.data.get("by") else ""
                clauses.append(f"gate {gate_id} was answered {line(event.data.get('answer'))}{by}")
            case "gate.expired":
                answer = event.data.get("answer")
                clauses.append(f"gate {gate_id} expired" + (f" with the answer {line(answer)}" if answer else ""))
            case _:
                clauses.append(f"gate {gate_id} was opened")
    return clauses


def last_gate(events: list[Event]) -> JsonObject | None:
    """Return the values of the gate that a step had last: its id, and the answer and who gave it."""
    told = [event for event in events if event.type in _GATE_EVENTS]
    if not told:
        return None
    keys = ("gate_id", "answer", "by")
    return {key: told[-1].data[key] for key in keys if told[-1].data.get(key) is not None}


def _value(value: JsonValue) -> str:
    return line(json.dumps(value, ensure_ascii=False), MAX_VALUE_CHARS)
