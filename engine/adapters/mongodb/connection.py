"""One MongoDB server or cluster, through one of two drivers that differ in three places, all of them here.

A write is acknowledged by a majority, from its journal; reads see what a majority has, on the primary. On a server that
stands alone both mean the server itself, so nothing here needs a replica set. One time limit covers a call with its
choice of a server and its tries, within the driver as well as around it: Motor works in threads that nobody can cancel.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast
from urllib.parse import unquote

from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern, errors
from pymongo.read_concern import ReadConcern

from engine.adapters.failures import Failure, FailureTable
from engine.adapters.guard import StoreGuard
from engine.adapters.mongodb.schema import INDEXES
from engine.errors import ConfigurationError
from engine.ports.health import StoreHealth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from engine.adapters.mongodb.schema import Document

__all__ = ["Driver", "MongoDatabase"]

Driver = Literal["motor", "pymongo"]

CALL_DEADLINE: Final = timedelta(seconds=2)
SCHEMA_DEADLINE: Final = timedelta(minutes=10)
MAX_BODY_BYTES: Final = 15 * 1024 * 1024
"""A document may have 16 MiB with everything."""
_OLDEST_VERSION: Final = 6
_DEFAULT_DATABASE: Final = "baton"
_DEFAULT_PORT: Final = 27017

T = TypeVar("T")


class MongoDatabase:
    """A database on a server or cluster, shared by the stores on it; whoever made it closes it.

    Making one connects to nothing. It belongs to the event loop of its first call, which makes the indexes.

    Args:
        uri: ``mongodb://`` or ``mongodb+srv://``, with user and password if need be; its path names the database,
            ``baton`` when there is none. Time limits, pool size and write concern in it do not count.
        driver: which one talks to the server.
        pool_size: most connections for calls to each server; watching a server takes one more.
        batch_size: most writes of steps in one command.
        deadline: how long a call may take in all.
        listeners: the driver's event listeners, which hear of every command and connection.

    Raises:
        ConfigurationError: ``uri`` names no server.
    """

    def __init__(
        self,
        uri: str,
        driver: Driver = "motor",
        pool_size: int = 10,
        batch_size: int = 100,
        deadline: timedelta = CALL_DEADLINE,
        listeners: Sequence[object] = (),
    ) -> None:
        self._uri = uri
        self._driver = driver
        self._address, self._name = _parts(uri)
        self.batch_size = batch_size
        self.failures = FailureTable("mongodb", f"MongoDB at {self._address} (mongo_uri)", _FAILURES, _reason)
        self._guard = StoreGuard(self.failures, deadline, pool_size)
        self._make_client = _client_class(driver)
        limit_ms = int(deadline.total_seconds() * 1000)
        self._options: dict[str, object] = {
            "appname": "baton",
            "event_listeners": list(listeners),
            "maxPoolSize": pool_size,
            "retryReads": True,
            "retryWrites": True,
            # Well before the deadline, so that the driver's own reason is what is told: it looks for a server in steps
            # of half a second. The second one covers the whole call, and the first where there is none.
            "serverSelectionTimeoutMS": limit_ms * 7 // 10,
            "timeoutMS": limit_ms * 7 // 10,
            "connectTimeoutMS": limit_ms * 7 // 10,
            # Watching by a stream would take two connections more in place of one.
            "serverMonitoringMode": "poll",
            "tz_aware": True,
            "uuidRepresentation": "standard",
        }
        self._client: Any = None
        self._database: Any = None
        self._opening = asyncio.Lock()
        self._version: str | None = None
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._is_closed = False

    @property
    def address(self) -> str:
        """The servers as ``host:port``, without credentials."""
        return self._address

    @property
    def name(self) -> str:
        """The database's name."""
        return self._name

    async def run(self, work: Callable[[], Awaitable[T]], deadline: timedelta | None = None) -> T:
        """Return what ``work``, made of driver calls on ``collection(...)``, returns; it is not repeated.

        Args:
            work: called once the indexes are there.
            deadline: another one than usual. The driver ends each of its calls after the usual one in any case.

        Raises:
            StoreError: the server does not answer in time, refuses, or the database was closed here.
        """
        return await self._guard.run(lambda: self._run(work), deadline)

    def collection(self, name: str) -> AsyncCollection[Document]:
        """Return a collection; within ``run`` only. Motor's has the same methods, but for ``aggregate``."""
        return cast("AsyncCollection[Document]", self._database[name])

    async def aggregate(self, name: str, pipeline: Sequence[Document], index: str) -> list[Document]:
        """Run a pipeline over a collection by an index and return all of its answer; within ``run`` only."""
        asked: Any = self.collection(name).aggregate(pipeline, hint=index)
        cursor = await asked if self._driver == "pymongo" else asked
        return cast("list[Document]", await cursor.to_list(None))

    async def make_schema(self) -> None:
        """Make the indexes that are missing, however long that takes on a large database.

        Raises:
            StoreError: as ``run``.
        """
        import pymongo

        async def make() -> None:
            with pymongo.timeout(SCHEMA_DEADLINE.total_seconds()):
                await self._make_indexes()

        await self._guard.run(lambda: self._run(make), SCHEMA_DEADLINE)

    async def check_health(self) -> StoreHealth:
        """Ask the primary for a document. Raises ``StoreError`` when there is none that answers."""
        await self.run(lambda: self.collection("leases").find_one({"_id": None}))
        return StoreHealth(
            backend="mongodb", version=self._version, detail=f"database {self._name} at {self._address}, {self._driver}"
        )

    def check_size(self, body: bytes, what: str) -> None:
        """Raise ``StoreError`` for a packed record that no document can hold."""
        if len(body) > MAX_BODY_BYTES:
            raise self.failures.failure(
                f"can't take {what}: packed it has {len(body)} bytes, and {MAX_BODY_BYTES} is the most; "
                "return less, or a reference to large data",
                "too_large",
            )

    def before_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have ``close`` awaited by ``aclose``, while the connections are still open."""
        self._closing.append(close)

    async def aclose(self) -> None:
        """Finish what is under way and close the connections. Closing again does nothing."""
        if self._is_closed:
            return
        for close in self._closing:
            await close()
        self._is_closed = True
        client, self._client = self._client, None
        if client is None:
            return
        with self.failures.translated():
            if self._driver == "pymongo":
                await client.close()
            else:
                # It says good-bye to the server, which may take a while.
                await asyncio.to_thread(client.close)

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._version is None:
            async with self._opening:
                if self._version is None:
                    self._version = await self._open()
        if self._is_closed:
            raise self.failures.failure("was closed here; open a new engine", "closed")
        return await work()

    async def _open(self) -> str:
        """Connect, refuse a server that is too old, make the indexes; return the server's version."""
        if self._is_closed:
            raise self.failures.failure("was closed here; open a new engine", "closed")
        if self._client is None:
            try:
                self._client = self._make_client(self._uri, **self._options)
            except ValueError as error:
                raise self.failures.failure(_MALFORMED, "uri") from error
            self._database = self._client.get_database(
                self._name,
                read_preference=ReadPreference.PRIMARY,
                read_concern=ReadConcern("majority"),
                # How long it may take is said by timeoutMS.
                write_concern=WriteConcern(w="majority", j=True),
            )
        info = cast("Mapping[str, object]", await self._client.server_info())
        version = str(info["version"])
        if int(version.partition(".")[0]) < _OLDEST_VERSION:
            raise self.failures.failure(
                f"is version {version}, and Baton needs {_OLDEST_VERSION}.0 or newer; upgrade the server", "version"
            )
        await self._make_indexes()
        return version

    async def _make_indexes(self) -> None:
        for name, indexes in INDEXES.items():
            await self.collection(name).create_indexes(indexes)


