"""What is to be stored and indexed later is, whatever is away meanwhile; and all of it can be made anew."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from context_parts import START, Clock, Memory, OtherEmbedder, RenamedEmbedder, databases, item

from engine.domain.context import ContextFilter, NamespaceOwner
from engine.domain.context_text import step_item
from engine.domain.execution import ArtifactRef, StepStatus, Value
from engine.errors import ConflictError, InvalidInputError, StoreError
from engine.services import indexing, reindexing
from tests.contract.samples import ended, execution, seconds, step

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncGenerator[Any]:
    async with databases(tmp_path) as opened:
        yield opened


@pytest.fixture
def memory(stores: Any) -> Memory:
    return Memory(*stores, Clock())


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits a twentieth as long."""
    monkeypatch.setattr(indexing, "FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(indexing, "GATHER_SECONDS", 0.02)
    monkeypatch.setattr(reindexing, "SETTLING_SECONDS", 0.02)


@asynccontextmanager
async def running(*memories: Memory) -> AsyncGenerator[None]:
    tasks = [asyncio.create_task(memory.indexing.run_forever()) for memory in memories]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError)


async def until(ask: Callable[[], Awaitable[bool]], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not await ask():
            await asyncio.sleep(0.01)


async def indexed(memory: Memory, count: int) -> None:
    async def are() -> bool:
        return await memory.vector_count() >= count and await memory.waiting() == []

    await until(are)


async def stored_count(memory: Memory) -> int:
    return len((await memory.store.behind.list_items(ContextFilter(), limit=1_000, after=None)).items)


# The background.


async def test_what_is_left_to_be_stored_is_stored_and_indexed(memory: Memory):
    async with running(memory):
        for number in range(25):
            memory.service.remember_later(item(f"text {number}"))
        await indexed(memory, 25)
    assert await stored_count(memory) == 25
    assert memory.store.calls["put_items"] == 3
    assert memory.vectors.calls["upsert_vectors"] <= 4
    assert await memory.store.get_namespace_owner("default") == NamespaceOwner(embedder="hashing-512-v1", dimension=512)


async def test_a_full_batch_waits_for_nothing(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "GATHER_SECONDS", 30.0)
    async with running(memory):
        for number in range(10):
            memory.service.remember_later(item(f"text {number}"))
        await indexed(memory, 10)


async def test_what_is_stored_by_others_calls_is_indexed(memory: Memory):
    async with running(memory):
        await memory.service.remember(item("remembered"))
        await memory.service.add_context("added", workflow_id="flow")
        await indexed(memory, 2)


async def test_the_same_item_twice_is_stored_once(memory: Memory):
    async with running(memory):
        for _ in range(3):
            memory.service.remember_later(item("said again"))
        await indexed(memory, 1)
    assert await memory.vector_count() == 1


async def test_nothing_is_lost_while_the_context_store_is_down(memory: Memory, caplog: pytest.LogCaptureFixture):
    memory.store.is_down = True
    with caplog.at_level(logging.INFO, "engine"):
        async with running(memory):
            for number in range(25):
                memory.service.remember_later(item(f"text {number}"))
            with pytest.raises(StoreError):
                await memory.service.remember(item("now"))
            await asyncio.sleep(0.3)
            memory.store.is_down = False
            await indexed(memory, 26)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Storing")]
    assert len(lines) == 2
    assert "is down" in lines[0]
    assert "works again" in lines[1]


@pytest.mark.parametrize("down", ["vectors", "embedder"])
async def test_items_are_stored_while_the_index_is_down(memory: Memory, caplog: pytest.LogCaptureFixture, down: str):
    getattr(memory, down).is_down = True
    with caplog.at_level(logging.INFO, "engine"):
        async with running(memory):
            for number in range(15):
                memory.service.remember_later(item(f"text {number}"))
                await asyncio.sleep(0.01)

            async def all_stored() -> bool:
                return await stored_count(memory) == 15

            await until(all_stored, within=2)
            await asyncio.sleep(0.3)
            assert len(await memory.waiting()) == 15
            getattr(memory, down).is_down = False
            await indexed(memory, 15)
    lines = [record.getMessage().partition(",")[0] for record in caplog.records]
    assert lines == ["Indexing context items fails", "Indexing context items works again"]


async def test_waits_grow(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "MOST_WAIT_SECONDS", 0.2)
    memory.embedder.is_down = True
    async with running(memory):
        await memory.service.remember(item("text"))

        async def are_five() -> bool:
            return len(memory.embedder.asked_at.get("embed_texts", [])) >= 5

        await until(are_five)
    waits = [after - before for before, after in pairwise(memory.embedder.asked_at["embed_texts"])]
    assert waits[0] >= 0.05
    assert waits[1] >= 0.1
    assert all(wait >= 0.2 for wait in waits[2:])


async def test_what_is_replaced_while_it_is_indexed_is_indexed_again(memory: Memory):
    memory.embedder.seconds = 0.2
    async with running(memory):
        await memory.service.remember(item("text"))
        await asyncio.sleep(0.1)
        changed = item("text").model_copy(update={"text": "another text", "text_hash": "sha256:other"})
        await memory.service.remember(changed)
        await indexed(memory, 1)
    [values] = await memory.embedder.behind.embed_texts(["another text"], "query")
    [match] = await memory.vectors.query_vectors("default", values, top_k=1)
    assert match.score == pytest.approx(1)


async def test_the_loop_goes_on_while_long_texts_are_indexed(memory: Memory):
    """Turns of the loop wait for no more than the interpreter's own switch of threads and a little."""
    longest = 0.0
    async with running(memory):
        for number in range(40):
            memory.service.remember_later(item(f"{number} " + "many words in it " * 450))
        began = time.monotonic()
        while await memory.vector_count() < 40 and time.monotonic() - began < 20:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
    assert await memory.vector_count() == 40
    assert longest < 0.1


# The end of a process.


async def test_the_end_stores_what_is_queued(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "GATHER_SECONDS", 30.0)
    async with running(memory):
        for number in range(25):
            memory.service.remember_later(item(f"text {number}"))
    assert await stored_count(memory) == 25


async def test_the_end_waits_no_longer_than_two_seconds(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(indexing, "FLUSH_SECONDS", 0.1)
    memory.store.seconds = 30.0
    began = time.monotonic()
    async with running(memory):
        memory.service.remember_later(item("text"))
    assert time.monotonic() - began < 2
    assert "1 context items were not stored" in caplog.text
    assert await stored_count(memory) == 0


async def test_more_than_the_queue_holds_is_counted_and_logged_once(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(indexing, "MAX_WAITING", 5)
    with caplog.at_level(logging.INFO, "engine"):
        for number in range(12):
            memory.service.remember_later(item(f"text {number}"))
        memory.service.remember_later(item("text 3"))
        async with running(memory):
            await indexed(memory, 5)
            memory.service.remember_later(item("text 13"))
            await indexed(memory, 6)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "5 of them are waiting" in lines[0]
    assert "after 7 failures" in lines[1]


# Leftovers.


async def test_leftovers_of_others_are_indexed_by_who_has_the_lease(stores: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=50))
    monkeypatch.setattr(indexing, "BUSY_PAUSE", timedelta(milliseconds=10))
    clock = Clock()
    first, second = (Memory(*stores, clock, holder=holder) for holder in ("one", "two"))
    leftovers = [item(f"left {number}", created_at=START - seconds(60)) for number in range(120)]
    await first.store.behind.put_items(leftovers)
    async with running(first, second):
        await indexed(first, 120)
    assert min(memory.vectors.calls.get("upsert_vectors", 0) for memory in (first, second)) == 0
    assert await first.executions.acquire_lease(indexing.LEASE, "three", seconds(1)) is not None


async def test_what_is_young_is_left_to_who_stored_it(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=20))
    monkeypatch.setattr(indexing, "SETTLING", timedelta(milliseconds=200))
    await memory.store.behind.put_items([item("young", created_at=memory.clock.now)])
    async with running(memory):
        await asyncio.sleep(0.1)
        assert await memory.waiting() == ["young"]
        memory.clock.now += seconds(1)
        await indexed(memory, 1)


async def test_a_sweep_that_fails_is_told_and_made_again(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=50))
    await memory.store.behind.put_items([item("left", created_at=START - seconds(60))])
    memory.executions.is_down = True
    async with running(memory):
        await asyncio.sleep(0.2)
        memory.executions.is_down = False
        await indexed(memory, 1)
    assert caplog.text.count("Looking for context items that are not indexed fails") == 1


