"""Measures wide and long runs: `python -m benchmarks.flow`.

A thousand and two thousand steps in a row, a step over a thousand and two thousand items, and two hundred steps of
which half are skipped or transforms, against the same calls in a hand-written workflow: on one development server, in
turns, each side in a process of its own. Every answer is checked. Exits 1 when a bar is missed.

The hand-written side never continues as new, which it should from 4,096 events on and which saves it a few events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, cast

import psutil
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from benchmarks.bars import Bar
from benchmarks.child import Child
from benchmarks.comparison import ENGINE, HAND_WRITTEN, TASK_EVENTS, worker_figures
from benchmarks.shapes import FLOW_SHAPES
from engine.adapters.temporal.dev_server import acquire_dev_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from temporalio.api.history.v1 import HistoryEvent

__all__ = ["RunsHistory", "flow_bars", "main"]

_PAIRS: Final = (("chain1000", "chain2000"), ("foreach1000", "foreach2000"))
_WARM_UP: Final = "chain10"
_REPEATED: Final = (EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT)
_DECISIONS: Final = "decisions200"


@dataclass(frozen=True, slots=True)
class RunsHistory:
    """The events of an execution, of all the runs that continue each other as new."""

    runs: int
    events: int
    task_events: int
    """Those of workflow tasks, whose number depends on how answers fall together."""
    repeated_tasks: int
    """Workflow tasks that failed or timed out. The server fails one while which more than a hundred events arrived."""
    activities: int
    size_bytes: int

    @classmethod
    def of(cls, runs: Sequence[Sequence[HistoryEvent]]) -> RunsHistory:
        """Count the events of each run."""
        events = [event for run in runs for event in run]
        return cls(
            runs=len(runs),
            events=len(events),
            task_events=sum(event.event_type in TASK_EVENTS for event in events),
            repeated_tasks=sum(event.event_type in _REPEATED for event in events),
            activities=sum(event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED for event in events),
            size_bytes=sum(event.ByteSize() for event in events),
        )


@dataclass(slots=True)
class ShapeFigures:
    """What a side showed of a shape, an entry for each pass."""

    seconds: list[float] = field(default_factory=list[float])
    cpu_ms_a_call: list[float] = field(default_factory=list[float])
    """Of the side's process: worker, client, and our stores."""
    server_cpu_ms_a_call: list[float] = field(default_factory=list[float])
    record_writes_a_call: list[float] = field(default_factory=list[float])
    """Ours alone; empty by hand."""
    histories: list[RunsHistory] = field(default_factory=list[RunsHistory])

    def cpu_ms(self) -> float:
        """Processor time of a call, the side's and the server's, in the median pass."""
        return median(one + other for one, other in zip(self.cpu_ms_a_call, self.server_cpu_ms_a_call, strict=True))

    def middle(self, read: Callable[[RunsHistory], float]) -> float:
        """The median of something that its histories have."""
        return median(read(history) for history in self.histories)


Figures = dict[str, dict[str, ShapeFigures]]
"""By side, then by shape."""


