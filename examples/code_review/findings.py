"""The findings as sentences, the weightiest first: what is unknown, what can break, what is hard to change.

Limits are named in each sentence. McCabe proposed 10 as the complexity above which a function is better
split; 100 lines are about two screens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from examples.code_review.fields import read_count, read_flag, read_object, read_rows, read_text, read_texts
from examples.code_review.markdown import code
from examples.code_review.source_tree import MAX_FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.domain.json import JsonObject
    from examples.code_review.source_tree import Unreadable

HIGH_COMPLEXITY: Final = 10
LONG_FUNCTION: Final = 100
_LARGE_MODULE: Final = 1_000
_HUB_SHARE: Final = 0.25
_FEWEST_FOR_HUB: Final = 8
_POOR_COVER: Final = 0.5
_FEWEST_FOR_COVER: Final = 5
_SHOWN_WAY: Final = 6
_GOOD: Final = ("No ", "Every ")


def summarise(architecture: JsonObject, detail: JsonObject, relationship: JsonObject) -> str:
    """Two or three sentences with the figures that come first."""
    size = read_object(architecture, "totals")
    measured = read_object(detail, "totals")
    imports = read_object(relationship, "totals")
    kinds = [f"{read_count(size, kind):,} {kind}" for kind in ("test", "generated") if read_count(size, kind)]
    among = f" ({' and '.join(kinds)})" if kinds else ""
    functions = read_count(measured, "functions")
    mean = f", mean complexity {read_count(measured, 'complexity') / functions:.1f}" if functions else ""
    cover = percent(read_count(measured, "documented"), read_count(measured, "documentable"))
    cycles = read_count(imports, "cycles")
    return (
        f"{_count(read_count(size, 'modules'), 'module')}{among} in "
        f"{_count(read_count(size, 'packages'), 'package')}, {_count(read_count(size, 'lines'), 'line')}. "
        f"{_count(functions, 'function')} measured{mean}; docstrings on {cover} of what is public. "
        f"{_count(read_count(imports, 'imports'), 'import')} between the modules in "
        f"{_count(read_count(imports, 'layers'), 'layer')}, "
        f"{_count(cycles, 'import cycle') if cycles else 'no import cycle'} at load time."
    )


def state_findings(
    architecture: JsonObject, detail: JsonObject, relationship: JsonObject, unreadable: Sequence[Unreadable]
) -> list[str]:
    """All findings; what is as it should be comes last."""
    findings = [
        *_gaps(architecture, unreadable),
        *_cycles(relationship),
        *_complexity(detail),
        *_length(detail),
        *_size(architecture),
        *_hubs(architecture, relationship),
        *_docstrings(detail),
        *_isolated(relationship),
    ]
    return sorted(findings, key=lambda finding: finding.startswith(_GOOD))


def percent(part: int, whole: int) -> str:
    """A share in per cent, never rounded up to all nor down to nothing."""
    if whole == 0:
        return "0%"
    if 0 < part < whole:
        return f"{min(99, max(1, round(100 * part / whole)))}%"
    return "100%" if part else "0%"


def _gaps(architecture: JsonObject, unreadable: Sequence[Unreadable]) -> list[str]:
    findings: list[str] = []
    if unreadable:
        names = _listed([code(file.path) for file in unreadable])
        are = "is" if len(unreadable) == 1 else "are"
        findings.append(f"{_count(len(unreadable), 'file')} could not be read and {are} not in the figures: {names}.")
    if read_flag(read_object(architecture, "totals"), "truncated"):
        findings.append(f"The tree holds more than {MAX_FILES:,} Python files; the rest was not read.")
    return findings


def _cycles(relationship: JsonObject) -> list[str]:
    findings: list[str] = []
    totals = read_object(relationship, "totals")
    cycles = read_rows(relationship, "cycles")
    if cycles:
        count = read_count(totals, "cycles")
        groups = f"{count} groups of modules import themselves"
        groups = "A group of modules imports itself" if count == 1 else groups
        findings.append(
            f"{groups} in a circle at load time ({read_count(totals, 'in_cycles')} modules in all): "
            f"{_way(cycles[0])}. Such modules can't be loaded or tested apart, and the order of imports can "
            "break them."
        )
    elif read_count(totals, "imports"):
        findings.append("No import cycle at load time: the modules form clean layers.")
    deferred = read_rows(relationship, "deferred_cycles")
    if deferred:
        count, size = read_count(totals, "deferred_cycles"), read_count(deferred[0], "size")
        circles = "a circle" if count == 1 else f"{count} circles, the largest"
        findings.append(
            f"Imports inside functions or for type checkers close {circles} of {size} modules: harmless "
            "when loading, yet these modules know each other."
        )
    return findings


def _complexity(detail: JsonObject) -> list[str]:
    totals = read_object(detail, "totals")
    functions, above = read_count(totals, "functions"), read_count(totals, "above_complexity")
    if not functions:
        return []
    worst = read_rows(detail, "complex_functions")[0]
    highest = f"{_function(worst)} with {read_count(worst, 'complexity')}"
    if not above:
        return [f"No function has a complexity above {HIGH_COMPLEXITY}; the highest is {highest}."]
    have = "has" if above == 1 else "have"
    which = f"{above:,} of {_count(functions, 'function')} ({percent(above, functions)})"
    return [f"{which} {have} a complexity above {HIGH_COMPLEXITY}; the highest is {highest}."]


def _length(detail: JsonObject) -> list[str]:
    totals = read_object(detail, "totals")
    above = read_count(totals, "above_length")
    if not read_count(totals, "functions"):
        return []
    longest = read_rows(detail, "longest_functions")[0]
    which = f"{_function(longest)} with {_count(read_count(longest, 'lines'), 'line')}"
    if not above:
        return [f"No function is longer than {LONG_FUNCTION} lines; the longest is {which}."]
    are = "function is" if above == 1 else "functions are"
    return [f"{above:,} {are} longer than {LONG_FUNCTION} lines; the longest is {which}."]


def _size(architecture: JsonObject) -> list[str]:
    lines = {
        read_text(row, "module"): read_count(row, "lines")
        for row in read_rows(architecture, "modules")
        if read_text(row, "kind") == "code"
    }
    large = sorted((name for name in lines if lines[name] > _LARGE_MODULE), key=lambda name: (-lines[name], name))
    if not large:
        return []
    share = percent(sum(lines[name] for name in large), sum(lines.values()))
    named = _listed([f"{code(name)} ({lines[name]:,})" for name in large])
    has, holds = ("module has", "holds") if len(large) == 1 else ("modules have", "together hold")
    return [f"{len(large)} {has} more than {_LARGE_MODULE:,} lines and {holds} {share} of the code: {named}."]


def _hubs(architecture: JsonObject, relationship: JsonObject) -> list[str]:
    modules = read_count(read_object(architecture, "totals"), "modules")
    hubs = [
        row
        for row in read_rows(relationship, "fan_in")
        if modules >= _FEWEST_FOR_HUB and read_count(row, "modules") > _HUB_SHARE * modules
    ]
    if not hubs:
        return []
    named = _listed([f"{code(read_text(row, 'module'))} ({read_count(row, 'modules'):,})" for row in hubs])
    return [f"More than a quarter of all modules import {named}: a change there reaches far."]


def _docstrings(detail: JsonObject) -> list[str]:
    totals = read_object(detail, "totals")
    documentable, documented = read_count(totals, "documentable"), read_count(totals, "documented")
    if not documentable:
        return []
    if documented == documentable:
        return ["Every public module, class and function has a docstring."]
    poor = [
        row
        for row in read_rows(detail, "modules")
        if read_count(row, "documentable") >= _FEWEST_FOR_COVER
        and read_count(row, "documented") < _POOR_COVER * read_count(row, "documentable")
    ]
    poor.sort(key=lambda row: read_count(row, "documented") - read_count(row, "documentable"))
    cover = f"{percent(documented, documentable)} of {documentable:,} public modules, classes and functions"
    if not poor:
        return [f"{cover} have a docstring."]
    weakest = [
        f"{code(read_text(row, 'module'))} ({read_count(row, 'documented')} of {read_count(row, 'documentable')})"
        for row in poor
    ]
    return [f"{cover} have a docstring; weakest: {_listed(weakest)}."]


def _isolated(relationship: JsonObject) -> list[str]:
    isolated = read_texts(relationship, "isolated")
    if not isolated:
        return []
    named = _listed([code(name) for name in isolated])
    use = "an entry point, loaded by name, or no longer used"
    if len(isolated) == 1:
        return [f"{named} neither imports another module nor is imported: it is {use}."]
    return [f"{len(isolated):,} modules neither import another one nor are imported: {named}. Each is {use}."]


def _way(cycle: JsonObject) -> str:
    names = [read_text(step, "module") for step in read_rows(cycle, "path")]
    shown = names[:_SHOWN_WAY]
    more = ["…"] if len(names) > len(shown) else []
    return " → ".join([*(code(name) for name in shown), *more, code(names[0])])


def _function(row: JsonObject) -> str:
    return f"{code(read_text(row, 'name'))} in {code(read_text(row, 'module'))}"


def _listed(items: Sequence[str], shown: int = 3) -> str:
    if len(items) > shown:
        return f"{', '.join(items[:shown])} and {len(items) - shown:,} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
