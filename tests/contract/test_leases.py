"""The contract of leases, and of the list of open executions that the holder of one works through."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.execution import ExecutionStatus
from engine.ports.execution_store import ExecutionFilter, Lease
from tests.contract.samples import NOW, ended, execution, seconds, step, walk

if TYPE_CHECKING:
    from engine.ports.execution_store import ExecutionStore

LONG = timedelta(minutes=1)
SHORT = timedelta(milliseconds=300)


async def test_a_lease_is_one_holders_at_a_time(execution_store: ExecutionStore) -> None:
    assert await execution_store.acquire_lease("reconciler", "one", LONG) == Lease(mark=None)
    assert await execution_store.acquire_lease("reconciler", "two", LONG) is None
    assert await execution_store.acquire_lease("reconciler", "one", LONG) == Lease(mark=None)
    assert await execution_store.acquire_lease("indexer", "two", LONG) == Lease(mark=None)


async def test_of_many_that_ask_at_once_one_gets_it(execution_store: ExecutionStore) -> None:
    asked = [execution_store.acquire_lease("reconciler", f"holder-{number}", LONG) for number in range(20)]
    assert sum(lease is not None for lease in await asyncio.gather(*asked)) == 1


async def test_a_lease_that_ran_out_is_anyones_and_its_mark_goes_over(execution_store: ExecutionStore) -> None:
    await execution_store.acquire_lease("reconciler", "one", SHORT)
    assert await execution_store.leave_mark("reconciler", "one", "as far as here")
    async with asyncio.timeout(5):
        while (lease := await execution_store.acquire_lease("reconciler", "two", LONG)) is None:
            await asyncio.sleep(0.05)
    assert lease == Lease(mark="as far as here")
    assert await execution_store.acquire_lease("reconciler", "one", LONG) is None


async def test_a_renewed_lease_does_not_run_out(execution_store: ExecutionStore) -> None:
    await execution_store.acquire_lease("reconciler", "one", SHORT)
    assert await execution_store.acquire_lease("reconciler", "one", LONG) is not None
    await asyncio.sleep(SHORT.total_seconds() * 1.2)
    assert await execution_store.acquire_lease("reconciler", "two", LONG) is None


async def test_only_the_holder_leaves_a_mark(execution_store: ExecutionStore) -> None:
    assert await execution_store.leave_mark("reconciler", "one", "before there is any") is False
    await execution_store.acquire_lease("reconciler", "one", LONG)
    assert await execution_store.leave_mark("reconciler", "one", "first") is True
    assert await execution_store.leave_mark("reconciler", "one", "second 架構") is True
    assert await execution_store.leave_mark("reconciler", "two", "not mine") is False
    assert await execution_store.leave_mark("indexer", "one", "another lease") is False
    assert await execution_store.acquire_lease("reconciler", "one", LONG) == Lease(mark="second 架構")


async def test_a_lease_that_ran_out_takes_no_mark(execution_store: ExecutionStore) -> None:
    await execution_store.acquire_lease("reconciler", "one", timedelta(milliseconds=1))
    await asyncio.sleep(0.05)
    assert await execution_store.leave_mark("reconciler", "one", "too late") is False
    assert await execution_store.acquire_lease("reconciler", "two", LONG) == Lease(mark=None)


async def test_a_lease_given_back_is_free_at_once_and_keeps_its_mark(execution_store: ExecutionStore) -> None:
    await execution_store.release_lease("reconciler", "nobody")
    await execution_store.acquire_lease("reconciler", "one", LONG)
    await execution_store.leave_mark("reconciler", "one", "here")
    await execution_store.release_lease("reconciler", "two")
    assert await execution_store.acquire_lease("reconciler", "two", LONG) is None
    await execution_store.release_lease("reconciler", "one")
    assert await execution_store.leave_mark("reconciler", "one", "after") is False
    assert await execution_store.acquire_lease("reconciler", "two", LONG) == Lease(mark="here")


async def listed(store: ExecutionStore, limit: int = 3, **query: Any) -> list[str]:
    given = ExecutionFilter(**query)
    found = await walk(lambda after: store.list_executions(given, limit=limit, after=after), limit)
    return [record.execution_id for record in found]


@pytest.fixture
async def filled_store(execution_store: ExecutionStore) -> ExecutionStore:
    """Executions of every status in turn, one a second; those with an odd number are of another definition."""
    for number in range(21):
        status = list(ExecutionStatus)[number % len(ExecutionStatus)]
        given: dict[str, Any] = {
            "status": status,
            "created_at": NOW + seconds(number),
            "definition_id": "other" if number % 2 else "flow",
            "tags": ["x"] if number % 3 == 0 else [],
        }
        make = ended if status.is_terminal else execution
        await execution_store.create_execution(make(f"e{number:02}", **given), b"plan")
    return execution_store


def numbers(*wanted: int) -> list[str]:
    return [f"e{number:02}" for number in sorted(wanted, reverse=True)]


OPEN = [0, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17]


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_open_ones_come_latest_first(filled_store: ExecutionStore, limit: int) -> None:
    assert await listed(filled_store, limit, is_open=True) == numbers(*OPEN)
    assert await listed(filled_store, limit, is_open=False) == numbers(*set(range(21)).difference(OPEN))
    assert await listed(filled_store, limit, is_open=None) == numbers(*range(21))


async def test_open_ones_are_filtered_further(filled_store: ExecutionStore) -> None:
    assert await listed(filled_store, is_open=True, definition_id="flow") == numbers(0, 2, 8, 10, 14, 16)
    assert await listed(filled_store, is_open=True, tags=("x",)) == numbers(0, 3, 9, 15)
    assert await listed(filled_store, is_open=True, status=ExecutionStatus.RUNNING) == numbers(1, 8, 15)
    assert await listed(filled_store, is_open=True, status=ExecutionStatus.FAILED) == []
    assert await listed(filled_store, is_open=False, status=ExecutionStatus.FAILED) == numbers(5, 12, 19)
    bounds = {"start_time": NOW + seconds(7), "end_time": NOW + seconds(14)}
    assert await listed(filled_store, is_open=True, **bounds) == numbers(7, 8, 9, 10, 14)


async def test_an_execution_leaves_the_open_ones_with_its_end_and_comes_back_when_reset(
    execution_store: ExecutionStore,
) -> None:
    await execution_store.create_execution(execution(), b"plan")
    assert await listed(execution_store, is_open=True) == ["flow-1"]
    await execution_store.finalize_execution(ended(), [])
    assert await listed(execution_store, is_open=True) == []
    assert await listed(execution_store, is_open=False) == ["flow-1"]
    await execution_store.record_steps([step(run_id="run-2", token=200)], NOW + seconds(100))
    assert await listed(execution_store, is_open=True) == ["flow-1"]
