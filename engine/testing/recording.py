"""What the agents of one execution answered, kept in a file, so that the run can be repeated without them.

A recording holds the definition as it ran, the input, for every step the calls that decided it, and what else did:
handoffs, people's answers, the executions that it made. The file is JSON for people to read and keep beside their
tests; its format has a version, and a newer one is refused.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.domain.definition_reads import all_steps
from engine.domain.execution import StepStatus
from engine.domain.ids import call_address
from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.errors import ExecutionNotFoundError, InvalidInputError
from engine.testing.replies import rebuilt_reply
from engine.testing.run_records import read_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from engine import types
    from engine.domain.handoff import Handoff
    from engine.domain.plan import PlanEdge
    from engine.facade import WorkflowEngine
    from engine.testing.run_records import CallRecord, RunRecords

__all__ = ["RecordedCall", "RecordedGate", "RecordedHandoff", "RecordedStep", "Recording"]

FORMAT_VERSION: Final = 2
_UNASKED_CODE: Final = "invalid_input"
"""Code of a step whose input could not be made, so that no agent was asked."""
_BREACH: Final = "budget.exceeded"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RecordedFailure(_Part):
    """How a call failed: a ``FailureReason`` and its message."""

    reason: str
    message: str


class RecordedCall(_Part):
    """One logical call of an agent, after all its attempts."""

    agent_id: str
    reply: JsonValue = None
    is_whole: bool = True
    """Whether the reply is all of it; what an output mapping did not read is not kept."""
    failure: RecordedFailure | None = None
    has_input: bool = False
    """Whether ``input`` is known: only of executions with the option ``trace``."""
    input: JsonValue = None
    usage: dict[str, float | None] = Field(default_factory=dict[str, float | None])
    """Of all attempts."""
    item: int | None = None
    n: int | None = None
    """Which call of its step, or of its item, from 1; None in recordings of an older format."""
    attempts: int = 1
    completed_at: str | None = None
    is_cancelled: bool = False
    """Whether it was cancelled before it ended."""


class RecordedHandoff(_Part):
    """A handoff that the run was subject to."""

    source_agent_id: str
    target_agent_id: str
    handoff_type: str = "sequential"
    data_mapping: dict[str, str] = Field(default_factory=dict[str, str])
    trigger_conditions: list[str] = Field(default_factory=list[str])


class RecordedGate(_Part):
    """A question to people, and what they answered."""

    gate_id: str
    kind: str
    step_id: str | None = None
    status: str
    """``answered``, ``expired``, or ``closed`` and ``open``: nobody answered before the run ended."""
    answer: str | None = None
    data: JsonValue = None
    by: str | None = None
    at: str | None = None


class RecordedStep(_Part):
    """One step: where it ended, and the calls of agents that it made: fallbacks, turns and items included."""

    status: str
    agent_id: str | None = None
    output: JsonValue = None
    error: JsonObject | None = None
    reason: str | None = None
    completed_at: str | None = None
    calls: list[RecordedCall] = Field(default_factory=list[RecordedCall])
    is_reused: bool = False
    """Whether a rerun has kept it from an earlier run, so that nothing undoes it."""


class Recording(_Part):
    """A finished execution as ``ReplayAgentInvoker`` and ``compare_runs`` take it.

    Example:
        ``recording = await Recording.take(engine, execution_id); recording.save("run.json")``
    """

    format: Literal["baton-recording"] = "baton-recording"
    format_version: int = FORMAT_VERSION
    execution_id: str
    workflow_id: str
    version: int
    definition: JsonObject
    """As ``create_workflow`` takes it."""
    input: JsonObject
    status: str
    output: JsonValue = None
    error: JsonObject | None = None
    steps: dict[str, RecordedStep]
    """In definition order; behind them ``finally``, compensations and what handoffs added."""
    handoffs: list[RecordedHandoff] = Field(default_factory=list[RecordedHandoff])
    """The first made first."""
    gates: list[RecordedGate] = Field(default_factory=list[RecordedGate])
    """The first opened first."""
    children: dict[str, Recording] = Field(default_factory=dict[str, "Recording"])
    """Call of a step of type ``workflow`` (``step.1``, ``step[3].1``) to the execution that it made."""
    budget: JsonObject | None = None
    """What the execution's options limited."""
    breaches: list[str] = Field(default_factory=list[str])
    """The limits of budgets that were reached, in order."""

    @classmethod
    async def take(
        cls, engine: WorkflowEngine, execution_id: str, *, input_data: Mapping[str, JsonValue] | None = None
    ) -> Self:
        """Record a finished execution.

        Args:
            engine: on the stores that know it.
            execution_id: of the execution.
            input_data: what it was started with; read from the stores when not given.

        Raises:
            InvalidInputError: it is still open.
            NotFoundError: no such execution, or the store has lost its workflow.
        """
        result = await engine.get_execution_result(execution_id)
        stored_input = await engine.get_execution_input(execution_id) if input_data is None else dict(input_data)
        run = await read_run(engine, execution_id)
        children = await _recorded_children(engine, run, cls.take)
        budget = run.execution.options.budget
        return cls(
            execution_id=execution_id,
            workflow_id=result["workflow_id"],
            version=result["version"],
            definition=run.definition.to_dict(),
            input=cast("JsonObject", stored_input),
            status=result["status"],
            output=result["output"],
            error=cast("JsonObject | None", result["error"]),
            steps=_recorded_steps(result, run),
            handoffs=[_recorded_handoff(handoff) for handoff in run.handoffs],
            gates=[
                RecordedGate.model_validate(gate.model_dump(mode="json", include=set(RecordedGate.model_fields)))
                for gate in run.gates
            ],
            children=children,
            budget=budget and budget.model_dump(mode="json", exclude_none=True, exclude={"on_breach"}),
            breaches=[str(event.data.get("limit")) for event in run.execution.events if event.type == _BREACH],
        )

    def save(self, path: str | Path) -> None:
        """Write it to a file, over whatever is there.

        Raises:
            InvalidInputError: it can't be written.
        """
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=2)
        try:
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(f"{path} can't be written: {error.strerror}", {"path": str(path)}) from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read one from a file.

        Raises:
            InvalidInputError: it can't be read, is no recording, or was saved by a newer Baton.
        """
        details: JsonObject = {"path": str(path)}
        try:
            content = cast("object", json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise InvalidInputError(f"{path} can't be read: {error.strerror}", details) from error
        except ValueError as error:
            raise InvalidInputError(f"{path} is no valid JSON: {error}", details) from error
        if not isinstance(content, dict) or cast("JsonObject", content).get("format") != "baton-recording":
            raise InvalidInputError(f"{path} is no recording; make one with Recording.save", details)
        version = cast("JsonObject", content).get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise InvalidInputError(
                f"{path} has the format version {version}, this Baton reads up to {FORMAT_VERSION}; update it", details
            )
        fault = json_fault(cast("object", content))
        if fault is not None:
            raise InvalidInputError(f"{path} can't be used: {fault}", details)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidInputError(f"{path} is no whole recording: {place}: {first['msg']}", details) from error


def _recorded_steps(result: types.ExecutionResult, run: RunRecords) -> dict[str, RecordedStep]:
    mappings = {step.id: step.output_mapping for step in all_steps(run.definition)}
    calls: dict[str, list[RecordedCall]] = {}
    for call in run.calls:
        recorded = _recorded_call(call, mappings.get(call.record.step_id))
        if recorded is not None:
            calls.setdefault(call.record.step_id, []).append(recorded)
    return {
        step_id: RecordedStep(
            status=step["status"],
            agent_id=step["agent_id"],
            output=step["output"],
            error=cast("JsonObject | None", step["error"]),
            reason=step["reason"],
            completed_at=step["completed_at"],
            calls=calls.get(step_id, []),
            is_reused="reused_from" in step,
        )
        for step_id, step in result["steps"].items()
    }


def _recorded_call(call: CallRecord, mapping: JsonValue) -> RecordedCall | None:
    """Return what an agent was asked and answered; None when no agent was."""
    record = call.record
    if record.kind != "agent" or record.agent_id is None:
        return None
    recorded = RecordedCall(
        agent_id=record.agent_id,
        has_input=record.input is not None,
        input=call.input,
        usage=record.usage.model_dump(),
        item=record.item,
        n=record.n,
        attempts=max(record.attempts, 1),
        completed_at=None if record.completed_at is None else record.completed_at.isoformat(),
    )
    match record.status:
        case StepStatus.COMPLETED:
            reply, is_whole = rebuilt_reply(mapping, call.output, call.handed)
            return recorded.model_copy(update={"reply": reply, "is_whole": is_whole})
        case StepStatus.FAILED if record.error is not None:
            if record.error.code == _UNASKED_CODE:
                return None
            failure = RecordedFailure(reason=record.reason or "error", message=record.error.message)
            return recorded.model_copy(update={"failure": failure})
        case StepStatus.SKIPPED:
            return None
        case _:
            return recorded.model_copy(update={"is_cancelled": True})


def _recorded_handoff(handoff: Handoff | PlanEdge) -> RecordedHandoff:
    return RecordedHandoff.model_validate(handoff.model_dump(include=set(RecordedHandoff.model_fields)))


async def _recorded_children(
    engine: WorkflowEngine, run: RunRecords, take: Callable[[WorkflowEngine, str], Awaitable[Recording]]
) -> dict[str, Recording]:
    """Record the executions that a run made; a call that failed before its child began has none."""
    children: dict[str, Recording] = {}
    for call in run.calls:
        record = call.record
        if record.kind == "workflow":
            address = call_address(record.step_id, record.item, record.n)
            with contextlib.suppress(ExecutionNotFoundError):
                children[address] = await take(engine, record.child_execution_id or f"{record.execution_id}/{address}")
    return children
