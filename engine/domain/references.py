"""What a definition's steps read of each other, checked on the raw document so that other faults hide nothing.

A mapping is compiled whole, once. Only when that finds something wrong is it taken apart, to say which of its
strings is meant. Nothing here is quadratic or recursive in the number of steps.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.domain.conditions import parse_condition
from engine.domain.expressions import INPUT_ROOTS, OUTPUT_ROOTS, ExpressionError, Path, compile_template
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json_schema import closed_properties

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["EXECUTION_FIELDS", "check_references"]

EXECUTION_FIELDS: Final = ("id", "workflow_id", "version", "tags", "started_at")
"""What ``${execution.<field>}`` can read."""
RESULT_ROOTS: Final = ("input", "steps", "execution")
"""What the definition's own ``output_mapping`` reads."""
MAX_CYCLES: Final = 10
"""Most cycles reported at once."""
MAX_SHOWN: Final = 10
"""Most names in a list within a message."""


class _Fault(NamedTuple):
    code: IssueCode
    message: str
    word: object = None
    """What was written, for "did you mean"."""
    known: Collection[str] = ()
    is_warning: bool = False


def check_references(document: JsonObject, issues: IssueList) -> None:
    """Add an issue for each dependency and each expression that can't work.

    Args:
        document: a definition as JSON data; parts of a wrong type are left to others.
        issues: where they go.
    """
    _References(document, issues).check()


