"""The contract of ``LexicalIndex``, on context stores that have one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.domain.context import ContextFilter
from tests.contract.samples import AWKWARD_TEXTS, NOW, seconds
from tests.contract.samples import context_item as item
from tests.contract.test_embedder import PASSAGES, QUESTIONS

EVERYTHING = ContextFilter()
SYNTAX = [
    "AND", "OR", "NOT", "NEAR(a b, 2)", "a AND", "text: disk", "source : x", "{text source} : disk", "-source : disk",
    "disk*", "^disk", '"disk', 'disk"', "''", "((disk", "disk + space", "rank", "a NOT b", "\\", "disk\x00space",
    "'; DROP TABLE context_items; --", '" OR 1 --', "* * *", "{", "}", ":", "NEAR", "near/3",
]  # fmt: skip


async def find(store: Any, text: str, limit: int = 10, **query: Any) -> list[str]:
    return await store.find_by_words(text, ContextFilter(**query), limit=limit)


@pytest.fixture
async def passages(lexical_store: Any) -> Any:
    await lexical_store.put_items([item(f"passage-{number}", text) for number, text in enumerate(PASSAGES)])
    return lexical_store


async def test_nothing_is_found_where_nothing_is(lexical_store: Any) -> None:
    assert await find(lexical_store, "word") == []
    assert await find(lexical_store, "") == []
    await lexical_store.put_items([item()])
    for text in ("", " ", "!!!", "___", "🚀", "\x00", "elsewhere"):
        assert await find(lexical_store, text) == []


async def test_a_question_finds_its_passage_first(passages: Any) -> None:
    for number, question in enumerate(QUESTIONS):
        assert (await find(passages, question))[0] == f"passage-{number}"


async def test_case_accents_and_endings_do_not_count(lexical_store: Any) -> None:
    await lexical_store.put_items([item("one", "Migrations of Müller's databases"), item("two", "Ein Straßenfest")])
    for word in ("migration", "MIGRATING", "muller", "MÜLLER", "database"):
        assert await find(lexical_store, word) == ["one"], word
    assert await find(lexical_store, "straßenfest STRASSENFEST") == ["two"]


async def test_rare_words_count_more_and_more_of_them_more(lexical_store: Any) -> None:
    common = [item(f"common-{number}", f"the report of day {number}") for number in range(30)]
    await lexical_store.put_items([*common, item("rare", "the zeppelin of day x"), item("both", "zeppelin zeppelin")])
    found = await find(lexical_store, "the zeppelin", limit=4)
    assert set(found[:2]) == {"rare", "both"}
    assert len(found) == 4


async def test_equally_good_ones_come_newest_first_then_by_id(lexical_store: Any) -> None:
    await lexical_store.put_items(
        [item(name, created_at=NOW + seconds(late)) for name, late in (("b", 0), ("c", 0), ("a", 1))]
    )
    assert await find(lexical_store, "said") == ["a", "b", "c"]
    assert await find(lexical_store, "said", limit=2) == ["a", "b"]


async def test_what_is_written_is_found_at_once_and_what_is_replaced_no_more(lexical_store: Any) -> None:
    await lexical_store.put_items([item(text="first words"), item("other", "first of all")])
    assert await find(lexical_store, "first") == ["item-1", "other"]
    for _ in range(3):
        await lexical_store.put_items([item(text="second thoughts")])
        assert await find(lexical_store, "first") == ["other"]
        assert await find(lexical_store, "second") == ["item-1"]
    await lexical_store.put_items([item(text="third"), item(text="fourth")])
    assert await find(lexical_store, "second third") == []
    assert await find(lexical_store, "fourth") == ["item-1"]


async def test_an_item_that_moves_is_found_where_it_is(lexical_store: Any) -> None:
    await lexical_store.put_items([item(execution_id="e-1", agent_id=None)])
    await lexical_store.put_items([item(execution_id=None, agent_id="agent-b")])
    assert await find(lexical_store, "said", execution_id="e-1") == []
    assert await find(lexical_store, "said", agent_id="agent-b") == ["item-1"]


async def test_the_filter_is_applied_before_the_best_are_taken(lexical_store: Any) -> None:
    await lexical_store.put_items(
        [
            item(
                f"item-{number:02}",
                "disk space " * (20 - number) + "and more",
                definition_id=f"flow-{number % 2}",
                agent_id=f"agent-{number % 4}",
                execution_id=f"e-{number % 5}",
                created_at=NOW + seconds(number),
            )
            for number in range(20)
        ]
    )
    for query, expected in [
        ({}, range(20)),
        ({"definition_id": "flow-1"}, range(1, 20, 2)),
        ({"agent_id": "agent-3"}, range(3, 20, 4)),
        ({"execution_id": "e-4"}, range(4, 20, 5)),
        ({"execution_id": "e-4", "agent_id": "agent-3"}, [19]),
        ({"definition_id": "flow-0", "agent_id": "agent-2"}, [2, 6, 10, 14, 18]),
        ({"execution_id": "e-1", "definition_id": "flow-1", "agent_id": "agent-1"}, [1]),
        ({"execution_id": "nobody"}, []),
        ({"definition_id": "flow-0", "agent_id": "agent-1"}, []),
    ]:
        ids = {f"item-{number:02}" for number in expected}
        assert set(await find(lexical_store, "disk", limit=20, **query)) == ids, query
        assert len(await find(lexical_store, "disk", limit=1, **query)) == min(1, len(ids))


@pytest.mark.parametrize("text", SYNTAX)
async def test_no_character_is_syntax(passages: Any, text: str) -> None:
    found = await find(passages, text)
    assert ("passage-0" in found) == ("disk" in text)
    assert len(found) <= len(PASSAGES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=200) | st.lists(st.sampled_from([*SYNTAX, "disk", " ", "-", "*"]), max_size=8).map("".join)
)
async def test_any_text_is_a_question(passages: Any, text: str) -> None:
    assert "passage-0" in await find(passages, f"{text} disk")
    assert set(await find(passages, text)) <= {f"passage-{number}" for number in range(len(PASSAGES))}


async def test_a_question_may_be_long(lexical_store: Any) -> None:
    await lexical_store.put_items([item("early", "word7"), item("late", "word99999")])
    question = " ".join(f"word{number}" for number in range(100_000))
    assert await find(lexical_store, question) == ["early"]
    assert await find(lexical_store, "x" * 1_000_000) == []


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_texts_are_text(lexical_store: Any, text: str) -> None:
    awkward = item(text, f"{text} needle", definition_id=text, execution_id=text, agent_id=text)
    await lexical_store.put_items([awkward, item("bystander", "another needle")])
    for query in ({"definition_id": text}, {"execution_id": text}, {"agent_id": text}):
        assert await find(lexical_store, "needle", **query) == [text]
    await lexical_store.put_items([awkward.model_copy(update={"text": "other"})])
    assert await find(lexical_store, "needle") == ["bystander"]


async def test_writers_at_once_leave_the_words_of_what_stands(lexical_store: Any) -> None:
    words = [f"word{number}" for number in range(30)]
    await asyncio.gather(*(lexical_store.put_items([item(text=word), item(word, word)]) for word in words))
    standing = (await lexical_store.get_items(["item-1"]))["item-1"].text
    for word in words:
        assert set(await find(lexical_store, word)) == ({word, "item-1"} if word == standing else {word})
