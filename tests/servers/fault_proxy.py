"""A TCP proxy in front of a server that takes it away in all the ways in which servers go.

The port stays the proxy's own while nobody listens on it: a bound socket beside the listening one reserves it, so that
"down" is a refused connection and never somebody else's port. A connection that a mode has spoilt does not outlive it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit, urlunsplit

__all__ = ["FAULTS", "FaultProxy", "Mode"]

Mode: TypeAlias = Literal["pass", "down", "drop", "hang", "slow", "reset", "flap"]
"""What happens to connections:

- ``pass``: nothing.
- ``down``: refused; open ones are cut.
- ``drop``: accepted and cut at once, as by a balancer with nothing behind it; the one way to be away and count.
- ``hang``: accepted and read, never answered; open ones too.
- ``slow``: each reply comes 2 s later.
- ``reset``: cut in the middle of the next reply; what was asked for was done.
- ``flap``: ``pass`` and ``down`` by turns, 1 s each.
"""
FAULTS: Final[tuple[Mode, ...]] = ("down", "hang", "slow", "reset", "flap")

SLOW_SECONDS: Final = 2.0
FLAP_SECONDS: Final = 1.0
_CHUNK_BYTES: Final = 65536
_END: Final = b""
_HOST: Final = "127.0.0.1"


class FaultProxy:
    """One listening port before one server; use as ``async with``.

    Args:
        uri: of the server, with its port.

    Attributes:
        accepted_at: when each connection was accepted, by ``time.monotonic``.
    """

    def __init__(self, uri: str) -> None:
        self._uri = urlsplit(uri)
        if self._uri.hostname is None or self._uri.port is None:
            raise ValueError("the server's URI must say its host and port")
        self._upstream = (self._uri.hostname, self._uri.port)
        self._mode: Mode = "pass"
        self._reserved: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._flapping: asyncio.Task[None] | None = None
        self.accepted_at: list[float] = []

    async def __aenter__(self) -> Self:
        self._reserved = _bound_socket(0)
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.switch("down")
        if self._reserved is not None:
            self._reserved.close()

    @property
    def port(self) -> int:
        """The proxy's own."""
        if self._reserved is None:
            raise RuntimeError("the proxy is not open")
        return self._reserved.getsockname()[1]

    @property
    def uri(self) -> str:
        """The server's URI with this address in the place of its own."""
        credentials, at, _ = self._uri.netloc.rpartition("@")
        return urlunsplit(self._uri._replace(netloc=f"{credentials}{at}{_HOST}:{self.port}"))

    @property
    def mode(self) -> Mode:
        """What happens to connections now; while it flaps, ``pass`` or ``down``."""
        return self._mode

    def accepted_since(self, instant: float) -> int:
        """How many connections were accepted from an instant of ``time.monotonic`` on."""
        return sum(accepted_at >= instant for accepted_at in self.accepted_at)

    async def switch(self, mode: Mode) -> None:
        """Behave so from now on."""
        if self._flapping is not None:
            self._flapping.cancel()
            await asyncio.wait([self._flapping])
            self._flapping = None
        if mode == "flap":
            await self._become("pass")
            self._flapping = asyncio.create_task(self._flap())
        else:
            await self._become(mode)

    async def _flap(self) -> None:
        while True:
            await asyncio.sleep(FLAP_SECONDS)
            await self._become("down" if self._mode == "pass" else "pass")

    async def _become(self, mode: Mode) -> None:
        spoilt = self._mode == "hang" or mode in ("down", "drop")
        self._mode = mode
        if mode == "down" and self._server is not None:
            self._server.close()
            self._server = None
        if spoilt:
            await self._cut_all()
        if mode != "down" and self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=_bound_socket(self.port))

    async def _cut_all(self) -> None:
        tasks = list(self._links.values())
        for link in list(self._links):
            link.cut()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_at.append(time.monotonic())
        link = _Link(self, reader, writer)
        if self._mode in ("down", "drop"):
            link.cut()
            return
        task = asyncio.create_task(link.run(self._upstream))
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link, None))


class _Link:
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer

    async def run(self, upstream: tuple[str, int]) -> None:
        """Carry bytes until either side ends."""
        try:
            reader, writer = await asyncio.open_connection(*upstream)
        except OSError:
            self.cut()
            return
        parts = [asyncio.create_task(part) for part in (self._carry_requests(writer), self._carry_replies(reader))]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.close()
            self._writer.close()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)

    def cut(self) -> None:
        """End the client's connection by a reset."""
        connection: socket.socket | None = self._writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _carry_requests(self, server: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await self._reader.read(_CHUNK_BYTES):
                if self._proxy.mode != "hang":
                    server.write(chunk)
                    await server.drain()

    async def _carry_replies(self, server: asyncio.StreamReader) -> None:
        replies: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        taking = asyncio.create_task(self._take_replies(server, replies))
        try:
            await self._give_replies(replies)
        finally:
            taking.cancel()

    async def _take_replies(self, server: asyncio.StreamReader, replies: asyncio.Queue[tuple[float, bytes]]) -> None:
        with suppress(ConnectionError):
            while chunk := await server.read(_CHUNK_BYTES):
                pause = SLOW_SECONDS if self._proxy.mode == "slow" else 0
                replies.put_nowait((time.monotonic() + pause, chunk))
        replies.put_nowait((time.monotonic(), _END))

    async def _give_replies(self, replies: asyncio.Queue[tuple[float, bytes]]) -> None:
        with suppress(ConnectionError):
            while True:
                due_at, chunk = await replies.get()
                if (pause := due_at - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                if chunk == _END:
                    return
                if self._proxy.mode == "reset":
                    self._writer.write(chunk[: len(chunk) // 2])
                    self.cut()
                    return
                if self._proxy.mode != "hang":
                    self._writer.write(chunk)
                    await self._writer.drain()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((_HOST, port))
    return bound
