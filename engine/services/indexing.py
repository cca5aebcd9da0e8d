"""The indexer: context items on their way into the context store and the vector index, behind everybody's back.

Three tasks of a worker. One stores what steps have left to be stored, one makes vectors of what is stored, and one,
in the process that holds the lease, looks for items that others have left behind. Nothing waits for them, and nothing
leaves a queue before it is where it belongs: a store that does not answer is tried again for ever, ever less often.
What is stored but not indexed is marked so in the store, so that only what was never stored ends with its process.

A namespace of the index belongs to one embedder, because vectors of two are never near or far: the first write claims
it, and who has another one configured leaves it alone until a reindex.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from engine.domain.context import NamespaceOwner
from engine.errors import ConflictError, EngineError, InvalidInputError, StoreError
from engine.outages import OutageLog
from engine.ports.vector_index import VectorItem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from engine.domain.context import ContextItem
    from engine.ports.context_store import ContextStore
    from engine.ports.embedder import Embedder
    from engine.ports.execution_store import ExecutionStore
    from engine.ports.vector_index import VectorIndex

__all__ = ["IndexingService"]

_logger = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
"""Items in each of the two queues."""
GATHER_SECONDS: Final = 0.25
FIRST_WAIT_SECONDS: Final = 1.0
MOST_WAIT_SECONDS: Final = 60.0
FLUSH_SECONDS: Final = 2.0
CHARS_A_CALL: Final = 100_000
"""Of text for the embedder at once."""
LEASE: Final = "indexing"
SWEEP_PAUSE: Final = timedelta(seconds=30)
LEASE_TTL: Final = SWEEP_PAUSE * 2
BUSY_PAUSE: Final = timedelta(seconds=1)
"""After a sweep that left something for the next one."""
SETTLING: Final = timedelta(seconds=5)
"""An item younger than this is left to the process that stored it."""
SWEEP_BATCHES: Final = 5
SHOWN_AFTER: Final = timedelta(seconds=30)
"""Longer than the reads of an index lag its writes."""
CLAIM: Final = "indexing-claim"
CLAIM_TTL: Final = timedelta(seconds=10)
CLAIM_PAUSE_SECONDS: Final = 0.2
MAX_REFUSED: Final = 1_000
_PLAIN_TEXT: Final = "text"
"""What no embedder refuses that is set up well."""


class IndexingService:
    """Stores and indexes context items in the background.

    Args:
        store: keeps the items, and says which are not indexed.
        vectors: the index.
        embedder: makes the vectors; the namespace is its own.
        executions: keeps the lease.
        clock: the present, aware UTC.
        holder: names this process among those that want the lease.
        namespace: of the index.
        batch_size: items of a write.

    Attributes:
        namespace: of the index.
    """

    def __init__(
        self,
        store: ContextStore,
        vectors: VectorIndex,
        embedder: Embedder,
        executions: ExecutionStore,
        clock: Callable[[], datetime],
        *,
        holder: str,
        namespace: str = "default",
        batch_size: int,
    ) -> None:
        self.namespace = namespace
        self._store = store
        self._vectors = vectors
        self._embedder = embedder
        self._executions = executions
        self._clock = clock
        self._holder = holder
        self._batch_size = batch_size
        self._unstored = _Queue()
        self._unindexed = _Queue()
        self._refused: dict[str, str] = {}
        self._is_running = False
        self._holds_lease = False
        self._sweep_after = clock()
        self._overflow = OutageLog(_logger, "Keeping the texts of steps as context items")
        self._storing = OutageLog(_logger, "Storing context items")
        self._indexing = OutageLog(_logger, "Indexing context items")
        self._sweeping = OutageLog(_logger, "Looking for context items that are not indexed")

    def store_later(self, item: ContextItem) -> None:
        """Queue an item to be stored and then indexed; beyond 10,000 that wait it is lost, which is logged."""
        if self._unstored.add(item):
            self._overflow.worked()
        else:
            self._overflow.failed(f"{MAX_WAITING} of them are waiting to be stored")

    def index_later(self, item: ContextItem) -> None:
        """Queue a stored item to be indexed; where no indexer runs, a worker's sweep finds it in the store."""
        if self._is_running:
            self._unindexed.add(item)

    async def run_forever(self) -> None:
        """Store and index until cancelled; then store what is queued, for two seconds at most.

        Nothing that goes wrong ends it. An outage is logged when it begins and when it is over.
        """
        self._is_running = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work_forever(self._unstored, self._put, self._storing))
                group.create_task(self._work_forever(self._unindexed, self.index_items, self._indexing))
                group.create_task(self._sweep_forever())
        finally:
            self._is_running = False
            await self._flush()
            await self._release()

    async def has_vectors(self) -> bool:
        """Return whether the namespace is the configured embedder's; False while it is nobody's.

        Raises:
            ConflictError: it belongs to another one.
            StoreError: the context store does not answer.
        """
        owner = await self._store.get_namespace_owner(self.namespace)
        if owner is None:
            return False
        if owner != self.as_owner():
            raise ConflictError(
                f"The vectors of context memory were made by {owner.embedder} with dimension {owner.dimension}, "
                f"configured is {self._embedder.name} with {self._embedder.dimension}: run `baton context reindex`",
                {"path": "embedder", "embedder": owner.embedder, "configured": self._embedder.name},
            )
        return True

    def as_owner(self) -> NamespaceOwner:
        """Return what a namespace of the configured embedder says."""
        return NamespaceOwner(embedder=self._embedder.name, dimension=self._embedder.dimension)

    async def index_items(self, items: Sequence[ContextItem]) -> None:
        """Make vectors of stored items and mark them indexed; a text that the embedder refuses is left out.

        Raises:
            ConflictError: the namespace belongs to another embedder, or holds vectors of another dimension; or the
                embedder refuses any text, or has refused more than a thousand.
            StoreError: a store or the embedder does not answer; what was indexed before stays so.
        """
        await self._claim_namespace()
        for some in _by_size(items):
            await self._index(some)

    async def check_embedder(self) -> None:
        """Make one vector, to see that the embedder works.

        Raises:
            ConflictError: it refuses any text.
            StoreError: it does not answer.
        """
        try:
            await self._embedder.embed_texts([_PLAIN_TEXT], "document")
        except InvalidInputError as error:
            raise ConflictError(error.message, error.details) from error

    def is_refused(self, item: ContextItem) -> bool:
        """Whether the embedder has refused this text in this process."""
        return self._refused.get(item.item_id) == item.text_hash

    def is_young(self, item: ContextItem) -> bool:
        """Whether an item is so new that an index that has it may not show it yet."""
        return item.created_at > self._clock() - SHOWN_AFTER

    async def list_left(self, limit: int) -> list[ContextItem]:
        """Return up to ``limit`` stored items that are not indexed and can be, oldest first."""
        listed = await self._store.list_unindexed(limit + len(self._refused))
        return [item for item in listed if not self.is_refused(item)][:limit]

    async def hold_off_sweeps(self) -> None:
        """Keep all processes from sweeping for half a minute or more, as far as the lease can be had.

        Raises:
            StoreError: the execution store does not answer.
        """
        now = self._clock()
        if self._sweep_after - now > LEASE_TTL / 2:
            return
        self._sweep_after = now + LEASE_TTL
        self._holds_lease = await self._executions.acquire_lease(LEASE, self._holder, LEASE_TTL) is not None

    async def allow_sweeps(self) -> None:
        """Take ``hold_off_sweeps`` back."""
        self._sweep_after = self._clock()
        await self._release()

    async def _work_forever(
        self, queue: _Queue, work: Callable[[Sequence[ContextItem]], Awaitable[None]], outages: OutageLog
    ) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            batch = await queue.batch(self._batch_size)
            try:
                await work(batch)
            except EngineError as error:
                outages.failed(error)
            except Exception:
                _logger.exception("Context items can't be kept; they are tried again in %g s", wait)
            else:
                outages.worked()
                queue.done(batch)
                wait = FIRST_WAIT_SECONDS
                continue
            await asyncio.sleep(wait)
            wait = min(wait * 2, MOST_WAIT_SECONDS)

    async def _put(self, items: Sequence[ContextItem]) -> None:
        await self._store.put_items([*items])
        for item in items:
            self._unindexed.add(item)

    async def _index(self, items: Sequence[ContextItem]) -> None:
        try:
            made = await self._embedder.embed_texts([item.text for item in items], "document")
        except InvalidInputError as error:
            if len(items) == 1:
                await self._refuse(items[0], error)
                return
            half = len(items) // 2
            await self._index(items[:half])
            await self._index(items[half:])
            return
        vectors = [
            VectorItem(item.item_id, values, _metadata_of(item)) for item, values in zip(items, made, strict=True)
        ]
        try:
            await self._vectors.upsert_vectors(self.namespace, vectors)
        except InvalidInputError as error:
            raise ConflictError(
                f"The vector index does not take vectors of {self._embedder.name}: {error.message}; configure the "
                "embedder that made what it holds, or run `baton context reindex`",
                error.details,
            ) from error
        # A reindex may have begun meanwhile, for which these are not indexed.
        await self.has_vectors()
        await self._store.mark_indexed([*items])

    async def _refuse(self, item: ContextItem, error: InvalidInputError) -> None:
        """Leave an item out, if it is the item that is refused and not everything."""
        await self.check_embedder()
        if len(self._refused) >= MAX_REFUSED:
            raise ConflictError(f"The embedder refuses text after text; correct its settings: {error.message}")
        self._refused[item.item_id] = item.text_hash
        _logger.warning("The context item %s is left out of the vector index: %s", item.item_id, error)

    async def _claim_namespace(self) -> None:
        while not await self.has_vectors():
            if await self._executions.acquire_lease(CLAIM, self._holder, CLAIM_TTL) is None:
                await asyncio.sleep(CLAIM_PAUSE_SECONDS)
                continue
            if not await self.has_vectors():
                await self._store.put_namespace_owner(self.namespace, self.as_owner())
            await self._executions.release_lease(CLAIM, self._holder)

    async def _sweep_forever(self) -> None:
        while True:
            pause = SWEEP_PAUSE
            try:
                pause = await self._sweep()
            except EngineError as error:
                self._sweeping.failed(error)
            except Exception:
                _logger.exception("A sweep of context items failed; the next one is in %g s", pause.total_seconds())
            else:
                self._sweeping.worked()
            await asyncio.sleep(pause.total_seconds())

    async def _sweep(self) -> timedelta:
        """Queue what others have left behind; return when to look again."""
        limit = self._batch_size * SWEEP_BATCHES
        now = self._clock()
        if now < self._sweep_after or len(self._unindexed) >= limit:
            return BUSY_PAUSE
        try:
            await self.has_vectors()
        except ConflictError as error:
            # Another process may have the right embedder, so the lease is left to it.
            self._indexing.failed(error)
            await self._release()
            return SWEEP_PAUSE
        self._holds_lease = await self._executions.acquire_lease(LEASE, self._holder, LEASE_TTL) is not None
        if not self._holds_lease:
            return SWEEP_PAUSE
        left = await self.list_left(limit)
        old = [item for item in left if item.created_at <= now - SETTLING]
        for item in old:
            self._unindexed.add(item)
        if len(left) == limit:
            return BUSY_PAUSE
        return SWEEP_PAUSE if len(old) == len(left) else SETTLING

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while items := self._unstored.first(self._batch_size):
                    await self._store.put_items([*items])
                    self._unstored.done(items)
        except TimeoutError:
            took = f"the store took longer than {FLUSH_SECONDS:g} s"
            _logger.warning("%d context items were not stored: %s", len(self._unstored), took)
        except EngineError as error:
            _logger.warning("%d context items were not stored: %s", len(self._unstored), error)

    async def _release(self) -> None:
        if not self._holds_lease:
            return
        self._holds_lease = False
        try:
            await self._executions.release_lease(LEASE, self._holder)
        except StoreError as error:
            _logger.warning("The indexer's lease was not given back and runs out by itself: %s", error)


