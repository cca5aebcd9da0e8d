"""Where vectors live: nearest neighbours within a namespace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class VectorItem:
    """A vector to keep."""

    item_id: str
    values: Sequence[float]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """What queries filter by."""


@dataclass(frozen=True, slots=True)
class VectorMatch:
    """A vector found."""

    item_id: str
    score: float
    """Cosine similarity, -1 to 1."""


@dataclass(frozen=True, slots=True)
class VectorStats:
    """What an index holds."""

    dimension: int | None
    """None when it holds nothing and so takes any."""
    count: int
    """Vectors in the namespace."""


class VectorIndex(Protocol):
    """Vectors by namespace. All of it may be lost at any time and is rebuilt from the context store.

    Reads may lag writes by some seconds. A vector of another dimension than the namespace's is ``InvalidInputError``.
    Raises ``StoreError`` when the index does not answer.
    """

    async def upsert_vectors(self, namespace: str, items: Sequence[VectorItem]) -> None:
        """Keep vectors under their ids, replacing equal ids; any number, batched here."""
        ...

    async def query_vectors(
        self, namespace: str, values: Sequence[float], *, top_k: int, where: Mapping[str, str] | None = None
    ) -> list[VectorMatch]:
        """Return the nearest ``top_k`` (1 to 1000), best first, of those whose metadata has all of ``where``."""
        ...

    async def delete_vectors(self, namespace: str, item_ids: Sequence[str]) -> None:
        """Drop vectors; unknown ids are no error."""
        ...

    async def describe_namespace(self, namespace: str) -> VectorStats:
        """Return what the namespace holds; an unknown one holds nothing."""
        ...

    async def delete_namespace(self, namespace: str) -> None:
        """Drop all vectors of a namespace, which then takes any dimension that the index can have."""
        ...
