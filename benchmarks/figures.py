"""What was measured of a side, and the figures that follow from it. Times in milliseconds unless named otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

__all__ = ["Burst", "History", "SideFigures", "p95"]


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst."""

    executions: int
    seconds: float
    latencies_ms: list[float]
    failed: int
    faults: list[str]
    cpu_ms_a_step: float
    counts_a_step: dict[str, float]
    peak_bytes: int

    @classmethod
    def of(cls, executions: int, answer: JsonObject, peak_bytes: int) -> Burst:
        """Read a side's answer."""
        return cls(executions=executions, peak_bytes=peak_bytes, **answer)  # pyright: ignore[reportArgumentType] # our own answer

    @property
    def rate(self) -> float:
        """Executions a second."""
        return (self.executions - self.failed) / self.seconds


@dataclass(frozen=True, slots=True)
class History:
    """One execution's events in Temporal."""

    events: int
    task_events: int
    """Those of workflow tasks, whose number depends on how answers fall together."""
    size_bytes: int


@dataclass(slots=True)
class SideFigures:
    """Everything that one side showed."""

    latencies_ms: dict[str, list[list[float]]] = field(default_factory=dict[str, list[list[float]]])
    """By shape, one list a pass."""
    bursts: list[Burst] = field(default_factory=list[Burst])
    histories: dict[str, list[History]] = field(default_factory=dict[str, list[History]])
    base_bytes: int = 0

    def latency_ms(self, shape: str) -> float:
        """The median over all passes."""
        return median(one for of_pass in self.latencies_ms[shape] for one in of_pass)

    def pass_latencies_ms(self, shape: str) -> list[float]:
        """The median of each pass."""
        return [median(of_pass) for of_pass in self.latencies_ms[shape]]

    def rate(self) -> float:
        """Executions a second in the median burst."""
        return median(burst.rate for burst in self.bursts)

    def burst_p95_ms(self) -> float:
        """95th percentile of latency in the median burst; 0 when nothing ended."""
        return median(p95(burst.latencies_ms) for burst in self.bursts)

    def failed(self) -> int:
        """Failed executions of all bursts."""
        return sum(burst.failed for burst in self.bursts)

    def peak_bytes(self) -> float:
        """Most resident memory during the median burst."""
        return median(burst.peak_bytes for burst in self.bursts)

    def cpu_ms_a_step(self) -> float:
        """Processor time of the whole process in the median burst."""
        return median(burst.cpu_ms_a_step for burst in self.bursts)

    def count_a_step(self, name: str) -> float | None:
        """A counter's rise in the median burst; None when the side does not count that."""
        counts = [burst.counts_a_step[name] for burst in self.bursts if name in burst.counts_a_step]
        return median(counts) if counts else None

    def step_ms(self) -> float:
        """What one more step in a row costs."""
        return (self.latency_ms("chain10") - self.latency_ms("chain3")) / 7

    def own_events(self, shape: str) -> float:
        """History events that are not a workflow task's."""
        return median(one.events - one.task_events for one in self.histories[shape])

    def all_events(self, shape: str) -> float:
        """All history events."""
        return median(one.events for one in self.histories[shape])

    def history_bytes(self, shape: str) -> float:
        """Size of the whole history."""
        return median(one.size_bytes for one in self.histories[shape])

    def as_json(self) -> JsonObject:
        """All of it."""
        return cast(
            "JsonObject",
            {
                "latency_ms": {shape: self.latency_ms(shape) for shape in self.latencies_ms},
                "pass_latencies_ms": {shape: self.pass_latencies_ms(shape) for shape in self.latencies_ms},
                "step_ms": self.step_ms(),
                "burst_executions_per_second": self.rate(),
                "burst_rates": [burst.rate for burst in self.bursts],
                "burst_p95_ms": self.burst_p95_ms(),
                "failed": self.failed(),
                "faults": [fault for burst in self.bursts for fault in burst.faults],
                "cpu_ms_a_step": self.cpu_ms_a_step(),
                "counts_a_step": {name: self.count_a_step(name) for name in self.bursts[0].counts_a_step},
                "base_bytes": self.base_bytes,
                "peak_bytes": self.peak_bytes(),
                "own_events": {shape: self.own_events(shape) for shape in self.histories},
                "all_events": {shape: self.all_events(shape) for shape in self.histories},
                "history_bytes": {shape: self.history_bytes(shape) for shape in self.histories},
            },
        )


def p95(values: list[float]) -> float:
    """95th percentile; 0 of nothing."""
    return quantiles(values, n=20)[-1] if len(values) > 1 else sum(values)
