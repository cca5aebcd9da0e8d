"""Our side: the same workflows as stored definitions, run through ``WorkflowEngine`` as its users run them.

The agents are a script, which costs next to nothing, as the hand-written activities do; or real Python functions,
``async`` or not, so that the price of keeping users' code off the engine's loop can be seen.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final, cast

from benchmarks.agents import add
from benchmarks.shapes import ADD_AGENT, SHAPES
from benchmarks.side import serve
from engine import WorkflowEngine
from engine.testing import ScriptedAgentInvoker

if TYPE_CHECKING:
    from benchmarks.shapes import Shape
    from engine.adapters.sqlite.execution_store import SqliteExecutionStore
    from engine.adapters.sqlite.state_store import SqliteStateStore
    from engine.domain.json import JsonValue

__all__ = ["AGENTS"]

AGENTS: Final = ("script", "async", "sync")
_FUNCTIONS: Final = {"script": "add", "async": "add_async", "sync": "add"}
_WAIT_SECONDS: Final = 600
_HOLD_AGENT: Final = "agent-hold"
_READS: Final = 200
_ASKS: Final = 10
_FRESH_SECONDS: Final = 0.8
"""Reads end this long after a check, well before the second that it holds."""
_STALE_SECONDS: Final = 1.05


class EngineSide:
    """Runs the shapes' definitions."""

    def __init__(
        self, engine: WorkflowEngine, workflow_ids: dict[str, str], release: threading.Event, *, is_embedded: bool
    ) -> None:
        self._engine = engine
        self._is_embedded = is_embedded
        self._workflow_ids = workflow_ids
        self._release = release

    async def run(self, shape: Shape, number: int) -> tuple[str, JsonValue]:
        """See ``Side``."""
        if shape.name not in self._workflow_ids:
            self._workflow_ids[shape.name] = await self._engine.create_workflow(shape.name, shape.definition_steps())
        started = await self._engine.execute_workflow(self._workflow_ids[shape.name], shape.given(number))
        result = await self._engine.get_execution_result(started["execution_id"], wait=_WAIT_SECONDS)
        if result["status"] != "completed":
            raise ValueError(f"{started['execution_id']} is {result['status']}: {result['error']}")
        return started["execution_id"], result["output"]

    def counters(self) -> dict[str, int]:
        """See ``Side``: of the synced database every commit is a sync; live state is never synced."""
        stores = self._engine._session().stores  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - counters are no part of the API
        if not self._is_embedded:
            return {}
        records = cast("SqliteExecutionStore", stores.executions)._database  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the same
        live = cast("SqliteStateStore", stores.state)._database  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the same
        return {
            "synced commits": records.commits,
            "record writes": records.writes,
            "live-state commits": live.commits,
            "live-state writes": live.writes,
        }

    async def statuses(self) -> dict[str, list[float]]:
        """See ``Side``."""
        ended, _ = await self.run(SHAPES["chain3"], 1)
        held = (await self._engine.execute_workflow(self._workflow_ids["hold"]))["execution_id"]
        asked: list[float] = []
        for _ in range(_ASKS):
            await asyncio.sleep(_STALE_SECONDS)
            asked.append(await self._read(held, "running"))
        checked_until = time.perf_counter() + _FRESH_SECONDS
        checked: list[float] = []
        while len(checked) < _READS and time.perf_counter() < checked_until:
            checked.append(await self._read(held, "running"))
        over = [await self._read(ended, "completed") for _ in range(_READS)]
        self._release.set()
        await self._engine.get_execution_result(held, wait=_WAIT_SECONDS)
        return {"ended": over, "checked within 1 s": checked, "asking Temporal": asked}

    async def _read(self, execution_id: str, expected: str) -> float:
        began = time.perf_counter()
        status = await self._engine.get_execution_status(execution_id)
        milliseconds = (time.perf_counter() - began) * 1000
        if status["status"] != expected or status.get("stale"):
            raise ValueError(f"{execution_id} should be {expected}: {status}")
        return milliseconds


async def main(address: str, data_dir: str, agents: str, stores: str = "{}") -> None:
    """Work and answer commands until the end of the input; ``stores``: more of the config, as JSON."""
    configured = cast("dict[str, JsonValue]", json.loads(stores))
    release = threading.Event()
    async with WorkflowEngine(
        {
            "temporal_address": address,
            "worker": "embedded",
            "task_queue": f"engine-{uuid.uuid4().hex[:8]}",
            "data_dir": data_dir,
            "agent_modules": ["benchmarks.agents"],
            **configured,
        },
        invoker=_script(release) if agents == "script" else None,
    ) as engine:
        function = f"benchmarks.agents:{_FUNCTIONS[agents]}"
        for agent_id in (ADD_AGENT, _HOLD_AGENT):
            await engine.register_agent(agent_id, agent_id=agent_id, config={"function": function})
        ids = {
            shape.name: await engine.create_workflow(shape.name, shape.definition_steps()) for shape in SHAPES.values()
        }
        ids["hold"] = await engine.create_workflow("hold", [{"id": "hold", "agent_id": _HOLD_AGENT}])
        await serve(EngineSide(engine, ids, release, is_embedded="mongo_uri" not in configured))


def _script(release: threading.Event) -> ScriptedAgentInvoker:
    async def add_and_forget(content: dict[str, int]) -> dict[str, int]:
        # The invoker keeps all calls for a test to look at, which would count as the engine's memory.
        invoker.calls.clear()
        return add(content)

    async def hold(content: object) -> dict[str, int]:
        del content
        while not release.is_set():
            await asyncio.sleep(0.05)
        return {"n": 0}

    invoker = ScriptedAgentInvoker({ADD_AGENT: add_and_forget, _HOLD_AGENT: hold})
    return invoker


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