class _Queue:
    """Items in the order of their coming, each id once with what came last; they stay until they are done."""

    def __init__(self) -> None:
        self._items: dict[str, ContextItem] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: ContextItem) -> bool:
        """Return False, with nothing kept, when the queue is full."""
        if len(self._items) >= MAX_WAITING and item.item_id not in self._items:
            return False
        self._items[item.item_id] = item
        self._news.set()
        return True

    def first(self, size: int) -> list[ContextItem]:
        return list(islice(self._items.values(), size))

    async def batch(self, size: int) -> list[ContextItem]:
        """Return the first items, once there are any; fewer than ``size`` only after a moment for more to come."""
        await self._until(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._until(size)
        return self.first(size)

    def done(self, items: Iterable[ContextItem]) -> None:
        """Drop items, but not one that was replaced meanwhile."""
        for item in items:
            if self._items.get(item.item_id) is item:
                del self._items[item.item_id]

    async def _until(self, size: int) -> None:
        while len(self._items) < size:
            self._news.clear()
            await self._news.wait()


def _by_size(items: Sequence[ContextItem]) -> Iterator[list[ContextItem]]:
    """Yield runs of items, none with more text than the embedder gets at once unless it is a single item."""
    some: list[ContextItem] = []
    chars = 0
    for item in items:
        if some and chars + len(item.text) > CHARS_A_CALL:
            yield some
            some, chars = [], 0
        some.append(item)
        chars += len(item.text)
    if some:
        yield some


def _metadata_of(item: ContextItem) -> dict[str, str]:
    fields = {
        "definition_id": item.definition_id,
        "execution_id": item.execution_id,
        "agent_id": item.agent_id,
        "step_id": item.step_id,
    }
    return {key: value for key, value in fields.items() if value is not None}
