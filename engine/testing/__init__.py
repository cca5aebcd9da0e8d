"""Doubles for users' own tests, on an engine that is real in all other respects.

Agents that follow a script, a model's server that does, and recorded runs that are played again. Names load on first
use, so that a test pays only for what it takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.testing.comparison import RunComparison, compare_runs
    from engine.testing.model_stub import ModelStub
    from engine.testing.recording import Recording
    from engine.testing.replay import ReplayAgentInvoker, replay_recording
    from engine.testing.scripted import ScriptedAgentInvoker

__all__ = [
    "ModelStub",
    "Recording",
    "ReplayAgentInvoker",
    "RunComparison",
    "ScriptedAgentInvoker",
    "compare_runs",
    "replay_recording",
]

_HOMES = {
    "ModelStub": "engine.testing.model_stub",
    "Recording": "engine.testing.recording",
    "ReplayAgentInvoker": "engine.testing.replay",
    "RunComparison": "engine.testing.comparison",
    "ScriptedAgentInvoker": "engine.testing.scripted",
    "compare_runs": "engine.testing.comparison",
    "replay_recording": "engine.testing.replay",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine.testing' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
