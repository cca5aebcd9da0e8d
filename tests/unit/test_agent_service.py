"""Identity, versions and the checks of agents, on the embedded store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from engine.adapters.agents.tools.tool_source import AgentTools
from engine.adapters.codec import Codec
from engine.adapters.sqlite.agent_store import SqliteAgentStore
from engine.adapters.sqlite.database import SqliteDatabase
from engine.errors import AgentNotFoundError, ConflictError, InvalidInputError
from engine.services.agents import AgentService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

API_EXAMPLE: dict[str, Any] = {
    "name": "Project Architect Agent",
    "description": "Designs and maintains project structure",
    "capabilities": ["structure_generation", "dependency_analysis"],
    "tools": ["tool-structure-generator", "tool-dependency-analyzer"],
    "config": {
        "model": "gpt-4o",
        "instructions": "You are a Project Architect Agent responsible for designing well-structured projects.",
    },
}


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2025, 5, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class NoSecrets:
    def fill_in(self, template: str, host: str | None) -> str:
        return template


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[AgentService]:
    database = SqliteDatabase(tmp_path / "records.db")
    tools = AgentTools([], {}, NoSecrets(), [])
    yield AgentService(SqliteAgentStore(database, Codec()), Clock(), tools.why_unknown)
    await tools.aclose()
    await database.aclose()


async def test_the_example_of_the_api_is_registered_with_a_warning_a_tool(service: AgentService):
    registered = await service.register_agent(**API_EXAMPLE)
    agent = await service.get_agent("agent-project-architect")
    assert agent == registered
    assert {key: getattr(agent, key) for key in API_EXAMPLE} == API_EXAMPLE
    assert (agent.kind, agent.status, agent.version) == ("llm", "active", 1)
    assert [warning.code for warning in agent.warnings] == ["unknown_tool", "unknown_tool"]
    assert agent.warnings[0].message == (
        "The tool tool-structure-generator can't be resolved (no function is registered under this name, and there is"
        " no module in the setting `agent_modules` that could register one); calls go without it."
    )


async def test_only_tools_that_cannot_be_resolved_are_warned_of(tmp_path: Path):
    database = SqliteDatabase(tmp_path / "records.db")
    unknown = {"b": "it is gone", "d": "nobody knows it"}
    service = AgentService(SqliteAgentStore(database, Codec()), Clock(), unknown.get)
    agent = await service.register_agent("Writer", tools=["a", "b", "c", "d"], config={"model": "m"})
    assert agent.tools == ["a", "b", "c", "d"]
    assert [(warning.code, warning.message) for warning in agent.warnings] == [
        ("unknown_tool", "The tool b can't be resolved (it is gone); calls go without it."),
        ("unknown_tool", "The tool d can't be resolved (nobody knows it); calls go without it."),
    ]
    await database.aclose()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"function": "package.module:name"}, "python"),
        ({"kind": "python", "function": "module:name"}, "python"),
        ({"url": "https://example.com/x", "headers": {"A": "b"}, "method": "PUT"}, "http"),
        (
            {
                "model": "m",
                "instructions": "i",
                "base_url": "http://127.0.0.1:11434/v1",
                "api_key": "${secret.OPENAI_API_KEY}",
                "temperature": 1,
                "max_tokens": 100,
                "max_turns": 3,
                "output_schema": {"type": "object"},
                "kind": "llm",
            },
            "llm",
        ),
    ],
)
async def test_the_config_chooses_the_kind(service: AgentService, config: dict[str, Any], kind: str):
    agent = await service.register_agent("Any", config=config)
    assert (agent.kind, agent.config, agent.warnings) == (kind, config, [])


async def test_equal_content_stores_nothing_and_other_content_a_version(service: AgentService):
    first = await service.register_agent("Writer", config={"model": "a"})
    assert await service.register_agent("Writer", config={"model": "a"}, capabilities=[]) == first
    second = await service.register_agent("Writer", config={"model": "b"})
    assert (second.agent_id, second.version, second.created_at) == (first.agent_id, 2, first.created_at)
    assert second.updated_at > first.updated_at
    assert (await service.get_agent(first.agent_id)).config == {"model": "b"}


async def test_registrations_at_once_are_one_agent(service: AgentService):
    same = [service.register_agent("Writer", config={"model": "a"}) for _ in range(3)]
    other = [service.register_agent("Writer", config={"model": "b"})]
    agents = await asyncio.gather(*same, *other)
    assert {agent.agent_id for agent in agents} == {"agent-writer"}
    assert (await service.get_agent("agent-writer")).version <= 3


async def test_a_derived_id_of_another_name_is_a_conflict_that_names_the_way_out(service: AgentService):
    await service.register_agent("Project Architect Agent", config={"model": "a"})
    with pytest.raises(ConflictError, match="agent_id=") as caught:
        await service.register_agent("Project Architect", config={"model": "a"})
    assert caught.value.details == {"agent_id": "agent-project-architect", "name": "Project Architect Agent"}
    other = await service.register_agent("Project Architect", config={"model": "a"}, agent_id="agent-second")
    assert (other.agent_id, other.version) == ("agent-second", 1)


async def test_a_given_id_may_change_the_name(service: AgentService):
    await service.register_agent("Old", config={"model": "a"}, agent_id="agent-one")
    renamed = await service.register_agent("New", config={"model": "a"}, agent_id="agent-one")
    assert (renamed.name, renamed.version) == ("New", 2)


async def test_a_name_without_ascii_has_an_id_that_stays(service: AgentService):
    first = await service.register_agent("建築家", config={"model": "a"})
    again = await service.register_agent("建築家", config={"model": "b"})
    assert (again.agent_id, again.version) == (first.agent_id, 2)


async def test_a_given_id_that_is_none_is_refused(service: AgentService):
    with pytest.raises(InvalidInputError) as caught:
        await service.register_agent("X", config={"model": "a"}, agent_id="Agent X")
    assert caught.value.details["path"] == "agent_id"


async def issues_of(service: AgentService, **fields: Any) -> list[dict[str, Any]]:
    with pytest.raises(InvalidInputError) as caught:
        await service.register_agent(**{"name": "X", "config": {"model": "m"}, **fields})
    issues: Any = caught.value.details["issues"]
    assert (await service.list_agents())[0] == []
    return issues


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": ""}, ("invalid_value", "name")),
        ({"name": " "}, ("invalid_value", "name")),
        ({"name": None}, ("missing", "name")),
        ({"name": "x" * 201}, ("limit_exceeded", "name")),
        ({"capabilities": "all"}, ("invalid_type", "capabilities")),
        ({"capabilities": [""]}, ("invalid_value", "capabilities[0]")),
        ({"tools": [5]}, ("invalid_type", "tools[0]")),
        ({"tools": ["t"] * 51}, ("limit_exceeded", "tools")),
        ({"config": None}, ("missing", "config")),
        ({"config": []}, ("invalid_type", "config")),
        ({"config": {"modle": "m"}}, ("missing", "config")),
        ({"config": {"kind": "lm"}}, ("invalid_value", "config.kind")),
        ({"config": {"kind": ["llm"]}}, ("invalid_value", "config.kind")),
        ({"config": {"kind": "llm"}}, ("missing", "config.model")),
        ({"config": {"model": ""}}, ("invalid_value", "config.model")),
        ({"config": {"model": "m", "url": "http://x"}}, ("unknown_field", "config.url")),
        ({"config": {"model": "m", "temprature": 1}}, ("unknown_field", "config.temprature")),
        ({"config": {"model": "m", "temperature": "1"}}, ("invalid_type", "config.temperature")),
        ({"config": {"model": "m", "temperature": 3}}, ("invalid_value", "config.temperature")),
        ({"config": {"model": "m", "max_tokens": 0}}, ("invalid_value", "config.max_tokens")),
        ({"config": {"model": "m", "max_turns": 1.5}}, ("invalid_type", "config.max_turns")),
        ({"config": {"model": "m", "base_url": "file:///etc"}}, ("invalid_value", "config.base_url")),
        ({"config": {"model": "m", "output_schema": {"type": 1}}}, ("invalid_schema", "config.output_schema.type")),
        ({"config": {"model": "m", "instructions": "x" * 65_536}}, ("limit_exceeded", "config")),
        ({"config": {"model": "m", "temperature": float("nan")}}, ("invalid_value", "config")),
        ({"config": {"function": "name"}}, ("invalid_value", "config.function")),
        ({"config": {"function": "a.b:c.d"}}, ("invalid_value", "config.function")),
        ({"config": {"function": "a..b:c"}}, ("invalid_value", "config.function")),
        ({"config": {"url": "example.com"}}, ("invalid_value", "config.url")),
        ({"config": {"url": "http://[x"}}, ("invalid_value", "config.url")),
        ({"config": {"url": "http://x", "method": "TRACE"}}, ("invalid_value", "config.method")),
        ({"config": {"url": "http://x", "headers": {"A": 1}}}, ("invalid_type", "config.headers.A")),
        ({"config": {"url": "http://x", "headers": {"A": "b\r\nC: d"}}}, ("invalid_value", "config.headers.A")),
    ],
)
async def test_what_cannot_be_used_is_named(service: AgentService, fields: dict[str, Any], expected: tuple[str, str]):
    issues = await issues_of(service, **fields)
    assert [(issue["code"], issue["path"]) for issue in issues] == [expected]


async def test_all_issues_come_at_once_and_with_hints(service: AgentService):
    issues = await issues_of(service, name="", tools=[""], config={"model": 3, "temprature": 1})
    assert [issue["path"] for issue in issues] == ["name", "tools[0]", "config.model", "config.temprature"]
    assert issues[-1]["hint"] == "Did you mean 'temperature'?"


@pytest.mark.parametrize("config", [{}, {"instructions": "x"}, {"kind": "unknown"}])
async def test_a_config_without_a_kind_is_answered_with_the_three(service: AgentService, config: dict[str, Any]):
    (issue,) = await issues_of(service, config=config)
    for word in ("model", "function", "url", "llm", "python", "http"):
        assert word in issue["message"]


@pytest.mark.parametrize(
    "key", ["sk-very-private", "${secret.}", "${secret.A B}", "x${secret.A}", "${secret.A}}", "${env.A}"]
)
async def test_a_key_in_plain_text_is_refused_and_not_repeated(service: AgentService, key: str):
    with pytest.raises(InvalidInputError, match="put it in a secret") as caught:
        await service.register_agent("X", config={"model": "m", "api_key": key})
    assert key not in str(caught.value.to_response())


async def test_credentials_in_an_address_are_refused_and_not_repeated(service: AgentService):
    with pytest.raises(InvalidInputError, match="secret") as caught:
        await service.register_agent("X", config={"url": "https://me:private@example.com"})
    assert "private" not in str(caught.value.to_response())


async def test_a_credential_in_a_header_is_a_warning(service: AgentService):
    headers = {"Authorization": "Bearer private", "X-API-Key": "${secret.KEY}", "Accept": "text/plain"}
    agent = await service.register_agent("X", config={"url": "http://x", "headers": headers})
    (warning,) = agent.warnings
    assert "Authorization" in warning.message
    assert "private" not in warning.message


async def test_an_unknown_agent_is_not_found(service: AgentService):
    with pytest.raises(AgentNotFoundError) as caught:
        await service.get_agent("agent-none")
    assert caught.value.details == {"agent_id": "agent-none"}


async def test_agents_are_listed_by_capabilities_page_by_page(service: AgentService):
    for number in range(4):
        await service.register_agent(f"N{number}", capabilities=["all", f"c{number % 2}"], config={"model": "m"})
    first, cursor = await service.list_agents(capabilities=["all"], status="active", limit=3)
    rest, end = await service.list_agents(capabilities=["all"], status="active", limit=3, cursor=cursor)
    assert [agent.name for agent in [*first, *rest]] == ["N3", "N2", "N1", "N0"]
    assert end is None
    both, _ = await service.list_agents(capabilities=["c1", "all"])
    assert [agent.name for agent in both] == ["N3", "N1"]
    assert (await service.list_agents(status="inactive"))[0] == []
    with pytest.raises(InvalidInputError, match="cursor"):
        await service.list_agents(capabilities=["c1"], cursor=cursor)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [({"status": "gone"}, "status"), ({"limit": 0}, "limit"), ({"capabilities": "x"}, "capabilities")],
)
async def test_an_argument_that_cannot_be_used_is_named(service: AgentService, arguments: Any, path: str):
    with pytest.raises(InvalidInputError) as caught:
        await service.list_agents(**arguments)
    assert caught.value.details["path"] == path
