"""A world for each store and fault: an engine with that store behind a proxy, and what every call does there.

All is prepared while the store is well. Then the fault begins, every call is made at once, held agents go on, the fault
ends, and what had failed is repeated. What was seen is kept for tests to look at.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from engine import EngineError, ErrorCode, WorkflowEngine
from engine.adapters.caching import FRESH_SECONDS
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tests.servers.fault_proxy import FaultProxy, Mode

HELD_SECONDS: Final = 60
HELD: Final = ("running", "stopped", "paused", "resumed")
ASKING: Final = ("waiting", "answered", "retried", "skipped")
EXECUTIONS: Final = ("finished", "begun", "unread begun", *HELD, *ASKING)
"""Their names in a world: over before the fault, or begun in it, or by what an operator does to them in it; what is
``running`` is left alone, and what is ``waiting`` until afterwards."""
GATE: Final = "a.1"
"""Of the first step of each that asks."""
QUESTIONS: Final = (
    "list_workflows",
    "list_workflow_versions",
    "find_workflows",
    "agent_impact",
    "handoff_paths",
    "get_agent",
    "list_agents",
    "get_handoff",
    "list_handoffs",
    "list_executions",
    "list_gates",
    "get_gate",
    "diff_workflow",
    "workflow_graph",
    "explain_execution",
    "rerun_execution",
    "get_workflow_metrics",
    "get_agent_performance",
)
"""Calls that are made before the fault too, and are right."""
COMPONENTS: Final = {"neo4j": "definitions", "mongodb": "executions", "redis": "state", "pinecone": "vectors"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a call did: ``right``, an error's code, or ``wrong``."""

    outcome: str
    seconds: float
    says: str = ""
    """The error's message."""


@dataclass(slots=True)
class Story:
    """What happened in one world."""

    calls: dict[str, Seen] = field(default_factory=dict[str, Seen])
    """Each call while the fault was on."""
    again: dict[str, Seen] = field(default_factory=dict[str, Seen])
    """Each call that had not been right, repeated when the fault was over."""
    back_seconds: float = 0.0
    """From the end of the fault to the first moment in which the store's calls worked."""
    ended_in_fault: bool = False
    """Whether an execution that began in the fault ended in it."""
    results: dict[str, str] = field(default_factory=dict[str, str])
    """The final status of each execution."""
    listed: set[str] = field(default_factory=set[str])
    """The executions that lists know in the end."""
    agent_calls: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """How often each step of each execution called its agent."""
    doubled: list[str] = field(default_factory=list[str])
    """Writes that were done twice, or by half."""


