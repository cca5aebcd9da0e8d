"""Context memory on embedded stores, with doubles between that can be taken down."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.adapters.codec import Codec
from engine.adapters.hashing_embedder import HashingEmbedder
from engine.adapters.sqlite.artifact_store import SqliteArtifactStore
from engine.adapters.sqlite.context_store import SqliteContextStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.adapters.sqlite.schema import VECTORS
from engine.adapters.sqlite.vector_index import SqliteVectorIndex
from engine.domain.context import ContextItem
from engine.domain.context_text import hash_of_text, item_id_of
from engine.errors import StoreError
from engine.services.context import ContextService
from engine.services.context_search import ContextSearch
from engine.services.indexing import IndexingService
from engine.services.reindexing import ReindexingService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from engine.ports.embedder import Embedder

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


class Switch:
    """Stands before a store or embedder: down, slow, or transparent.

    Attributes:
        seconds: that every call waits first; ``delays`` are those of single methods.
        calls: how often each method's call came through.
        asked_at: when each method was called (``time.monotonic``), whether or not it came through.
    """

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.is_down = False
        self.seconds = 0.0
        self.delays: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.asked_at: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.behind, name)
        if not callable(found):
            return found

        async def called(*args: object, **kwargs: object) -> object:
            self.asked_at.setdefault(name, []).append(time.monotonic())
            if delay := self.delays.get(name, self.seconds):
                await asyncio.sleep(delay)
            if self.is_down:
                raise StoreError("it is down; the test wants it so")
            self.calls[name] = self.calls.get(name, 0) + 1
            return await found(*args, **kwargs)

        return called


class OtherEmbedder:
    """Another model: letters are counted, in another dimension."""

    name = "letters-26"
    dimension = 26

    async def embed_texts(self, texts: Sequence[str], kind: str) -> list[list[float]]:
        return [[1.0 + text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]


class RenamedEmbedder(HashingEmbedder):
    """Another model of the same dimension."""

    @property
    def name(self) -> str:
        return "renamed"


class Memory:
    """The parts of context memory of one process.

    Attributes:
        store, vectors, embedder, executions: switches before the real ones.
    """

    def __init__(
        self,
        records: SqliteDatabase,
        vectors: SqliteDatabase,
        clock: Clock,
        *,
        holder: str = "one",
        embedder: Embedder | None = None,
        knows_words: bool = True,
        batch_size: int = 10,
    ) -> None:
        items = SqliteContextStore(records, Codec())
        self.clock = clock
        self.store: Any = Switch(items)
        self.vectors: Any = Switch(SqliteVectorIndex(vectors))
        self.embedder: Any = Switch(embedder or HashingEmbedder())
        self.executions: Any = Switch(SqliteExecutionStore(records, Codec()))
        self.artifacts = SqliteArtifactStore(records, Codec())
        self.indexing = IndexingService(
            self.store,
            self.vectors,
            self.embedder,
            self.executions,
            clock,
            holder=holder,
            batch_size=batch_size,
        )
        self.search = ContextSearch(
            self.store, self.vectors, items if knows_words else None, self.embedder, self.indexing
        )
        self.reindexing = ReindexingService(
            self.store, self.vectors, self.executions, self.artifacts, self.indexing, batch_size=batch_size
        )
        self.service = ContextService(self.store, self.search, self.indexing, self.reindexing, clock)

    async def index_all(self) -> None:
        while left := await self.store.behind.list_unindexed(100):
            await self.indexing.index_items(left)

    async def waiting(self) -> list[str]:
        """Texts that are stored and not indexed."""
        return sorted(item.text for item in await self.store.behind.list_unindexed(1_000))

    async def vector_count(self) -> int:
        return (await self.vectors.behind.describe_namespace("default")).count


@asynccontextmanager
async def databases(folder: Path) -> AsyncGenerator[tuple[SqliteDatabase, SqliteDatabase]]:
    records, vectors = SqliteDatabase(folder / "baton.db"), SqliteDatabase(folder / "vectors.db", VECTORS)
    yield records, vectors
    await records.aclose()
    await vectors.aclose()


def item(text: str, **changes: Any) -> ContextItem:
    given: dict[str, Any] = {
        "definition_id": "flow",
        "execution_id": "flow-1",
        "step_id": "a",
        "agent_id": "agent-a",
        "created_at": START,
        **changes,
    }
    item_id = item_id_of(given["execution_id"], given["step_id"], text)
    return ContextItem(item_id=item_id, text=text, text_hash=hash_of_text(text), **given)
