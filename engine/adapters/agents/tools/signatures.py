"""What a model has to know of a Python function: its arguments as JSON Schema, and what its docstring says.

The arguments become one ``TypedDict``, because its keys may have any name (``schema``, ``copy``), and an argument that
the model leaves out stays out, so that the function's own default holds.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Final, NotRequired, Required, cast, get_args, get_type_hints

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict  # pydantic takes the standard one from 3.12 on

from engine.domain.agent_call import AgentCall
from engine.domain.json import json_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.domain.json import JsonObject

__all__ = ["FunctionSignature", "signature_of"]

_ARGUMENTS_HEADING: Final = re.compile(r"(?:Args|Arguments|Parameters):")
_ARGUMENT_LINE: Final = re.compile(r"\*{0,2}(?P<name>\w+)\s*(?:\([^)]*\))?:\s*(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class FunctionSignature:
    """How a function is called by a model."""

    description: str
    parameters: JsonObject
    """JSON Schema: an object, with no other properties than the function's parameters."""
    arguments: TypeAdapter[dict[str, object]]
    """Checks and converts what the model gave; raises ``ValidationError``."""
    call_parameter: str | None
    """The parameter that gets the ``AgentCall``."""


class _UntitledSchema(GenerateJsonSchema):
    # A field's title repeats its name, and a model's words cost.
    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - the signature is pydantic's
        return False


def signature_of(function: Callable[..., object]) -> FunctionSignature:
    """Read a function's signature and docstring.

    Raises:
        ValueError: a parameter can't be given by name, or an annotation has no JSON Schema.
    """
    try:
        parameters = inspect.signature(function).parameters
        hints = _hints_of(function, parameters)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(f"its annotations can't be read: {error}") from None
    summary, texts = _documented(function)
    fields: dict[str, object] = {}
    defaults: JsonObject = {}
    call_parameter = None
    for name, parameter in parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ValueError(f"its parameter {name} can't be given by name")
        hint = hints.get(name, object)
        if hint is AgentCall or AgentCall in get_args(hint):
            call_parameter = name
            continue
        if name in texts:
            hint = Annotated[hint, Field(description=texts[name])]
        if parameter.default is inspect.Parameter.empty:
            fields[name] = Required[hint]
        else:
            fields[name] = NotRequired[hint]
            if json_fault(parameter.default) is None:
                defaults[name] = parameter.default
    try:
        arguments = _adapter_of(fields)
        schema = cast("JsonObject", arguments.json_schema(schema_generator=_UntitledSchema))
    except (PydanticUserError, TypeError) as error:
        raise ValueError(f"its parameters have no JSON Schema: {str(error).splitlines()[0]}") from None
    return FunctionSignature(summary, _completed(schema, defaults), arguments, call_parameter)


def _adapter_of(fields: Mapping[str, object]) -> TypeAdapter[dict[str, object]]:
    make = cast("Callable[[str, Mapping[str, object]], type[dict[str, object]]]", TypedDict)
    kind = make("Arguments", fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=False)  # pyright: ignore[reportAttributeAccessIssue] # pydantic's way to configure a TypedDict
    return TypeAdapter(kind)


def _completed(schema: JsonObject, defaults: JsonObject) -> JsonObject:
    properties = cast("JsonObject", schema.setdefault("properties", {}))
    for name, default in defaults.items():
        cast("JsonObject", properties[name]).setdefault("default", default)
    schema.pop("title", None)
    return schema


def _hints_of(function: Callable[..., object], parameters: Mapping[str, inspect.Parameter]) -> Mapping[str, object]:
    """Evaluate the parameters' annotations; the returned value's is of no use here and may name what is not there."""
    annotated = {name: item.annotation for name, item in parameters.items() if item.annotation is not item.empty}
    known = cast("dict[str, object] | None", getattr(inspect.unwrap(function), "__globals__", None))
    if known is None:
        known = vars(sys.modules[type(function).__module__])
    # Modules often import the name for the type checker only.
    missing = {} if "AgentCall" in known else {"AgentCall": AgentCall}
    return get_type_hints(SimpleNamespace(__annotations__=annotated), known, missing, include_extras=True)


def _documented(function: Callable[..., object]) -> tuple[str, Mapping[str, str]]:
    """Return the docstring's first paragraph, and what its section ``Args:`` says of each parameter."""
    text = inspect.getdoc(function) or ""
    summary = " ".join(text.strip().split("\n\n", 1)[0].split())
    if _ARGUMENTS_HEADING.match(summary):
        summary = ""
    lines = iter(text.splitlines())
    if not any(_ARGUMENTS_HEADING.fullmatch(line.strip()) for line in lines):
        return summary, {}
    texts: dict[str, str] = {}
    name = ""
    margin = 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        found = _ARGUMENT_LINE.fullmatch(line.strip())
        if found is not None and (not texts or indent <= margin):
            name, margin = found["name"], indent
            texts[name] = found["text"]
        elif name:
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return summary, texts
