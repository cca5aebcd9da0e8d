"""Parts of many answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.execution import Usage
from engine.domain.metrics import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from engine import types
    from engine.domain.context import ContextItem
    from engine.domain.execution import Cancellation, ContextSource, ErrorPayload, ExecutionWarning

__all__ = ["cancel", "duration", "error", "instant", "origin", "usage", "warnings"]


def error(stored: ErrorPayload | None) -> types.Error | None:
    """An error inside an answer."""
    if stored is None:
        return None
    return {"code": stored.code, "message": stored.message, "details": stored.details}


def warnings(stored: Iterable[ExecutionWarning]) -> list[types.ExecutionWarning]:
    """The warnings of an execution."""
    return [{"code": item.code, "message": item.message, "step_id": item.step_id} for item in stored]


def usage(stored: Usage) -> types.Usage:
    """What calls cost."""
    return {
        "requests": stored.requests,
        "input_tokens": stored.input_tokens,
        "output_tokens": stored.output_tokens,
        "tool_calls": stored.tool_calls,
        "cost_usd": stored.cost_usd,
    }


def instant(at: datetime | None) -> str | None:
    """An instant that may be absent."""
    return None if at is None else format_instant(at)


def cancel(stored: Cancellation) -> types.Cancel:
    """Why, by whom and when an execution was cancelled."""
    return {"reason": stored.reason, "by": stored.by, "at": instant(stored.at)}


def origin(item: ContextSource | ContextItem) -> types.ContextOrigin:
    """Where a context item came from."""
    return {"execution_id": item.execution_id, "step_id": item.step_id, "agent_id": item.agent_id}


def duration(started_at: datetime | None, completed_at: datetime | None) -> float | None:
    """Seconds from start to end, when both are known."""
    if started_at is None or completed_at is None:
        return None
    return max((completed_at - started_at).total_seconds(), 0.0)
