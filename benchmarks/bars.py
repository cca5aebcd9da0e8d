"""The bars that Baton holds itself to, on a machine of two cores, and what was measured against each."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.comparison import ENGINE, HAND_WRITTEN
from benchmarks.shapes import SHAPES

if TYPE_CHECKING:
    from benchmarks.comparison import Comparison

__all__ = ["Bar", "StartUp", "bars"]

_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class StartUp:
    """What needs no server, in milliseconds."""

    help_ms: float
    import_ms: float
    interpreter_ms: float
    compile_ms: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and what it has to be."""

    name: str
    value: float
    limit: float
    form: str
    """How value and limit are written, as ``str.format`` takes it."""
    at_least: bool = False
    note: str = ""

    @property
    def is_reached(self) -> bool:
        """Whether it is as good as it has to be."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def text(self) -> str:
        """The value beside its bar."""
        side = "at least " if self.at_least else ""
        return f"{self.form.format(self.value)} (bar {side}{self.form.format(self.limit)})"


def bars(comparison: Comparison, start_up: StartUp) -> list[Bar]:
    """Hold everything against its bar."""
    ours, theirs = comparison.sides[ENGINE], comparison.sides[HAND_WRITTEN]
    rate = ours.rate() / theirs.rate() if theirs.rate() else 0.0
    found = [
        Bar(f"history events, {shape}", ours.own_events(shape) - theirs.own_events(shape), 2, "{:+.0f}")
        for shape in ("chain3", "dag10")
    ]
    for shape in SHAPES:
        paired = [
            one / other
            for one, other in zip(ours.pass_latencies_ms(shape), theirs.pass_latencies_ms(shape), strict=True)
        ]
        ratio = ours.latency_ms(shape) / theirs.latency_ms(shape)
        spread = f"passes {min(paired):.2f} to {max(paired):.2f}"
        found.append(Bar(f"latency, {shape}", ratio, 1.3, "{:.2f}x", note=spread))
    found += [
        Bar("burst, executions a second", rate, 0.75, "{:.2f}x", at_least=True),
        Bar("burst, failed", ours.failed(), 0, "{:.0f}"),
        *(
            Bar(f"status, {kind}, p50", median(times), 8 if kind.startswith("asking") else 3, "{:.1f} ms")
            for kind, times in comparison.statuses_ms.items()
        ),
        Bar("memory, base, against by hand", ours.base_bytes / theirs.base_bytes, 1.3, "{:.2f}x"),
        Bar("memory, base", ours.base_bytes / _MB, 150, "{:.0f} MB"),
        Bar("memory, peak, against by hand", ours.peak_bytes() / theirs.peak_bytes(), 1.3, "{:.2f}x"),
        Bar("memory, peak in the burst", ours.peak_bytes() / _MB, 250, "{:.0f} MB"),
        Bar("./baton --help", start_up.help_ms / 1000, 0.4, "{:.2f} s"),
        Bar(
            "import engine",
            start_up.import_ms / 1000,
            0.1,
            "{:.3f} s",
            note=f"{start_up.interpreter_ms / 1000:.3f} s of it Python's own",
        ),
        Bar("check and compile 1,000 steps", start_up.compile_ms, 150, "{:.0f} ms"),
    ]
    return found
