"""Gates as documents of their own, fenced like steps; what is over leaves the indexes of what is open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from pymongo import ReplaceOne, errors

from engine.adapters.mongodb.schema import BEFORE_ALL, TENANT, Document, key, position
from engine.adapters.mongodb.step_writes import DUPLICATE_KEY, write_errors
from engine.adapters.packing import instant_text, pack, unpack
from engine.domain.gate import GateRecord
from engine.domain.page import Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from engine.adapters.codec import Codec
    from engine.adapters.mongodb.connection import MongoDatabase
    from engine.domain.page import Position
    from engine.ports.execution_store import GateFilter

__all__ = ["MongoGates", "gates_query"]

_PAUSE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class _Query:
    """A page of a list: its filter, and the index that has its order."""

    filter: Document
    index: str


class MongoGates:
    """The gates of one database."""

    def __init__(self, database: MongoDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def put(self, gates: Sequence[GateRecord]) -> None:
        """Write gates, each unless a greater token stands."""
        latest: dict[str, Document] = {}
        for gate in sorted(gates, key=lambda gate: gate.token):
            document = _document(self._codec, gate)
            self._database.check_size(cast("bytes", document["body"]), f"gate {gate.gate_id} of {gate.execution_id}")
            latest[cast("str", document["_id"])] = document
        if latest:
            await self._database.run(lambda: self._put_all(list(latest.values())))

    async def get(self, execution_id: str, gate_id: str) -> GateRecord | None:
        """Return a gate, open or not, or None."""
        found = await self._database.run(lambda: self._gates.find_one({"_id": key(execution_id, gate_id)}))
        return None if found is None else self._gate_in(found)

    async def list_open(self, query: GateFilter, limit: int, after: Position | None) -> Page[GateRecord]:
        """Return a page of open gates, oldest first."""
        listed = gates_query(query, after)
        found = await self._database.run(
            lambda: self._gates.find(listed.filter, sort=[("position", 1)], limit=limit + 1, hint=listed.index).to_list(
                None
            )
        )
        gates = [self._gate_in(document) for document in found[:limit]]
        return Page(gates, _position_of(gates[-1]) if len(found) > limit else None)

    async def _put_all(self, documents: list[Document]) -> None:
        """Send what is left until each is written or met a greater token.

        What it may not replace an upsert does not match, so that it meets the ``_id`` that is there; but so may two
        first writes of one gate.
        """
        while documents:
            operations = [
                ReplaceOne({"_id": document["_id"], "token": {"$lte": document["token"]}}, document, upsert=True)
                for document in documents
            ]
            try:
                await self._gates.bulk_write(operations, ordered=False)
            except errors.BulkWriteError as error:
                refused: list[Document] = []
                for index, code, text in write_errors(error):
                    if code != DUPLICATE_KEY:
                        raise errors.WriteError(text, code) from error
                    refused.append(documents[index])
            else:
                return
            stored = self._gates.find({"_id": {"$in": [document["_id"] for document in refused]}}, {"token": 1})
            tokens = {document["_id"]: cast("int", document["token"]) for document in await stored.to_list(None)}
            documents = [
                document for document in refused if tokens.get(document["_id"], 0) <= cast("int", document["token"])
            ]
            if documents:
                await asyncio.sleep(_PAUSE_SECONDS)

    @property
    def _gates(self) -> AsyncCollection[Document]:
        return self._database.collection("gates")

    def _gate_in(self, document: Document) -> GateRecord:
        return unpack(self._codec, GateRecord, cast("bytes", document["body"]))


def gates_query(query: GateFilter, after: Position | None) -> _Query:
    """Return how to find a page of open gates, oldest first."""
    chosen: Document = {"tenant": TENANT, "is_open": True, "position": {"$gt": position(after or BEFORE_ALL)}}
    if query.execution_id is not None:
        chosen["execution_id"] = query.execution_id
    if query.definition_id is not None:
        chosen["definition_id"] = query.definition_id
    if query.assignee is not None:
        chosen["assignees"] = query.assignee
    if query.execution_id is not None:
        return _Query(chosen, "gates_of_execution")
    if query.assignee is not None:
        return _Query(chosen, "gates_of_assignee")
    return _Query(chosen, "open_gates" if query.definition_id is None else "gates_of_definition")


def _document(codec: Codec, gate: GateRecord) -> Document:
    document: Document = {
        "_id": key(gate.execution_id, gate.gate_id),
        "tenant": TENANT,
        "token": gate.token,
        "status": gate.status,
        "body": pack(codec, gate),
    }
    if gate.status == "open":
        document |= {
            "is_open": True,
            "position": position(_position_of(gate)),
            "execution_id": gate.execution_id,
            "definition_id": gate.definition_id,
            "assignees": gate.assignees,
        }
    return document


def _position_of(gate: GateRecord) -> Position:
    return (instant_text(gate.opened_at), f"{gate.execution_id}\n{gate.gate_id}")
