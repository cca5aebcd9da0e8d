"""Searching context memory by words and by meaning.

The context store is the truth and the vector index a help that lags behind. So a search goes three ways: vectors near
the query's; items that are not in the index yet, measured one by one; and words, where the store knows them. What the
ways agree on comes first. They are fused by ranks and not by scores, since a cosine and a weight of words have no
common measure. While the vector index or the embedder is away a search finds less and never fails for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from operator import mul
from typing import TYPE_CHECKING, Final

from engine.domain.conditions import json_equal
from engine.domain.context import ContextMatch
from engine.errors import ConflictError, InvalidInputError, StoreError
from engine.outages import OutageLog

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from engine.domain.context import ContextFilter, ContextItem
    from engine.domain.json import JsonObject
    from engine.ports.context_store import ContextStore
    from engine.ports.embedder import Embedder
    from engine.ports.lexical_index import LexicalIndex
    from engine.ports.vector_index import VectorIndex
    from engine.services.indexing import IndexingService

__all__ = ["ContextSearch", "fuse_ranks"]

_logger = logging.getLogger(__name__)

MAX_MEASURED: Final = 50
"""Items not in the index that a search measures itself, the newest ones."""
LISTED_UNINDEXED: Final = 100
LEAST_DEPTH: Final = 50
FILTERED_DEPTH: Final = 1_000
"""How far each way goes when what it finds is filtered by metadata."""
RANK_CONSTANT: Final = 60


class ContextSearch:
    """Finds context items.

    Args:
        store: keeps them.
        vectors: finds them by meaning.
        words: finds them by words; None where the store has no such index.
        embedder: makes the vectors of queries, and of items that have none in the index yet.
        indexing: knows whose the vectors are.
    """

    def __init__(
        self,
        store: ContextStore,
        vectors: VectorIndex,
        words: LexicalIndex | None,
        embedder: Embedder,
        indexing: IndexingService,
    ) -> None:
        self._store = store
        self._vectors = vectors
        self._words = words
        self._embedder = embedder
        self._indexing = indexing
        self._outages = OutageLog(_logger, "Searching context memory by meaning")

    async def find(
        self, text: str, where: ContextFilter, wanted: JsonObject, top_k: int, patience: float | None = None
    ) -> list[ContextMatch]:
        """Return the items of ``where`` that are nearest to ``text``, best first.

        While the vector index or the embedder does not answer, that is logged once, and what shares words with the
        query is found; where words are not known, the newest 50 items, by nearness if the embedder answers.

        Args:
            text: the query.
            where: only items of this.
            wanted: keys of the metadata, and ``step_id`` for the step, to the JSON values that they must equal.
            top_k: most items.
            patience: seconds after which embedder and vector index count as away; None leaves that to them.

        Raises:
            ConflictError: the vectors were made by another embedder than the configured one.
            StoreError: the context store does not answer.
        """
        depth = FILTERED_DEPTH if wanted else max(LEAST_DEPTH, 2 * top_k)
        has_vectors = await self._indexing.has_vectors()
        worded = [] if self._words is None else await self._words.find_by_words(text, where, limit=depth)
        values, cosines, fault = await self._by_meaning(text, where, wanted, depth if has_vectors else 0, patience)
        fresh = await (self._fresh(where, cosines) if fault is None else self._newest(where))
        measurable = [item for item in fresh if not self._indexing.is_refused(item)]
        if values is not None and measurable:
            try:
                async with asyncio.timeout(None if patience is None else patience / 2):
                    cosines |= await self._measured(values, measurable)
            except (StoreError, InvalidInputError, TimeoutError) as error:
                fault = fault or error
        if fault is None:
            self._outages.worked()
        else:
            self._outages.failed(str(fault) or "it took longer than a step waits for it")
        if fault is not None and self._words is None and not cosines:
            return _in_order([item for item in fresh if is_wanted(item, where, wanted)][:top_k])
        known = {item.item_id: item for item in fresh}
        lacking = [item_id for item_id in dict.fromkeys([*cosines, *worded]) if item_id not in known]
        known |= await self._store.get_items(lacking)
        items = {item_id: item for item_id, item in known.items() if is_wanted(item, where, wanted)}
        return self._ranked(items, worded, cosines)[:top_k]

    async def _by_meaning(
        self, text: str, where: ContextFilter, wanted: JsonObject, depth: int, patience: float | None
    ) -> tuple[list[float] | None, dict[str, float], Exception | None]:
        """Return the query's vector, cosines of the nearest ``depth`` items, and what kept either from being had."""
        values: list[float] | None = None
        try:
            async with asyncio.timeout(patience):
                [values] = await self._embedder.embed_texts([text], "query")
                return values, await self._nearest(values, where, wanted, depth) if depth else {}, None
        except (StoreError, InvalidInputError, TimeoutError) as error:
            return values, {}, error

    def _ranked(
        self, items: Mapping[str, ContextItem], worded: Sequence[str], cosines: Mapping[str, float]
    ) -> list[ContextMatch]:
        near = {item_id: cosine for item_id, cosine in cosines.items() if item_id in items and cosine > 0}
        by_meaning = sorted(near, key=lambda item_id: (-near[item_id], item_id))
        if self._words is None:
            return [ContextMatch(items[item_id], min(near[item_id], 1.0)) for item_id in by_meaning]
        by_words = [item_id for item_id in worded if item_id in items]
        return [ContextMatch(items[item_id], score) for item_id, score in fuse_ranks([by_words, by_meaning])]

    async def _nearest(
        self, values: Sequence[float], where: ContextFilter, wanted: JsonObject, depth: int
    ) -> dict[str, float]:
        step_id = wanted.get("step_id")
        fields = {
            "definition_id": where.definition_id,
            "execution_id": where.execution_id,
            "agent_id": where.agent_id,
            "step_id": step_id if isinstance(step_id, str) else None,
        }
        chosen = {key: value for key, value in fields.items() if value is not None}
        try:
            matches = await self._vectors.query_vectors(self._indexing.namespace, values, top_k=depth, where=chosen)
        except InvalidInputError as error:
            raise ConflictError(
                f"The vector index does not take vectors of {self._embedder.name}: {error.message}; "
                "run `baton context reindex`",
                error.details,
            ) from error
        return {match.item_id: match.score for match in matches}

    async def _fresh(self, where: ContextFilter, shown: Collection[str]) -> list[ContextItem]:
        """Return the newest items of ``where`` that the index may not have, or not show yet."""
        waiting = await self._store.list_unindexed(LISTED_UNINDEXED)
        if len(waiting) >= LISTED_UNINDEXED:
            # More wait than are worth reading, and the newest stand last: any new item may be one of them.
            return await self._newest(where)
        fresh = {item.item_id: item for item in reversed(waiting) if is_wanted(item, where, {})}
        if self._words is None:
            # An index of another machine shows what it was given some seconds later, and no words fill the gap.
            for item in await self._newest(where):
                if item.item_id not in shown and self._indexing.is_young(item):
                    fresh.setdefault(item.item_id, item)
        return [*fresh.values()][:MAX_MEASURED]

    async def _newest(self, where: ContextFilter) -> list[ContextItem]:
        return (await self._store.list_items(where, limit=MAX_MEASURED, after=None)).items

    async def _measured(self, values: Sequence[float], items: Sequence[ContextItem]) -> dict[str, float]:
        made = await self._embedder.embed_texts([item.text for item in items], "document")
        return {item.item_id: sum(map(mul, values, own)) for item, own in zip(items, made, strict=True)}


