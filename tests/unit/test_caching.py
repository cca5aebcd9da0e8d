"""How old a cached read may be, whatever the store, the shared cache and other processes do."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from engine.adapters import caching
from engine.adapters.caching import CachedAgentStore, CachedDefinitionStore, CachedHandoffStore, ReadCache
from engine.adapters.codec import Codec
from engine.adapters.packing import unpack
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.adapters.sqlite.handoff_store import SqliteHandoffStore
from engine.errors import StoreError
from tests.contract.samples import NOW, agent, definition, handoff

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from engine.ports.shared_cache import CacheKey

TTL = timedelta(seconds=300)
KEY = ("group", "name")
OTHER = ("group", "other")
FAR = ("far", "name")


class Number(BaseModel):
    number: int


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now


class Source:
    """A store of numbers that counts how often it is asked for which."""

    def __init__(self, **numbers: int) -> None:
        self.numbers = {KEY: 1, OTHER: 2, FAR: 3}
        self.asked: list[list[CacheKey]] = []
        self.is_down = False
        self.before_answering: Callable[[], None] = lambda: None

    async def load(self, keys: list[CacheKey]) -> dict[CacheKey, Number]:
        self.asked.append(keys)
        if self.is_down:
            raise StoreError("the store is down")
        answer = {key: Number(number=self.numbers[key]) for key in keys if key in self.numbers}
        self.before_answering()
        return answer


class Shared:
    """A ``SharedCache`` in memory."""

    def __init__(self) -> None:
        self.entries: dict[CacheKey, bytes] = {}
        self.listeners: list[Callable[[str], None]] = []
        self.listening_since: float | None = None
        self.is_down = False
        self.calls = 0

    def _answer(self) -> None:
        self.calls += 1
        if self.is_down:
            raise StoreError("the shared cache is down")

    async def get_entries(self, keys: list[CacheKey]) -> dict[CacheKey, bytes]:
        self._answer()
        return {key: self.entries[key] for key in keys if key in self.entries}

    async def put_entries(self, entries: dict[CacheKey, bytes], ttl: timedelta) -> None:
        self._answer()
        self.entries |= entries

    async def drop_group(self, group: str) -> None:
        self._answer()
        self.entries = {key: body for key, body in self.entries.items() if key[0] != group}
        for listener in self.listeners:
            listener(group)

    def listen(self, dropped: Callable[[str], None]) -> None:
        self.listeners.append(dropped)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(caching, "time", clock)
    return clock


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def shared() -> Shared:
    return Shared()


async def read(cache: ReadCache, source: Source, *keys: CacheKey) -> dict[CacheKey, int]:
    found = await cache.read(list(keys or (KEY,)), source.load, lambda codec, body: unpack(codec, Number, body))
    return {key: value.number for key, value in found.items()}


# Alone.


async def test_a_read_holds_for_a_second_and_no_longer(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    assert await read(cache, source) == {KEY: 1}
    source.numbers[KEY] = 2
    clock.now += 0.99
    assert await read(cache, source) == {KEY: 1}
    clock.now += 0.01
    assert await read(cache, source) == {KEY: 2}
    assert len(source.asked) == 2


async def test_a_hit_does_not_make_an_entry_younger(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source)
    for _ in range(3):
        clock.now += 0.4
        await read(cache, source, KEY, OTHER)
    # The first again with a second's age, the other for the first time and once more.
    assert source.asked == [[KEY], [OTHER], [KEY]]


async def test_only_what_is_missing_is_asked_for(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source, KEY)
    assert await read(cache, source, KEY, OTHER, FAR) == {KEY: 1, OTHER: 2, FAR: 3}
    assert source.asked == [[KEY], [OTHER, FAR]]


async def test_absence_is_never_kept(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    del source.numbers[KEY]
    assert await read(cache, source, KEY, OTHER) == {OTHER: 2}
    source.numbers[KEY] = 1
    assert await read(cache, source, KEY, OTHER) == {KEY: 1, OTHER: 2}


async def test_what_has_gone_is_forgotten(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source)
    del source.numbers[KEY]
    clock.now += 1
    assert await read(cache, source) == {}
    source.is_down = True
    with pytest.raises(StoreError):
        await read(cache, source)


async def test_a_drop_forgets_the_group_and_no_other(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source, KEY, OTHER, FAR)
    await cache.drop("group")
    await read(cache, source, KEY, OTHER, FAR)
    assert source.asked[1:] == [[KEY, OTHER]]


async def test_what_was_read_while_it_was_written_is_not_kept(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)

    def write() -> None:
        source.numbers[KEY] = 7
        cache._forget("group")

    source.before_answering = write
    assert await read(cache, source) == {KEY: 1}
    source.before_answering = lambda: None
    assert await read(cache, source) == {KEY: 7}


async def test_a_write_of_unknown_outcome_drops_too(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source)
    with pytest.raises(StoreError):
        async with cache.dropping("group"):
            source.numbers[KEY] = 2
            raise StoreError("no answer")
    assert await read(cache, source) == {KEY: 2}


async def test_a_store_that_does_not_answer_is_replaced_for_the_time_to_live(
    clock: Clock, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source)
    source.is_down = True
    with caplog.at_level(logging.WARNING, "engine"):
        for _ in range(100):
            clock.now += 2.9
            assert await read(cache, source) == {KEY: 1}
        assert len(caplog.records) == 1
        with pytest.raises(StoreError, match="the store is down"):
            await read(cache, source, KEY, OTHER)
        clock.now += 10
        with pytest.raises(StoreError, match="the store is down"):
            await read(cache, source)
        source.is_down = False
        await read(cache, source)
    assert len(caplog.records) == 2


async def test_what_was_dropped_does_not_come_back_when_the_store_is_down(clock: Clock, source: Source) -> None:
    cache = ReadCache(Codec(), TTL)
    await read(cache, source)
    await cache.drop("group")
    source.is_down = True
    with pytest.raises(StoreError):
        await read(cache, source)


async def test_the_entries_used_last_are_kept(clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "MAX_ENTRIES", 3)
    cache = ReadCache(Codec(), TTL)
    keys = [("g", str(number)) for number in range(4)]
    source.numbers |= {key: number for number, key in enumerate(keys)}
    for key in keys[:3]:
        await read(cache, source, key)
    await read(cache, source, keys[0])
    await read(cache, source, keys[3])
    assert len(cache._entries) == 3
    source.asked.clear()
    await read(cache, source, *keys)
    assert source.asked == [[keys[1]]]


async def test_more_keys_than_entries_are_all_answered(
    clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MAX_ENTRIES", 2)
    assert len(await read(ReadCache(Codec(), TTL), source, KEY, OTHER, FAR)) == 3


async def test_a_time_to_live_of_nothing_keeps_nothing(clock: Clock, source: Source, shared: Shared) -> None:
    cache = ReadCache(Codec(), timedelta(0), shared)
    for number in range(3):
        source.numbers[KEY] = number
        assert await read(cache, source) == {KEY: number}


# With others.


async def test_with_news_a_read_holds_for_its_time_to_live(clock: Clock, source: Source, shared: Shared) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    shared.listening_since = clock.now - 1
    await read(cache, source)
    shared.entries.clear()
    clock.now += 299
    await read(cache, source)
    assert len(source.asked) == 1
    clock.now += 1
    await read(cache, source)
    assert len(source.asked) == 2


async def test_a_read_from_before_the_news_holds_a_second_only(clock: Clock, source: Source, shared: Shared) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    await read(cache, source)
    shared.entries.clear()
    clock.now += 0.5
    shared.listening_since = clock.now
    clock.now += 0.6
    await read(cache, source)
    assert len(source.asked) == 2
    clock.now += 100
    await read(cache, source)
    assert len(source.asked) == 2


async def test_when_the_news_are_lost_a_read_holds_a_second_again(clock: Clock, source: Source, shared: Shared) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    shared.listening_since = clock.now - 1
    await read(cache, source)
    clock.now += 100
    await read(cache, source)
    shared.entries.clear()
    shared.listening_since = None
    source.numbers[KEY] = 2
    assert await read(cache, source) == {KEY: 2}
    clock.now += 0.5
    shared.listening_since = clock.now
    shared.entries.clear()
    source.numbers[KEY] = 3
    clock.now += 0.6
    assert await read(cache, source) == {KEY: 3}


async def test_another_process_finds_the_entry_and_hears_of_its_end(
    clock: Clock, source: Source, shared: Shared
) -> None:
    here, there = ReadCache(Codec(), TTL, shared), ReadCache(Codec(), TTL, shared)
    shared.listening_since = clock.now - 1
    await read(here, source)
    assert await read(there, source) == {KEY: 1}
    assert len(source.asked) == 1
    clock.now += 50
    source.numbers[KEY] = 2
    await here.drop("group")
    assert await read(there, source) == {KEY: 2}


async def test_a_write_that_happens_after_its_time_out_is_seen_within_a_second(
    clock: Clock, source: Source, shared: Shared
) -> None:
    here, there = ReadCache(Codec(), TTL, shared), ReadCache(Codec(), TTL, shared)
    shared.listening_since = clock.now - 1
    for cache in (here, there):
        await read(cache, source)
    with pytest.raises(StoreError):
        async with here.dropping("group"):
            raise StoreError("no answer")
    # A real one takes no entry of the group for a while.
    for cache in (here, there):
        assert await read(cache, source) == {KEY: 1}
    shared.entries.clear()
    source.numbers[KEY] = 2
    clock.now += 1
    for cache in (here, there):
        assert await read(cache, source) == {KEY: 2}
        shared.entries.clear()
    clock.now += 10
    for cache in (here, there):
        await read(cache, source)
    count = len(source.asked)
    clock.now += 200
    for cache in (here, there):
        await read(cache, source)
    assert len(source.asked) == count


async def test_an_entry_that_others_have_read_ages_from_their_read(
    clock: Clock, source: Source, shared: Shared
) -> None:
    shared.listening_since = clock.now - 1
    await read(ReadCache(Codec(), TTL, shared), source)
    clock.now += 200
    there = ReadCache(Codec(), TTL, shared)
    assert await read(there, source) == {KEY: 1}
    # A drop was lost. It costs the time to live, and not twice that.
    source.numbers[KEY] = 2
    clock.now += 99
    shared.calls = 0
    assert await read(there, source) == {KEY: 1}
    assert shared.calls == 0
    clock.now += 1
    assert await read(there, source) == {KEY: 2}


async def test_a_clock_that_was_put_back_makes_no_entry_older_than_new(
    clock: Clock, source: Source, shared: Shared
) -> None:
    shared.listening_since = clock.now - 1
    await read(ReadCache(Codec(), TTL, shared), source)
    clock.now -= 1000
    shared.listening_since = clock.now - 1
    there = ReadCache(Codec(), TTL, shared)
    await read(there, source)
    clock.now += 299
    await read(there, source)
    assert len(source.asked) == 1
    shared.entries.clear()
    clock.now += 1
    await read(there, source)
    assert len(source.asked) == 2


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 8, b"\xff" * 200])
async def test_an_entry_that_can_not_be_read_is_read_from_the_store(
    clock: Clock, source: Source, shared: Shared, body: bytes
) -> None:
    await read(ReadCache(Codec(), TTL, shared), source, OTHER)
    shared.entries[KEY] = body
    source.asked.clear()
    assert await read(ReadCache(Codec(), TTL, shared), source, KEY, OTHER) == {KEY: 1, OTHER: 2}
    assert source.asked == [[KEY]]
    # It was replaced.
    assert await read(ReadCache(Codec(), TTL, shared), source, KEY) == {KEY: 1}
    assert source.asked == [[KEY]]


async def test_a_drop_heard_during_a_read_of_the_shared_cache_counts(
    clock: Clock, source: Source, shared: Shared
) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    shared.listening_since = clock.now - 1
    source.before_answering = lambda: shared.listeners[0]("group")
    await read(cache, source)
    shared.entries.clear()
    source.before_answering = lambda: None
    source.numbers[KEY] = 2
    assert await read(cache, source) == {KEY: 2}


async def test_a_shared_cache_that_is_down_changes_no_answer_and_is_left_alone_for_a_second(
    clock: Clock, source: Source, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    shared.is_down = True
    with caplog.at_level(logging.WARNING, "engine"):
        for key in (KEY, OTHER, FAR):
            await read(cache, source, key)
        assert shared.calls == 1
        for _ in range(10):
            clock.now += 1
            assert await read(cache, source) == {KEY: 1}
        assert shared.calls == 11
        assert len(caplog.records) == 1
        shared.is_down = False
        clock.now += 1
        await read(cache, source)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "The shared cache of definitions and agents fails",
        "The shared cache of definitions and agents works again",
    ]
    assert KEY in shared.entries


async def test_a_drop_that_others_do_not_hear_of_is_done_here_and_told(
    clock: Clock, source: Source, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    await read(cache, source)
    shared.is_down = True
    source.numbers[KEY] = 2
    with caplog.at_level(logging.WARNING, "engine"):
        async with cache.dropping("group"):
            pass
    assert "fails, and says so once until it works again: the shared cache is down" in caplog.text
    assert await read(cache, source) == {KEY: 2}


async def test_it_listens_once(clock: Clock, source: Source, shared: Shared) -> None:
    cache = ReadCache(Codec(), TTL, shared)
    for _ in range(3):
        await read(cache, source)
        clock.now += 2
    assert len(shared.listeners) == 1


# The stores over it.


@pytest.fixture
async def database(tmp_path: Path) -> AsyncGenerator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield database
    await database.aclose()


async def test_definitions_are_as_their_last_write_left_them(database: SqliteDatabase, shared: Shared) -> None:
    shared.listening_since = float("-inf")
    store = CachedDefinitionStore(SqliteDefinitionStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    elsewhere = CachedDefinitionStore(SqliteDefinitionStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    assert await store.get_definition("flow") is None
    await store.insert_definition(definition(version=1))
    assert await store.get_definition("flow") == definition(version=1)
    assert await elsewhere.get_definition("flow") == definition(version=1)
    await store.append_version(definition(version=2))
    for reader in (store, elsewhere):
        assert await reader.get_definition("flow") == definition(version=2)
        assert await reader.get_definition("flow", 1) == definition(version=1)
        assert await reader.get_definition("flow", 3) is None
    await elsewhere.archive_definition("flow", NOW)
    archived = await SqliteDefinitionStore(database, Codec()).get_definition("flow")
    for reader in (store, elsewhere):
        assert await reader.get_definition("flow") == archived


async def test_agents_are_as_their_last_write_left_them(database: SqliteDatabase, shared: Shared) -> None:
    shared.listening_since = float("-inf")
    store = CachedAgentStore(SqliteAgentStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    elsewhere = CachedAgentStore(SqliteAgentStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    await store.insert_agent(agent("a"))
    assert await elsewhere.get_agents(["a", "b"]) == {"a": agent("a")}
    await store.insert_agent(agent("b"))
    assert await elsewhere.get_agents(["a", "b"]) == {"a": agent("a"), "b": agent("b")}
    await store.append_agent(agent("a", version=2))
    for reader in (store, elsewhere):
        assert await reader.get_agents(["b", "a"]) == {"a": agent("a", version=2), "b": agent("b")}
    assert await store.get_agents([]) == {}


async def test_handoffs_are_as_their_last_write_left_them(database: SqliteDatabase, shared: Shared) -> None:
    shared.listening_since = float("-inf")
    store = CachedHandoffStore(SqliteHandoffStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    elsewhere = CachedHandoffStore(SqliteHandoffStore(database, Codec()), ReadCache(Codec(), TTL, shared))
    assert await elsewhere.list_handoffs_among(["agent-a", "agent-b"], "flow") == []
    await store.insert_handoff(handoff())
    for reader in (store, elsewhere):
        assert await reader.list_handoffs_among(["agent-b", "agent-a"], "flow") == [handoff()]


async def test_a_cached_definition_is_had_within_a_millisecond(database: SqliteDatabase) -> None:
    store = CachedDefinitionStore(SqliteDefinitionStore(database, Codec()), ReadCache(Codec(), TTL))
    await store.insert_definition(definition())
    await store.get_definition("flow")
    loop = asyncio.get_running_loop()
    costs: list[float] = []
    for _ in range(50):
        began_at = loop.time()
        await store.get_definition("flow")
        costs.append(loop.time() - began_at)
    assert sorted(costs)[25] < 0.001
