"""The contract of ``HandoffStore``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.samples import AWKWARD_TEXTS, NOW, handoff, seconds, walk

if TYPE_CHECKING:
    from engine.ports.handoff_store import HandoffStore


async def _list_ids(store: HandoffStore, limit: int = 10, **query: Any) -> list[str]:
    given = {"source_agent_id": None, "target_agent_id": None, "definition_id": None, **query}
    found = await walk(lambda after: store.list_handoffs(limit=limit, after=after, **given), limit)
    return [item.handoff_id for item in found]


async def test_what_is_not_there_is_none(handoff_store: HandoffStore) -> None:
    assert await handoff_store.get_handoff("handoff-a") is None
    assert await _list_ids(handoff_store) == []
    assert await handoff_store.list_handoffs_among(["agent-a"], "flow") == []
    assert await handoff_store.list_handoffs_among([], "flow") == []


async def test_a_handoff_comes_back_whole(handoff_store: HandoffStore) -> None:
    whole = handoff(
        handoff_type="escalation",
        data_mapping={"a.b": "$c", "": "x"},
        trigger_conditions=["failure", "source_output.x = '${y}'"],
        definition_id="flow",
    )
    assert await handoff_store.insert_handoff(whole) is True
    assert await handoff_store.get_handoff("handoff-a") == whole


async def test_an_id_is_inserted_once(handoff_store: HandoffStore) -> None:
    answers = await asyncio.gather(
        *(handoff_store.insert_handoff(handoff(source=f"agent-{number}")) for number in range(50))
    )
    assert answers.count(True) == 1
    stored = await handoff_store.get_handoff("handoff-a")
    assert stored is not None
    assert stored.source_agent_id == f"agent-{answers.index(True)}"
    assert len(await _list_ids(handoff_store)) == 1


async def _fill(store: HandoffStore) -> None:
    rules = [
        ("h0", "a", "b", None),
        ("h1", "a", "c", None),
        ("h2", "b", "c", "flow"),
        ("h3", "a", "b", "flow"),
        ("h4", "a", "b", "other"),
        ("h5", "c", "a", None),
    ]
    for number, (handoff_id, source, target, definition_id) in enumerate(rules):
        await store.insert_handoff(
            handoff(handoff_id, source, target, definition_id=definition_id, created_at=NOW + seconds(number))
        )
    await store.insert_handoff(handoff("gone", "a", "b", definition_id="flow", status="deleted"))


@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["h0", "h1", "h2", "h3", "h4", "h5"]),
        ({"source_agent_id": "a"}, ["h0", "h1", "h3", "h4"]),
        ({"target_agent_id": "b"}, ["h0", "h3", "h4"]),
        ({"definition_id": "flow"}, ["h2", "h3"]),
        ({"source_agent_id": "a", "target_agent_id": "b"}, ["h0", "h3", "h4"]),
        ({"source_agent_id": "a", "definition_id": "flow"}, ["h3"]),
        ({"target_agent_id": "c", "definition_id": "flow"}, ["h2"]),
        ({"source_agent_id": "a", "target_agent_id": "b", "definition_id": "other"}, ["h4"]),
        ({"source_agent_id": "nobody"}, []),
    ],
)
async def test_filters_combine_and_order_is_creation(
    handoff_store: HandoffStore, query: dict[str, str], expected: list[str], limit: int
) -> None:
    await _fill(handoff_store)
    assert await _list_ids(handoff_store, limit=limit, **query) == expected


async def test_among_agents_gives_what_holds_for_a_workflow(handoff_store: HandoffStore) -> None:
    await _fill(handoff_store)
    found = await handoff_store.list_handoffs_among(["b", "a", "a", "nobody"], "flow")
    assert [item.handoff_id for item in found] == ["h0", "h1", "h2", "h3"]
    found = await handoff_store.list_handoffs_among(["a", "c"], "unbound")
    assert [item.handoff_id for item in found] == ["h0", "h1", "h5"]


@pytest.mark.parametrize("limit", [1, 3, 5])
async def test_ties_on_one_instant_are_on_one_page_each(handoff_store: HandoffStore, limit: int) -> None:
    ids = [f"h{number}" for number in range(5)]
    for handoff_id in reversed(ids):
        await handoff_store.insert_handoff(handoff(handoff_id))
    assert await _list_ids(handoff_store, limit=limit) == ids
    found = await handoff_store.list_handoffs_among(["agent-a"], "flow")
    assert [item.handoff_id for item in found] == ids


async def test_pages_are_stable_while_rows_come(handoff_store: HandoffStore) -> None:
    for number in range(3):
        await handoff_store.insert_handoff(handoff(f"h{number}", created_at=NOW + seconds(number)))
    query: dict[str, Any] = {"source_agent_id": None, "target_agent_id": None, "definition_id": None, "limit": 2}
    first = await handoff_store.list_handoffs(after=None, **query)
    await handoff_store.insert_handoff(handoff("older", created_at=NOW - seconds(1)))
    second = await handoff_store.list_handoffs(after=first.next, **query)
    assert [item.handoff_id for item in second.items] == ["h2"]
    assert second.next is None


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_are_text(handoff_store: HandoffStore, text: str) -> None:
    await handoff_store.insert_handoff(handoff("bystander"))
    awkward = handoff(text, text, text, definition_id=text, created_at=NOW + seconds(1))
    assert await handoff_store.insert_handoff(awkward)
    assert await handoff_store.get_handoff(text) == awkward
    for key in ("source_agent_id", "target_agent_id", "definition_id"):
        assert await _list_ids(handoff_store, **{key: text}) == [text]
    assert await handoff_store.list_handoffs_among([text], text) == [awkward]
    assert await handoff_store.list_handoffs_among([text], "flow") == []


async def test_health_names_the_backend(handoff_store: HandoffStore) -> None:
    health = await handoff_store.check_health()
    assert health.backend
