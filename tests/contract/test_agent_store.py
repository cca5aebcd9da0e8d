"""The contract of ``AgentStore``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.agent import AgentWarning
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, NOW, agent, seconds, walk

if TYPE_CHECKING:
    from engine.ports.agent_store import AgentStore


async def _list_ids(store: AgentStore, limit: int = 10, **query: Any) -> list[str]:
    given = {"capabilities": [], "status": None, **query}
    return [a.agent_id for a in await walk(lambda after: store.list_agents(limit=limit, after=after, **given), limit)]


async def test_what_is_not_there_is_none(agent_store: AgentStore) -> None:
    assert await agent_store.get_agent("agent-a") is None
    assert await agent_store.get_agents(["agent-a", "agent-b"]) == {}
    assert await agent_store.get_agents([]) == {}
    assert await _list_ids(agent_store) == []
    assert await agent_store.append_agent(agent(version=2)) is False
    assert await agent_store.get_agent("agent-a", 2) is None


async def test_an_agent_comes_back_whole(agent_store: AgentStore) -> None:
    whole = agent(
        capabilities=["plan"],
        tools=["tool-x"],
        config={"function": "pkg:f", "values": AWKWARD_VALUES},
        warnings=[AgentWarning(code="unknown_tool", message="tool-x")],
        description="An agent",
    )
    assert await agent_store.insert_agent(whole) is True
    assert await agent_store.get_agent("agent-a") == whole
    assert await agent_store.get_agent("agent-a", 1) == whole
    assert await agent_store.get_agent("agent-a", 2) is None


async def test_an_id_is_inserted_once(agent_store: AgentStore) -> None:
    answers = await asyncio.gather(*(agent_store.insert_agent(agent(name=f"By {number}")) for number in range(50)))
    assert answers.count(True) == 1
    stored = await agent_store.get_agent("agent-a")
    assert stored is not None
    assert stored.name == f"By {answers.index(True)}"


async def test_versions_have_no_gaps_and_one_writer_wins(agent_store: AgentStore) -> None:
    await agent_store.insert_agent(agent())
    assert await agent_store.append_agent(agent(version=3)) is False
    assert await agent_store.append_agent(agent(version=1)) is False
    answers = await asyncio.gather(
        *(agent_store.append_agent(agent(version=2, name=f"By {number}")) for number in range(20))
    )
    assert answers.count(True) == 1
    newest = await agent_store.get_agent("agent-a")
    assert newest is not None
    assert (newest.version, newest.name) == (2, f"By {answers.index(True)}")
    assert await agent_store.get_agent("agent-a", 1) == agent()


async def test_many_ids_give_their_newest_versions(agent_store: AgentStore) -> None:
    await agent_store.insert_agent(agent())
    await agent_store.append_agent(agent(version=2, name="New"))
    await agent_store.insert_agent(agent("agent-b"))
    await agent_store.insert_agent(agent("agent-c"))
    found = await agent_store.get_agents(["agent-b", "agent-a", "nobody", "agent-a"])
    assert found == {"agent-a": agent(version=2, name="New"), "agent-b": agent("agent-b")}


async def test_the_list_filters_newest_versions_by_status(agent_store: AgentStore) -> None:
    for number in range(4):
        await agent_store.insert_agent(agent(f"agent-{number}", created_at=NOW + seconds(number), capabilities=["c"]))
    await agent_store.append_agent(
        agent("agent-2", 2, created_at=NOW + seconds(2), status="inactive", capabilities=["c"])
    )
    assert await _list_ids(agent_store, limit=3) == ["agent-3", "agent-2", "agent-1", "agent-0"]
    assert await _list_ids(agent_store, limit=1, status="active") == ["agent-3", "agent-1", "agent-0"]
    assert await _list_ids(agent_store, status="inactive") == ["agent-2"]
    assert await _list_ids(agent_store, status="inactive", capabilities=["c"]) == ["agent-2"]
    assert await _list_ids(agent_store, limit=1, status="active", capabilities=["c"]) == [
        "agent-3", "agent-1", "agent-0",
    ]  # fmt: skip


async def test_all_capabilities_must_be_on_the_newest_version(agent_store: AgentStore) -> None:
    await agent_store.insert_agent(agent("both", capabilities=["x", "y", "x"]))
    await agent_store.insert_agent(agent("one", capabilities=["x"], created_at=NOW + seconds(1)))
    await agent_store.append_agent(agent("one", 2, capabilities=["y", "z"], created_at=NOW + seconds(1)))
    assert await _list_ids(agent_store, capabilities=["x"]) == ["both"]
    assert await _list_ids(agent_store, capabilities=["y"], limit=1) == ["one", "both"]
    assert await _list_ids(agent_store, capabilities=["y", "x"]) == ["both"]
    assert await _list_ids(agent_store, capabilities=["x", "z"]) == []


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
async def test_ties_on_one_instant_are_on_one_page_each(agent_store: AgentStore, limit: int) -> None:
    ids = [f"agent-{number}" for number in range(5)]
    for agent_id in ids:
        await agent_store.insert_agent(agent(agent_id))
    assert await _list_ids(agent_store, limit=limit) == ids[::-1]


async def test_pages_are_stable_while_rows_come(agent_store: AgentStore) -> None:
    for number in range(4):
        await agent_store.insert_agent(agent(f"agent-{number}", created_at=NOW + seconds(number)))
    first = await agent_store.list_agents(capabilities=[], status=None, limit=2, after=None)
    await agent_store.insert_agent(agent("newer", created_at=NOW + seconds(9)))
    second = await agent_store.list_agents(capabilities=[], status=None, limit=2, after=first.next)
    assert [a.agent_id for a in second.items] == ["agent-1", "agent-0"]
    assert second.next is None


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_capabilities_are_text(agent_store: AgentStore, text: str) -> None:
    await agent_store.insert_agent(agent("bystander", capabilities=["plain"]))
    awkward = agent(text, capabilities=[text], created_at=NOW + seconds(1))
    assert await agent_store.insert_agent(awkward)
    assert await agent_store.get_agent(text) == awkward
    assert await agent_store.get_agents([text]) == {text: awkward}
    assert await _list_ids(agent_store, capabilities=[text]) == [text]
    assert await _list_ids(agent_store, limit=1) == [text, "bystander"]


async def test_health_names_the_backend(agent_store: AgentStore) -> None:
    health = await agent_store.check_health()
    assert health.backend
