"""One validator for the API, the CLI and dry runs: all issues of a definition at once, in the document's order.

Checks of values and references read the raw document, not the models, so that one wrong type does not hide the
rest. The rules of steps are in ``step_rules`` and ``flow_rules``, those of expressions in ``references``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from engine.domain.definition import Budget, WorkflowDefinition
from engine.domain.hashing import canonical_json
from engine.domain.issues import Issue, IssueCode, IssueList, Location
from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.domain.json_schema import check_schema, check_value
from engine.domain.mentions import agent_mentions, workflow_mentions
from engine.domain.references import check_references
from engine.domain.step_rules import FIELD_TYPES, NEEDED_FIELDS, check_reasons, check_steps, check_timeouts
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
    "workflow_issues",
]

MAX_STEPS: Final = 10_000
MAX_DEFINITION_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of a definition's compact JSON."""

_LIMITS: Final = tuple(name for name in Budget.model_fields if name != "on_breach")


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
    definition = check_structure(WorkflowDefinition, document, issues, ignored=faulty)
    _check_values(document, issues)
    check_steps(document, faulty, issues)
    check_references(document, issues)
    return ParsedDefinition(None if issues.has_errors() else definition, issues.in_order())


def agent_issues(definition: WorkflowDefinition, known: Collection[str]) -> list[Issue]:
    """Return a warning for every mention of an agent that is not in ``known``; saving does not need them."""
    issues = IssueList(None)
    for agent_id, location in agent_mentions(definition):
        if agent_id not in known:
            issues.warn(
                IssueCode.AGENT_NOT_FOUND,
                location,
                f"There is no agent {agent_id} yet; register it before the workflow is executed.",
                issues.did_you_mean(agent_id, known),
            )
    return issues.in_order()


def workflow_issues(definition: WorkflowDefinition, known: Collection[str]) -> list[Issue]:
    """Return a warning for every mention of a workflow that is not in ``known``; saving does not need them."""
    issues = IssueList(None)
    for workflow_id, location in workflow_mentions(definition):
        if workflow_id not in known:
            issues.warn(
                IssueCode.WORKFLOW_NOT_FOUND,
                location,
                f"There is no workflow {workflow_id} yet; create it before this one is executed.",
                issues.did_you_mean(workflow_id, known),
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
    top["finally"] |= {"maxItems": MAX_STEPS}
    top["tags"] |= {"maxItems": MAX_LABELS, "items": {"type": "string", "maxLength": MAX_LABEL_CHARS}}
    top["name"]["maxLength"] = MAX_NAME_CHARS
    step["id"]["pattern"] = "^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
    parts["Step"]["allOf"] = [_rule_of_type(kind) for kind in NEEDED_FIELDS]
    parts["Budget"]["anyOf"] = [{"required": [limit]} for limit in _LIMITS]
    parts["Wait"]["oneOf"] = [{"required": ["seconds"]}, {"required": ["until"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _rule_of_type(kind: str) -> JsonObject:
    """What a step of this type needs, and which fields it can't have; a step without a type is of type agent."""
    condition: JsonObject = {"properties": {"type": {"const": kind}}}
    if kind != "agent":
        condition["required"] = ["type"]
    # A null is a field that is not set.
    foreign: JsonObject = {field: {"type": "null"} for field, types in FIELD_TYPES.items() if kind not in types}
    return {"if": condition, "then": {"required": [NEEDED_FIELDS[kind]], "properties": foreign}}


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
        elif key in ("steps", "finally") and type(value) is list:
            steps = cast("list[object]", value)
            document[key] = [_json_step(step, (key, index), issues, faulty) for index, step in enumerate(steps)]
        elif check_json(value, issues, (key,)):
            document[key] = cast("JsonValue", value)
        else:
            faulty.append((key,))
    if not faulty:
        # Each part alone is right, so only the whole is nested too deep.
        check_json(raw, issues, ())
        return None, faulty
    return document, faulty


def _json_step(step: object, place: Location, issues: IssueList, faulty: list[Location]) -> JsonValue:
    if type(step) is not dict:
        if check_json(step, issues, place):
            return cast("JsonValue", step)
        faulty.append(place)
        return None
    document: JsonObject = {}
    for key, value in cast("dict[object, object]", step).items():
        location: Location = (*place, str(key))
        if type(key) is not str:
            issues.error(IssueCode.INVALID_TYPE, location, f"The key {key!r:.60} is not text; put it in quotes.")
            faulty.append(location)
        elif check_json(value, issues, location):
            document[key] = cast("JsonValue", value)
        else:
            faulty.append(location)
    return document


def _passes_a_limit(document: JsonObject, issues: IssueList) -> bool:
    lists = [key for key in ("steps", "finally") if isinstance(document.get(key), list)]
    count = sum(len(cast("list[JsonValue]", document[key])) for key in lists)
    if count > MAX_STEPS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            ("steps",),
            f"The definition has {count} steps; at most {MAX_STEPS} are allowed, finally steps counted. "
            "Split it into several.",
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


def _check_values(document: JsonObject, issues: IssueList) -> None:
    check_name(document.get("name"), issues, ("name",))
    check_labels(document.get("tags"), issues, ("tags",))
    schema = document.get("input_schema")
    if isinstance(schema, dict):
        check_schema(schema, issues, ("input_schema",))
    defaults = _object(document.get("defaults"))
    check_reasons(defaults.get("retry_policy"), issues, ("defaults", "retry_policy"))
    check_timeouts(defaults, defaults, issues, ("defaults",))
    if document.get("steps") == []:
        issues.error(IssueCode.INVALID_VALUE, ("steps",), "A workflow needs at least one step; add one.")
    budget = document.get("budget")
    if isinstance(budget, dict) and not any(limit in budget for limit in _LIMITS):
        issues.error(
            IssueCode.INVALID_VALUE, ("budget",), f"A budget needs at least one limit: {', '.join(_LIMITS)}; add one."
        )
    if "max_handoffs" in document and document.get("handoffs") != "follow":
        issues.warn(
            IssueCode.INVALID_VALUE,
            ("max_handoffs",),
            "max_handoffs counts only with handoffs: follow; set that, or take it out.",
        )


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}
