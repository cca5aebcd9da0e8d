"""Measures the stores: `python -m benchmarks.stores`.

The four configured stores against the embedded ones, on one development server, in turns and each in a process of its
own; throughput by the size of the pools; lists and metrics over many executions, embedded. The servers are those of
the tests. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, cast

from benchmarks.bars import Bar
from benchmarks.child import Child
from benchmarks.figures import p95
from engine import WorkflowEngine
from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.temporal.dev_server import acquire_dev_server
from engine.domain.execution import ExecutionRecord, ExecutionStatus, Value
from tests.servers import mongodb, neo4j, pinecone, redis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["main"]

POOLS: Final = (1, 5, 10, 20, 40)
MANY: Final = 100_000
_ROUND: Final = 5
_READS: Final = 100
_PAGE: Final = 20
_FAR_PAGE: Final = 1000
_AT_ONCE: Final = 500


def main() -> int:
    """Measure, print Markdown, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--executions", type=int, default=20, help="of each side in turn, a pass (%(default)s)")
    options = parser.parse_args()
    began = time.monotonic()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="baton-benchmark-") as folder:
        found = asyncio.run(_measure(Path(folder), options.passes, options.executions))
    print(f"- {os.cpu_count()} cores; load {load:.1f} before; {time.monotonic() - began:.0f} s in all\n")
    print("| against its bar | measured |  |  |\n| --- | --- | --- | --- |")
    for bar in found:
        print(f"| {bar.name} | {bar.text} | {'pass' if bar.is_reached else 'FAIL'} | {bar.note} |")
    return 0 if all(bar.is_reached for bar in found) else 1


async def _measure(folder: Path, passes: int, executions: int) -> list[Bar]:
    found: list[Bar] = []
    async with AsyncExitStack() as closing:
        temporal = await acquire_dev_server(folder / "temporal")
        closing.push_async_callback(temporal.aclose)
        stores = await _start_stores(folder, closing)
        found.append(await _compare(temporal.address, folder, stores, passes, executions))
        for size in POOLS:
            rates = await _rates(temporal.address, folder, {**stores, "connection_pool_size": size})
            print(f"pools of {size}: {median(rates):.1f} executions of chain3 a second at 100 at once", flush=True)
    found += await _many(folder / "many")
    return found


async def _start_stores(folder: Path, closing: AsyncExitStack) -> dict[str, str | int]:
    uris: dict[str, str] = {}
    for module in (neo4j, mongodb, redis, pinecone):
        name = module.__name__.rpartition(".")[2]
        own = folder / name
        own.mkdir()
        server = await module.start(own)
        closing.push_async_callback(server.stop)
        uris[name] = server.uri
        print(f"{module.NAME} {server.version}", flush=True)
    return {
        "neo4j_uri": uris["neo4j"],
        "mongo_uri": uris["mongodb"],
        "redis_uri": uris["redis"],
        "pinecone_api_key": pinecone.API_KEY,
        "pinecone_host": uris["pinecone"],
    }


