"""A user's dict against a model: strict about types and keys, every fault at once, in words that name the fix.

Keys are those that people write (aliases), and so are the places of faults: where a field takes several types, only
the faults of the type that was written count.

The models themselves stay lenient, because what a store or history gives back may come from a newer version;
strictness belongs to the one place where a person's document enters. A null where a field is known means "not
set", so that a caller who passes every argument and one who leaves some out write the same content.
"""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from engine.domain.hashing import canonical_json
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json import JsonObject, JsonValue, json_fault
from engine.domain.paths import render_path
from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic.fields import FieldInfo
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
_TYPE_WORDS: Final = {"str": "text", "int": "a whole number", "float": "a number", "list": "a list"}
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
) -> M | None:
    """Make a model of ``document``; for everything that keeps it from being one, add an issue and return None.

    Args:
        model: what the document should be.
        document: JSON data (``check_json``), without nulls.
        issues: where faults go.
        ignored: locations that already have an issue; nothing is said about them or below.
    """
    try:
        return model.model_validate(document, strict=True, extra="forbid", by_alias=True, by_name=False)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    unfit: set[Location] = set()
    for fault in faults:
        place = _written_place(model, document, fault["loc"])
        if any(place.location[: len(known)] == known for known in ignored):
            continue
        if place.is_other_choice:
            continue
        if not place.choices:
            _add_fault(model, fault, place.location, issues)
        elif place.location not in unfit:
            unfit.add(place.location)
            expected = " or ".join(_TYPE_WORDS.get(name, "an object") for name in map(_type_name, place.choices))
            found = type_in_words(fault["input"])
            message = f"{_name_at(place.location)} must be {expected}, not {found}."
            issues.error(IssueCode.INVALID_TYPE, place.location, message)
    return None


class _Place(NamedTuple):
    """Where a fault is in the user's words."""

    location: Location
    is_other_choice: bool = False
    """The fault is one of a type that was not written."""
    choices: tuple[object, ...] = ()
    """The types that the field takes, when what was written is none of them."""


def _written_place(model: type[BaseModel], document: JsonObject, location: Location) -> _Place:
    """Leave out what the library puts between: the name of the type that it tried, where there are several."""
    written: list[str | int] = []
    annotation: object = model
    value: object = document
    for position, segment in enumerate(location):
        choices = _choices(annotation)
        if len(choices) > 1:
            chosen = next((choice for choice in choices if _takes(choice, value)), None)
            if chosen is None:
                return _Place(tuple(written), choices=choices)
            if str(segment).partition("[")[0] != _type_name(chosen):
                return _Place(tuple(written), is_other_choice=True)
            annotation = chosen
            continue
        annotation = choices[0] if choices else annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = _fields(annotation).get(str(segment))
            annotation = None if field is None else field.annotation
        elif get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        else:
            return _Place((*written, *location[position:]))
        written.append(segment)
        value = _member(value, segment)
    return _Place(tuple(written))


def _member(value: object, segment: str | int) -> object:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).get(str(segment))
    if isinstance(value, list) and isinstance(segment, int):
        return cast("list[object]", value)[segment]
    return None


def _choices(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(choice for choice in get_args(annotation) if choice is not type(None))


def _type_name(choice: object) -> str:
    kind = get_origin(choice) or choice
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _takes(choice: object, value: object) -> bool:
    kind = get_origin(choice) or choice
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return isinstance(value, dict)
    return isinstance(kind, type) and isinstance(value, kind)


def _name_at(location: Location) -> str:
    """A name inside the last two segments: an item of a list is called by the list's."""
    last = location[-1]
    return last if isinstance(last, str) else render_path(str(location[-2]), (last,))


def _add_fault(model: type[BaseModel], fault: ErrorDetails, location: Location, issues: IssueList) -> None:
    kind, context = fault["type"], fault.get("ctx", {})
    name = _name_at(location)
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
    elif kind in ("string_too_short", "too_short") and context["min_length"] == 1:
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
def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the keys that people write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


@cache
def _nested_models(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    return {key: _model_in(field.annotation) for key, field in _fields(model).items()}


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
    return list(_fields(model))


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