def _client_class(driver: Driver) -> Callable[..., Any]:
    """Return what makes the driver's client. Importing it takes long, and the first call has its time limit."""
    if driver == "pymongo":
        return AsyncMongoClient
    from motor.motor_asyncio import AsyncIOMotorClient

    return AsyncIOMotorClient


def _parts(uri: str) -> tuple[str, str]:
    """Return the servers without credentials, and the database's name; nothing is looked up."""
    scheme, _, rest = uri.partition("://")
    servers, _, path = rest.partition("?")[0].partition("/")
    hosts = [host for host in servers.rpartition("@")[2].split(",") if host]
    if not hosts or scheme not in ("mongodb", "mongodb+srv"):
        raise ConfigurationError(
            "mongo_uri names no server; it looks like mongodb://user:password@host:27017/database", {"key": "mongo_uri"}
        )
    if scheme == "mongodb":
        hosts = [host if ":" in host.rpartition("]")[2] else f"{host}:{_DEFAULT_PORT}" for host in hosts]
    return ",".join(hosts), unquote(path) or _DEFAULT_DATABASE


def _has_code(*codes: int) -> Callable[[Exception], bool]:
    def has(error: Exception) -> bool:
        return isinstance(error, errors.OperationFailure) and error.code in codes

    return has


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, errors.PyMongoError) and error.timeout


