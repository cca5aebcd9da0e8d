"""Versions, ids and races of workflow definitions, on the embedded store."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.definition_store import SqliteDefinitionStore
from engine.errors import ConflictError, DefinitionNotFoundError, InvalidInputError
from engine.services.agents import AgentService
from engine.services.definitions import MAX_TRIES, DefinitionService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engine.domain.definition import DefinitionVersion

START = datetime(2025, 5, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Setting:
    """A service on a store of its own."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.store = SqliteDefinitionStore(database, Codec())
        self.agents = SqliteAgentStore(database, Codec())
        self.clock = Clock()
        self.suffixes: Iterator[str] = (f"s{number}" for number in itertools.count())
        self.service = DefinitionService(self.store, self.store, self.agents, self.clock, lambda: next(self.suffixes))


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    database = SqliteDatabase(tmp_path / "records.db")
    yield Setting(database)
    await database.aclose()


def flow(name: str = "My Flow", **fields: Any) -> dict[str, Any]:
    return {"name": name, "steps": [{"id": "a", "agent_id": "agent-x"}], **fields}


async def test_the_id_is_a_slug_and_gets_a_suffix_when_taken(setting: Setting):
    first = await setting.service.create_definition(flow("Feature Implementation Workflow"))
    second = await setting.service.create_definition(flow("Feature implementation workflow!"))
    assert (first.definition_id, first.version) == ("feature-implementation-workflow", 1)
    assert second.definition_id == "feature-implementation-workflow-s0"
    assert first.created_at == first.updated_at == START + timedelta(seconds=1)
    assert await setting.service.get_definition(first.definition_id) is not None


async def test_a_name_without_ascii_still_gets_an_id(setting: Setting):
    one = await setting.service.create_definition(flow("工作流"))
    other = await setting.service.create_definition(flow("別"))
    assert one.definition_id.startswith("workflow-")
    assert one.definition_id != other.definition_id


async def test_no_free_id_is_a_conflict(setting: Setting):
    setting.suffixes = itertools.repeat("same")
    for _ in range(2):
        await setting.service.create_definition(flow())
    with pytest.raises(ConflictError, match="workflow_id="):
        await setting.service.create_definition(flow())


async def test_a_given_id_is_used_and_never_twice(setting: Setting):
    created = await setting.service.create_definition(flow(), "my.id_1")
    assert created.definition_id == "my.id_1"
    with pytest.raises(ConflictError) as caught:
        await setting.service.create_definition(flow(), "my.id_1")
    assert caught.value.details == {"workflow_id": "my.id_1"}
    await setting.service.delete_definition("my.id_1")
    with pytest.raises(ConflictError):
        await setting.service.create_definition(flow(), "my.id_1")


@pytest.mark.parametrize("given", ["", "-a", "A b", "a/b", "x" * 101])
async def test_a_given_id_that_is_none_is_refused(setting: Setting, given: str):
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.create_definition(flow(), given)
    assert caught.value.details["path"] == "workflow_id"


async def test_errors_keep_a_definition_from_being_stored_and_all_are_told(setting: Setting):
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.create_definition({"name": "x", "steps": [{"id": "1"}], "budget": {}})
    issues: Any = caught.value.details["issues"]
    assert [(issue["code"], issue["path"]) for issue in issues] == [
        ("invalid_id", "steps[0].id"),
        ("missing", "steps[0].agent_id"),
        ("invalid_value", "budget"),
    ]
    assert set(issues[0]) == {"severity", "code", "path", "message", "hint"}
    assert "(and 2 more)" in caught.value.message
    with pytest.raises(InvalidInputError):
        await setting.service.create_definition(None)
    assert await setting.service.list_definitions() == ([], None)


async def test_validation_tells_errors_or_else_which_agents_are_missing(setting: Setting):
    agents = AgentService(setting.agents, setting.clock, lambda _: None)
    await agents.register_agent("X", config={"model": "m"})
    raw = {"name": "x", "steps": [{"id": "a", "agent_id": "agent-x"}, {"id": "b", "agent_id": "agent-y"}]}
    issues = await setting.service.validate_definition(raw)
    assert [(issue.severity, issue.code.value, issue.path) for issue in issues] == [
        ("warning", "agent_not_found", "steps[1].agent_id")
    ]
    assert [issue.code.value for issue in await setting.service.validate_definition({"name": "x"})] == ["missing"]
    with pytest.raises(InvalidInputError):
        await setting.service.validate_definition(["x"])


