"""The contract of ``ExecutionStore``: gates, and the lists of those that are open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.ports.execution_store import GateFilter
from tests.contract.samples import (
    AWKWARD_TEXTS,
    AWKWARD_VALUES,
    NOW,
    deep_value,
    gate,
    seconds,
    transition,
    walk,
)

if TYPE_CHECKING:
    from engine.domain.gate import GateRecord, GateStatus
    from engine.ports.execution_store import ExecutionStore


async def put(store: ExecutionStore, *gates: GateRecord) -> None:
    await store.record_transition(transition(1, None, gates=list(gates)))


async def listed(store: ExecutionStore, limit: int = 10, **query: Any) -> list[GateRecord]:
    given = GateFilter(**query)
    return await walk(lambda after: store.list_gates(given, limit=limit, after=after), limit)


async def names(store: ExecutionStore, limit: int = 10, **query: Any) -> list[str]:
    return [found.gate_id for found in await listed(store, limit, **query)]


async def test_what_is_not_there_is_none(execution_store: ExecutionStore) -> None:
    assert await execution_store.get_gate("flow-1", "approve.1") is None
    assert await listed(execution_store) == []
    assert await listed(execution_store, execution_id="e", definition_id="d", assignee="a") == []


async def test_a_gate_comes_back_whole(execution_store: ExecutionStore) -> None:
    whole = gate(
        kind="ask",
        form={"type": "object", "properties": {"note": {"type": "string"}}},
        assignees=["me", "you", "me"],
        expires_at=NOW + seconds(0.000001),
        allowed=["retry", "skip"],
    )
    await put(execution_store, whole)
    assert await execution_store.get_gate("flow-1", "approve.1") == whole
    assert await execution_store.get_gate("flow-1", "approve.2") is None
    assert await execution_store.get_gate("flow-2", "approve.1") is None
    assert await listed(execution_store) == [whole]
    budget = gate("execution:budget.1", kind="budget", step_id=None)
    await put(execution_store, budget)
    assert await execution_store.get_gate("flow-1", "execution:budget.1") == budget


@pytest.mark.parametrize("status", ["answered", "expired", "closed"])
async def test_only_open_gates_are_listed(execution_store: ExecutionStore, status: GateStatus) -> None:
    await put(execution_store, gate(assignees=["me"]), gate("other.1", assignees=["me"]))
    over = gate(token=200, status=status, assignees=["me"], answer="approve", data=[1], by="me", at=NOW + seconds(9))
    await put(execution_store, over)
    assert await execution_store.get_gate("flow-1", "approve.1") == over
    for query in ({}, {"execution_id": "flow-1"}, {"definition_id": "flow"}, {"assignee": "me"}):
        assert await names(execution_store, **query) == ["other.1"], query


async def test_the_greater_token_stands_and_an_equal_one_replaces(execution_store: ExecutionStore) -> None:
    await put(execution_store, gate(token=100))
    await put(execution_store, gate(token=100, question="Again?"))
    assert await execution_store.get_gate("flow-1", "approve.1") == gate(token=100, question="Again?")
    answered = gate(token=200, status="answered", answer="approve", at=NOW + seconds(9))
    await put(execution_store, answered)
    await put(execution_store, gate(token=150), gate("b.1", token=150))
    assert await execution_store.get_gate("flow-1", "approve.1") == answered
    assert await names(execution_store) == ["b.1"]


async def test_one_gate_twice_in_a_transition_obeys_the_fence(execution_store: ExecutionStore) -> None:
    await put(execution_store, gate(token=300, status="closed"), gate(token=200))
    assert await execution_store.get_gate("flow-1", "approve.1") == gate(token=300, status="closed")
    assert await listed(execution_store) == []


async def test_a_gate_that_opens_again_is_listed_by_what_it_is_now(execution_store: ExecutionStore) -> None:
    await put(execution_store, gate(token=1, assignees=["first"]))
    await put(execution_store, gate(token=2, status="expired", assignees=["first"]))
    again = gate(token=3, assignees=["second"], opened_at=NOW + seconds(50), definition_id="renamed")
    await put(execution_store, again)
    assert await listed(execution_store, assignee="first") == []
    assert await listed(execution_store, definition_id="flow") == []
    assert await listed(execution_store, assignee="second", definition_id="renamed") == [again]
    assert await listed(execution_store, execution_id="flow-1") == [again]


@pytest.fixture
async def filled_store(execution_store: ExecutionStore) -> ExecutionStore:
    """Sixteen open gates and four that are over, one a second, the even ones last."""
    for number in (*range(1, 20, 2), *range(0, 20, 2)):
        made = gate(
            f"g{number:02}",
            execution_id=f"flow-{number % 2}",
            definition_id="odd" if number % 4 == 1 else "even",
            assignees=["all", *(["third"] if number % 3 == 0 else [])],
            status="answered" if number % 5 == 4 else "open",
            opened_at=NOW + seconds(number),
        )
        await put(execution_store, made)
    return execution_store


def expected(**query: Any) -> list[str]:
    found: list[str] = []
    for number in range(20):
        matches = {
            "execution_id": f"flow-{number % 2}",
            "definition_id": "odd" if number % 4 == 1 else "even",
        }
        for_whom = ["all", *(["third"] if number % 3 == 0 else [])]
        if number % 5 != 4 and all(
            value in for_whom if name == "assignee" else matches[name] == value for name, value in query.items()
        ):
            found.append(f"g{number:02}")
    return found


@pytest.mark.parametrize("limit", [1, 3, 16, 17])
async def test_open_gates_come_oldest_first(filled_store: ExecutionStore, limit: int) -> None:
    assert len(expected()) == 16
    assert await names(filled_store, limit) == expected()


@pytest.mark.parametrize(
    "query",
    [
        {"execution_id": "flow-1"},
        {"definition_id": "odd"},
        {"assignee": "third"},
        {"assignee": "nobody"},
        {"definition_id": "odd", "assignee": "third"},
        {"execution_id": "flow-1", "assignee": "third"},
        {"execution_id": "flow-0", "definition_id": "odd"},
        {"execution_id": "flow-1", "definition_id": "odd", "assignee": "third"},
        {"execution_id": "flow-1", "definition_id": "even", "assignee": "all"},
    ],
)
async def test_filters_combine(filled_store: ExecutionStore, query: dict[str, Any]) -> None:
    for limit in (1, 2, 10):
        assert await names(filled_store, limit, **query) == expected(**query)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
async def test_ties_on_one_instant_are_on_one_page_each(execution_store: ExecutionStore, limit: int) -> None:
    made = [gate(f"g{number}", execution_id=f"e{number % 2}", assignees=["me"]) for number in range(6)]
    await put(execution_store, *made[:3])
    await put(execution_store, *made[3:])
    ordered = sorted(made, key=lambda each: (each.execution_id, each.gate_id))
    assert await listed(execution_store, limit) == ordered
    assert await listed(execution_store, limit, assignee="me") == ordered
    assert await listed(execution_store, limit, definition_id="flow") == ordered
    assert await listed(execution_store, limit, execution_id="e1") == [
        one for one in ordered if one.execution_id == "e1"
    ]


async def test_pages_are_stable_while_gates_come_and_go(filled_store: ExecutionStore) -> None:
    query = GateFilter(assignee="all")
    first = await filled_store.list_gates(query, limit=4, after=None)
    last = first.items[-1]
    await put(filled_store, last.model_copy(update={"token": 900, "status": "answered"}))
    await put(filled_store, gate("late", token=1, assignees=["all"], opened_at=NOW + seconds(99)))
    await put(filled_store, gate("early", token=1, assignees=["all"], opened_at=NOW - seconds(9)))
    rest = await walk(lambda after: filled_store.list_gates(query, limit=4, after=after or first.next), 4)
    assert [one.gate_id for one in [*first.items, *rest]] == [*expected(), "late"]


async def test_concurrent_first_writes_of_a_gate_leave_the_greatest_token(execution_store: ExecutionStore) -> None:
    statuses: list[GateStatus] = ["open", "answered", "expired"]
    made = [gate(token=token, status=statuses[token % 3], assignees=[f"a{token}"]) for token in range(30)]
    await asyncio.gather(*(put(execution_store, one) for one in made))
    assert await execution_store.get_gate("flow-1", "approve.1") == made[-1]
    assert made[-1].status == "expired"
    assert await listed(execution_store) == []
    for one in made:
        assert await listed(execution_store, assignee=one.assignees[0]) == []


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_assignees_are_text(execution_store: ExecutionStore, text: str) -> None:
    bystander = gate("bystander", execution_id="by", definition_id="plain", assignees=["plain"])
    awkward = gate(text, execution_id=text, definition_id=text, assignees=[text], opened_at=NOW + seconds(3))
    await put(execution_store, bystander, awkward)
    assert await execution_store.get_gate(text, text) == awkward
    assert await execution_store.get_gate("by", "bystander") == bystander
    for query in ({"execution_id": text}, {"definition_id": text}, {"assignee": text}):
        assert await listed(execution_store, **query) == [awkward], query
    assert await listed(execution_store, 1) == [bystander, awkward]


async def test_awkward_answers_come_back_exactly(execution_store: ExecutionStore) -> None:
    for number, value in enumerate([*AWKWARD_VALUES, deep_value()]):
        await put(execution_store, gate(f"g{number}", status="answered", data=value))
        stored = await execution_store.get_gate("flow-1", f"g{number}")
        assert stored is not None
        assert repr(stored.data) == repr(value)
