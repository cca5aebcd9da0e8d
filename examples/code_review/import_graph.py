"""The imports between the modules of one tree, found in the text and never by importing.

An import inside a function or under `if TYPE_CHECKING:` is *deferred*: it plays no part when modules load.
Cycles and layers are those of load time, where a cycle can break an import; cycles that only deferred imports
close are kept apart. `from package import name` leads to the module `package.name` when there is one.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Graph = dict[str, list[str]]
_SEARCHED_STARTS: Final = 100


@dataclass(frozen=True, slots=True)
class Edge:
    """One module imports another, first in this line; `deferred` when it never does so at load time."""

    importer: str
    imported: str
    line: int
    deferred: bool


@dataclass(frozen=True, slots=True)
class ImportStatement:
    """A dotted name that a module imports, with the level of a relative import (0: absolute)."""

    level: int
    module: str
    name: str | None
    line: int
    deferred: bool


@dataclass(slots=True)
class ImportGraph:
    """Edges between known modules, and who imports which packages from outside the tree."""

    is_package: Mapping[str, bool]
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict[tuple[str, str], Edge])
    external: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _bases: dict[str, str] = field(init=False)
    _by_import_name: dict[str, list[str]] = field(init=False)
    _tops: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._bases = {module: self._import_base(module) for module in self.is_package}
        self._tops = {module.partition(".")[0] for module in self.is_package}
        self._by_import_name = {}
        for module, base in self._bases.items():
            name = module.removeprefix(f"{base}.") if base else module
            self._by_import_name.setdefault(name, []).append(module)

    def add_module(self, module: str, tree: ast.Module) -> None:
        """Add what one module imports."""
        for statement in import_statements(tree):
            imported = self._resolve(module, statement)
            if imported is None:
                self._add_external(module, statement)
            elif imported != module:
                key = (module, imported)
                known = self.edges.get(key)
                if known is None or (known.deferred and not statement.deferred):
                    self.edges[key] = Edge(module, imported, statement.line, statement.deferred)

    def load_time(self) -> Graph:
        """Who imports whom when modules load."""
        return self._graph(edge for edge in self.edges.values() if not edge.deferred)

    def complete(self) -> Graph:
        """Who imports whom, deferred imports too."""
        return self._graph(self.edges.values())

    def _graph(self, edges: Iterable[Edge]) -> Graph:
        graph: Graph = {module: [] for module in sorted(self.is_package)}
        for edge in edges:
            graph[edge.importer].append(edge.imported)
        return {module: sorted(imported) for module, imported in graph.items()}

    def _import_base(self, module: str) -> str:
        """The folder, in dotted form, that must be on the path for a module's package to be importable."""
        base = module if self.is_package[module] else module.rpartition(".")[0]
        while self.is_package.get(base, False):
            base = base.rpartition(".")[0]
        return base

    def _resolve(self, importer: str, statement: ImportStatement) -> str | None:
        module = statement.module
        if statement.level:
            parts = importer.split(".")
            drop = statement.level - int(self.is_package[importer])
            package = parts[: len(parts) - drop]
            if drop > len(parts):
                return None
            module = ".".join([*package, *([module] if module else [])])
        candidates = [module] if statement.name is None else [f"{module}.{statement.name}".lstrip("."), module]
        for candidate in candidates:
            found = self._find(importer, candidate)
            if found is not None:
                return found
        return None

    def _find(self, importer: str, name: str) -> str | None:
        if name in self.is_package:
            return name
        if name.partition(".")[0] in sys.stdlib_module_names:
            return None
        beside = f"{self._bases[importer]}.{name}"
        if beside in self.is_package:
            return beside
        named = self._by_import_name.get(name, [])
        return named[0] if len(named) == 1 else None

    def _add_external(self, module: str, statement: ImportStatement) -> None:
        top = statement.module.partition(".")[0]
        if statement.level == 0 and top not in sys.stdlib_module_names and top not in self._tops:
            self.external.setdefault(top, set()).add(module)


def import_statements(tree: ast.Module) -> Iterator[ImportStatement]:
    """Every import of a module, in no particular order."""
    pending: list[tuple[ast.AST, bool]] = [(node, False) for node in tree.body]
    while pending:
        node, deferred = pending.pop()
        match node:
            case ast.Import():
                for alias in node.names:
                    yield ImportStatement(0, alias.name, None, node.lineno, deferred)
            case ast.ImportFrom():
                for alias in node.names:
                    yield ImportStatement(node.level, node.module or "", alias.name, node.lineno, deferred)
            case ast.If() if _is_type_checking(node.test):
                pending.extend((child, True) for child in node.body)
                pending.extend((child, deferred) for child in node.orelse)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pending.extend((child, True) for child in node.body)
            case ast.stmt() | ast.ExceptHandler() | ast.match_case():
                pending.extend((child, deferred) for child in ast.iter_child_nodes(node))
            case _:
                pass


def strong_components(graph: Graph) -> list[list[str]]:
    """Tarjan's strongly connected components, each after the ones that it leads to."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    components: list[list[str]] = []
    for start in graph:
        if start in order:
            continue
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        work = [(start, iter(graph[start]))]
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in order:
                    order[successor] = low[successor] = len(order)
                    stack.append(successor)
                    on_stack.add(successor)
                    work.append((successor, iter(graph[successor])))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], order[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component = [stack.pop()]
                    while component[-1] != node:
                        component.append(stack.pop())
                    on_stack.difference_update(component)
                    components.append(sorted(component))
    return components


def layers(graph: Graph, components: Sequence[Sequence[str]]) -> dict[str, int]:
    """The layer of each node: 1 leads nowhere, others lie one above the highest that they lead to.

    Nodes of one component share a layer. `components` come from `strong_components`.
    """
    level: dict[str, int] = {}
    for component in components:
        inside = set(component)
        beneath = [level[other] for node in component for other in graph[node] if other not in inside]
        level.update(dict.fromkeys(component, 1 + max(beneath, default=0)))
    return level


def shortest_cycle(graph: Graph, component: Sequence[str]) -> list[str]:
    """The nodes of a shortest cycle within a component, the first one not repeated at the end.

    In a component of more than 100 nodes only cycles through its first 100 are looked at.
    """
    inside = set(component)
    best: list[str] = []
    for start in component[:_SEARCHED_STARTS]:
        cycle = _cycle_through(graph, start, inside)
        if cycle and (not best or len(cycle) < len(best)):
            best = cycle
    return best


def _cycle_through(graph: Graph, start: str, inside: set[str]) -> list[str]:
    came_from: dict[str, str] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for successor in graph[node]:
            if successor == start:
                path = [node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if successor in inside and successor not in came_from:
                came_from[successor] = node
                queue.append(successor)
    return []


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
