"""What a check found, as data: every check collects issues, and only the caller decides whether they stop it.

Positions are kept as keys and indexes while issues are collected, so that they can be put in the order of the
document they speak of; people get them rendered as ``steps[0].input_mapping.plan``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, cast

from pydantic import BaseModel, ConfigDict

from engine.domain.expressions import render_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from engine.domain.json import JsonObject

__all__ = ["Issue", "IssueCode", "IssueList", "Location", "issue_details", "nearest_word", "summary"]

Location = tuple[str | int, ...]
"""Keys and indexes from the top of the checked document."""

MAX_COMPARISONS: Final = 20_000
"""Words compared for "did you mean" in one check; a document full of mistakes must not take seconds."""
MAX_SUGGESTION_CHARS: Final = 100


class IssueCode(StrEnum):
    """What kind of thing is wrong; programs branch on it and its meaning never changes."""

    INVALID_TYPE = "invalid_type"
    """A value of the wrong type, such as text where a number belongs."""
    MISSING = "missing"
    """A required field is not there."""
    UNKNOWN_FIELD = "unknown_field"
    """A key that nothing reads, here or in a step of this type; as a warning, an input key that ``input_schema`` does
    not allow."""
    DUPLICATE_ID = "duplicate_id"
    """An id or a name that stands twice where it may stand once."""
    INVALID_ID = "invalid_id"
    """An id with characters or a length that ids can't have."""
    UNKNOWN_STEP = "unknown_step"
    """A dependency on, or a reference to, a step that the definition does not have."""
    CYCLE = "cycle"
    """Steps that wait for each other, through ``depends_on`` or references."""
    INVALID_EXPRESSION = "invalid_expression"
    """An expression or a condition that can't be read, or that reads what is never there."""
    UNMAPPED_OUTPUT = "unmapped_output"
    """A reference to a key that the step's output does not have."""
    INVALID_SCHEMA = "invalid_schema"
    """A JSON Schema that is none, or that refers to what it does not hold."""
    LIMIT_EXCEEDED = "limit_exceeded"
    """Too long, too many or too deep."""
    INVALID_VALUE = "invalid_value"
    """A value of the right type that can't be used."""
    AGENT_NOT_FOUND = "agent_not_found"
    """A warning: the agent is not registered yet; without it an execution is refused."""
    WORKFLOW_NOT_FOUND = "workflow_not_found"
    """A warning: the workflow that a step executes is not there yet; without it an execution is refused."""


class Issue(BaseModel):
    """One thing that is wrong, where, and what to do about it."""

    model_config = ConfigDict(frozen=True)

    severity: Literal["error", "warning"]
    """An error keeps the document from being saved, a warning does not."""
    code: IssueCode
    path: str
    """``steps[0].input_mapping.plan``; empty for the document as a whole."""
    message: str
    hint: str | None = None
    """A likely correction, when there is one."""


class IssueList:
    """Issues of one document while they are collected.

    Args:
        document: what the locations point into; it gives the order.
        prefix: put before every path, e.g. ``("config",)``.
    """

    def __init__(self, document: object, prefix: Location = ()) -> None:
        self._document = document
        self._prefix = prefix
        self._found: list[tuple[Location, Issue]] = []
        self._comparisons = 0

    def error(self, code: IssueCode, location: Location, message: str, hint: str | None = None) -> None:
        """Add an error."""
        self._add(Issue(severity="error", code=code, path=self._path(location), message=message, hint=hint), location)

    def warn(self, code: IssueCode, location: Location, message: str, hint: str | None = None) -> None:
        """Add a warning."""
        self._add(Issue(severity="warning", code=code, path=self._path(location), message=message, hint=hint), location)

    def did_you_mean(self, word: object, known: Collection[str]) -> str | None:
        """Return a hint with the known word nearest to ``word``, or None; after very many, always None."""
        if not isinstance(word, str) or self._comparisons > MAX_COMPARISONS:
            return None
        self._comparisons += len(known)
        near = nearest_word(word, known)
        return None if near is None else f"Did you mean {near!r}?"

    def has_errors(self) -> bool:
        """Return whether an error was added."""
        return any(issue.severity == "error" for _, issue in self._found)

    def in_order(self) -> list[Issue]:
        """Return the issues in the order of the document; what is missing comes after what is there."""
        ranks: dict[int, dict[str, int]] = {}
        found = sorted(self._found, key=lambda entry: _rank(self._document, entry[0], ranks))
        return [issue for _, issue in found]

    def _path(self, location: Location) -> str:
        return _render(self._prefix + location)

    def _add(self, issue: Issue, location: Location) -> None:
        self._found.append((location, issue))


def _render(location: Location) -> str:
    if not location:
        return ""
    return render_path(str(location[0]), location[1:])


def _rank(document: object, location: Location, ranks: dict[int, dict[str, int]]) -> list[int]:
    # The documents live as long as the list does, so their ids are keys that can't be taken over.
    rank: list[int] = []
    here = document
    for segment in location:
        if isinstance(here, dict):
            members = cast("dict[str, object]", here)
            order = ranks.get(id(members))
            if order is None:
                order = ranks[id(members)] = {key: index for index, key in enumerate(members)}
            rank.append(order.get(str(segment), len(order)))
            here = members.get(str(segment))
        elif isinstance(here, list) and isinstance(segment, int):
            items = cast("list[object]", here)
            rank.append(segment)
            here = items[segment] if segment < len(items) else None
        else:
            break
    return rank


def nearest_word(word: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``word`` was most likely meant to be, or None when none is near."""
    if len(word) > MAX_SUGGESTION_CHARS:
        return None
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return by_lower[near[0]] if near else None


def issue_details(issues: Iterable[Issue]) -> dict[str, object]:
    """Return the ``details`` of an error that carries issues: ``{"issues": [{severity, code, path, ...}]}``."""
    found: list[JsonObject] = [issue.model_dump(mode="json") for issue in issues]
    return {"issues": found}


def summary(what: str, issues: Iterable[Issue]) -> str:
    """Return one line for an error's message: ``what``, the first error, and how many more there are."""
    errors = [issue for issue in issues if issue.severity == "error"]
    first = f"{errors[0].path}: {errors[0].message}" if errors[0].path else errors[0].message
    return f"{what}: {first}" + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
