"""Context items in MongoDB: one document each, replaced whole, with a mark while it waits to be indexed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

import pymongo
from pymongo import ReplaceOne, UpdateOne

from engine.adapters.mongodb.schema import BEHIND_ALL, TENANT, Document, key, position
from engine.adapters.packing import instant_text, pack, unpack
from engine.domain.context import ContextItem, NamespaceOwner
from engine.domain.page import Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pymongo.asynchronous.collection import AsyncCollection

    from engine.adapters.codec import Codec
    from engine.adapters.mongodb.connection import MongoDatabase
    from engine.domain.context import ContextFilter
    from engine.domain.page import Position
    from engine.ports.health import StoreHealth

__all__ = ["MongoContextStore", "items_query"]

MARK_ALL_DEADLINE: Final = timedelta(minutes=10)


class MongoContextStore:
    """A ``ContextStore`` on MongoDB; whoever made the database closes it."""

    def __init__(self, database: MongoDatabase, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    async def put_items(self, items: list[ContextItem]) -> None:
        """Store items under their ids in one command, replacing equal ids; of equal ids the last one counts."""
        documents = [self._document(item) for item in {item.item_id: item for item in items}.values()]
        if documents:
            writes = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents]
            await self._database.run(lambda: self._items.bulk_write(writes, ordered=False))

    async def get_items(self, item_ids: list[str]) -> dict[str, ContextItem]:
        """Return those that exist, by id."""
        keys = [key(item_id) for item_id in dict.fromkeys(item_ids)]
        if not keys:
            return {}
        found = await self._read(lambda: self._items.find({"_id": {"$in": keys}}).to_list(None))
        return {item.item_id: item for item in found}

    async def list_items(self, query: ContextFilter, *, limit: int, after: Position | None) -> Page[ContextItem]:
        """Return items, newest first."""
        chosen, index = items_query(query, after)
        found = await self._database.run(
            lambda: self._items.find(chosen, sort=[("position", -1)], limit=limit + 1, hint=index).to_list(None)
        )
        items = [self._item(document) for document in found[:limit]]
        if len(found) <= limit:
            return Page(items)
        return Page(items, (instant_text(items[-1].created_at), items[-1].item_id))

    async def list_unindexed(self, limit: int) -> list[ContextItem]:
        """Return items that wait to be indexed, oldest first."""
        waiting: Document = {"tenant": TENANT, "is_unindexed": True}
        return await self._read(
            lambda: self._items.find(waiting, sort=[("position", 1)], limit=limit, hint="unindexed_items").to_list(None)
        )

    async def mark_indexed(self, items: list[ContextItem]) -> None:
        """Say that these are indexed; one that was replaced meanwhile goes on waiting."""
        writes = [
            UpdateOne({"_id": key(item.item_id), "text_hash": item.text_hash}, {"$set": {"is_unindexed": False}})
            for item in items
        ]
        if writes:
            await self._database.run(lambda: self._items.bulk_write(writes, ordered=False))

    async def mark_unindexed(self, query: ContextFilter) -> int:
        """Let everything that matches wait for indexing again, however long it takes; return how many items."""
        chosen = {"tenant": TENANT, **_given(query)}

        async def mark() -> int:
            with pymongo.timeout(MARK_ALL_DEADLINE.total_seconds()):
                return (await self._items.update_many(chosen, {"$set": {"is_unindexed": True}})).matched_count

        return await self._database.run(mark, MARK_ALL_DEADLINE)

    async def get_namespace_owner(self, namespace: str) -> NamespaceOwner | None:
        """Return which embedder a namespace belongs to; None when nobody has said so yet."""
        found = await self._database.run(lambda: self._namespaces.find_one({"_id": key(namespace)}))
        return None if found is None else unpack(self._codec, NamespaceOwner, cast("bytes", found["body"]))

    async def put_namespace_owner(self, namespace: str, owner: NamespaceOwner) -> None:
        """Remember which embedder a namespace belongs to from now on."""
        document: Document = {"_id": key(namespace), "tenant": TENANT, "body": pack(self._codec, owner)}
        await self._database.run(lambda: self._namespaces.replace_one({"_id": document["_id"]}, document, upsert=True))

    async def check_health(self) -> StoreHealth:
        """Ask the primary for a document."""
        return await self._database.check_health()

    @property
    def _items(self) -> AsyncCollection[Document]:
        return self._database.collection("context_items")

    @property
    def _namespaces(self) -> AsyncCollection[Document]:
        return self._database.collection("context_namespaces")

    async def _read(self, find: Callable[[], Awaitable[list[Document]]]) -> list[ContextItem]:
        return [self._item(document) for document in await self._database.run(find)]

    def _document(self, item: ContextItem) -> Document:
        body = pack(self._codec, item)
        self._database.check_size(body, f"context item {item.item_id}")
        return {
            "_id": key(item.item_id),
            "tenant": TENANT,
            "position": position((instant_text(item.created_at), item.item_id)),
            "definition_id": item.definition_id,
            "execution_id": item.execution_id,
            "agent_id": item.agent_id,
            "text_hash": item.text_hash,
            "is_unindexed": True,
            "body": body,
        }

    def _item(self, document: Document) -> ContextItem:
        return unpack(self._codec, ContextItem, cast("bytes", document["body"]))


def items_query(query: ContextFilter, after: Position | None) -> tuple[Document, str]:
    """Return the filter of a page of a list, and the index that has its order."""
    chosen: Document = {"tenant": TENANT, "position": {"$lt": position(after or BEHIND_ALL)}, **_given(query)}
    if query.execution_id is not None:
        return chosen, "items_of_execution"
    if query.definition_id is not None:
        return chosen, "items_of_definition"
    return chosen, "items_by_time" if query.agent_id is None else "items_of_agent"


def _given(query: ContextFilter) -> Document:
    given = {
        "definition_id": query.definition_id,
        "execution_id": query.execution_id,
        "agent_id": query.agent_id,
    }
    return {field: value for field, value in given.items() if value is not None}
