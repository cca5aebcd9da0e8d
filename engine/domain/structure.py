"""A user's dict against a model: strict about types and keys, every fault at once, in words that name the fix.

The models themselves stay lenient, because what a store or history gives back may come from a newer version;
strictness belongs to the one place where a person's document enters. A null where a field is known means "not
set", so that a caller who passes every argument and one who leaves some out write the same content.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from engine.domain.hashing import canonical_json
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.domain.paths import render_path
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pydantic_core import ErrorDetails

__all__ = [
    "MAX_LABELS",
    "MAX_LABEL_CHARS",
    "MAX_NAME_CHARS",
    "check_json",
    "check_labels",
    "check_name",
    "check_structure",
    "type_in_words",
    "without_nulls",
]

M = TypeVar("M", bound=BaseModel)

MAX_NAME_CHARS: Final = 200
MAX_LABELS: Final = 50
"""Most tags of a workflow, or capabilities or tools of an agent."""
MAX_LABEL_CHARS: Final = 100

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS: Final = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def check_structure(
    model: type[M],
    document: JsonObject,
    issues: IssueList,
    *,
    ignored: Collection[Location] = (),
    unsupported: Callable[[Location, object], str | None] | None = None,
) -> M | None:
    """Make a model of ``document``; for everything that keeps it from being one, add an issue and return None.

    Args:
        model: what the document should be.
        document: JSON data (``check_json``), without nulls.
        issues: where faults go.
        ignored: locations that already have an issue; nothing is said about them or below.
        unsupported: asked about each fault with its location and value; what it returns is the message of an
            ``unsupported`` issue, added instead.
    """
    try:
        return model.model_validate(document, strict=True, extra="forbid")
    except ValidationError as error:
        faults = error.errors(include_url=False)
    for fault in faults:
        location = fault["loc"]
        if any(location[: len(known)] == known for known in ignored):
            continue
        value = None if fault["type"] == "missing" else cast("object", fault["input"])
        not_built = unsupported(location, value) if unsupported else None
        if not_built is not None:
            issues.error(IssueCode.UNSUPPORTED, location, not_built)
        else:
            _add_fault(model, fault, location, issues)
    return None


def _add_fault(model: type[BaseModel], fault: ErrorDetails, location: Location, issues: IssueList) -> None:
    kind, context = fault["type"], fault.get("ctx", {})
    # A name inside the last two segments: an item of a list is called by the list's.
    name = location[-1] if isinstance(location[-1], str) else render_path(str(location[-2]), location[-1:])
    if kind == "missing":
        issues.error(IssueCode.MISSING, location, f"{name} is missing; add it.")
    elif kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        issues.error(
            IssueCode.UNKNOWN_FIELD,
            location,
            f"There is no field {name} here; remove it or use one of: {', '.join(known)}.",
            issues.did_you_mean(name, known),
        )
    elif kind in _EXPECTED:
        found = type_in_words(fault["input"])
        issues.error(IssueCode.INVALID_TYPE, location, f"{name} must be {_EXPECTED[kind]}, not {found}.")
    elif kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        issues.error(IssueCode.INVALID_VALUE, location, f"{name} must be {words} {context[key]:g}.")
    elif kind == "string_too_short":
        issues.error(IssueCode.INVALID_VALUE, location, f"{name} must not be empty.")
    elif kind == "literal_error":
        allowed = str(context["expected"])
        hint = issues.did_you_mean(fault["input"], allowed.replace("'", "").replace(" or ", ", ").split(", "))
        issues.error(IssueCode.INVALID_VALUE, location, f"{name} must be {allowed}.", hint)
    else:
        issues.error(IssueCode.INVALID_VALUE, location, f"{name} can't be used: {fault['msg']}.")


def type_in_words(value: object) -> str:
    """Return what kind of JSON value it is, for people: ``text``, ``a list``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a value of type {type(value).__name__}"


@cache
def _nested_models(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    return {name: _model_in(field.annotation) for name, field in model.model_fields.items()}


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((nested for nested in found if nested is not None), None)


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    for segment in location:
        nested = _nested_models(model).get(segment) if isinstance(segment, str) else model
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def without_nulls(model: type[BaseModel], document: JsonObject) -> JsonObject:
    """Return a copy of ``document`` without the known fields, of it and of nested models, that are null."""
    nested = _nested_models(model)
    result: JsonObject = {}
    for key, value in document.items():
        inner = nested.get(key)
        if value is None and key in nested:
            continue
        if inner is not None and isinstance(value, dict):
            result[key] = without_nulls(inner, value)
        elif inner is not None and isinstance(value, list):
            result[key] = [without_nulls(inner, item) if isinstance(item, dict) else item for item in value]
        else:
            result[key] = value
    return result


def check_json(value: object, issues: IssueList, location: Location) -> bool:
    """Return whether ``value`` is JSON; when it isn't, an issue says where and why."""
    fault = json_fault(value, render_path(str(location[0]), location[1:]) if location else "")
    if fault is None:
        try:
            canonical_json(cast("JsonValue", value))
        except InvalidInputError as error:
            fault = error.message
    if fault is not None:
        limit = "nested deeper" in fault
        issues.error(
            IssueCode.LIMIT_EXCEEDED if limit else IssueCode.INVALID_VALUE,
            location,
            f"{fault}. Use plain JSON: objects with text keys, lists, text, finite numbers, true, false, null.",
        )
    return fault is None


def check_name(name: object, issues: IssueList, location: Location) -> None:
    """Add an issue when a text is blank or longer than ``MAX_NAME_CHARS``; types are not its matter."""
    if not isinstance(name, str):
        return
    if len(name) > MAX_NAME_CHARS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            location,
            f"{location[-1]} has {len(name)} characters; at most {MAX_NAME_CHARS} are allowed. "
            "Put the rest into the description.",
        )
    elif name and not name.strip():
        issues.error(IssueCode.INVALID_VALUE, location, f"{location[-1]} must not be blank.")


def check_labels(labels: object, issues: IssueList, location: Location) -> None:
    """Add issues for too many, blank or overlong texts of a list; types are not its matter."""
    if not isinstance(labels, list):
        return
    items = cast("list[object]", labels)
    if len(items) > MAX_LABELS:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            location,
            f"{location[-1]} has {len(items)} items; at most {MAX_LABELS} are allowed.",
        )
    for index, label in enumerate(items):
        if not isinstance(label, str):
            continue
        if not label.strip():
            issues.error(
                IssueCode.INVALID_VALUE, (*location, index), "This must not be blank; write a word or remove it."
            )
        elif len(label) > MAX_LABEL_CHARS:
            issues.error(
                IssueCode.LIMIT_EXCEEDED,
                (*location, index),
                f"This has {len(label)} characters; at most {MAX_LABEL_CHARS} are allowed.",
            )
