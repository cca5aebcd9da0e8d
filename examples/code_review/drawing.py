"""A graph that can still be read: at most 40 boxes, and no arrow that a longer way already says.

Up to 40 modules are drawn as they are. Larger trees are drawn as packages, at the greatest depth that stays
within 40 boxes; a tree that has too few packages for that shows its most connected modules.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from examples.code_review.import_graph import strong_components

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from examples.code_review.import_graph import Edge, Graph

MAX_NODES: Final = 40
MAX_ARROWS: Final = 150
_MANY_ARROWS: Final = 45
_FEWEST_PACKAGES: Final = 3
_TOP_LEVEL: Final = "(top level)"


@dataclass(frozen=True, slots=True)
class Arrow:
    """Imports from one box to another: how many, and whether all of them are deferred."""

    importer: str
    imported: str
    imports: int
    deferred: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn: `level` is `modules` or `packages`, `hidden` boxes and `implied` arrows are left out."""

    level: str
    nodes: list[str]
    arrows: list[Arrow]
    hidden: int
    implied: int


def draw(is_package: Mapping[str, bool], edges: Sequence[Edge]) -> Drawing:
    """Choose the boxes and arrows for the graph of a tree."""
    level, box_of = _boxes(is_package)
    total: Counter[tuple[str, str]] = Counter()
    at_load: Counter[tuple[str, str]] = Counter()
    for edge in edges:
        pair = (box_of[edge.importer], box_of[edge.imported])
        if pair[0] != pair[1]:
            total[pair] += 1
            at_load[pair] += int(not edge.deferred)
    boxes = sorted(set(box_of.values()))
    weight: Counter[str] = Counter()
    for (importer, imported), count in total.items():
        weight[importer] += count
        weight[imported] += count
    kept = set(sorted(boxes, key=lambda box: (-weight[box], box))[:MAX_NODES])
    arrows = [
        Arrow(pair[0], pair[1], count, at_load[pair] == 0)
        for pair, count in sorted(total.items())
        if pair[0] in kept and pair[1] in kept
    ]
    shown = _without_implied(sorted(kept), arrows) if len(arrows) > _MANY_ARROWS else arrows
    shown = sorted(shown, key=lambda arrow: -arrow.imports)[:MAX_ARROWS]
    shown.sort(key=lambda arrow: (arrow.importer, arrow.imported))
    return Drawing(level, sorted(kept), shown, len(boxes) - len(kept), len(arrows) - len(shown))


def mermaid(drawing: Drawing, in_cycle: set[str]) -> list[str]:
    """The lines of a Mermaid `graph TD`; boxes in `in_cycle` get a red frame."""
    ids = {node: f"n{index}" for index, node in enumerate(drawing.nodes)}
    lines = ["graph TD"]
    lines.extend(f'    {ids[node]}["{_label(node)}"]' for node in drawing.nodes)
    for arrow in drawing.arrows:
        line = "-.->" if arrow.deferred else "-->"
        count = f"|{arrow.imports}|" if drawing.level == "packages" else ""
        lines.append(f"    {ids[arrow.importer]} {line}{count} {ids[arrow.imported]}")
    marked = [ids[node] for node in drawing.nodes if node in in_cycle]
    if marked:
        lines.append("    classDef cycle stroke:#c00,stroke-width:3px")
        lines.append(f"    class {','.join(marked)} cycle")
    return lines


def package_of(module: str, *, is_package: bool) -> str:
    """The package that a module belongs to; a package belongs to itself."""
    package = module if is_package else module.rpartition(".")[0]
    return package or _TOP_LEVEL


def _boxes(is_package: Mapping[str, bool]) -> tuple[str, dict[str, str]]:
    modules = {module: module for module in is_package}
    if len(modules) <= MAX_NODES:
        return "modules", modules
    packages = {module: package_of(module, is_package=flag) for module, flag in is_package.items()}
    best: dict[str, str] = {}
    for depth in range(1, 1 + max(package.count(".") + 1 for package in packages.values())):
        cut = {module: ".".join(package.split(".")[:depth]) for module, package in packages.items()}
        if best and len(set(cut.values())) > MAX_NODES:
            break
        best = cut
    return ("packages", best) if len(set(best.values())) >= _FEWEST_PACKAGES else ("modules", modules)


def _without_implied(nodes: Sequence[str], arrows: Sequence[Arrow]) -> list[Arrow]:
    """Leave out an arrow when a longer way of load-time arrows leads there as well, cycles excepted."""
    graph: Graph = {node: [] for node in nodes}
    for arrow in arrows:
        if not arrow.deferred:
            graph[arrow.importer].append(arrow.imported)
    component_of: dict[str, int] = {}
    reach: list[set[int]] = []
    direct: list[set[int]] = []
    for index, component in enumerate(strong_components(graph)):
        component_of.update(dict.fromkeys(component, index))
        direct.append({component_of[other] for node in component for other in graph[node]} - {index})
        reach.append(direct[index].union(*(reach[other] for other in direct[index])))
    kept: list[Arrow] = []
    for arrow in arrows:
        start, end = component_of[arrow.importer], component_of[arrow.imported]
        implied = start != end and any(end in reach[other] for other in direct[start] if other != end)
        if not implied:
            kept.append(arrow)
    return kept


def _label(name: str) -> str:
    return re.sub(r"[^\w. ()-]", lambda match: f"#{ord(match[0])};", name)
