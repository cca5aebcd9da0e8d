"""Reindexing: the vectors of context memory made anew, from the stored items and from what steps have recorded.

It is the way back from a lost vector store and the way to another embedder. While the old vectors are dropped the
namespace is nobody's, so that no process adds to them, and none takes for indexed what has just been dropped. Whatever
interrupts it, running it again ends well: what is not made yet is marked as not indexed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from engine.domain.context import ContextFilter, NamespaceOwner
from engine.domain.context_text import step_item
from engine.domain.execution import StepStatus
from engine.errors import StoreError
from engine.ports.execution_store import ExecutionFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.domain.context import ContextItem
    from engine.domain.execution import ExecutionRecord, StepRecord, Value
    from engine.domain.json import JsonValue
    from engine.domain.page import Position
    from engine.ports.artifact_store import ArtifactStore
    from engine.ports.context_store import ContextStore
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.vector_index import VectorIndex
    from engine.services.indexing import IndexingService

__all__ = ["ReindexProgress", "Reindexed", "ReindexingService"]

_logger = logging.getLogger(__name__)

ReindexProgress: TypeAlias = "Callable[[Literal['executions', 'items'], int, int | None], None]"
"""Told how many executions were looked at, or items were indexed, and of how many as far as that is known."""

SETTLING_SECONDS: Final = 2.0
"""Longer than another process takes from looking whose the namespace is to marking what it has indexed."""
AT_ONCE: Final = 8
"""Executions looked at side by side."""
_NOBODY: Final = "nobody (a reindex has begun and not ended)"


@dataclass(slots=True)
class Reindexed:
    """What a reindex did."""

    executions: int = 0
    """Looked at."""
    made: int = 0
    """Items made for completed steps that had none."""
    items: int = 0
    """Indexed."""
    left: int = 0
    """Outputs that can't be read and texts that the embedder refuses; each is logged."""


class ReindexingService:
    """Makes all vectors of a namespace anew.

    Args:
        store: the items.
        vectors: the index.
        executions: whose completed steps become items.
        artifacts: has the large outputs.
        indexing: makes the vectors.
        batch_size: items of a write, page size of lists.
    """

    def __init__(
        self,
        store: ContextStore,
        vectors: VectorIndex,
        executions: ExecutionStore,
        artifacts: ArtifactStore,
        indexing: IndexingService,
        *,
        batch_size: int,
    ) -> None:
        self._store = store
        self._vectors = vectors
        self._executions = executions
        self._artifacts = artifacts
        self._indexing = indexing
        self._batch_size = batch_size

    async def reindex(self, progress: ReindexProgress | None = None) -> Reindexed:
        """Drop the namespace and index everything anew with the configured embedder; may be repeated at any time.

        Raises:
            ConflictError: the embedder refuses any text; nothing has changed.
            StoreError: a store or the embedder does not answer; run it again then.
        """
        report = Reindexed()
        tell = progress or _silent
        await self._indexing.check_embedder()
        await self._indexing.hold_off_sweeps()
        try:
            total = await self._drop()
            await self._make_items(report, tell)
            await self._index_all(total + report.made, report, tell)
        finally:
            await self._indexing.allow_sweeps()
        return report

    async def _drop(self) -> int:
        """Empty the namespace and claim it; return how many items wait to be indexed now."""
        own = self._indexing.as_owner()
        namespace = self._indexing.namespace
        await self._store.put_namespace_owner(namespace, NamespaceOwner(embedder=_NOBODY, dimension=own.dimension))
        await asyncio.sleep(SETTLING_SECONDS)
        await self._vectors.delete_namespace(namespace)
        count = await self._store.mark_unindexed(ContextFilter())
        await self._store.put_namespace_owner(namespace, own)
        return count

    async def _make_items(self, report: Reindexed, tell: ReindexProgress) -> None:
        after: Position | None = None
        while True:
            page = await self._executions.list_executions(ExecutionFilter(), limit=self._batch_size, after=after)
            for start in range(0, len(page.items), AT_ONCE):
                await self._indexing.hold_off_sweeps()
                some = page.items[start : start + AT_ONCE]
                made = await asyncio.gather(*(self._make_of(record, report) for record in some), return_exceptions=True)
                for outcome in made:
                    if isinstance(outcome, BaseException):
                        raise outcome
                report.executions += len(some)
                tell("executions", report.executions, None)
            after = page.next
            if after is None:
                return

    async def _make_of(self, record: ExecutionRecord, report: Reindexed) -> None:
        items: dict[str, ContextItem] = {}
        for step in await self._executions.list_steps(record.execution_id):
            item = await self._item_of(record, step, report)
            if item is not None:
                items[item.item_id] = item
        for some in _parts([*items.values()], self._batch_size):
            there = await self._store.get_items([item.item_id for item in some])
            lacking = [item for item in some if item.item_id not in there]
            if lacking:
                await self._store.put_items(lacking)
                report.made += len(lacking)

    async def _item_of(self, record: ExecutionRecord, step: StepRecord, report: Reindexed) -> ContextItem | None:
        # What agents said; steps without one only pass on what is there already.
        if step.status is not StepStatus.COMPLETED or step.agent_id is None or step.output is None:
            return None
        try:
            output = await self._loaded(step.output)
        except StoreError as error:
            if "artifact_id" not in error.details:
                raise
            report.left += 1
            _logger.warning("No context item of %s in %s: %s", step.step_id, step.execution_id, error)
            return None
        at = step.completed_at or step.started_at or record.created_at
        return step_item(record.execution_id, record.definition_id, step.step_id, step.agent_id, output, at)

    async def _loaded(self, value: Value) -> JsonValue:
        return value.inline if value.ref is None else await self._artifacts.get_artifact(value.ref.artifact_id)

    async def _index_all(self, total: int, report: Reindexed, tell: ReindexProgress) -> None:
        tell("items", 0, total)
        while left := await self._indexing.list_left(self._batch_size):
            await self._indexing.hold_off_sweeps()
            await self._indexing.index_items(left)
            refused = sum(map(self._indexing.is_refused, left))
            report.items += len(left) - refused
            report.left += refused
            tell("items", report.items, max(total, report.items))


def _parts(items: Sequence[ContextItem], size: int) -> list[Sequence[ContextItem]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _silent(_what: Literal["executions", "items"], _done: int, _total: int | None) -> None:
    return
