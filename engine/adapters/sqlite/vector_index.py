"""Vectors in the embedded database, searched one by one: exact, and fast enough for what one machine holds.

Reading all vectors out of the file would cost a query more than comparing them, so each process keeps a namespace's
vectors in memory, as one array of single floats, and reads only what has changed since its last look. They lie there
and in the file at unit length, so that a cosine is a dot product. numpy, where it is installed, makes the choice
faster and not different: what it finds near enough is measured again without it.
"""

from __future__ import annotations

import functools
import heapq
import importlib
import json
import math
import secrets
import sys
import threading
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.schema import TENANT
from engine.errors import InvalidInputError
from engine.ports.vector_index import VectorMatch, VectorStats

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.ports.health import StoreHealth
    from engine.ports.vector_index import VectorItem

    _Choice: TypeAlias = "Callable[[array[float], int, tuple[float, ...], Sequence[int], int], list[int]]"

__all__ = ["SqliteVectorIndex"]

MAX_NAMESPACES: Final = 16
"""Namespaces that are kept in memory; the one that was searched longest ago goes first."""

_IDS_A_WRITE = 500
_SINGLE_ERROR = 1e-5
"""More than single floats can be wrong about a cosine."""

_GET_NAMESPACE = "SELECT epoch, dimension, changed, dropped FROM vector_namespaces WHERE tenant = ? AND namespace = ?"
_PUT_NAMESPACE = """INSERT INTO vector_namespaces (tenant, namespace, epoch, dimension, changed, dropped)
    VALUES (?, ?, ?, ?, 1, 0)
    ON CONFLICT (tenant, namespace) DO UPDATE SET
        epoch = excluded.epoch, dimension = excluded.dimension, changed = 1, dropped = 0"""
_SET_CHANGED = "UPDATE vector_namespaces SET changed = ? WHERE tenant = ? AND namespace = ?"
_SET_DROPPED = """UPDATE vector_namespaces SET changed = changed + 1, dropped = changed + 1
    WHERE tenant = ? AND namespace = ?"""
_PUT = """INSERT INTO vectors (tenant, namespace, item_id, changed, metadata, body) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, namespace, item_id) DO UPDATE SET
        changed = excluded.changed, metadata = excluded.metadata, body = excluded.body"""
_DELETE_ALL = "DELETE FROM vectors WHERE tenant = ? AND namespace = ?"
_DELETE_NAMESPACE = "DELETE FROM vector_namespaces WHERE tenant = ? AND namespace = ?"
_DELETE = "DELETE FROM vectors WHERE tenant = ? AND namespace = ? AND item_id = ?"
_COUNT = "SELECT count(*) FROM vectors WHERE tenant = ? AND namespace = ?"
_HAS_ANY = "SELECT 1 FROM vectors WHERE tenant = ? AND namespace = ? LIMIT 1"
_CHANGED = "SELECT item_id, metadata, body FROM vectors WHERE tenant = ? AND namespace = ? AND changed > ?"
_IDS = "SELECT item_id FROM vectors WHERE tenant = ? AND namespace = ?"


