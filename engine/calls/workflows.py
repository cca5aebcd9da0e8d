"""Workflows: definitions, their versions and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine import answers
from engine.arguments import optional_text, plain, text
from engine.calls.base import Calls, on_own_loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import types
    from engine.calls.base import Document

__all__ = ["WorkflowCalls"]


class WorkflowCalls(Calls):
    """The calls of ``WorkflowEngine`` about workflows."""

    @on_own_loop
    async def create_workflow(
        self,
        name: str,
        steps: Sequence[Document],
        description: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Document | None = None,
        *,
        workflow_id: str | None = None,
        **fields: object,
    ) -> str:
        """Store a workflow and return its id: a slug of the name unless ``workflow_id`` is given.

        ``fields`` are the definition's other fields: ``input_schema``, ``defaults``, ``output_mapping``, ``handoffs``,
        ``max_handoffs``, ``on_failure``, ``budget``, ``cleanup_timeout`` and ``finally``, which Python takes as
        ``**{"finally": [...]}``.

        Raises:
            InvalidInputError: with every issue in ``details.issues``.
            ConflictError: ``workflow_id`` is taken.
        """
        session = self._session()
        given = {"description": description, "tags": tags, "metadata": metadata, **fields}
        document = {"name": name, "steps": steps, **{key: v for key, v in given.items() if v is not None}}
        stored = await session.definitions.create_definition(plain(document), optional_text(workflow_id, "workflow_id"))
        return stored.definition_id

    @on_own_loop
    async def validate_workflow(self, definition: Document) -> types.Validation:
        """Report every issue of a definition without storing it."""
        session = self._session()
        issues = await session.definitions.validate_definition(plain(definition))
        valid = all(issue.severity != "error" for issue in issues)
        return {"valid": valid, "issues": [cast("types.Issue", issue.model_dump(mode="json")) for issue in issues]}

    @on_own_loop
    async def get_workflow(self, workflow_id: str, version: int | None = None) -> types.Workflow:
        """Return a workflow, its newest version unless another is asked for."""
        session = self._session()
        return answers.workflow(await session.definitions.get_definition(text(workflow_id, "workflow_id"), version))

    @on_own_loop
    async def update_workflow(self, workflow_id: str, updates: Document) -> bool:
        """Store a new version in which ``updates`` replace fields (null removes one); True.

        Equal content makes no new version. Running executions keep the version they started with.
        """
        session = self._session()
        await session.definitions.update_definition(text(workflow_id, "workflow_id"), plain(updates))
        return True

    @on_own_loop
    async def list_workflows(
        self,
        tags: Sequence[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> types.WorkflowPage:
        """Return a page of workflows that have all ``tags``, newest first."""
        session = self._session()
        items, following = await session.definitions.list_definitions(
            cast("list[str] | None", plain(tags)), status, limit, cursor
        )
        return {"items": [answers.workflow_item(item) for item in items], "next_cursor": following}

    @on_own_loop
    async def list_workflow_versions(
        self, workflow_id: str, limit: int | None = None, cursor: str | None = None
    ) -> types.WorkflowPage:
        """Return a page of a workflow's versions, newest first."""
        session = self._session()
        items, following = await session.definitions.list_versions(text(workflow_id, "workflow_id"), limit, cursor)
        return {"items": [answers.workflow_item(item) for item in items], "next_cursor": following}

    @on_own_loop
    async def delete_workflow(self, workflow_id: str) -> bool:
        """Archive a workflow: reads no longer find it, running executions finish, records stay; True."""
        session = self._session()
        await session.definitions.delete_definition(text(workflow_id, "workflow_id"))
        return True
