"""One Redis server: a bounded pool for commands, one connection for news, and nothing that waits long.

Commands go out together and are answered together, so that a caller pays one round trip whatever it asks. They are sent
as they stand over RESP2, whose replies have one shape in all versions. Nothing here is the only copy of anything, so a
server that hangs costs a call 180 ms, and the calls right after it, which are mostly the same caller's, 40 ms each.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import StoreGuard
from engine.adapters.redis.news import RedisNews
from engine.adapters.redis.patience import responsive_timeout
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Command", "RedisDatabase", "Reply", "Script", "ScriptCall"]

Command: TypeAlias = "tuple[str | bytes | int, ...]"
Reply: TypeAlias = "bytes | int | list[Reply] | None"

CALL_DEADLINE: Final = timedelta(milliseconds=180)
BUSY_FACTOR: Final = 10
"""How many times its deadline a call may take in a process that is busy."""
SUSPECT_DEADLINE: Final = timedelta(milliseconds=40)
SUSPECT_SECONDS: Final = 0.3
"""For how long after a call without an answer the next ones wait less. It is shorter than a circuit's pause, so that
who looks whether the server is back has the whole deadline."""
CONNECT_DEADLINE: Final = timedelta(seconds=1)
_DEFAULT_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, which the server knows by its hash once it has run."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A script with what it is called with; its keys share one hash tag."""

    script: Script
    keys: Sequence[str | bytes]
    arguments: Sequence[str | bytes | int]


