"""Writes docs/answers.md from the code, so that the page can't say something else than the engine answers.

    python docs/make_answers.py > docs/answers.md

Which call answers with what is read from ``WorkflowEngine``'s signatures, the shapes from ``engine.types``. A text
below a key in its modules becomes the key's meaning; a table without any has no column for it.
"""  # noqa: INP001 - a script, no part of a package

from __future__ import annotations

import ast
import inspect
import sys
import types as python_types
from collections.abc import Iterable
from typing import Literal, NotRequired, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from pydantic import JsonValue

from engine import WorkflowEngine
from engine.types import agents, analytics, context, executions, gates, results, values, workflows

_INTRODUCTION = """\
# Answers

<!-- Made by docs/make_answers.py from engine/types/; change that and run it again. -->

The shape of everything that `WorkflowEngine` returns. Instants are text in ISO 8601, UTC; durations are seconds.
A key marked *optional* is absent unless it applies; every other key is always there, null where it has no value.
What the values mean is told in the [guide](guide.md), where they come up.
"""

_MODULES = (values, workflows, executions, gates, results, context, agents, analytics)
"""The order of the page."""
_NAMES: dict[object, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """Return the whole page."""
    shapes = {
        name: shape
        for module in _MODULES
        for name, shape in vars(module).items()
        if not name.startswith("_") and is_typeddict(shape) and shape.__module__ == module.__name__
    }
    meanings = _meanings()
    parts = [_INTRODUCTION, "## Calls\n", *_table(("call", "answer"), _calls(shapes)), "", "## Shapes"]
    for name, shape in shapes.items():
        parts += ["", f"### {name}", "", _plain(inspect.getdoc(shape) or ""), ""]
        parts += _keys(shape, meanings.get(name, {}))
    return "\n".join(parts) + "\n"


def _calls(shapes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    for name, method in _methods(WorkflowEngine):
        if name.startswith("_") or name == "aclose" or not inspect.isfunction(method):
            continue
        text = str(inspect.signature(method).return_annotation)
        if inspect.isasyncgenfunction(method):
            text = text.removeprefix("AsyncIterator[").removesuffix("]")
        is_list = text.startswith("list[types.")
        shape = text.removeprefix("list[").removeprefix("types.").removesuffix("]" if is_list else "")
        words = {
            "str": "the id",
            "bool": "true or false",
            "list[list[str]]": "a list of paths, each a list of ids",
            "JsonValue": "any JSON",
        }
        names = [name.removeprefix("types.") for name in shape.split(" | ")]
        linked = " or ".join(_link(name) for name in names if name in shapes)
        answer = ("list of " if is_list else "") + linked if linked else words[text]
        answer = "a text" if name == "workflow_graph" else answer
        yield f"`{name}`", f"an iterator of {answer}" if inspect.isasyncgenfunction(method) else answer


def _methods(cls: type) -> Iterable[tuple[str, object]]:
    """The attributes of a class with those of its bases, in the order in which they are written."""
    for base in cls.__mro__:
        yield from vars(base).items()


def _keys(shape: type, meanings: dict[str, str]) -> Iterable[str]:
    rows: list[tuple[str, ...]] = []
    for key, hint in get_type_hints(shape, include_extras=True).items():
        is_optional = get_origin(hint) is NotRequired
        kind = _kind(get_args(hint)[0] if is_optional else hint) + (" (*optional*)" if is_optional else "")
        rows.append((f"`{key}`", kind, *([meanings.get(key, "")] if meanings else [])))
    return _table(("key", "type", *(["meaning"] if meanings else [])), rows)


def _kind(hint: object) -> str:
    if hint is JsonValue:
        return "any JSON"
    if is_typeddict(hint):
        return _link(cast("type", hint).__name__)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in {Union, python_types.UnionType}:
        return " or ".join("null" if choice is type(None) else _kind(choice) for choice in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "object" if arguments[1] is JsonValue else f"object, each value: {_kind(arguments[1])}"
    return _NAMES[hint]


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _meanings() -> dict[str, dict[str, str]]:
    """Shape to key to the text that stands below the key in the module."""
    found: dict[str, dict[str, str]] = {}
    for shape in (shape for module in _MODULES for shape in ast.parse(inspect.getsource(module)).body):
        if not isinstance(shape, ast.ClassDef):
            continue
        for key, below in zip(shape.body, shape.body[1:], strict=False):
            match key, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found.setdefault(shape.name, {})[name] = _plain(text)
                case _:
                    pass
    return found


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    sys.stdout.write(page())
