"""Handoffs: rules between two agents, checked when they are made and acted on by executions that start later.

The agents of a handoff need not exist yet: definitions, agents and handoffs are written in any order.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, Field

from engine.domain.conditions import MAX_TRIGGER_ENTRIES, parse_condition, parse_trigger
from engine.domain.expressions import HANDOFF_ROOTS, ExpressionError
from engine.domain.handoff import Handoff, HandoffType
from engine.domain.ids import MAX_ID_BYTES, is_public_id
from engine.domain.issues import IssueCode, IssueList, Location, issue_details, summary
from engine.domain.structure import check_json, check_structure, without_nulls
from engine.errors import ConflictError, HandoffNotFoundError, InvalidInputError
from engine.services.paging import next_cursor, parse_cursor, parse_limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from engine.domain.json import JsonObject, JsonValue
    from engine.ports.agent_store import AgentStore
    from engine.ports.handoff_store import HandoffStore

__all__ = ["HandoffService"]

_log = logging.getLogger(__name__)

MAX_TRIES: Final = 5
"""Ids tried for one new handoff."""
MAX_MAPPED_KEYS: Final = 100
MAX_KEY_CHARS: Final = 200
_ID_PART_CHARS: Final = 36
"""Of each agent's id in a handoff's, so that the whole stays within ``MAX_ID_BYTES``."""


class _HandoffForm(BaseModel):
    source_agent_id: str
    target_agent_id: str
    handoff_type: HandoffType = "sequential"
    data_mapping: dict[str, str] = Field(default_factory=dict[str, str])
    trigger_conditions: list[str] = Field(default_factory=list[str])
    workflow_id: str | None = None


class HandoffService:
    """Checks, stores and finds handoffs.

    Args:
        handoffs: where they live.
        agents: asked whether the partners exist; one that doesn't is logged, not refused.
        clock: the present, aware UTC.
        suffix: a short random text of ``a-z0-9`` that ends each id.
    """

    def __init__(
        self,
        handoffs: HandoffStore,
        agents: AgentStore,
        clock: Callable[[], datetime],
        suffix: Callable[[], str],
    ) -> None:
        self._handoffs = handoffs
        self._agents = agents
        self._clock = clock
        self._suffix = suffix

    async def create_handoff(
        self,
        source_agent_id: str,
        target_agent_id: str,
        handoff_type: str = "sequential",
        data_mapping: dict[str, str] | None = None,
        trigger_conditions: list[str] | None = None,
        definition_id: str | None = None,
    ) -> Handoff:
        """Store a new handoff, with an id of its own also when an equal one exists.

        Args:
            source_agent_id: whose output is handed over.
            target_agent_id: who gets it; another agent than the source.
            handoff_type: ``sequential``, ``parallel`` or ``escalation``.
            data_mapping: key of the source's output to input key of the target.
            trigger_conditions: events (``completion``, ``failure``, ``timeout``) and conditions; none means
                ``completion``.
            definition_id: the one workflow for which it holds; None means all.

        Raises:
            InvalidInputError: something can't be used (``details.issues``).
            ConflictError: no free id was found.
        """
        form = _parse_form(
            {
                "source_agent_id": source_agent_id,
                "target_agent_id": target_agent_id,
                "handoff_type": handoff_type,
                "data_mapping": {**data_mapping} if isinstance(data_mapping, dict) else data_mapping,
                "trigger_conditions": [*trigger_conditions]
                if isinstance(trigger_conditions, list)
                else trigger_conditions,
                "workflow_id": definition_id,
            }
        )
        await self._log_missing_agents(form)
        now = self._clock()
        source, target = (_id_part(agent_id) for agent_id in (form.source_agent_id, form.target_agent_id))
        for _ in range(MAX_TRIES):
            handoff = Handoff(
                handoff_id=f"handoff-{source}-{target}-{self._suffix()}",
                definition_id=form.workflow_id,
                created_at=now,
                updated_at=now,
                **form.model_dump(exclude={"workflow_id"}),
            )
            if await self._handoffs.insert_handoff(handoff):
                return handoff
        raise ConflictError("No free id was found for the handoff; try again", {"source_agent_id": source_agent_id})

    async def get_handoff(self, handoff_id: str) -> Handoff:
        """Return a handoff.

        Raises:
            HandoffNotFoundError: there is none with this id, or it was deleted.
        """
        handoff = await self._handoffs.get_handoff(handoff_id)
        if handoff is None or handoff.status != "active":
            raise HandoffNotFoundError(handoff_id)
        return handoff

    async def list_handoffs(
        self,
        source_agent_id: str | None = None,
        target_agent_id: str | None = None,
        definition_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> tuple[list[Handoff], str | None]:
        """Return a page of handoffs, oldest first, and the next page's cursor.

        Args:
            source_agent_id: only those from this agent.
            target_agent_id: only those to this agent.
            definition_id: only those bound to this workflow.
            limit: 1 to 1000, 50 by default.
            cursor: of the page before, with the same filter.

        Raises:
            InvalidInputError: an argument can't be used; ``details.path`` names it.
        """
        query: JsonObject = {
            "list": "handoffs",
            "source_agent_id": source_agent_id,
            "target_agent_id": target_agent_id,
            "workflow_id": definition_id,
        }
        page = await self._handoffs.list_handoffs(
            source_agent_id=source_agent_id,
            target_agent_id=target_agent_id,
            definition_id=definition_id,
            limit=parse_limit(limit),
            after=parse_cursor(cursor, query),
        )
        return page.items, next_cursor(page, query)

    async def _log_missing_agents(self, form: _HandoffForm) -> None:
        partners = [form.source_agent_id, form.target_agent_id]
        known = await self._agents.get_agents(partners)
        for agent_id in partners:
            if agent_id not in known:
                _log.warning("A handoff names the agent %s, which is not registered yet", agent_id)


def _parse_form(raw: JsonObject) -> _HandoffForm:
    issues = IssueList(raw)
    faulty: list[Location] = [(key,) for key, value in raw.items() if not check_json(value, issues, (key,))]
    document = without_nulls(_HandoffForm, {key: value for key, value in raw.items() if (key,) not in faulty})
    form = check_structure(_HandoffForm, document, issues, ignored=faulty)
    for key in ("source_agent_id", "target_agent_id", "workflow_id"):
        value = document.get(key)
        if isinstance(value, str) and not is_public_id(value):
            issues.error(
                IssueCode.INVALID_ID,
                (key,),
                f"{key} must be 1 to {MAX_ID_BYTES} of a-z, 0-9, - _ and ., not beginning with - or .; correct it.",
            )
    source = document.get("source_agent_id")
    if isinstance(source, str) and source == document.get("target_agent_id"):
        issues.error(
            IssueCode.INVALID_VALUE, ("target_agent_id",), "An agent can't hand over to itself; name another agent."
        )
    _check_mapping(document.get("data_mapping"), issues)
    _check_trigger(document.get("trigger_conditions"), issues)
    if form is None or issues.has_errors():
        found = issues.in_order()
        raise InvalidInputError(summary("The handoff can't be created", found), issue_details(found))
    return form


def _check_mapping(mapping: JsonValue, issues: IssueList) -> None:
    if not isinstance(mapping, dict):
        return
    if len(mapping) > MAX_MAPPED_KEYS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            ("data_mapping",),
            f"data_mapping has {len(mapping)} keys; at most {MAX_MAPPED_KEYS} are allowed. "
            "Map an object that holds them.",
        )
    source_of: dict[str, str] = {}
    for key, target in mapping.items():
        location: Location = ("data_mapping", key)
        if not isinstance(target, str):
            continue
        if not key or not target or max(len(key), len(target)) > MAX_KEY_CHARS:
            issues.error(
                IssueCode.INVALID_VALUE,
                location,
                f"A key of the source's output and an input key of the target have 1 to {MAX_KEY_CHARS} characters.",
            )
        elif target in source_of:
            issues.error(
                IssueCode.DUPLICATE_ID,
                location,
                f"The input key {target} is filled from {source_of[target]} already; choose another one.",
            )
        source_of.setdefault(target, key)


def _check_trigger(conditions: JsonValue, issues: IssueList) -> None:
    if not isinstance(conditions, list):
        return
    if len(conditions) > MAX_TRIGGER_ENTRIES:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            ("trigger_conditions",),
            f"There are {len(conditions)} trigger conditions; at most {MAX_TRIGGER_ENTRIES} are allowed. "
            "Join some with and.",
        )
        return
    for index, text in enumerate(conditions):
        if not isinstance(text, str):
            continue
        if _reads_steps(text):
            issues.error(
                IssueCode.INVALID_EXPRESSION,
                ("trigger_conditions", index),
                "A handoff belongs to agents, not to the steps of one workflow; read source_output, input or "
                "execution.",
            )
            continue
        try:
            parse_trigger([text], roots=HANDOFF_ROOTS)
        except ExpressionError as error:
            message = f"{error.message[:1].upper()}{error.message[1:]} (at character {error.position + 1})"
            issues.error(IssueCode.INVALID_EXPRESSION, ("trigger_conditions", index), message)


def _reads_steps(text: str) -> bool:
    try:
        return any(path.root == "steps" for path in parse_condition(text).paths)
    except ExpressionError:
        return False


def _id_part(agent_id: str) -> str:
    return agent_id.removeprefix("agent-")[:_ID_PART_CHARS].strip("-.")
