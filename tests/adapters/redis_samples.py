"""What the tests of the Redis adapters share: records, an administrator's own connection, a counting proxy."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from engine.domain.execution import Event, ExecutionStatus, LiveExecution, LiveStep, StepStatus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AT_ONCE = timedelta(0)


def head(execution_id: str = "flow-1", token: int = 1, **changes: Any) -> LiveExecution:
    given = {"status": ExecutionStatus.RUNNING, "step_ids": ["a", "b"], "created_at": NOW, **changes}
    return LiveExecution(execution_id=execution_id, definition_id="flow", version=1, token=token, **given)


def step(step_id: str = "a", token: int = 1) -> LiveStep:
    return LiveStep(step_id=step_id, token=token, status=StepStatus.RUNNING)


def event(number: int) -> Event:
    return Event.at_instant("agent.progress", NOW + timedelta(seconds=number), f"a.{number}", "a", number=number)


@asynccontextmanager
async def administrator(uri: str) -> AsyncGenerator[Redis]:
    client = Redis.from_url(uri, client_name="administrator", decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


async def open_connections(client: Redis) -> int:
    """How many connections of ours the server has."""
    return sum(entry["name"] == "baton" for entry in await client.client_list())


class Proxy:
    """Hands bytes on to a server and counts round trips: requests that come after the answers to those before."""

    def __init__(self, uri: str) -> None:
        self.uri = ""
        self.round_trips = 0
        self.connections = 0
        self._target = urlsplit(uri)
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        state = {"answered": True}

        def asked() -> None:
            self.round_trips += state["answered"]
            state["answered"] = False

        def answered() -> None:
            state["answered"] = True

        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(_hand_on(reader, far_writer, asked), _hand_on(far_reader, writer, answered))
        finally:
            self._writers -= {writer, far_writer}


@asynccontextmanager
async def proxied(uri: str) -> AsyncGenerator[Proxy]:
    proxy = Proxy(uri)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.uri = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await server.wait_closed()
        await asyncio.sleep(0.01)


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[], None]) -> None:
    try:
        while data := await reader.read(65536):
            seen()
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
