"""Context memory: what is kept of steps and users, and found again. The arguments are checked here.

An item is stored before anybody is told that it is; its vector may come later, since a search finds it without. What a
step is reminded of comes within two seconds or not at all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast, get_args

from engine.domain.context import ContextFilter, ContextItem, ContextMatch, ContextScope
from engine.domain.context_text import hash_of_text, item_id_of
from engine.domain.hashing import canonical_json
from engine.domain.json import json_fault
from engine.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from engine.domain.json import JsonObject
    from engine.ports.context_memory import RecallRequest
    from engine.ports.context_store import ContextStore
    from engine.services.context_search import ContextSearch
    from engine.services.indexing import IndexingService
    from engine.services.reindexing import Reindexed, ReindexingService, ReindexProgress

__all__ = ["ContextService"]

MAX_TEXT_CHARS: Final = 32_000
MAX_QUERY_CHARS: Final = 8_000
"""Of a query that are looked at."""
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_ID_CHARS: Final = 400
MAX_TOP_K: Final = 100
RECALL_SECONDS: Final = 2.0
NEAREST_SECONDS: Final = 1.0
"""Of a recall's time for embedder and vector index; the rest is left for doing without them."""


class ContextService:
    """Adds, searches and recalls context items. Satisfies ``ContextMemory``.

    Args:
        store: keeps the items.
        search: finds them.
        indexing: takes what is to be stored or indexed later.
        reindexing: makes all vectors anew.
        clock: the present, aware UTC.
    """

    def __init__(
        self,
        store: ContextStore,
        search: ContextSearch,
        indexing: IndexingService,
        reindexing: ReindexingService,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._search = search
        self._indexing = indexing
        self._reindexing = reindexing
        self._clock = clock

    async def add_context(
        self,
        text: str,
        *,
        scope: str = "workflow",
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        metadata: JsonObject | None = None,
    ) -> str:
        """Store a text and return its item id; the same text for the same ids is the same item, with new metadata.

        Args:
            text: 1 to 32,000 characters.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given.
            workflow_id: with the other two, where it is found: under each id that is given.
            agent_id: as ``workflow_id``.
            execution_id: as ``workflow_id``.
            metadata: a JSON object of at most 16 KiB, to filter by.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
            StoreError: it was not stored.
        """
        where = _parse_where(_parse_scope(scope), workflow_id, agent_id, execution_id)
        checked = _parse_text(text, "text")
        item = ContextItem(
            item_id=item_id_of(where.definition_id, where.execution_id, where.agent_id, checked),
            text=checked,
            text_hash=hash_of_text(checked),
            definition_id=where.definition_id,
            execution_id=where.execution_id,
            agent_id=where.agent_id,
            metadata=_parse_metadata(metadata),
            created_at=self._clock(),
        )
        await self._store.put_items([item])
        self._indexing.index_later(item)
        return item.item_id

    async def search_context(
        self,
        query: str,
        scope: str | None = None,
        workflow_id: str | None = None,
        agent_id: str | None = None,
        execution_id: str | None = None,
        top_k: int = 5,
        filter: JsonObject | None = None,  # noqa: A002 - the documented name
    ) -> list[ContextMatch]:
        """Return what is nearest to ``query``, best first.

        While the vector index or the embedder does not answer, that is logged once and a search finds what shares
        words with the query; where words are not known, the newest 50 items, the nearest first if they can be measured.

        Args:
            query: 1 to 32,000 characters, of which the first 8,000 count.
            scope: ``workflow``, ``agent`` or ``execution``: whose id must be given.
            workflow_id: only items of it; with several ids, only items of all of them.
            agent_id: as ``workflow_id``.
            execution_id: as ``workflow_id``.
            top_k: 1 to 100.
            filter: keys of an item's metadata, and ``step_id`` for its step, to the JSON value that each must equal.
                Looked at in the 1,000 items that are nearest without it: what matches farther away is not found.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
            ConflictError: the vectors were made by another embedder than the configured one.
            StoreError: the context store does not answer.
        """
        where = _parse_where(None if scope is None else _parse_scope(scope), workflow_id, agent_id, execution_id)
        text = _parse_text(query, "query")
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= MAX_TOP_K:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise InvalidInputError(f"top_k must be a whole number from 1 to {MAX_TOP_K}", {"path": "top_k"})
        wanted = _parse_object(filter, "filter")
        return await self._search.find(text[:MAX_QUERY_CHARS], where, wanted, top_k)

    async def recall(self, request: RecallRequest) -> list[ContextMatch]:
        """Return the nearest items of the scope, best first, within two seconds.

        The execution's own newest items fill up to half of the places; one that is not near as well has the score 0.

        Raises:
            ConflictError: the vectors were made by another embedder than the configured one.
            StoreError: the context store does not answer, or not in time.
        """
        try:
            async with asyncio.timeout(RECALL_SECONDS):
                return await self._recall(request)
        except TimeoutError as error:
            raise StoreError(f"Context memory did not answer within {RECALL_SECONDS:g} s; try again later") from error

    async def remember(self, item: ContextItem) -> None:
        """Store an item now and queue it for the index.

        Raises:
            StoreError: it can't be stored; it is queued for that too.
        """
        try:
            await self._store.put_items([item])
        except StoreError:
            self._indexing.store_later(item)
            raise
        self._indexing.index_later(item)

    def remember_later(self, item: ContextItem) -> None:
        """Queue an item to be stored and indexed soon."""
        self._indexing.store_later(item)

    async def reindex(self, progress: ReindexProgress | None = None) -> Reindexed:
        """Make all vectors anew with the configured embedder; see ``ReindexingService.reindex``."""
        return await self._reindexing.reindex(progress)

    async def _recall(self, request: RecallRequest) -> list[ContextMatch]:
        match request.scope:
            case "execution":
                where = ContextFilter(execution_id=request.execution_id)
            case "workflow":
                where = ContextFilter(definition_id=request.definition_id)
            case "agent":
                where = ContextFilter(agent_id=request.agent_id)
        text = request.query[:MAX_QUERY_CHARS]
        top_k = request.top_k
        # Runs of one workflow often say the same, and once is enough for an agent.
        found = await self._search.find(text, where, {}, 2 * top_k, NEAREST_SECONDS) if text.strip() else []
        different: dict[str, ContextMatch] = {}
        for match in found:
            different.setdefault(match.item.text_hash, match)
        nearest = [*different.values()][:top_k]
        own_count = top_k // 2
        if not own_count:
            return nearest
        of_execution = ContextFilter(execution_id=request.execution_id)
        own = (await self._store.list_items(of_execution, limit=own_count, after=None)).items
        return _with_own(nearest, own, top_k)


def _with_own(found: Sequence[ContextMatch], own: Sequence[ContextItem], top_k: int) -> list[ContextMatch]:
    """Put the execution's own newest items among the matches, in the place of the last ones of others."""
    ids = {item.item_id for item in own}
    texts = {match.item.text_hash for match in found}
    unlike = {item.text_hash: item for item in reversed(own) if item.text_hash not in texts}
    lacking = [ContextMatch(item, 0.0) for item in own if unlike.get(item.text_hash) is item]
    others = [match for match in found if match.item.item_id not in ids]
    kept = {match.item.item_id for match in others[: top_k - len(lacking) - (len(found) - len(others))]}
    return [*(match for match in found if match.item.item_id in ids or match.item.item_id in kept), *lacking]


def _parse_scope(scope: object) -> ContextScope:
    if scope in get_args(ContextScope):
        return cast("ContextScope", scope)
    raise InvalidInputError("scope must be workflow, agent or execution", {"path": "scope"})


def _parse_where(
    scope: ContextScope | None, workflow_id: object, agent_id: object, execution_id: object
) -> ContextFilter:
    ids = {"workflow_id": workflow_id, "agent_id": agent_id, "execution_id": execution_id}
    for path, value in ids.items():
        if value is not None and not _is_id(value):
            raise InvalidInputError(f"{path} must be an id", {"path": path})
    needed = f"{scope}_id"
    if scope is not None and ids[needed] is None:
        raise InvalidInputError(f"The scope {scope} needs {needed}", {"path": needed})
    return ContextFilter(
        definition_id=cast("str | None", workflow_id),
        execution_id=cast("str | None", execution_id),
        agent_id=cast("str | None", agent_id),
    )


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS and json_fault(value) is None


def _parse_text(text: object, path: str) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT_CHARS:
        raise InvalidInputError(f"{path} must be a text of 1 to {MAX_TEXT_CHARS} characters", {"path": path})
    if (fault := json_fault(text, path)) is not None:
        raise InvalidInputError(f"{fault}; repair the text", {"path": path})
    return text


def _parse_metadata(metadata: object) -> JsonObject:
    checked = _parse_object(metadata, "metadata")
    size_bytes = len(canonical_json(checked))
    if size_bytes > MAX_METADATA_BYTES:
        raise InvalidInputError(
            f"metadata is {size_bytes} bytes of JSON, more than {MAX_METADATA_BYTES}; keep less of it",
            {"path": "metadata"},
        )
    return checked


def _parse_object(value: object, path: str) -> JsonObject:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} must be an object of keys and JSON values", {"path": path})
    if (fault := json_fault(cast("object", value), path)) is not None:
        raise InvalidInputError(f"{fault}; give JSON data", {"path": path})
    return cast("JsonObject", value)