class RedisDatabase:
    """A server and a database on it, shared by the stores on it; whoever made it closes it.

    Making one connects to nothing. It belongs to the event loop of its first call.

    Args:
        uri: ``redis://``, ``rediss://`` or ``unix://``, with user and password if need be.
        pool_size: most connections for commands; the news have one more.
        deadline: how long a call may take in all, in a process that is not busy.

    Raises:
        ConfigurationError: ``uri`` can't be read.
    """

    def __init__(self, uri: str, pool_size: int, deadline: timedelta = CALL_DEADLINE) -> None:
        options = _options(uri)
        self._address = _address(options)
        self._failures = FailureTable("redis", f"Redis at {self._address} (redis_uri)", _FAILURES)
        self._guard = StoreGuard(self._failures, BUSY_FACTOR * deadline, pool_size)
        self._deadline = deadline
        self._unanswered_at = float("-inf")
        self._pool_size = pool_size
        # No time-out of its own for waiting: the call's deadline covers it.
        self._pool = BlockingConnectionPool(max_connections=pool_size, timeout=None, **options)
        try:
            self._pool.make_connection()
        except TypeError:
            raise _unreadable() from None
        self.news = RedisNews(self._pool.make_connection, self._guard, CONNECT_DEADLINE)
        self._is_closed = False

    @property
    def address(self) -> str:
        """``host:port`` or the socket's path, without credentials."""
        return self._address

    @property
    def pool_size(self) -> int:
        """Most connections for commands."""
        return self._pool_size

    @property
    def busy(self) -> int:
        """Connections for commands that are in use now."""
        counts = cast("list[tuple[int, dict[str, str]]]", self._pool.get_connection_count())  # pyright: ignore[reportUnknownMemberType] - the driver's bare dict
        return counts[1][0]

    async def ask(self, *commands: Command | ScriptCall) -> list[Reply]:
        """Send commands in one round trip and return their replies.

        A script that the server forgot costs another one, in which it and all behind it are sent again.

        Raises:
            StoreError: the server does not answer in time or refuses one of them; the others may have been done.
        """
        if self._is_closed:
            raise self._failures.failure("was closed here; open a new engine", "closed")
        return await self._guard.run(lambda: self._ask_in_time(commands))

    async def aclose(self) -> None:
        """Close the connections. Closing again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        await self.news.aclose()
        with self._failures.translated():
            await self._pool.disconnect()

    async def _ask_in_time(self, commands: Sequence[Command | ScriptCall]) -> list[Reply]:
        is_suspect = time.monotonic() - self._unanswered_at < SUSPECT_SECONDS
        try:
            async with responsive_timeout(min(self._deadline, SUSPECT_DEADLINE) if is_suspect else self._deadline):
                replies = await self._ask(commands)
        except TimeoutError:
            self._unanswered_at = time.monotonic()
            raise
        self._unanswered_at = float("-inf")
        return replies

    async def _ask(self, commands: Sequence[Command | ScriptCall]) -> list[Reply]:
        connection = await self._pool.get_connection()  # pyright: ignore[reportUnknownMemberType] - its unused parameters
        try:
            replies = await _exchange(connection, [_by_sha(command) for command in commands])
            unknown = next((n for n, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)), None)
            if unknown is not None:
                # The rest too, so that everything happens in the order asked for.
                replies[unknown:] = await _exchange(connection, [_by_text(command) for command in commands[unknown:]])
        finally:
            await self._pool.release(connection)
        for reply in replies:
            if isinstance(reply, exceptions.ResponseError):
                raise reply
        return cast("list[Reply]", replies)


async def _exchange(
    connection: AbstractConnection, commands: Sequence[Command]
) -> list[Reply | exceptions.ResponseError]:
    """Return all replies; whatever ends this earlier closes the connection, so that no reply is left in it."""
    await connection.send_packed_command(connection.pack_commands(commands))
    replies: list[Reply | exceptions.ResponseError] = []
    for _ in commands:
        try:
            replies.append(cast("Reply", await connection.read_response()))
        except exceptions.ResponseError as error:
            replies.append(error)
    return replies


def _by_sha(command: Command | ScriptCall) -> Command:
    if not isinstance(command, ScriptCall):
        return command
    return ("EVALSHA", command.script.sha, len(command.keys), *command.keys, *command.arguments)


def _by_text(command: Command | ScriptCall) -> Command:
    """The command as it makes the server know its script."""
    if not isinstance(command, ScriptCall):
        return command
    return ("EVAL", command.script.text, len(command.keys), *command.keys, *command.arguments)


def _options(uri: str) -> dict[str, Any]:
    try:
        given: dict[str, Any] = {**parse_url(uri)}
    except ValueError:
        raise _unreadable() from None
    own: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_DEADLINE.total_seconds(),
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
        "client_name": "baton",
        "driver_info": None,
    }
    for pools_own in ("max_connections", "timeout", "queue_class"):
        given.pop(pools_own, None)
    if "path" not in given:
        own["socket_keepalive"] = True
    return {**given, **own}


def _unreadable() -> ConfigurationError:
    """Without the reason, which may quote the password."""
    return ConfigurationError(
        "redis_uri can't be read; it looks like redis://user:password@host:6379/0, "
        "with special characters of the password percent-encoded",
        {"key": "redis_uri"},
    )


def _address(options: Mapping[str, object]) -> str:
    if (path := options.get("path")) is not None:
        return str(path)
    host = str(options.get("host", "localhost"))
    return f"{f'[{host}]' if ':' in host else host}:{options.get('port', _DEFAULT_PORT)}"


def _says(text: str) -> Callable[[Exception], bool]:
    return lambda error: text in str(error)


_FAILURES: Final = (
    Failure(exceptions.AuthenticationError, "refused the log-in; correct the user and password in redis_uri"),
    Failure(exceptions.AuthenticationWrongNumberOfArgsError, "takes no password; leave it out of redis_uri"),
    Failure(
        exceptions.NoPermissionError,
        "does not let the user of redis_uri do this; allow it the keys and channels baton:* and the commands on them",
    ),
    Failure(
        exceptions.OutOfMemoryError,
        "has no memory left; raise its maxmemory, or let it evict keys with a time to live (volatile-ttl)",
    ),
    Failure(exceptions.ReadOnlyError, "is a read-only replica; set redis_uri to the primary"),
    Failure(exceptions.AskError, "is a node of a cluster; set redis_uri to a server that holds all keys"),
    Failure(exceptions.ClusterCrossSlotError, "is a node of a cluster; set redis_uri to a server that holds all keys"),
    Failure(exceptions.BusyLoadingError, "is loading its data; try again in a moment", is_outage=True),
    Failure(
        exceptions.ConnectionError,
        "has too many clients; raise its maxclients, or lower connection_pool_size",
        _says("max number of clients"),
        is_outage=True,
    ),
    Failure(
        exceptions.ConnectionError,
        "could not be reached; check that it runs and that redis_uri names it",
        is_outage=True,
    ),
    Failure(TimeoutError, "did not answer in time; check that it runs and is not overloaded", is_outage=True),
    Failure(exceptions.TimeoutError, "did not answer; check that it runs and is not overloaded", is_outage=True),
    Failure(
        exceptions.ResponseError, "has no such database; correct the number at the end of redis_uri", _says("DB index")
    ),
    Failure(exceptions.RedisError, "refused a command; Baton needs Redis 6 or newer, or a server that does the same"),
    Failure(OSError, "could not be reached; check that it runs and that redis_uri names it", is_outage=True),
)
