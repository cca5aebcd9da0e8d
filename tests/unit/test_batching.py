"""Writes that come together go together, and nobody waits without need."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine.adapters.batching import MAX_BATCH_BYTES, Batches, BatchFailure
from engine.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Store:
    """Answers an item with ten times the item, once ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.written: list[list[int]] = []
        self.failure: Exception | None = None

    async def write(self, items: Sequence[int]) -> list[int | BatchFailure]:
        self.written.append(list(items))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [BatchFailure(StoreError(f"no {item}")) if item < 0 else item * 10 for item in items]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_idle_store_is_written_at_once_with_all_of_one_turn() -> None:
    store = Store()
    batches = Batches[int, int](store.write, 100)
    asked = [asyncio.create_task(batches.add(number)) for number in range(5)]
    # No timer can have run out in a few turns of the loop.
    await turns()
    assert store.written == [[0, 1, 2, 3, 4]]
    assert await asyncio.gather(*asked) == [0, 10, 20, 30, 40]


async def test_what_comes_meanwhile_goes_out_together_within_2_ms() -> None:
    store = Store()
    store.gate.clear()
    batches = Batches[int, int](store.write, 100)
    asked = [asyncio.create_task(batches.add(0))]
    await turns()
    asked += [asyncio.create_task(batches.add(number)) for number in (1, 2)]
    await turns()
    assert store.written == [[0]]
    await asyncio.sleep(0.05)
    assert store.written == [[0], [1, 2]]
    store.gate.set()
    assert await asyncio.gather(*asked) == [0, 10, 20]


async def test_a_full_batch_goes_out_by_itself() -> None:
    store = Store()
    store.gate.clear()
    batches = Batches[int, int](store.write, 3)
    asked = [asyncio.create_task(batches.add(number)) for number in range(7)]
    await turns(2)
    assert store.written == [[0, 1, 2], [3, 4, 5]]
    asked.append(asyncio.create_task(batches.add(7, MAX_BATCH_BYTES)))
    await turns()
    assert store.written[2:] == [[6, 7]]
    store.gate.set()
    await asyncio.gather(*asked)


async def test_one_items_failure_is_its_own() -> None:
    batches = Batches[int, int](Store().write, 100)
    answers = await asyncio.gather(*(batches.add(item) for item in (1, -2, 3)), return_exceptions=True)
    assert (answers[0], answers[2]) == (10, 30)
    assert isinstance(answers[1], StoreError)


async def test_a_failed_write_is_everyones_with_an_exception_each() -> None:
    store = Store()
    cause = OSError("gone")
    store.failure = StoreError("away")
    store.failure.__cause__ = cause
    batches = Batches[int, int](store.write, 100)
    answers = await asyncio.gather(*(batches.add(item) for item in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away"] * 3
    assert len({id(answer) for answer in answers}) == 3
    assert all(isinstance(answer, StoreError) and answer.__cause__ is cause for answer in answers)
    store.failure = None
    assert await batches.add(4) == 40


async def test_who_is_gone_before_the_write_is_not_written() -> None:
    store = Store()
    store.gate.clear()
    batches = Batches[int, int](store.write, 100)
    first = asyncio.create_task(batches.add(1))
    await turns()
    gone, stays = asyncio.create_task(batches.add(2)), asyncio.create_task(batches.add(3))
    await turns(1)
    gone.cancel()
    first.cancel()
    store.gate.set()
    assert await stays == 30
    assert store.written == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_closing_writes_what_waits() -> None:
    store = Store()
    store.gate.clear()
    batches = Batches[int, int](store.write, 100)
    asked = [asyncio.create_task(batches.add(1))]
    await turns()
    asked.append(asyncio.create_task(batches.add(2)))
    await turns(1)
    closing = asyncio.create_task(batches.aclose())
    await turns()
    assert not closing.done()
    store.gate.set()
    await closing
    assert await asyncio.gather(*asked) == [10, 20]
    await batches.aclose()
