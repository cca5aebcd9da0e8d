"""What an execution's record says at its end; the same whoever writes it, the last call or ``finalize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.execution import ArtifactRef, Event, ExecutionRecord, ExecutionStatus, Value

if TYPE_CHECKING:
    from engine.domain.execution import Cancellation, ErrorPayload
    from engine.domain.messages import FinalizeInput

__all__ = ["bare_output", "terminal_record"]


def terminal_record(
    request: FinalizeInput, output: Value | None, fault: ErrorPayload | None, cancel: Cancellation | None
) -> ExecutionRecord:
    """Return the record of an end.

    Args:
        request: the end as the workflow decided it.
        output: of the execution, when it completed.
        fault: what turned ``completed`` into ``failed`` while the output was resolved.
        cancel: who asked for the cancellation.
    """
    status = ExecutionStatus.FAILED if fault else request.status
    error = fault or request.error
    end = Event.at_instant(
        f"execution.{status.value}",
        request.completed_at,
        request.run_id,
        error=error.model_dump(mode="json") if error else None,
    )
    return ExecutionRecord(
        execution_id=request.execution_id,
        definition_id=request.definition_id,
        version=request.version,
        plan_hash=request.plan_hash,
        status=status,
        input=Value(),
        input_hash="",
        step_ids=request.step_ids,
        created_at=request.started_at,
        started_at=request.started_at,
        completed_at=request.completed_at,
        run_id=request.run_id,
        run_started_at=request.run_started_at,
        history_length=request.history_length,
        output=output,
        error=error,
        cancel=cancel,
        warnings=request.warnings,
        usage=request.usage,
        events=[*request.events, end],
        handoffs_taken=request.handoffs_taken,
        handoffs_refused=request.handoffs_refused,
    )


def bare_output(output: Value) -> Value:
    """Return a step's output as the execution's: of a large one nobody reads parts any more."""
    if output.ref is None:
        return output
    return Value(ref=ArtifactRef(artifact_id=output.ref.artifact_id, size_bytes=output.ref.size_bytes))
