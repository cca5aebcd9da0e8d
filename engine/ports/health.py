"""How a store says that it is well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """A store's own words about itself; latency is measured by who asks."""

    backend: str
    """``sqlite``, ``neo4j``, ..."""
    version: str | None = None
    detail: str | None = None


class HealthCheck(Protocol):
    """One question to one store."""

    async def check_health(self) -> StoreHealth:
        """Make one cheap round trip. Raises ``StoreError`` when the store does not answer."""
        ...
