"""A recorded run, played again: the same or a changed definition on the agents' recorded answers, without agents.

The engine is a real one on embedded stores in a temporary folder. What made the recorded run slow is left out: no
attempt is repeated, no step waits. What made its path is kept: a call that failed fails, after the calls that had
ended before it, and one that was cancelled waits to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from typing import TYPE_CHECKING, Final, cast

from engine.domain.agent_call import AgentFailure, AgentInvocation, AgentReply, FailureReason
from engine.domain.execution import Usage
from engine.errors import InvalidInputError
from engine.testing.recording import RecordedCall, RecordedStep, Recording

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.domain.json import JsonObject, JsonValue
    from engine.facade import WorkflowEngine

__all__ = ["ReplayAgentInvoker", "replay_recording"]

_CANCEL_PATIENCE: Final = 5.0
_QUIET: Final = 1.0
_SETTLE: Final = 0.1
_REASONS: Final = {reason.value: reason for reason in FailureReason}
_RESULT_SECONDS: Final = 600


class ReplayAgentInvoker:
    """Answers every call as the recording says, by its step's id.

    A step that called several agents is answered by the agent that is called; one that called an agent several times
    by the input where the recording has it, else in order.

    Args:
        recording: of a finished execution.

    Example:
        ``WorkflowEngine(invoker=ReplayAgentInvoker(Recording.load("run.json")))``
    """

    def __init__(self, recording: Recording) -> None:
        self.calls: list[AgentInvocation] = []
        """Every call so far, in order."""
        self._recording = recording
        self._counts: dict[tuple[str, str], int] = {}
        self._answered: set[str] = set()
        self._news = asyncio.Event()

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Answer from the recording.

        Raises:
            AgentFailure: the recorded one; ``invalid_request`` when the recording has no answer for the step.
        """
        self.calls.append(invocation)
        self._tell()
        step_id = invocation.call.step_id
        step = self._recording.steps.get(step_id)
        if step is None:
            raise await self._unknown(f"has no step {step_id}")
        if not step.calls:
            if step.status == "cancelled":
                await asyncio.sleep(_CANCEL_PATIENCE)
            raise await self._unknown(f"has no answer for step {step_id}, which was {step.status} there")
        call = await self._chosen(step_id, step, invocation)
        if call.failure is not None:
            if call is step.calls[-1]:
                await self._until_answered(self._completed(step.completed_at))
            reason = _REASONS.get(call.failure.reason, FailureReason.ERROR)
            raise AgentFailure(reason, call.failure.message)
        self._answered.add(step_id)
        self._tell()
        return AgentReply(call.reply, usage=Usage.model_validate(call.usage))

    async def _unknown(self, what: str) -> AgentFailure:
        """What the recording knows is played to its end first: a failure ends the execution."""
        await self._until_answered(self._completed())
        return AgentFailure(FailureReason.INVALID_REQUEST, f"The recording of {self._recording.execution_id} {what}")

    async def _chosen(self, step_id: str, step: RecordedStep, invocation: AgentInvocation) -> RecordedCall:
        agent_id = invocation.agent.agent_id
        # Another agent at a step takes over its answer, but not another one's failure.
        others = [step.calls[-1]] if step.calls[-1].failure is None else []
        calls = [call for call in step.calls if call.agent_id == agent_id] or others
        if not calls:
            raise await self._unknown(f"has no answer of agent {agent_id} for step {step_id}")
        calls = [call for call in calls if call.has_input and call.input == invocation.input] or calls
        key = (step_id, agent_id)
        if invocation.call.attempt == 1 or key not in self._counts:
            self._counts[key] = self._counts.get(key, 0) + 1
        return calls[min(self._counts[key], len(calls)) - 1]

    def _completed(self, until: str | None = None) -> set[str]:
        """The recorded steps that completed, or those that had by then."""
        return {
            step_id
            for step_id, step in self._recording.steps.items()
            if step.status == "completed" and (until is None or (step.completed_at or "") <= until)
        }

    async def _until_answered(self, step_ids: set[str]) -> None:
        """Wait for the answers that a recorded failure came after: it ends the execution and what runs beside it."""
        if step_ids <= self._answered:
            return
        # A changed definition may lack some of them, so that they would never come: silence is enough.
        with contextlib.suppress(TimeoutError):
            while not step_ids <= self._answered:
                await asyncio.wait_for(self._news.wait(), _QUIET)
        await asyncio.sleep(_SETTLE)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


async def replay_recording(
    recording: Recording,
    definition: Mapping[str, JsonValue] | None = None,
    *,
    config: Mapping[str, object] | None = None,
) -> Recording:
    """Run a definition on a recording's input and answers, and return the recording of that run.

    Args:
        recording: of a finished execution.
        definition: as ``create_workflow`` takes it; the recorded one when not given.
        config: settings that win over those of an engine with nothing but a temporary folder.

    Raises:
        InvalidInputError: the definition is invalid, or does not take the recorded input.
        RuntimeUnavailableError: there is no development server.
    """
    from engine.facade import WorkflowEngine

    with tempfile.TemporaryDirectory(prefix="baton-replay-", ignore_cleanup_errors=True) as folder:
        settings = _offline_settings(folder) | dict(config or {})
        async with WorkflowEngine(settings, invoker=ReplayAgentInvoker(recording)) as engine:
            workflow_id = await _store(engine, recording, dict(definition or recording.definition))
            execution = await engine.execute_workflow(workflow_id, recording.input, {"trace": True})
            execution_id = execution["execution_id"]
            await engine.get_execution_result(execution_id, wait=_RESULT_SECONDS)
            return await Recording.take(engine, execution_id, input_data=recording.input)


def _offline_settings(folder: str) -> dict[str, object]:
    """Every setting at its default, so that nothing of this machine's own decides what a replay does."""
    from engine.settings import EngineSettings

    fields = EngineSettings.model_fields
    defaults = {key: cast("object", field.get_default(call_default_factory=True)) for key, field in fields.items()}
    return {**defaults, "worker": "embedded", "data_dir": folder, "log_level": "ERROR"}


async def _store(engine: WorkflowEngine, recording: Recording, definition: JsonObject) -> str:
    report = await engine.validate_workflow(definition)
    if not report["valid"]:
        raise InvalidInputError(
            "The workflow definition is invalid; correct what is listed.", {"issues": list(report["issues"])}
        )
    steps = [_offline_step(step, recording) for step in cast("Sequence[JsonObject]", definition["steps"])]
    for agent_id in _agents_of(steps):
        await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "recorded:answer"})
    create_workflow = cast("Callable[..., Awaitable[str]]", engine.create_workflow)
    return await create_workflow(**{**definition, "steps": steps, "defaults": None})


def _offline_step(step: JsonObject, recording: Recording) -> JsonObject:
    """The step without what waits, and without the check of a reply that is known in part only."""
    dropped = {"timeout", "total_timeout"}
    recorded = recording.steps.get(str(step["id"]))
    if recorded is not None and any(not call.is_whole for call in recorded.calls):
        dropped.add("output_schema")
    kept = {key: value for key, value in step.items() if key not in dropped}
    return {**kept, "retry_policy": {"max_retries": 0}}


def _agents_of(steps: Sequence[JsonObject]) -> list[str]:
    fallbacks = [cast("JsonObject", step["fallback"]) for step in steps if step.get("fallback")]
    return list(dict.fromkeys(str(part["agent_id"]) for part in (*steps, *fallbacks)))
