"""The measure: the same workflows as one would write them for Temporal by hand, with every setting that ours has.

No sandbox, eager start, the same converter and codec, client and worker in one process, the worker's figures as the
engine's (handed over, so that they stay equal). Nothing of the engine but the converter is imported, because memory
is compared.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypedDict, cast

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker

from benchmarks.agents import add_async
from benchmarks.shapes import SHAPES, WINDOW, FanOut, Graph
from benchmarks.side import serve
from engine.adapters.temporal.payloads import data_converter

if TYPE_CHECKING:
    from benchmarks.shapes import Shape
    from engine.domain.json import JsonValue

__all__ = ["WorkerFigures"]

_COMPRESSION_THRESHOLD_BYTES: Final = 1024


class WorkerFigures(TypedDict):
    """The engine's settings of its worker."""

    workflow_tasks: int
    activities: int
    pollers: int
    eager_activities: int
    heartbeat_timeout: float
    """Seconds."""


@activity.defn(name="add")
async def add_activity(given: dict[str, int]) -> dict[str, int]:
    """Do the agent's work."""
    return await add_async(given)


_heartbeat_timeout = timedelta(seconds=15)


async def _call(given: dict[str, int]) -> dict[str, int]:
    return await workflow.execute_activity(
        add_activity,
        given,
        start_to_close_timeout=timedelta(seconds=300),
        heartbeat_timeout=_heartbeat_timeout,
        retry_policy=RetryPolicy(maximum_attempts=4),
    )


async def _chain(given: dict[str, int], length: int) -> dict[str, int]:
    for _ in range(length):
        given = await _call(given)
    return given


@workflow.defn(name="chain3")
class Chain3Workflow:
    """Three steps in a row."""

    @workflow.run
    async def run(self, given: dict[str, int]) -> dict[str, int]:
        """Run to the end."""
        return await _chain(given, 3)


@workflow.defn(name="chain10")
class Chain10Workflow:
    """Ten steps in a row."""

    @workflow.run
    async def run(self, given: dict[str, int]) -> dict[str, int]:
        """Run to the end."""
        return await _chain(given, 10)


@workflow.defn(name="dag10")
class Dag10Workflow:
    """Three steps, four beside each other, three more."""

    @workflow.run
    async def run(self, given: dict[str, int]) -> dict[str, int]:
        """Run to the end."""
        given = await _chain(given, 3)
        branches = await asyncio.gather(*(_call(given) for _ in range(4)))
        joined = await _call({f"b{number}": branch["n"] for number, branch in enumerate(branches)})
        return await _chain(joined, 2)


@workflow.defn(name="long_chain")
class LongChainWorkflow:
    """As many steps in a row as asked for."""

    @workflow.run
    async def run(self, given: dict[str, int], length: int) -> dict[str, int]:
        """Run to the end."""
        return await _chain(given, length)


@workflow.defn(name="fan_out")
class FanOutWorkflow:
    """A step for each number, a window of them at once."""

    @workflow.run
    async def run(self, given: dict[str, list[int]], window: int) -> list[dict[str, int]]:
        """Run to the end."""
        free = asyncio.Semaphore(window)

        async def call(number: int) -> dict[str, int]:
            async with free:
                return await _call({"n": number})

        return await asyncio.gather(*(call(number) for number in given["numbers"]))


class HandWrittenSide:
    """Runs the workflows above."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue

    async def run(self, shape: Shape, number: int) -> tuple[str, JsonValue]:
        """See ``Side``."""
        execution_id = f"{shape.name}-{uuid.uuid4().hex}"
        match shape:
            case FanOut():
                name, more = "fan_out", [WINDOW]
            case Graph() if shape.name in SHAPES:
                name, more = shape.name, []
            case _:
                name, more = "long_chain", [shape.calls]
        handle = await self._client.start_workflow(
            name,
            args=[shape.given(number), *more],
            id=execution_id,
            task_queue=self._task_queue,
            request_eager_start=True,
        )
        return execution_id, cast("JsonValue", await handle.result())

    def counters(self) -> dict[str, int]:
        """See ``Side``."""
        return {}

    async def statuses(self) -> dict[str, list[float]]:
        """See ``Side``."""
        return {}


async def main(address: str, figures: WorkerFigures) -> None:
    """Work and answer commands until the end of the input."""
    global _heartbeat_timeout  # noqa: PLW0603 - a workflow takes no settings but through its input, which is measured
    _heartbeat_timeout = timedelta(seconds=figures["heartbeat_timeout"])
    task_queue = f"hand-written-{uuid.uuid4().hex[:8]}"
    client = await Client.connect(address, data_converter=data_converter(_COMPRESSION_THRESHOLD_BYTES))
    with ThreadPoolExecutor(figures["workflow_tasks"]) as executor:
        async with Worker(
            client,
            task_queue=task_queue,
            workflows=[Chain3Workflow, Chain10Workflow, Dag10Workflow, LongChainWorkflow, FanOutWorkflow],
            activities=[add_activity],
            workflow_runner=UnsandboxedWorkflowRunner(),
            workflow_task_executor=executor,
            max_concurrent_workflow_tasks=figures["workflow_tasks"],
            max_concurrent_activities=figures["activities"],
            workflow_task_poller_behavior=PollerBehaviorSimpleMaximum(figures["pollers"]),
            activity_task_poller_behavior=PollerBehaviorSimpleMaximum(figures["pollers"]),
            max_eager_activity_reservations_per_workflow_task=figures["eager_activities"],
            max_heartbeat_throttle_interval=timedelta(seconds=1),
            default_heartbeat_throttle_interval=timedelta(seconds=1),
        ):
            await serve(HandWrittenSide(client, task_queue))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], cast("WorkerFigures", json.loads(sys.argv[2]))))
