"""The contract of ``Embedder``."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from tests.contract.samples import AWKWARD_TEXTS

if TYPE_CHECKING:
    from engine.ports.embedder import Embedder

PASSAGES = [
    "The deployment failed because the database migration ran out of disk space on the primary server.",
    "Customers complained that invoices were sent twice; the billing job had been restarted by hand.",
    "Alice prefers meetings in the morning and wants weekly summaries by e-mail.",
    "The contract with the supplier ends in December and must be renewed by October.",
]
QUESTIONS = [
    "Why did the migration of the database fail?",
    "duplicate invoice billing",
    "When does Alice like to meet?",
    "supplier contract renewal",
]


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def test_there_is_a_unit_vector_for_each_text_in_order(embedder: Embedder) -> None:
    texts = [*PASSAGES, *AWKWARD_TEXTS, "!!!", "\ud800", PASSAGES[0]]
    embedded = await embedder.embed_texts(texts, "document")
    assert len(embedded) == len(texts)
    assert {len(values) for values in embedded} == {embedder.dimension}
    for values in embedded:
        assert math.hypot(*values) == pytest.approx(1, abs=1e-6)
    assert embedded[0] == embedded[-1]
    for text, values in zip(texts, embedded, strict=True):
        assert [values] == await embedder.embed_texts([text], "document")


async def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert await embedder.embed_texts([], "query") == []


async def test_a_question_is_nearest_to_its_passage(embedder: Embedder) -> None:
    passages = await embedder.embed_texts(PASSAGES, "document")
    for number, question in enumerate(await embedder.embed_texts(QUESTIONS, "query")):
        scores = [dot(question, passage) for passage in passages]
        assert scores.index(max(scores)) == number


async def test_different_texts_give_different_vectors(embedder: Embedder) -> None:
    texts = ["one", "two", "one two", "two one", "One more", "架構", "構架", "!!!", "???", "🚀"]
    embedded = await embedder.embed_texts(texts, "document")
    for number, left in enumerate(embedded):
        for right in embedded[:number]:
            assert dot(left, right) < 0.999


async def test_the_name_tells_model_and_version(embedder: Embedder) -> None:
    assert embedder.name
    assert embedder.dimension > 1


async def test_the_loop_goes_on_during_long_texts(embedder: Embedder) -> None:
    longest = 0.0
    loop = asyncio.get_running_loop()
    embedding = asyncio.create_task(
        embedder.embed_texts([" ".join(f"word{number}" for number in range(60_000))], "document")
    )
    turns = 0
    while not embedding.done():
        before = loop.time()
        await asyncio.sleep(0)
        longest = max(longest, loop.time() - before)
        turns += 1
    assert turns > 20
    assert longest < 0.25
