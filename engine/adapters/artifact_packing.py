"""What a large value is named by and how it lies in a store: the hash of its plain form, and packed chunks of 4 MiB.

Packed, it is known by another hash: two writers with different settings never mix their chunks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.codec import Codec
from engine.errors import InvalidInputError, LimitExceededError

if TYPE_CHECKING:
    from engine.domain.json import JsonValue

__all__ = ["CHUNK_BYTES", "MAX_ARTIFACT_BYTES", "PackedArtifact", "digest", "pack_artifact"]

CHUNK_BYTES: Final = 4 * 1024 * 1024
MAX_ARTIFACT_BYTES: Final = 64 * 1024 * 1024
"""Top size of a value, packed and not compressed."""

_PLAIN: Final = Codec(threshold_bytes=2**63)
"""Packs without compressing: what a value is named by does not depend on a setting."""


@dataclass(frozen=True, slots=True)
class PackedArtifact:
    """A value ready to be stored."""

    artifact_id: str
    size_bytes: int
    """Before compression."""
    stored: bytes

    def chunks(self) -> list[bytes]:
        """Return what is stored, in pieces."""
        return [self.stored[start : start + CHUNK_BYTES] for start in range(0, len(self.stored), CHUNK_BYTES)]


def pack_artifact(codec: Codec, value: JsonValue) -> PackedArtifact:
    """Return a value's stored form; this can take a good part of a second.

    Raises:
        LimitExceededError: it is over 64 MiB.
        InvalidInputError: it is no JSON data.
    """
    try:
        plain = _PLAIN.encode(value)[1:]
    except InvalidInputError as error:
        if "limit_bytes" not in error.details:
            raise
        raise _too_large(cast("int", error.details.get("size_bytes"))) from error
    if len(plain) > MAX_ARTIFACT_BYTES:
        raise _too_large(len(plain))
    return PackedArtifact(f"sha256:{digest(plain)}", len(plain), codec.encode(value))


def digest(data: bytes) -> str:
    """Return the hash that names content."""
    return hashlib.sha256(data).hexdigest()


def _too_large(size_bytes: int) -> LimitExceededError:
    return LimitExceededError(
        f"The value has {size_bytes} bytes, the most that can be stored is {MAX_ARTIFACT_BYTES}. "
        "Keep large data outside and pass a reference to it.",
        {"size_bytes": size_bytes, "limit_bytes": MAX_ARTIFACT_BYTES},
    )