# Whose the vectors are.


async def test_the_first_write_claims_the_namespace_for_one_embedder(stores: Any):
    clock = Clock()
    memories = [Memory(*stores, clock, holder="one"), Memory(*stores, clock, holder="two", embedder=RenamedEmbedder())]
    items = [item("of one"), item("of two")]
    await memories[0].store.behind.put_items(items)
    for memory in memories:
        memory.store.delays["get_namespace_owner"] = 0.05
    memories[1].store.delays["put_namespace_owner"] = 0.3
    outcomes = await asyncio.gather(
        *(memory.indexing.index_items([own]) for memory, own in zip(memories, items, strict=True)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "NoneType"]
    winner = memories[outcomes.index(None)]
    winner.store.delays.clear()
    assert await winner.store.get_namespace_owner("default") == winner.indexing.as_owner()
    assert await winner.vector_count() == 1
    assert len(await winner.waiting()) == 1


async def test_what_was_made_while_the_namespace_changed_hands_is_not_indexed(memory: Memory):
    await memory.store.put_items([item("text")])
    await memory.indexing.index_items([])
    memory.vectors.seconds = 0.2
    making = asyncio.create_task(memory.indexing.index_items([item("text")]))
    await asyncio.sleep(0.1)
    await memory.store.put_namespace_owner("default", NamespaceOwner(embedder="another", dimension=512))
    with pytest.raises(ConflictError):
        await making
    assert await memory.waiting() == ["text"]


async def test_who_has_the_wrong_embedder_gives_the_lease_back(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=20))

    async def is_free() -> bool:
        return await memory.executions.behind.acquire_lease(indexing.LEASE, "another", seconds(0.001)) is not None

    async with running(memory):
        await asyncio.sleep(0.1)
        assert not await is_free()
        await memory.store.put_namespace_owner("default", NamespaceOwner(embedder="another", dimension=512))
        await until(is_free, within=2)


