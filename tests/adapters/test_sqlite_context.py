"""Context items in the embedded database beyond their contracts: older files, damaged rows, the size of the words."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING

import pytest

from engine.adapters.codec import Codec
from engine.adapters.packing import instant_text
from engine.adapters.sqlite.context_store import LIST_STATEMENTS, SqliteContextStore
from engine.adapters.sqlite.context_words import MAX_WORDS, question_of
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.schema import RECORDS, TENANT, Schema
from engine.domain.context import ContextFilter, ContextItem
from engine.errors import StoreError
from tests.contract.samples import NOW, context_item, seconds

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator
    from pathlib import Path

EVERYTHING = ContextFilter()
PUT_BEFORE = """INSERT INTO context_items
    (tenant, item_id, created_at, scope, definition_id, execution_id, agent_id, text_hash, is_unindexed, body)
    VALUES (?, ?, ?, 'execution', ?, ?, ?, ?, ?, ?)"""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "baton.db")
    yield database
    await database.aclose()


@pytest.fixture
def store(database: SqliteDatabase) -> SqliteContextStore:
    return SqliteContextStore(database, Codec())


async def check_words(database: SqliteDatabase) -> None:
    """Let the index of words check itself: it fails when it was told to forget what it never had."""
    await database.write(
        lambda plain: plain.execute("INSERT INTO context_words (context_words) VALUES ('integrity-check')") and None
    )


def body_before(item: ContextItem) -> bytes:
    """As Baton packed an item when it had a scope."""
    return Codec().encode({**item.model_dump(mode="json"), "scope": "execution"})


async def test_items_of_an_older_file_are_all_there_and_found_by_their_words(tmp_path: Path) -> None:
    items = [
        context_item(
            f"item-{number:03}",
            f"word{number} and more",
            execution_id=f"e-{number % 7}",
            created_at=NOW + seconds(number),
        )
        for number in range(450)
    ]
    older = SqliteDatabase(tmp_path / "baton.db", Schema(RECORDS.migrations[:4]))

    def fill(plain: sqlite3.Connection) -> None:
        for number, item in enumerate(items):
            body = b"damaged" if number == 300 else body_before(item)
            at = instant_text(item.created_at)
            ids = (item.definition_id, item.execution_id, item.agent_id, item.text_hash)
            plain.execute(PUT_BEFORE, (TENANT, item.item_id, at, *ids, number % 2, body))

    await older.write(fill)
    await older.aclose()

    database = SqliteDatabase(tmp_path / "baton.db")
    store = SqliteContextStore(database, Codec())
    assert await store.get_items(["item-007"]) == {"item-007": items[7]}
    replaced = items[5].model_copy(update={"text": "something else"})
    await store.put_items([replaced])
    assert [item.item_id for item in await store.list_unindexed(3)] == ["item-001", "item-003", "item-005"]
    page = await store.list_items(ContextFilter(execution_id="e-3"), limit=2, after=None)
    assert [item.item_id for item in page.items] == ["item-444", "item-437"]
    writes = database.writes
    for number in (0, 7, 199, 200, 449):
        assert await store.find_by_words(f"word{number}", EVERYTHING, limit=5) == [f"item-{number:03}"]
    assert database.writes - writes == 3, "the words of older rows are made once, 200 rows a write"
    assert await store.find_by_words("word5 word300", EVERYTHING, limit=5) == []
    assert await store.find_by_words("else", EVERYTHING, limit=5) == ["item-005"]
    assert len(await store.find_by_words("more", ContextFilter(execution_id="e-3"), limit=100)) == 64
    with pytest.raises(StoreError):
        await store.get_items(["item-300"])
    await store.put_items([items[300], items[7].model_copy(update={"text": "new"})])
    assert await store.find_by_words("word300 new", EVERYTHING, limit=5) == ["item-007", "item-300"]
    await check_words(database)
    await database.aclose()


async def test_a_damaged_item_can_be_replaced(store: SqliteContextStore, database: SqliteDatabase) -> None:
    await store.put_items([context_item("a", "first words"), context_item("b", "other words")])
    await database.write(lambda plain: plain.execute("UPDATE context_items SET body = x'99'").rowcount)
    await store.put_items([context_item("b", "healed thoughts")])
    assert await store.find_by_words("healed", EVERYTHING, limit=5) == ["b"]
    await store.put_items([context_item("c", "one more"), context_item("a", "healed too")])
    assert await store.find_by_words("first other words", EVERYTHING, limit=5) == []
    assert set(await store.find_by_words("healed", EVERYTHING, limit=5)) == {"a", "b"}
    assert list(await store.get_items(["a", "b"])) == ["a", "b"]
    await check_words(database)


async def test_words_are_those_of_the_rows_after_any_order_of_writes(
    store: SqliteContextStore, database: SqliteDatabase
) -> None:
    for turn in range(40):
        await store.put_items(
            [
                context_item(f"item-{(turn * 7 + n) % 11}", f"t{turn}n{n} common", execution_id=f"e-{turn % 3}")
                for n in range(4)
            ]
        )
    page = await store.list_items(EVERYTHING, limit=20, after=None)
    assert len(page.items) == 11
    for item in page.items:
        word = item.text.split()[0]
        assert await store.find_by_words(word, EVERYTHING, limit=5) == [item.item_id]
    assert len(await store.find_by_words("common", EVERYTHING, limit=100)) == 11
    count = "SELECT count(*) FROM context_words WHERE context_words MATCH 'common'"
    assert await database.read(lambda plain: plain.execute(count).fetchone()) == (11,)
    await check_words(database)


async def test_a_neighbours_failing_write_leaves_no_words_twice(
    store: SqliteContextStore, database: SqliteDatabase
) -> None:
    gate = threading.Event()

    def hold(plain: sqlite3.Connection) -> None:
        gate.wait(30)

    def fail(plain: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    await store.put_items([context_item("a", "before")])
    holding = asyncio.create_task(database.write(hold))
    calls = [store.put_items([context_item("a", "after"), context_item("b", "after")]), database.write(fail)]
    writes = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    gate.set()
    answers = await asyncio.gather(holding, *writes, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), type(None), ZeroDivisionError]
    assert await store.find_by_words("before after", EVERYTHING, limit=5) == ["a", "b"]
    count = "SELECT count(*) FROM context_words WHERE context_words MATCH 'after OR before'"
    assert await database.read(lambda plain: plain.execute(count).fetchone()) == (2,)
    await check_words(database)


async def test_the_words_take_less_room_than_the_texts(store: SqliteContextStore, database: SqliteDatabase) -> None:
    texts = [" ".join(f"word{(number * 31 + n * n) % 997}" for n in range(200)) for number in range(300)]
    await store.put_items([context_item(f"item-{number}", text) for number, text in enumerate(texts)])
    tables = "SELECT sum(length(block)) FROM context_words_data"
    (words_bytes,) = await database.read(lambda plain: plain.execute(tables).fetchone())
    assert words_bytes < sum(map(len, texts)) * 0.6


async def test_what_a_second_filter_leaves_out_is_passed_over_in_the_index(database: SqliteDatabase) -> None:
    for statement in LIST_STATEMENTS:
        if " IS NULL OR " in statement:
            values = range(max(int(number) for number in re.findall(r"\?(\d)", statement)))
            explain = f"EXPLAIN {statement}"
            program = await database.read(lambda plain, e=explain, v=tuple(values): plain.execute(e, v).fetchall())
            # The row is sought only when a column is wanted that the index does not have.
            assert "DeferredSeek" in {operation for _, operation, *_ in program}, statement


async def test_a_search_in_one_execution_ranks_its_own_words_only(
    store: SqliteContextStore, database: SqliteDatabase
) -> None:
    await store.put_items(
        [context_item(f"item-{number}", "common word", execution_id=f"e-{number // 10}") for number in range(2000)]
    )
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    async def steps_of(query: ContextFilter) -> int:
        nonlocal steps
        steps = 0

        def search(plain: sqlite3.Connection) -> list[tuple[str]]:
            plain.set_progress_handler(count, 10)
            try:
                question = question_of("common word", query)
                return plain.execute(
                    "SELECT rowid FROM context_words WHERE context_words MATCH ? ORDER BY rank LIMIT 5", (question,)
                ).fetchall()
            finally:
                plain.set_progress_handler(None, 0)

        assert len(await database.read(search)) == 5
        return steps

    assert await steps_of(ContextFilter(execution_id="e-7")) * 20 < await steps_of(EVERYTHING)


def test_a_question_has_a_bound_and_says_nothing_but_words() -> None:
    question = question_of(" ".join(f"w{number}" for number in range(1000)), EVERYTHING)
    assert question is not None
    assert question.count('"') == 2 * MAX_WORDS
    assert question_of("w " * 1_000_000, EVERYTHING) == 'text : ("w")'
    assert question_of("Disk disk DISK", EVERYTHING) == 'text : ("DISK")'
    assert question_of("!!! ___ \x00", EVERYTHING) is None
