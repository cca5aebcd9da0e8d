"""Every store loses answers, and now and then refuses: the end is that of a run in which nothing was lost."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from store_servers import SERVERS, store_config

from engine import AgentFailure, EngineError, ErrorCode, FailureReason, WorkflowEngine, bootstrap
from engine.errors import StoreError
from engine.settings import EngineSettings
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from engine.bootstrap import Stores

AT_ONCE: Final = 50
PORTS: Final = (
    "definitions",
    "source_definitions",
    "agents",
    "handoffs",
    "executions",
    "analytics",
    "artifacts",
    "state",
)
LARGE: Final = "0123456789" * 4000
STEPS: Final = [
    {"id": "flaky", "agent_id": "agent-flaky", "retry_policy": {"max_retries": 3, "initial_interval": 0.05}},
    {
        "id": "broken",
        "agent_id": "agent-broken",
        "input_mapping": {"text": "${steps.flaky.output.text}", "n": "${input.n}"},
        "output_mapping": {"text": "${output.text}", "kind": "${steps.flaky.output.kind}"},
        "fallback": {"agent_id": "agent-writer"},
        "retry_policy": {"max_retries": 0},
    },
]
"""A retry, a value that lies in the store of large ones, and a fallback that reads it."""


class Storm:
    """What happens to store calls: with a chance each is refused, with the same chance its answer is lost.

    Attributes:
        lost: how many answers were, by port and method.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.lost: Counter[str] = Counter()
        self._share = share
        self._chance = random.Random(seed)

    def around(self, port: str, store: object) -> LossyPort:
        return LossyPort(self, port, store)

    def over(self, open_stores: Callable[[EngineSettings], Stores]) -> Callable[[EngineSettings], Stores]:
        """Return ``open_stores`` with the storm over every port."""

        def opened(settings: EngineSettings) -> Stores:
            stores = open_stores(settings)
            ports: dict[str, Any] = {port: self.around(port, getattr(stores, port)) for port in PORTS}
            return dataclasses.replace(stores, **ports)

        return opened

    async def call(self, name: str, call: Callable[[], Awaitable[object]]) -> object:
        if self._chance.random() < self._share:
            raise StoreError(f"{name} is refused; the test wants it so")
        answer = await call()
        if self._chance.random() < self._share:
            self.lost[name] += 1
            raise StoreError(f"The answer of {name} is lost; the test wants it so")
        return answer


class LossyPort:
    """A store in a storm."""

    def __init__(self, storm: Storm, port: str, store: object) -> None:
        self._storm = storm
        self._port = port
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def called(*args: object, **kwargs: object) -> object:
            return await self._storm.call(f"{self._port}.{name}", lambda: method(*args, **kwargs))

        return called


def agents() -> ScriptedAgentInvoker:
    async def flaky(_: object, call: Any) -> dict[str, str]:
        if call.attempt == 1:
            raise AgentFailure(FailureReason.UNAVAILABLE, "busy")
        return {"text": LARGE, "kind": "large"}

    return ScriptedAgentInvoker(
        {
            "agent-flaky": flaky,
            "agent-broken": AgentFailure(FailureReason.REFUSED, "no"),
            "agent-writer": {"text": "done"},
        }
    )


async def answered(call: Callable[[], Coroutine[object, object, Any]]) -> Any:
    """Repeat a call until its answer arrives, as the error says."""
    while True:
        try:
            return await call()
        except EngineError as error:
            assert error.code is ErrorCode.DATABASE_ERROR, error
            assert error.retryable


async def prepare(engine: WorkflowEngine, workflow_id: str) -> None:
    for agent_id in ("agent-flaky", "agent-broken", "agent-writer"):
        await answered(
            lambda agent_id=agent_id: engine.register_agent(
                agent_id, config={"function": "agents:any"}, agent_id=agent_id
            )
        )
    try:
        await answered(lambda: engine.create_workflow("Storm", STEPS, workflow_id=workflow_id))
    except AssertionError as error:
        # It was made, and that answer was lost.
        assert isinstance(error.args[0], EngineError)
        assert error.args[0].code is ErrorCode.CONFLICT


