"""Large values in MongoDB, named by their content, in chunks of 4 MiB.

Each chunk is a call of its own with its own time limit; the value exists once its head does, which is written last. Of
a write that was broken off only chunks are left, and the next one finds them. Packing and hashing happen in a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from pymongo import errors

from engine.adapters.artifact_packing import digest, pack_artifact
from engine.adapters.mongodb.schema import Document, key
from engine.errors import StoreError

if TYPE_CHECKING:
    from engine.adapters.codec import Codec
    from engine.adapters.mongodb.connection import MongoDatabase
    from engine.domain.json import JsonValue
    from engine.ports.health import StoreHealth

__all__ = ["MongoArtifactStore"]

_HEADS = "artifacts"
_CHUNKS = "artifact_chunks"


class MongoArtifactStore:
    """An ``ArtifactStore`` on MongoDB; whoever made the database closes it."""

    def __init__(self, database: MongoDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def put_artifact(self, value: JsonValue) -> tuple[str, int]:
        """Store a value; return its id and its size in bytes before compression.

        Raises:
            LimitExceededError: it is over 64 MiB.
        """
        packed = await asyncio.to_thread(pack_artifact, self._codec, value)
        head_id = key(packed.artifact_id)
        if await self._find(_HEADS, head_id) is None:
            stored_hash = await asyncio.to_thread(digest, packed.stored)
            chunks = packed.chunks()
            for place, chunk in enumerate(chunks):
                await self._insert(_CHUNKS, {"_id": key(stored_hash, place), "body": chunk})
            head = {"size_bytes": packed.size_bytes, "stored_hash": stored_hash, "chunks": len(chunks)}
            await self._insert(_HEADS, {"_id": head_id, **head})
        return packed.artifact_id, packed.size_bytes

    async def get_artifact(self, artifact_id: str) -> JsonValue:
        """Return the value. Raises ``StoreError`` when it is not there or damaged."""
        head = await self._find(_HEADS, key(artifact_id))
        if head is None:
            raise self._lost(artifact_id, "is lost: something refers to it and it is not in")
        stored_hash = cast("str", head["stored_hash"])
        chunks: list[bytes] = []
        for place in range(cast("int", head["chunks"])):
            chunk = await self._find(_CHUNKS, key(stored_hash, place))
            if chunk is None:
                raise self._lost(artifact_id, "is damaged: a part of it is not in")
            chunks.append(cast("bytes", chunk["body"]))
        return await asyncio.to_thread(self._unpack, artifact_id, stored_hash, chunks)

    async def check_health(self) -> StoreHealth:
        """Ask the primary for a document."""
        return await self._database.check_health()

    async def _find(self, collection: str, document_id: str) -> Document | None:
        return await self._database.run(lambda: self._database.collection(collection).find_one({"_id": document_id}))

    async def _insert(self, collection: str, document: Document) -> None:
        async def insert() -> None:
            try:
                await self._database.collection(collection).insert_one(document)
            except errors.DuplicateKeyError:
                # It is named by its content.
                return

        await self._database.run(insert)

    def _unpack(self, artifact_id: str, stored_hash: str, chunks: list[bytes]) -> JsonValue:
        stored = b"".join(chunks)
        if digest(stored) != stored_hash:
            raise self._lost(artifact_id, "is damaged in")
        return self._codec.decode(stored)

    def _lost(self, artifact_id: str, says: str) -> StoreError:
        return StoreError(
            f"The artifact {artifact_id} {says} MongoDB at {self._database.address}. "
            "Restore the database from a backup, or run the execution again.",
            {"artifact_id": artifact_id},
        )
