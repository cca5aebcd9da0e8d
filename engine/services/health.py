"""The health report: every part is asked at once, and whoever does not answer in time is down.

A report that hangs or fails is the one thing a health check must not be, so nothing that a check does gets out of
here. What a fault says is shown only when it is Baton's own error, whose messages hold no credentials; of any
other only the type is named.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from engine.domain.metrics import format_instant
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.health import HealthCheck

__all__ = ["ComponentHealth", "ComponentStatus", "HealthService"]

T = TypeVar("T")

ComponentStatus = Literal["up", "degraded", "down", "no_worker"]

STORES: Final = ("definitions", "executions", "state", "vectors")
VITAL: Final = ("temporal", "definitions", "executions")
"""Without one of these nothing works; without another one things work, slower or later."""
WITHOUT: Final = {
    "temporal": "nothing starts, and nothing that runs goes on",
    "workers": "executions stand still",
    "definitions": "only what was read of late can be executed, and nothing can be changed",
    "executions": "nothing starts; what runs waits to be recorded",
    "state": "all answers stay right and take longer, and watching shows no agent's progress",
    "vectors": "executions run, and context is not found by its meaning",
}
"""What is lost while a component is down, for people."""
DEADLINE: Final = timedelta(seconds=1.5)
"""For each check, all of them at once, so that the report as a whole stays within 2 s."""


_UNKNOWN_WORKERS: Final = "Temporal did not say whether workers are there"


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """How one part of the engine is."""

    status: ComponentStatus
    backend: str | None = None
    """What it is: ``sqlite``, ``neo4j``, ``temporal``."""
    latency: timedelta | None = None
    """Of one round trip."""
    version: str | None = None
    detail: str | None = None
    """For people: what is wrong and what to do."""

    def to_dict(self) -> JsonObject:
        """Return it as the report shows it, the latency in milliseconds."""
        latency_ms = None if self.latency is None else round(self.latency / timedelta(milliseconds=1), 3)
        return {
            "status": self.status,
            "backend": self.backend,
            "latency_ms": latency_ms,
            "version": self.version,
            "detail": self.detail,
        }


class HealthService:
    """Reports how the engine's parts are.

    Args:
        checks: a check for each of ``definitions``, ``executions``, ``state`` and ``vectors``.
        runtime_probe: returns the health of Temporal and of its workers.
        clock: the present, aware UTC.
        deadline: how long each check may take.
    """

    def __init__(
        self,
        checks: Mapping[str, HealthCheck],
        runtime_probe: Callable[[], Awaitable[tuple[ComponentHealth, ComponentHealth]]],
        clock: Callable[[], datetime],
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._checks = {name: checks[name] for name in STORES}
        self._runtime_probe = runtime_probe
        self._clock = clock
        self._deadline = deadline

    async def report(self) -> JsonObject:
        """Return ``{status, components, checked_at}`` within 2 s; never raises (but is cancelled as any call is).

        ``unhealthy``: Temporal, definitions or executions are down. ``degraded``: anything else is not up.
        """
        checked_at = self._clock()
        (temporal, workers), stores = await asyncio.gather(
            self._answer(self._runtime_probe, lambda why: (_down("temporal", why), _down("workers", _UNKNOWN_WORKERS))),
            asyncio.gather(
                *(
                    self._answer(_check_of(check), functools.partial(_down, name))
                    for name, check in self._checks.items()
                )
            ),
        )
        components = {"temporal": temporal, "workers": workers, **dict(zip(self._checks, stores, strict=True))}
        shown: dict[str, JsonValue] = {name: component.to_dict() for name, component in components.items()}
        return {"status": _overall(components), "components": shown, "checked_at": format_instant(checked_at)}

    async def _answer(self, ask: Callable[[], Awaitable[T]], otherwise: Callable[[str], T]) -> T:
        """What ``ask`` returns, or ``otherwise`` with the reason when it fails or does not answer in time."""

        async def asked() -> T:
            return await ask()

        task = asyncio.create_task(asked())
        task.add_done_callback(_take_exception)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._deadline.total_seconds())
        finally:
            # One that does not let itself be cancelled is left behind rather than waited for.
            task.cancel()
        if not done:
            return otherwise(f"No answer within {self._deadline.total_seconds():g} s")
        if task.cancelled():
            return otherwise("The check was cancelled")
        error = task.exception()
        return task.result() if error is None else otherwise(_words(error))


def _take_exception(task: asyncio.Task[T]) -> None:
    # Of a task that was left behind nobody asks for it, which asyncio would report.
    if not task.cancelled():
        task.exception()


def _check_of(check: HealthCheck) -> Callable[[], Awaitable[ComponentHealth]]:
    async def ask() -> ComponentHealth:
        started = time.perf_counter()
        health = await check.check_health()
        latency = timedelta(seconds=time.perf_counter() - started)
        return ComponentHealth("up", health.backend, latency, health.version, health.detail)

    return ask


def _down(name: str, why: str) -> ComponentHealth:
    return ComponentHealth("down", detail=f"{why.rstrip('.')}. Without it {WITHOUT[name]}.")


def _words(error: BaseException) -> str:
    return error.message if isinstance(error, EngineError) else f"The check failed: {type(error).__name__}"


def _overall(components: Mapping[str, ComponentHealth]) -> str:
    if any(components[name].status == "down" for name in VITAL):
        return "unhealthy"
    return "healthy" if all(component.status == "up" for component in components.values()) else "degraded"
