"""Definitions, agents and handoffs kept in memory, because every start reads them and hardly anything changes them.

What was read is taken for true for one second, so that no write of another process is overlooked for longer. While a
``SharedCache`` tells of every write it is taken for true until its time to live is over, and other processes find it
there. For ten seconds after a write it is one second all the same, because a write that nobody waited for any longer
may still happen, and a replica may lag. The time to live counts from the read in the store, in whichever process that
was: a shared entry carries its instant. A store that does not answer is replaced by what was last read from it, for at
most the time to live. Absence is never kept. Whoever writes what depends on a read must read past the cache.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar, cast

from pydantic import BaseModel

from engine.adapters.packing import pack, unpack, unpack_definition
from engine.domain.agent import Agent
from engine.domain.handoff import Handoff
from engine.domain.hashing import content_hash
from engine.errors import StoreError
from engine.outages import OutageLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
    from datetime import datetime, timedelta

    from engine.adapters.codec import Codec
    from engine.domain.agent import AgentStatus
    from engine.domain.definition import DefinitionStatus, DefinitionVersion
    from engine.domain.page import Page, Position
    from engine.ports.agent_store import AgentStore
    from engine.ports.definition_store import DefinitionStore
    from engine.ports.handoff_store import HandoffStore
    from engine.ports.shared_cache import CacheKey, SharedCache

__all__ = ["CachedAgentStore", "CachedDefinitionStore", "CachedHandoffStore", "ReadCache"]

FRESH_SECONDS: Final = 1.0
"""For how long a read holds without news."""
UNSETTLED_SECONDS: Final = 10.0
"""For how long after a group was dropped news of it prove little."""
MAX_ENTRIES: Final = 2000
_INSTANT_BYTES: Final = 8
"""Lead an entry in the shared cache: the microseconds since the epoch at which it was read in the store."""
_HANDOFFS: Final = "handoffs"

_logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)


class _Handoffs(BaseModel):
    items: list[Handoff]


@dataclass(frozen=True, slots=True)
class _Entry:
    value: BaseModel
    seen_at: float
    """When it was known to be true: read in the store, or found in the shared cache."""
    read_at: float
    """When it was read in the store, by this process or another."""


class ReadCache:
    """What this process has read of late, over what all processes have; one for all kinds of entries.

    Args:
        codec: packs entries for other processes.
        ttl: how long an entry lasts at most.
        shared: where other processes' entries and news are, or None.
    """

    def __init__(self, codec: Codec, ttl: timedelta, shared: SharedCache | None = None) -> None:
        self._codec = codec
        self._ttl = ttl
        self._shared = shared
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._drops = 0
        self._dropped_at: OrderedDict[str, float] = OrderedDict()
        self._asked_to_listen = False
        self._shared_failed_at = float("-inf")
        self._shared_outages = OutageLog(_logger, "The shared cache of definitions and agents")
        self._store_outages = OutageLog(_logger, "A store for which the cache answers")

    async def read(
        self,
        keys: list[CacheKey],
        load: Callable[[list[CacheKey]], Awaitable[dict[CacheKey, T]]],
        decode: Callable[[Codec, bytes], T],
    ) -> dict[CacheKey, T]:
        """Return the values of those keys that exist.

        Args:
            keys: what is wanted; a key belongs to one kind of value for ever.
            load: asks the store for the keys that are not cached.
            decode: the inverse of ``pack`` for this kind of value.

        Raises:
            StoreError: the store does not answer, and not all of what is wanted was read within the time to live.
        """
        found = {key: entry for key in keys if (entry := self._fresh(key)) is not None}
        if len(found) < len(keys):
            drops = self._drops
            seen_at = time.monotonic()
            found |= await self._shared_entries([key for key in keys if key not in found], decode, seen_at)
            missing = [key for key in keys if key not in found]
            if missing:
                try:
                    loaded = await load(missing)
                except StoreError as error:
                    found |= self._last_known(missing, error)
                    return _values(found)
                self._store_outages.worked()
                await self._share(loaded, seen_at)
                found |= {key: _Entry(value, seen_at, seen_at) for key, value in loaded.items()}
            if drops == self._drops:
                self._keep(keys, found)
        return _values(found)

    async def drop(self, group: str) -> None:
        """Forget a group here and tell the others; those that can't be told see the old one for at most its time."""
        self._forget(group)
        if self._shared is not None:
            try:
                await self._shared.drop_group(group)
            except StoreError as error:
                self._shared_failed(error)

    @asynccontextmanager
    async def dropping(self, group: str) -> AsyncGenerator[None]:
        """Drop a group after what is done inside, also when nobody knows whether it happened."""
        try:
            yield
        finally:
            await self.drop(group)

    def _fresh(self, key: CacheKey) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = time.monotonic()
        if now - entry.read_at >= self._ttl.total_seconds():
            return None
        if now - entry.seen_at >= FRESH_SECONDS:
            since = None if self._shared is None else self._shared.listening_since
            settled_at = self._dropped_at.get(key[0], float("-inf")) + UNSETTLED_SECONDS
            if since is None or entry.seen_at < max(since, settled_at):
                return None
        self._entries.move_to_end(key)
        return entry

    def _last_known(self, keys: list[CacheKey], error: StoreError) -> dict[CacheKey, _Entry]:
        oldest = time.monotonic() - self._ttl.total_seconds()
        known = {key: entry for key in keys if (entry := self._entries.get(key)) is not None and entry.read_at > oldest}
        if len(known) < len(keys):
            raise error
        self._store_outages.failed(error)
        return known

    def _keep(self, keys: Iterable[CacheKey], found: dict[CacheKey, _Entry]) -> None:
        for key in keys:
            if key in found:
                self._entries[key] = found[key]
                self._entries.move_to_end(key)
            else:
                self._entries.pop(key, None)
        while len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def _forget(self, group: str) -> None:
        self._drops += 1
        self._dropped_at[group] = time.monotonic()
        self._dropped_at.move_to_end(group)
        while len(self._dropped_at) > MAX_ENTRIES:
            self._dropped_at.popitem(last=False)
        for key in [key for key in self._entries if key[0] == group]:
            del self._entries[key]

    async def _shared_entries(
        self, keys: list[CacheKey], decode: Callable[[Codec, bytes], BaseModel], seen_at: float
    ) -> dict[CacheKey, _Entry]:
        if self._shared is None:
            return {}
        if not self._asked_to_listen:
            self._asked_to_listen = True
            self._shared.listen(self._forget)
        if not self._may_ask_shared():
            return {}
        try:
            bodies = await self._shared.get_entries(keys)
        except StoreError as error:
            self._shared_failed(error)
            return {}
        self._shared_outages.worked()
        entries: dict[CacheKey, _Entry] = {}
        for key, body in bodies.items():
            age = max(0.0, time.time() - _instant(body))
            if age < self._ttl.total_seconds():
                try:
                    entries[key] = _Entry(decode(self._codec, body[_INSTANT_BYTES:]), seen_at, seen_at - age)
                except StoreError as error:
                    _logger.warning("The shared entry of %s is read again from its store: %s", key[0], error)
        return entries

    async def _share(self, loaded: dict[CacheKey, T], read_at: float) -> None:
        if self._shared is None or not loaded or not self._may_ask_shared():
            return
        instant = round((time.time() - (time.monotonic() - read_at)) * 1_000_000).to_bytes(_INSTANT_BYTES)
        entries = {key: instant + pack(self._codec, value) for key, value in loaded.items()}
        try:
            await self._shared.put_entries(entries, self._ttl)
        except StoreError as error:
            self._shared_failed(error)

    def _may_ask_shared(self) -> bool:
        """Not for a second after a failure, so that a start that reads three times waits for a dead server once."""
        return time.monotonic() - self._shared_failed_at >= FRESH_SECONDS

    def _shared_failed(self, error: StoreError) -> None:
        self._shared_failed_at = time.monotonic()
        self._shared_outages.failed(error)


