"""Vectors in the embedded database beyond their contract: what is held in memory stays what the file says."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.adapters.sqlite import vector_index
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.schema import VECTORS
from engine.adapters.sqlite.vector_index import MAX_NAMESPACES, SqliteVectorIndex
from engine.errors import InvalidInputError
from engine.ports.vector_index import VectorItem, VectorStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHECKOUT = Path(__file__).parents[2]
AXES = {"x": [1.0, 0.0, 0.0], "y": [0.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0]}

CHILD = """
import asyncio, sys
from pathlib import Path
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.schema import VECTORS
from engine.adapters.sqlite.vector_index import SqliteVectorIndex
from engine.ports.vector_index import VectorItem

async def main():
    database = SqliteDatabase(Path(sys.argv[1]), VECTORS)
    index = SqliteVectorIndex(database)
    await index.upsert_vectors("space", [VectorItem("x", [0.0, -1.0, 0.0]), VectorItem("new", [0.0, 1.0, 1.0])])
    await index.delete_vectors("space", ["y"])
    await database.aclose()

asyncio.run(main())
"""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "vectors.db", VECTORS)
    yield database
    await database.aclose()


@pytest.fixture
def index(database: SqliteDatabase) -> SqliteVectorIndex:
    return SqliteVectorIndex(database)


def items(count: int, dimension: int, seed: int = 1) -> list[VectorItem]:
    source = random.Random(seed)
    return [
        VectorItem(f"item-{number:05}", [source.gauss(0, 1) for _ in range(dimension)], {"tenth": str(number % 10)})
        for number in range(count)
    ]


async def ids_of(index: SqliteVectorIndex, values: list[float], namespace: str = "space", top_k: int = 10) -> list[str]:
    return [match.item_id for match in await index.query_vectors(namespace, values, top_k=top_k)]


async def test_another_process_writes_are_noticed(index: SqliteVectorIndex, database: SqliteDatabase) -> None:
    await index.upsert_vectors("space", [VectorItem(name, values) for name, values in AXES.items()])
    assert await ids_of(index, [1.0, 0.5, 0.2]) == ["x", "y", "z"]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(database.path), cwd=CHECKOUT, stderr=subprocess.PIPE
    )
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    assert await ids_of(index, [0.0, 1.0, 0.9]) == ["new", "z", "x"]
    assert await ids_of(SqliteVectorIndex(database), [0.0, 1.0, 0.9]) == ["new", "z", "x"]


async def test_two_indexes_on_one_file_always_agree(index: SqliteVectorIndex, tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "vectors.db", VECTORS)
    other = SqliteVectorIndex(database)
    source = random.Random(3)
    kept: dict[str, VectorItem] = {}
    for turn in range(60):
        writer, reader = (index, other) if turn % 2 else (other, index)
        if turn % 3 == 2:
            gone = source.sample(sorted(kept), k=min(len(kept), 7))
            await writer.delete_vectors("space", gone)
            kept = {item_id: item for item_id, item in kept.items() if item_id not in gone}
        else:
            changed = source.sample(items(80, 6, seed=turn), k=9)
            await writer.upsert_vectors("space", changed)
            kept |= {item.item_id: item for item in changed}
        asked = [source.gauss(0, 1) for _ in range(6)]
        fresh = await SqliteVectorIndex(database).query_vectors("space", asked, top_k=1000)
        assert {match.item_id for match in fresh} == set(kept)
        assert await reader.query_vectors("space", asked, top_k=1000) == fresh
        assert await writer.query_vectors("space", asked, top_k=1000) == fresh
    await database.aclose()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no database" * 1000)])
async def test_a_lost_file_is_begun_anew(index: SqliteVectorIndex, database: SqliteDatabase, damage) -> None:
    for _ in range(3):
        await index.upsert_vectors("space", [VectorItem(name, values) for name, values in AXES.items()])
    assert await ids_of(index, AXES["x"]) == ["x", "y", "z"]
    await database.aclose()
    damage(database.path)
    anew = SqliteDatabase(database.path, VECTORS)
    index._database = anew
    assert await ids_of(index, AXES["x"]) == []
    await index.upsert_vectors("space", [VectorItem("x", AXES["z"])])
    assert await ids_of(index, AXES["z"]) == ["x"]
    await anew.aclose()


async def test_a_file_lost_between_two_looks_is_noticed(index: SqliteVectorIndex, database: SqliteDatabase) -> None:
    await index.upsert_vectors("space", [VectorItem(name, values) for name, values in AXES.items()])
    assert await ids_of(index, AXES["x"]) == ["x", "y", "z"]
    for suffix in ("", "-wal", "-shm"):
        database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
    await index.upsert_vectors("space", [VectorItem("only", AXES["y"])])
    assert await ids_of(index, AXES["x"]) == ["only"]


async def test_an_emptied_namespace_takes_another_dimension(index: SqliteVectorIndex) -> None:
    await index.upsert_vectors("space", [VectorItem("a", [1.0, 0.0]), VectorItem("b", [0.0, 1.0])])
    assert await index.describe_namespace("space") == VectorStats(2, 2)
    assert await ids_of(index, [1.0, 0.0]) == ["a", "b"]
    with pytest.raises(InvalidInputError, match="embedder"):
        await index.upsert_vectors("space", [VectorItem("c", AXES["x"])])
    await index.delete_vectors("space", ["a", "b"])
    assert await index.describe_namespace("space") == VectorStats(None, 0)
    await index.upsert_vectors("space", [VectorItem("c", AXES["x"])])
    assert await ids_of(index, AXES["x"]) == ["c"]
    assert await index.describe_namespace("space") == VectorStats(3, 1)
    with pytest.raises(InvalidInputError):
        await index.query_vectors("space", [1.0, 0.0], top_k=1)


async def test_a_dropped_namespace_takes_another_dimension_everywhere(
    index: SqliteVectorIndex, database: SqliteDatabase
) -> None:
    other = SqliteVectorIndex(database)
    await index.upsert_vectors("space", [VectorItem(f"old-{name}", values) for name, values in AXES.items()])
    assert len(await ids_of(other, AXES["x"])) == 3
    await index.delete_namespace("space")
    assert await index.describe_namespace("space") == VectorStats(None, 0)
    await index.upsert_vectors("space", [VectorItem("new", [0.0, 1.0])])
    for one in (index, other):
        assert await ids_of(one, [0.0, 1.0]) == ["new"]
        with pytest.raises(InvalidInputError, match="embedder"):
            await one.query_vectors("space", AXES["x"], top_k=1)
    await index.delete_namespace("space")
    await index.upsert_vectors("space", [VectorItem("anew", AXES["z"])])
    assert await ids_of(other, AXES["z"]) == ["anew"]


async def test_not_more_namespaces_are_held_than_said(index: SqliteVectorIndex) -> None:
    for number in range(MAX_NAMESPACES + 5):
        await index.upsert_vectors(f"space-{number}", [VectorItem(f"item-{number}", AXES["x"])])
        await ids_of(index, AXES["x"], f"space-{number}")
        await ids_of(index, AXES["x"], "space-0")
    assert len(index._loaded) == MAX_NAMESPACES
    assert "space-0" in index._loaded
    for number in range(MAX_NAMESPACES + 5):
        assert await ids_of(index, AXES["x"], f"space-{number}") == [f"item-{number}"]


async def test_the_loop_turns_during_a_search(index: SqliteVectorIndex) -> None:
    await index.upsert_vectors("space", items(3000, 256))
    searching = asyncio.create_task(index.query_vectors("space", items(1, 256)[0].values, top_k=10))
    turns = 0
    while not searching.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 5
    assert searching.result()[0].item_id == "item-00000"


async def test_numpy_changes_nothing_but_the_time(index: SqliteVectorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy", reason="numpy is not installed, and needs not be")
    twins = [VectorItem(f"twin-{number}", items(1, 64)[0].values) for number in range(9)]
    await index.upsert_vectors("space", [*items(1500, 64), *twins])
    queries = [item.values for item in items(20, 64, seed=9)] + [twins[0].values]
    asked = [(values, top_k, where) for values in queries for top_k in (1, 5, 100) for where in (None, {"tenth": "3"})]
    fast = [await index.query_vectors("space", values, top_k=k, where=where) for values, k, where in asked]
    monkeypatch.setattr(vector_index, "_fast_choice", lambda: None)
    plain = [await index.query_vectors("space", values, top_k=k, where=where) for values, k, where in asked]
    assert fast == plain
