"""Measures steps of model agents: `python -m benchmarks.models`.

The model is a stub in a process of its own that takes a tenth of a second for an answer. Its own time is what a bare
HTTP request to it takes; what a step takes longer than that, from its agent's call to its record, is what Baton and
the client library add. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx2
import psutil

from benchmarks.bars import Bar
from engine import WorkflowEngine
from engine.testing import ModelStub

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["main"]

ANSWER_SECONDS: Final = 0.1
HELD_SECONDS: Final = 5.0
SAMPLES: Final = 40
AT_ONCE: Final = 100
_TEXT: Final = "A text of some forty words, as models write it. " * 5
_STEP: Final = {"id": "a", "agent_id": "agent-model", "retry_policy": {"max_retries": 0}}
_REQUEST: Final = {"model": "quick", "messages": [{"role": "user", "content": "What is durable execution?"}]}


def main() -> int:
    """Measure, print Markdown, and return the exit code."""
    if sys.argv[1:] == ["--stub"]:
        return _serve()
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="baton-benchmark-") as folder, _stub() as base_url:
        found = asyncio.run(_measure(folder, base_url))
    print(f"- {os.cpu_count()} cores; load {load:.1f} before; {time.monotonic() - began:.0f} s in all\n")
    print("| against its bar | measured |  |  |\n| --- | --- | --- | --- |")
    for bar in found:
        print(f"| {bar.name} | {bar.text} | {'pass' if bar.is_reached else 'FAIL'} | {bar.note} |")
    return 0 if all(bar.is_reached for bar in found) else 1


def _serve() -> int:
    models = {"quick": ModelStub.slow(ANSWER_SECONDS, _TEXT), "held": ModelStub.slow(HELD_SECONDS, _TEXT)}
    with ModelStub(models=models) as stub:
        print(stub.base_url, flush=True)
        sys.stdin.read()
    return 0


@contextmanager
def _stub() -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.models", "--stub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if process.stdin is None or process.stdout is None:
        raise TypeError("both are pipes")
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


async def _measure(folder: str, base_url: str) -> list[Bar]:
    os.environ["BATON_SECRET_OPENAI_API_KEY"] = "key-for-the-stub"
    async with WorkflowEngine({"data_dir": folder, "llm_base_url": base_url}) as engine:
        await engine.register_agent("Model", config={"model": "quick"}, agent_id="agent-model")
        await engine.register_agent("Held", config={"model": "held"}, agent_id="agent-held")
        quick = await engine.create_workflow(name="quick", steps=[_STEP])
        held = await engine.create_workflow(name="held", steps=[_STEP | {"agent_id": "agent-held"}])
        await _step_ms(engine, quick)
        own: list[float] = []
        steps: list[float] = []
        async with httpx2.AsyncClient() as client:
            for _ in range(SAMPLES):
                own.append(await _request_ms(client, base_url))
                steps.append(await _step_ms(engine, quick))
        more_mb = await _memory_mb(engine, held)
    added = median(steps) - median(own)
    return [
        Bar(
            "a step of a model agent, more than the stub's own time, p50",
            added,
            25,
            "{:.1f} ms",
            note=f"{median(steps):.1f} and {median(own):.1f} ms",
        ),
        Bar(f"memory, {AT_ONCE} such steps at once, more than idle", more_mb, 100, "{:.0f} MB"),
    ]


async def _request_ms(client: httpx2.AsyncClient, base_url: str) -> float:
    began = time.perf_counter()
    (await client.post(f"{base_url}/chat/completions", json=_REQUEST)).raise_for_status()
    return (time.perf_counter() - began) * 1000


async def _step_ms(engine: WorkflowEngine, workflow_id: str) -> float:
    execution = await engine.execute_workflow(workflow_id, {"question": "What is durable execution?"})
    result = await engine.get_execution_result(execution["execution_id"], wait=60)
    step: dict[str, Any] = json.loads(json.dumps(result["steps"]["a"]))
    if step["status"] != "completed":
        raise RuntimeError(f"the step ended as {step}")
    took = datetime.fromisoformat(step["completed_at"]) - datetime.fromisoformat(step["started_at"])
    return took.total_seconds() * 1000


async def _memory_mb(engine: WorkflowEngine, workflow_id: str) -> float:
    """Return how much more the process holds while all steps wait for their answers."""
    process = psutil.Process()
    idle = process.memory_info().rss
    starts = [engine.execute_workflow(workflow_id, {"question": f"Number {number}?"}) for number in range(AT_ONCE)]
    executions = await asyncio.gather(*starts)
    most = 0
    ends = [engine.get_execution_result(started["execution_id"], wait=120) for started in executions]
    waiting = asyncio.gather(*ends)
    while not waiting.done():
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(0.02)
    if any(result["status"] != "completed" for result in await waiting):
        raise RuntimeError("a step failed")
    return (most - idle) / 2**20


if __name__ == "__main__":
    sys.exit(main())
