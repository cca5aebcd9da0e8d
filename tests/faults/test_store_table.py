"""Every call of the API, with every store in every fault: the table in docs/failures.md, cell by cell.

``PYTHONPATH=. python tests/faults/test_store_table.py`` prints the tables for the page.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from store_servers import SERVERS, store_config
from store_worlds import ASKING, CALLS, EXECUTIONS, HELD, World, opened

from engine import WorkflowEngine
from tests.servers.fault_proxy import FAULTS, FaultProxy

if TYPE_CHECKING:
    from store_worlds import Story

    from engine.adapters.temporal.dev_server import DevServerLease
    from tests.servers import RunningServer
    from tests.servers.fault_proxy import Mode

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "failures.md"
GIVE_UP_SECONDS: Final = 5
BACK_SECONDS: Final = 5
SLACK: Final = 2
"""What is promised is tested at twice its length: the machine is shared by twenty engines."""

RIGHT, ERROR, EITHER = "right", "`database_error`", "right or `database_error`"
ALLOWED: Final = {RIGHT: {"right"}, ERROR: {"database_error"}, EITHER: {"right", "database_error"}}

Outcomes = dict[str, str]
"""Fault to outcome."""
SPARED: Final[Outcomes] = dict.fromkeys(FAULTS, RIGHT)
NEEDED: Final[Outcomes] = {"down": ERROR, "hang": ERROR, "slow": EITHER, "reset": ERROR, "flap": EITHER}

TABLE: Final[dict[str, dict[tuple[str, ...], Outcomes]]] = {
    "neo4j": {
        (
            "create_workflow",
            "update_workflow",
            "delete_workflow",
            "list_workflows",
            "list_workflow_versions",
            "get_workflow: not read before",
            "execute_workflow: not read before",
            "find_workflows",
            "agent_impact",
            "handoff_paths",
            "register_agent",
            "get_agent",
            "list_agents",
            "get_agent_performance",
            "create_handoff",
            "get_handoff",
            "list_handoffs",
        ): NEEDED
    },
    "mongodb": {
        (
            "execute_workflow",
            "execute_workflow: not read before",
            "get_execution_result",
            "list_executions",
            "cancel_execution",
            "list_gates",
            "get_gate",
            "answer_gate",
            "pause_execution",
            "resume_execution",
            "retry_step",
            "skip_step",
            "diff_workflow",
            "explain_execution",
            "rerun_execution",
            "watch_execution",
            "verify_executions",
            "repair_executions",
            "get_workflow_metrics",
            "get_agent_performance",
            "get_execution_input",
            "add_context",
            "search_context",
        ): NEEDED
    },
    "redis": {},
    "pinecone": {},
}
"""Store to calls to outcomes; a call that a store does not have is right, whatever happens to the store."""
STORES: Final = {"neo4j": "Neo4j", "mongodb": "MongoDB", "redis": "Redis", "pinecone": "Pinecone"}


def outcome(store: str, fault: str, call: str) -> str:
    """What the table says."""
    return next((outcomes for calls, outcomes in TABLE[store].items() if call in calls), SPARED)[fault]


def rendered() -> str:
    """The tables of the page."""
    parts: list[str] = []
    for store, name in STORES.items():
        parts.append(f"### {name}\n\n| call | {' | '.join(FAULTS)} |\n|{' --- |' * (len(FAULTS) + 1)}\n")
        rows = [(", ".join(map(_shown, calls)), outcomes) for calls, outcomes in TABLE[store].items()]
        for calls, outcomes in (*rows, ("every other call" if rows else "every call", SPARED)):
            parts.append(f"| {calls} | {' | '.join(outcomes[fault] for fault in FAULTS)} |\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n")


def _shown(call: str) -> str:
    name, _, way = call.partition(": ")
    return f"`{name}` ({way})" if way else f"`{name}`"


def test_the_table_names_calls_that_there_are_and_each_once():
    for rows in TABLE.values():
        named = [call for calls in rows for call in calls]
        assert len(set(named)) == len(named)
        assert set(named) <= set(CALLS)


def test_every_call_of_the_api_is_made():
    api = {name for name, _ in inspect.getmembers(WorkflowEngine, inspect.isfunction) if not name.startswith("_")}
    # Reindexing takes as long as there are texts, and what it does in a fault is told on the page.
    assert {call.partition(":")[0] for call in CALLS} == api - {"aclose", "reindex_context"}


def test_the_page_has_this_table():
    assert rendered() in PAGE.read_text(encoding="utf-8"), f"run: python {Path(__file__).name}, and paste it"


@pytest.fixture(scope="module", params=[*STORES])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, store: str) -> RunningServer:
    return request.getfixturevalue(SERVERS[store])


@pytest.fixture(scope="module")
async def stories(
    store: str, server: RunningServer, dev_server: DevServerLease, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Story]:
    """What happened to this store in each fault; all faults at the same time, each in a world of its own."""
    async with AsyncExitStack() as closing:
        worlds: dict[str, World] = {}
        for fault in FAULTS:
            proxy = await closing.enter_async_context(FaultProxy(server.uri))
            config: dict[str, object] = {
                "temporal_address": dev_server.address,
                "worker": "embedded",
                "task_queue": f"faults-{os.getpid()}-{store}-{fault}",
                "data_dir": str(tmp_path_factory.mktemp(f"{store}-{fault}")),
                **store_config(store, proxy.uri),
            }
            worlds[fault] = await closing.enter_async_context(opened(World(config, store, fault, proxy)))
        first, *others = worlds.values()
        await first.prepare()
        await asyncio.gather(*(world.prepare() for world in others))
        told = await asyncio.gather(*(world.live_through() for world in worlds.values()))
    return dict(zip(worlds, told, strict=True))


@pytest.mark.parametrize("call", [*CALLS])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_does_what_the_table_says(stories: dict[str, Story], store: str, fault: Mode, call: str):
    seen = stories[fault].calls[call]
    assert seen.outcome in ALLOWED[outcome(store, fault, call)], seen
    assert seen.seconds < GIVE_UP_SECONDS * SLACK, seen


@pytest.mark.parametrize("fault", FAULTS)
def test_what_failed_is_right_when_it_is_repeated(stories: dict[str, Story], fault: Mode):
    assert {call: seen for call, seen in stories[fault].again.items() if seen.outcome != "right"} == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_runs_ends_and_no_agent_is_called_twice(stories: dict[str, Story], fault: Mode):
    story = stories[fault]
    was_cancelled = story.calls["cancel_execution"].outcome == "right"
    expected = {name: {"completed"} for name in EXECUTIONS}
    expected["stopped"] = {"cancelled"} if was_cancelled else {"cancelled", "completed"}
    assert {name: status for name, status in story.results.items() if status not in expected[name]} == {}
    assert {step: count for step, count in story.agent_calls.items() if count != 1} == {}
    # What was held has a second step, but the one that is stopped.
    assert len(story.agent_calls) >= len(EXECUTIONS) - len(ASKING) + len(HELD) - 1


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_nothing_done_twice(stories: dict[str, Story], fault: Mode):
    story = stories[fault]
    assert len(story.listed) == len(EXECUTIONS)
    assert story.doubled == []


@pytest.mark.parametrize("fault", FAULTS)
def test_all_is_well_soon_after(stories: dict[str, Story], fault: Mode):
    assert stories[fault].back_seconds < BACK_SECONDS * SLACK


@pytest.mark.parametrize("fault", FAULTS)
def test_only_the_store_of_records_holds_an_execution_up(stories: dict[str, Story], store: str, fault: Mode):
    """With any other one away, an execution starts and ends in the meantime."""
    assert stories[fault].ended_in_fault or store == "mongodb"


if __name__ == "__main__":
    print(rendered())
