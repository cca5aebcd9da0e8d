"""The four agents of the review: each takes a JSON object and returns one, and remembers nothing in between.

Test modules and generated ones are counted in the sizes and the import graph, and left out of the measures of
complexity, length and docstrings, unless the tree holds nothing else.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from examples.code_review.drawing import draw, package_of
from examples.code_review.fields import read_object, read_rows, read_text
from examples.code_review.findings import HIGH_COMPLEXITY, LONG_FUNCTION, state_findings, summarise
from examples.code_review.import_graph import ImportGraph, layers, shortest_cycle, strong_components
from examples.code_review.measures import FunctionMeasure, has_docstring, measure_module, public_names
from examples.code_review.report import collect_unreadable, compose_report, file_name_for, write_report
from examples.code_review.source_tree import (
    ModuleFile,
    Unreadable,
    find_sources,
    is_test,
    parse_each,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from engine.domain.agent_call import AgentCall
    from engine.domain.json import JsonObject, JsonValue

_TOP: Final = 15
_LISTED_NAMES: Final = 6_000
_LISTED_CYCLES: Final = 20
_LISTED_IN_CYCLE: Final = 50


def architecture(input: JsonObject, call: AgentCall) -> JsonObject:  # noqa: A002 - the interface's own name
    """Find the packages and modules of a tree, with their sizes and public names.

    Args:
        input: `path`, the absolute path of a folder or of one Python file.
        call: the call that this is part of.

    Returns:
        `name`, `root`, `packages` (`name`, `modules`, `lines`), `modules` (`module`, `path` below the root,
        `kind`: code, test or generated, `lines`, the first names of `public`, all of them in `public_count`,
        `docstring`), `totals`, and `unreadable` (`path`, `reason`).

    Raises:
        ValueError: the path is not absolute, nothing is there, or it holds no Python file.
        CancelledError: the execution was cancelled meanwhile.
    """
    path = _absolute_path(input, "path")
    call.emit(f"looking for Python files in {path}")
    listing = find_sources(path, call)
    listed = max(3, min(30, _LISTED_NAMES // max(1, len(listing.files))))
    modules: list[JsonValue] = []
    totals: Counter[str] = Counter(code=0, test=0, generated=0, lines=0)
    packages: dict[str, Counter[str]] = {}
    for file, parsed in parse_each(listing.root, listing.files, call, listing.unreadable):
        names = public_names(parsed.tree)
        kind = "generated" if parsed.generated else "test" if is_test(file.path) else "code"
        modules.append(
            {
                "module": file.module,
                "path": file.path,
                "kind": kind,
                "lines": parsed.lines,
                "public": [*names[:listed]],
                "public_count": len(names),
                "docstring": has_docstring(parsed.tree),
            }
        )
        totals.update({kind: 1, "lines": parsed.lines})
        package = package_of(file.module, is_package=file.is_package)
        packages.setdefault(package, Counter()).update(modules=1, lines=parsed.lines)
    return {
        "name": listing.name,
        "root": str(listing.root),
        "packages": [
            {"name": name, "modules": size["modules"], "lines": size["lines"]}
            for name, size in sorted(packages.items())
        ],
        "modules": modules,
        "totals": {
            "packages": len(packages),
            "modules": len(modules),
            "truncated": listing.truncated,
            **totals,
        },
        "unreadable": _unreadable_rows(listing.unreadable),
    }


def detail(input: JsonObject, call: AgentCall) -> JsonObject:  # noqa: A002 - the interface's own name
    """Measure the functions and docstrings of each module.

    Args:
        input: `root` and `modules` as `architecture` returns them.
        call: the call that this is part of.

    Returns:
        `modules` (`module`, `functions`, `complexity`: the sum, `max_complexity`, `documentable`,
        `documented`), the 15 most `complex_functions` and `longest_functions` (`module`, `name`, `path`,
        `line`, `lines`, `complexity`), `totals`, and `unreadable`.

    Raises:
        ValueError: the input is not what `architecture` returns.
        CancelledError: the execution was cancelled meanwhile.
    """
    root, modules = _tree_of(input)
    measured = [file for file in modules if file.kind == "code"] or modules
    unreadable: list[Unreadable] = []
    rows: list[JsonValue] = []
    functions: list[tuple[ModuleFile, FunctionMeasure]] = []
    documentable = documented = 0
    for file, parsed in parse_each(root, measured, call, unreadable):
        measure = measure_module(parsed.tree)
        functions.extend((file, function) for function in measure.functions)
        documentable += measure.documentable
        documented += measure.documented
        complexities = [function.complexity for function in measure.functions]
        rows.append(
            {
                "module": file.module,
                "functions": len(complexities),
                "complexity": sum(complexities),
                "max_complexity": max(complexities, default=0),
                "documentable": measure.documentable,
                "documented": measure.documented,
            }
        )
    by_complexity = sorted(functions, key=lambda pair: (-pair[1].complexity, pair[0].path, pair[1].line))
    by_length = sorted(functions, key=lambda pair: (-pair[1].lines, pair[0].path, pair[1].line))
    return {
        "modules": rows,
        "complex_functions": _function_rows(by_complexity[:_TOP]),
        "longest_functions": _function_rows(by_length[:_TOP]),
        "totals": {
            "modules": len(rows),
            "functions": len(functions),
            "complexity": sum(function.complexity for _, function in functions),
            "lines_in_functions": sum(function.lines for _, function in functions),
            "above_complexity": sum(function.complexity > HIGH_COMPLEXITY for _, function in functions),
            "above_length": sum(function.lines > LONG_FUNCTION for _, function in functions),
            "documentable": documentable,
            "documented": documented,
        },
        "unreadable": _unreadable_rows(unreadable),
    }


def relationship(input: JsonObject, call: AgentCall) -> JsonObject:  # noqa: A002 - the interface's own name
    """Follow the imports between the modules of the tree.

    Args:
        input: `root` and `modules` as `architecture` returns them.
        call: the call that this is part of.

    Returns:
        `cycles` at load time and `deferred_cycles` (`modules`, `size`, `path`: one shortest cycle as
        `module`, `path`, `line` of the import that leads on), `layers` (`layer`, `modules`; layer 1 imports
        nothing of the tree), `fan_in` and `fan_out` (`module`, `modules`: how many; the top 15), `isolated`
        (modules without any import from or to another), `external` (`name`, `modules`), `graph` (what to
        draw: `level`, `nodes`, `arrows`, `hidden`, `implied`, `in_cycle`), `totals`, and `unreadable`.

    Raises:
        ValueError: the input is not what `architecture` returns.
        CancelledError: the execution was cancelled meanwhile.
    """
    root, modules = _tree_of(input)
    unreadable: list[Unreadable] = []
    is_package = {file.module: file.is_package for file in modules}
    imports = ImportGraph(is_package)
    for file, parsed in parse_each(root, modules, call, unreadable):
        imports.add_module(file.module, parsed.tree)
    at_load = imports.load_time()
    complete = imports.complete()
    components = strong_components(at_load)
    cycles = _cycles_of(components)
    deferred = [cycle for cycle in _cycles_of(strong_components(complete)) if cycle not in cycles]
    layer_of = layers(at_load, components)
    fan_out = Counter(edge.importer for edge in imports.edges.values())
    fan_in = Counter(edge.imported for edge in imports.edges.values())
    return {
        "cycles": _cycle_rows(imports, at_load, cycles, modules),
        "deferred_cycles": _cycle_rows(imports, complete, deferred, modules),
        "layers": _layer_rows(layer_of),
        "fan_in": _top_rows(fan_in),
        "fan_out": _top_rows(fan_out),
        "isolated": _isolated(modules, fan_in.keys() | fan_out.keys()),
        "external": _external_rows(imports.external),
        "graph": _graph_row(imports, {module for cycle in cycles for module in cycle}),
        "totals": {
            "imports": len(imports.edges),
            "deferred": sum(edge.deferred for edge in imports.edges.values()),
            "cycles": len(cycles),
            "in_cycles": sum(len(cycle) for cycle in cycles),
            "deferred_cycles": len(deferred),
            "layers": max(layer_of.values(), default=0),
        },
        "unreadable": _unreadable_rows(unreadable),
    }


def report(input: JsonObject, call: AgentCall) -> JsonObject:  # noqa: A002 - the interface's own name
    """Join the other agents' outputs into one Markdown report and write it.

    The same input gives the same bytes, and the file appears whole or not at all, so a repeated call changes
    nothing.

    Args:
        input: `architecture`, `detail` and `relationship`: those agents' outputs; `report_path`: an absolute
            path that ends in `.md`, or null for a file in the system's temporary folder. Missing folders
            are made.
        call: the call that this is part of.

    Returns:
        `report_path`, `summary`, `findings` (sentences, the weightiest first), `modules`: how many were
        reviewed, and `unreadable`.

    Raises:
        ValueError: the report's path can't be used, or an input is not what its agent returns.
        OSError: the file can't be written.
    """
    structure = read_object(input, "architecture")
    measures = read_object(input, "detail")
    imports = read_object(input, "relationship")
    if input.get("report_path") is None:
        path = Path(tempfile.gettempdir()) / file_name_for(call.execution_id)
    else:
        path = _absolute_path(input, "report_path")
    unreadable = collect_unreadable(structure, measures, imports)
    findings = state_findings(structure, measures, imports, unreadable)
    summary = summarise(structure, measures, imports)
    text = compose_report(structure, measures, imports, unreadable=unreadable, summary=summary, findings=findings)
    write_report(path, text)
    call.emit(f"wrote the report to {path}")
    return {
        "report_path": str(path),
        "summary": summary,
        "findings": [*findings],
        "modules": len(read_rows(structure, "modules")),
        "unreadable": _unreadable_rows(unreadable),
    }


def _absolute_path(source: JsonObject, key: str) -> Path:
    path = Path(read_text(source, key))
    if not path.is_absolute():
        raise ValueError(f"'{key}' must be an absolute path, since a worker may run anywhere; it is {path}")
    return path


def _tree_of(source: JsonObject) -> tuple[Path, list[ModuleFile]]:
    modules = [
        ModuleFile(read_text(row, "module"), read_text(row, "path"), read_text(row, "kind"))
        for row in read_rows(source, "modules")
    ]
    return _absolute_path(source, "root"), modules


def _unreadable_rows(unreadable: Iterable[Unreadable]) -> list[JsonValue]:
    return [{"path": file.path, "reason": file.reason} for file in unreadable]


def _function_rows(functions: Iterable[tuple[ModuleFile, FunctionMeasure]]) -> list[JsonValue]:
    return [
        {
            "module": file.module,
            "name": function.name,
            "path": file.path,
            "line": function.line,
            "lines": function.lines,
            "complexity": function.complexity,
        }
        for file, function in functions
    ]


def _cycles_of(components: Iterable[list[str]]) -> list[list[str]]:
    cycles = [component for component in components if len(component) > 1]
    return sorted(cycles, key=lambda cycle: (-len(cycle), cycle))


def _layer_rows(layer_of: Mapping[str, int]) -> list[JsonValue]:
    levels: dict[int, list[str]] = {}
    for module, level in sorted(layer_of.items()):
        levels.setdefault(level, []).append(module)
    return [{"layer": level, "modules": [*members]} for level, members in sorted(levels.items())]


def _isolated(modules: Sequence[ModuleFile], linked: AbstractSet[str]) -> list[JsonValue]:
    alone = [file for file in modules if file.module not in linked and not file.is_package]
    return [file.module for file in alone if file.kind == "code" and linked]


def _cycle_rows(
    imports: ImportGraph,
    graph: dict[str, list[str]],
    cycles: Sequence[Sequence[str]],
    modules: Iterable[ModuleFile],
) -> list[JsonValue]:
    paths = {file.module: file.path for file in modules}
    rows: list[JsonValue] = []
    for cycle in cycles[:_LISTED_CYCLES]:
        way = shortest_cycle(graph, cycle)
        steps = zip(way, [*way[1:], way[0]], strict=True)
        rows.append(
            {
                "modules": [*cycle[:_LISTED_IN_CYCLE]],
                "size": len(cycle),
                "path": [
                    {"module": module, "path": paths[module], "line": imports.edges[module, following].line}
                    for module, following in steps
                ],
            }
        )
    return rows


def _top_rows(counts: Mapping[str, int]) -> list[JsonValue]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"module": module, "modules": count} for module, count in ranked[:_TOP]]


def _external_rows(external: Mapping[str, set[str]]) -> list[JsonValue]:
    ranked = sorted(external.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"name": name, "modules": len(importers)} for name, importers in ranked[:_TOP]]


def _graph_row(imports: ImportGraph, in_cycle: set[str]) -> JsonValue:
    drawing = draw(imports.is_package, list(imports.edges.values()))
    return {
        "level": drawing.level,
        "nodes": [*drawing.nodes],
        "arrows": [
            {
                "importer": arrow.importer,
                "imported": arrow.imported,
                "imports": arrow.imports,
                "deferred": arrow.deferred,
            }
            for arrow in drawing.arrows
        ],
        "hidden": drawing.hidden,
        "implied": drawing.implied,
        "in_cycle": [node for node in drawing.nodes if drawing.level == "modules" and node in in_cycle],
    }