def _reason(error: Exception) -> str:
    if isinstance(error, errors.OperationFailure) and error.code is not None:
        return f"{type(error).__name__} {error.code}"
    return type(error).__name__


_AUTHENTICATION_FAILED: Final = 18
_UNAUTHORIZED: Final = 13
_TOO_LARGE: Final = (10334, 17419, 17420)
_NO_SPACE: Final = 14031

_UNREACHABLE: Final = "can't be reached; start it, or correct mongo_uri"
_SLOW: Final = "did not answer in time; look at its load and at the network to it"
_MALFORMED: Final = "can't be used: mongo_uri is malformed, or a character in it needs percent-encoding"
_FAILURES: Final = (
    Failure(
        errors.OperationFailure,
        "refuses user and password; correct them in mongo_uri",
        _has_code(_AUTHENTICATION_FAILED),
    ),
    Failure(
        errors.OperationFailure,
        "does not let the user of mongo_uri do this; grant the role readWrite on the database",
        _has_code(_UNAUTHORIZED),
    ),
    Failure(errors.OperationFailure, "can't take a record that is over 16 MiB; return less", _has_code(*_TOO_LARGE)),
    Failure(errors.OperationFailure, "has no space left on its disk; make room", _has_code(_NO_SPACE)),
    Failure(
        errors.WriteConcernError,
        "took a write that a majority of its members did not confirm in time; look at the replica set",
        is_outage=True,
    ),
    Failure(
        errors.WaitQueueTimeoutError,
        "has all connections of this process in use; raise connection_pool_size",
        # When the server hangs, this is how most callers notice.
        is_outage=True,
    ),
    Failure(errors.ServerSelectionTimeoutError, _UNREACHABLE, is_outage=True),
    Failure(errors.PyMongoError, _SLOW, _is_timeout, is_outage=True),
    Failure(errors.ConnectionFailure, _UNREACHABLE, is_outage=True),
    Failure(errors.InvalidURI, _MALFORMED),
    Failure(errors.ConfigurationError, "can't be used with these options; correct mongo_uri, or upgrade the server"),
    Failure(errors.InvalidName, "has no database of the name that mongo_uri gives; correct it"),
    Failure(errors.DocumentTooLarge, "can't take a record that is over 16 MiB; return less"),
    Failure(BSONError, "sent or was given data that can't be read"),
    Failure(errors.OperationFailure, "refused a call"),
    Failure(errors.PyMongoError, "could not be used"),
    Failure(OSError, _UNREACHABLE, is_outage=True),
)