class World:
    """An engine whose agents can be held, and the names of what it was prepared with."""

    def __init__(self, config: dict[str, object], store: str, fault: Mode, proxy: FaultProxy) -> None:
        self.prefix = f"{store}-{fault}"
        self.store = store
        self.fault = fault
        self.proxy = proxy
        self.release = threading.Event()
        broken = ValueError("broken")
        self.invoker = ScriptedAgentInvoker(
            {
                self.writer: {"text": "done"},
                self.holder: self._hold,
                self.breaker: [broken, broken, {"text": "mended"}],
            }
        )
        self.engine = WorkflowEngine(config, invoker=self.invoker)
        self.ids: dict[str, str] = {}

    @property
    def writer(self) -> str:
        """The agent that answers at once."""
        return f"{self.prefix}-writer"

    @property
    def holder(self) -> str:
        """The agent that answers when the world says so."""
        return f"{self.prefix}-holder"

    @property
    def breaker(self) -> str:
        """The agent that fails at first, for ``retried`` and for ``skipped``."""
        return f"{self.prefix}-breaker"

    async def _hold(self, _: object) -> dict[str, str]:
        async with asyncio.timeout(HELD_SECONDS):
            while not self.release.is_set():
                await asyncio.sleep(0.02)
        return {"text": "held"}

    async def prepare(self) -> None:
        """Make what the calls will look for; read what is to be cached."""
        engine, prefix, ids = self.engine, self.prefix, self.ids
        for agent_id in (self.writer, self.holder, self.breaker):
            config = {"function": "agents:any"}
            await engine.register_agent(agent_id, capabilities=[prefix], config=config, agent_id=agent_id)
        for name in ("read", "unread", "updated", "deleted"):
            steps = [{"id": "a", "agent_id": self.writer}]
            ids[name] = await engine.create_workflow(f"{prefix} {name}", steps, tags=[prefix])
        steps = [{"id": "a", "agent_id": self.holder}, {"id": "b", "agent_id": self.writer, "depends_on": ["a"]}]
        ids["held"] = await engine.create_workflow(f"{prefix} held", steps, tags=[prefix])
        await engine.add_context(f"{prefix} remembers the lighthouse", workflow_id=ids["read"])
        ids["handoff"] = await engine.create_handoff(self.holder, self.writer)
        ids["finished"] = (await engine.execute_workflow(ids["read"]))["execution_id"]
        result = await engine.get_execution_result(ids["finished"], wait=30)
        assert result["status"] == "completed", result
        for name in HELD:
            ids[name] = (await engine.execute_workflow(ids["held"]))["execution_id"]
        async with asyncio.timeout(30):
            while Counter(call.agent.agent_id for call in self.invoker.calls)[self.holder] < len(HELD):
                await asyncio.sleep(0.02)
            # What is read of these must come from somewhere while the records' store is away.
            for name in ("finished", "running", "stopped"):
                while (await engine.get_execution_status(ids[name]))["status"] == "pending":
                    await asyncio.sleep(0.05)
        await engine.pause_execution(ids["resumed"])
        await self._prepare_gates()
        # A server that has just started may take seconds over the first question of a kind.
        async with asyncio.timeout(60):
            for call in (call for name, call in CALLS.items() if name in QUESTIONS):
                while (seen := await self.see(call)).outcome != "right":
                    assert seen.outcome == "database_error", seen
        # What was read is not taken for true any more without asking.
        await asyncio.sleep(FRESH_SECONDS)

    async def _prepare_gates(self) -> None:
        engine, prefix, ids = self.engine, self.prefix, self.ids
        approval = {"question": "Shall it go on?", "assignees": [prefix]}
        steps = [{"id": "a", "type": "approval", "approval": approval}]
        ids["asking"] = await engine.create_workflow(f"{prefix} asking", steps, tags=[prefix])
        once = {"on_error": "ask", "retry_policy": {"max_retries": 0}}
        steps = [{"id": "a", "agent_id": self.breaker, **once}]
        ids["broken"] = await engine.create_workflow(f"{prefix} broken", steps, tags=[prefix])
        asked = {"waiting": "asking", "answered": "asking", "retried": "broken", "skipped": "broken"}
        for name, workflow in asked.items():
            ids[name] = (await engine.execute_workflow(ids[workflow]))["execution_id"]
        async with asyncio.timeout(30):
            for name in asked:
                while not (await engine.list_gates(ids[name]))["items"]:
                    await asyncio.sleep(0.05)

    async def live_through(self) -> Story:
        """Begin the fault, call everything, end the fault, repeat what failed, and look at what is left."""
        story = Story()
        await self.proxy.switch(self.fault)
        seen = await asyncio.gather(*(self.see(call) for call in CALLS.values()))
        story.calls = dict(zip(CALLS, seen, strict=True))
        self.release.set()
        story.ended_in_fault = story.calls["execute_workflow"].outcome == "right" and await self._has_ended()
        await asyncio.sleep(0.5)
        await self.proxy.switch("pass")
        story.back_seconds = await self._seconds_until_back()
        for name, before in story.calls.items():
            if before.outcome != "right":
                story.again[name] = await self.see(CALLS[name])
        await self.engine.answer_gate(self.ids["waiting"], GATE, "approve")
        for name in EXECUTIONS:
            story.results[name] = await self._end_of(self.ids[name])
        for name in ("read", "held", "unread", "asking", "broken"):
            page = await self.engine.list_executions(workflow_id=self.ids[name])
            story.listed |= {item["execution_id"] for item in page["items"]}
        story.agent_calls = Counter(
            (call.call.execution_id, call.call.step_id)
            for call in self.invoker.calls
            if call.agent.agent_id != self.breaker
        )
        story.doubled = [fault async for fault in self._faults_of_writes()]
        return story

    async def see(self, call: Callable[[World], Awaitable[None]]) -> Seen:
        """Make a call and say what came of it."""
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(30):
                await call(self)
            outcome, says = "right", ""
        except EngineError as error:
            outcome, says = error.code.value, error.message
        except Exception as error:  # noqa: BLE001 - also a driver's exception, which never may get out
            outcome, says = "wrong", repr(error)
        return Seen(outcome, time.monotonic() - began_at, says)

    async def _has_ended(self) -> bool:
        try:
            result = await self.engine.get_execution_result(self.ids["begun"], wait=10)
        except EngineError:
            return False
        return result["status"] == "completed"

    async def _seconds_until_back(self) -> float:
        began_at = time.monotonic()
        needs = [CALLS[name] for name in ("get_agent", "get_execution_result")]
        async with asyncio.timeout(30):
            while {(await self.see(call)).outcome for call in needs} != {"right"} or not await self._is_up():
                await asyncio.sleep(0.1)
        return time.monotonic() - began_at

    async def _is_up(self) -> bool:
        health = await self.engine.get_system_health()
        return health["components"][COMPONENTS[self.store]]["status"] == "up"  # pyright: ignore[reportGeneralTypeIssues]

    async def _end_of(self, execution_id: str) -> str:
        return (await self.engine.get_execution_result(execution_id, wait=60))["status"]

    async def _faults_of_writes(self) -> AsyncGenerator[str]:
        engine = self.engine
        made = await engine.list_workflow_versions(f"{self.prefix}-made")
        if [item["version"] for item in made["items"]] != [1]:
            yield f"create_workflow: {made}"
        updated = await engine.list_workflow_versions(self.ids["updated"])
        if [item["version"] for item in updated["items"]] != [2, 1]:
            yield f"update_workflow: {updated}"
        agent = await engine.get_agent(f"{self.prefix}-new")
        if agent["version"] != 1:
            yield f"register_agent: {agent}"
        handoffs = await engine.list_handoffs(target_agent_id=f"{self.prefix}-new")
        if not 1 <= len(handoffs["items"]) <= 2:
            yield f"create_handoff: {handoffs}"