async def run_all(
    config: dict[str, object], workflow_id: str, count: int
) -> tuple[list[Any], Counter[tuple[str, str]]]:
    """Run executions, some at the same time; return each result, and how often each call was made."""
    invoker = agents()
    some = asyncio.Semaphore(AT_ONCE)
    async with WorkflowEngine(config, invoker=invoker) as engine:
        await prepare(engine, workflow_id)

        async def run(number: int) -> Any:
            options = {"idempotency_key": str(number)}
            async with some:
                started = await answered(lambda: engine.execute_workflow(workflow_id, {"n": number}, options))
                return await answered(lambda: engine.get_execution_result(started["execution_id"], wait=90))

        results = await asyncio.gather(*(run(number) for number in range(count)))
    return results, Counter((call.call.execution_id, call.call.idempotency_key) for call in invoker.calls)


def final_state(result: Any) -> dict[str, Any]:
    steps = {
        step_id: {key: step[key] for key in ("status", "agent_id", "attempts", "output", "error", "usage")}
        for step_id, step in sorted(result["steps"].items())
    }
    return {**{key: result[key] for key in ("status", "output", "usage", "error", "warnings")}, "steps": steps}


async def recorded(config: dict[str, object], workflow_id: str) -> dict[str, Counter[tuple[object, ...]]]:
    """What the records say of each execution, out of the stores themselves: step records and events, counted."""
    stores = bootstrap.open_stores(EngineSettings.load(config))
    found: dict[str, Counter[tuple[object, ...]]] = {}
    try:
        async with WorkflowEngine({**config, "worker": "none"}) as engine:
            cursor = None
            while True:
                page = await engine.list_executions(workflow_id=workflow_id, limit=100, cursor=cursor)
                for item in page["items"]:
                    execution_id = item["execution_id"]
                    assert execution_id not in found, "listed twice"
                    record = await stores.executions.get_execution(execution_id)
                    assert record is not None
                    steps = await stores.executions.list_steps(execution_id)
                    found[execution_id] = Counter(
                        [(step.step_id, step.n, step.status.value) for step in steps]
                        + [(event.type, event.step_id) for step in steps for event in step.events]
                        + [(event.type,) for event in record.events]
                    )
                cursor = page["next_cursor"]
                if cursor is None:
                    return found
    finally:
        await stores.closing.aclose()


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> dict[str, object]:
    """The settings of the stores that the test's first parameter names."""
    if request.node.callspec.params["stores"] == "embedded":
        return {}
    config: dict[str, object] = {}
    for store, fixture in SERVERS.items():
        config |= store_config(store, request.getfixturevalue(fixture).uri)
    return config


@pytest.mark.parametrize(
    ("stores", "share", "count"), [("embedded", 0.01, 150), ("embedded", 0.05, 150), ("real", 0.05, 60)]
)
async def test_the_end_is_that_of_a_run_in_which_nothing_was_lost(
    engine_config: dict[str, object],
    servers: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stores: str,
    share: float,
    count: int,
):
    calm_id, stormy_id = (f"{weather}-{stores}-{count * share:g}" for weather in ("calm", "stormy"))
    calm_config = {**engine_config, **servers, "task_queue": f"calm-{tmp_path.name}"}
    (calm,), calm_calls = await run_all(calm_config, calm_id, 1)
    (calm_records,) = (await recorded(calm_config, calm_id)).values()

    config = {**calm_config, "task_queue": f"stormy-{tmp_path.name}"}
    storm = Storm(share, seed=22)
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "open_stores", storm.over(bootstrap.open_stores))
        results, calls = await run_all(config, stormy_id, count)
    assert storm.lost.total() >= count * share * 5, f"too few answers were lost, this run proved nothing: {storm.lost}"
    assert [state for state in map(final_state, results) if state != final_state(calm)] == []
    assert sorted(calls.values()) == sorted([*calm_calls.values()] * count), "an agent was called again for a store"
    records = await recorded(config, stormy_id)
    assert set(records) == {result["execution_id"] for result in results}
    assert {key: found - calm_records for key, found in records.items() if found - calm_records} == {}, "doubled"
    lost = sum((calm_records - found for found in records.values()), Counter[tuple[object, ...]]())
    # That a failed attempt began is written once, on the way to the next one.
    assert set(lost) <= {("step.started", "flaky")}, "forgotten"
