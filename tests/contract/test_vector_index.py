"""The contract of ``VectorIndex``. Reads may lag writes, so they are asked until they answer."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import InvalidInputError
from engine.ports.vector_index import VectorItem, VectorStats
from tests.contract.samples import AWKWARD_TEXTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.ports.vector_index import VectorIndex

DIMENSION = 8
"""Of the index that the fixture opens, where an index has one."""


def direction(axis: int, slant: float = 0.0) -> list[float]:
    """A vector along an axis, a little towards the next."""
    values = [0.0] * DIMENSION
    values[axis] = 1.0
    values[(axis + 1) % DIMENSION] = slant
    return values


def vectors(count: int, seed: int) -> list[list[float]]:
    source = random.Random(seed)
    return [[source.gauss(0, 1) for _ in range(DIMENSION)] for _ in range(count)]


def cosine(left: list[float], right: list[float]) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.hypot(*left) / math.hypot(*right)


async def eventually(ask: Callable[[], Awaitable[Any]], expected: Any) -> None:
    deadline = time.monotonic() + 10
    while (found := await ask()) != expected and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert found == expected


async def ids_of(index: VectorIndex, namespace: str, values: list[float], top_k: int = 10, **where: str) -> list[str]:
    return [match.item_id for match in await index.query_vectors(namespace, values, top_k=top_k, where=where)]


async def count_of(index: VectorIndex, namespace: str) -> int:
    return (await index.describe_namespace(namespace)).count


async def test_an_unknown_namespace_holds_nothing(vector_index: VectorIndex) -> None:
    assert await vector_index.query_vectors("nowhere", direction(0), top_k=5) == []
    await vector_index.delete_vectors("nowhere", ["a", "b"])
    await vector_index.delete_vectors("nowhere", [])
    await vector_index.upsert_vectors("nowhere", [])
    stats = await vector_index.describe_namespace("nowhere")
    assert stats.count == 0
    assert stats.dimension in (None, DIMENSION)


async def test_the_nearest_come_first_with_their_cosine(vector_index: VectorIndex) -> None:
    kept = {"east": direction(0), "north": direction(1), "between": direction(0, 1.0), "west": [-1.0, *[0.0] * 7]}
    await vector_index.upsert_vectors("space", [VectorItem(item_id, values) for item_id, values in kept.items()])
    await eventually(lambda: ids_of(vector_index, "space", direction(0, 0.1)), ["east", "between", "north", "west"])
    matches = await vector_index.query_vectors("space", direction(0, 0.1), top_k=10)
    for match in matches:
        assert match.score == pytest.approx(cosine(direction(0, 0.1), kept[match.item_id]), abs=1e-6)
    assert await ids_of(vector_index, "space", direction(0, 0.1), top_k=2) == ["east", "between"]
    assert await vector_index.describe_namespace("space") == VectorStats(dimension=DIMENSION, count=4)


async def test_lengths_do_not_matter_and_scores_stay_in_their_range(vector_index: VectorIndex) -> None:
    for number, values in enumerate(vectors(50, seed=3)):
        long = [value * 1e6 for value in values]
        await vector_index.upsert_vectors("space", [VectorItem(f"item-{number}", values)])
        await eventually(lambda long=long: ids_of(vector_index, "space", long, top_k=1), [f"item-{number}"])
        [best] = await vector_index.query_vectors("space", long, top_k=1)
        assert 1 - 1e-6 < best.score <= 1


async def test_ranks_are_those_of_exact_search(vector_index: VectorIndex) -> None:
    kept = {f"item-{number:03}": values for number, values in enumerate(vectors(400, seed=1))}
    await vector_index.upsert_vectors("space", [VectorItem(item_id, values) for item_id, values in kept.items()])
    await eventually(lambda: count_of(vector_index, "space"), 400)
    for asked in vectors(20, seed=2):
        ranked = sorted(kept, key=lambda item_id: -cosine(asked, kept[item_id]))
        assert await ids_of(vector_index, "space", asked) == ranked[:10]
    everything = await ids_of(vector_index, "space", direction(0), top_k=1000)
    assert sorted(everything) == sorted(kept)


async def test_equally_near_ones_come_by_id(vector_index: VectorIndex) -> None:
    await vector_index.upsert_vectors("space", [VectorItem(name, direction(2)) for name in "dbac"])
    await eventually(lambda: ids_of(vector_index, "space", direction(2)), ["a", "b", "c", "d"])


async def test_an_equal_id_is_replaced_with_its_metadata(vector_index: VectorIndex) -> None:
    await vector_index.upsert_vectors("space", [VectorItem("a", direction(0), {"agent": "x", "step": "one"})])
    await vector_index.upsert_vectors("space", [VectorItem("b", direction(1))])
    await eventually(lambda: ids_of(vector_index, "space", direction(0)), ["a", "b"])
    await vector_index.upsert_vectors("space", [VectorItem("a", direction(3), {"agent": "y"})])
    await eventually(lambda: ids_of(vector_index, "space", direction(3), top_k=1, agent="y"), ["a"])
    assert await ids_of(vector_index, "space", direction(3), agent="x") == []
    assert await ids_of(vector_index, "space", direction(3), step="one") == []
    assert await count_of(vector_index, "space") == 2
    [match] = await vector_index.query_vectors("space", direction(3), top_k=1)
    assert match.score == pytest.approx(1)


async def test_the_last_of_equal_ids_in_one_write_counts(vector_index: VectorIndex) -> None:
    items = [VectorItem("a", direction(axis), {"axis": str(axis)}) for axis in range(4)]
    await vector_index.upsert_vectors("space", items)
    await eventually(lambda: ids_of(vector_index, "space", direction(3), axis="3"), ["a"])
    assert await count_of(vector_index, "space") == 1


async def test_a_filter_wants_all_of_its_pairs(vector_index: VectorIndex) -> None:
    await vector_index.upsert_vectors(
        "space",
        [
            VectorItem("both", direction(0), {"agent": "x", "workflow": "w"}),
            VectorItem("one", direction(0), {"agent": "x", "workflow": "v"}),
            VectorItem("other", direction(0), {"agent": "y", "workflow": "w"}),
            VectorItem("none", direction(0)),
        ],
    )
    await eventually(lambda: ids_of(vector_index, "space", direction(0), agent="x"), ["both", "one"])
    assert await ids_of(vector_index, "space", direction(0), agent="x", workflow="w") == ["both"]
    assert await ids_of(vector_index, "space", direction(0), agent="z") == []
    assert await ids_of(vector_index, "space", direction(0), nothing="x") == []
    assert await ids_of(vector_index, "space", direction(0), workflow="w", top_k=1) == ["both"]
    assert len(await ids_of(vector_index, "space", direction(0))) == 4


async def test_a_filter_is_applied_before_the_best_are_taken(vector_index: VectorIndex) -> None:
    near = [VectorItem(f"near-{number}", direction(0), {"kind": "noise"}) for number in range(50)]
    await vector_index.upsert_vectors("space", [*near, VectorItem("far", direction(0, -3.0), {"kind": "wanted"})])
    await eventually(lambda: ids_of(vector_index, "space", direction(0), top_k=3, kind="wanted"), ["far"])


async def test_namespaces_know_nothing_of_one_another(vector_index: VectorIndex) -> None:
    for namespace in ("one", "two", "Two"):
        await vector_index.upsert_vectors(
            namespace, [VectorItem("same", direction(0)), VectorItem(namespace, direction(1))]
        )
    await vector_index.delete_vectors("two", ["same"])
    await eventually(lambda: ids_of(vector_index, "two", direction(0)), ["two"])
    await eventually(lambda: ids_of(vector_index, "one", direction(0)), ["same", "one"])
    await eventually(lambda: ids_of(vector_index, "Two", direction(0)), ["same", "Two"])
    assert [await count_of(vector_index, namespace) for namespace in ("one", "two", "Two")] == [2, 1, 2]


async def test_what_is_deleted_is_gone_and_may_come_again(vector_index: VectorIndex) -> None:
    kept = vectors(60, seed=5)
    await vector_index.upsert_vectors("space", [VectorItem(f"item-{n:02}", values) for n, values in enumerate(kept)])
    await eventually(lambda: count_of(vector_index, "space"), 60)
    await vector_index.delete_vectors("space", [f"item-{n:02}" for n in range(0, 60, 2)] + ["unknown"])
    await eventually(lambda: count_of(vector_index, "space"), 30)
    for number in range(60):
        [best] = await vector_index.query_vectors("space", kept[number], top_k=1)
        assert (best.item_id == f"item-{number:02}") == (number % 2 == 1)
    await vector_index.upsert_vectors("space", [VectorItem("item-00", kept[0])])
    await eventually(lambda: ids_of(vector_index, "space", kept[0], top_k=1), ["item-00"])
    await vector_index.delete_vectors("space", [f"item-{n:02}" for n in range(60)])
    await eventually(lambda: ids_of(vector_index, "space", kept[0]), [])


async def test_a_namespace_can_be_dropped_as_a_whole(vector_index: VectorIndex) -> None:
    await vector_index.delete_namespace("nowhere")
    for turn in range(2):
        kept = [VectorItem(f"item-{n}", values, {"turn": str(turn)}) for n, values in enumerate(vectors(120, seed=9))]
        await vector_index.upsert_vectors("space", kept)
        await vector_index.upsert_vectors("other", kept[:3])
        await eventually(lambda: count_of(vector_index, "space"), 120)
        assert len(await ids_of(vector_index, "space", direction(0), turn=str(turn))) == 10
        for _ in range(2):
            await vector_index.delete_namespace("space")
        await eventually(lambda: ids_of(vector_index, "space", direction(0)), [])
        assert await count_of(vector_index, "space") == 0
        assert await count_of(vector_index, "other") == 3
    await vector_index.upsert_vectors("space", [VectorItem("item-1", direction(4))])
    await eventually(lambda: ids_of(vector_index, "space", direction(4)), ["item-1"])


async def test_many_are_kept_in_one_call(vector_index: VectorIndex) -> None:
    kept = vectors(2345, seed=7)
    await vector_index.upsert_vectors("space", [VectorItem(f"item-{n}", values) for n, values in enumerate(kept)])
    await eventually(lambda: count_of(vector_index, "space"), 2345)
    for number in (0, 99, 100, 1000, 2344):
        assert await ids_of(vector_index, "space", kept[number], top_k=1) == [f"item-{number}"]
    await vector_index.delete_vectors("space", [f"item-{n}" for n in range(2300)])
    await eventually(lambda: count_of(vector_index, "space"), 45)


async def test_writers_at_once_lose_nothing(vector_index: VectorIndex) -> None:
    kept = vectors(40, seed=8)

    async def write(number: int) -> None:
        await vector_index.upsert_vectors("space", [VectorItem(f"item-{number}", kept[number])])
        await vector_index.query_vectors("space", kept[number], top_k=3)

    await asyncio.gather(*(write(number) for number in range(40)))
    await eventually(lambda: count_of(vector_index, "space"), 40)
    for number in range(40):
        assert await ids_of(vector_index, "space", kept[number], top_k=1) == [f"item-{number}"]


async def test_another_dimension_is_refused_and_writes_nothing(vector_index: VectorIndex) -> None:
    await vector_index.upsert_vectors("space", [VectorItem("a", direction(0))])
    await eventually(lambda: count_of(vector_index, "space"), 1)
    for wrong in ([1.0] * (DIMENSION + 1), [1.0] * (DIMENSION - 1)):
        with pytest.raises(InvalidInputError, match=rf"(?s){len(wrong)}.*{DIMENSION}"):
            await vector_index.upsert_vectors("space", [VectorItem("wrong", wrong)])
        with pytest.raises(InvalidInputError):
            await vector_index.upsert_vectors("space", [VectorItem("b", direction(1)), VectorItem("wrong", wrong)])
        with pytest.raises(InvalidInputError, match=rf"(?s){len(wrong)}.*{DIMENSION}"):
            await vector_index.query_vectors("space", wrong, top_k=1)
    assert await ids_of(vector_index, "space", direction(0)) == ["a"]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
async def test_what_has_no_direction_is_refused(vector_index: VectorIndex, value: float) -> None:
    values = [value] * DIMENSION
    with pytest.raises(InvalidInputError):
        await vector_index.upsert_vectors("space", [VectorItem("a", values)])
    with pytest.raises(InvalidInputError):
        await vector_index.query_vectors("space", values, top_k=1)
    assert await count_of(vector_index, "space") == 0


@pytest.mark.parametrize("text", [text for text in AWKWARD_TEXTS if 0 < len(text) <= 100] + ["50%25", "é" * 20])
async def test_awkward_ids_and_metadata_are_text(vector_index: VectorIndex, text: str) -> None:
    item = VectorItem(text, direction(0), {"key": text})
    await vector_index.upsert_vectors("space", [item, VectorItem("bystander", direction(1), {"key": "plain"})])
    await eventually(lambda: ids_of(vector_index, "space", direction(0), key=text), [text])
    await vector_index.delete_vectors("space", [text])
    await eventually(lambda: ids_of(vector_index, "space", direction(0)), ["bystander"])


async def test_half_a_surrogate_pair_is_refused(vector_index: VectorIndex) -> None:
    with pytest.raises(InvalidInputError, match="surrogate"):
        await vector_index.upsert_vectors("space", [VectorItem("\ud800", direction(0))])
    with pytest.raises(InvalidInputError, match="surrogate"):
        await vector_index.upsert_vectors("space", [VectorItem("a", direction(0), {"key": "\ud800"})])
    assert await count_of(vector_index, "space") == 0


async def test_health_names_the_backend(vector_index: Any) -> None:
    health = await vector_index.check_health()
    assert health.backend
    assert health.detail
