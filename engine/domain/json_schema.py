"""JSON Schema (draft 2020-12) with everything remote switched off: a schema may only refer to itself.

A schema comes from whoever writes definitions, so nothing in one makes this process fetch an address, and a
schema that never ends is an issue instead of a crash. Messages are Baton's own: the library's repeat the checked
value, which may be large or private.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, cast

from engine.domain.issues import IssueCode, IssueList, Location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["MAX_SCHEMA_ISSUES", "check_schema", "check_value", "closed_properties"]

MAX_SCHEMA_ISSUES: Final = 20
"""Most issues of one check of a schema, or of a value by a schema."""
MAX_CHECKED_PARTS: Final = 2_000
"""Most references and patterns looked at when a schema is saved; a fault in a later one shows when it is used."""
MAX_SHOWN_CHARS: Final = 200

_NAMED_SCHEMAS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA: Final = ("const", "enum", "default", "examples")


class _SchemaFault(Protocol):
    """What is used of ``jsonschema.ValidationError``."""

    @property
    def absolute_path(self) -> Iterable[str | int]: ...
    @property
    def validator(self) -> str: ...
    @property
    def validator_value(self) -> JsonValue: ...
    @property
    def instance(self) -> JsonValue: ...
    @property
    def schema(self) -> JsonObject | bool: ...


class _Validator(Protocol):
    def iter_errors(self, instance: JsonValue) -> Iterator[_SchemaFault]: ...


def check_schema(schema: JsonObject, issues: IssueList, location: Location) -> None:
    """Add an issue for everything that keeps ``schema`` from being used; ``location`` is where it stands."""
    from jsonschema import Draft202012Validator

    meta = cast("JsonObject", Draft202012Validator.META_SCHEMA)
    meta_validator = cast("_Validator", Draft202012Validator(meta))
    faults = list(islice(meta_validator.iter_errors(schema), MAX_SCHEMA_ISSUES))
    seen: set[Location] = set()
    for fault in faults:
        place = location + tuple(fault.absolute_path)
        if place not in seen:
            seen.add(place)
            issues.error(
                IssueCode.INVALID_SCHEMA,
                place,
                f"This is no JSON Schema (draft 2020-12): the value of this keyword must satisfy {_rule(fault)}.",
            )
    if not faults:
        _check_parts(schema, issues, location)


def _check_parts(schema: JsonObject, issues: IssueList, location: Location) -> None:
    """Look at what the meta-schema can't see: references and patterns."""
    resolves = _resolver(schema)
    for place, keyword, text in islice(_texts(schema, location), MAX_CHECKED_PARTS):
        if keyword == "$ref":
            if not text.startswith("#"):
                issues.error(
                    IssueCode.INVALID_SCHEMA,
                    place,
                    "References to other documents are not followed; copy the schema into $defs and refer to "
                    '"#/$defs/<name>".',
                )
            elif not resolves(text):
                issues.error(
                    IssueCode.INVALID_SCHEMA, place, f"Nothing is at {_shown(text)} in this schema; define it in $defs."
                )
        else:
            try:
                re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                issues.error(
                    IssueCode.INVALID_SCHEMA, place, f"The pattern {_shown(text)} can't be read: {error}; correct it."
                )


def _texts(schema: JsonObject, location: Location) -> Iterator[tuple[Location, str, str]]:
    """Yield each reference and each pattern of a schema with its place and keyword."""
    pending: list[tuple[JsonValue, Location]] = [(schema, location)]
    while pending:
        part, place = pending.pop()
        if isinstance(part, list):
            pending.extend((item, (*place, index)) for index, item in enumerate(part))
        if not isinstance(part, dict):
            continue
        for keyword, value in part.items():
            if keyword in ("$ref", "pattern") and isinstance(value, str):
                yield (*place, keyword), keyword, value
            elif keyword in _NAMED_SCHEMAS and isinstance(value, dict):
                for name, child in value.items():
                    pending.append((child, (*place, keyword, name)))
                    if keyword == "patternProperties":
                        yield (*place, keyword, name), keyword, name
            elif keyword not in _DATA:
                pending.append((value, (*place, keyword)))


def _resolver(schema: JsonObject) -> Callable[[str], bool]:
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))

    def resolves(reference: str) -> bool:
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError):
            return False
        return True

    return resolves


def check_value(schema: JsonObject, value: JsonValue, issues: IssueList) -> None:
    """Add at most about ``MAX_SCHEMA_ISSUES`` issues for what ``schema`` refuses in ``value``."""
    from jsonschema import Draft202012Validator
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    # Without a registry of its own the library would fetch references to other documents.
    validator = cast("_Validator", Draft202012Validator(schema, registry=EMPTY_REGISTRY))
    seen: set[tuple[Location, str]] = set()
    try:
        for fault in islice(validator.iter_errors(value), MAX_SCHEMA_ISSUES):
            place = tuple(fault.absolute_path)
            if fault.validator in ("required", "additionalProperties"):
                # The library yields one fault a missing key, each with the whole list.
                if (place, fault.validator) in seen:
                    continue
                seen.add((place, fault.validator))
            _add_fault(fault, place, issues)
    except RecursionError:
        issues.error(
            IssueCode.INVALID_SCHEMA, (), "The schema refers to itself without end; put the $ref below a property."
        )
    except (Unresolvable, re.error) as error:
        issues.error(
            IssueCode.INVALID_SCHEMA,
            (),
            f"The schema can't be used ({type(error).__name__}); correct its references and patterns.",
        )


def _add_fault(fault: _SchemaFault, place: Location, issues: IssueList) -> None:
    rule, value = fault.validator_value, fault.instance
    match fault.validator:
        case "required" if isinstance(rule, list) and isinstance(value, dict):
            for key in rule:
                if isinstance(key, str) and key not in value:
                    issues.error(IssueCode.MISSING, (*place, key), f"{key} is missing; the schema requires it.")
        case "additionalProperties" if rule is False and isinstance(value, dict):
            known = _properties(fault.schema)
            if known is None:
                issues.error(IssueCode.UNKNOWN_FIELD, place, f"This does not satisfy {_rule(fault)}.")
                return
            for key in islice((key for key in value if key not in known), MAX_SCHEMA_ISSUES):
                issues.error(
                    IssueCode.UNKNOWN_FIELD,
                    (*place, key),
                    "The schema does not allow this key; remove it.",
                    issues.did_you_mean(key, known),
                )
        case "type":
            wanted = " or ".join(map(str, rule)) if isinstance(rule, list) else str(rule)
            issues.error(IssueCode.INVALID_TYPE, place, f"This must be of type {wanted}, not {_type_of(value)}.")
        case _:
            issues.error(IssueCode.INVALID_VALUE, place, f"This does not satisfy {_rule(fault)} of the schema.")


def _properties(schema: JsonValue) -> list[str] | None:
    """The only keys that a schema allows by name, or None when patterns allow others."""
    if not isinstance(schema, dict) or schema.get("patternProperties"):
        return None
    properties = schema.get("properties", {})
    return list(properties) if isinstance(properties, dict) else None


def closed_properties(schema: JsonValue) -> list[str] | None:
    """Return the only keys that an object of this schema can have, or None when it can have others."""
    if not isinstance(schema, dict) or schema.get("additionalProperties") is not False:
        return None
    return _properties(schema)


def _type_of(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    if value is None:
        return "null"
    return "array" if isinstance(value, list) else "object"


def _rule(fault: _SchemaFault) -> str:
    return _shown(json.dumps({fault.validator: cast("object", fault.validator_value)}, ensure_ascii=False))


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
