"""The checkout's own Python files, parsed once; what the tests of architecture and of source rules look at."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "activities", "workflows")


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    path: str
    """From the checkout, with slashes."""
    lines: int
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def sources(*folders: str) -> list[Source]:
    """Parse the production code, or the named folders and files of it."""
    found: list[Source] = []
    for name in folders or (*PACKAGES, "worker.py"):
        top = CHECKOUT / name
        for file in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            text = file.read_text(encoding="utf-8")
            found.append(Source(str(file.relative_to(CHECKOUT)), text.count("\n"), ast.parse(text)))
    assert found
    return found


def imports(source: Source, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Yield every imported module's full name with its line; names behind TYPE_CHECKING are not imports."""
    for node in _nodes(source.tree, top_level_only=top_level_only):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def dotted(node: ast.expr) -> str:
    """Render ``a.b.c``; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if dotted(value):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the dotted name of what is called, which is empty for other expressions."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def _nodes(tree: ast.AST, *, top_level_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            continue
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        yield from _nodes(node, top_level_only=top_level_only)
