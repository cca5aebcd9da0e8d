"""A recorded run, played again: the same or a changed definition on the agents' recorded answers, without agents.

The engine is a real one on embedded stores in a temporary folder. What made the recorded run slow is left out: no
attempt is repeated, no step waits, people answer at once. What made its path is kept: a call that failed fails, after
what had ended before it, one that was cancelled waits to be, and handoffs are those that the run was subject to.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING, Final, cast

from engine.domain.agent_call import AgentFailure, AgentInvocation, AgentReply, FailureReason
from engine.domain.execution import Usage
from engine.domain.ids import call_address
from engine.errors import InvalidInputError
from engine.testing.answering import RecordedPeople
from engine.testing.offline import (
    CANCEL_PATIENCE,
    UNRECORDED,
    check_playable,
    counts_attempts,
    offline_agents,
    offline_workflows,
)
from engine.testing.recording import RecordedCall, RecordedStep, Recording
from engine.testing.timeline import Timeline, call_key, runs_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue
    from engine.facade import WorkflowEngine

__all__ = ["ReplayAgentInvoker", "replay_recording"]

_REASONS: Final = {reason.value: reason for reason in FailureReason}
_RESULT_SECONDS: Final = 600


class ReplayAgentInvoker:
    """Answers every call as the recording says, by its step's id and its item.

    A step that called several agents is answered by the agent that is called; one that called an agent several times
    by the place of the call, by the input where the recording has it, else in order.

    Args:
        recording: of a finished execution.
        timeline: what of it has been played; its own unless given.
        repeats: whether attempts that were repeated fail first, so that a budget can count them.

    Example:
        ``WorkflowEngine(invoker=ReplayAgentInvoker(Recording.load("run.json")))``
    """

    def __init__(self, recording: Recording, timeline: Timeline | None = None, *, repeats: bool = False) -> None:
        self.calls: list[AgentInvocation] = []
        """Every call so far, in order."""
        self._recording = recording
        self._runs = runs_of(recording)
        self._repeats = repeats
        self._timeline = timeline or Timeline(recording)
        self._chosen: dict[tuple[str, ...], RecordedCall] = {}
        self._used: set[tuple[str, ...]] = set()

    async def invoke_agent(self, invocation: AgentInvocation) -> AgentReply:
        """Answer from the recording.

        Raises:
            AgentFailure: the recorded one; ``invalid_request`` when the recording has no answer for the step.
        """
        self.calls.append(invocation)
        self._timeline.heard()
        path, step_id = _path(invocation.call.execution_id, self._runs), invocation.call.step_id
        run = self._runs.get(path)
        if run is None:
            raise await self._unknown(f"has no execution {path}")
        step = run.steps.get(step_id)
        if step is None:
            raise await self._unknown(f"has no step {step_id}")
        if not step.calls:
            if "cancelled" in (step.status, run.status):
                await asyncio.sleep(CANCEL_PATIENCE)
            raise await self._unknown(f"has no answer for step {step_id}, which was {step.status} there")
        call = await self._choose(path, step_id, step, invocation)
        return await self._answer(call_key(path, step_id, step, call), step, call, invocation.call.attempt)

    async def _answer(self, key: tuple[str, ...], step: RecordedStep, call: RecordedCall, attempt: int) -> AgentReply:
        if self._repeats and attempt < call.attempts:
            raise AgentFailure(FailureReason.UNAVAILABLE, "This attempt was repeated in the recording")
        usage = Usage.model_validate(call.usage)
        if call.is_cancelled:
            self._timeline.played(key)
            await asyncio.sleep(CANCEL_PATIENCE)
            raise await self._unknown(f"has no answer for {key[-1]}, which was cancelled there")
        if call.failure is not None:
            await self._timeline.until(call.completed_at or step.completed_at)
            self._timeline.played(key)
            reason = _REASONS.get(call.failure.reason, FailureReason.ERROR)
            raise AgentFailure(reason, call.failure.message, usage=usage)
        await self._timeline.until_failures(call.completed_at)
        self._timeline.played(key)
        return AgentReply(call.reply, usage=usage)

    async def _unknown(self, what: str) -> AgentFailure:
        """What the recording knows is played to its end first: a failure ends the execution."""
        await self._timeline.until()
        return AgentFailure(FailureReason.INVALID_REQUEST, f"The recording of {self._recording.execution_id} {what}")

    async def _choose(self, path: str, step_id: str, step: RecordedStep, invocation: AgentInvocation) -> RecordedCall:
        address = _address(invocation.call)
        asked = (invocation.call.execution_id, address, invocation.agent.agent_id)
        if asked in self._chosen:
            return self._chosen[asked]
        found = self._find(path, step_id, step, invocation, address)
        if found is None:
            unit = address.rpartition(".")[0]
            raise await self._unknown(f"has no answer of agent {invocation.agent.agent_id} for step {unit}")
        self._chosen[asked] = found
        self._used.add(call_key(path, step_id, step, found))
        return found

    def _find(
        self, path: str, step_id: str, step: RecordedStep, invocation: AgentInvocation, address: str
    ) -> RecordedCall | None:
        unit = address.rpartition(".")[0]
        calls = [call for call in step.calls if call_address(step_id, call.item, 1).rpartition(".")[0] == unit]
        of_agent = [call for call in calls if call.agent_id == invocation.agent.agent_id]
        if not of_agent:
            # Another agent takes over a step's answer, but not another one's failure.
            is_answer = bool(calls) and calls[-1].failure is None and not calls[-1].is_cancelled
            return calls[-1] if is_answer else None
        same = [call for call in of_agent if call.has_input and call.input == invocation.input]
        for call in same or of_agent:
            if call.n is not None and call_address(step_id, call.item, call.n) == address:
                return call
        unused = [call for call in same or of_agent if call_key(path, step_id, step, call) not in self._used]
        return unused[0] if unused else (same or of_agent)[-1]


def _path(execution_id: str, runs: Mapping[str, Recording]) -> str:
    """Where an execution stands below the recorded one; an idempotency key has a slash as well."""
    for path in sorted(runs, key=len, reverse=True):
        if path and execution_id.endswith(f"/{path}"):
            return path
    last = execution_id.rpartition("/")[2]
    is_child = any(
        step.get("type") == "workflow" and last.startswith((f"{step['id']}.", f"{step['id']}["))
        for run in runs.values()
        for step in cast("list[JsonObject]", run.definition.get("steps", []))
    )
    return last if is_child and "/" in execution_id else ""


def _address(call: AgentCall) -> str:
    """The call's address, out of the key that it has for whatever must not happen twice."""
    return call.idempotency_key.removeprefix(f"{call.execution_id}/").partition("/")[2]


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
        InvalidInputError: the definition is invalid, or does not take the recorded input; the run was decided by time;
            or a gate is reached that the recording has no answer for.
        RuntimeUnavailableError: there is no development server.
    """
    from engine.facade import WorkflowEngine

    check_playable(recording)
    asked = dict(definition or recording.definition)
    timeline = Timeline(recording)
    with tempfile.TemporaryDirectory(prefix="baton-replay-", ignore_cleanup_errors=True) as folder:
        settings = _offline_settings(folder) | dict(config or {})
        invoker = ReplayAgentInvoker(recording, timeline, repeats=counts_attempts(asked, [recording]))
        async with WorkflowEngine(settings, invoker=invoker) as engine:
            workflow_id = await _store(engine, recording, asked)
            options = {"trace": True, **({} if recording.budget is None else {"budget": recording.budget})}
            execution = await engine.execute_workflow(workflow_id, recording.input, options)
            await _played(engine, execution["execution_id"], RecordedPeople(engine, recording, timeline))
            replayed = await Recording.take(engine, execution["execution_id"], input_data=recording.input)
    # It is told as what was asked for, not as what was run in its place.
    steps = {
        step_id: step.model_copy(update={"agent_id": None}) if step.agent_id == UNRECORDED else step
        for step_id, step in replayed.steps.items()
    }
    return replayed.model_copy(update={"definition": asked, "steps": steps})


async def _played(engine: WorkflowEngine, execution_id: str, people: RecordedPeople) -> None:
    """Wait for the end, while people act."""
    ended = asyncio.create_task(engine.get_execution_result(execution_id, wait=_RESULT_SECONDS))
    acting = asyncio.create_task(people.act(execution_id))
    try:
        await asyncio.wait({ended, acting}, return_when=asyncio.FIRST_COMPLETED)
        if acting.done():
            acting.result()
        await ended
    finally:
        for task in (ended, acting):
            task.cancel()
        await asyncio.gather(ended, acting, return_exceptions=True)


def _offline_settings(folder: str) -> dict[str, object]:
    """Every setting at its default, so that nothing of this machine's own decides what a replay does."""
    from engine.settings import EngineSettings

    fields = EngineSettings.model_fields
    defaults = {key: cast("object", field.get_default(call_default_factory=True)) for key, field in fields.items()}
    return {**defaults, "worker": "embedded", "data_dir": folder, "log_level": "ERROR", "retry_count": 0}


async def _store(engine: WorkflowEngine, recording: Recording, definition: JsonObject) -> str:
    """Create what the replay needs, and return the id of its workflow."""
    report = await engine.validate_workflow(definition)
    if not report["valid"]:
        raise InvalidInputError(
            "The workflow definition is invalid; correct what is listed.", {"issues": list(report["issues"])}
        )
    workflows = offline_workflows(definition, recording)
    for agent_id in offline_agents(workflows):
        await engine.register_agent(name=agent_id, agent_id=agent_id, config={"function": "recorded:answer"})
    create_workflow = cast("Callable[..., Awaitable[str]]", engine.create_workflow)
    workflow_id = ""
    for workflow in workflows:
        workflow_id = await create_workflow(**workflow.definition, workflow_id=workflow.workflow_id)
        for handoff in workflow.runs[0].handoffs:
            await engine.create_handoff(
                handoff.source_agent_id,
                handoff.target_agent_id,
                handoff.handoff_type,
                handoff.data_mapping,
                handoff.trigger_conditions,
                workflow_id=workflow_id,
            )
    return workflow_id
