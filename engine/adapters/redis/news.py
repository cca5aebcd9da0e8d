"""What the server publishes, heard over one connection, however many channels and listeners there are.

A silent connection looks like one without news. So it is pinged four times a second, and one that does not answer
counts as lost: what was published meanwhile may never arrive, and its listeners know that within a second. A lost one
is opened anew for ever, at most twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from redis import exceptions

from engine.errors import StoreError
from engine.outages import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from redis.asyncio.connection import AbstractConnection

    from engine.adapters.guard import StoreGuard

__all__ = ["Listener", "RedisNews"]

Listener: TypeAlias = "Callable[[bytes | None], None]"
"""Called with what was published; with None when news begin to arrive, and when they may have been missed."""

PING_SECONDS: Final = 0.25
PATIENCE_SECONDS: Final = 0.4
"""For how long a ping may be unanswered."""
SILENCE_SECONDS: Final = 0.8
RECONNECT_SECONDS: Final = 0.5
_MESSAGE_PARTS: Final = 3
_GRACE_SECONDS: Final = 0.05
"""For an answer that has come but was not looked at yet, since the loop was busy."""

_logger = logging.getLogger(__name__)


class RedisNews:
    """Channels of one server; it connects with the first listener.

    Args:
        make_connection: makes a connection that is not open yet.
        guard: the server's, so that no more is tried on a dead one than its circuit lets through.
        connect_deadline: how long opening may take.
    """

    def __init__(
        self, make_connection: Callable[[], AbstractConnection], guard: StoreGuard, connect_deadline: timedelta
    ) -> None:
        self._make_connection = make_connection
        self._guard = guard
        self._connect_deadline = connect_deadline
        self._listeners: dict[bytes, list[Listener]] = {}
        self._since: dict[bytes, float] = {}
        self._heard_at = float("-inf")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._outages = OutageLog(_logger, "Hearing news from Redis")

    def listen(self, channel: bytes, listener: Listener) -> None:
        """Call ``listener`` on the running loop with what is published on ``channel``, until ``unlisten``."""
        self._listeners.setdefault(channel, []).append(listener)
        self._changed.set()
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._run(), name="baton redis news")
        elif channel in self._since:
            listener(None)

    def unlisten(self, channel: bytes, listener: Listener) -> None:
        """Take back one ``listen``."""
        listeners = self._listeners[channel]
        listeners.remove(listener)
        if not listeners:
            del self._listeners[channel]
            self._changed.set()

    def listening_since(self, channel: bytes) -> float | None:
        """Since when (``time.monotonic``) all that was published on ``channel`` has arrived; None while it may not."""
        if time.monotonic() - self._heard_at > SILENCE_SECONDS:
            return None
        return self._since.get(channel)

    async def aclose(self) -> None:
        """End the connection; nothing is heard any more."""
        self._is_closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def _run(self) -> None:
        while True:
            try:
                await self._serve()
            except StoreError as error:
                self._outages.failed(error)
            finally:
                self._lose()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _serve(self) -> None:
        """Open one connection and hear what comes over it until it is lost."""
        connection = self._make_connection()
        try:
            # It says its name and waits for the answer: a server that hangs takes connections too.
            await self._guard.run(connection.connect, self._connect_deadline)
            self._heard_at = time.monotonic()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._hear(connection))
                both.create_task(self._speak(connection))
        except* exceptions.RedisError as errors:
            self._outages.failed(errors.exceptions[0])
        finally:
            await connection.disconnect(nowait=True)

    async def _hear(self, connection: AbstractConnection) -> None:
        while True:
            reply = cast("object", await connection.read_response(disable_decoding=True, timeout=math.inf))
            self._heard_at = time.monotonic()
            # A pong is no list until the first channel is subscribed, and then one of two.
            if isinstance(reply, list) and len(reply := cast("list[object]", reply)) == _MESSAGE_PARTS:
                kind, channel, body = reply
                self._take(cast("bytes", kind), cast("bytes", channel), body)

    def _take(self, kind: bytes, channel: bytes, body: object) -> None:
        if kind == b"message":
            self._tell(channel, cast("bytes", body))
        elif kind == b"subscribe":
            self._since[channel] = self._heard_at
            self._outages.worked()
            self._tell(channel, None)
        elif kind == b"unsubscribe":
            self._since.pop(channel, None)

    async def _speak(self, connection: AbstractConnection) -> None:
        asked: set[bytes] = set()
        pinged_at = self._heard_at
        ping_at = pinged_at + PING_SECONDS
        while True:
            self._changed.clear()
            wanted = set(self._listeners)
            if new := wanted - asked:
                await connection.send_command("SUBSCRIBE", *new)
            if old := asked - wanted:
                await connection.send_command("UNSUBSCRIBE", *old)
            asked = wanted
            try:
                async with asyncio.timeout(ping_at - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                ping_at = time.monotonic() + PING_SECONDS
                if self._heard_at >= pinged_at:
                    pinged_at = time.monotonic()
                    await connection.send_command("PING")
                else:
                    await self._check_silence(pinged_at)

    async def _check_silence(self, pinged_at: float) -> None:
        if time.monotonic() - pinged_at > PATIENCE_SECONDS:
            await asyncio.sleep(_GRACE_SECONDS)
            if self._heard_at < pinged_at:
                raise exceptions.TimeoutError("no answer to a ping")

    def _tell(self, channel: bytes, body: bytes | None) -> None:
        for listener in tuple(self._listeners.get(channel, ())):
            listener(body)

    def _lose(self) -> None:
        lost = list(self._since)
        self._since.clear()
        for channel in lost:
            self._tell(channel, None)