class _References:
    def __init__(self, document: JsonObject, issues: IssueList) -> None:
        self._document = document
        self._issues = issues
        self._input_keys = closed_properties(document.get("input_schema"))
        steps = document.get("steps")
        self._steps = [
            (index, step)
            for index, step in enumerate(steps if isinstance(steps, list) else [])
            if isinstance(step, dict)
        ]
        self._by_id: dict[str, JsonObject] = {}
        for _, step in self._steps:
            step_id = step.get("id")
            if isinstance(step_id, str):
                self._by_id.setdefault(step_id, step)
        self._recalling = {str(step.get("id")) for _, step in self._steps if isinstance(step.get("context"), dict)}
        self._edges: dict[str, dict[str, Location]] = {step_id: {} for step_id in self._by_id}
        """Step to what it waits for, with the place that says so first."""

    def check(self) -> None:
        for index, step in self._steps:
            step_id = step.get("id")
            # Of steps with one id only the first has edges: the others have to be renamed anyway.
            owner = step_id if isinstance(step_id, str) and self._by_id[step_id] is step else None
            place: Location = ("steps", index)
            self._check_dependencies(step.get("depends_on"), step_id, owner, (*place, "depends_on"))
            for key, roots in (("input_mapping", INPUT_ROOTS), ("output_mapping", OUTPUT_ROOTS)):
                self._check_mapping(step.get(key), roots, step_id, owner, (*place, key))
            self._check_recall(step.get("context"), step_id, owner, (*place, "context"))
            self._check_condition(step.get("when"), step_id, owner, (*place, "when"))
        self._check_mapping(self._document.get("output_mapping"), RESULT_ROOTS, None, None, ("output_mapping",))
        self._check_cycles()

    def _check_dependencies(self, names: JsonValue, step_id: JsonValue, owner: str | None, place: Location) -> None:
        seen: set[str] = set()
        for index, name in enumerate(names if isinstance(names, list) else []):
            if not isinstance(name, str):
                continue
            here = (*place, index)
            if name in seen:
                self._issues.error(IssueCode.DUPLICATE_ID, here, f"{name} is named twice; remove one of them.")
            elif name == step_id:
                self._issues.error(IssueCode.CYCLE, here, f"The step waits for itself: {name} -> {name}; remove it.")
            elif name not in self._by_id:
                self._add(self._unknown_step(name), here)
            elif owner is not None:
                self._edges[owner].setdefault(name, here)
            seen.add(name)

    def _check_mapping(
        self, mapping: JsonValue, roots: Collection[str], step_id: JsonValue, owner: str | None, place: Location
    ) -> None:
        if not isinstance(mapping, dict):
            return
        try:
            paths = compile_template(mapping, roots=roots).paths
        except ExpressionError as error:
            paths, found = self._check_strings(mapping, roots, step_id, place)
            # A limit of the mapping as a whole belongs to none of its strings.
            if not found or not error.text:
                self._issues.error(IssueCode.LIMIT_EXCEEDED, place, f"{_sentence(error.message)}.")
        else:
            if any(self._fault(path, step_id) for path in paths):
                self._check_strings(mapping, roots, step_id, place)
        if owner is not None:
            self._add_edges(paths, owner, place)

    def _check_recall(self, context: JsonValue, step_id: JsonValue, owner: str | None, place: Location) -> None:
        if isinstance(context, dict) and isinstance(context.get("recall"), str):
            self._check_mapping({"recall": context["recall"]}, RESULT_ROOTS, step_id, owner, place)

    def _check_condition(self, text: JsonValue, step_id: JsonValue, owner: str | None, place: Location) -> None:
        if not isinstance(text, str):
            return
        try:
            paths = parse_condition(text, roots=RESULT_ROOTS).paths
        except ExpressionError as error:
            message = f"{_sentence(error.message)} (at character {error.position + 1})"
            self._issues.error(IssueCode.INVALID_EXPRESSION, place, message)
            return
        for path in paths:
            fault = self._fault(path, step_id)
            if fault is not None:
                self._add(fault, place)
        if owner is not None:
            self._add_edges(paths, owner, place)

    def _add_edges(self, paths: tuple[Path, ...], owner: str, place: Location) -> None:
        edges = self._edges[owner]
        for path in paths:
            if path.root == "steps" and path.segments and path.segments[0] in self._by_id:
                edges.setdefault(str(path.segments[0]), place)
        edges.pop(owner, None)

    def _check_strings(
        self, mapping: JsonObject, roots: Collection[str], step_id: JsonValue, place: Location
    ) -> tuple[tuple[Path, ...], bool]:
        """Say which strings of a mapping are at fault; return the paths of the others, and whether one is."""
        found = False
        readable: list[Path] = []
        for here, text in _strings(mapping, place):
            try:
                paths = compile_template(text, roots=roots).paths
            except ExpressionError as error:
                found = True
                message = f"{_sentence(error.message)} (at character {error.position + 1})"
                self._issues.error(IssueCode.INVALID_EXPRESSION, here, message)
                continue
            readable.extend(paths)
            for path in paths:
                fault = self._fault(path, step_id)
                if fault is not None:
                    found = True
                    self._add(fault, here)
        return tuple(readable), found

    def _add(self, fault: _Fault, place: Location) -> None:
        add = self._issues.warn if fault.is_warning else self._issues.error
        add(fault.code, place, fault.message, self._issues.did_you_mean(fault.word, fault.known))

    def _fault(self, path: Path, step_id: JsonValue) -> _Fault | None:
        first = path.segments[0] if path.segments else None
        if path.root == "steps":
            return self._step_fault(path, step_id)
        if path.root == "context" and str(step_id) not in self._recalling:
            return _Fault(
                IssueCode.INVALID_EXPRESSION,
                "Nothing is recalled for this step; give it context: {recall: ...}, or take the reference out.",
            )
        if path.root == "execution" and first is not None and first not in EXECUTION_FIELDS:
            return _Fault(
                IssueCode.INVALID_EXPRESSION,
                f"An execution has no {first}; it has {', '.join(EXECUTION_FIELDS)}.",
                first,
                EXECUTION_FIELDS,
            )
        if path.root == "input" and first is not None and self._input_keys is not None:
            if first in self._input_keys:
                return None
            return _Fault(
                IssueCode.UNKNOWN_FIELD,
                f"input_schema allows no key {first}, so ${{{path.text}}} is never there; add it to the schema's "
                "properties or correct the reference.",
                first,
                self._input_keys,
                is_warning=True,
            )
        return None

    def _step_fault(self, path: Path, step_id: JsonValue) -> _Fault | None:
        if not path.segments:
            return _Fault(IssueCode.INVALID_EXPRESSION, "Name the step that is meant: ${steps.<id>.output}.")
        name = str(path.segments[0])
        source = self._by_id.get(name)
        if source is None:
            return self._unknown_step(name)
        part = path.segments[1] if len(path.segments) > 1 else None
        if part not in ("output", "error"):
            return _Fault(
                IssueCode.INVALID_EXPRESSION,
                f"Of a step output and error can be read: write ${{steps.{name}.output}} or ${{steps.{name}.error}}.",
                part,
                ("output", "error"),
            )
        if name == step_id:
            return _Fault(
                IssueCode.CYCLE,
                f"The step reads itself: {name} -> {name}; what its agent replied is ${{output}} in output_mapping.",
            )
        return _unmapped_fault(name, source, path)

    def _unknown_step(self, name: str) -> _Fault:
        return _Fault(
            IssueCode.UNKNOWN_STEP, f"There is no step {_short(name)}; name one of this definition.", name, self._by_id
        )

    def _check_cycles(self) -> None:
        order = {step_id: index for index, step_id in enumerate(self._by_id)}
        for _ in range(MAX_CYCLES):
            found = self._next_cycle()
            if found is None:
                return
            start = found.index(min(found, key=order.__getitem__))
            cycle = found[start:] + found[:start]
            place = self._edges[cycle[0]][cycle[1]]
            shown = [*cycle, cycle[0]]
            if len(cycle) > MAX_SHOWN:
                left_out = len(cycle) - MAX_SHOWN
                shown = [*cycle[: MAX_SHOWN - 1], f"({left_out} more)", cycle[-1], cycle[0]]
            self._issues.error(
                IssueCode.CYCLE,
                place,
                f"These steps wait for each other, so none can start: {' -> '.join(shown)}; remove one dependency.",
            )
            for step_id, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
                del self._edges[step_id][other]

    def _next_cycle(self) -> list[str] | None:
        try:
            TopologicalSorter(self._edges).prepare()
        except CycleError as error:
            # The sorter's list goes from what is waited for to who waits, its first node repeated at the end.
            found: list[str] = error.args[1]
            return found[:0:-1]
        return None


def _unmapped_fault(name: str, source: JsonObject, path: Path) -> _Fault | None:
    """What keeps ``steps.<name>.output.<key>`` from being there when the step maps its output."""
    mapping = source.get("output_mapping")
    if path.segments[1] != "output" or len(path.segments) == 2 or not isinstance(mapping, dict):
        return None
    key = path.segments[2]
    if key in mapping:
        return None
    keys = list(mapping)
    listed = ", ".join(keys[:MAX_SHOWN]) + (", ..." if len(keys) > MAX_SHOWN else "")
    return _Fault(
        IssueCode.UNMAPPED_OUTPUT,
        f"{name} maps its output to {listed or 'nothing'}; {key} is not among them. Add it to the "
        f"output_mapping of {name} or read a mapped key.",
        key,
        keys,
    )


def _strings(value: JsonValue, place: Location) -> Iterator[tuple[Location, str]]:
    pending: list[tuple[JsonValue, Location]] = [(value, place)]
    while pending:
        part, here = pending.pop()
        if isinstance(part, str):
            if "${" in part:
                yield here, part
        elif isinstance(part, dict):
            pending.extend((child, (*here, key)) for key, child in part.items())
        elif isinstance(part, list):
            pending.extend((child, (*here, index)) for index, child in enumerate(part))


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:]


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
