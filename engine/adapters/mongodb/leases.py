"""Leases by the server's clock: one find-and-update asks whether a lease is free and takes it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from pymongo import ReturnDocument, errors

from engine.adapters.mongodb.schema import Document, key
from engine.ports.execution_store import Lease

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

    from engine.adapters.mongodb.connection import MongoDatabase

__all__ = ["MongoLeases"]

_MILLISECOND: Final = timedelta(milliseconds=1)
_IS_HELD: Final[Document] = {"$gt": ["$expires_at", "$$NOW"]}


class MongoLeases:
    """The leases of one database."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database

    async def acquire(self, name: str, holder: str, ttl: timedelta) -> Lease | None:
        """Take or renew a lease; None while another holder has it."""
        # A filter may not compare with the clock where it may insert, so the comparison is in the update.
        is_mine: Document = {"$or": [{"$eq": ["$holder", {"$literal": holder}]}, {"$not": [_IS_HELD]}]}
        until = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": max(1, ttl // _MILLISECOND)}}
        taking: list[Document] = [
            {"$set": {"is_mine": is_mine}},
            {
                "$set": {
                    "holder": {"$cond": ["$is_mine", {"$literal": holder}, "$holder"]},
                    "expires_at": {"$cond": ["$is_mine", until, "$expires_at"]},
                }
            },
            {"$unset": "is_mine"},
        ]

        async def take() -> Document | None:
            try:
                return await self._leases.find_one_and_update(
                    {"_id": key(name)}, taking, upsert=True, return_document=ReturnDocument.AFTER
                )
            except errors.DuplicateKeyError:
                # Two that ask for a lease nobody ever had: the other one has it now.
                return None

        document = await self._database.run(take)
        if document is None or document["holder"] != holder:
            return None
        return Lease(cast("str | None", document.get("mark")))

    async def leave_mark(self, name: str, holder: str, mark: str) -> bool:
        """Store how far the holder has come; False when it has lost the lease."""
        held: Document = {"_id": key(name), "holder": holder, "$expr": _IS_HELD}
        done = await self._database.run(lambda: self._leases.update_one(held, {"$set": {"mark": mark}}))
        return done.matched_count == 1

    async def release(self, name: str, holder: str) -> None:
        """End a lease, if it is still held; the mark stays."""
        ending: list[Document] = [{"$set": {"expires_at": "$$NOW"}}]
        await self._database.run(lambda: self._leases.update_one({"_id": key(name), "holder": holder}, ending))

    @property
    def _leases(self) -> AsyncCollection[Document]:
        return self._database.collection("leases")
