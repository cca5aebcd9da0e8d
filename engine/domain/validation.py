"""One validator for the API, the CLI and dry runs: all issues of a definition at once, in the document's order.

Checks of values and references read the raw document, not the models, so that one wrong type does not hide the
rest. What the format has but this version does not run yet is ``unsupported``, each by name, never "unknown".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard, cast

from engine.domain.agent_call import FailureReason
from engine.domain.definition import WorkflowDefinition
from engine.domain.hashing import canonical_json
from engine.domain.ids import MAX_ID_BYTES, is_public_id, is_step_id
from engine.domain.issues import Issue, IssueCode, IssueList, Location
from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.domain.json_schema import check_schema, check_value
from engine.domain.references import check_references
from engine.domain.structure import (
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_NAME_CHARS,
    check_json,
    check_labels,
    check_name,
    check_structure,
    type_in_words,
    without_nulls,
)
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "MAX_DEFINITION_BYTES",
    "MAX_STEPS",
    "Issue",
    "IssueCode",
    "ParsedDefinition",
    "agent_issues",
    "check_input",
    "definition_schema",
    "parse_definition",
]

MAX_STEPS: Final = 10_000
MAX_DEFINITION_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of a definition's compact JSON."""

_REASONS: Final = tuple(reason.value for reason in FailureReason)
_STEP_TYPES_TO_COME: Final = ("approval", "wait", "workflow", "transform")
_UNSUPPORTED: Final = frozenset(
    [
        *((name,) for name in ("budget", "finally")),
        *(
            ("steps", "*", name)
            for name in (
                "foreach",
                "repeat_until",
                "compensate",
                "approval",
                "wait",
                "transform",
                "workflow_id",
                "version",
            )
        ),
    ]
)


@dataclass(frozen=True, slots=True)
class ParsedDefinition:
    """What became of a user's document."""

    definition: WorkflowDefinition | None
    """None when an issue is an error."""
    issues: list[Issue]
    """Errors and warnings in the order of the document."""


def parse_definition(raw: object) -> ParsedDefinition:
    """Check a document as ``create_workflow`` takes it, and make the definition of it.

    Never raises for what is in the document. Only a document that is no object, or passes a limit as a whole, is
    refused without a look at its parts.
    """
    issues = IssueList(raw)
    if not isinstance(raw, dict):
        issues.error(
            IssueCode.INVALID_TYPE, (), f"A definition is an object with name and steps, not {type_in_words(raw)}."
        )
        return ParsedDefinition(None, issues.in_order())
    document, faulty = _json_part(cast("dict[object, object]", raw), issues)
    if document is None or _passes_a_limit(document, issues):
        return ParsedDefinition(None, issues.in_order())
    document = without_nulls(WorkflowDefinition, document)
    definition = check_structure(
        WorkflowDefinition,
        document,
        issues,
        ignored=[*faulty, *_agentless_steps(document)],
        unsupported=_unsupported_message,
    )
    _check_values(document, issues)
    check_references(document, issues)
    return ParsedDefinition(None if issues.has_errors() else definition, issues.in_order())


def agent_issues(definition: WorkflowDefinition, known: Collection[str]) -> list[Issue]:
    """Return a warning for every mention of an agent that is not in ``known``; saving does not need them."""
    issues = IssueList(None)
    for index, step in enumerate(definition.steps):
        named: list[tuple[str, Location]] = [(step.agent_id, ("steps", index, "agent_id"))]
        if step.fallback is not None:
            named.append((step.fallback.agent_id, ("steps", index, "fallback", "agent_id")))
        for agent_id, location in named:
            if agent_id not in known:
                issues.warn(
                    IssueCode.AGENT_NOT_FOUND,
                    location,
                    f"There is no agent {agent_id} yet; register it before the workflow is executed.",
                    issues.did_you_mean(agent_id, known),
                )
    return issues.in_order()


def check_input(schema: JsonObject | None, value: JsonValue) -> list[Issue]:
    """Return what keeps ``value`` from being an execution's input; paths begin with ``input_data``.

    Args:
        schema: the definition's ``input_schema``; without one any JSON is right.
        value: the input.
    """
    issues = IssueList(value, prefix=("input_data",))
    if check_json(value, issues, ()) and schema is not None:
        check_value(schema, value, issues)
    return issues.in_order()


