"""The report: findings first, then what they rest on, in the order of the steps.

It holds no date and no duration, so that a repeated call writes the same bytes; the file is written beside
its place and moved there in one step.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING, Final

from examples.code_review.drawing import Arrow, Drawing, mermaid
from examples.code_review.fields import read_count, read_flag, read_object, read_rows, read_text, read_texts
from examples.code_review.findings import percent
from examples.code_review.markdown import COLUMNS, bullets, code, paragraph, plain, table
from examples.code_review.source_tree import Unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.domain.json import JsonObject

_ROWS: Final = 10
_PACKAGES: Final = 20
_CYCLES: Final = 5
_LAYERS: Final = 20
_UNREADABLE: Final = 200
_WAY: Final = 8
# Narrower than this a function's name says too little; the frame is what a row holds beside its two texts.
_NAME: Final = 24
_FRAME: Final = 26
_NOTES: Final = (
    (
        "Complexity is McCabe's of 1976: the number of decisions in a function + 1. A decision is each `if`, "
        "`elif`, `for`, `while`, `except` and conditional expression, each `for` and `if` of a "
        "comprehension, each operand of `and` and `or` after the first, and each `case` but a last one that "
        "takes everything. Nested functions are measured on their own."
    ),
    "Public is what has no leading underscore. Overloads and setters of properties need no docstring.",
    (
        "Tests and generated modules are in the sizes and in the import graph, and not in the figures on "
        "complexity, length and docstrings, unless there is no other module."
    ),
    (
        "A deferred import stands inside a function or under `if TYPE_CHECKING:`; it plays no part when "
        "modules load. Imports made by name at run time are not seen."
    ),
    "Hidden folders, virtual environments, `node_modules` and build folders were left out.",
)


def collect_unreadable(*parts: JsonObject) -> list[Unreadable]:
    """The files that any step could not read, each once, in path order."""
    reasons: dict[str, str] = {}
    for part in parts:
        for row in read_rows(part, "unreadable"):
            reasons.setdefault(read_text(row, "path"), read_text(row, "reason"))
    return [Unreadable(path, reason) for path, reason in sorted(reasons.items())]


def compose_report(
    architecture: JsonObject,
    detail: JsonObject,
    relationship: JsonObject,
    *,
    unreadable: Sequence[Unreadable],
    summary: str,
    findings: Sequence[str],
) -> str:
    """The whole report as Markdown."""
    lines = [
        f"# Code review of {plain(read_text(architecture, 'name'))}",
        "",
        *paragraph(summary),
        "## Findings",
        "",
        *bullets(findings),
        *_architecture_lines(architecture, relationship),
        *_detail_lines(detail),
        *_relationship_lines(relationship),
        *_unreadable_lines(unreadable),
        "## How to read the figures",
        "",
        *bullets(_NOTES),
    ]
    return "\n".join(lines)


def file_name_for(execution_id: str) -> str:
    """The name of a report that was given no path."""
    return f"code-review-{re.sub(r'[^A-Za-z0-9._-]', '-', execution_id)}.md"


def write_report(path: Path, text: str) -> None:
    """Put the text at `path`, whole or not at all; a file there is replaced.

    Raises:
        ValueError: the path does not end in `.md`, or is a folder.
        OSError: the file can't be written.
    """
    if path.suffix != ".md" or path.is_dir():
        raise ValueError(f"'report_path' must name a file that ends in .md; it is {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with beside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _architecture_lines(architecture: JsonObject, relationship: JsonObject) -> list[str]:
    lines = ["## Architecture", ""]
    total = read_count(read_object(architecture, "totals"), "lines")
    packages = _ranked(read_rows(architecture, "packages"), "lines")
    lines += table(
        ["Package", "Modules", "Lines", "Share"],
        [
            [
                code(read_text(row, "name"), 60),
                read_count(row, "modules"),
                read_count(row, "lines"),
                percent(read_count(row, "lines"), total),
            ]
            for row in packages[:_PACKAGES]
        ],
    )
    if len(packages) > _PACKAGES:
        rest = [read_count(row, "lines") for row in packages[_PACKAGES:]]
        lines += paragraph(f"{len(rest):,} smaller packages hold another {sum(rest):,} lines.")
    modules = _ranked(read_rows(architecture, "modules"), "lines")
    lines += ["### Largest modules", ""]
    lines += table(
        ["Module", "Lines", "Public names", "Docstring", "Kind"],
        [
            [
                code(read_text(row, "module"), 47),
                read_count(row, "lines"),
                read_count(row, "public_count"),
                "yes" if read_flag(row, "docstring") else "no",
                read_text(row, "kind"),
            ]
            for row in modules[:_ROWS]
        ],
    )
    external = read_rows(relationship, "external")
    if external:
        names = [f"{code(read_text(row, 'name'))} ({read_count(row, 'modules'):,})" for row in external]
        lines += paragraph(f"From outside, with the number of modules that import it: {', '.join(names)}.")
    return lines


def _detail_lines(detail: JsonObject) -> list[str]:
    lines = ["## Detail", ""]
    for title, key in (
        ("Most complex functions", "complex_functions"),
        ("Longest functions", "longest_functions"),
    ):
        rows = read_rows(detail, key)
        if rows:
            lines += [f"### {title}", "", *_function_table(rows)]
    lacking = [row for row in read_rows(detail, "modules") if _undocumented(row)]
    bare = [row for row in lacking if _undocumented(row) > 1] or lacking
    bare.sort(key=lambda row: (-_undocumented(row), read_text(row, "module")))
    if bare:
        lines += ["### Docstrings: where most are missing", ""]
        lines += table(
            ["Module", "Missing", "Of", "Cover"],
            [
                [
                    code(read_text(row, "module"), 60),
                    _undocumented(row),
                    read_count(row, "documentable"),
                    percent(read_count(row, "documented"), read_count(row, "documentable")),
                ]
                for row in bare[:_ROWS]
            ],
        )
    if not lacking and not read_rows(detail, "longest_functions"):
        lines += paragraph("The modules hold no function, and no public name lacks a docstring.")
    return lines


def _function_table(rows: Sequence[JsonObject]) -> list[str]:
    where = [code(f"{read_text(row, 'path')}:{read_count(row, 'line')}") for row in rows]
    width = max(_NAME, COLUMNS - _FRAME - max(len(place) for place in where))
    return table(
        ["Function", "McCabe", "Lines", "Where"],
        [
            [
                code(read_text(row, "name"), width),
                read_count(row, "complexity"),
                read_count(row, "lines"),
                place,
            ]
            for row, place in zip(rows, where, strict=True)
        ],
    )


def _relationship_lines(relationship: JsonObject) -> list[str]:
    lines = ["## Relationship", "", *_graph_lines(read_object(relationship, "graph"))]
    for title, key in (
        ("Import cycles at load time", "cycles"),
        ("Cycles closed by deferred imports", "deferred_cycles"),
    ):
        cycles = read_rows(relationship, key)
        if cycles:
            lines += [f"### {title}", "", *bullets([_cycle_text(row) for row in cycles[:_CYCLES]])]
            rest = read_count(read_object(relationship, "totals"), key) - _CYCLES
            if rest > 0:
                lines += paragraph(f"Not listed, since no larger than these: {rest:,}.")
    levels = read_rows(relationship, "layers")
    lines += ["### Layers", ""]
    lines += paragraph(
        "Layer 1 imports nothing of the tree at load time; each other one lies above all that it imports. "
        "Modules in one cycle share a layer."
    )
    lines += table(
        ["Layer", "Modules", "Among them"],
        [
            [read_count(row, "layer"), len(read_texts(row, "modules")), _some(read_texts(row, "modules"))]
            for row in levels[::-1][:_LAYERS]
        ],
    )
    if len(levels) > _LAYERS:
        lines += paragraph(f"The {len(levels) - _LAYERS:,} layers below are not listed.")
    for title, key in (("Most imported", "fan_in"), ("Importing most", "fan_out")):
        rows = read_rows(relationship, key)
        if rows:
            head = "Imported by" if key == "fan_in" else "Imports"
            lines += [f"### {title}", ""]
            lines += table(
                ["Module", head],
                [[code(read_text(row, "module"), 70), read_count(row, "modules")] for row in rows[:_ROWS]],
            )
    return lines


def _graph_lines(graph: JsonObject) -> list[str]:
    arrows = [
        Arrow(
            read_text(row, "importer"),
            read_text(row, "imported"),
            read_count(row, "imports"),
            read_flag(row, "deferred"),
        )
        for row in read_rows(graph, "arrows")
    ]
    drawing = Drawing(
        read_text(graph, "level"),
        read_texts(graph, "nodes"),
        arrows,
        read_count(graph, "hidden"),
        read_count(graph, "implied"),
    )
    if drawing.level == "packages":
        says = ["An arrow leads from a package to one that it imports, with the number of imports"]
    else:
        says = ["An arrow leads from a module to one that it imports"]
    says.append("dotted when all of them are deferred")
    if read_texts(graph, "in_cycle"):
        says.append("a red frame marks modules in a cycle")
    text = "; ".join(says) + "."
    if drawing.implied:
        text += f" {drawing.implied:,} arrows that a longer way implies are left out."
    if drawing.hidden:
        text += f" The {drawing.hidden:,} least connected boxes are left out."
    return [
        *paragraph(text),
        "```mermaid",
        *mermaid(drawing, set(read_texts(graph, "in_cycle"))),
        "```",
        "",
    ]


def _cycle_text(cycle: JsonObject) -> str:
    way = read_rows(cycle, "path")
    steps = [f"{code(read_text(step, 'module'))} (line {read_count(step, 'line')})" for step in way[:_WAY]]
    if len(way) > _WAY:
        steps.append(f"{len(way) - _WAY} more")
    text = " → ".join([*steps, code(read_text(way[0], "module"))])
    size = read_count(cycle, "size")
    if size == len(way):
        return text
    others = [name for name in read_texts(cycle, "modules") if name not in {read_text(step, "module") for step in way}]
    return f"{size} modules, the shortest way: {text}. Also: {_some(others)}."


def _unreadable_lines(unreadable: Sequence[Unreadable]) -> list[str]:
    if not unreadable:
        return []
    lines = ["## Files not read", ""]
    lines += bullets([f"{code(file.path)}: {plain(file.reason)}" for file in unreadable[:_UNREADABLE]])
    if len(unreadable) > _UNREADABLE:
        lines += paragraph(f"{len(unreadable) - _UNREADABLE:,} more are in the step's output.")
    return lines


def _ranked(rows: Sequence[JsonObject], key: str) -> list[JsonObject]:
    return sorted(rows, key=lambda row: -read_count(row, key))


def _undocumented(row: JsonObject) -> int:
    return read_count(row, "documentable") - read_count(row, "documented")


def _some(names: Sequence[str], width: int = 64) -> str:
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, code(name)])) > width:
            break
        shown.append(code(name, width - 2))
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
