"""Vectors without a model: each word, word pair and piece of a word adds to one place, chosen by its hash.

Texts that share words, or parts of them, come out near one another; meaning it does not know. It needs no download, no
key and no network, which makes it the default. How it counts is its name: a change needs a new name, because vectors
of two ways of counting must never be compared.

A text without any word still gets a vector of unit length, the same one for all such texts, since a cosine with
nothing is not defined.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
import unicodedata
import zlib
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

__all__ = ["HashingEmbedder"]

_DIMENSION = 512
_INLINE_CHARACTERS: Final = 500
"""Of new words, which take a millisecond; more go to a thread."""

_WORD_WEIGHT = 1.0
_PAIR_WEIGHT = 0.25
_PIECE_WEIGHT = 0.7
"""Of all pieces of a word together, at length: a long word has many and is no more of a word for it."""
_LIGHT = {1: 0.2, 2: 0.3, 3: 0.5}
"""Short words are mostly the ones that every text has."""

# What is longer is several words, so that no one of them is dear: encoded data, or a script without spaces.
_WORDS = re.compile(r"\w{1,40}")
_MARKS = re.compile(r"\S{1,40}")
_SPREAD = 0x9E3779B1
_EMPTY: Final = ""

_Feature = tuple[int, float]


class HashingEmbedder:
    """An ``Embedder`` of 512 numbers; documents and queries are treated alike."""

    @property
    def name(self) -> str:
        """The way of counting."""
        return "hashing-512-v1"

    @property
    def dimension(self) -> int:
        """512."""
        return _DIMENSION

    async def embed_texts(self, texts: Sequence[str], kind: Literal["document", "query"]) -> list[list[float]]:  # noqa: ARG002 - the port's
        """Return a vector for each text, in order; the event loop goes on meanwhile."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return [_embed(text) for text in texts]
        return await asyncio.to_thread(lambda: [_embed(text) for text in texts])


def _embed(text: str) -> list[float]:
    words = _words_of(text)
    values = [0.0] * _DIMENSION
    for word, count in Counter(words).items():
        times = 1 + math.log(count)
        for place, weight in _word_features(word):
            values[place] += times * weight
    for pair, count in Counter(pairwise(words)).items():
        place, sign = _place(" ".join(pair))
        values[place] += sign * _PAIR_WEIGHT * min(map(_lightness, pair)) * (1 + math.log(count))
    length = math.hypot(*values)
    if length == 0:
        return _embed(_EMPTY)
    return [value / length for value in values]


def _words_of(text: str) -> list[str]:
    # Folding may take a text out of its normal form, so it is brought back.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORDS.findall(folded) or _MARKS.findall(folded) or [_EMPTY]


@functools.lru_cache(maxsize=4096)
def _word_features(word: str) -> tuple[_Feature, ...]:
    """Return the places that a word adds to and by how much; the same words come again and again."""
    light = _lightness(word)
    place, sign = _place(f"={word}")
    pieces = [_place(piece) for piece in _pieces_of(word)]
    share = light * _PIECE_WEIGHT / math.sqrt(len(pieces)) if pieces else 0.0
    return ((place, sign * light * _WORD_WEIGHT), *((place, sign * share) for place, sign in pieces))


def _pieces_of(word: str) -> Iterable[str]:
    marked = f"<{word}>"
    return [marked[start : start + size] for size in (3, 4) for start in range(len(marked) - size + 1)]


def _lightness(word: str) -> float:
    return _LIGHT.get(len(word), 1.0) if word.isascii() else 1.0


def _place(feature: str) -> _Feature:
    """Return where a feature adds, and with which sign, so that those that meet by chance do not add up."""
    spread = (zlib.crc32(feature.encode("utf-8", "surrogatepass")) * _SPREAD) & 0xFFFFFFFF
    return spread >> 23, 1.0 if spread & 0x400000 else -1.0