async def _compare(address: str, folder: Path, stores: dict[str, str | int], passes: int, executions: int) -> Bar:
    """The latency of chain3 on the four stores against the embedded ones."""
    async with AsyncExitStack() as closing:
        sides: list[Child] = []
        for name, config in (("embedded", {}), ("four stores", stores)):
            side = await Child.start(
                name, "benchmarks.engine_side", address, str(folder / name), "script", json.dumps(config)
            )
            closing.push_async_callback(side.aclose)
            await side.run("chain3", _ROUND)
            sides.append(side)
        times: dict[str, list[list[float]]] = {side.name: [] for side in sides}
        for _ in range(passes):
            of_pass: dict[str, list[float]] = {side.name: [] for side in sides}
            for number in range(executions // _ROUND):
                for side in sides if number % 2 else reversed(sides):
                    answer = await side.run("chain3", _ROUND)
                    of_pass[side.name] += cast("list[float]", answer["latencies_ms"])
            for name, latencies in of_pass.items():
                times[name].append(latencies)
    whole = {name: median(one for latencies in of_side for one in latencies) for name, of_side in times.items()}
    paired = [
        median(ours) / median(theirs) for ours, theirs in zip(times["four stores"], times["embedded"], strict=True)
    ]
    note = f"{whole['four stores']:.1f} and {whole['embedded']:.1f} ms; passes {min(paired):.2f} to {max(paired):.2f}"
    return Bar(
        "chain3 on four stores, against embedded", whole["four stores"] / whole["embedded"], 1.25, "{:.2f}x", note=note
    )


async def _rates(address: str, folder: Path, stores: dict[str, str | int]) -> list[float]:
    """Executions a second in three bursts of 100."""
    side = await Child.start(
        "pool", "benchmarks.engine_side", address, str(folder / "pool"), "script", json.dumps(stores)
    )
    try:
        await side.run("chain3", _ROUND)
        rates: list[float] = []
        for _ in range(3):
            answer, _ = await side.burst("chain3", 100)
            if answer["failed"]:
                raise RuntimeError(f"{answer['failed']} failed: {answer['faults']}")
            rates.append(100 / cast("float", answer["seconds"]))
        return rates
    finally:
        await side.aclose()


async def _many(folder: Path) -> list[Bar]:
    """Lists and metrics over many executions, and a definition out of the cache."""
    now = datetime.now(UTC)
    database = SqliteDatabase(folder / "baton.db")
    store = SqliteExecutionStore(database, Codec())
    for first in range(0, MANY, _AT_ONCE):
        await asyncio.gather(*(_insert(store, number, now) for number in range(first, first + _AT_ONCE)))
    await database.aclose()
    async with WorkflowEngine({"data_dir": str(folder), "worker": "none"}) as engine:
        await engine.register_agent("a", agent_id="agent-a", config={"function": "agents:a"})
        workflow_id = await engine.create_workflow("Flow", [{"id": "a", "agent_id": "agent-a"}], workflow_id="flow")
        cursor: str | None = None
        for _ in range(_FAR_PAGE - 1):
            cursor = (await engine.list_executions(limit=_PAGE, cursor=cursor))["next_cursor"]
        far_cursor = cursor
        near = await _times(lambda: engine.list_executions(limit=_PAGE))
        far = await _times(lambda: engine.list_executions(limit=_PAGE, cursor=far_cursor))
        metrics = await _times(lambda: engine.get_workflow_metrics(workflow_id, "last_30_days"))
        cached = await _times(lambda: engine.get_workflow(workflow_id))
    return [
        Bar(f"page 1 of {MANY:,} executions, p95", p95(near), 20, "{:.1f} ms"),
        Bar(f"page {_FAR_PAGE:,} of {MANY:,}, p95", p95(far), 20, "{:.1f} ms"),
        Bar("page 1,000 against page 1, p50", median(far) / median(near), 1.5, "{:.2f}x"),
        Bar(f"metrics over {MANY:,} executions of 30 days, p95", p95(metrics), 100, "{:.0f} ms"),
        Bar("get_workflow from the cache, p50", median(cached), 1, "{:.2f} ms"),
    ]


async def _insert(store: SqliteExecutionStore, number: int, now: datetime) -> None:
    created_at = now - timedelta(seconds=number * 25)
    failed = number % 20 == 0
    record = ExecutionRecord(
        execution_id=f"flow-{number:06}",
        definition_id="flow",
        version=1,
        plan_hash="sha256:0",
        status=ExecutionStatus.FAILED if failed else ExecutionStatus.COMPLETED,
        input=Value.of({"topic": f"number {number}"}),
        input_hash="sha256:0",
        step_ids=["a"],
        created_at=created_at,
        started_at=created_at,
        completed_at=created_at + timedelta(milliseconds=100 + number * 7919 % 9000),
        output=None if failed else Value.of({"text": "done"}),
    )
    await store.create_execution(record, None)


async def _times(read: Callable[[], Awaitable[object]]) -> list[float]:
    await read()
    times: list[float] = []
    for _ in range(_READS):
        began = time.perf_counter()
        await read()
        times.append((time.perf_counter() - began) * 1000)
    return times


if __name__ == "__main__":
    sys.exit(main())
