"""Runs a case on an engine: makes what it names, starts it, does what its operators do, and says what came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import EventType

from engine import WorkflowEngine
from engine.bootstrap import open_stores
from engine.domain.agent_call import AgentCall, AgentFailure, AgentReply, FailureReason
from engine.domain.execution import Usage
from engine.domain.ids import AGENT_ACTIVITY_PREFIX, slug
from engine.errors import EngineError
from engine.settings import EngineSettings
from engine.testing import ScriptedAgentInvoker
from tests.conformance.case_checks import Observed, misfits
from tests.workflows.runs import ended, events_of, register, until

if TYPE_CHECKING:
    from temporalio.client import Client

    from engine.bootstrap import Stores
    from engine.domain.json import JsonValue
    from tests.conformance.cases import Action, Case, Reply, Script

__all__ = ["ScriptedCase", "run_case"]

NO_RETRIES: dict[str, object] = {"retry_count": 0}
"""Settings of the engine: a failure is final unless the definition asks for retries."""


class ScriptedCase:
    """The agents of a case, and a record of their calls. They run on the engine's own loop, in another thread."""

    def __init__(self, case: Case) -> None:
        self.inputs: dict[str, list[JsonValue]] = {agent_id: [] for agent_id in case.agents}
        self.at_once: Counter[str] = Counter()
        self.scripts: dict[str, object] = {
            agent_id: self._agent(agent_id, script) for agent_id, script in case.agents.items()
        }
        self._running: Counter[str] = Counter()
        self._turns: Counter[tuple[str, str]] = Counter()
        self._released: set[str] = set()
        self._is_over = False

    def release(self, name: str) -> None:
        """Let calls that are held by this name answer, those to come too."""
        self._released.add(name)

    def end(self) -> None:
        """Let every call answer that nobody has released."""
        self._is_over = True

    def _agent(self, agent_id: str, script: Script) -> Callable[[JsonValue, AgentCall], Awaitable[AgentReply]]:
        async def answer(given: JsonValue, _: AgentCall) -> AgentReply:
            self.inputs[agent_id].append(given)
            self._running[agent_id] += 1
            self.at_once[agent_id] = max(self.at_once[agent_id], self._running[agent_id])
            try:
                return await self._reply(self._next(agent_id, script, given), given)
            finally:
                self._running[agent_id] -= 1

        return answer

    def _next(self, agent_id: str, script: Script, given: JsonValue) -> Reply:
        name, replies = script.replies_to(given)
        turn = self._turns[agent_id, name]
        self._turns[agent_id, name] += 1
        assert replies, f"the script of {agent_id} has nothing for {given!r}"
        return replies[min(turn, len(replies) - 1)]

    async def _reply(self, reply: Reply, given: JsonValue) -> AgentReply:
        while reply.hold is not None and reply.hold not in self._released and not self._is_over:
            await asyncio.sleep(0.01)
        usage = Usage.model_validate({"requests": 1, **reply.usage})
        if reply.fail is not None:
            raise AgentFailure(FailureReason(reply.fail), reply.message, usage=usage)
        if reply.pad:
            assert isinstance(reply.reply, dict), "only an object can be padded"
            return AgentReply(reply.reply | {key: "x" * letters for key, letters in reply.pad.items()}, usage)
        if reply.echo is None:
            return AgentReply(reply.reply, usage)
        if reply.echo is True:
            return AgentReply(given, usage)
        assert isinstance(given, dict), f"there is no key {reply.echo} in {given!r}"
        return AgentReply(given.get(reply.echo), usage)


async def run_case(case: Case, config: Mapping[str, object], client: Client) -> tuple[Observed, list[str]]:
    """Run a case to its end, on an engine of its own.

    Args:
        case: what to run.
        config: settings of the engine.
        client: of the server that runs it.

    Returns:
        What it showed, and a line for each action that did not go as the case says.
    """
    agents = ScriptedCase(case)
    settings = {**config, **NO_RETRIES}
    stores = open_stores(EngineSettings.load(settings))
    try:
        async with WorkflowEngine(settings, invoker=ScriptedAgentInvoker(agents.scripts)) as engine:
            run = _Run(case, engine, agents, client)
            try:
                return await _observed(case, run, stores), run.faults
            finally:
                agents.end()
    finally:
        await stores.closing.aclose()


async def _observed(case: Case, run: _Run, stores: Stores) -> Observed:
    try:
        await run.start()
    except EngineError as error:
        return Observed(refusal={"code": error.code, "message": error.message, "details": error.details})
    for action in case.actions:
        await run.act(action)
    return await run.observe(stores)


