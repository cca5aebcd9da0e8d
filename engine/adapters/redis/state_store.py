"""Live state as one hash an execution, its events as one stream, both written by one script a transition.

An entry begins with its token in digits of one width, so that the script compares texts: Lua's numbers would round
microseconds. A stream has a random name of its own, its epoch, which is a part of every position in it: ids of a stream
that was lost and begun anew may be smaller than those before. Readers that wait are woken by what the script publishes
and hold no connection meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.packing import pack, unpack
from engine.adapters.redis.connection import Script, ScriptCall
from engine.adapters.redis.health import redis_health
from engine.domain.execution import Event, LiveExecution, LiveState, LiveStep

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import timedelta

    from engine.adapters.codec import Codec
    from engine.adapters.redis.connection import RedisDatabase, Reply
    from engine.ports.health import StoreHealth

__all__ = ["MAX_EVENTS", "RedisStateStore"]

MAX_EVENTS: Final = 1000
"""Events kept of an execution; up to a block of the server's own (100) more until they are trimmed."""

_TOKEN_DIGITS: Final = 20
_LOOK_SECONDS: Final = 2.0
"""How often a reader looks that waits for news: one may be lost."""
_LOOK_UNTOLD_SECONDS: Final = 0.2
"""The same while no news arrive."""
_START: Final = b"0-0"
_POSITION: Final = re.compile(r"([0-9]{1,19}-[0-9]{1,19})-([0-9a-f]{16})", re.ASCII)
_HEAD: Final = b"head"
_EPOCH: Final = b"epoch"
_STEP: Final = b"step:"

# Keys: the hash, the stream. Arguments: time to live, epoch of a new stream, most events, number of entries,
# then field and entry of each, then events.
_TRANSITION: Final = Script(f"""
local live, stream = KEYS[1], KEYS[2]
local last = 4 + 2 * tonumber(ARGV[4])
for i = 5, last, 2 do
    local old = redis.call('HGET', live, ARGV[i])
    if not old or string.sub(old, 1, {_TOKEN_DIGITS}) <= string.sub(ARGV[i + 1], 1, {_TOKEN_DIGITS}) then
        redis.call('HSET', live, ARGV[i], ARGV[i + 1])
    end
end
if #ARGV > last then
    if redis.call('EXISTS', stream) == 0 or redis.call('HEXISTS', live, 'epoch') == 0 then
        redis.call('HSET', live, 'epoch', ARGV[2])
    end
    for i = last + 1, #ARGV do
        redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], '*', 'body', ARGV[i])
    end
    redis.call('PUBLISH', stream, '')
end
redis.call('PEXPIRE', live, ARGV[1])
redis.call('PEXPIRE', stream, ARGV[1])
""")


