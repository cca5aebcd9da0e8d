"""Baton: durable agent workflows on Temporal.

    async with WorkflowEngine() as engine:
        workflow_id = await engine.create_workflow(name="...", steps=[...])
        execution = await engine.execute_workflow(workflow_id, {"topic": "..."})
        result = await engine.get_execution_result(execution["execution_id"], wait=60)

Names load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.domain.agent_call import AgentCall, AgentFailure, FailureReason
    from engine.errors import EngineError, ErrorCode
    from engine.facade import WorkflowEngine
    from engine.settings import EngineSettings
    from engine.tools import tool

__all__ = [
    "AgentCall",
    "AgentFailure",
    "EngineError",
    "EngineSettings",
    "ErrorCode",
    "FailureReason",
    "WorkflowEngine",
    "tool",
]

_HOMES = {
    "AgentCall": "engine.domain.agent_call",
    "AgentFailure": "engine.domain.agent_call",
    "EngineError": "engine.errors",
    "EngineSettings": "engine.settings",
    "ErrorCode": "engine.errors",
    "FailureReason": "engine.domain.agent_call",
    "WorkflowEngine": "engine.facade",
    "tool": "engine.tools",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
