"""One side of the comparison, in a process of its own: it obeys one JSON line on standard input after another.

The sides are timed here, in the process of the caller whom a user would be; memory is looked at from outside.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from benchmarks.shapes import FLOW_SHAPES, SHAPES

if TYPE_CHECKING:
    from benchmarks.shapes import Shape
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["Side", "serve"]

_SHAPES: Final[dict[str, Shape]] = {**SHAPES, **FLOW_SHAPES}


class Side(Protocol):
    """What runs workflows."""

    async def run(self, shape: Shape, number: int) -> tuple[str, JsonValue]:
        """Run one on the shape's input of the number to its end; return its id in Temporal and its output."""
        ...

    def counters(self) -> dict[str, int]:
        """Counts so far of what this side alone does, by name."""
        ...

    async def statuses(self) -> dict[str, list[float]]:
        """Milliseconds of status reads, by the kind of read; empty for a side that has none."""
        ...


async def serve(side: Side) -> None:
    """Answer commands until the end of the input."""
    numbers = iter(range(1, sys.maxsize))
    print(json.dumps({"ready": True}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = cast("dict[str, str | int]", json.loads(line))
        print(json.dumps(await _obey(side, command, numbers.__next__)), flush=True)


async def _obey(side: Side, command: dict[str, str | int], number: Next) -> JsonObject:
    match command:
        case {"do": "run", "shape": str(name), "executions": int(executions)}:
            return await _run_in_turn(side, _SHAPES[name], executions, number)
        case {"do": "burst", "shape": str(name), "executions": int(executions)}:
            return await _run_at_once(side, _SHAPES[name], executions, number)
        case {"do": "statuses"}:
            return {kind: [*times] for kind, times in (await side.statuses()).items()}
        case {"do": "rest", "seconds": int(seconds)}:
            await asyncio.sleep(seconds)
            return {}
        case _:
            raise ValueError(f"no such command: {command}")


async def _run_in_turn(side: Side, shape: Shape, executions: int, number: Next) -> JsonObject:
    latencies: list[JsonValue] = []
    ids: list[JsonValue] = []
    counted, cpu = side.counters(), _cpu_seconds()
    for _ in range(executions):
        execution_id, milliseconds = await _run_one(side, shape, number())
        latencies.append(milliseconds)
        ids.append(execution_id)
    calls = executions * shape.calls
    return {
        "latencies_ms": latencies,
        "execution_ids": ids,
        "cpu_ms_a_step": (_cpu_seconds() - cpu) * 1000 / calls,
        "counts_a_step": _counted(side, counted, calls),
    }


async def _run_at_once(side: Side, shape: Shape, executions: int, number: Next) -> JsonObject:
    counted, cpu, began = side.counters(), _cpu_seconds(), time.perf_counter()
    ends = await asyncio.gather(*(_run_one(side, shape, number()) for _ in range(executions)), return_exceptions=True)
    seconds = time.perf_counter() - began
    faults: list[JsonValue] = [f"{type(end).__name__}: {end}" for end in ends if isinstance(end, BaseException)]
    steps = executions * shape.calls
    return {
        "seconds": seconds,
        "latencies_ms": [end[1] for end in ends if not isinstance(end, BaseException)],
        "failed": len(faults),
        "faults": [*dict.fromkeys(faults)][:5],
        "cpu_ms_a_step": (_cpu_seconds() - cpu) * 1000 / steps,
        "counts_a_step": _counted(side, counted, steps),
    }


def _counted(side: Side, before: dict[str, int], steps: int) -> JsonObject:
    return {name: (count - before[name]) / steps for name, count in side.counters().items()}


async def _run_one(side: Side, shape: Shape, number: int) -> tuple[str, float]:
    began = time.perf_counter()
    execution_id, output = await side.run(shape, number)
    milliseconds = (time.perf_counter() - began) * 1000
    if output != (right := shape.answer(number)):
        raise ValueError(f"{execution_id} of {shape.name} on {number} answered {output}, not {right}"[:2000])
    return execution_id, milliseconds


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Next(Protocol):
    """Hands out numbers, no one twice."""

    def __call__(self) -> int:
        """Return the next."""
        ...