async def test_validation_tells_which_workflows_of_steps_are_missing(setting: Setting):
    child = await setting.service.create_definition(flow(), "child")
    gone = await setting.service.create_definition(flow(), "gone")
    await setting.service.delete_definition(gone.definition_id)
    steps = [
        {"id": f"s{index}", "type": "workflow", "workflow_id": workflow_id}
        for index, workflow_id in enumerate((child.definition_id, gone.definition_id, "chld"))
    ]
    issues = await setting.service.validate_definition({"name": "x", "steps": steps[:1], "finally": steps[1:]})
    assert [(issue.severity, issue.code.value, issue.path, issue.hint) for issue in issues] == [
        ("warning", "workflow_not_found", "finally[0].workflow_id", None),
        ("warning", "workflow_not_found", "finally[1].workflow_id", "Did you mean 'child'?"),
    ]


async def test_an_update_takes_away_finally_steps_by_their_name(setting: Setting):
    created = await setting.service.create_definition(flow(**{"finally": [{"id": "z", "agent_id": "agent-x"}]}))
    assert [step.id for step in created.definition.final_steps] == ["z"]
    updated = await setting.service.update_definition(created.definition_id, {"finally": None})
    assert (updated.version, updated.definition.final_steps) == (2, [])


async def test_an_update_makes_a_version_and_keeps_the_id(setting: Setting):
    created = await setting.service.create_definition(flow(description="old", tags=["t"]))
    updated = await setting.service.update_definition(created.definition_id, {"name": "Other", "description": None})
    assert (updated.definition_id, updated.version) == (created.definition_id, 2)
    assert (updated.created_at, updated.updated_at) == (created.created_at, START + timedelta(seconds=2))
    stored = await setting.service.get_definition(created.definition_id)
    assert (stored.definition.name, stored.definition.description, stored.definition.tags) == ("Other", None, ["t"])
    old = await setting.service.get_definition(created.definition_id, 1)
    assert (old.version, old.definition.name) == (1, "My Flow")


@pytest.mark.parametrize(
    "updates",
    [
        {},
        {"name": "My Flow"},
        {"tags": []},
        {"tags": None},
        {"steps": [{"id": "a", "agent_id": "agent-x", "name": None}]},
    ],
)
async def test_equal_content_makes_no_version(setting: Setting, updates: dict[str, Any]):
    created = await setting.service.create_definition(flow())
    same = await setting.service.update_definition(created.definition_id, updates)
    assert (same.version, same.content_hash) == (1, created.content_hash)


@pytest.mark.parametrize(
    ("updates", "issue"),
    [
        ({"nam": "x"}, ("unknown_field", "nam")),
        ({"nam": None}, ("unknown_field", "nam")),
        ({"name": None}, ("missing", "name")),
        ({"steps": None}, ("missing", "steps")),
        ({"steps": []}, ("invalid_value", "steps")),
        ({"budget": {}}, ("invalid_value", "budget")),
        ({"output_mapping": {"a": "${steps.b.output}"}}, ("unknown_step", "output_mapping.a")),
    ],
)
async def test_an_update_is_checked_as_a_whole(setting: Setting, updates: dict[str, Any], issue: tuple[str, str]):
    created = await setting.service.create_definition(flow())
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.update_definition(created.definition_id, updates)
    issues: Any = caught.value.details["issues"]
    assert [(found["code"], found["path"]) for found in issues] == [issue]
    assert (await setting.service.get_definition(created.definition_id)).version == 1


async def test_updates_that_are_no_dict_are_refused(setting: Setting):
    created = await setting.service.create_definition(flow())
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.update_definition(created.definition_id, [])
    assert caught.value.details["path"] == "updates"


async def test_updates_at_once_all_happen(setting: Setting):
    created = await setting.service.create_definition(flow())
    fields: list[dict[str, Any]] = [{"description": "d"}, {"tags": ["t"]}, {"metadata": {"m": 1}}]
    await asyncio.gather(*(setting.service.update_definition(created.definition_id, field) for field in fields))
    stored = await setting.service.get_definition(created.definition_id)
    content = stored.definition
    assert (stored.version, content.description, content.tags, content.metadata) == (4, "d", ["t"], {"m": 1})


class ContestedStore(SqliteDefinitionStore):
    """Before each of its writes somebody else writes a version."""

    writes = 0

    async def append_version(self, version: DefinitionVersion) -> bool:
        self.writes += 1
        content = version.definition.model_copy(update={"name": f"Theirs {self.writes}"})
        theirs = version.model_copy(update={"definition": content, "content_hash": f"theirs {self.writes}"})
        assert await super().append_version(theirs)
        return await super().append_version(version)


