"""What embedders behind a network have in common: which vectors a model makes, what of a text is sent, unit length.

A long text is cut where every model with room for 8,191 tokens still takes it, since a token is a byte at least: one
text that is too long would have its whole batch refused. The words behind the cut are found by the words' own index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["MAX_TEXT_BYTES", "Dimension", "KnownModel", "batches", "choose_dimension", "sendable", "unit"]

MAX_TEXT_BYTES: Final = 8000
MAX_BATCH_BYTES: Final = 256 * 1024
"""Of texts in a request, well below the 300,000 tokens that OpenAI takes."""

_BLANK = "(empty)"
"""Sent for a text without a character that shows, which embedders refuse."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of a model.

    Args:
        dimension: numbers in its vectors unless others are asked for.
        others: how many may be asked for.
    """

    dimension: int
    others: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Dimension:
    """How many numbers the vectors of a model have, here and now.

    Args:
        numbers: in a vector.
        asked: what to tell the endpoint; None: nothing, since the model makes just these.
        suffix: for the embedder's name.
    """

    numbers: int
    asked: int | None
    suffix: str


def choose_dimension(model: str, given: int | None, known: Mapping[str, KnownModel]) -> Dimension:
    """Return the dimension to use; an unknown model is believed to make what is given, and not asked to.

    Raises:
        ConfigurationError: a model that is not known, without a dimension; or one that can't make the one given.
    """
    # Gateways put the provider in front: openai/text-embedding-3-small.
    found = known.get(model.rpartition("/")[2])
    if found is None:
        if given is None:
            raise ConfigurationError(
                f"embedding_dimension is needed for the model {model}: set it to the number of its dimensions",
                {"path": "embedding_dimension", "model": model},
            )
        return Dimension(given, None, f":{given}")
    if given is None or given == found.dimension:
        return Dimension(found.dimension, None, "")
    if given not in found.others:
        raise ConfigurationError(
            f"embedding_dimension is {given}, which {model} can't make; leave it out to have {found.dimension}",
            {"path": "embedding_dimension", "model": model, "dimension": found.dimension},
        )
    return Dimension(given, given, f":{given}")


def sendable(text: str) -> str:
    """Return what is sent for a text: Unicode, not blank, at most ``MAX_TEXT_BYTES``."""
    encoded = text.encode("utf-8", "replace")
    cut = encoded[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return cut if cut.strip() else _BLANK


def batches(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Yield sendable texts in order, in lists of at most ``most``."""
    batch: list[str] = []
    batch_bytes = 0
    for text in texts:
        size_bytes = len(text.encode())
        if len(batch) == most or (batch and batch_bytes + size_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(text)
        batch_bytes += size_bytes
    if batch:
        yield batch


def unit(values: Sequence[float]) -> list[float]:
    """Return the vector of length 1 in the same direction.

    Raises:
        InvalidInputError: it has none, because of what the text is.
    """
    length = math.hypot(*values)
    if not 0 < length < math.inf:
        raise InvalidInputError("The embedding model made no vector of a text: all zeros, or numbers without end")
    return [value / length for value in values]