class RedisStateStore:
    """A ``StateStore`` on a Redis server, which it does not own.

    Args:
        database: the server.
        codec: packs the entries.
        ttl: how long an execution's live state lasts after its last write.
    """

    def __init__(self, database: RedisDatabase, codec: Codec, ttl: timedelta) -> None:
        self._database = database
        self._codec = codec
        self._ttl_millis = max(1, round(ttl.total_seconds() * 1000))

    async def record_transition(
        self,
        execution_id: str,
        *,
        execution: LiveExecution | None = None,
        steps: list[LiveStep] | None = None,
        events: list[Event] | None = None,
    ) -> None:
        """Write what changed by one script: the head, step entries, events appended to the stream."""
        entries: list[bytes] = []
        if execution is not None:
            entries += (_HEAD, _entry(execution.token, pack(self._codec, execution)))
        for step in steps or ():
            entries += (_STEP + step.step_id.encode(), _entry(step.token, pack(self._codec, step)))
        lines = [pack(self._codec, event) for event in events or ()]
        facts = (self._ttl_millis, secrets.token_hex(8), MAX_EVENTS, len(entries) // 2)
        keys = (_live_key(execution_id), _stream_key(execution_id))
        await self._database.ask(ScriptCall(_TRANSITION, keys, (*facts, *entries, *lines)))

    async def get_live_state(self, execution_id: str) -> LiveState | None:
        """Return the state, or None when the head is not there."""
        return (await self.get_live_states([execution_id])).get(execution_id)

    async def get_live_states(self, execution_ids: list[str]) -> dict[str, LiveState]:
        """Return the states that are there, by id, in one round trip."""
        if not execution_ids:
            return {}
        wanted = list(dict.fromkeys(execution_ids))
        replies = await self._database.ask(*(("HGETALL", _live_key(execution_id)) for execution_id in wanted))
        states = {
            execution_id: self._state(cast("list[bytes]", reply))
            for execution_id, reply in zip(wanted, replies, strict=True)
        }
        return {execution_id: state for execution_id, state in states.items() if state is not None}

    async def read_events(
        self, execution_id: str, *, after: str | None, limit: int, wait: timedelta
    ) -> tuple[list[Event], str | None]:
        """Return events behind ``after`` with the position of the last one, waiting up to ``wait`` for one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.total_seconds()
        events, position = await self._read_events(execution_id, after, limit)
        if events or wait.total_seconds() <= 0:
            return events, position
        channel = _stream_key(execution_id)
        with self._woken(channel) as wake:
            while True:
                wake.clear()
                events, position = await self._read_events(execution_id, after, limit)
                remaining = deadline - loop.time()
                if events or remaining <= 0:
                    return events, position
                is_told = self._database.news.listening_since(channel) is not None
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining, _LOOK_SECONDS if is_told else _LOOK_UNTOLD_SECONDS)):
                        await wake.wait()

    async def check_health(self) -> StoreHealth:
        """Ask the server about itself."""
        return await redis_health(self._database)

    def _state(self, reply: list[bytes]) -> LiveState | None:
        entries = dict(zip(reply[::2], reply[1::2], strict=True))
        head = entries.get(_HEAD)
        if head is None:
            return None
        steps = [
            unpack(self._codec, LiveStep, entry[_TOKEN_DIGITS:])
            for name, entry in entries.items()
            if name.startswith(_STEP)
        ]
        return LiveState(
            execution=unpack(self._codec, LiveExecution, head[_TOKEN_DIGITS:]),
            steps={step.step_id: step for step in steps},
        )

    async def _read_events(self, execution_id: str, after: str | None, limit: int) -> tuple[list[Event], str | None]:
        place, of_epoch = _place(after)
        epoch, lines = await self._read_stream(execution_id, place, limit)
        if place != _START and epoch != of_epoch:
            epoch, lines = await self._read_stream(execution_id, _START, limit)
        events = [unpack(self._codec, Event, body) for _, (_, body) in lines]
        return events, f"{lines[-1][0].decode()}-{epoch}" if lines else after

    async def _read_stream(
        self, execution_id: str, place: bytes, limit: int
    ) -> tuple[str, list[tuple[bytes, tuple[bytes, bytes]]]]:
        epoch, streams = await self._database.ask(
            ("HGET", _live_key(execution_id), _EPOCH),
            ("XREAD", "COUNT", limit, "STREAMS", _stream_key(execution_id), place),
        )
        return cast("bytes", epoch or b"").decode(), _lines(streams)

    @contextmanager
    def _woken(self, channel: bytes) -> Generator[asyncio.Event]:
        wake = asyncio.Event()

        def listener(_: bytes | None) -> None:
            wake.set()

        self._database.news.listen(channel, listener)
        try:
            yield wake
        finally:
            self._database.news.unlisten(channel, listener)


def _live_key(execution_id: str) -> bytes:
    return f"baton:default:live:{{{execution_id}}}".encode()


def _stream_key(execution_id: str) -> bytes:
    return f"baton:default:events:{{{execution_id}}}".encode()


def _entry(token: int, body: bytes) -> bytes:
    return b"%0*d%b" % (_TOKEN_DIGITS, token, body)


def _place(position: str | None) -> tuple[bytes, str]:
    """Return the stream's id behind which to read, and the epoch it belongs to; the start for no known position."""
    found = _POSITION.fullmatch(position or "")
    return (_START, "") if found is None else (found[1].encode(), found[2])


def _lines(streams: Reply) -> list[tuple[bytes, tuple[bytes, bytes]]]:
    if streams is None:
        return []
    [(_, lines)] = cast("list[tuple[bytes, list[tuple[bytes, tuple[bytes, bytes]]]]]", streams)
    return lines
