"""Which of two records stands, for stores that decide in Python: the rules alone, without a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.execution import ExecutionStatus, StepStatus

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord, StepRecord
    from engine.domain.gate import Transition

__all__ = ["END_EVENTS", "HELD", "claimed", "is_agent_call", "outranks", "reopened", "transitioned", "with_beginning"]

END_EVENTS: Final = frozenset({"execution.completed", "execution.failed", "execution.cancelled"})
"""Types of the events that a reopened record no longer has, and that a later end replaces."""
HELD: Final = (ExecutionStatus.WAITING, ExecutionStatus.PAUSED)
"""An execution that is held stays so when a step is written, and when a later run takes it over."""


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
            "parent_execution_id": stored.parent_execution_id or end.parent_execution_id,
            "rerun_of": stored.rerun_of or end.rerun_of,
            "rerun_steps": stored.rerun_steps or end.rerun_steps,
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


def transitioned(stored: ExecutionRecord, change: Transition) -> ExecutionRecord | None:
    """Return a record after a transition of one of its runs; None when it stays what it is."""
    started_at = stored.run_started_at
    is_owner = started_at == change.run_started_at
    if started_at is not None and (started_at > change.run_started_at or (is_owner and stored.status.is_terminal)):
        return None
    record = stored
    if not is_owner or stored.status is ExecutionStatus.PENDING:
        record = _entered(stored, change)
    known = {event.id for event in record.events}
    updates: dict[str, object] = {
        "events": [*record.events, *(event for event in change.events if event.id not in known)]
    }
    if change.status is not None and stored.status_token <= change.token:
        updates |= {"status": change.status, "status_token": change.token}
    record = record.model_copy(update=updates)
    return None if record == stored else record


def is_agent_call(step: StepRecord) -> bool:
    """Return whether a record is of a call that its own execution made to an agent."""
    return step.kind == "agent" and step.reused_from is None


def _entered(record: ExecutionRecord, change: Transition) -> ExecutionRecord:
    """Return a record that the run of a transition has taken over, as the write of a step takes it."""
    if record.status.is_terminal:
        record = reopened(record)
    return record.model_copy(
        update={
            "status": record.status if record.status in HELD else ExecutionStatus.RUNNING,
            "started_at": record.started_at or change.run_started_at,
            "run_id": change.run_id,
            "run_started_at": change.run_started_at,
            "history_length": 0,
        }
    )