@asynccontextmanager
async def opened(world: World) -> AsyncGenerator[World]:
    """Have a world's engine open; its agents are let go in any case."""
    try:
        yield world
    finally:
        world.release.set()
        await world.engine.aclose()


CALLS: Final[dict[str, Callable[[World], Awaitable[None]]]] = {}
"""Every call by its name, with what is asked of it behind a colon where there is more than one way to ask."""


def _call(name: str) -> Callable[[Callable[[World], Awaitable[None]]], Callable[[World], Awaitable[None]]]:
    def keep(function: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
        CALLS[name] = function
        return function

    return keep


def _ids(page: Any, key: str) -> set[str]:
    return {item[key] for item in page["items"]}


@_call("create_workflow")
async def _create_workflow(w: World) -> None:
    workflow_id = f"{w.prefix}-made"
    try:
        await w.engine.create_workflow("Made", [{"id": "a", "agent_id": w.writer}], workflow_id=workflow_id)
    except EngineError as error:
        # An answer was lost, so that the id is taken: by this very workflow.
        if error.code is not ErrorCode.CONFLICT:
            raise
        assert (await w.engine.get_workflow(workflow_id))["name"] == "Made"


@_call("validate_workflow")
async def _validate_workflow(w: World) -> None:
    answer = await w.engine.validate_workflow({"name": "n", "steps": [{"id": "a", "agent_id": w.writer}]})
    assert answer == {"valid": True, "issues": []}, answer


@_call("get_workflow")
async def _get_workflow(w: World) -> None:
    assert (await w.engine.get_workflow(w.ids["read"]))["workflow_id"] == w.ids["read"]


@_call("get_workflow: not read before")
async def _get_unread_workflow(w: World) -> None:
    assert (await w.engine.get_workflow(w.ids["unread"]))["workflow_id"] == w.ids["unread"]


@_call("update_workflow")
async def _update_workflow(w: World) -> None:
    assert await w.engine.update_workflow(w.ids["updated"], {"description": "new"})


@_call("list_workflows")
async def _list_workflows(w: World) -> None:
    found = _ids(await w.engine.list_workflows(tags=[w.prefix]), "workflow_id")
    assert {w.ids["read"], w.ids["unread"], w.ids["held"]} <= found, found


@_call("list_workflow_versions")
async def _list_workflow_versions(w: World) -> None:
    page = await w.engine.list_workflow_versions(w.ids["read"])
    assert [item["version"] for item in page["items"]] == [1], page


@_call("delete_workflow")
async def _delete_workflow(w: World) -> None:
    try:
        assert await w.engine.delete_workflow(w.ids["deleted"])
    except EngineError as error:
        # An answer was lost: it is deleted already.
        if error.code is not ErrorCode.WORKFLOW_NOT_FOUND or w.proxy.mode != "pass":
            raise


@_call("get_execution_input")
async def _get_execution_input(w: World) -> None:
    assert await w.engine.get_execution_input(w.ids["finished"]) == {}


@_call("add_context")
async def _add_context(w: World) -> None:
    assert await w.engine.add_context(f"{w.prefix} knows more", workflow_id=w.ids["read"])


@_call("search_context")
async def _search_context(w: World) -> None:
    found = await w.engine.search_context("the lighthouse", workflow_id=w.ids["read"])
    assert f"{w.prefix} remembers the lighthouse" in [item["text"] for item in found], found


@_call("find_workflows")
async def _find_workflows(w: World) -> None:
    found = _ids(await w.engine.find_workflows(w.holder), "workflow_id")
    assert w.ids["held"] in found, found


@_call("agent_impact")
async def _agent_impact(w: World) -> None:
    impact = await w.engine.agent_impact(w.holder)
    assert w.ids["held"] in {use["workflow_id"] for use in impact["workflows"]}, impact


@_call("handoff_paths")
async def _handoff_paths(w: World) -> None:
    assert await w.engine.handoff_paths(w.holder, w.writer) == [[w.holder, w.writer]]


@_call("register_agent")
async def _register_agent(w: World) -> None:
    agent_id = f"{w.prefix}-new"
    assert await w.engine.register_agent(agent_id, config={"function": "a:b"}, agent_id=agent_id) == agent_id


@_call("get_agent")
async def _get_agent(w: World) -> None:
    assert (await w.engine.get_agent(w.writer))["capabilities"] == [w.prefix]


@_call("list_agents")
async def _list_agents(w: World) -> None:
    found = _ids(await w.engine.list_agents(capabilities=[w.prefix]), "agent_id")
    assert found == {w.writer, w.holder, w.breaker}, found


@_call("create_handoff")
async def _create_handoff(w: World) -> None:
    assert await w.engine.create_handoff(w.writer, f"{w.prefix}-new")


@_call("get_handoff")
async def _get_handoff(w: World) -> None:
    assert (await w.engine.get_handoff(w.ids["handoff"]))["source_agent_id"] == w.holder


@_call("list_handoffs")
async def _list_handoffs(w: World) -> None:
    page = await w.engine.list_handoffs(source_agent_id=w.holder)
    assert _ids(page, "handoff_id") == {w.ids["handoff"]}, page


@_call("execute_workflow")
async def _execute_workflow(w: World) -> None:
    w.ids["begun"] = f"{w.ids['read']}/one"
    execution = await w.engine.execute_workflow(w.ids["read"], {}, {"idempotency_key": "one"})
    assert execution["execution_id"] == w.ids["begun"], execution


@_call("execute_workflow: not read before")
async def _execute_unread_workflow(w: World) -> None:
    w.ids["unread begun"] = f"{w.ids['unread']}/one"
    execution = await w.engine.execute_workflow(w.ids["unread"], {}, {"idempotency_key": "one"})
    assert execution["execution_id"] == w.ids["unread begun"], execution


@_call("get_execution_status: open")
async def _open_status(w: World) -> None:
    status = await w.engine.get_execution_status(w.ids["running"])
    assert status["status"] in ("running", "completed"), status


@_call("get_execution_status: over")
async def _closed_status(w: World) -> None:
    status = await w.engine.get_execution_status(w.ids["finished"])
    assert status["status"] == "completed", status


@_call("get_execution_result")
async def _get_execution_result(w: World) -> None:
    result = await w.engine.get_execution_result(w.ids["finished"])
    assert result["output"] == {"text": "done"}, result


@_call("list_executions")
async def _list_executions(w: World) -> None:
    found = _ids(await w.engine.list_executions(workflow_id=w.ids["held"]), "execution_id")
    assert found == {w.ids[name] for name in HELD}, found


@_call("cancel_execution")
async def _cancel_execution(w: World) -> None:
    await w.engine.cancel_execution(w.ids["stopped"])


@_call("list_gates")
async def _list_gates(w: World) -> None:
    found = _ids(await w.engine.list_gates(assignee=w.prefix), "execution_id")
    assert {w.ids["waiting"]} <= found <= {w.ids["waiting"], w.ids["answered"]}, found


@_call("get_gate")
async def _get_gate(w: World) -> None:
    gate = await w.engine.get_gate(w.ids["waiting"], GATE)
    assert (gate["status"], gate["question"]) == ("open", "Shall it go on?"), gate


@_call("answer_gate")
async def _answer_gate(w: World) -> None:
    answered = await w.engine.answer_gate(w.ids["answered"], GATE, "approve", by="ann")
    assert (answered["answer"], answered["by"]) == ("approve", "ann"), answered


@_call("pause_execution")
async def _pause_execution(w: World) -> None:
    for act in (w.engine.pause_execution, w.engine.resume_execution):
        try:
            assert await act(w.ids["paused"])
        except EngineError as error:
            # What failed in the fault is repeated when the execution is paused already, or over.
            if error.code is not ErrorCode.CONFLICT or w.proxy.mode != "pass":
                raise


@_call("resume_execution")
async def _resume_execution(w: World) -> None:
    assert await w.engine.resume_execution(w.ids["resumed"])


@_call("retry_step")
async def _retry_step(w: World) -> None:
    assert await w.engine.retry_step(w.ids["retried"], "a")


@_call("skip_step")
async def _skip_step(w: World) -> None:
    assert await w.engine.skip_step(w.ids["skipped"], "a", {"text": "skipped"})


@_call("diff_workflow")
async def _diff_workflow(w: World) -> None:
    answer = await w.engine.diff_workflow(w.ids["read"], 1, 1)
    assert answer["changes"] == [], answer


@_call("workflow_graph")
async def _workflow_graph(w: World) -> None:
    assert w.writer in await w.engine.workflow_graph(w.ids["read"], "text")


@_call("explain_execution")
async def _explain_execution(w: World) -> None:
    answer = await w.engine.explain_execution(w.ids["finished"])
    assert [step["step_id"] for step in answer["steps"]] == ["a"], answer


@_call("rerun_execution")
async def _rerun_execution(w: World) -> None:
    answer = await w.engine.rerun_execution(w.ids["finished"], "a", preview=True)
    assert (answer["rerun"], answer["reused"]) == (["a"], []), answer


@_call("watch_execution")
async def _watch_execution(w: World) -> None:
    types = [event["type"] async for event in w.engine.watch_execution(w.ids["finished"])]
    assert types[-1] == "execution.completed", types


@_call("verify_executions")
async def _verify_executions(w: World) -> None:
    answer = await w.engine.verify_executions()
    assert answer["checked"] >= len(("finished", "running", "stopped")), answer


@_call("repair_executions")
async def _repair_executions(w: World) -> None:
    answer = await w.engine.repair_executions(w.ids["running"])
    assert answer["checked"] == 1, answer


@_call("get_workflow_metrics")
async def _get_workflow_metrics(w: World) -> None:
    answer = await w.engine.get_workflow_metrics(w.ids["read"])
    assert answer["metrics"]["execution_count"] in (1, 2), answer


@_call("get_agent_performance")
async def _get_agent_performance(w: World) -> None:
    answer = await w.engine.get_agent_performance(w.writer)
    assert answer["metrics"]["call_count"], answer


@_call("get_system_health")
async def _get_system_health(w: World) -> None:
    health: Any = await w.engine.get_system_health()
    if w.fault in ("down", "hang", "reset") and w.proxy.mode == w.fault:
        assert health["components"][COMPONENTS[w.store]]["status"] == "down", health
        assert health["status"] == ("unhealthy" if w.store in ("neo4j", "mongodb") else "degraded"), health
