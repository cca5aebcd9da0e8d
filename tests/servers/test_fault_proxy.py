"""The proxy does what its modes say, to new and to open connections, and leaves nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.servers import fault_proxy
from tests.servers.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.servers.fault_proxy import Mode

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_proxy, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(fault_proxy, "FLAP_SECONDS", 0.1)


class Echo:
    """A server that says every line back; ``heard`` is what reached it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
                if line == b"bye\n":
                    break
        finally:
            writer.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncGenerator[FaultProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(f"echo://me:secret@127.0.0.1:{port}/0?x=1") as proxy:
        yield proxy
    server.close()


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncGenerator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said_back(connection: Connection, line: bytes = b"hello\n") -> bytes:
    reader, writer = connection
    writer.write(line)
    async with asyncio.timeout(5):
        return await reader.readline()


async def is_silent(connection: Connection) -> bool:
    reader, writer = connection
    writer.write(b"anybody?\n")
    try:
        async with asyncio.timeout(0.2):
            return not await reader.readline()
    except TimeoutError:
        return True


async def is_cut(connection: Connection) -> bool:
    try:
        async with asyncio.timeout(5):
            await connection[0].read()
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


async def test_it_passes_what_both_sides_say_until_one_ends(proxy: FaultProxy, echo: Echo):
    long = b"x" * 50_000 + b"\n"
    async with connected(proxy) as connection:
        assert await said_back(connection) == b"hello\n"
        assert await said_back(connection, long) == long
        assert await said_back(connection, b"bye\n") == b"bye\n"
        assert await connection[0].read() == b""
    assert echo.heard == [b"hello\n", long, b"bye\n"]


async def test_its_uri_is_the_server_s_with_another_port(proxy: FaultProxy):
    assert proxy.uri == f"echo://me:secret@127.0.0.1:{proxy.port}/0?x=1"


async def test_down_refuses_and_cuts_and_keeps_its_port(proxy: FaultProxy):
    port = proxy.port
    async with connected(proxy) as connection:
        assert await said_back(connection) == b"hello\n"
        await proxy.switch("down")
        assert await is_cut(connection)
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
    await proxy.switch("pass")
    assert proxy.port == port
    async with connected(proxy) as connection:
        assert await said_back(connection) == b"hello\n"


async def test_drop_accepts_counts_and_cuts(proxy: FaultProxy, echo: Echo):
    await proxy.switch("drop")
    since = time.monotonic()
    for _ in range(3):
        async with connected(proxy) as connection:
            assert await is_cut(connection)
    assert proxy.accepted_since(since) == 3
    assert proxy.accepted_since(time.monotonic()) == 0
    assert echo.heard == []


async def test_hang_takes_everything_and_says_nothing(proxy: FaultProxy, echo: Echo):
    """What was swallowed never reaches the server, also not later: the connection is cut when the hanging ends."""
    async with connected(proxy) as old:
        assert await said_back(old) == b"hello\n"
        await proxy.switch("hang")
        async with connected(proxy) as new:
            assert await is_silent(old)
            assert await is_silent(new)
            await proxy.switch("pass")
            assert await is_cut(old)
            assert await is_cut(new)
    async with connected(proxy) as connection:
        assert await said_back(connection) == b"hello\n"
    assert echo.heard == [b"hello\n", b"hello\n"]


async def test_slow_delays_every_reply_and_keeps_their_order(proxy: FaultProxy):
    async with connected(proxy) as (reader, writer):
        await proxy.switch("slow")
        began_at = time.monotonic()
        for number in range(3):
            writer.write(b"%d\n" % number)
            await asyncio.sleep(0.02)
        assert await reader.readline() == b"0\n"
        assert time.monotonic() - began_at >= 0.2
        await proxy.switch("pass")
        writer.write(b"3\n")
        assert [await reader.readline() for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]


async def test_reset_cuts_in_the_middle_of_a_reply_to_what_was_done(proxy: FaultProxy, echo: Echo):
    async with connected(proxy) as (reader, writer):
        await proxy.switch("reset")
        writer.write(b"0123456789\n")
        async with asyncio.timeout(5):
            assert await reader.readexactly(5) == b"01234"
            with pytest.raises(ConnectionResetError):
                await reader.read()
    assert echo.heard == [b"0123456789\n"]


async def test_flap_is_up_and_down_by_turns_until_told_otherwise(proxy: FaultProxy):
    await proxy.switch("flap")
    answers: list[bool] = []
    async with asyncio.timeout(10):
        while answers.count(True) < 3 or answers.count(False) < 3:
            seen = await answers_now(proxy)
            if not answers or answers[-1] is not seen:
                answers.append(seen)
            await asyncio.sleep(0.01)
    await proxy.switch("pass")
    await asyncio.sleep(0.3)
    assert await answers_now(proxy)


async def answers_now(proxy: FaultProxy) -> bool:
    try:
        async with connected(proxy) as connection:
            return await said_back(connection) == b"hello\n"
    except ConnectionError:
        return False


async def test_a_server_that_is_gone_is_a_cut(proxy: FaultProxy):
    nobody = FaultProxy(proxy.uri)
    await proxy.switch("down")
    async with nobody, connected(nobody) as connection:
        assert await is_cut(connection)


@pytest.mark.parametrize("mode", ["pass", "down", "drop", "hang", "slow", "reset", "flap"])
async def test_closing_leaves_no_task_and_no_open_connection(proxy: FaultProxy, mode: Mode):
    before = asyncio.all_tasks()
    async with FaultProxy(proxy.uri) as second, connected(second) as connection:
        assert await said_back(connection) == b"hello\n"
        await second.switch(mode)
        connection[1].write(b"more\n")
        await asyncio.sleep(0.05)
    assert await is_cut(connection)
    for _ in range(20):
        await asyncio.sleep(0.01)
        if asyncio.all_tasks() <= before:
            break
    assert asyncio.all_tasks() <= before
