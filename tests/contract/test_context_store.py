"""The contract of ``ContextStore``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.context import ContextFilter, NamespaceOwner
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, NOW, seconds, walk
from tests.contract.samples import context_item as item

if TYPE_CHECKING:
    from engine.ports.context_store import ContextStore


async def listed(store: ContextStore, limit: int = 10, **query: Any) -> list[str]:
    given = ContextFilter(**query)
    found = await walk(lambda after: store.list_items(given, limit=limit, after=after), limit)
    return [one.item_id for one in found]


async def waiting(store: ContextStore) -> list[str]:
    return [one.item_id for one in await store.list_unindexed(100)]


async def test_what_is_not_there_is_left_out(context_store: ContextStore) -> None:
    assert await context_store.get_items([]) == {}
    assert await context_store.get_items(["item-1"]) == {}
    assert await listed(context_store) == []
    assert await context_store.list_unindexed(5) == []
    assert await context_store.mark_unindexed(ContextFilter()) == 0
    await context_store.put_items([])
    await context_store.mark_indexed([])
    await context_store.mark_indexed([item()])
    assert await context_store.get_items(["item-1"]) == {}


async def test_items_come_back_whole(context_store: ContextStore) -> None:
    items = [
        item("whole", metadata={"a.b": AWKWARD_VALUES[4], "$x": [None, 1.5]}, created_at=NOW + seconds(0.000001)),
        item("bare", definition_id=None, execution_id=None, step_id=None, agent_id=None),
        item("large", "x" * 300_000),
    ]
    await context_store.put_items(items)
    found = await context_store.get_items(["large", "none", "whole", "bare", "whole"])
    assert found == {one.item_id: one for one in items}


async def test_an_equal_id_replaces(context_store: ContextStore) -> None:
    await context_store.put_items([item(text="first"), item("other")])
    await context_store.mark_indexed([item(text="first"), item("other")])
    second = item(text="second", created_at=NOW + seconds(5), execution_id="flow-2")
    for _ in range(2):
        await context_store.put_items([second])
    assert await context_store.get_items(["item-1", "other"]) == {"item-1": second, "other": item("other")}
    assert await listed(context_store) == ["item-1", "other"]
    assert await listed(context_store, execution_id="flow-1") == ["other"]
    assert await listed(context_store, execution_id="flow-2") == ["item-1"]
    assert await waiting(context_store) == ["item-1"]


async def test_of_equal_ids_in_one_call_the_last_counts(context_store: ContextStore) -> None:
    await context_store.put_items([item(text="first"), item(text="last")])
    assert await context_store.get_items(["item-1"]) == {"item-1": item(text="last")}


async def test_concurrent_writers_of_one_id_leave_one_item(context_store: ContextStore) -> None:
    given = [item(text=f"text {number}") for number in range(20)]
    await asyncio.gather(*(context_store.put_items([one]) for one in given))
    assert (await context_store.get_items(["item-1"]))["item-1"] in given
    assert await listed(context_store) == ["item-1"]


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, list(range(12))),
    ({"definition_id": "flow-0"}, [0, 2, 4, 6, 8, 10]),
    ({"agent_id": "agent-1"}, [1, 5, 9]),
    ({"definition_id": "flow-0", "agent_id": "agent-0"}, [0, 4, 8]),
    ({"execution_id": "e-1"}, [1, 6, 11]),
    ({"execution_id": "e-1", "definition_id": "flow-1"}, [1, 11]),
    ({"execution_id": "e-1", "agent_id": "agent-3"}, [11]),
    ({"execution_id": "e-1", "definition_id": "flow-1", "agent_id": "agent-1"}, [1]),
    ({"execution_id": "nobody"}, []),
    ({"definition_id": "nobody"}, []),
    ({"agent_id": "nobody"}, []),
    ({"definition_id": "flow-0", "agent_id": "agent-1"}, []),
]


@pytest.fixture
async def filled_store(context_store: ContextStore) -> ContextStore:
    """Twelve items, one a second, whose fields turn over at different paces."""
    await context_store.put_items(
        [
            item(
                f"item-{number:02}",
                f"text {number}",
                definition_id=f"flow-{number % 2}",
                agent_id=f"agent-{number % 4}",
                execution_id=f"e-{number % 5}",
                created_at=NOW + seconds(number),
            )
            for number in range(12)
        ]
    )
    return context_store


@pytest.mark.parametrize("limit", [1, 2, 4, 20])
async def test_filters_combine_on_full_pages_newest_first(filled_store: ContextStore, limit: int) -> None:
    for query, numbers in FILTERS:
        expected = [f"item-{number:02}" for number in reversed(numbers)]
        assert await listed(filled_store, limit, **query) == expected, query


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_ties_on_one_instant_are_on_one_page_each(context_store: ContextStore, limit: int) -> None:
    ids = [f"item-{number}" for number in range(5)]
    await context_store.put_items([item(item_id) for item_id in ids])
    for query in ({}, {"execution_id": "flow-1"}, {"definition_id": "flow"}, {"agent_id": "agent-a"}):
        assert await listed(context_store, limit, **query) == ids[::-1]


async def test_what_waits_comes_oldest_first_until_it_is_indexed(filled_store: ContextStore) -> None:
    every = [f"item-{number:02}" for number in range(12)]
    assert await waiting(filled_store) == every
    first = await filled_store.list_unindexed(3)
    assert [one.item_id for one in first] == every[:3]
    for _ in range(2):
        await filled_store.mark_indexed(first)
        assert await waiting(filled_store) == every[3:]


async def test_one_replaced_meanwhile_goes_on_waiting(context_store: ContextStore) -> None:
    await context_store.put_items([item(text="first"), item("other")])
    read = await context_store.list_unindexed(5)
    await context_store.put_items([item(text="second")])
    await context_store.mark_indexed(read)
    assert await waiting(context_store) == ["item-1"]


async def test_a_lost_index_lets_what_matches_wait_again(filled_store: ContextStore) -> None:
    await filled_store.mark_indexed(await filled_store.list_unindexed(100))
    assert await waiting(filled_store) == []
    assert await filled_store.mark_unindexed(ContextFilter(agent_id="agent-2", definition_id="flow-0")) == 3
    assert await waiting(filled_store) == ["item-02", "item-06", "item-10"]
    assert await filled_store.mark_unindexed(ContextFilter(agent_id="agent-0", execution_id="e-0")) == 1
    assert await waiting(filled_store) == ["item-00", "item-02", "item-06", "item-10"]
    assert await filled_store.mark_unindexed(ContextFilter()) == 12
    assert len(await waiting(filled_store)) == 12


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_texts_are_text(context_store: ContextStore, text: str) -> None:
    bystander = item("bystander", created_at=NOW - seconds(1))
    awkward = item(text, text, definition_id=text, execution_id=text, agent_id=text, step_id=text)
    await context_store.put_items([bystander, awkward])
    assert await context_store.get_items([text]) == {text: awkward}
    for query in ({"definition_id": text}, {"execution_id": text}, {"agent_id": text}):
        assert await listed(context_store, **query) == [text]
    assert await listed(context_store, limit=1) == [text, "bystander"]
    await context_store.mark_indexed([awkward])
    assert await waiting(context_store) == ["bystander"]


async def test_a_namespace_remembers_its_embedder(context_store: ContextStore) -> None:
    assert await context_store.get_namespace_owner("default") is None
    first = NamespaceOwner(embedder="hashing-512-v1", dimension=512)
    second = NamespaceOwner(embedder="openai:a-model:1536", dimension=1536)
    await context_store.put_namespace_owner("default", first)
    await context_store.put_namespace_owner("Default", second)
    assert await context_store.get_namespace_owner("default") == first
    for _ in range(2):
        await context_store.put_namespace_owner("default", second)
    assert await context_store.get_namespace_owner("default") == second
    for text in AWKWARD_TEXTS:
        await context_store.put_namespace_owner(text, first)
        assert await context_store.get_namespace_owner(text) == first
    assert await context_store.get_namespace_owner("Default") == second


async def test_health_names_the_backend(context_store: ContextStore) -> None:
    health = await context_store.check_health()
    assert health.backend
