"""One driver for all stores on a server: opened on first use, with managed transactions under one deadline.

The driver's own limits are for other uses: it waits a minute for a dead server. Ours lie within the guard's deadline,
so that a failure is told by its cause and not by the clock. A transaction's function may run more than once, also after
its answer got lost: it must find what it wrote and answer the same again.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, LiteralString, TypeVar

import neo4j
from neo4j.exceptions import ClientError, ConfigurationError, ConstraintError, IncompleteCommit

from engine.adapters.guard import StoreGuard
from engine.adapters.neo4j.failures import failures_of, place_of
from engine.adapters.neo4j.schema import AWAIT_SCHEMA, OLDEST_SERVER, ONLINE_SCHEMA, SCHEMA, UPGRADES, server_version
from engine.ports.health import StoreHealth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from neo4j import AsyncDriver, AsyncManagedTransaction, Record

__all__ = ["Neo4jDatabase", "first_of", "rows_of"]

T = TypeVar("T")

CONNECT_SECONDS: Final = 1.8
READ_DEADLINE: Final = timedelta(seconds=2)
WRITE_DEADLINE: Final = timedelta(seconds=2.8)
"""Longer than a read, which is one statement; both are less than five seconds."""
FIRST_DEADLINE: Final = timedelta(seconds=4)
"""For the first answer to a process: a server that has just started needs seconds for its first statements."""
HEALTH_DEADLINE: Final = timedelta(seconds=1.2)
"""Less than a health report waits, so that it tells the reason."""
SCHEMA_DEADLINE: Final = timedelta(seconds=20)
"""For a server that answers: indexes are made once in its life."""
RETRY_SECONDS: Final = 0.5
FIRST_RETRY_SECONDS: Final = 0.1
TRUSTED_SECONDS: Final = 1.0
"""A connection that was idle for longer is asked before it is used, so that a restart is not noticed by a caller."""
_MADE_MEANWHILE: Final = "Neo.ClientError.Schema.EquivalentSchemaRuleAlreadyExists"
_DEFAULT_USER: Final = "neo4j"
_TRIES_OF_WRITE: Final = 2

# The driver warns of every try of a transaction; without a handler that ends on the standard error of programs that
# never asked for logging. What becomes of the call is the caller's error, and one line of the log of outages.
logging.getLogger("neo4j").addHandler(logging.NullHandler())


class Neo4jDatabase:
    """A server, shared by the stores on it; whoever made it closes it.

    Making one connects to nothing. The driver belongs to the event loop of the first call.

    Args:
        uri: ``bolt://host:7687`` or ``neo4j://...``, also with ``+s`` or ``+ssc``.
        user: None: ``neo4j``.
        password: None: no log-in.
        pool_size: most connections to the server.
    """

    def __init__(self, uri: str, user: str | None = None, password: str | None = None, pool_size: int = 10) -> None:
        self._uri = uri
        self._auth = None if password is None else neo4j.basic_auth(user or _DEFAULT_USER, password)
        self._pool_size = pool_size
        self._place = place_of(uri)
        self._failures = failures_of(self._place)
        self._guard = StoreGuard(self._failures, READ_DEADLINE, pool_size)
        self._driver: AsyncDriver | None = None
        self._making_schema = asyncio.Lock()
        self._is_ready = False
        self._closed = False
        self._calls = 0
        self._leaving: set[asyncio.Task[None]] = set()

    async def read(
        self, work: Callable[[AsyncManagedTransaction], Awaitable[T]], extra_time: timedelta = timedelta(0)
    ) -> T:
        """Return what ``work`` returns in a transaction that only reads; it may run more than once.

        Args:
            work: asks the server.
            extra_time: for more than one statement.

        Raises:
            StoreError: the server can't be reached, used or logged in to, or did not answer in time.
        """
        await self._prepare()
        deadline = READ_DEADLINE + extra_time
        return await self._guard.run(lambda: self._transact(work, neo4j.READ_ACCESS, deadline), deadline)

    async def write(
        self, work: Callable[[AsyncManagedTransaction], Awaitable[T]], extra_time: timedelta = timedelta(0)
    ) -> T:
        """Return what ``work`` returns, once its transaction is committed; it may run more than once.

        Args:
            work: must answer the same when it finds its own writes.
            extra_time: for a write that is large by what it is given.

        Raises:
            StoreError: as ``read``; whether it was written is not known.
        """
        await self._prepare()
        deadline = WRITE_DEADLINE + extra_time
        return await self._guard.run(lambda: self._transact(work, neo4j.WRITE_ACCESS, deadline), deadline)

    async def make_schema(self) -> None:
        """Make the constraints and indexes that are missing.

        Raises:
            StoreError: as ``read``, or the user may not do this.
        """
        await self._guard.run(self._missing_schema, FIRST_DEADLINE)
        async with self._making_schema:
            await self._guard.run(self._make_schema, SCHEMA_DEADLINE)
            self._is_ready = True

    async def check_health(self) -> StoreHealth:
        """Make one round trip.

        Raises:
            StoreError: as ``read``.
        """
        in_use = min(self._calls, self._pool_size)
        version = await self._guard.run(self._version, HEALTH_DEADLINE)
        return StoreHealth(backend="neo4j", version=version, detail=f"{in_use} of {self._pool_size} connections in use")

    async def aclose(self) -> None:
        """Close the connections. Closing again does nothing."""
        self._closed = True
        driver, self._driver = self._driver, None
        if self._leaving:
            await asyncio.wait(self._leaving)
        if driver is not None:
            await driver.close()

    async def _prepare(self) -> None:
        """See at the first call that the server can be used and has its schema."""
        if self._is_ready:
            return
        if await self._guard.run(self._missing_schema, FIRST_DEADLINE):
            async with self._making_schema:
                if not self._is_ready:
                    await self._guard.run(self._make_schema, SCHEMA_DEADLINE)
        self._is_ready = True

    async def _version(self) -> str:
        """Ask the server for its version; refuse one that is too old."""
        agent = await self._transact(_agent, neo4j.READ_ACCESS)
        return self._checked(agent)

    async def _missing_schema(self) -> set[str]:
        async def look(tx: AsyncManagedTransaction) -> tuple[str, list[str]]:
            found = await first_of(tx, ONLINE_SCHEMA)
            return await _agent(tx), [] if found is None else found["names"]

        agent, names = await self._transact(look, neo4j.READ_ACCESS, FIRST_DEADLINE)
        self._checked(agent)
        return SCHEMA.keys() - set(names)

    async def _make_schema(self) -> None:
        for statement in (*SCHEMA.values(), *UPGRADES, AWAIT_SCHEMA):

            async def make(tx: AsyncManagedTransaction, statement: LiteralString = statement) -> None:
                await rows_of(tx, statement)

            try:
                await self._transact(make, neo4j.WRITE_ACCESS, SCHEMA_DEADLINE)
            except ClientError as error:
                # The condition in the statement does not see what another engine makes at the same moment.
                if error.code != _MADE_MEANWHILE:
                    raise

    def _checked(self, agent: str) -> str:
        version, is_new_enough = server_version(agent)
        if not is_new_enough:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise self._failures.failure(
                f"is version {version}; Baton needs {oldest} or newer: upgrade the server, or correct neo4j_uri",
                "version",
            )
        return version

    async def _transact(
        self,
        work: Callable[[AsyncManagedTransaction], Awaitable[T]],
        access: str,
        deadline: timedelta = READ_DEADLINE,
    ) -> T:
        call = _Call(work)
        task = asyncio.create_task(self._attempt(call, access, deadline))
        self._calls += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                leaving = asyncio.create_task(_end(task, call))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
            raise
        finally:
            self._calls -= 1

    async def _attempt(self, call: _Call[T], access: str, deadline: timedelta) -> T:
        driver = self._open()
        # The server too gives up, so that no lock outlives its caller.
        limited = neo4j.unit_of_work(timeout=deadline.total_seconds())(call.run)
        if self._guard.is_open:
            # A managed transaction would try to connect again and again.
            await driver.verify_connectivity()  # pyright: ignore[reportUnknownMemberType] # untyped options
        async with driver.session() as session:  # pyright: ignore[reportUnknownMemberType] # untyped options
            if access == neo4j.READ_ACCESS:
                return await session.execute_read(limited)
            for _ in range(_TRIES_OF_WRITE - 1):
                try:
                    return await session.execute_write(limited)
                except (ConstraintError, IncompleteCommit):
                    # Somebody else was first, or the answer was lost: the function finds out.
                    continue
            return await session.execute_write(limited)

    def _open(self) -> AsyncDriver:
        if self._closed:
            raise self._failures.failure("has been closed by this process; make a new engine to go on", "closed")
        if self._driver is None:
            try:
                if self._place is None:
                    raise ValueError("no host, or a port that is no number")
                self._driver = neo4j.AsyncGraphDatabase.driver(  # pyright: ignore[reportUnknownMemberType] # untyped options
                    self._uri,
                    auth=self._auth,
                    max_connection_pool_size=self._pool_size,
                    connection_timeout=CONNECT_SECONDS,
                    connection_acquisition_timeout=CONNECT_SECONDS,
                    max_transaction_retry_time=RETRY_SECONDS,
                    initial_retry_delay=FIRST_RETRY_SECONDS,
                    liveness_check_timeout=TRUSTED_SECONDS,
                    notifications_min_severity="OFF",
                    telemetry_disabled=True,
                    user_agent="baton",
                )
            except (ValueError, ConfigurationError) as error:
                raise self._failures.failure(
                    "can't be used as it is written; correct neo4j_uri, for example bolt://host:7687, with user and "
                    "password in neo4j_user and neo4j_password",
                    "uri",
                ) from error
        return self._driver


class _Call(Generic[T]):
    """A transaction's function, and whether it has a connection at the moment."""

    def __init__(self, work: Callable[[AsyncManagedTransaction], Awaitable[T]]) -> None:
        self._work = work
        self.is_connected = False
        self.is_abandoned = False

    async def run(self, tx: AsyncManagedTransaction) -> T:
        if self.is_abandoned:
            raise asyncio.CancelledError
        self.is_connected = True
        try:
            return await self._work(tx)
        finally:
            self.is_connected = False


async def _end(task: asyncio.Task[T], call: _Call[T]) -> None:
    """End a call whose caller is gone; while it connects it is left alone, or the driver would lose an open socket."""
    call.is_abandoned = True
    if not call.is_connected:
        await asyncio.wait([task], timeout=CONNECT_SECONDS)
    task.cancel()
    await asyncio.wait([task])


async def rows_of(tx: AsyncManagedTransaction, statement: LiteralString, **parameters: object) -> list[Record]:
    """Return all rows of a statement; its text is constant, all else are parameters."""
    result = await tx.run(statement, parameters)
    return [row async for row in result]


async def first_of(tx: AsyncManagedTransaction, statement: LiteralString, **parameters: object) -> Record | None:
    """Return the only row of a statement, or None."""
    rows = await rows_of(tx, statement, **parameters)
    return rows[0] if rows else None


async def _agent(tx: AsyncManagedTransaction) -> str:
    result = await tx.run("RETURN 1")
    return (await result.consume()).server.agent
