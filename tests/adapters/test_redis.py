"""What Redis costs and what its faults cost: round trips, connections, seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from engine.adapters.codec import Codec
from engine.adapters.redis.connection import RedisDatabase
from engine.adapters.redis.shared_cache import RedisSharedCache
from engine.adapters.redis.state_store import RedisStateStore
from engine.adapters.write_behind import WriteBehindStateStore
from engine.domain.execution import LiveState
from engine.errors import ConfigurationError, StoreError
from tests.adapters.redis_samples import (
    AT_ONCE,
    HOUR,
    administrator,
    event,
    head,
    open_connections,
    proxied,
    step,
)
from tests.servers import free_port, redis

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from redis.asyncio import Redis

    from tests.servers import RunningServer

GENEROUS = timedelta(seconds=10)
"""A deadline where time is not what is tested."""
HANGING_SECONDS = 0.25
PATIENTLY = timedelta(seconds=20)


@pytest.fixture
async def admin(redis_server: RunningServer) -> AsyncGenerator[Redis]:
    async with administrator(redis_server.uri) as client:
        await client.flushall()
        yield client


@asynccontextmanager
async def opened(uri: str, pool_size: int = 10, deadline: timedelta | None = GENEROUS) -> AsyncGenerator[RedisDatabase]:
    database = RedisDatabase(uri, pool_size) if deadline is None else RedisDatabase(uri, pool_size, deadline)
    try:
        yield database
    finally:
        await database.aclose()


def states_on(database: RedisDatabase) -> RedisStateStore:
    return RedisStateStore(database, Codec(), HOUR)


@pytest.fixture
async def states(redis_server: RunningServer, admin: Redis) -> AsyncGenerator[RedisStateStore]:
    async with opened(redis_server.uri) as database:
        yield states_on(database)


@asynccontextmanager
async def paused(server: RunningServer) -> AsyncGenerator[None]:
    """The server takes connections and never answers."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def seconds_of_failure(store: RedisStateStore) -> float:
    began_at = time.monotonic()
    with pytest.raises(StoreError):
        await store.get_live_state("flow-1")
    return time.monotonic() - began_at


# What it costs.