def definition_schema() -> JsonObject:
    """Return the JSON Schema (draft 2020-12) of a definition, for editors; it is shipped with the docs."""
    schema = cast("JsonObject", WorkflowDefinition.model_json_schema())
    parts = cast("dict[str, JsonObject]", schema["$defs"])
    specs = [schema, *(part for part in parts.values() if part.get("type") == "object")]
    for spec in specs:
        spec["additionalProperties"] = False
    top = cast("dict[str, JsonObject]", schema["properties"])
    step = cast("dict[str, JsonObject]", parts["Step"]["properties"])
    top["steps"] |= {"minItems": 1, "maxItems": MAX_STEPS}
    top["tags"] |= {"maxItems": MAX_LABELS, "items": {"type": "string", "maxLength": MAX_LABEL_CHARS}}
    top["name"]["maxLength"] = MAX_NAME_CHARS
    step["id"]["pattern"] = "^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _json_part(raw: dict[object, object], issues: IssueList) -> tuple[JsonObject | None, list[Location]]:
    """Return the document without its parts that are no JSON, and where those were; None when nothing is left."""
    if json_fault(raw) is None:
        try:
            canonical_json(cast("JsonObject", raw))
        except InvalidInputError:
            pass  # half a surrogate pair somewhere: the search below finds and reports it
        else:
            return cast("JsonObject", raw), []
    faulty: list[Location] = []
    document: JsonObject = {}
    for key, value in raw.items():
        if type(key) is not str:
            issues.error(IssueCode.INVALID_TYPE, (), f"The key {key!r:.60} is not text; put it in quotes.")
            faulty.append((repr(key),))
        elif key == "steps" and type(value) is list:
            steps = cast("list[object]", value)
            document[key] = [_json_step(step, index, issues, faulty) for index, step in enumerate(steps)]
        elif check_json(value, issues, (key,)):
            document[key] = cast("JsonValue", value)
        else:
            faulty.append((key,))
    if not faulty:
        # Each part alone is right, so only the whole is nested too deep.
        check_json(raw, issues, ())
        return None, faulty
    return document, faulty


def _json_step(step: object, index: int, issues: IssueList, faulty: list[Location]) -> JsonValue:
    if type(step) is not dict:
        if check_json(step, issues, ("steps", index)):
            return cast("JsonValue", step)
        faulty.append(("steps", index))
        return None
    document: JsonObject = {}
    for key, value in cast("dict[object, object]", step).items():
        location: Location = ("steps", index, str(key))
        if type(key) is not str:
            issues.error(IssueCode.INVALID_TYPE, location, f"The key {key!r:.60} is not text; put it in quotes.")
            faulty.append(location)
        elif check_json(value, issues, location):
            document[key] = cast("JsonValue", value)
        else:
            faulty.append(location)
    return document


def _passes_a_limit(document: JsonObject, issues: IssueList) -> bool:
    steps = document.get("steps")
    if isinstance(steps, list) and len(steps) > MAX_STEPS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            ("steps",),
            f"The definition has {len(steps)} steps; at most {MAX_STEPS} are allowed. Split it into several.",
        )
        return True
    size = len(canonical_json(document))
    if size > MAX_DEFINITION_BYTES:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            (),
            f"The definition has {size} bytes; at most {MAX_DEFINITION_BYTES} are allowed. Pass large texts as input.",
        )
        return True
    return False


def _agentless_steps(document: JsonObject) -> list[Location]:
    """Where an ``agent_id`` is rightly missing: steps of the types to come."""
    steps = document.get("steps")
    return [
        ("steps", index, "agent_id")
        for index, step in enumerate(steps if isinstance(steps, list) else [])
        if isinstance(step, dict) and step.get("type") in _STEP_TYPES_TO_COME and "agent_id" not in step
    ]


def _unsupported_message(location: Location, value: object) -> str | None:
    pattern = tuple("*" if isinstance(segment, int) else segment for segment in location)
    name = location[-1]
    if pattern in _UNSUPPORTED:
        return f"{name} is not supported yet; this version does not run it. Take it out."
    if pattern == ("handoffs",) and value == "follow":
        return "handoffs: follow is not supported yet; this version acts on handoffs between dependent steps (edges)."
    if pattern == ("steps", "*", "on_error") and value == "ask":
        return "on_error: ask is not supported yet; use fail or continue."
    if pattern == ("steps", "*", "type") and value in _STEP_TYPES_TO_COME:
        return f"Steps of type {value} are not supported yet; this version runs steps of type agent."
    if pattern == ("steps", "*", "fallback") and isinstance(value, list):
        return "A list of fallbacks is not supported yet; give one: {agent_id: ...}."
    return None


