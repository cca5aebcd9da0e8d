"""The checks of handoffs and their lists, on the embedded store."""

from __future__ import annotations

import itertools
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.handoff_store import SqliteHandoffStore
from engine.domain.ids import is_public_id
from engine.errors import ConflictError, HandoffNotFoundError, InvalidInputError
from engine.services.agents import AgentService
from engine.services.handoffs import HandoffService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

API_EXAMPLE: dict[str, Any] = {
    "source_agent_id": "agent-project-architect",
    "target_agent_id": "agent-detail",
    "handoff_type": "sequential",
    "data_mapping": {"architecture_plan": "detailed_requirements"},
    "trigger_conditions": ["completion", "source_output.plan_complete = true"],
}


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2025, 5, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Setting:
    """A service on a store of its own."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.agents = SqliteAgentStore(database, Codec())
        self.suffixes: Iterator[str] = (f"s{number}" for number in itertools.count())
        self.service = HandoffService(
            SqliteHandoffStore(database, Codec()), self.agents, Clock(), lambda: next(self.suffixes)
        )


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    database = SqliteDatabase(tmp_path / "records.db")
    yield Setting(database)
    await database.aclose()


async def test_the_example_of_the_api_is_stored_unchanged(setting: Setting):
    created = await setting.service.create_handoff(**API_EXAMPLE)
    stored = await setting.service.get_handoff(created.handoff_id)
    assert stored == created
    assert {key: getattr(stored, key) for key in API_EXAMPLE} == API_EXAMPLE
    assert (stored.handoff_id, stored.definition_id) == ("handoff-project-architect-detail-s0", None)


async def test_what_is_left_out_has_its_default(setting: Setting):
    created = await setting.service.create_handoff("agent-a", "agent-b", definition_id="my-flow")
    assert (created.handoff_type, created.data_mapping, created.trigger_conditions) == ("sequential", {}, [])
    assert created.definition_id == "my-flow"


async def test_long_agent_ids_still_give_an_id(setting: Setting):
    created = await setting.service.create_handoff("agent-" + "a" * 94, "b" * 100)
    assert is_public_id(created.handoff_id)


async def test_no_free_id_is_a_conflict(setting: Setting):
    setting.suffixes = itertools.repeat("same")
    await setting.service.create_handoff("agent-a", "agent-b")
    with pytest.raises(ConflictError, match="try again"):
        await setting.service.create_handoff("agent-a", "agent-b")


async def test_partners_that_do_not_exist_yet_are_logged(setting: Setting, caplog: pytest.LogCaptureFixture):
    await AgentService(setting.agents, Clock(), lambda _: None).register_agent("A", config={"model": "m"})
    with caplog.at_level(logging.WARNING, "engine.services.handoffs"):
        await setting.service.create_handoff("agent-a", "agent-b")
    assert [record.getMessage() for record in caplog.records] == [
        "A handoff names the agent agent-b, which is not registered yet"
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source_agent_id": "A"}, ("invalid_id", "source_agent_id")),
        ({"source_agent_id": None}, ("missing", "source_agent_id")),
        ({"target_agent_id": "agent-project-architect"}, ("invalid_value", "target_agent_id")),
        ({"definition_id": "a/b"}, ("invalid_id", "workflow_id")),
        ({"handoff_type": "serial"}, ("invalid_value", "handoff_type")),
        ({"data_mapping": ["a"]}, ("invalid_type", "data_mapping")),
        ({"data_mapping": {"a": 1}}, ("invalid_type", "data_mapping.a")),
        ({"data_mapping": {"a": ""}}, ("invalid_value", "data_mapping.a")),
        ({"data_mapping": {"a": "x", "b": "x"}}, ("duplicate_id", "data_mapping.b")),
        ({"data_mapping": {str(i): str(i) for i in range(101)}}, ("limit_exceeded", "data_mapping")),
        ({"trigger_conditions": "completion"}, ("invalid_type", "trigger_conditions")),
        ({"trigger_conditions": [1]}, ("invalid_type", "trigger_conditions[0]")),
        ({"trigger_conditions": ["completion", "source_output.x ="]}, ("invalid_expression", "trigger_conditions[1]")),
        ({"trigger_conditions": ["output.x = 1"]}, ("invalid_expression", "trigger_conditions[0]")),
        (
            {"trigger_conditions": ["failure", "${steps.a.output.x} = 1"]},
            ("invalid_expression", "trigger_conditions[1]"),
        ),
        ({"trigger_conditions": ["completion"] * 65}, ("limit_exceeded", "trigger_conditions")),
    ],
)
async def test_what_cannot_be_used_is_named(setting: Setting, fields: dict[str, Any], expected: tuple[str, str]):
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.create_handoff(**{**API_EXAMPLE, **fields})
    issues: Any = caught.value.details["issues"]
    assert [(issue["code"], issue["path"]) for issue in issues] == [expected]
    assert (await setting.service.list_handoffs())[0] == []


async def test_every_unreadable_condition_is_named(setting: Setting):
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.create_handoff("agent-a", "agent-b", trigger_conditions=["x y", "failure", "(1"])
    issues: Any = caught.value.details["issues"]
    assert [issue["path"] for issue in issues] == ["trigger_conditions[0]", "trigger_conditions[2]"]
    assert all("at character" in issue["message"] for issue in issues)


async def test_a_condition_on_steps_is_told_to_whom_a_handoff_belongs(setting: Setting):
    conditions = ["input.kind = 'a' and steps.a.output.x = 1"]
    with pytest.raises(InvalidInputError, match="belongs to agents, not to the steps of one workflow; read source_o"):
        await setting.service.create_handoff("agent-a", "agent-b", trigger_conditions=conditions)


async def test_an_unknown_handoff_is_not_found(setting: Setting):
    with pytest.raises(HandoffNotFoundError) as caught:
        await setting.service.get_handoff("handoff-none")
    assert caught.value.details == {"handoff_id": "handoff-none"}


async def test_handoffs_are_listed_by_partner_oldest_first(setting: Setting):
    for source, target in (("agent-a", "agent-b"), ("agent-b", "agent-c"), ("agent-a", "agent-c")):
        await setting.service.create_handoff(source, target, definition_id="flow" if target == "agent-b" else None)

    async def listed(**arguments: Any) -> list[tuple[str, str]]:
        items, _ = await setting.service.list_handoffs(**arguments)
        return [(item.source_agent_id[-1], item.target_agent_id[-1]) for item in items]

    assert await listed() == [("a", "b"), ("b", "c"), ("a", "c")]
    assert await listed(source_agent_id="agent-a", limit=10) == [("a", "b"), ("a", "c")]
    assert await listed(target_agent_id="agent-c") == [("b", "c"), ("a", "c")]
    assert await listed(definition_id="flow") == [("a", "b")]
    first, cursor = await setting.service.list_handoffs(source_agent_id="agent-a", limit=1)
    rest, end = await setting.service.list_handoffs(source_agent_id="agent-a", limit=1, cursor=cursor)
    assert [item.target_agent_id for item in [*first, *rest]] == ["agent-b", "agent-c"]
    assert end is None
    with pytest.raises(InvalidInputError, match="cursor"):
        await setting.service.list_handoffs(cursor=cursor)
    with pytest.raises(InvalidInputError, match="limit"):
        await setting.service.list_handoffs(limit=0)
