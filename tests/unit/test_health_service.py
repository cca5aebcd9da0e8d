"""Whatever the parts do, the report comes, tells the worst, and gives nothing away."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import FAILURES_TO_OPEN, StoreGuard
from engine.errors import StoreError
from engine.ports.health import StoreHealth
from engine.services.health import DEADLINE, STORES, WITHOUT, ComponentHealth, HealthService

if TYPE_CHECKING:
    from engine.ports.health import HealthCheck

NOW = datetime(2025, 5, 1, tzinfo=UTC)
PASSWORD = "redis://me:very-private@db/0"


class Well:
    async def check_health(self) -> StoreHealth:
        return StoreHealth("sqlite", "3.40", "fine")


class Broken:
    async def check_health(self) -> StoreHealth:
        raise StoreError("The store does not answer; start it")


class Leaky:
    async def check_health(self) -> StoreHealth:
        raise OSError(f"can't connect to {PASSWORD}")


class Hanging:
    async def check_health(self) -> StoreHealth:
        await asyncio.Event().wait()
        raise AssertionError("never set")


class Stubborn:
    """Does not let itself be cancelled, and fails in the end."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.ended = asyncio.Event()

    async def check_health(self) -> StoreHealth:
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        self.ended.set()
        raise StoreError("too late")


async def runtime_up() -> tuple[ComponentHealth, ComponentHealth]:
    up = ComponentHealth("up", "temporal", timedelta(milliseconds=2.5), "1.29.1")
    return up, ComponentHealth("up", "temporal")


async def runtime_without_worker() -> tuple[ComponentHealth, ComponentHealth]:
    return (await runtime_up())[0], ComponentHealth("no_worker", detail="start worker.py")


async def runtime_broken() -> tuple[ComponentHealth, ComponentHealth]:
    raise ConnectionError(PASSWORD)


def runtime_broken_at_once() -> Any:
    raise ConnectionError(PASSWORD)


async def runtime_hanging() -> tuple[ComponentHealth, ComponentHealth]:
    await asyncio.Event().wait()
    return await runtime_up()


async def report(probe: Any = runtime_up, deadline: timedelta = DEADLINE, **checks: HealthCheck) -> dict[str, Any]:
    parts: dict[str, HealthCheck] = {**{name: Well() for name in STORES}, **checks}
    return await HealthService(parts, probe, lambda: NOW, deadline).report()


def statuses(answer: dict[str, Any]) -> dict[str, str]:
    return {name: component["status"] for name, component in answer["components"].items()}


async def test_when_all_is_well():
    answer = await report()
    assert (answer["status"], answer["checked_at"]) == ("healthy", "2025-05-01T00:00:00.000000Z")
    assert list(answer["components"]) == ["temporal", "workers", "definitions", "executions", "state", "vectors"]
    assert set(statuses(answer).values()) == {"up"}
    assert answer["components"]["temporal"] == {
        "status": "up",
        "backend": "temporal",
        "latency_ms": 2.5,
        "version": "1.29.1",
        "detail": None,
    }
    state = answer["components"]["state"]
    assert (state["backend"], state["version"], state["detail"]) == ("sqlite", "3.40", "fine")
    assert state["latency_ms"] >= 0


@pytest.mark.parametrize(
    ("part", "status"),
    [("definitions", "unhealthy"), ("executions", "unhealthy"), ("state", "degraded"), ("vectors", "degraded")],
)
@pytest.mark.parametrize("check", [Broken(), Leaky(), Hanging()])
async def test_a_store_that_is_down(part: str, status: str, check: HealthCheck):
    answer = await report(deadline=timedelta(milliseconds=50), **{part: check})
    assert answer["status"] == status
    assert {name for name, found in statuses(answer).items() if found == "down"} == {part}
    assert answer["components"][part]["detail"].endswith(f". Without it {WITHOUT[part]}.")
    assert "private" not in str(answer)


async def test_the_words_of_a_fault_of_ours_are_shown_and_of_another_only_its_type():
    answer = await report(state=Broken(), executions=Leaky())
    assert answer["components"]["state"]["detail"].startswith("The store does not answer; start it. Without it ")
    assert answer["components"]["executions"]["detail"].startswith("The check failed: OSError. Without it ")


@pytest.mark.parametrize("probe", [runtime_broken, runtime_broken_at_once, runtime_hanging])
async def test_temporal_is_down(probe: Any):
    answer = await report(probe, timedelta(milliseconds=50))
    assert answer["status"] == "unhealthy"
    assert {name for name, found in statuses(answer).items() if found != "up"} == {"temporal", "workers"}
    for part in ("temporal", "workers"):
        assert WITHOUT[part] in answer["components"][part]["detail"]
    assert "private" not in str(answer)


async def test_no_worker_is_degraded():
    answer = await report(runtime_without_worker)
    assert (answer["status"], statuses(answer)["workers"]) == ("degraded", "no_worker")


async def test_everything_hangs_at_once_and_the_report_still_comes():
    stubborn = Stubborn()
    answer = await asyncio.wait_for(
        report(runtime_hanging, definitions=Hanging(), executions=Hanging(), state=stubborn, vectors=Hanging()),
        timeout=2,
    )
    assert answer["status"] == "unhealthy"
    assert set(statuses(answer).values()) == {"down"}
    assert answer["components"]["state"]["detail"].startswith("No answer within 1.5 s. ")
    stubborn.release.set()
    await stubborn.ended.wait()


async def test_a_store_behind_an_open_circuit_is_down_and_says_why():
    failures = FailureTable("redis", "Redis at db:6379", [Failure(OSError, "can't be reached", is_outage=True)])
    guard = StoreGuard(failures, timedelta(seconds=1))

    async def refused() -> None:
        raise ConnectionRefusedError(PASSWORD)

    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(StoreError):
            await guard.run(refused)

    class Guarded:
        async def check_health(self) -> StoreHealth:
            with contextlib.suppress(StoreError):  # the one call that may look whether it is back
                await guard.run(refused)
            await guard.run(refused)
            raise AssertionError("the circuit let it through")

    answer = await report(state=Guarded())
    assert (answer["status"], statuses(answer)["state"]) == ("degraded", "down")
    assert answer["components"]["state"]["detail"].startswith("Redis at db:6379 has not answered of late")
    assert "private" not in str(answer)


async def test_every_component_says_what_is_lost_without_it():
    answer = await report()
    assert set(WITHOUT) == set(answer["components"])


async def test_a_cancelled_report_leaves_no_check_running():
    started = asyncio.Event()
    ended = asyncio.Event()

    class Watched:
        async def check_health(self) -> StoreHealth:
            started.set()
            try:
                return await Hanging().check_health()
            finally:
                ended.set()

    task = asyncio.create_task(report(deadline=timedelta(seconds=60), state=Watched()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), timeout=5)
