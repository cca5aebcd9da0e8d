"""Which of two records stands, for stores that decide in Python: the rules alone, without a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import StepStatus

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord, StepRecord

__all__ = ["END_EVENTS", "claimed", "outranks", "reopened", "with_beginning"]

END_EVENTS: Final = frozenset({"execution.completed", "execution.failed", "execution.cancelled"})
"""Types of the events that a reopened record no longer has, and that a later end replaces."""


def outranks(stored: ExecutionRecord, end: ExecutionRecord) -> bool:
    """Return whether the stored record stands against an end: a later run's does, and so does an end that saw more."""
    if stored.run_started_at is not None and (end.run_started_at is None or stored.run_started_at > end.run_started_at):
        return True
    return (
        stored.status.is_terminal
        and stored.run_started_at == end.run_started_at
        and stored.history_length > end.history_length
    )


def with_beginning(end: ExecutionRecord, stored: ExecutionRecord) -> ExecutionRecord:
    """Return an end with what the stored record knows of the beginning, and its events before the end's."""
    return end.model_copy(
        update={
            "input": stored.input,
            "input_hash": stored.input_hash,
            "options": stored.options,
            "created_at": stored.created_at,
            "plan_hash": stored.plan_hash,
            "step_ids": stored.step_ids,
            "started_at": stored.started_at or end.started_at,
            "deadline_at": stored.deadline_at,
            "events": [*(event for event in stored.events if event.type not in END_EVENTS), *end.events],
        }
    )


def reopened(record: ExecutionRecord) -> ExecutionRecord:
    """Return a record without the end that it had."""
    return record.model_copy(
        update={
            "completed_at": None,
            "output": None,
            "error": None,
            "cancel": None,
            "events": [event for event in record.events if event.type not in END_EVENTS],
        }
    )


def claimed(claim: StepRecord, stored: StepRecord | None) -> StepRecord | None:
    """Return what a claim writes over the stored record; None when that one stands."""
    if stored is None:
        return claim
    if stored.status is StepStatus.COMPLETED or stored.token > claim.token:
        return None
    # An equal token is this very claim, written before and not acknowledged: it is in already.
    is_new = stored.token != claim.token
    usage = stored.usage + claim.usage if is_new else stored.usage
    events = [*stored.events, *claim.events] if is_new else stored.events
    return claim.model_copy(update={"usage": usage, "events": events, "tool_calls": stored.tool_calls})
