"""All sides on one server, a few executions of each in turn, so that a busy moment of the machine hits all of them.

The order changes with every round: whoever comes first finds the server as the last one left it.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from benchmarks.child import Child
from benchmarks.engine_side import AGENTS
from benchmarks.figures import Burst, History, SideFigures
from benchmarks.shapes import SHAPES
from engine.adapters.temporal import worker_factory
from engine.adapters.temporal.dev_server import acquire_dev_server
from workflows.activity_options import HEARTBEAT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.hand_written import WorkerFigures

__all__ = ["ENGINE", "HAND_WRITTEN", "TASK_EVENTS", "Comparison", "Extent", "compare", "worker_figures"]

HAND_WRITTEN: Final = "by hand"
ENGINE: Final = "Baton"
_NAMES: Final = {"script": ENGINE, "async": f"{ENGINE}, async def", "sync": f"{ENGINE}, def"}
_ROUND: Final = 5
_HISTORIES: Final = 5
TASK_EVENTS: Final = frozenset(
    number for name, number in EventType.items() if name.startswith("EVENT_TYPE_WORKFLOW_TASK_")
)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run."""

    passes: int
    executions: int
    """Of each shape, one after another, a pass and side."""
    burst: int
    """Executions at once, a pass and side."""


@dataclass(slots=True)
class Comparison:
    """What came of it."""

    sides: dict[str, SideFigures]
    statuses_ms: dict[str, list[float]]
    server_version: str


async def compare(extent: Extent, folder: Path, tell: Callable[[str], None]) -> Comparison:
    """Run everything on a server of its own in ``folder``; ``tell`` gets a line now and then."""
    async with AsyncExitStack() as closing:
        server = await acquire_dev_server(folder / "server")
        closing.push_async_callback(server.aclose)
        children = await _start_all(server.address, folder, closing)
        sides = {child.name: SideFigures() for child in children}
        for child in children:
            for shape in SHAPES:
                await child.run(shape, _ROUND)
        for child in children:
            sides[child.name].base_bytes = await child.rest(1)
        for number in range(extent.passes):
            for shape in SHAPES:
                await _run_in_turn(children, sides, shape, extent.executions, server.address)
            for child in _turned(children, number):
                answer, peak_bytes = await child.burst("chain3", extent.burst)
                sides[child.name].bursts.append(Burst.of(extent.burst, answer, peak_bytes))
            tell(f"pass {number + 1} of {extent.passes} done")
        engine = next(child for child in children if child.name == ENGINE)
        statuses = cast("dict[str, list[float]]", await engine.statuses())
        return Comparison(sides, statuses, server.version)


def worker_figures() -> WorkerFigures:
    """The engine's settings of its worker, for the hand-written side to be equal."""
    return {
        "workflow_tasks": worker_factory.WORKFLOW_TASKS,
        "activities": worker_factory._ACTIVITIES,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - to stay equal
        "pollers": worker_factory._POLLERS,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the same
        "eager_activities": worker_factory._EAGER_ACTIVITIES,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the same
        "heartbeat_timeout": HEARTBEAT_TIMEOUT.total_seconds(),
    }


async def _start_all(address: str, folder: Path, closing: AsyncExitStack) -> list[Child]:
    children: list[Child] = []
    commands = [
        (HAND_WRITTEN, "benchmarks.hand_written", (address, json.dumps(worker_figures()))),
        *((_NAMES[agents], "benchmarks.engine_side", (address, str(folder / agents), agents)) for agents in AGENTS),
    ]
    for name, module, args in commands:
        child = await Child.start(name, module, *args)
        closing.push_async_callback(child.aclose)
        children.append(child)
    return children


async def _run_in_turn(
    children: list[Child], sides: dict[str, SideFigures], shape: str, executions: int, address: str
) -> None:
    latencies: dict[str, list[float]] = {child.name: [] for child in children}
    last_ids: dict[str, list[str]] = {}
    for number in range(-(-executions // _ROUND)):
        for child in _turned(children, number):
            answer = await child.run(shape, min(_ROUND, executions - number * _ROUND))
            latencies[child.name] += cast("list[float]", answer["latencies_ms"])
            last_ids[child.name] = cast("list[str]", answer["execution_ids"])[-_HISTORIES:]
    client = await Client.connect(address)
    for name, side in sides.items():
        side.latencies_ms.setdefault(shape, []).append(latencies[name])
        if shape not in side.histories:
            side.histories[shape] = [await _history(client, execution_id) for execution_id in last_ids[name]]


async def _history(client: Client, execution_id: str) -> History:
    history = await client.get_workflow_handle(execution_id).fetch_history()
    return History(
        events=len(history.events),
        task_events=sum(event.event_type in TASK_EVENTS for event in history.events),
        size_bytes=sum(event.ByteSize() for event in history.events),
    )


def _turned(children: list[Child], number: int) -> list[Child]:
    first = number % len(children)
    return [*children[first:], *children[:first]]
