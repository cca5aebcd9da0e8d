"""A server is well when it answers; what it may throw away, or have no room for, is said beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine.ports.health import StoreHealth

if TYPE_CHECKING:
    from engine.adapters.redis.connection import RedisDatabase

__all__ = ["redis_health"]


async def redis_health(database: RedisDatabase) -> StoreHealth:
    """Ask the server about itself, in one round trip.

    Raises:
        StoreError: it does not answer.
    """
    busy = database.busy
    about, memory = await database.ask(("INFO", "server"), ("INFO", "memory"))
    facts = _facts(about) | _facts(memory)
    detail = f"{database.address}, {busy} of {database.pool_size} connections in use"
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        detail += f"; live state may vanish early: maxmemory {facts.get('maxmemory_human')} with {policy}"
    return StoreHealth(backend="redis", version=facts.get("redis_version"), detail=detail)


def _facts(reply: object) -> dict[str, str]:
    lines = cast("bytes", reply).decode(errors="replace").splitlines()
    return {name: value for name, found, value in (line.partition(":") for line in lines) if found}