def _values(entries: dict[CacheKey, _Entry]) -> dict[CacheKey, T]:
    return {key: cast("T", entry.value) for key, entry in entries.items()}


def _instant(body: bytes) -> float:
    return int.from_bytes(body[:_INSTANT_BYTES]) / 1_000_000


class CachedDefinitionStore:
    """A ``DefinitionStore`` whose ``get_definition`` is cached; lists are not. It does not own the store."""

    def __init__(self, store: DefinitionStore, cache: ReadCache) -> None:
        self._store = store
        self._cache = cache

    async def insert_definition(self, version: DefinitionVersion) -> bool:
        """See ``DefinitionStore``."""
        return await self._store.insert_definition(version)

    async def append_version(self, version: DefinitionVersion) -> bool:
        """See ``DefinitionStore``."""
        async with self._cache.dropping(_workflow(version.definition_id)):
            return await self._store.append_version(version)

    async def get_definition(self, definition_id: str, version: int | None = None) -> DefinitionVersion | None:
        """Return that version, or the newest, as it was at most one second ago."""
        key = (_workflow(definition_id), "newest" if version is None else str(version))

        async def load(_: list[CacheKey]) -> dict[CacheKey, DefinitionVersion]:
            found = await self._store.get_definition(definition_id, version)
            return {} if found is None else {key: found}

        return (await self._cache.read([key], load, unpack_definition)).get(key)

    async def list_definitions(
        self, *, tags: list[str], status: DefinitionStatus, limit: int, after: Position | None
    ) -> Page[DefinitionVersion]:
        """See ``DefinitionStore``."""
        return await self._store.list_definitions(tags=tags, status=status, limit=limit, after=after)

    async def list_versions(self, definition_id: str, *, limit: int, after: Position | None) -> Page[DefinitionVersion]:
        """See ``DefinitionStore``."""
        return await self._store.list_versions(definition_id, limit=limit, after=after)

    async def archive_definition(self, definition_id: str, at: datetime) -> bool:
        """See ``DefinitionStore``."""
        async with self._cache.dropping(_workflow(definition_id)):
            return await self._store.archive_definition(definition_id, at)