def main() -> int:
    """Measure, print Markdown, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3, help="how often each shape is run (%(default)s)")
    parser.add_argument("--shapes", nargs="+", choices=[*FLOW_SHAPES], default=[*FLOW_SHAPES], help="only these")
    options = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="baton-benchmark-") as folder:
        figures, version = asyncio.run(_measure(Path(folder), options.passes, options.shapes))
    print(
        f"- {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, Temporal CLI {version}; "
        f"load {load:.1f} before, {os.getloadavg()[0]:.1f} at the end\n"
        f"- passes: {options.passes}; {time.monotonic() - began:.0f} s in all\n"
    )
    print(_table(figures))
    found = flow_bars(figures)
    print("\n| against its bar | measured |  |  |\n| --- | --- | --- | --- |")
    for bar in found:
        print(f"| {bar.name} | {bar.text} | {'pass' if bar.is_reached else 'FAIL'} | {bar.note} |")
    return 0 if all(bar.is_reached for bar in found) else 1


async def _measure(folder: Path, passes: int, shapes: list[str]) -> tuple[Figures, str]:
    async with AsyncExitStack() as closing:
        server = await acquire_dev_server(folder / "server")
        closing.push_async_callback(server.aclose)
        process = next(one for one in psutil.Process().children(recursive=True) if one.name().startswith("temporal"))
        sides = [
            await Child.start(HAND_WRITTEN, "benchmarks.hand_written", server.address, json.dumps(worker_figures())),
            await Child.start(ENGINE, "benchmarks.engine_side", server.address, str(folder / "engine"), "script"),
        ]
        for side in sides:
            closing.push_async_callback(side.aclose)
            await side.run(_WARM_UP, 1)
        client = await Client.connect(server.address)
        figures: Figures = {side.name: {shape: ShapeFigures() for shape in shapes} for side in sides}
        for number in range(passes):
            for shape in shapes:
                for side in sides if number % 2 else reversed(sides):
                    await _run(client, process, side, shape, figures[side.name][shape])
            print(f"pass {number + 1} of {passes} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        return figures, server.version


async def _run(client: Client, server: psutil.Process, side: Child, shape: str, figures: ShapeFigures) -> None:
    before = server.cpu_times()
    answer = await side.run(shape, 1)
    after = server.cpu_times()
    server_seconds = after.user + after.system - before.user - before.system
    figures.server_cpu_ms_a_call.append(server_seconds * 1000 / FLOW_SHAPES[shape].calls)
    figures.seconds.append(cast("list[float]", answer["latencies_ms"])[0] / 1000)
    figures.cpu_ms_a_call.append(cast("float", answer["cpu_ms_a_step"]))
    counts = cast("dict[str, float]", answer["counts_a_step"])
    figures.record_writes_a_call += [count for name, count in counts.items() if name == "record writes"]
    execution_id = cast("list[str]", answer["execution_ids"])[0]
    figures.histories.append(RunsHistory.of(await _runs(client, execution_id)))


async def _runs(client: Client, execution_id: str) -> list[Sequence[HistoryEvent]]:
    """The events of each run, the last run first."""
    runs: list[Sequence[HistoryEvent]] = []
    run_id: str | None = None
    while True:
        history = await client.get_workflow_handle(execution_id, run_id=run_id).fetch_history()
        runs.append(history.events)
        started = history.events[0].workflow_execution_started_event_attributes
        if not started.continued_execution_run_id:
            return runs
        run_id = started.continued_execution_run_id


def flow_bars(figures: Figures) -> list[Bar]:
    """Hold what was measured against its bars; a shape that was left out has none."""
    ours, theirs = figures[ENGINE], figures[HAND_WRITTEN]
    found: list[Bar] = []
    for short, _ in _PAIRS:
        if short in ours:
            found += _against_hand_written(short, ours[short], theirs[short])
    for short, long in _PAIRS:
        if short in ours and long in ours:
            found += _flatness(short, long, ours, theirs)
    if _DECISIONS in ours:
        more = ours[_DECISIONS].middle(lambda one: one.activities) - FLOW_SHAPES[_DECISIONS].calls
        found.append(Bar(f"activities that are no call, {_DECISIONS}", more, 0, "{:.0f}"))
    return found


def _against_hand_written(shape: str, ours: ShapeFigures, theirs: ShapeFigures) -> list[Bar]:
    all_events = ours.middle(lambda one: one.events) / theirs.middle(lambda one: one.events)
    own_events = ours.middle(_own_events) / theirs.middle(_own_events)
    ratios = [one / other for one, other in zip(ours.seconds, theirs.seconds, strict=True)]
    spread = (
        f"passes {min(ratios):.2f} to {max(ratios):.2f}; CPU with the server's {ours.cpu_ms() / theirs.cpu_ms():.2f}x"
    )
    return [
        Bar(f"events, {shape}", own_events, 1.1, "{:.3f}x", note=f"with those of workflow tasks {all_events:.3f}x"),
        Bar(f"time, {shape}", median(ours.seconds) / median(theirs.seconds), 1.3, "{:.2f}x", note=spread),
    ]


def _flatness(short: str, long: str, ours: dict[str, ShapeFigures], theirs: dict[str, ShapeFigures]) -> list[Bar]:
    by_hand = median(theirs[long].seconds) / median(theirs[short].seconds)
    ratio = median(ours[long].seconds) / median(ours[short].seconds)
    return [
        Bar(f"time, {long} against {short}", ratio, 2.2, "{:.2f}x", note=f"by hand {by_hand:.2f}x"),
        Bar(
            f"CPU, {long} against {short}",
            _cpu_ratio(ours, short, long),
            2.2,
            "{:.2f}x",
            note=f"by hand {_cpu_ratio(theirs, short, long):.2f}x",
        ),
    ]


def _cpu_ratio(side: dict[str, ShapeFigures], short: str, long: str) -> float:
    one, two = (median(side[shape].cpu_ms_a_call) * FLOW_SHAPES[shape].calls for shape in (short, long))
    return two / one


def _own_events(history: RunsHistory) -> float:
    return history.events - history.task_events


def _table(figures: Figures) -> str:
    columns = [
        *("time s", "CPU ms a call", "the server's", "record writes a call", "events", "without workflow tasks"),
        *("repeated tasks", "activities", "runs", "history KB"),
    ]
    lines = [f"|  |  | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    for shape in figures[ENGINE]:
        for name, side in figures.items():
            of_shape = side[shape]
            cells = [
                f"{median(of_shape.seconds):.1f}",
                f"{median(of_shape.cpu_ms_a_call):.2f}",
                f"{median(of_shape.server_cpu_ms_a_call):.2f}",
                f"{median(of_shape.record_writes_a_call):.2f}" if of_shape.record_writes_a_call else "-",
                f"{of_shape.middle(lambda one: one.events):,.0f}",
                f"{of_shape.middle(_own_events):,.0f}",
                f"{of_shape.middle(lambda one: one.repeated_tasks):.0f}",
                f"{of_shape.middle(lambda one: one.activities):,.0f}",
                f"{of_shape.middle(lambda one: one.runs):.0f}",
                f"{of_shape.middle(lambda one: one.size_bytes / 1000):,.0f}",
            ]
            lines.append(f"| {shape} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