async def test_a_transition_is_one_round_trip_and_so_is_each_read(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    async with proxied(redis_server.uri) as proxy, opened(proxy.uri) as database:
        store = states_on(database)
        # The first makes the server know the script, and the connection say its name.
        await store.record_transition("flow-0", execution=head("flow-0"))
        many = {f"flow-{number}": head(f"flow-{number}") for number in range(50)}
        for call, most in [
            (lambda: store.record_transition("flow-1", steps=[step()]), 1),
            (
                lambda: store.record_transition(
                    "flow-1",
                    execution=head(),
                    steps=[step(f"s{number}") for number in range(200)],
                    events=[event(number) for number in range(200)],
                ),
                1,
            ),
            (lambda: store.get_live_state("flow-1"), 1),
            (lambda: store.get_live_states(list(many)), 1),
            (lambda: store.read_events("flow-1", after=None, limit=500, wait=AT_ONCE), 1),
            (store.check_health, 1),
        ]:
            before = proxy.round_trips
            await call()
            assert proxy.round_trips - before == most
        assert proxy.connections == 1


async def test_the_shared_cache_takes_one_round_trip_whatever_is_asked(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    async with proxied(redis_server.uri) as proxy, opened(proxy.uri) as database:
        cache = RedisSharedCache(database)
        entries = {(f"group-{number}", "a"): b"x" for number in range(20)}
        await cache.put_entries(entries, HOUR)
        await cache.drop_group("none")
        before = proxy.round_trips
        await cache.put_entries(entries, HOUR)
        assert await cache.get_entries(list(entries)) == entries
        await cache.drop_group("group-0")
        assert proxy.round_trips - before == 3


async def test_the_pool_is_never_exceeded_and_readers_that_wait_take_nothing_of_it(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    async with opened(redis_server.uri, pool_size=3) as database:
        store = states_on(database)
        waiting = [
            asyncio.create_task(store.read_events(f"flow-{number}", after=None, limit=5, wait=PATIENTLY))
            for number in range(40)
        ]
        seen: list[int] = []
        writing = [
            asyncio.create_task(store.record_transition("other", steps=[step(f"s{number}", number)], events=[event(1)]))
            for number in range(600)
        ]
        while not all(task.done() for task in writing):
            seen.append(await open_connections(admin))
        await asyncio.gather(*writing)
        seen.append(await open_connections(admin))
        # Three for commands and one that hears for all readers.
        assert 3 <= max(seen) <= 4
        assert not any(task.done() for task in waiting)
        for number in range(40):
            await store.record_transition(f"flow-{number}", events=[event(number)])
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*waiting)
        assert [events for events, _ in answers] == [[event(number)] for number in range(40)]


async def test_a_waiting_reader_is_woken_by_another_process(
    redis_server: RunningServer,
    states: RedisStateStore,
) -> None:
    async with opened(redis_server.uri) as elsewhere:
        for number in range(5):
            reading = asyncio.create_task(states.read_events(f"flow-{number}", after=None, limit=5, wait=PATIENTLY))
            await asyncio.sleep(0.2)
            began_at = time.monotonic()
            await states_on(elsewhere).record_transition(f"flow-{number}", events=[event(1)])
            events, _ = await reading
            assert events == [event(1)]
            # By the news, not by the next look, which comes after two seconds.
            assert time.monotonic() - began_at < 1


async def test_everything_has_a_time_to_live(states: RedisStateStore, admin: Redis) -> None:
    cache = RedisSharedCache(states._database)
    await states.record_transition("flow-1", execution=head(), steps=[step()], events=[event(1)])
    await states.record_transition("flow-2", steps=[step()])
    await states.record_transition("flow-3", events=[event(1)])
    await cache.put_entries({("group", "a"): b"1"}, HOUR)
    await cache.drop_group("other")
    names = [name async for name in admin.scan_iter()]
    assert len(names) == 7
    for name in names:
        assert name.startswith("baton:default:")
        assert 0 < await admin.pttl(name) <= HOUR.total_seconds() * 1000


async def test_keys_of_one_transition_lie_in_one_slot_of_a_cluster(states: RedisStateStore, admin: Redis) -> None:
    await states.record_transition("flow-1", execution=head(), events=[event(1)])
    names = [name async for name in admin.scan_iter()]
    assert sorted(names) == ["baton:default:events:{flow-1}", "baton:default:live:{flow-1}"]


async def test_a_closed_database_leaves_no_task_and_no_connection(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    before = asyncio.all_tasks()
    database = RedisDatabase(redis_server.uri, 10)
    store = states_on(database)
    cache = RedisSharedCache(database)
    cache.listen(lambda group: None)
    await asyncio.gather(*(store.record_transition(f"flow-{number}", events=[event(1)]) for number in range(50)))
    await store.read_events("nothing", after=None, limit=1, wait=timedelta(milliseconds=50))
    await cache.aclose()
    await database.aclose()
    await database.aclose()
    assert asyncio.all_tasks() == before
    async with asyncio.timeout(5):
        while await open_connections(admin):
            await asyncio.sleep(0.01)
    with pytest.raises(StoreError, match="closed"):
        await store.get_live_state("flow-1")


async def test_making_one_needs_no_server() -> None:
    database = RedisDatabase(f"redis://127.0.0.1:{free_port()}/0", 10)
    await database.aclose()


# What is lost.


async def test_a_script_that_the_server_forgot_is_sent_again(states: RedisStateStore, admin: Redis) -> None:
    await states.record_transition("flow-1", execution=head(token=1))
    await admin.script_flush()
    await states.record_transition("flow-1", execution=head(token=2), events=[event(1)])
    state = await states.get_live_state("flow-1")
    assert state is not None
    assert state.execution.token == 2
    events, _ = await states.read_events("flow-1", after=None, limit=5, wait=AT_ONCE)
    assert events == [event(1)]


async def test_a_stream_that_was_flushed_starts_over_for_readers_of_old_positions(
    states: RedisStateStore, admin: Redis
) -> None:
    await states.record_transition("flow-1", events=[event(1)])
    _, position = await states.read_events("flow-1", after=None, limit=5, wait=AT_ONCE)
    assert position is not None
    await admin.flushall()
    assert await states.read_events("flow-1", after=position, limit=5, wait=AT_ONCE) == ([], position)
    await states.record_transition("flow-1", events=[event(2)])
    # A server whose clock was put back counts on from smaller ids.
    later = f"9{position}"
    events, _ = await states.read_events("flow-1", after=later, limit=5, wait=AT_ONCE)
    assert events == [event(2)]


async def test_a_flush_wakes_nobody_and_the_next_event_does(states: RedisStateStore, admin: Redis) -> None:
    await states.record_transition("flow-1", events=[event(1)])
    _, position = await states.read_events("flow-1", after=None, limit=5, wait=AT_ONCE)
    reading = asyncio.create_task(states.read_events("flow-1", after=position, limit=5, wait=PATIENTLY))
    await asyncio.sleep(0.2)
    await admin.flushall()
    await states.record_transition("flow-1", events=[event(2)])
    events, _ = await reading
    assert events == [event(2)]


@pytest.mark.parametrize("lost", ["live", "events"])
async def test_a_key_that_was_evicted_alone_loses_no_later_event(
    states: RedisStateStore, admin: Redis, lost: str
) -> None:
    await states.record_transition("flow-1", execution=head(), events=[event(1)])
    _, position = await states.read_events("flow-1", after=None, limit=5, wait=AT_ONCE)
    await admin.delete(f"baton:default:{lost}:{{flow-1}}")
    await states.record_transition("flow-1", events=[event(2)])
    seen = []
    for _ in range(3):
        events, position = await states.read_events("flow-1", after=position, limit=1, wait=AT_ONCE)
        seen += events
    assert seen[-1] == event(2)
    assert await states.read_events("flow-1", after=position, limit=5, wait=AT_ONCE) == ([], position)


# What faults cost.


async def test_a_dead_port_is_a_database_error_at_once() -> None:
    port = free_port()
    async with opened(f"redis://user:hidden@127.0.0.1:{port}/0", deadline=None) as database:
        began_at = time.monotonic()
        with pytest.raises(StoreError) as caught:
            await states_on(database).get_live_state("flow-1")
        assert time.monotonic() - began_at < HANGING_SECONDS
    assert caught.value.code == "database_error"
    assert f"127.0.0.1:{port}" in caught.value.message
    assert "redis_uri" in caught.value.message
    assert caught.value.details["backend"] == "redis"
    assert "hidden" not in str(caught.value.to_response())


async def test_a_dead_server_is_tried_at_most_twice_a_second(tmp_path: Path) -> None:
    tries: list[float] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(time.monotonic())
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        uri = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with opened(uri, deadline=None) as database:
            store = states_on(database)
            RedisSharedCache(database).listen(lambda group: None)
            end = time.monotonic() + 3
            calls = 0
            while time.monotonic() < end:
                await seconds_of_failure(store)
                calls += 1
                await asyncio.sleep(0.002)
    opened_at = tries[5]
    assert calls > 100
    # The call that opened the circuit and the first probe may come at once.
    assert len([at for at in tries if at > opened_at]) <= 2 * 3 + 2


@pytest.mark.parametrize("credentials", ["", ":wrong-secret@", "nobody:wrong-secret@"])
async def test_a_wrong_password_names_the_key_and_not_the_password(
    redis_server: RunningServer,
    tmp_path: Path,
    credentials: str,
) -> None:
    server = await redis.start(tmp_path, password="right-secret")
    try:
        port = urlsplit(server.uri).port
        async with opened(f"redis://{credentials}127.0.0.1:{port}/0") as database:
            cache = RedisSharedCache(database)
            cache.listen(lambda group: None)
            with pytest.raises(StoreError, match="redis_uri") as caught:
                await cache.get_entries([("group", "a")])
            assert "correct the user and password" in caught.value.message
            assert "secret" not in str(caught.value.to_response())
            assert cache.listening_since is None
        async with opened(server.uri) as database:
            await states_on(database).record_transition("flow-1", execution=head())
    finally:
        await server.stop()


async def test_a_refusal_says_what_to_do(redis_server: RunningServer, admin: Redis) -> None:
    address = redis_server.uri.removeprefix("redis://").removesuffix("/0")
    async with opened(f"redis://{address}/99") as database:
        with pytest.raises(StoreError, match="number at the end of redis_uri"):
            await states_on(database).get_live_state("flow-1")
    await admin.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~other:*", "+@all")
    async with opened(f"redis://limited:pw@{address}/0") as database:
        with pytest.raises(StoreError, match=r"allow it the keys and channels baton:\*"):
            await states_on(database).record_transition("flow-1", execution=head())
    await admin.execute_command("ACL", "DELUSER", "limited")


async def test_a_user_may_be_limited_to_our_keys_and_channels(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    address = redis_server.uri.removeprefix("redis://").removesuffix("/0")
    await admin.execute_command("ACL", "SETUSER", "ours", "on", ">pw", "~baton:*", "&baton:*", "+@all", "-@admin")
    async with opened(f"redis://ours:pw@{address}/0") as database:
        store = states_on(database)
        await store.record_transition("flow-1", execution=head(), events=[event(1)])
        assert await store.get_live_state("flow-1") == LiveState(execution=head())
        cache = RedisSharedCache(database)
        heard: list[str] = []
        cache.listen(heard.append)
        async with asyncio.timeout(10):
            while cache.listening_since is None:
                await asyncio.sleep(0.01)
            await cache.drop_group("group")
            while heard != ["group"]:
                await asyncio.sleep(0.01)
        assert (await store.check_health()).version == redis_server.version
    await admin.execute_command("ACL", "DELUSER", "ours")


async def test_a_full_server_says_so_still_drops_and_health_tells_of_eviction(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    try:
        async with opened(server.uri) as database, administrator(server.uri) as client:
            store = states_on(database)
            cache = RedisSharedCache(database)
            await cache.put_entries({("group", "a"): b"old"}, HOUR)
            await store.record_transition("flow-1", execution=head())
            assert "vanish" not in str((await store.check_health()).detail)
            await client.config_set("maxmemory", "100kb")
            with pytest.raises(StoreError, match="no memory left"):
                await store.record_transition("flow-2", execution=head("flow-2"))
            heard: list[str] = []
            cache.listen(heard.append)
            async with asyncio.timeout(10):
                while cache.listening_since is None:
                    await asyncio.sleep(0.01)
                for group in ("group", "empty"):
                    await cache.drop_group(group)
                while heard != ["group", "empty"]:
                    await asyncio.sleep(0.01)
            assert await cache.get_entries([("group", "a")]) == {}
            await client.config_set("maxmemory-policy", "allkeys-lru")
            health = await store.check_health()
            assert "vanish early: maxmemory 100.00K with allkeys-lru" in str(health.detail)
            assert (health.backend, health.version) == ("redis", server.version)
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "uri",
    [
        "redis://:hidden@host:port/0",
        "redis://user:hid/den@host:1/0",
        "http://user:hidden@host",
        "redis://:hidden@host/0?socket_timeout=hidden",
        "redis://:hidden@host/0?unknown=1",
        "redis://[::1:hidden@x",
    ],
)
def test_an_address_that_can_not_be_read_is_told_without_its_password(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="redis_uri") as caught:
        RedisDatabase(uri, 10)
    assert "hid" not in str(caught.value.to_response())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_something_else_on_the_port_is_a_database_error(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        database = RedisDatabase(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 10)
        with pytest.raises(StoreError, match="redis_uri"):
            await states_on(database).get_live_state("flow-1")
        await database.aclose()


async def test_a_hanging_server_costs_a_quarter_of_a_second_and_nothing_once_that_is_known(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    try:
        async with opened(server.uri, deadline=None) as database:
            store = states_on(database)
            cache = RedisSharedCache(database)
            await store.record_transition("flow-1", execution=head())
            async with paused(server):
                costs = [await seconds_of_failure(store) for _ in range(4)]
                began_at = time.monotonic()
                with pytest.raises(StoreError):
                    await cache.drop_group("group")
                costs.append(time.monotonic() - began_at)
                assert max(costs) <= HANGING_SECONDS
                # What one caller asks for in a row: status reads live state, and writes it when it had to be rebuilt.
                assert costs[0] + costs[1] <= HANGING_SECONDS + 0.02
                # Known by now: one call in half a second looks, and the others cost nothing.
                later = [await seconds_of_failure(store) for _ in range(100)]
                assert sorted(later)[-2] < 0.02
                assert max(later) <= HANGING_SECONDS
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await store.get_live_state("flow-1") == LiveState(execution=head())
                        break
                    except StoreError:
                        await asyncio.sleep(0.05)
            async with administrator(server.uri) as client:
                assert await open_connections(client) <= 10
    finally:
        await server.stop()


async def test_a_busy_process_does_not_take_its_own_delays_for_the_servers(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    stalls = asyncio.Event()

    async def stall() -> None:
        while not stalls.is_set():
            time.sleep(0.06)
            await asyncio.sleep(0)

    async with opened(redis_server.uri, pool_size=3, deadline=None) as database:
        stalling = asyncio.create_task(stall())
        began_at = time.monotonic()
        await states_on(database).record_transition("flow-1", execution=head())
        assert time.monotonic() - began_at > 0.25
        stalls.set()
        await stalling


async def test_readers_that_wait_learn_of_a_hang(redis_server: RunningServer, tmp_path: Path) -> None:
    server = await redis.start(tmp_path)
    try:
        async with opened(server.uri, deadline=None) as database:
            reading = asyncio.create_task(
                states_on(database).read_events("flow-1", after=None, limit=1, wait=PATIENTLY)
            )
            await asyncio.sleep(0.3)
            async with paused(server):
                async with asyncio.timeout(4):
                    with pytest.raises(StoreError):
                        await reading
    finally:
        await server.stop()


async def test_a_server_that_was_restarted_is_used_again_within_five_seconds(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    port = urlsplit(server.uri).port
    async with opened(server.uri, deadline=None) as database:
        store = states_on(database)
        cache = RedisSharedCache(database)
        heard: list[str] = []
        cache.listen(heard.append)
        await asyncio.gather(*(store.record_transition(f"flow-{number}", execution=head()) for number in range(30)))
        async with asyncio.timeout(5):
            while cache.listening_since is None:
                await asyncio.sleep(0.01)
        before = cache.listening_since
        await server.stop()
        for _ in range(20):
            await seconds_of_failure(store)
        assert cache.listening_since is None
        with pytest.raises(StoreError):
            await cache.drop_group("while it was away")
        server = await redis.start(tmp_path, None, port)
        try:
            async with asyncio.timeout(5):
                while cache.listening_since is None or heard != ["while it was away"]:
                    await asyncio.sleep(0.02)
                assert cache.listening_since > before
                await store.record_transition("flow-1", execution=head())
                assert await store.get_live_state("flow-1") == LiveState(execution=head())
        finally:
            await server.stop()


async def test_news_may_be_missed_for_less_than_a_second_before_that_is_known(
    redis_server: RunningServer,
    tmp_path: Path,
) -> None:
    server = await redis.start(tmp_path)
    try:
        async with opened(server.uri) as database:
            cache = RedisSharedCache(database)
            cache.listen(lambda group: None)
            async with asyncio.timeout(5):
                while cache.listening_since is None:
                    await asyncio.sleep(0.01)
                since = cache.listening_since
                async with paused(server):
                    began_at = time.monotonic()
                    while cache.listening_since is not None:
                        await asyncio.sleep(0.01)
                    assert time.monotonic() - began_at < 1
                    # Longer than the silence that ends the connection.
                    await asyncio.sleep(0.5)
                while cache.listening_since is None:
                    await asyncio.sleep(0.01)
                assert cache.listening_since > since
    finally:
        await server.stop()


async def test_a_process_that_was_busy_knows_that_it_heard_nothing_and_keeps_its_connection(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    async with opened(redis_server.uri) as database:
        cache = RedisSharedCache(database)
        cache.listen(lambda group: None)
        async with asyncio.timeout(10):
            while cache.listening_since is None:
                await asyncio.sleep(0.01)
        since = cache.listening_since
        for _ in range(3):
            time.sleep(0.9)
            assert cache.listening_since is None
            await asyncio.sleep(0.6)
            assert cache.listening_since == since


async def test_a_connection_that_is_reset_is_opened_anew(
    redis_server: RunningServer,
    admin: Redis,
) -> None:
    async with opened(redis_server.uri) as database:
        store = states_on(database)
        await asyncio.gather(*(store.record_transition(f"flow-{number}", execution=head()) for number in range(20)))
        for entry in await admin.client_list():
            if entry["name"] == "baton":
                await admin.client_kill_filter(_id=entry["id"])
        await asyncio.sleep(0.05)
        for _ in range(20):
            assert await store.get_live_state("flow-1") == LiveState(execution=head())


async def test_writing_behind_a_dead_server_takes_no_memory_and_two_lines(
    redis_server: RunningServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await redis.start(tmp_path)
    port = urlsplit(server.uri).port
    await server.stop()
    async with opened(server.uri, deadline=None) as database:
        live = WriteBehindStateStore(states_on(database))
        for number in range(3000):
            await live.record_transition(f"flow-{number}", execution=head(), events=[event(number)])
            if number % 100 == 0:
                await asyncio.sleep(0.02)
        await live.aclose()
        assert not live._gathered
        assert not live._writing
        server = await redis.start(tmp_path, None, port)
        try:
            await asyncio.sleep(0.6)
            await live.record_transition("flow-1", execution=head(), events=[event(1)])
            await live.aclose()
            assert await live.get_live_state("flow-1") == LiveState(execution=head())
        finally:
            await server.stop()
    lines = [record.getMessage() for record in caplog.records if record.name == "engine.adapters.write_behind"]
    assert len(lines) == 2, lines
    assert "fails" in lines[0]
    assert "works again, after 3000 failures" in lines[1]
