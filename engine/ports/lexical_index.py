"""Where words are found: the other half of a search that goes by meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.context import ContextFilter


class LexicalIndex(Protocol):
    """The words of the context store's items, always as new as these. Only some stores have one.

    Raises ``StoreError`` when the store does not answer.
    """

    async def find_by_words(self, text: str, query: ContextFilter, *, limit: int) -> list[str]:
        """Return ids of the items of ``query`` that share words with ``text``, best first by BM25.

        No character of ``text`` is syntax. A text without a word finds nothing.
        """
        ...
