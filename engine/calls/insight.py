"""Reading definitions and runs: what changed between versions, the graph, and why each step went as it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import answers
from engine.arguments import optional_text, text
from engine.calls.base import Calls, on_own_loop
from engine.services.insight import InsightService

if TYPE_CHECKING:
    from engine import types
    from engine.bootstrap import EngineSession

__all__ = ["InsightCalls", "insight_of"]


def insight_of(session: EngineSession) -> InsightService:
    """Return what compares, draws and explains for an open engine."""
    stores = session.stores
    return InsightService(session.definitions, stores.definitions, stores.handoffs, stores.executions)


class InsightCalls(Calls):
    """The calls of ``WorkflowEngine`` by which people understand definitions and executions."""

    @on_own_loop
    async def diff_workflow(
        self, workflow_id: str, from_version: int | None = None, to_version: int | None = None
    ) -> types.WorkflowDiff:
        """Return what changed between two versions of a workflow, and which open executions run an old one.

        Args:
            workflow_id: of the workflow.
            from_version: the version before ``to_version`` unless given.
            to_version: the newest unless given.

        Raises:
            DefinitionNotFoundError: there is no such workflow, or no such version (``details.version``).
        """
        insight = insight_of(self._session())
        return answers.workflow_diff(
            await insight.diff_definition(text(workflow_id, "workflow_id"), from_version, to_version)
        )

    @on_own_loop
    async def workflow_graph(
        self,
        workflow_id: str,
        format: str = "mermaid",  # noqa: A002 - the name that the API has
        execution_id: str | None = None,
        version: int | None = None,
    ) -> str:
        """Return the graph of a workflow as a text.

        Args:
            workflow_id: of the workflow.
            format: ``mermaid`` (a flowchart) or ``text`` (for a terminal of 100 columns).
            execution_id: shows where each step of this execution stands, on the version that it runs.
            version: the newest unless given.

        Raises:
            DefinitionNotFoundError: there is no such workflow, or no such version (``details.version``).
            ExecutionNotFoundError: there is no such execution.
            InvalidInputError: the execution is not of this workflow and version.
        """
        insight = insight_of(self._session())
        return await insight.draw_graph(
            text(workflow_id, "workflow_id"), format, optional_text(execution_id, "execution_id"), version
        )

    @on_own_loop
    async def explain_execution(self, execution_id: str) -> types.ExecutionExplanation:
        """Return why each step of an execution, open or over, ran, was skipped, fell back or was never reached.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        insight = insight_of(self._session())
        return answers.explanation(await insight.explain_execution(text(execution_id, "execution_id")))