def fuse_ranks(rankings: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Fuse rankings of ids by reciprocal rank; return ids with scores from 0 to 1, best first, then by id.

    1 is an id that leads every ranking that holds anything. The order of the rankings makes no difference.
    """
    given = [ranking for ranking in rankings if ranking]
    shares: dict[str, list[float]] = {}
    for ranking in given:
        for rank, item_id in enumerate(dict.fromkeys(ranking), 1):
            shares.setdefault(item_id, []).append((RANK_CONSTANT + 1) / (RANK_CONSTANT + rank))
    scores = {item_id: math.fsum(own) / len(given) for item_id, own in shares.items()}
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def is_wanted(item: ContextItem, where: ContextFilter, wanted: JsonObject) -> bool:
    """Whether an item is one of ``where`` and has what ``wanted`` says of its metadata and step."""
    if where.definition_id not in (None, item.definition_id):
        return False
    if where.execution_id not in (None, item.execution_id) or where.agent_id not in (None, item.agent_id):
        return False
    for key, value in wanted.items():
        if key == "step_id":
            if item.step_id != value:
                return False
        elif key not in item.metadata or not json_equal(item.metadata[key], value):
            return False
    return True


def _in_order(items: Sequence[ContextItem]) -> list[ContextMatch]:
    scores = dict(fuse_ranks([[item.item_id for item in items]]))
    return [ContextMatch(item, scores[item.item_id]) for item in items]
