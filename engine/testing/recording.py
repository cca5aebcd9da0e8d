"""What the agents of one execution answered, kept in a file, so that the run can be repeated without them.

A recording holds the definition as it ran, the input, and for every step the calls that decided it. The file is
JSON for people to read and keep beside their tests; its format has a version, and a newer one is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.errors import InvalidInputError
from engine.testing.replies import rebuilt_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine import types
    from engine.facade import WorkflowEngine

__all__ = ["RecordedCall", "RecordedStep", "Recording", "recorded_definition"]

FORMAT_VERSION: Final = 1
_HEAD = ("workflow_id", "status", "version", "content_hash", "created_at", "updated_at")
_UNASKED_CODE: Final = "invalid_input"
"""Code of a step whose input could not be made, so that no agent was asked."""


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


class RecordedStep(_Part):
    """One step: where it ended, and the calls that it made, fallbacks included."""

    status: str
    agent_id: str | None = None
    output: JsonValue = None
    error: JsonObject | None = None
    reason: str | None = None
    completed_at: str | None = None
    calls: list[RecordedCall] = Field(default_factory=list[RecordedCall])


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
    """In definition order."""

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
            NotFoundError: no such execution, or its workflow was deleted.
        """
        result = await engine.get_execution_result(execution_id)
        stored = await engine.get_workflow(result["workflow_id"], version=result["version"])
        definition = recorded_definition(cast("Mapping[str, JsonValue]", stored))
        events = [event async for event in engine.watch_execution(execution_id)]
        stored_input = await engine.get_execution_input(execution_id) if input_data is None else dict(input_data)
        mappings = {
            str(step["id"]): step.get("output_mapping") for step in cast("list[JsonObject]", definition["steps"])
        }
        return cls(
            execution_id=execution_id,
            workflow_id=result["workflow_id"],
            version=result["version"],
            definition=definition,
            input=cast("JsonObject", stored_input),
            status=result["status"],
            output=result["output"],
            error=cast("JsonObject | None", result["error"]),
            steps={
                step_id: _recorded_step(step, [one for one in events if one["step_id"] == step_id], mappings[step_id])
                for step_id, step in result["steps"].items()
            },
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


def recorded_definition(stored: Mapping[str, JsonValue]) -> JsonObject:
    """Return the part of ``get_workflow``'s answer that ``create_workflow`` takes."""
    return {key: value for key, value in stored.items() if key not in _HEAD and value not in (None, [], {})}


def _recorded_step(step: types.StepResult, events: Sequence[types.Event], mapping: JsonValue) -> RecordedStep:
    """Make a step of its part of the result; what only its events know is who failed before a fallback."""
    calls = [
        RecordedCall(
            agent_id=str(event["data"].get("agent_id")),
            failure=RecordedFailure(reason=str(event["data"].get("reason")), message=str(event["data"].get("message"))),
        )
        for event in events
        if event["type"] == "step.fell_back"
    ]
    error = step["error"]
    if step["agent_id"] is not None:
        usage = {key: cast("float | None", value) for key, value in step["usage"].items()}
        last = RecordedCall(agent_id=step["agent_id"], has_input="input" in step, input=step.get("input"), usage=usage)
        if step["status"] == "completed":
            reply, is_whole = rebuilt_reply(mapping, step["output"])
            calls.append(last.model_copy(update={"reply": reply, "is_whole": is_whole}))
        elif step["status"] == "failed" and error is not None and error["code"] != _UNASKED_CODE:
            failure = RecordedFailure(reason=step["reason"] or "error", message=error["message"])
            calls.append(last.model_copy(update={"failure": failure}))
    return RecordedStep(
        status=step["status"],
        agent_id=step["agent_id"],
        output=step["output"],
        error=cast("JsonObject | None", error),
        reason=step["reason"],
        completed_at=step["completed_at"],
        calls=calls,
    )
