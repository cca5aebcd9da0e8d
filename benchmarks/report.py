"""The result as text for a terminal or as Markdown: two tables, every figure beside the one it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bars import Bar
    from benchmarks.figures import SideFigures

__all__ = ["markdown", "text"]

_MB: Final = 1_000_000
_COUNTERS: Final = {
    "synced commits": "SQLite syncs a step",
    "record writes": "record writes a step",
    "live-state writes": "live-state writes a step",
}


def text(facts: list[str], sides: dict[str, SideFigures], found: list[Bar]) -> str:
    """Write it for a terminal of 100 columns."""
    return "\n\n".join(["\n".join(facts), _aligned(_side_rows(sides)), _aligned(_bar_rows(found))])


def markdown(facts: list[str], sides: dict[str, SideFigures], found: list[Bar]) -> str:
    """Write it for a page of the documentation."""
    return "\n\n".join(["\n".join(f"- {fact}" for fact in facts), _piped(_side_rows(sides)), _piped(_bar_rows(found))])


def _side_rows(sides: dict[str, SideFigures]) -> list[list[str]]:
    rows: list[tuple[str, Callable[[SideFigures], str]]] = [
        *((f"{shape}, median ms", _latency(shape)) for shape in SHAPES),
        ("one more step, ms", lambda side: f"{side.step_ms():.1f}"),
        ("burst, executions a second", lambda side: f"{side.rate():.1f}"),
        ("burst, p95 s", lambda side: f"{side.burst_p95_ms() / 1000:.2f}"),
        ("burst, failed", lambda side: str(side.failed())),
        ("burst, CPU ms a step", lambda side: f"{side.cpu_ms_a_step():.2f}"),
        *((title, _counter(name)) for name, title in _COUNTERS.items()),
        *((f"{shape}, events (all)", _events(shape)) for shape in SHAPES),
        *((f"{shape}, history bytes", _bytes(shape)) for shape in SHAPES),
        (
            "memory, base / peak MB",
            lambda side: f"{side.base_bytes / _MB:.0f} / {side.peak_bytes() / _MB:.0f}",
        ),
    ]
    return [["", *sides], *([title, *(write(side) for side in sides.values())] for title, write in rows)]


def _latency(shape: str) -> Callable[[SideFigures], str]:
    return lambda side: f"{side.latency_ms(shape):.1f}"


def _counter(name: str) -> Callable[[SideFigures], str]:
    def write(side: SideFigures) -> str:
        count = side.count_a_step(name)
        return "-" if count is None else f"{count:.2f}"

    return write


def _events(shape: str) -> Callable[[SideFigures], str]:
    return lambda side: f"{side.own_events(shape):.0f} ({side.all_events(shape):.0f})"


def _bytes(shape: str) -> Callable[[SideFigures], str]:
    return lambda side: f"{side.history_bytes(shape):,.0f}"


def _bar_rows(found: list[Bar]) -> list[list[str]]:
    rows = [[bar.name, bar.text, "pass" if bar.is_reached else "FAIL", bar.note] for bar in found]
    return [["against its bar", "measured", "", ""], *rows]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _piped(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])
