"""Context memory: what is added is found, by words and by meaning, whatever of its helps is away."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from context_parts import START, Clock, Memory, OtherEmbedder, databases, item
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConflictError, InvalidInputError, StoreError
from engine.ports.context_memory import RecallRequest
from engine.ports.vector_index import VectorItem
from engine.services import context
from engine.services.context_search import fuse_ranks
from tests.contract.samples import AWKWARD_TEXTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from engine.domain.context import ContextMatch

PAYMENTS = "Payments are retried three times before the order is cancelled."
LOGIN = "The login page shows a captcha after five failures."
BACKUP = "Nightly backups of the database go to cold storage."


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncGenerator[Any]:
    async with databases(tmp_path) as opened:
        yield opened


@pytest.fixture
def memory(stores: Any) -> Memory:
    return Memory(*stores, Clock())


def texts(matches: list[ContextMatch]) -> list[str]:
    return [match.item.text for match in matches]


def request(query: str = "payments", **changes: Any) -> RecallRequest:
    given: dict[str, Any] = {
        "scope": "workflow",
        "top_k": 4,
        "execution_id": "flow-9",
        "definition_id": "flow",
        "agent_id": "agent-a",
        **changes,
    }
    return RecallRequest(query=query, **given)


async def fill(memory: Memory) -> None:
    for text in (PAYMENTS, LOGIN, BACKUP):
        await memory.service.add_context(text, workflow_id="flow")


# Adding.


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("knows_words", [False, True])
async def test_what_is_added_is_found(stores: Any, *, is_indexed: bool, knows_words: bool):
    memory = Memory(*stores, Clock(), knows_words=knows_words)
    await fill(memory)
    if is_indexed:
        await memory.index_all()
        assert await memory.vector_count() == 3
    found = await memory.service.search_context("how often are payments retried", top_k=2)
    assert texts(found)[0] == PAYMENTS
    assert 0 < found[0].score <= 1
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)


async def test_an_item_is_found_under_each_id_that_was_given(memory: Memory):
    await memory.service.add_context(PAYMENTS, scope="agent", agent_id="agent-b", execution_id="flow-2")
    for is_indexed in (False, True):
        if is_indexed:
            await memory.index_all()
        for ids, count in [
            ({}, 1),
            ({"scope": "agent", "agent_id": "agent-b"}, 1),
            ({"scope": "execution", "execution_id": "flow-2"}, 1),
            ({"agent_id": "agent-b", "execution_id": "flow-2"}, 1),
            ({"agent_id": "agent-b", "execution_id": "flow-3"}, 0),
            ({"scope": "workflow", "workflow_id": "flow"}, 0),
            ({"agent_id": "nobody"}, 0),
        ]:
            assert len(await memory.service.search_context("payments", **ids)) == count, ids


async def test_the_same_text_again_is_the_same_item_with_new_metadata(memory: Memory):
    first = await memory.service.add_context(PAYMENTS, workflow_id="flow", metadata={"team": "a"})
    await memory.index_all()
    again = await memory.service.add_context(PAYMENTS, workflow_id="flow", metadata={"team": "b"})
    assert first == again
    [found] = await memory.service.search_context("payments")
    assert found.item.metadata == {"team": "b"}
    assert await memory.service.add_context(PAYMENTS, workflow_id="other") != first


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": "x" * 32_001}, "text"),
        ({"text": 7}, "text"),
        ({"text": "half \ud800"}, "text"),
        ({"scope": "planet"}, "scope"),
        ({"scope": None}, "scope"),
        ({"scope": ["workflow"]}, "scope"),
        ({"workflow_id": None}, "workflow_id"),
        ({"scope": "agent"}, "agent_id"),
        ({"scope": "execution"}, "execution_id"),
        ({"workflow_id": ""}, "workflow_id"),
        ({"agent_id": 5}, "agent_id"),
        ({"execution_id": "x" * 401}, "execution_id"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"at": START}}, "metadata"),
        ({"metadata": {"x": float("nan")}}, "metadata"),
        ({"metadata": {"x": "y" * 16 * 1024}}, "metadata"),
    ],
)
async def test_what_can_not_be_kept_is_refused(memory: Memory, arguments: dict[str, Any], path: str):
    with pytest.raises(InvalidInputError) as raised:
        await memory.service.add_context(**{"text": PAYMENTS, "workflow_id": "flow", **arguments})
    assert raised.value.details["path"] == path
    assert await memory.waiting() == []


async def test_the_largest_is_kept(memory: Memory):
    await memory.service.add_context("words " * 5_333, workflow_id="flow", metadata={"x": "y" * (16 * 1024 - 8)})
    await memory.index_all()
    assert len(await memory.service.search_context("words")) == 1


# Searching.


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": "x" * 32_001}, "query"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 101}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": "5"}, "top_k"),
        ({"scope": "agent"}, "agent_id"),
        ({"scope": "x"}, "scope"),
        ({"filter": "team"}, "filter"),
        ({"filter": {1: 2}}, "filter"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(memory: Memory, arguments: dict[str, Any], path: str):
    with pytest.raises(InvalidInputError) as raised:
        await memory.service.search_context(**{"query": "payments", **arguments})
    assert raised.value.details["path"] == path


@pytest.mark.parametrize("query", [text for text in AWKWARD_TEXTS if text.strip()])
async def test_no_character_of_a_query_means_anything(memory: Memory, query: str):
    await fill(memory)
    await memory.index_all()
    await memory.service.add_context(query, workflow_id="flow")
    assert query in texts(await memory.service.search_context(query, top_k=4))


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_filter_goes_by_the_exact_value(memory: Memory, *, is_indexed: bool):
    values: list[Any] = [1, True, "1", None, [1], {"a": 1}, 1.5]
    for number, value in enumerate(values):
        await memory.service.add_context(f"{PAYMENTS} {number}", workflow_id="flow", metadata={"v": value})
    await memory.service.add_context(PAYMENTS, workflow_id="flow")
    if is_indexed:
        await memory.index_all()
    for number, value in enumerate(values):
        found = await memory.service.search_context("payments", top_k=50, filter={"v": value})
        assert texts(found) == [f"{PAYMENTS} {number}"]
    assert await memory.service.search_context("payments", filter={"v": 1, "w": 1}) == []


async def test_a_filter_finds_what_is_far_from_the_nearest(memory: Memory):
    for number in range(120):
        await memory.store.behind.put_items([item(f"payments payments {number}", step_id=f"s{number % 10}")])
    await memory.service.add_context(f"{BACKUP} Payments too.", workflow_id="flow", metadata={"team": "ops"})
    await memory.index_all()
    found = await memory.service.search_context("payments", top_k=3, filter={"team": "ops"})
    assert texts(found) == [f"{BACKUP} Payments too."]
    of_step = await memory.service.search_context("payments", top_k=100, filter={"step_id": "s3"})
    assert len(of_step) == 12
    assert {match.item.step_id for match in of_step} == {"s3"}


async def test_the_newest_are_found_while_many_wait(memory: Memory):
    old = [item(f"old {number}", created_at=START - timedelta(days=1)) for number in range(150)]
    await memory.store.behind.put_items(old)
    await memory.service.add_context(PAYMENTS, workflow_id="flow")
    memory.search._words = None
    assert texts(await memory.service.search_context("payments retried", workflow_id="flow"))[0] == PAYMENTS


async def test_what_an_index_does_not_show_yet_is_found(stores: Any):
    memory = Memory(*stores, Clock(), knows_words=False)
    await fill(memory)
    await memory.index_all()
    # An index whose reads lag its writes, as Pinecone's do.
    await memory.vectors.behind.delete_namespace("default")
    assert texts(await memory.service.search_context("payments are retried"))[0] == PAYMENTS
    memory.clock.now += timedelta(minutes=1)
    assert await memory.service.search_context("payments are retried") == []


async def test_a_replaced_text_is_not_found_by_the_old_one(memory: Memory):
    await memory.store.behind.put_items([item(LOGIN)])
    await memory.index_all()
    changed = item(LOGIN).model_copy(update={"text": BACKUP, "text_hash": "sha256:new"})
    await memory.store.behind.put_items([changed])
    found = await memory.service.search_context("captcha on the login page")
    assert LOGIN not in texts(found)
    assert texts(await memory.service.search_context("nightly backups"))[0] == BACKUP


async def test_vectors_without_a_document_are_passed_over(memory: Memory):
    await fill(memory)
    await memory.index_all()
    [values] = await memory.embedder.embed_texts(["payments"], "document")
    await memory.vectors.upsert_vectors("default", [VectorItem("ghost", values)])
    assert texts(await memory.service.search_context("payments"))[0] == PAYMENTS


# Without its helps.


@pytest.mark.parametrize("down", ["vectors", "embedder"])
async def test_a_search_goes_by_words_while_meaning_is_away(
    memory: Memory, caplog: pytest.LogCaptureFixture, down: str
):
    await fill(memory)
    await memory.index_all()
    with caplog.at_level(logging.INFO, "engine"):
        getattr(memory, down).is_down = True
        for _ in range(3):
            assert texts(await memory.service.search_context("payments"))[0] == PAYMENTS
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith("Searching context memory by meaning fails, and says so once until it works again: ")
        getattr(memory, down).is_down = False
        assert texts(await memory.service.search_context("payments"))[0] == PAYMENTS
    assert len(caplog.records) == 2
    assert "works again" in caplog.records[-1].getMessage()


async def test_without_words_and_vectors_the_newest_are_found(stores: Any):
    memory = Memory(*stores, Clock(), knows_words=False)
    await fill(memory)
    await memory.index_all()
    memory.vectors.is_down = True
    assert texts(await memory.service.search_context("payments are retried"))[0] == PAYMENTS
    memory.embedder.is_down = True
    found = await memory.service.search_context("payments", top_k=2)
    assert texts(found) == [BACKUP, LOGIN]
    assert 1 >= found[0].score > found[1].score > 0
    assert await memory.service.search_context("payments", workflow_id="other") == []
    assert await memory.service.search_context("payments", filter={"team": "ops"}) == []


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    query=st.text(min_size=1, max_size=40).filter(str.strip),
    top_k=st.integers(1, 100),
    knows_words=st.booleans(),
    embeds=st.booleans(),
    ids=st.fixed_dictionaries({}, optional={"workflow_id": st.just("flow"), "agent_id": st.just("nobody")}),
)
def test_no_search_fails_for_lost_vectors(
    tmp_path_factory: pytest.TempPathFactory, query: str, top_k: int, *, knows_words: bool, embeds: bool, ids: Any
):
    async def search() -> None:
        async with databases(tmp_path_factory.mktemp("lost")) as opened:
            memory = Memory(*opened, Clock(), knows_words=knows_words)
            await fill(memory)
            await memory.index_all()
            memory.vectors.is_down = True
            memory.embedder.is_down = not embeds
            found = await memory.service.search_context(query, top_k=top_k, **ids)
            assert len(found) <= min(top_k, 3)
            assert all(0 <= match.score <= 1 for match in found)

    asyncio.run(search())


async def test_a_context_store_that_is_down_is_an_error(memory: Memory):
    memory.store.is_down = True
    with pytest.raises(StoreError):
        await memory.service.search_context("payments")
    with pytest.raises(StoreError):
        await memory.service.add_context(PAYMENTS, workflow_id="flow")


async def test_another_embedders_vectors_are_refused_with_what_to_do(stores: Any):
    first = Memory(*stores, Clock())
    await fill(first)
    await first.index_all()
    other = Memory(*stores, Clock(), embedder=OtherEmbedder())
    with pytest.raises(ConflictError, match=r"hashing-512-v1.*letters-26.*`baton context reindex`"):
        await other.service.search_context("payments")
    with pytest.raises(ConflictError):
        await other.service.recall(request())


# Recalling.


async def test_a_recall_finds_the_scope_and_the_own_newest(memory: Memory):
    theirs = [item(f"{PAYMENTS} {number}", execution_id=f"flow-{number}") for number in range(6)]
    own = [
        item(text, execution_id="flow-9", created_at=START + timedelta(seconds=number))
        for number, text in enumerate([LOGIN, BACKUP, "Nothing to see here."])
    ]
    await memory.store.behind.put_items([*theirs, *own])
    await memory.index_all()
    found = await memory.service.recall(request())
    assert len(found) == 4
    assert set(texts(found)) & {LOGIN, BACKUP, "Nothing to see here."} == {BACKUP, "Nothing to see here."}
    assert sum(PAYMENTS in text for text in texts(found)) == 2
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)


async def test_own_items_that_are_near_take_no_other_place(memory: Memory):
    own = item(f"{PAYMENTS} Own.", execution_id="flow-9")
    await memory.store.behind.put_items([own, *(item(f"{PAYMENTS} {n}", execution_id=f"e-{n}") for n in range(5))])
    found = await memory.service.recall(request(f"{PAYMENTS} Own."))
    assert texts(found)[0] == own.text
    assert len(found) == 4


async def test_a_recall_is_never_longer_than_asked(memory: Memory):
    """One of the execution's own is near, one is not, and there are more others than places."""
    near = item(f"{PAYMENTS} Own.", execution_id="flow-9")
    far = item("Nothing to see here.", execution_id="flow-9", created_at=START + timedelta(seconds=1))
    await memory.store.behind.put_items(
        [near, far, *(item(f"{PAYMENTS} {n}", execution_id=f"e-{n}") for n in range(9))]
    )
    found = texts(await memory.service.recall(request(f"{PAYMENTS} Own.")))
    assert (found[0], found[-1], len(found)) == (near.text, far.text, 4)