async def test_another_embedder_waits_and_says_so_once(
    stores: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=20))
    clock = Clock()
    first, other = Memory(*stores, clock), Memory(*stores, clock, holder="two", embedder=OtherEmbedder())
    await first.service.add_context("of the first", workflow_id="flow")
    await first.index_all()
    async with running(other):
        other.service.remember_later(item("of the other"))
        await asyncio.sleep(0.4)
        assert await other.waiting() == ["of the other"]
        assert caplog.text.count("run `baton context reindex`") == 1
        # The right embedder's process is not kept from it.
        clock.now += seconds(60)
        async with running(first):
            await indexed(first, 2)


async def test_vectors_of_another_dimension_are_a_conflict(stores: Any):
    first, other = Memory(*stores, Clock()), Memory(*stores, Clock(), embedder=OtherEmbedder())
    await first.service.add_context("of the first", workflow_id="flow")
    await first.index_all()
    await first.store.put_namespace_owner("default", other.indexing.as_owner())
    await other.store.put_items([item("of the other")])
    with pytest.raises(ConflictError, match="reindex"):
        await other.indexing.index_items([item("of the other")])
    with pytest.raises(ConflictError, match="reindex"):
        await other.service.search_context("other")
    assert await other.waiting() == ["of the other"]


class ChoosyEmbedder:
    """Refuses a batch that holds a bad text."""

    name = "choosy"
    dimension = 26

    async def embed_texts(self, texts: Sequence[str], kind: str) -> list[list[float]]:
        if any("bad" in text for text in texts):
            raise InvalidInputError("a text is bad")
        return await OtherEmbedder().embed_texts(texts, kind)


