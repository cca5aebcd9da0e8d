"""Where workflow definitions live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from engine.domain.definition import DefinitionStatus, DefinitionVersion
    from engine.domain.page import Page, Position


class DefinitionStore(Protocol):
    """Immutable versions of definitions, numbered from 1 without gaps.

    An id, once inserted, is taken for ever, also when archived. Reads see every write that was acknowledged
    before, by any process. Every method raises ``StoreError`` when the store does not answer or holds something
    it can't read (also a definition of a newer format).
    """

    async def insert_definition(self, version: DefinitionVersion) -> bool:
        """Store version 1 of a new id, atomically. Return False, with nothing written, when the id is taken."""
        ...

    async def append_version(self, version: DefinitionVersion) -> bool:
        """Store the next version of an active definition, atomically.

        Return False, with nothing written, when the id is unknown or archived, or when the newest stored
        version is not ``version.version - 1`` (somebody else was first).
        """
        ...

    async def get_definition(self, definition_id: str, version: int | None = None) -> DefinitionVersion | None:
        """Return that version, or the newest; None when there is none. ``status`` is the workflow's today."""
        ...

    async def list_definitions(
        self, *, tags: list[str], status: DefinitionStatus, limit: int, after: Position | None
    ) -> Page[DefinitionVersion]:
        """Return newest versions, latest created workflow first.

        Args:
            tags: all of them must be on the newest version.
            status: the workflow's status.
            limit: at least 1.
            after: position ``(created_at as ISO text, definition_id)`` behind which to start.
        """
        ...

    async def list_versions(self, definition_id: str, *, limit: int, after: Position | None) -> Page[DefinitionVersion]:
        """Return the versions of one id, newest first; position ``(version, definition_id)``. Unknown id: empty."""
        ...

    async def archive_definition(self, definition_id: str, at: datetime) -> bool:
        """Mark it archived. Return whether this call did it; False when unknown or archived before."""
        ...