async def test_a_recall_of_one_is_the_nearest_alone(memory: Memory):
    await memory.store.behind.put_items([item(PAYMENTS), item(LOGIN, execution_id="flow-9")])
    assert texts(await memory.service.recall(request("payments", top_k=1))) == [PAYMENTS]


async def test_what_many_runs_said_is_recalled_once(memory: Memory):
    await memory.store.behind.put_items([item(PAYMENTS, execution_id=f"e-{number}") for number in range(9)])
    await memory.store.behind.put_items([item(LOGIN), item(PAYMENTS, execution_id="flow-9")])
    assert texts(await memory.service.recall(request("payments or the login"))).count(PAYMENTS) == 1
    assert LOGIN in texts(await memory.service.recall(request("payments or the login")))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("execution", {"own"}), ("workflow", {"own", "of the flow"}), ("agent", {"own", "of the agent"})],
)
async def test_a_recall_looks_in_its_scope(memory: Memory, scope: Any, expected: set[str]):
    await memory.store.behind.put_items(
        [
            item("own payments", execution_id="flow-9"),
            item("of the flow payments", execution_id="flow-1", agent_id="agent-b"),
            item("of the agent payments", execution_id="x-1", definition_id="x"),
            item("of nobody payments", execution_id="x-2", definition_id="x", agent_id="agent-b"),
        ]
    )
    found = await memory.service.recall(request(scope=scope, top_k=10))
    assert set(texts(found)) == {f"{text} payments" for text in expected}


