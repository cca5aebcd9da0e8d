"""The contract of ``DefinitionStore``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.definition import FORMAT_VERSION, WorkflowDefinition
from engine.errors import StoreError
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, NOW, deep_value, definition, seconds, walk

if TYPE_CHECKING:
    from engine.ports.definition_store import DefinitionStore


async def _list_ids(store: DefinitionStore, limit: int = 10, **query: object) -> list[str]:
    given = {"tags": [], "status": "active", **query}
    found = await walk(lambda after: store.list_definitions(limit=limit, after=after, **given), limit)
    return [version.definition_id for version in found]


async def test_what_is_not_there_is_none(definition_store: DefinitionStore) -> None:
    assert await definition_store.get_definition("flow") is None
    assert await definition_store.get_definition("flow", 1) is None
    assert (await definition_store.list_versions("flow", limit=5, after=None)).items == []
    assert await _list_ids(definition_store) == []
    assert await definition_store.archive_definition("flow", NOW) is False
    assert await definition_store.append_version(definition(version=2)) is False
    assert await definition_store.get_definition("flow", 2) is None


async def test_an_inserted_definition_comes_back_whole(definition_store: DefinitionStore) -> None:
    version = definition(tags=["x", "y"], metadata={"owner": "me"}, updated_at=NOW + seconds(0.000001))
    assert await definition_store.insert_definition(version) is True
    assert await definition_store.get_definition("flow") == version
    assert await definition_store.get_definition("flow", 1) == version
    assert await definition_store.get_definition("flow", 2) is None


async def test_every_construct_of_a_definition_comes_back(definition_store: DefinitionStore) -> None:
    version = definition()
    stored = version.model_copy(update={"definition": WorkflowDefinition.model_validate(EVERY_CONSTRUCT)})
    assert await definition_store.insert_definition(stored)
    found = await definition_store.get_definition("flow")
    assert found == stored
    assert found is not None
    assert found.definition.to_dict() == EVERY_CONSTRUCT
    assert await definition_store.append_version(stored.model_copy(update={"version": 2}))
    listed = await definition_store.list_versions("flow", limit=5, after=None)
    assert [each.definition.to_dict() for each in listed.items] == [EVERY_CONSTRUCT, EVERY_CONSTRUCT]


EVERY_CONSTRUCT: dict[str, Any] = {
    "name": "Every construct",
    "handoffs": "follow",
    "max_handoffs": 3,
    "on_failure": "finish",
    "budget": {"tokens": 5, "usd": 0.5, "agent_calls": 2, "seconds": 1.5, "on_breach": "ask"},
    "cleanup_timeout": 60.0,
    "steps": [
        {
            "id": "many",
            "agent_id": "x",
            "fallback": [{"agent_id": "y", "on": ["timeout"]}, {"agent_id": "z"}],
            "foreach": {"items": "${input.files}", "as": "file", "max_concurrency": 3, "tolerate": "10%"},
            "repeat_until": {"condition": "output.done = true", "max_iterations": 4},
            "compensate": {"agent_id": "undo", "input_mapping": {"what": "${steps.many.output}"}},
            "join": "settled",
            "on_error": "ask",
        },
        {"id": "listed", "agent_id": "x", "foreach": {"items": [1, {"a": None}], "tolerate": 2}},
        {"id": "made", "type": "transform", "transform": {"a": "${input.a}"}},
        {"id": "later", "type": "wait", "wait": {"until": "${input.at}"}},
        {"id": "child", "type": "workflow", "workflow_id": "other", "version": 2},
        {
            "id": "asked",
            "type": "approval",
            "approval": {
                "question": "Shall it?",
                "allowed": ["yes", "no"],
                "schema": {"type": "object"},
                "assignees": ["me"],
                "timeout": 5.0,
                "on_timeout": "escalate",
                "default": "no",
                "escalate_to": ["you"],
                "fail_on": ["no"],
            },
        },
    ],
    "finally": [{"id": "last", "agent_id": "x", "fallback": {"agent_id": "y"}}],
}


async def test_an_id_is_taken_for_ever(definition_store: DefinitionStore) -> None:
    first = definition(name="First", tags=["one"])
    assert await definition_store.insert_definition(first)
    assert await definition_store.insert_definition(definition(name="Second", tags=["two"])) is False
    assert await definition_store.get_definition("flow") == first
    assert await _list_ids(definition_store, tags=["two"]) == []
    assert await definition_store.archive_definition("flow", NOW)
    assert await definition_store.insert_definition(definition(name="Third")) is False


async def test_versions_have_no_gaps_and_one_writer_wins(definition_store: DefinitionStore) -> None:
    await definition_store.insert_definition(definition())
    assert await definition_store.append_version(definition(version=3)) is False
    assert await definition_store.append_version(definition(version=1)) is False
    answers = await asyncio.gather(
        *(definition_store.append_version(definition(version=2, name=f"By {number}")) for number in range(20))
    )
    assert answers.count(True) == 1
    newest = await definition_store.get_definition("flow")
    assert newest is not None
    assert (newest.version, newest.definition.name) == (2, f"By {answers.index(True)}")
    assert (await definition_store.get_definition("flow", 1)) == definition()


async def test_concurrent_inserts_of_one_id_store_one(definition_store: DefinitionStore) -> None:
    answers = await asyncio.gather(
        *(definition_store.insert_definition(definition(name=f"By {number}")) for number in range(50))
    )
    assert answers.count(True) == 1
    stored = await definition_store.get_definition("flow")
    assert stored is not None
    assert stored.definition.name == f"By {answers.index(True)}"


async def test_versions_are_listed_newest_first(definition_store: DefinitionStore) -> None:
    await definition_store.insert_definition(definition())
    for version in range(2, 13):
        assert await definition_store.append_version(definition(version=version))
    await definition_store.insert_definition(definition("other"))
    found = await walk(lambda after: definition_store.list_versions("flow", limit=5, after=after), 5)
    assert [version.version for version in found] == list(range(12, 0, -1))


async def test_the_list_shows_newest_versions_in_order_of_creation(definition_store: DefinitionStore) -> None:
    for number in range(5):
        await definition_store.insert_definition(definition(f"flow-{number}", created_at=NOW + seconds(number)))
    await definition_store.append_version(definition("flow-1", 2, created_at=NOW + seconds(1), name="New"))
    found = await walk(
        lambda after: definition_store.list_definitions(tags=[], status="active", limit=2, after=after), 2
    )
    assert [(v.definition_id, v.version) for v in found] == [
        ("flow-4", 1), ("flow-3", 1), ("flow-2", 1), ("flow-1", 2), ("flow-0", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
async def test_ties_on_one_instant_are_on_one_page_each(definition_store: DefinitionStore, limit: int) -> None:
    ids = [f"flow-{number}" for number in range(6)]
    for definition_id in ids:
        await definition_store.insert_definition(definition(definition_id, tags=["t"]))
    assert await _list_ids(definition_store, limit=limit) == ids[::-1]
    assert await _list_ids(definition_store, limit=limit, tags=["t"]) == ids[::-1]


async def test_pages_are_stable_while_rows_come(definition_store: DefinitionStore) -> None:
    for number in range(4):
        await definition_store.insert_definition(definition(f"flow-{number}", created_at=NOW + seconds(number)))
    first = await definition_store.list_definitions(tags=[], status="active", limit=2, after=None)
    await definition_store.insert_definition(definition("newer", created_at=NOW + seconds(9)))
    await definition_store.archive_definition("flow-3", NOW)
    second = await definition_store.list_definitions(tags=[], status="active", limit=2, after=first.next)
    assert [v.definition_id for v in [*first.items, *second.items]] == ["flow-3", "flow-2", "flow-1", "flow-0"]
    assert second.next is None


async def test_all_tags_must_be_on_the_newest_version(definition_store: DefinitionStore) -> None:
    await definition_store.insert_definition(definition("both", tags=["x", "y", "x"]))
    await definition_store.insert_definition(definition("one", tags=["x"], created_at=NOW + seconds(1)))
    await definition_store.insert_definition(definition("changed", tags=["x", "y"], created_at=NOW + seconds(2)))
    await definition_store.append_version(definition("changed", 2, tags=["y", "z"], created_at=NOW + seconds(2)))
    assert await _list_ids(definition_store, tags=["x"]) == ["one", "both"]
    assert await _list_ids(definition_store, tags=["x", "y"]) == ["both"]
    assert await _list_ids(definition_store, tags=["y", "z"]) == ["changed"]
    assert await _list_ids(definition_store, tags=["y", "nowhere"]) == []


async def test_pages_with_tags_are_full(definition_store: DefinitionStore) -> None:
    for number in range(12):
        tags = ["common", "rare"] if number % 3 == 0 else ["common"]
        await definition_store.insert_definition(
            definition(f"flow-{number:02}", tags=tags, created_at=NOW + seconds(number))
        )
    assert await _list_ids(definition_store, tags=["common", "rare"], limit=2) == [
        "flow-09", "flow-06", "flow-03", "flow-00",
    ]  # fmt: skip


async def test_archiving_happens_once_and_shows_everywhere(definition_store: DefinitionStore) -> None:
    await definition_store.insert_definition(definition(tags=["x"]))
    await definition_store.append_version(definition(version=2, tags=["x"]))
    assert await definition_store.archive_definition("flow", NOW) is True
    assert await definition_store.archive_definition("flow", NOW) is False
    assert await definition_store.append_version(definition(version=3)) is False
    stored = await definition_store.get_definition("flow")
    old = await definition_store.get_definition("flow", 1)
    assert stored is not None
    assert old is not None
    assert (stored.version, stored.status, old.status) == (2, "archived", "archived")
    assert await _list_ids(definition_store) == []
    assert await _list_ids(definition_store, tags=["x"]) == []
    assert await _list_ids(definition_store, status="archived", tags=["x"]) == ["flow"]
    versions = await definition_store.list_versions("flow", limit=5, after=None)
    assert {version.status for version in versions.items} == {"archived"}


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
async def test_awkward_ids_and_tags_are_text(definition_store: DefinitionStore, text: str) -> None:
    other = definition("bystander", tags=["plain"])
    await definition_store.insert_definition(other)
    version = definition(text, tags=[text], name=text or "x", created_at=NOW + seconds(1))
    assert await definition_store.insert_definition(version)
    assert await definition_store.get_definition(text) == version
    assert await _list_ids(definition_store, tags=[text]) == [text]
    assert await _list_ids(definition_store, limit=1) == [text, "bystander"]
    assert await definition_store.archive_definition(text, NOW)
    assert await _list_ids(definition_store) == ["bystander"]
    assert await definition_store.get_definition("bystander") == other


async def test_awkward_metadata_comes_back_exactly(definition_store: DefinitionStore) -> None:
    metadata = {"values": AWKWARD_VALUES, "deep": deep_value(60)}
    await definition_store.insert_definition(definition(metadata=metadata))
    stored = await definition_store.get_definition("flow")
    assert stored is not None
    assert repr(stored.definition.metadata) == repr(metadata)


async def test_a_definition_of_a_newer_format_is_refused(definition_store: DefinitionStore) -> None:
    await definition_store.insert_definition(definition(format_version=FORMAT_VERSION + 1))
    with pytest.raises(StoreError, match="newer version of Baton"):
        await definition_store.get_definition("flow")


async def test_health_names_the_backend(definition_store: DefinitionStore) -> None:
    health = await definition_store.check_health()
    assert health.backend
    assert health.version
