"""Context memory: texts that are kept for steps, and the search for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import plain
from engine.calls.base import Calls, on_own_loop

if TYPE_CHECKING:
    from engine import types
    from engine.calls.base import Document
    from engine.domain.json import JsonObject

__all__ = ["ContextCalls"]


class ContextCalls(Calls):
    """The calls of ``WorkflowEngine`` about context memory."""

    @on_own_loop
    async def add_context(
        self,
        text: str,
        scope: str = "workflow",
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        metadata: Document | None = None,
    ) -> str:
        """Keep a text for steps to be reminded of, and return its item id.

        Args:
            text: 1 to 32,000 characters.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given. It is found under every id that is.
            workflow_id: of the workflow whose executions may recall it.
            agent_id: of the agent whose calls may recall it.
            execution_id: of the execution that may recall it.
            metadata: JSON to filter by in ``search_context``.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        return await self._session().context.add_context(
            text,
            scope=scope,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            metadata=cast("JsonObject | None", plain(metadata)),
        )

    @on_own_loop
    async def search_context(
        self,
        query: str,
        scope: str | None = None,
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        top_k: int = 5,
        filter: Document | None = None,  # noqa: A002 - the call's documented name
    ) -> list[types.ContextMatch]:
        """Return the texts nearest to ``query``, best first: of the scope whose id is given, or of all ids given.

        Args:
            query: what to look for.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given.
            workflow_id: only texts of this workflow.
            agent_id: only texts of this agent.
            execution_id: only texts of this execution.
            top_k: 1 to 100.
            filter: metadata keys (and ``step_id``) to the values that they must have.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
            ConflictError: the vectors were made by another embedder than the configured one.
        """
        matches = await self._session().context.search_context(
            query,
            scope=scope,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            top_k=top_k,
            filter=cast("JsonObject | None", plain(filter)),
        )
        return [answers.context_match(match) for match in matches]

    @on_own_loop
    async def reindex_context(self) -> types.ReindexedContext:
        """Make all vectors anew with the configured embedder, from the stored texts and the step records."""
        counts = await self._session().context.reindex()
        return {"items": counts.items, "made": counts.made, "left": counts.left}