def _check_values(document: JsonObject, issues: IssueList) -> None:
    check_name(document.get("name"), issues, ("name",))
    check_labels(document.get("tags"), issues, ("tags",))
    schema = document.get("input_schema")
    if isinstance(schema, dict):
        check_schema(schema, issues, ("input_schema",))
    defaults = _object(document.get("defaults"))
    _check_reasons(defaults.get("retry_policy"), issues, ("defaults", "retry_policy"))
    _check_timeouts(defaults, defaults, issues, ("defaults",))
    steps = document.get("steps")
    if isinstance(steps, list):
        if not steps:
            issues.error(IssueCode.INVALID_VALUE, ("steps",), "A workflow needs at least one step; add one.")
        _check_steps(steps, defaults, issues)


def _check_steps(steps: list[JsonValue], defaults: JsonObject, issues: IssueList) -> None:
    first_at: dict[str, int] = {}
    for index, step in enumerate(steps):
        if not isinstance(step, dict):
            continue
        place: Location = ("steps", index)
        step_id = step.get("id")
        if isinstance(step_id, str):
            _check_step_id(step_id, index, first_at, issues)
        check_name(step.get("name"), issues, (*place, "name"))
        _check_agent_id(step.get("agent_id"), issues, (*place, "agent_id"))
        _check_agent_id(_object(step.get("fallback")).get("agent_id"), issues, (*place, "fallback", "agent_id"))
        _check_reasons(step.get("retry_policy"), issues, (*place, "retry_policy"))
        _check_reasons(step.get("fallback"), issues, (*place, "fallback"), "on")
        _check_repeats(step, issues, place)
        schema = step.get("output_schema")
        if isinstance(schema, dict):
            check_schema(schema, issues, (*place, "output_schema"))
        if "timeout" in step or "total_timeout" in step:
            _check_timeouts(step, defaults, issues, place)


def _check_step_id(step_id: str, index: int, first_at: dict[str, int], issues: IssueList) -> None:
    location: Location = ("steps", index, "id")
    if not is_step_id(step_id):
        issues.error(
            IssueCode.INVALID_ID,
            location,
            "A step's id is 1 to 64 letters, digits, _ or -, beginning with a letter or _; rename it.",
        )
    elif step_id in first_at:
        issues.error(
            IssueCode.DUPLICATE_ID, location, f"steps[{first_at[step_id]}] has the id {step_id} too; rename one."
        )
    else:
        first_at[step_id] = index


def _check_agent_id(agent_id: JsonValue, issues: IssueList, location: Location) -> None:
    if isinstance(agent_id, str) and not is_public_id(agent_id):
        issues.error(
            IssueCode.INVALID_ID,
            location,
            f"An agent's id is 1 to {MAX_ID_BYTES} of a-z, 0-9, - _ and ., not beginning with - or .; correct it.",
        )


def _check_reasons(part: JsonValue, issues: IssueList, place: Location, key: str = "non_retryable") -> None:
    reasons = _object(part).get(key)
    for index, reason in enumerate(reasons if isinstance(reasons, list) else []):
        if isinstance(reason, str) and reason not in _REASONS:
            issues.warn(
                IssueCode.INVALID_VALUE,
                (*place, key, index),
                f"No call of Baton's own fails for this reason; the known ones are {', '.join(_REASONS)}.",
                issues.did_you_mean(reason, _REASONS),
            )


def _check_repeats(step: JsonObject, issues: IssueList, place: Location) -> None:
    if _object(step.get("fallback")).get("on") == []:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "fallback", "on"),
            "A fallback for no reason is never called; name reasons, or leave on out to call it for all.",
        )
    retries = _object(step.get("retry_policy")).get("max_retries")
    if step.get("at_most_once") is True and _is_number(retries) and retries > 0:
        issues.error(
            IssueCode.INVALID_VALUE,
            (*place, "retry_policy", "max_retries"),
            "A call that is made at most once has no retries; take out max_retries or at_most_once.",
        )


def _check_timeouts(spec: JsonObject, defaults: JsonObject, issues: IssueList, place: Location) -> None:
    timeout = spec.get("timeout", defaults.get("timeout"))
    total = spec.get("total_timeout", defaults.get("total_timeout"))
    if not _is_number(timeout) or not _is_number(total) or timeout <= total:
        return
    key = "total_timeout" if "total_timeout" in spec else "timeout"
    issues.warn(
        IssueCode.INVALID_VALUE,
        (*place, key),
        f"One attempt may take {timeout:g} s but all together only {total:g} s, so timeout never counts; "
        "raise total_timeout or lower timeout.",
    )


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}
