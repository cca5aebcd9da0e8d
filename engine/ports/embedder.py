"""Texts to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Embedder(Protocol):
    """Makes vectors of unit length; equal texts give equal vectors."""

    @property
    def name(self) -> str:
        """Model and version; vectors of different names are never compared."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        ...

    async def embed_texts(self, texts: Sequence[str], kind: Literal["document", "query"]) -> list[list[float]]:
        """Return a vector for each text, in order. Raises ``StoreError`` when the embedder does not answer."""
        ...
