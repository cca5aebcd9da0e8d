"""What two versions of a definition say differently, told by the names that the user gave.

Steps are matched by id, so that one more at the front changes nothing of the others, and moving one is no change: what
runs when follows from dependencies. Objects are compared key by key; lists of plain values are compared as a whole,
because their items have no names. A field that is left out and one that has its default are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from engine.domain.conditions import json_equal
from engine.domain.paths import render_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.definition import Step, WorkflowDefinition
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["Change", "ChangeKind", "diff_definitions"]

ChangeKind = Literal["added", "removed", "changed"]

_STEP_LISTS: Final = ("steps", "finally")
_Keys = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference."""

    path: str
    """``steps.plan.timeout``: a step's id stands where its position would."""
    kind: ChangeKind
    before: JsonValue = None
    """None when it was added."""
    after: JsonValue = None
    """None when it was removed."""


def diff_definitions(before: WorkflowDefinition, after: WorkflowDefinition) -> list[Change]:
    """Return what changed, in the order of a definition's fields; of steps in the later one's order."""
    changes: list[Change] = []
    pending = [*_members((), _content(before), _content(after))][::-1]
    while pending:
        keys, old, new = pending.pop()
        path = render_path(keys[0], keys[1:])
        if old is _ABSENT:
            changes.append(Change(path, "added", after=_value(new)))
        elif new is _ABSENT:
            changes.append(Change(path, "removed", before=_value(old)))
        elif isinstance(old, dict) and isinstance(new, dict):
            pending += [*_members(keys, old, new)][::-1]
        elif not json_equal(_value(old), _value(new)):
            changes.append(Change(path, "changed", _value(old), _value(new)))
    return changes


class _Absent:
    """Nothing is there, as opposed to a null."""


_ABSENT: Final = _Absent()


def _members(
    keys: _Keys, old: JsonObject, new: JsonObject
) -> Iterator[tuple[_Keys, JsonValue | _Absent, JsonValue | _Absent]]:
    """Pair the values below each key; what is gone comes first, at the place where it stood."""
    for key in [*(key for key in old if key not in new), *new]:
        yield (*keys, key), old.get(key, _ABSENT), new.get(key, _ABSENT)


def _value(value: JsonValue | _Absent) -> JsonValue:
    return None if isinstance(value, _Absent) else value


def _content(definition: WorkflowDefinition) -> JsonObject:
    content = definition.model_dump(mode="json", exclude_defaults=True, by_alias=True, exclude={"steps", "final_steps"})
    for key, steps in zip(_STEP_LISTS, (definition.steps, definition.final_steps), strict=True):
        content[key] = {step.id: _step_content(step) for step in steps}
    return content


def _step_content(step: Step) -> JsonObject:
    content: JsonObject = step.model_dump(mode="json", exclude_defaults=True, by_alias=True, exclude={"id"})
    match content.get("fallback"):
        case [only]:
            content["fallback"] = only
        case _:
            pass
    return content
