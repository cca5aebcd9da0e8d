"""Large values in the embedded database, named by their content, in chunks of 4 MiB.

Each chunk is a write of its own, so that a large value holds up nobody's small one; the value exists once its
last chunk does. Packing and hashing happen in a thread, since they can take a good part of a second.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from engine.adapters.artifact_packing import digest, pack_artifact
from engine.adapters.sqlite.health import database_health
from engine.adapters.sqlite.schema import TENANT
from engine.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from engine.adapters.codec import Codec
    from engine.adapters.sqlite.database import SqliteDatabase
    from engine.domain.json import JsonValue
    from engine.ports.health import StoreHealth

__all__ = ["SqliteArtifactStore"]

_HAS = "SELECT 1 FROM artifacts WHERE tenant = ? AND artifact_id = ?"
_INSERT_CHUNK = """INSERT INTO artifact_chunks (tenant, stored_hash, position, body) VALUES (?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_INSERT = """INSERT INTO artifacts (tenant, artifact_id, size_bytes, stored_hash) VALUES (?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
_CHUNKS = """SELECT a.stored_hash, c.body FROM artifacts AS a
    CROSS JOIN artifact_chunks AS c ON c.tenant = a.tenant AND c.stored_hash = a.stored_hash
    WHERE a.tenant = ? AND a.artifact_id = ? ORDER BY c.position"""


class SqliteArtifactStore:
    """An ``ArtifactStore`` on an embedded database, which it does not own."""

    def __init__(self, database: SqliteDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def put_artifact(self, value: JsonValue) -> tuple[str, int]:
        """Store a value; return its id and its size in bytes before compression.

        Raises:
            LimitExceededError: it is over 64 MiB.
        """
        packed = await asyncio.to_thread(pack_artifact, self._codec, value)
        key = (TENANT, packed.artifact_id)
        if await self._database.read(lambda connection: connection.execute(_HAS, key).fetchone()) is not None:
            return packed.artifact_id, packed.size_bytes
        stored_hash = await asyncio.to_thread(digest, packed.stored)
        head = (*key, packed.size_bytes, stored_hash)
        chunks = packed.chunks()
        last = len(chunks) - 1
        for position, chunk in enumerate(chunks):
            row = (TENANT, stored_hash, position, chunk)
            await self._database.write(_writing(row, head if position == last else None))
        return packed.artifact_id, packed.size_bytes

    async def get_artifact(self, artifact_id: str) -> JsonValue:
        """Return the value. Raises ``StoreError`` when it is not there or damaged."""

        def get(connection: sqlite3.Connection) -> list[tuple[str, bytes]]:
            rows = connection.execute(_CHUNKS, (TENANT, artifact_id)).fetchall()
            return cast("list[tuple[str, bytes]]", rows)

        chunks = await self._database.read(get)
        if not chunks:
            raise StoreError(
                f"The artifact {artifact_id} is lost: something refers to it and it is not in {self._database.path}. "
                "Restore the file from a backup, or run the execution again.",
                {"artifact_id": artifact_id},
            )
        return await asyncio.to_thread(self._unpack, artifact_id, chunks)

    async def check_health(self) -> StoreHealth:
        """Make one empty transaction."""
        return await database_health(self._database)

    def _unpack(self, artifact_id: str, chunks: list[tuple[str, bytes]]) -> JsonValue:
        stored = b"".join(body for _, body in chunks)
        if digest(stored) != chunks[0][0]:
            raise StoreError(
                f"The artifact {artifact_id} is damaged in {self._database.path}. "
                "Restore the file from a backup, or run the execution again.",
                {"artifact_id": artifact_id},
            )
        return self._codec.decode(stored)


def _writing(chunk: tuple[object, ...], head: tuple[object, ...] | None) -> Callable[[sqlite3.Connection], None]:
    def write(connection: sqlite3.Connection) -> None:
        connection.execute(_INSERT_CHUNK, chunk)
        if head is not None:
            connection.execute(_INSERT, head)

    return write
