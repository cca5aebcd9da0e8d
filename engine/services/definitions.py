"""Workflow definitions: every change is a new immutable version, and equal content is no change.

An id is chosen once, from the name, and never used again; a rename keeps it. Two updates at once both happen, one
after the other: the loser of the race applies its update to the newer version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from engine.domain.definition import DefinitionStatus, DefinitionVersion, WorkflowDefinition
from engine.domain.hashing import content_hash
from engine.domain.ids import MAX_ID_BYTES, is_public_id, slug
from engine.domain.issues import Issue, issue_details, summary
from engine.domain.mentions import agent_mentions, workflow_mentions
from engine.domain.structure import type_in_words
from engine.domain.validation import agent_issues, parse_definition, workflow_issues
from engine.errors import ConflictError, DefinitionNotFoundError, InvalidInputError
from engine.services.paging import next_cursor, parse_cursor, parse_labels, parse_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from engine.domain.json import JsonObject
    from engine.ports.agent_store import AgentStore
    from engine.ports.definition_store import DefinitionStore

__all__ = ["DefinitionService"]

MAX_TRIES: Final = 5
"""Ids tried for one new workflow, and versions for one update, before a conflict is reported."""
MAX_VERSION: Final = 2**31
"""More than any workflow will have, and within every store's integers."""
MAX_WORKFLOWS_SOUGHT: Final = 100
"""Workflows of one definition whose existence is asked for; more of them are taken to be there."""
_OPTIONAL_FIELDS: Final = frozenset(
    field.alias or name for name, field in WorkflowDefinition.model_fields.items() if not field.is_required()
)


