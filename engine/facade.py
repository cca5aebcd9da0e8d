"""``WorkflowEngine``: the whole API. Each method parses, delegates and renders, and holds no rule of its own.

Making one connects to nothing, and nothing needs to be opened: what a call needs opens with it, on a loop of the
engine's own, and closes with ``aclose``, the end of ``async with`` or the end of the caller's loop. The calls
themselves are in ``engine.calls``, by noun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from engine.calls.agents import AgentCalls
from engine.calls.analytics import AnalyticsCalls
from engine.calls.context import ContextCalls
from engine.calls.executions import ExecutionCalls
from engine.calls.handoffs import HandoffCalls
from engine.calls.insight import InsightCalls
from engine.calls.operators import OperatorCalls
from engine.calls.reruns import RerunCalls
from engine.calls.workflows import WorkflowCalls
from engine.settings import EngineSettings

if TYPE_CHECKING:
    from types import TracebackType

    from engine.calls.base import Document
    from engine.ports.agent_invoker import AgentInvoker

__all__ = ["WorkflowEngine"]


class WorkflowEngine(
    WorkflowCalls,
    InsightCalls,
    ExecutionCalls,
    OperatorCalls,
    RerunCalls,
    AgentCalls,
    HandoffCalls,
    AnalyticsCalls,
    ContextCalls,
):
    """Durable agent workflows: definitions, executions, agents, handoffs and what is known of them.

    Every method raises ``EngineError`` with a code of ``errors.ErrorCode``. May be shared by tasks, and used again on
    another event loop.

    Args:
        config: settings by key; what is left out comes from ``BATON_*`` variables, ``baton.toml`` and defaults.
        profile: which profile of ``baton.toml``.
        invoker: calls the agents of the embedded worker, in the place of the kinds that are built in; see
            ``engine.testing``.

    Raises:
        ConfigurationError: an unknown key or a wrong value, all of them named.
    """

    def __init__(
        self,
        config: Document | None = None,
        *,
        profile: str | None = None,
        invoker: AgentInvoker | None = None,
    ) -> None:
        super().__init__(EngineSettings.load(config, profile=profile), invoker)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the embedded worker gracefully and let everything go. The engine can be used again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()
