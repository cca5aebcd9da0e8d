"""What needs no server: how long programs take to start, and a large definition to be checked and compiled."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.child import ROOT
from benchmarks.shapes import ADD_AGENT, long_chain
from engine.domain.agent import Agent
from engine.domain.definition import DefinitionVersion
from engine.domain.plan_compiler import compile_plan
from engine.domain.validation import parse_definition

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compile_ms", "help_ms", "import_ms", "interpreter_ms"]

_RUNS: Final = 7
_STEPS: Final = 1000
_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def help_ms() -> float:
    """``./baton --help``, the whole process. Its first run, uncounted, may install the environment."""
    return _median_ms(lambda: _run(str(ROOT / "baton"), "--help"))


def import_ms() -> float:
    """``python -c "import engine"``, the whole process."""
    return _median_ms(lambda: _run(sys.executable, "-c", "import engine"))


def interpreter_ms() -> float:
    """``python -c pass``: the part of the above that is Python's own."""
    return _median_ms(lambda: _run(sys.executable, "-c", "pass"))


def compile_ms() -> float:
    """Checking and compiling a definition of 1,000 steps."""
    document = {"name": "long", "steps": long_chain(_STEPS).definition_steps()}
    agent = Agent(agent_id=ADD_AGENT, name=ADD_AGENT, kind="python", content_hash="", created_at=_NOW, updated_at=_NOW)

    def check_and_compile() -> None:
        parsed = parse_definition(document)
        if parsed.definition is None:
            raise ValueError(f"the definition has issues: {parsed.issues}")
        stored = DefinitionVersion(
            definition_id="long",
            version=1,
            content_hash="",
            definition=parsed.definition,
            created_at=_NOW,
            updated_at=_NOW,
        )
        plan = compile_plan(stored, {ADD_AGENT: agent}, [], 3)
        if len(plan.steps) != _STEPS or plan.steps[-1].depends_on != [f"s{_STEPS - 1}"]:
            raise ValueError("the plan is not the definition's")

    return _median_ms(check_and_compile)


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _median_ms(work: Callable[[], None]) -> float:
    work()
    times: list[float] = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return median(times)
