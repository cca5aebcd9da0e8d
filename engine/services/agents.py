"""Agents: the name is the identity unless an id is given, and new content is a new version.

What can't be decided before a call (whether a tool exists, whether a module may be loaded) is a warning or left to
the call. What would be wrong at every call, an unknown kind or key, is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.domain.agent import Agent, AgentStatus, AgentWarning, kind_of
from engine.domain.agent_config import AgentForm, parse_agent_form
from engine.domain.hashing import content_hash
from engine.domain.ids import MAX_ID_BYTES, agent_id_of, is_public_id
from engine.domain.issues import Issue, issue_details, summary
from engine.errors import AgentNotFoundError, ConflictError, InternalError, InvalidInputError
from engine.services.paging import next_cursor, parse_cursor, parse_labels, parse_limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from engine.domain.json import JsonObject
    from engine.ports.agent_store import AgentStore

__all__ = ["AgentService"]

MAX_TRIES: Final = 5
"""Versions tried for one registration before a conflict is reported."""


class AgentService:
    """Registers and finds agents.

    Args:
        agents: where they live.
        clock: the present, aware UTC.
        why_unknown: why a tool's name can't be resolved, as far as that is known before a call; else None.
    """

    def __init__(
        self, agents: AgentStore, clock: Callable[[], datetime], why_unknown: Callable[[str], str | None]
    ) -> None:
        self._agents = agents
        self._clock = clock
        self._why_unknown = why_unknown

    async def register_agent(
        self,
        name: str,
        description: str | None = None,
        capabilities: list[str] | None = None,
        tools: list[str] | None = None,
        config: JsonObject | None = None,
        agent_id: str | None = None,
    ) -> Agent:
        """Store an agent, or its next version when the content is new; return what stands.

        Args:
            name: what people call it.
            description: what it is for.
            capabilities: labels to list agents by.
            tools: names of tools it may use; one that can't be resolved is a warning.
            config: how it is called; its keys choose the kind.
            agent_id: the id; None derives one from the name. With an id given, the name may change.

        Raises:
            InvalidInputError: something can't be used (``details.issues``), or the id is no id.
            ConflictError: the derived id belongs to an agent of another name; or others kept changing it.
        """
        form, issues = parse_agent_form(
            {
                "name": name,
                "description": description,
                "capabilities": [*capabilities] if isinstance(capabilities, list) else capabilities,
                "tools": [*tools] if isinstance(tools, list) else tools,
                "config": config,
            }
        )
        if form is None:
            raise InvalidInputError(summary("The agent can't be registered", issues), issue_details(issues))
        chosen = _parse_agent_id(agent_id) if agent_id is not None else _derived_id(form.name)
        for _ in range(MAX_TRIES):
            current = await self._agents.get_agent(chosen)
            if current is not None and agent_id is None and current.name != form.name:
                raise ConflictError(
                    f"The id {chosen} that follows from this name belongs to the agent {current.name!r}; "
                    "give another one by agent_id=, or the same one to make this its next version",
                    {"agent_id": chosen, "name": current.name},
                )
            agent = self._version(chosen, form, issues, current)
            if current is None:
                if await self._agents.insert_agent(agent):
                    return agent
            elif agent.content_hash == current.content_hash and current.status == "active":
                return current
            elif await self._agents.append_agent(agent):
                return agent
        raise ConflictError(
            f"Agent {chosen} was changed by others {MAX_TRIES} times during this registration; try again",
            {"agent_id": chosen},
        )

    async def get_agent(self, agent_id: str) -> Agent:
        """Return the newest version of an agent.

        Raises:
            AgentNotFoundError: there is none with this id.
        """
        agent = await self._agents.get_agent(agent_id)
        if agent is None:
            raise AgentNotFoundError(agent_id)
        return agent

    async def list_agents(
        self,
        capabilities: list[str] | None = None,
        status: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> tuple[list[Agent], str | None]:
        """Return a page of newest versions, latest created agent first, and the next page's cursor.

        Args:
            capabilities: the agent has all of them.
            status: ``active`` or ``inactive``; None means both.
            limit: 1 to 1000, 50 by default.
            cursor: of the page before, with the same filter.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        wanted = parse_labels(capabilities, "capabilities")
        chosen = _parse_status(status)
        query: JsonObject = {"list": "agents", "capabilities": [*wanted], "status": chosen}
        page = await self._agents.list_agents(
            capabilities=wanted, status=chosen, limit=parse_limit(limit), after=parse_cursor(cursor, query)
        )
        return page.items, next_cursor(page, query)

    def _version(self, agent_id: str, form: AgentForm, issues: list[Issue], before: Agent | None) -> Agent:
        kind = kind_of(form.config)
        if kind is None:
            raise InternalError(f"The checked config of agent {agent_id} chooses no kind; please report this")
        now = self._clock()
        return Agent(
            agent_id=agent_id,
            name=form.name,
            description=form.description,
            capabilities=form.capabilities,
            tools=form.tools,
            config=form.config,
            kind=kind,
            version=before.version + 1 if before else 1,
            content_hash=content_hash(form.model_dump(mode="json")),
            warnings=[
                *(AgentWarning(code=issue.code, message=f"{issue.path}: {issue.message}") for issue in issues),
                *(_unknown_tool(tool, why) for tool in form.tools if (why := self._why_unknown(tool)) is not None),
            ],
            created_at=before.created_at if before else now,
            updated_at=now,
        )


def _unknown_tool(tool: str, why: str) -> AgentWarning:
    return AgentWarning(code="unknown_tool", message=f"The tool {tool} can't be resolved ({why}); calls go without it.")


def _derived_id(name: str) -> str:
    # A name without ASCII letters still needs an id that is the same at the next registration.
    return agent_id_of(name) or f"agent-{content_hash(name).removeprefix('sha256:')[:8]}"


def _parse_agent_id(agent_id: str) -> str:
    if is_public_id(agent_id):
        return agent_id
    raise InvalidInputError(
        f"agent_id must be 1 to {MAX_ID_BYTES} of a-z, 0-9, - _ and ., not beginning with - or .", {"path": "agent_id"}
    )


def _parse_status(status: str | None) -> AgentStatus | None:
    if status is None or status == "active" or status == "inactive":
        return status
    raise InvalidInputError("status must be active or inactive, or left out for both", {"path": "status"})
