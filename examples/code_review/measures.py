"""What is measured in one module: public names, cyclomatic complexity, lengths and docstrings.

Cyclomatic complexity is McCabe's of 1976: the number of decisions + 1. A decision is each `if` and `elif`,
`for`, `while`, `except`, conditional expression, `for` and `if` of a comprehension, operand of `and` and `or`
after the first, and `case` but a last one that takes everything. Nested functions are measured on their own,
lambdas as part of the function around them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class FunctionMeasure:
    """One function: its dotted name within the module, first line, length in lines, and complexity."""

    name: str
    line: int
    lines: int
    complexity: int


@dataclass(frozen=True, slots=True)
class ModuleMeasure:
    """A module's functions, and how many of its public definitions have a docstring."""

    functions: list[FunctionMeasure]
    documentable: int
    documented: int


def public_names(tree: ast.Module) -> list[str]:
    """The names in a literal `__all__`, else what the top level defines without a leading underscore."""
    defined: list[str] = []
    for node in tree.body:
        if isinstance(node, _Scope):
            defined.append(node.name)
            continue
        for target in _targets(node):
            if target.id == "__all__" and isinstance(node, ast.Assign | ast.AnnAssign):
                listed = _literal_names(node.value)
                if listed is not None:
                    return listed
            defined.append(target.id)
    return list(dict.fromkeys(name for name in defined if not name.startswith("_")))


def measure_module(tree: ast.Module) -> ModuleMeasure:
    """Measure every function of a module, and the docstrings of what it shows to others."""
    functions: list[FunctionMeasure] = []
    documentable, documented = (1, int(has_docstring(tree))) if tree.body else (0, 0)
    pending: list[tuple[ast.AST, str, bool]] = [(tree, "", True)]
    while pending:
        node, prefix, public = pending.pop()
        for scope in _scopes_in(node):
            name = f"{prefix}{scope.name}"
            is_public = public and not scope.name.startswith("_")
            if is_public and not _repeats_another(scope):
                documentable += 1
                documented += int(has_docstring(scope))
            is_class = isinstance(scope, ast.ClassDef)
            if not is_class:
                length = (scope.end_lineno or scope.lineno) - scope.lineno + 1
                functions.append(FunctionMeasure(name, scope.lineno, length, complexity(scope)))
            pending.append((scope, f"{name}.", is_public and is_class))
    return ModuleMeasure(sorted(functions, key=lambda measure: measure.line), documentable, documented)


def complexity(function: _FunctionNode) -> int:
    """McCabe's cyclomatic complexity of one function, without the functions and classes inside it."""
    decisions = 0
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, _Scope):
            continue
        decisions += _decisions_at(node)
        pending.extend(ast.iter_child_nodes(node))
    return decisions + 1


def _decisions_at(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler() | ast.IfExp():
            return 1
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            last = node.cases[-1]
            takes_all = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
            return len(node.cases) - int(takes_all and last.guard is None)
        case _:
            return 0


def _scopes_in(node: ast.AST) -> list[_Scope]:
    scopes: list[_Scope] = []
    pending = list(ast.iter_child_nodes(node))
    while pending:
        child = pending.pop()
        if isinstance(child, _Scope):
            scopes.append(child)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            pending.extend(ast.iter_child_nodes(child))
    return scopes


def _repeats_another(scope: _Scope) -> bool:
    # An overload or a property's setter is explained where the name is defined first.
    for decorator in scope.decorator_list:
        name = decorator.id if isinstance(decorator, ast.Name) else None
        if isinstance(decorator, ast.Attribute):
            name = decorator.attr
        if name in {"overload", "setter", "deleter"}:
            return True
    return False


def has_docstring(node: ast.Module | _Scope) -> bool:
    """Whether a module, class or function begins with a docstring."""
    return ast.get_docstring(node, clean=False) is not None


def _targets(node: ast.stmt) -> list[ast.Name]:
    match node:
        case ast.Assign():
            targets = node.targets
        case ast.AnnAssign():
            targets = [node.target]
        case _:
            return []
    return [target for target in targets if isinstance(target, ast.Name)]


def _literal_names(value: ast.expr | None) -> list[str] | None:
    if not isinstance(value, ast.List | ast.Tuple):
        return None
    names = [item.value for item in value.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return [name for name in names if name.isidentifier()]
