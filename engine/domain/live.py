"""How records look in live state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.execution import LiveExecution, LiveStep, StepStatus, micros

if TYPE_CHECKING:
    from engine.domain.execution import ExecutionRecord, StepRecord

__all__ = ["live_execution", "live_step"]


def live_execution(record: ExecutionRecord) -> LiveExecution:
    """The head for a record; its token is the instant of the record's latest change."""
    at = record.completed_at or record.started_at or record.created_at
    token = max(micros(at), 0 if record.status.is_terminal else record.status_token)
    return LiveExecution(
        execution_id=record.execution_id,
        definition_id=record.definition_id,
        version=record.version,
        token=token,
        status=record.status,
        step_ids=record.step_ids,
        created_at=record.created_at,
        started_at=record.started_at,
        completed_at=record.completed_at,
        error=record.error,
        cancel=record.cancel,
    )


def live_step(record: StepRecord) -> LiveStep:
    """The entry for a step's record, with the attempts of all its calls; of an item's: that its step is at work."""
    if record.item is not None:
        return LiveStep(
            step_id=record.step_id,
            token=record.token,
            status=StepStatus.RUNNING,
            agent_id=record.agent_id,
            started_at=record.started_at,
        )
    return LiveStep(
        step_id=record.step_id,
        token=record.token,
        status=record.status,
        agent_id=record.agent_id,
        attempts=record.prior_attempts + record.attempts,
        started_at=record.started_at,
        completed_at=record.completed_at,
        error=record.error,
    )
