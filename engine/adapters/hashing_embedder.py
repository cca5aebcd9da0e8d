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
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

__all__ = ["HashingEmbedder"]

_DIMENSION = 512
_INLINE_CHARACTERS: Final = 4000
"""Of one text, which take some milliseconds; what is longer goes to a thread."""

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
"""Makes places of checksums: of 32 bits of the product the first nine are the place and the next one is the sign."""
_PLACE_SHIFT = 23
_PLACES = _DIMENSION - 1
_SIGN = 1 << 22
_EMPTY: Final = ""


class _Half(NamedTuple):
    """What a word gives to the pairs that it stands in."""

    weight: float
    encoded: bytes
    checksum: int
    """Of the word and a space, from which a pair's goes on."""


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
        embedded: list[list[float]] = []
        for text in texts:
            if len(text) > _INLINE_CHARACTERS:
                embedded.append(await asyncio.to_thread(_embed, text))
            else:
                # A thread would let the loop wait longer at each turn, for the interpreter's lock, than a text takes.
                embedded.append(_embed(text))
                await asyncio.sleep(0)
        return embedded


def _embed(text: str) -> list[float]:
    words = _words_of(text)
    values = [0.0] * _DIMENSION
    # Without the words' places, of which a long text has more than can be let go in one moment.
    halves: dict[str, _Half] = {}
    for word, count in Counter(words).items():
        features, halves[word] = _features_of(word)
        times = 1 + math.log(count)
        for place, weight in features:
            values[place] += times * weight
    for (left, right), count in Counter(pairwise(words)).items():
        first, second = halves[left], halves[right]
        spread = zlib.crc32(second.encoded, first.checksum) * _SPREAD
        weight = min(first.weight, second.weight) * (1 + math.log(count))
        values[spread >> _PLACE_SHIFT & _PLACES] += weight if spread & _SIGN else -weight
    length = math.hypot(*values)
    if length == 0:
        return _embed(_EMPTY)
    return [value / length for value in values]


def _words_of(text: str) -> list[str]:
    # Folding may take a text out of its normal form, so it is brought back.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORDS.findall(folded) or _MARKS.findall(folded) or [_EMPTY]


@functools.lru_cache(maxsize=4096)
def _features_of(word: str) -> tuple[tuple[tuple[int, float], ...], _Half]:
    """Return the places that a word adds to and by how much; the same words come again and again."""
    light = _LIGHT.get(len(word), 1.0) if word.isascii() else 1.0
    encoded = _encode(word)
    pieces = _pieces_of(word)
    share = light * _PIECE_WEIGHT / math.sqrt(len(pieces)) if pieces else 0.0
    features: list[tuple[int, float]] = []
    weight = light * _WORD_WEIGHT
    for feature in (b"=" + encoded, *pieces):
        # The sign lets those that meet by chance not add up.
        spread = zlib.crc32(feature) * _SPREAD
        features.append((spread >> _PLACE_SHIFT & _PLACES, weight if spread & _SIGN else -weight))
        weight = share
    return tuple(features), _Half(light * _PAIR_WEIGHT, encoded, zlib.crc32(encoded + b" "))


def _pieces_of(word: str) -> list[bytes]:
    marked = f"<{word}>"
    if word.isascii():
        # Bytes are characters here, so that one text is encoded and not each piece of it.
        whole = marked.encode()
        return [whole[start : start + size] for size in (3, 4) for start in range(len(whole) - size + 1)]
    return [_encode(marked[start : start + size]) for size in (3, 4) for start in range(len(marked) - size + 1)]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
