"""Where large values live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.domain.json import JsonValue


class ArtifactStore(Protocol):
    """Values by the hash of their content, immutable, so that storing one twice is storing it once.

    Raises ``StoreError`` when the store does not answer or holds something that can't be read, and
    ``LimitExceededError`` for a value over 64 MiB.
    """

    async def put_artifact(self, value: JsonValue) -> tuple[str, int]:
        """Store a value; return ``(artifact_id, size_bytes of its encoded form before compression)``."""
        ...

    async def get_artifact(self, artifact_id: str) -> JsonValue:
        """Return the value. Raises ``StoreError`` when there is none (it was referred to, so it is lost)."""
        ...
