"""A group of cached entries is one hash, so that it is dropped as a whole, and a channel tells of each group dropped.

For ten seconds after that the group takes no entry, because a reader may still hold what it read before. A hash keeps
the time to live that its first entry got, so that no entry lasts longer than its own. A drop that did not reach the
server is owed to it: it goes before whatever is asked next, and is sent when news arrive again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.redis.connection import Script, ScriptCall
from engine.adapters.redis.health import redis_health
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from engine.adapters.redis.connection import Command, RedisDatabase, Reply
    from engine.ports.health import StoreHealth
    from engine.ports.shared_cache import CacheKey

__all__ = ["RedisSharedCache"]

CLOSED_MILLIS: Final = 10_000
"""For how long a group takes no entry after it was dropped."""
MAX_OWED: Final = 1000
_CHANNEL: Final = b"baton:default:dropped"

# Keys: the group's hash, the mark of its drop. Arguments: time to live, then name and body of each entry.
_PUT: Final = Script("""
if redis.call('EXISTS', KEYS[2]) == 1 then
    return 0
end
for i = 2, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
local left = redis.call('PTTL', KEYS[1])
if left < 0 or left > tonumber(ARGV[1]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return 1
""")
# A full server lets a script go on writing that began by deleting.
_DROP: Final = Script(f"""
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], '', 'PX', {CLOSED_MILLIS})
""")


class RedisSharedCache:
    """A ``SharedCache`` on a Redis server, which it does not own."""

    def __init__(self, database: RedisDatabase) -> None:
        self._database = database
        self._dropped: list[Callable[[str], None]] = []
        self._owed: dict[str, object] = {}
        self._paying: asyncio.Task[None] | None = None

    async def get_entries(self, keys: list[CacheKey]) -> dict[CacheKey, bytes]:
        """Return the entries that are there, in one round trip."""
        groups = _by_group(keys)
        if not groups:
            return {}
        replies = await self._ask([("HMGET", _entries_key(group), *names) for group, names in groups.items()])
        return {
            (group, name): body
            for (group, names), bodies in zip(groups.items(), cast("list[list[bytes | None]]", replies), strict=True)
            for name, body in zip(names, bodies, strict=True)
            if body is not None
        }

    async def put_entries(self, entries: dict[CacheKey, bytes], ttl: timedelta) -> None:
        """Keep entries for at most ``ttl``, in one round trip; none of a group dropped within the last 10 s."""
        if not entries:
            return
        millis = round(ttl.total_seconds() * 1000)
        await self._ask(
            [
                ScriptCall(
                    _PUT,
                    (_entries_key(group), _mark_key(group)),
                    (millis, *(part for name in names for part in (name, entries[group, name]))),
                )
                for group, names in _by_group(entries).items()
            ]
        )

    async def drop_group(self, group: str) -> None:
        """Remove a group's entries and tell all listeners, the own process included."""
        self._owed[group] = object()
        while len(self._owed) > MAX_OWED:
            del self._owed[next(iter(self._owed))]
        await self._ask([])

    def listen(self, dropped: Callable[[str], None]) -> None:
        """Call ``dropped`` on the running loop with each group that any process drops, from now until closed."""
        if not self._dropped:
            self._database.news.listen(_CHANNEL, self._hear)
        self._dropped.append(dropped)

    @property
    def listening_since(self) -> float | None:
        """Since when (``time.monotonic``) every piece of news has arrived; None while it may not."""
        return self._database.news.listening_since(_CHANNEL)

    async def check_health(self) -> StoreHealth:
        """Ask the server about itself."""
        return await redis_health(self._database)

    async def aclose(self) -> None:
        """Hear nothing any more; drops still owed are tried once more."""
        if self._dropped:
            self._dropped.clear()
            self._database.news.unlisten(_CHANNEL, self._hear)
        await self._pay()
        if self._paying is not None:
            await self._paying

    async def _ask(self, commands: list[Command | ScriptCall]) -> list[Reply]:
        """Send what is owed, then ``commands``; return the replies to those."""
        owed = dict(self._owed)
        drops = [_drop(group) for group in owed]
        replies = await self._database.ask(*drops, *commands)
        for group, mark in owed.items():
            # Another drop of the group may have come since.
            if self._owed.get(group) is mark:
                del self._owed[group]
        return replies[len(drops) :]

    def _hear(self, body: bytes | None) -> None:
        if body is not None:
            for dropped in tuple(self._dropped):
                dropped(body.decode(errors="replace"))
        elif self._owed and self.listening_since is not None:
            self._paying = asyncio.create_task(self._pay(), name="baton redis owed drops")

    async def _pay(self) -> None:
        if self._owed:
            try:
                await self._ask([])
            except StoreError:
                # They stay owed; who dropped them has been told.
                return


def _drop(group: str) -> ScriptCall:
    return ScriptCall(_DROP, (_entries_key(group), _mark_key(group)), (_CHANNEL, group))


def _by_group(keys: Iterable[CacheKey]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for group, name in keys:
        groups.setdefault(group, []).append(name)
    return groups


def _entries_key(group: str) -> bytes:
    return f"baton:default:cache:{{{group}}}".encode()


def _mark_key(group: str) -> bytes:
    return f"baton:default:dropped:{{{group}}}".encode()