class DefinitionService:
    """Checks, stores and finds workflow definitions.

    Args:
        definitions: where they live; may answer ``get_definition`` from a cache.
        source: the same without a cache, for reads that a write rests on.
        agents: asked which of a definition's agents exist.
        clock: the present, aware UTC.
        suffix: a short random text of ``a-z0-9``, for ids whose slug is taken.
    """

    def __init__(
        self,
        definitions: DefinitionStore,
        source: DefinitionStore,
        agents: AgentStore,
        clock: Callable[[], datetime],
        suffix: Callable[[], str],
    ) -> None:
        self._definitions = definitions
        self._source = source
        self._agents = agents
        self._clock = clock
        self._suffix = suffix

    async def validate_definition(self, raw: object) -> list[Issue]:
        """Return all issues of a document, warnings about agents and workflows that don't exist yet included.

        Raises:
            InvalidInputError: the document is no dict.
        """
        if not isinstance(raw, dict):
            raise InvalidInputError(
                f"A definition must be an object with name and steps, not {type_in_words(raw)}", {"path": "definition"}
            )
        parsed = parse_definition(cast("object", raw))
        if parsed.definition is None:
            return parsed.issues
        named = dict.fromkeys(agent_id for agent_id, _ in agent_mentions(parsed.definition))
        agents = await self._agents.get_agents([*named])
        workflows = await self._existing({workflow_id for workflow_id, _ in workflow_mentions(parsed.definition)})
        return [
            *parsed.issues,
            *agent_issues(parsed.definition, agents),
            *workflow_issues(parsed.definition, workflows),
        ]

    async def create_definition(self, raw: object, definition_id: str | None = None) -> DefinitionVersion:
        """Store version 1 of a new workflow.

        Args:
            raw: the definition, as ``create_workflow`` takes it.
            definition_id: the id to use; None derives one from the name.

        Raises:
            InvalidInputError: the definition has errors (``details.issues``), or the id is no id.
            ConflictError: the given id is taken, perhaps by a deleted workflow.
        """
        if definition_id is not None and not is_public_id(definition_id):
            raise InvalidInputError(
                f"workflow_id must be 1 to {MAX_ID_BYTES} of a-z, 0-9, - _ and ., not beginning with - or .",
                {"path": "workflow_id"},
            )
        definition = _checked(raw)
        for chosen in [definition_id] if definition_id is not None else self._ids_for(definition.name):
            version = self._version(chosen, definition)
            if await self._definitions.insert_definition(version):
                return version
        if definition_id is not None:
            raise ConflictError(
                f"The workflow id {definition_id} is taken, and ids are never used again; "
                "choose another one, or update that workflow",
                {"workflow_id": definition_id},
            )
        raise ConflictError("No free id was found for the name; give one by workflow_id=", {"name": definition.name})

    async def get_definition(self, definition_id: str, version: int | None = None) -> DefinitionVersion:
        """Return a version of a workflow, the newest by default.

        Raises:
            InvalidInputError: ``version`` is no version number.
            DefinitionNotFoundError: no such workflow, a deleted one, or no such version.
        """
        stored = await self._definitions.get_definition(definition_id, _parse_version(version))
        if stored is None and version is not None:
            await self.get_definition(definition_id)
            raise DefinitionNotFoundError(definition_id, version)
        return _active(stored, definition_id)

    async def update_definition(self, definition_id: str, updates: object) -> DefinitionVersion:
        """Replace fields of a workflow by a new version; content that stays equal makes none.

        Args:
            definition_id: the workflow.
            updates: any fields of a definition with their new values; null removes an optional one.

        Raises:
            InvalidInputError: no dict, or the definition would have errors (``details.issues``).
            DefinitionNotFoundError: no such workflow, or a deleted one.
            ConflictError: others kept changing it meanwhile.
        """
        if not isinstance(updates, dict):
            raise InvalidInputError(
                f"updates must be an object of fields to replace, not {type_in_words(updates)}", {"path": "updates"}
            )
        for _ in range(MAX_TRIES):
            current = _active(await self._source.get_definition(definition_id), definition_id)
            definition = _checked(_merged(current.definition.to_dict(), cast("dict[str, object]", updates)))
            version = self._version(definition_id, definition, current)
            if version.content_hash == current.content_hash:
                return current
            if await self._definitions.append_version(version):
                return version
        raise ConflictError(
            f"Workflow {definition_id} was changed by others {MAX_TRIES} times during this update; try again",
            {"workflow_id": definition_id},
        )

    async def list_definitions(
        self,
        tags: list[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> tuple[list[DefinitionVersion], str | None]:
        """Return a page of newest versions, latest created workflow first, and the next page's cursor.

        Args:
            tags: the workflow has all of them.
            status: ``active`` (the default) or ``archived`` for deleted ones.
            limit: 1 to 1000, 50 by default.
            cursor: of the page before, with the same tags and status.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        wanted = parse_labels(tags, "tags")
        chosen = _parse_status(status)
        query: JsonObject = {"list": "workflows", "tags": [*wanted], "status": chosen}
        page = await self._definitions.list_definitions(
            tags=wanted, status=chosen, limit=parse_limit(limit), after=parse_cursor(cursor, query)
        )
        return page.items, next_cursor(page, query)

    async def list_versions(
        self, definition_id: str, limit: int | None = None, cursor: str | None = None
    ) -> tuple[list[DefinitionVersion], str | None]:
        """Return a page of the versions of a workflow, newest first, and the next page's cursor.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
            DefinitionNotFoundError: no such workflow, or a deleted one.
        """
        query: JsonObject = {"list": "workflow_versions", "workflow_id": definition_id}
        size, after = parse_limit(limit), parse_cursor(cursor, query)
        await self.get_definition(definition_id)
        page = await self._definitions.list_versions(definition_id, limit=size, after=after)
        return page.items, next_cursor(page, query)

    async def delete_definition(self, definition_id: str) -> None:
        """Archive a workflow: it reads as not found, running executions finish, its id stays taken.

        Raises:
            DefinitionNotFoundError: no such workflow, or deleted before.
        """
        if not await self._definitions.archive_definition(definition_id, self._clock()):
            raise DefinitionNotFoundError(definition_id)

    async def _existing(self, definition_ids: set[str]) -> set[str]:
        existing = set(definition_ids)
        for definition_id in sorted(definition_ids)[:MAX_WORKFLOWS_SOUGHT]:
            stored = await self._definitions.get_definition(definition_id)
            if stored is None or stored.status != "active":
                existing.discard(definition_id)
        return existing

    def _ids_for(self, name: str) -> Iterator[str]:
        first = slug(name) or f"workflow-{content_hash(name).removeprefix('sha256:')[:8]}"
        yield first
        for _ in range(MAX_TRIES - 1):
            yield f"{first}-{self._suffix()}"

    def _version(
        self, definition_id: str, definition: WorkflowDefinition, before: DefinitionVersion | None = None
    ) -> DefinitionVersion:
        now = self._clock()
        return DefinitionVersion(
            definition_id=definition_id,
            version=before.version + 1 if before else 1,
            content_hash=_content_hash(definition),
            definition=definition,
            created_at=before.created_at if before else now,
            updated_at=now,
        )


def _active(stored: DefinitionVersion | None, definition_id: str) -> DefinitionVersion:
    if stored is None or stored.status != "active":
        raise DefinitionNotFoundError(definition_id)
    return stored


def _checked(raw: object) -> WorkflowDefinition:
    parsed = parse_definition(raw)
    if parsed.definition is not None:
        return parsed.definition
    raise InvalidInputError(summary("The definition has errors", parsed.issues), issue_details(parsed.issues))


def _content_hash(definition: WorkflowDefinition) -> str:
    # Defaults don't count: a definition has them spelled out once it has been through a store.
    return content_hash(definition.model_dump(mode="json", exclude_defaults=True))


def _merged(current: JsonObject, updates: dict[str, object]) -> dict[str, object]:
    merged: dict[str, object] = {**current, **updates}
    for key, value in updates.items():
        if value is None and key in _OPTIONAL_FIELDS:
            del merged[key]
    return merged


def _parse_version(version: object) -> int | None:
    if version is None or (isinstance(version, int) and not isinstance(version, bool) and 1 <= version < MAX_VERSION):
        return version
    raise InvalidInputError("version must be a whole number from 1", {"path": "version"})


def _parse_status(status: str | None) -> DefinitionStatus:
    match status:
        case None | "active":
            return "active"
        case "archived":
            return "archived"
        case _:
            raise InvalidInputError("status must be active, or archived for deleted workflows", {"path": "status"})
