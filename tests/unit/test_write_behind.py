"""What is asked for together leaves together, in order, and an end leaves at once."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from engine.adapters import write_behind
from engine.adapters.write_behind import WriteBehindStateStore
from engine.domain.execution import Event, ExecutionStatus, LiveExecution, LiveStep, StepStatus
from engine.errors import StoreError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RecordingStore:
    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.writes: list[tuple[str, LiveExecution | None, list[LiveStep] | None, list[Event] | None]] = []
        self.gate = gate
        self.fails = False

    async def record_transition(self, execution_id, *, execution=None, steps=None, events=None):
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise StoreError("the store is down")
        self.writes.append((execution_id, execution, steps, events))


def step(token: int) -> LiveStep:
    return LiveStep(step_id="a", token=token, status=StepStatus.RUNNING)


def head(status: ExecutionStatus) -> LiveExecution:
    return LiveExecution(
        execution_id="e", definition_id="d", version=1, token=1, status=status, step_ids=["a"], created_at=NOW
    )


async def test_transitions_of_one_execution_leave_in_one_write_in_order():
    inner = RecordingStore()
    store = WriteBehindStateStore(inner)
    await store.record_transition("e", execution=head(ExecutionStatus.PENDING))
    await store.record_transition("e", steps=[step(1)], events=[Event.at_instant("x", NOW, "1")])
    await store.record_transition("f", steps=[step(9)])
    await store.record_transition("e", steps=[step(2)], events=[Event.at_instant("x", NOW, "2")])
    assert inner.writes == []
    await store.aclose()
    assert [write[0] for write in inner.writes] == ["e", "f"]
    _, execution, steps, events = inner.writes[0]
    assert execution == head(ExecutionStatus.PENDING)
    assert [entry.token for entry in steps or []] == [1, 2]
    assert [event.id[-3] for event in events or []] == ["1", "2"]


async def test_an_end_leaves_at_once_with_what_was_gathered():
    inner = RecordingStore()
    store = WriteBehindStateStore(inner)
    await store.record_transition("e", steps=[step(1)])
    await store.record_transition("e", execution=head(ExecutionStatus.COMPLETED))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(inner.writes) == 1
    await store.aclose()
    assert len(inner.writes) == 1


async def test_what_nobody_closes_is_written_after_a_moment():
    inner = RecordingStore()
    store = WriteBehindStateStore(inner)
    await store.record_transition("e", steps=[step(1)])
    async with asyncio.timeout(5):
        while not inner.writes:
            await asyncio.sleep(0.002)


async def test_a_store_that_is_down_for_long_is_two_lines_in_the_log(caplog):
    inner = RecordingStore()
    inner.fails = True
    store = WriteBehindStateStore(inner)
    with caplog.at_level(logging.WARNING, "engine"):
        for number in range(500):
            await store.record_transition(f"e{number}", steps=[step(1)])
        await store.aclose()
        assert [record.getMessage() for record in caplog.records] == [
            "Writing live state fails, and says so once until it works again: the store is down"
        ]
        inner.fails = False
        await store.record_transition("e", steps=[step(1)])
        await store.record_transition("f", steps=[step(1)])
        await store.aclose()
    assert len(caplog.records) == 2
    assert caplog.records[1].getMessage().startswith("Writing live state works again, after 500 failures in ")


async def test_writes_of_one_execution_never_overtake_each_other():
    gate = asyncio.Event()
    inner = RecordingStore(gate)
    store = WriteBehindStateStore(inner)
    await store.record_transition("e", events=[Event.at_instant("x", NOW, "1")])
    await asyncio.sleep(write_behind.GATHER_SECONDS * 2)
    for number in "23":
        await store.record_transition("e", events=[Event.at_instant("x", NOW, number)])
        await asyncio.sleep(write_behind.GATHER_SECONDS * 2)
    await store.record_transition("e", execution=head(ExecutionStatus.COMPLETED))
    gate.set()
    await store.aclose()
    assert [[event.id[-3] for event in write[3] or []] for write in inner.writes] == [["1"], ["2", "3"]]
    assert inner.writes[1][1] == head(ExecutionStatus.COMPLETED)


async def test_a_store_that_hangs_does_not_fill_the_memory(monkeypatch, caplog):
    monkeypatch.setattr(write_behind, "MAX_WAITING", 3)
    gate = asyncio.Event()
    inner = RecordingStore(gate)
    store = WriteBehindStateStore(inner)
    with caplog.at_level(logging.WARNING, "engine"):
        for number in range(5):
            await store.record_transition(f"e{number}", steps=[step(1)])
    assert "Writing live state fails, and says so once until it works again: too many writes" in caplog.text
    gate.set()
    await store.aclose()
    assert [write[0] for write in inner.writes] == ["e0", "e1", "e2"]


async def test_reads_pass_through():
    class ReadableStore(RecordingStore):
        async def read_events(self, execution_id, *, after, limit, wait):
            return [Event.at_instant("x", NOW)], "7"

    events, position = await WriteBehindStateStore(ReadableStore()).read_events(
        "e", after=None, limit=10, wait=timedelta(0)
    )
    assert (len(events), position) == (1, "7")
