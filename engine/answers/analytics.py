"""What health says when nothing can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from datetime import datetime

    from engine import types
    from engine.errors import EngineError

__all__ = ["unusable"]


def unusable(fault: EngineError, at: datetime) -> types.SystemHealth:
    """Answer of ``get_system_health`` when the settings themselves can't be used."""
    down: types.Component = {
        "status": "down",
        "backend": "unknown",
        "latency_ms": None,
        "version": None,
        "detail": fault.message,
    }
    names = ("temporal", "workers", "definitions", "executions", "state", "vectors")
    return {"status": "unhealthy", "components": dict.fromkeys(names, down), "checked_at": format_instant(at)}