class _Run:
    def __init__(self, case: Case, engine: WorkflowEngine, agents: ScriptedCase, client: Client) -> None:
        self.faults: list[str] = []
        self._case = case
        self._engine = engine
        self._agents = agents
        self._client = client
        self._execution_id = ""
        self._rerun: dict[str, Any] = {}
        self._actions: Mapping[str, Callable[[Any], Awaitable[object]]] = {
            "wait_gate": self._wait_gate,
            "wait_status": self._wait_status,
            "wait_step": self._wait_step,
            "wait_calls": self._wait_calls,
            "wait_failed": self._wait_failed,
            "wait_end": self._wait_end,
            "release": self._release,
            "answer": lambda given: engine.answer_gate(self._execution_id, **given),
            "pause": lambda given: engine.pause_execution(self._execution_id, **_arguments(given)),
            "resume": lambda given: engine.resume_execution(self._execution_id, **_arguments(given)),
            "cancel": lambda given: engine.cancel_execution(self._execution_id, given),
            "retry_step": lambda given: engine.retry_step(self._execution_id, given),
            "skip_step": lambda given: engine.skip_step(self._execution_id, **given),
            "update": self._update,
            "rerun": self._run_again,
        }

    async def start(self) -> None:
        """Make the agents, handoffs and workflows of the case, and start its execution."""
        case, engine = self._case, self._engine
        await register(engine, *case.agents)
        for rule in case.handoffs:
            await engine.create_handoff(
                rule.source,
                rule.target,
                handoff_type=rule.type,
                data_mapping=rule.data_mapping,
                trigger_conditions=rule.when,
            )
        ids = [await engine.create_workflow(**document) for document in case.documents]
        started = await engine.execute_workflow(ids[-1], case.input, case.options)
        self._execution_id = started["execution_id"]

    async def act(self, action: Action) -> None:
        """Do one action, or wait for what it names."""
        said = f"{action.kind}: {action.argument}"
        try:
            await self._actions[action.kind](action.argument)
        except EngineError as error:
            if error.code != action.refused:
                self.faults.append(f"{said} was refused: {error.code}: {error.message}")
        else:
            if action.refused is not None:
                self.faults.append(f"{said} was not refused")

    async def observe(self, stores: Stores) -> Observed:
        """Wait for the end and gather what there is to see."""
        expect, engine, execution_id = self._case.expect, self._engine, self._execution_id
        return Observed(
            result=await ended(engine, stores, self._client, execution_id),
            events=[dict(event) async for event in engine.watch_execution(execution_id)],
            inputs=self._agents.inputs,
            at_once=dict(self._agents.at_once),
            children={
                name: dict(await engine.get_execution_result(f"{execution_id}/{name}", wait=5))
                for name in expect.children
            },
            rerun=self._rerun,
        )

    async def _wait_gate(self, wanted: str | dict[str, JsonValue]) -> None:
        gate = {"gate_id": wanted} if isinstance(wanted, str) else wanted
        found: list[Mapping[str, Any]] = []

        async def is_open() -> bool:
            page = await self._engine.list_gates(execution_id=self._execution_id)
            found[:] = [item for item in page["items"] if item["gate_id"] == gate["gate_id"]]
            return bool(found)

        await until(is_open, f"gate {gate['gate_id']} is open")
        self.faults += misfits(gate, found[0], f"gate {gate['gate_id']}", is_part=True)

    async def _wait_status(self, wanted: str) -> None:
        async def is_there() -> bool:
            return (await self._engine.get_execution_status(self._execution_id))["status"] == wanted

        await until(is_there, f"the execution is {wanted}")

    async def _wait_step(self, wanted: Mapping[str, str]) -> None:
        async def are_there() -> bool:
            steps = (await self._engine.get_execution_status(self._execution_id))["steps"]
            return all(name in steps and steps[name]["status"] == status for name, status in wanted.items())

        await until(are_there, f"steps are {dict(wanted)}")

    async def _wait_calls(self, wanted: Mapping[str, int]) -> None:
        inputs = self._agents.inputs
        await until(lambda: all(len(inputs[name]) >= count for name, count in wanted.items()), f"calls are {wanted}")

    async def _wait_failed(self, wanted: Mapping[str, int]) -> None:
        """Calls that have failed for good have reached the run; what is released now reaches it later."""

        async def have_failed() -> bool:
            failed: Counter[str] = Counter()
            types: dict[int, str] = {}
            for event in await events_of(self._client, self._execution_id):
                if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                    types[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
                elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
                    failed[types[event.activity_task_failed_event_attributes.scheduled_event_id]] += 1
            return all(failed[f"{AGENT_ACTIVITY_PREFIX}{name}"] >= count for name, count in wanted.items())

        await until(have_failed, f"failures are {dict(wanted)}")

    async def _wait_end(self, _: object) -> None:
        async def is_over() -> bool:
            status = (await self._engine.get_execution_status(self._execution_id))["status"]
            return status in ("completed", "failed", "cancelled")

        await until(is_over, "the execution is over")

    async def _release(self, name: str) -> None:
        self._agents.release(name)

    async def _update(self, given: Mapping[str, Any]) -> None:
        updates = {key: value for key, value in given.items() if key != "workflow"}
        await self._engine.update_workflow(slug(given["workflow"]), updates)

    async def _run_again(self, given: Mapping[str, Any]) -> None:
        """From here on the case is about the rerun."""
        await self._wait_end(None)
        self._rerun = dict(await self._engine.rerun_execution(self._execution_id, **given))
        self._execution_id = self._rerun["execution_id"]


def _arguments(given: object) -> dict[str, Any]:
    return {} if given is True else dict(given)
