"""Which request, execution and step the running code serves.

Context variables, so that a log line or an error names them without every function passing them on.
A leaf: it imports nothing of Baton.
"""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("baton_request_id", default=None)
execution_id: ContextVar[str | None] = ContextVar("baton_execution_id", default=None)
step_id: ContextVar[str | None] = ContextVar("baton_step_id", default=None)


def current_request_id() -> str | None:
    """Return the id of the facade call being served (``req-...``), or None outside of one."""
    return request_id.get()