async def test_a_recall_for_nothing_is_the_own_newest(memory: Memory):
    await memory.store.behind.put_items([item(PAYMENTS), item(LOGIN, execution_id="flow-9")])
    assert texts(await memory.service.recall(request("  "))) == [LOGIN]


async def test_a_recall_does_not_wait_for_slow_vectors(memory: Memory):
    await fill(memory)
    await memory.index_all()
    for slow in (memory.vectors, memory.embedder):
        slow.seconds = 30.0
        began = time.monotonic()
        assert texts(await memory.service.recall(request()))[0] == PAYMENTS
        assert time.monotonic() - began < context.RECALL_SECONDS
        slow.seconds = 0.0


async def test_a_recall_ends_when_the_store_hangs(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context, "RECALL_SECONDS", 0.2)
    memory.store.seconds = 30.0
    with pytest.raises(StoreError, match=r"0\.2 s"):
        await memory.service.recall(request())


async def test_what_is_remembered_is_recalled_at_once(memory: Memory):
    await memory.service.remember(item(PAYMENTS, execution_id="flow-9"))
    assert texts(await memory.service.recall(request())) == [PAYMENTS]


# Fusing.

RANKINGS = st.lists(st.lists(st.sampled_from("abcdefghij"), unique=True), max_size=4)


@settings(deadline=None, derandomize=True)
@given(RANKINGS, st.randoms(use_true_random=False))
def test_the_order_of_rankings_makes_no_difference(rankings: list[list[str]], chance: Any):
    shuffled = [*rankings]
    chance.shuffle(shuffled)
    assert fuse_ranks(shuffled) == fuse_ranks(rankings)


@settings(deadline=None, derandomize=True)
@given(RANKINGS)
def test_fused_scores_are_ordered_and_bounded(rankings: list[list[str]]):
    fused = fuse_ranks(rankings)
    scores = [score for _, score in fused]
    assert {item_id for item_id, _ in fused} == {item_id for ranking in rankings for item_id in ranking}
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)


@settings(deadline=None, derandomize=True)
@given(RANKINGS, st.sampled_from("abcdefghij"))
def test_who_leads_everywhere_leads(rankings: list[list[str]], leader: str):
    led = [[leader, *(other for other in ranking if other != leader)] for ranking in rankings if ranking]
    if led:
        assert fuse_ranks(led)[0] == (leader, 1.0)


def test_what_both_ways_find_comes_before_what_one_finds():
    assert [item_id for item_id, _ in fuse_ranks([["a", "b"], ["c", "b"]])] == ["b", "a", "c"]
