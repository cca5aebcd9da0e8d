"""Measures Baton against the same workflows written for Temporal by hand: `python benchmarks/run.py`.

Both work on one development server in one run, in turns, each in a process of its own; so what counts is their ratio
and not the machine. Every answer is checked. Exits 1 when a bar is missed.
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
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.bars import Bar, StartUp, bars
from benchmarks.comparison import Comparison, Extent, compare
from benchmarks.figures import p95
from benchmarks.report import markdown, text
from benchmarks.start_up import compile_ms, help_ms, import_ms, interpreter_ms

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

__all__ = ["main"]

_QUICK = Extent(passes=1, executions=10, burst=100)


def main() -> int:
    """Measure, print, and return the exit code."""
    options = _parser().parse_args()
    extent = _QUICK if options.quick else Extent(options.passes, options.executions, options.burst)
    began, load_before = time.monotonic(), os.getloadavg()[0]
    start_up = StartUp(help_ms(), import_ms(), interpreter_ms(), compile_ms())
    with tempfile.TemporaryDirectory(prefix="baton-benchmark-") as folder:
        comparison = asyncio.run(compare(extent, Path(folder), _tell))
    load = (load_before, os.getloadavg()[0])
    facts = _facts(extent, comparison.server_version, load, time.monotonic() - began)
    found = bars(comparison, start_up)
    print((markdown if options.markdown else text)(facts, comparison.sides, found))
    if options.json is not None:
        options.json.write_text(json.dumps(_as_json(facts, comparison, start_up, found), indent=2), encoding="utf-8")
    return 0 if all(bar.is_reached for bar in found) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=_count, default=4, help="how often everything is run (%(default)s)")
    parser.add_argument(
        "--executions", type=_count, default=20, help="of each shape in turn, a pass and side (%(default)s)"
    )
    parser.add_argument("--burst", type=_count, default=100, help="executions at once (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one pass of 10 executions: a look, no measure")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    return parser


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _facts(extent: Extent, server_version: str, load: tuple[float, float], seconds: float) -> list[str]:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    loads = f"load {load[0]:.1f} before, {load[1]:.1f} at the end"
    amount = f"{extent.executions} executions of each shape and a burst of {extent.burst} chain3"
    return [
        f"{machine}, Temporal CLI {server_version}; {loads}",
        f"passes of {amount} on every side: {extent.passes}; {seconds:.0f} s in all",
    ]


def _as_json(facts: list[str], comparison: Comparison, start_up: StartUp, found: list[Bar]) -> JsonObject:
    return {
        "facts": [*facts],
        "sides": {name: side.as_json() for name, side in comparison.sides.items()},
        "status_ms": {
            kind: {"p50": median(times), "p95": p95(times), "reads": len(times)}
            for kind, times in comparison.statuses_ms.items()
        },
        "start_up": asdict(start_up),
        "bars": [{"name": bar.name, "value": bar.value, "bar": bar.limit, "reached": bar.is_reached} for bar in found],
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