class SqliteVectorIndex:
    """A ``VectorIndex`` on an embedded database of schema ``VECTORS``, which it does not own."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._loaded: dict[str, _Namespace] = {}
        self._lock = threading.Lock()

    async def upsert_vectors(self, namespace: str, items: Sequence[VectorItem]) -> None:
        """Keep vectors under their ids, all or none of them.

        Raises:
            InvalidInputError: a vector of another dimension than the namespace's, of zeros or of no numbers.
            StoreError: the database can't be written.
        """
        newest = {item.item_id: item for item in items}
        if not newest:
            return
        rows: list[tuple[str, str, bytes]] = []
        dimension = len(next(iter(newest.values())).values)
        for item in newest.values():
            _check_dimension(len(item.values), dimension)
            metadata = json.dumps(dict(item.metadata), ensure_ascii=False)
            rows.append((item.item_id, metadata, _to_bytes(_unit(item.values))))
        key = (TENANT, namespace)

        def upsert(connection: sqlite3.Connection) -> None:
            change = _next_change(connection, key, dimension)
            connection.executemany(_PUT, [(*key, item_id, change, text, body) for item_id, text, body in rows])

        await self._database.write(upsert)

    async def query_vectors(
        self, namespace: str, values: Sequence[float], *, top_k: int, where: Mapping[str, str] | None = None
    ) -> list[VectorMatch]:
        """Return the nearest ``top_k``, best first; equally near ones by id.

        Raises:
            InvalidInputError: a vector of another dimension than the namespace's, of zeros or of no numbers.
            StoreError: the database can't be read.
        """
        unit = _unit(values)
        wanted = set((where or {}).items())

        def query(connection: sqlite3.Connection) -> list[VectorMatch]:
            with self._lock:
                held = self._look(connection, namespace)
                if held is None or not held.ids:
                    return []
                _check_dimension(len(unit), held.dimension)
                return held.nearest(unit, top_k, wanted)

        return await self._database.read(query)

    async def delete_vectors(self, namespace: str, item_ids: Sequence[str]) -> None:
        """Drop vectors; unknown ids are no error."""
        key = (TENANT, namespace)
        for start in range(0, len(item_ids), _IDS_A_WRITE):
            await self._database.write(_deleting(key, item_ids[start : start + _IDS_A_WRITE]))

    async def delete_namespace(self, namespace: str) -> None:
        """Drop all vectors of a namespace, which then takes any dimension."""
        key = (TENANT, namespace)

        def delete(connection: sqlite3.Connection) -> None:
            # Numbers begin anew with another epoch, by which every process knows that what it holds is gone.
            connection.execute(_DELETE_ALL, key)
            connection.execute(_DELETE_NAMESPACE, key)

        await self._database.write(delete)

    async def describe_namespace(self, namespace: str) -> VectorStats:
        """Return what the namespace holds; an unknown one holds nothing."""
        key = (TENANT, namespace)

        def describe(connection: sqlite3.Connection) -> VectorStats:
            (count,) = cast("tuple[int]", connection.execute(_COUNT, key).fetchone())
            row = _namespace_row(connection, key)
            return VectorStats(dimension=row.dimension if row is not None and count else None, count=count)

        return await self._database.read(describe)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _look(self, connection: sqlite3.Connection, namespace: str) -> _Namespace | None:
        """Return the namespace as the file has it, after reading what is new; the lock is held."""
        key = (TENANT, namespace)
        held = self._loaded.pop(namespace, None)
        row = _namespace_row(connection, key)
        if row is None:
            return None
        if held is None or held.epoch != row.epoch or held.changed > row.changed:
            held = _Namespace(row.epoch, row.dimension)
        if held.changed < row.dropped:
            held.keep_only({item_id for (item_id,) in connection.execute(_IDS, key)})
        if held.changed < row.changed:
            for item_id, metadata, body in connection.execute(_CHANGED, (*key, held.changed)):
                held.put(item_id, json.loads(metadata), body)
            held.changed = row.changed
        self._loaded[namespace] = held
        if len(self._loaded) > MAX_NAMESPACES:
            del self._loaded[next(iter(self._loaded))]
        return held


@dataclass(frozen=True, slots=True)
class _NamespaceRow:
    epoch: str
    dimension: int
    changed: int
    dropped: int


@dataclass(slots=True)
class _Namespace:
    """The vectors of one namespace in memory, behind one another in ``numbers``."""

    epoch: str
    dimension: int
    changed: int = 0
    ids: list[str] = field(default_factory=list[str])
    metadata: list[dict[str, str]] = field(default_factory=list["dict[str, str]"])
    places: dict[str, int] = field(default_factory=dict[str, int])
    numbers: array[float] = field(default_factory=lambda: array("f"))

    def put(self, item_id: str, metadata: dict[str, str], body: bytes) -> None:
        """Add a vector, or put it in the place of the one with its id."""
        values = _from_bytes(body)
        place = self.places.get(item_id)
        if place is None:
            self.places[item_id] = len(self.ids)
            self.ids.append(item_id)
            self.metadata.append(metadata)
            self.numbers.extend(values)
        else:
            self.metadata[place] = metadata
            self.numbers[place * self.dimension : (place + 1) * self.dimension] = values

    def keep_only(self, item_ids: set[str]) -> None:
        """Drop the others; the last vector moves to the place of each."""
        for item_id in [item_id for item_id in self.ids if item_id not in item_ids]:
            place = self.places.pop(item_id)
            last_id, last_metadata = self.ids.pop(), self.metadata.pop()
            last = self.numbers[-self.dimension :]
            del self.numbers[-self.dimension :]
            if last_id != item_id:
                self.ids[place], self.metadata[place], self.places[last_id] = last_id, last_metadata, place
                self.numbers[place * self.dimension : (place + 1) * self.dimension] = last

    def nearest(self, unit: tuple[float, ...], top_k: int, wanted: set[tuple[str, str]]) -> list[VectorMatch]:
        """Return the nearest vectors that have all of ``wanted`` in their metadata, best first."""
        places: Sequence[int] = range(len(self.ids))
        if wanted:
            places = [place for place in places if wanted <= self.metadata[place].items()]
        if len(places) > top_k and (choose := _fast_choice()) is not None:
            places = choose(self.numbers, self.dimension, unit, places, top_k)
        size = self.dimension
        scored = (
            (-_cosine(self.numbers[place * size : place * size + size], unit), self.ids[place]) for place in places
        )
        best = heapq.nsmallest(top_k, scored)
        return [VectorMatch(item_id, max(-1.0, min(1.0, -score))) for score, item_id in best]


if sys.version_info >= (3, 12):
    from math import sumprod as _cosine
else:

    def _cosine(left: array[float], right: tuple[float, ...]) -> float:
        """Return the cosine of unit vectors by their distance, in half the time of adding up products."""
        return 1 - math.dist(left, right) ** 2 / 2


def _namespace_row(connection: sqlite3.Connection, key: tuple[str, str]) -> _NamespaceRow | None:
    row = cast("tuple[str, int, int, int] | None", connection.execute(_GET_NAMESPACE, key).fetchone())
    return None if row is None else _NamespaceRow(*row)


def _next_change(connection: sqlite3.Connection, key: tuple[str, str], dimension: int) -> int:
    """Return the number of the write that is going on; one that empties and fills anew may change the dimension."""
    row = _namespace_row(connection, key)
    if row is not None and row.dimension == dimension:
        connection.execute(_SET_CHANGED, (row.changed + 1, *key))
        return row.changed + 1
    if row is not None and connection.execute(_HAS_ANY, key).fetchone() is not None:
        _check_dimension(dimension, row.dimension)
    connection.execute(_PUT_NAMESPACE, (*key, secrets.token_hex(8), dimension))
    return 1


def _deleting(key: tuple[str, str], item_ids: Sequence[str]) -> Callable[[sqlite3.Connection], None]:
    def delete(connection: sqlite3.Connection) -> None:
        rows = [(*key, item_id) for item_id in item_ids]
        if connection.executemany(_DELETE, rows).rowcount > 0:
            connection.execute(_SET_DROPPED, key)

    return delete


def _check_dimension(given: int, expected: int) -> None:
    if given != expected:
        raise InvalidInputError(
            f"A vector has {given} numbers, those beside it have {expected}: another embedder made them. "
            "Use the same one, or another namespace.",
            {"dimension": given, "expected": expected},
        )


def _unit(values: Sequence[float]) -> tuple[float, ...]:
    length = math.hypot(*values)
    if not 0 < length < math.inf:
        raise InvalidInputError("A vector must have a direction: not all zeros, and only finite numbers")
    return tuple([value / length for value in values])


def _to_bytes(unit: tuple[float, ...]) -> bytes:
    singles = array("f", unit)
    if sys.byteorder == "big":
        singles.byteswap()
    return singles.tobytes()


def _from_bytes(body: bytes) -> array[float]:
    singles = array("f", body)
    if sys.byteorder == "big":
        singles.byteswap()
    return singles


@functools.cache
def _fast_choice() -> _Choice | None:
    """Return what finds the places worth measuring by numpy, or None where that is not installed."""
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return None

    def choose(
        numbers: array[float], dimension: int, unit: tuple[float, ...], places: Sequence[int], top_k: int
    ) -> list[int]:
        matrix = numpy.frombuffer(numbers, dtype=numpy.float32).reshape(-1, dimension)
        if len(places) < len(matrix):
            matrix = matrix[places]
        scores = matrix @ numpy.asarray(unit, dtype=numpy.float32)
        least = numpy.partition(scores, -top_k)[-top_k] - _SINGLE_ERROR
        return [places[row] for row in numpy.nonzero(scores >= least)[0]]

    return choose