async def test_a_race_that_is_always_lost_is_a_conflict(tmp_path: Path):
    database = SqliteDatabase(tmp_path / "records.db")
    store = ContestedStore(database, Codec())
    service = DefinitionService(store, store, SqliteAgentStore(database, Codec()), Clock(), lambda: "s")
    created = await service.create_definition(flow())
    with pytest.raises(ConflictError, match="try again"):
        await service.update_definition(created.definition_id, {"name": "Mine"})
    assert store.writes == MAX_TRIES
    stored = await service.get_definition(created.definition_id)
    assert stored.definition.name == f"Theirs {MAX_TRIES}"
    await database.aclose()


async def test_deleted_and_unknown_workflows_are_not_found(setting: Setting):
    created = await setting.service.create_definition(flow())
    await setting.service.delete_definition(created.definition_id)
    for definition_id in (created.definition_id, "unknown"):
        for call in (
            setting.service.get_definition(definition_id),
            setting.service.get_definition(definition_id, 1),
            setting.service.update_definition(definition_id, {"name": "x"}),
            setting.service.list_versions(definition_id),
            setting.service.delete_definition(definition_id),
        ):
            with pytest.raises(DefinitionNotFoundError) as caught:
                await call
            assert caught.value.details["workflow_id"] == definition_id
            assert caught.value.message == f"Workflow with ID {definition_id} not found"


async def test_an_unknown_version_is_named(setting: Setting):
    created = await setting.service.create_definition(flow())
    with pytest.raises(DefinitionNotFoundError) as caught:
        await setting.service.get_definition(created.definition_id, 2)
    assert caught.value.details == {"workflow_id": created.definition_id, "version": 2}
    no_numbers: list[Any] = [0, True, -1, 2**40, "1", 1.0]
    for wrong in no_numbers:
        with pytest.raises(InvalidInputError):
            await setting.service.get_definition(created.definition_id, wrong)


async def test_a_list_goes_on_where_the_page_before_ended(setting: Setting):
    for number in range(5):
        await setting.service.create_definition(flow(f"Flow {number}", tags=["all", "odd" if number % 2 else "even"]))
    first, cursor = await setting.service.list_definitions(limit=2)
    assert [version.definition_id for version in first] == ["flow-4", "flow-3"]
    second, cursor = await setting.service.list_definitions(limit=2, cursor=cursor)
    last, end = await setting.service.list_definitions(limit=2, cursor=cursor)
    assert [version.definition_id for version in [*second, *last]] == ["flow-2", "flow-1", "flow-0"]
    assert end is None
    even, _ = await setting.service.list_definitions(tags=["even", "all"])
    assert [version.definition_id for version in even] == ["flow-4", "flow-2", "flow-0"]


async def test_a_cursor_of_another_filter_is_refused(setting: Setting):
    for number in range(3):
        await setting.service.create_definition(flow(f"Flow {number}"))
    _, cursor = await setting.service.list_definitions(limit=1)
    assert cursor is not None
    for call in (
        setting.service.list_definitions(tags=["x"], limit=1, cursor=cursor),
        setting.service.list_definitions(status="archived", limit=1, cursor=cursor),
        setting.service.list_versions("flow-1", cursor=cursor),
        setting.service.list_definitions(cursor="cursor-token"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await call
        assert caught.value.details["path"] == "cursor"


async def test_deleted_workflows_are_listed_only_when_asked_for(setting: Setting):
    kept = await setting.service.create_definition(flow("Kept"))
    gone = await setting.service.create_definition(flow("Gone"))
    await setting.service.delete_definition(gone.definition_id)
    active, _ = await setting.service.list_definitions(status="active")
    archived, _ = await setting.service.list_definitions(status="archived")
    assert [version.definition_id for version in active] == [kept.definition_id]
    assert [(version.definition_id, version.status) for version in archived] == [(gone.definition_id, "archived")]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "10"}, "limit"),
        ({"status": "deleted"}, "status"),
        ({"tags": "feature"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"cursor": 5}, "cursor"),
    ],
)
async def test_an_argument_of_a_list_that_cannot_be_used_is_named(setting: Setting, arguments: Any, path: str):
    with pytest.raises(InvalidInputError) as caught:
        await setting.service.list_definitions(**arguments)
    assert caught.value.details["path"] == path


async def test_versions_are_listed_newest_first(setting: Setting):
    created = await setting.service.create_definition(flow())
    for number in (2, 3):
        await setting.service.update_definition(created.definition_id, {"description": f"v{number}"})
    newest, cursor = await setting.service.list_versions(created.definition_id, limit=2)
    rest, end = await setting.service.list_versions(created.definition_id, limit=2, cursor=cursor)
    assert [version.version for version in [*newest, *rest]] == [3, 2, 1]
    assert end is None