class CachedAgentStore:
    """An ``AgentStore`` whose ``get_agents`` is cached; ``get_agent`` and lists are not. It does not own the store."""

    def __init__(self, store: AgentStore, cache: ReadCache) -> None:
        self._store = store
        self._cache = cache

    async def insert_agent(self, agent: Agent) -> bool:
        """See ``AgentStore``."""
        return await self._store.insert_agent(agent)

    async def append_agent(self, agent: Agent) -> bool:
        """See ``AgentStore``."""
        async with self._cache.dropping(_agent(agent.agent_id)):
            return await self._store.append_agent(agent)

    async def get_agent(self, agent_id: str, version: int | None = None) -> Agent | None:
        """See ``AgentStore``."""
        return await self._store.get_agent(agent_id, version)

    async def get_agents(self, agent_ids: list[str]) -> dict[str, Agent]:
        """Return the newest versions of those ids that exist, as they were at most one second ago."""
        ids = {(_agent(agent_id), "newest"): agent_id for agent_id in agent_ids}

        async def load(keys: list[CacheKey]) -> dict[CacheKey, Agent]:
            found = await self._store.get_agents([ids[key] for key in keys])
            return {key: found[ids[key]] for key in keys if ids[key] in found}

        agents = await self._cache.read([*ids], load, lambda codec, body: unpack(codec, Agent, body))
        return {ids[key]: agent for key, agent in agents.items()}

    async def list_agents(
        self, *, capabilities: list[str], status: AgentStatus | None, limit: int, after: Position | None
    ) -> Page[Agent]:
        """See ``AgentStore``."""
        return await self._store.list_agents(capabilities=capabilities, status=status, limit=limit, after=after)


class CachedHandoffStore:
    """A ``HandoffStore`` whose ``list_handoffs_among`` is cached, and nothing else. It does not own the store."""

    def __init__(self, store: HandoffStore, cache: ReadCache) -> None:
        self._store = store
        self._cache = cache

    async def insert_handoff(self, handoff: Handoff) -> bool:
        """See ``HandoffStore``."""
        async with self._cache.dropping(_HANDOFFS):
            return await self._store.insert_handoff(handoff)

    async def get_handoff(self, handoff_id: str) -> Handoff | None:
        """See ``HandoffStore``."""
        return await self._store.get_handoff(handoff_id)

    async def list_handoffs(
        self,
        *,
        source_agent_id: str | None,
        target_agent_id: str | None,
        definition_id: str | None,
        limit: int,
        after: Position | None,
    ) -> Page[Handoff]:
        """See ``HandoffStore``."""
        return await self._store.list_handoffs(
            source_agent_id=source_agent_id,
            target_agent_id=target_agent_id,
            definition_id=definition_id,
            limit=limit,
            after=after,
        )

    async def list_handoffs_among(self, agent_ids: list[str], definition_id: str) -> list[Handoff]:
        """Return the handoffs that hold for a workflow, as they were at most one second ago."""
        key = (_HANDOFFS, content_hash([definition_id, *sorted(agent_ids)]))

        async def load(_: list[CacheKey]) -> dict[CacheKey, _Handoffs]:
            return {key: _Handoffs(items=await self._store.list_handoffs_among(agent_ids, definition_id))}

        found = await self._cache.read([key], load, lambda codec, body: unpack(codec, _Handoffs, body))
        return found[key].items


def _workflow(definition_id: str) -> str:
    return f"workflow:{definition_id}"


def _agent(agent_id: str) -> str:
    return f"agent:{agent_id}"