async def test_a_text_that_the_embedder_refuses_keeps_no_other_back(
    stores: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(indexing, "SWEEP_PAUSE", timedelta(milliseconds=20))
    memory = Memory(*stores, Clock(), embedder=ChoosyEmbedder())
    old = [item(text, created_at=START - seconds(60)) for text in ("bad one", *(f"good {n}" for n in range(60)))]
    await memory.store.behind.put_items(old)
    async with running(memory):
        await memory.service.remember(item("bad two"))

        async def others_are() -> bool:
            return await memory.vector_count() == 60

        await until(others_are)
        await asyncio.sleep(0.1)
    assert await memory.waiting() == ["bad one", "bad two"]
    assert caplog.text.count("is left out of the vector index") == 2
    assert len(await memory.service.search_context("good", top_k=100)) == 60
    assert "Searching" not in caplog.text


async def test_an_embedder_that_refuses_everything_is_an_outage(
    stores: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    memory = Memory(*stores, Clock(), embedder=ChoosyEmbedder())
    monkeypatch.setattr(indexing, "_PLAIN_TEXT", "bad too, as is everything")
    async with running(memory):
        for number in range(20):
            memory.service.remember_later(item(f"bad {number}"))
        await asyncio.sleep(0.3)
        assert len(await memory.waiting()) == 20
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["Indexing context items fails"]


# All anew.


async def test_a_lost_index_is_made_anew(memory: Memory):
    for number in range(35):
        await memory.service.add_context(f"text {number}", workflow_id="flow")
    await memory.index_all()
    await memory.vectors.delete_namespace("default")
    seen: list[tuple[str, int, int | None]] = []
    report = await memory.service.reindex(lambda *told: seen.append(told))
    assert (report.items, report.made, report.left) == (35, 0, 0)
    assert await memory.vector_count() == 35
    assert seen == [("items", done, 35) for done in (0, 10, 20, 30, 35)]
    assert await memory.executions.acquire_lease(indexing.LEASE, "another", seconds(1)) is not None


async def test_reindexing_changes_the_embedder(stores: Any):
    first, other = Memory(*stores, Clock()), Memory(*stores, Clock(), embedder=OtherEmbedder())
    await first.service.add_context("of the first", workflow_id="flow")
    await first.index_all()
    report = await other.service.reindex()
    assert report.items == 1
    assert (await other.vectors.behind.describe_namespace("default")).dimension == 26
    assert len(await other.service.search_context("of the first")) == 1
    with pytest.raises(ConflictError):
        await first.service.search_context("of the first")


async def fill_records(memory: Memory) -> list[str]:
    """Executions with steps of all kinds; return the texts that are to become items."""
    artifact_id, size_bytes = await memory.artifacts.put_artifact({"plan": "a large plan"})
    lost = ArtifactRef(artifact_id="sha256:" + "0" * 64, size_bytes=9)
    large = ArtifactRef(artifact_id=artifact_id, size_bytes=size_bytes)
    for number in range(12):
        execution_id = f"flow-{number}"
        await memory.executions.create_execution(execution(execution_id, created_at=START + seconds(number)), b"plan")
        steps = [
            step("said", output=Value.of({"plan": f"plan {number}"}), execution_id=execution_id),
            step("large", output=Value(ref=large), execution_id=execution_id),
            step("counted", output=Value.of({"n": number}), execution_id=execution_id),
            step("silent", output=None, execution_id=execution_id),
            step("mapped", agent_id=None, output=Value.of("passed on"), execution_id=execution_id),
            step("broken", status=StepStatus.FAILED, output=Value.of("half said"), execution_id=execution_id),
        ]
        if number == 7:
            steps.append(step("lost", output=Value(ref=lost), execution_id=execution_id))
        await memory.executions.record_steps(steps, START)
    await memory.executions.finalize_execution(ended("flow-3"), [])
    return sorted([*(f"plan: plan {number}" for number in range(12)), *["plan: a large plan"] * 12])


async def test_reindexing_makes_items_of_what_steps_have_recorded(memory: Memory, caplog: pytest.LogCaptureFixture):
    expected = await fill_records(memory)
    there = step_item("flow-2", "flow", "said", "agent-a", {"plan": "plan 2"}, START)
    assert there is not None
    await memory.store.put_items([there])
    report = await memory.service.reindex()
    assert (report.executions, report.made, report.items, report.left) == (12, 23, 24, 1)
    assert "No context item of lost in flow-7" in caplog.text
    items = (await memory.store.list_items(ContextFilter(), limit=100, after=None)).items
    assert sorted(one.text for one in items) == expected
    assert {one.created_at for one in items} == {START, step().completed_at}
    again = await memory.service.reindex()
    assert (again.made, again.items) == (0, 24)
    assert await memory.vector_count() == 24


@pytest.mark.parametrize("turn", range(1, 16))
async def test_a_reindex_that_was_stopped_is_run_again(stores: Any, turn: int):
    """Stopped at one store call after another, it never leaves a search with a part and no word about it."""
    memory = Memory(*stores, Clock())
    await fill_records(memory)
    await memory.service.add_context("added", workflow_id="flow")
    await memory.index_all()
    calls = 0

    def stopping(behind: Any) -> Any:
        class Stopping:
            def __getattr__(self, name: str) -> Any:
                async def called(*args: object, **kwargs: object) -> object:
                    nonlocal calls
                    calls += 1
                    if calls == turn * 3:
                        raise asyncio.CancelledError
                    return await getattr(behind, name)(*args, **kwargs)

                return called

        return Stopping()

    stopped = reindexing.ReindexingService(
        stopping(memory.store),
        stopping(memory.vectors),
        memory.executions,
        memory.artifacts,
        memory.indexing,
        batch_size=10,
    )
    with suppress(asyncio.CancelledError):
        await stopped.reindex()
    is_whole = await memory.vector_count() + len(await memory.waiting()) >= await stored_count(memory)
    if not is_whole:
        with pytest.raises(ConflictError, match="reindex"):
            await memory.indexing.has_vectors()
    await memory.service.reindex()
    assert await memory.vector_count() == await stored_count(memory) == 25


async def test_two_reindexes_at_once_end_well(stores: Any):
    clock = Clock()
    first, second = Memory(*stores, clock, holder="one"), Memory(*stores, clock, holder="two")
    await fill_records(first)
    outcomes = await asyncio.gather(first.service.reindex(), second.service.reindex(), return_exceptions=True)
    assert all(isinstance(outcome, reindexing.Reindexed | ConflictError) for outcome in outcomes)
    assert await first.waiting() == []
    assert await first.vector_count() == 24


async def test_a_reindex_beside_a_running_indexer_misses_nothing(memory: Memory):
    for number in range(30):
        await memory.store.put_items([item(f"old {number}")])
    async with running(memory):
        reindex = asyncio.create_task(memory.service.reindex())
        for number in range(60):
            memory.service.remember_later(item(f"new {number}"))
            await asyncio.sleep(0.005)
        await reindex
        await indexed(memory, 90)
    assert await memory.vector_count() == 90


async def test_what_others_are_indexing_when_a_reindex_begins_is_not_lost(stores: Any, monkeypatch: pytest.MonkeyPatch):
    """The other process has made its vector, is slow to say so, and says so after everything was marked unindexed."""
    monkeypatch.setattr(reindexing, "SETTLING_SECONDS", 0.5)
    clock = Clock()
    memory, other = Memory(*stores, clock, holder="one"), Memory(*stores, clock, holder="two")
    await memory.store.put_items([item("text")])
    other.store.delays["mark_indexed"] = 0.2
    memory.executions.delays["list_executions"] = 0.4
    making = asyncio.create_task(other.indexing.index_items([item("text")]))
    while not other.vectors.calls.get("upsert_vectors"):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    await memory.service.reindex()
    await making
    assert await memory.vector_count() == 1


async def test_a_reindex_with_an_embedder_that_is_down_drops_nothing(memory: Memory):
    await memory.service.add_context("text", workflow_id="flow")
    await memory.index_all()
    memory.embedder.is_down = True
    with pytest.raises(StoreError):
        await memory.service.reindex()
    assert await memory.vector_count() == 1
    assert await memory.indexing.has_vectors()


async def test_a_store_that_is_down_ends_a_reindex(memory: Memory):
    await memory.service.add_context("text", workflow_id="flow")
    memory.vectors.is_down = True
    with pytest.raises(StoreError):
        await memory.service.reindex()
    memory.vectors.is_down = False
    await memory.service.reindex()
    assert await memory.vector_count() == 1
