"""What a definition's steps read of each other, checked on the raw document so that other faults hide nothing.

A mapping is compiled whole, once. Only when that finds something wrong is it taken apart, to say which of its
strings is meant. Nothing here is quadratic or recursive in the number of steps.
"""

from __future__ import annotations

from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Final

from engine.domain.conditions import parse_condition
from engine.domain.expressions import INPUT_ROOTS, OUTPUT_ROOTS, ExpressionError, Path, compile_template
from engine.domain.issues import IssueCode, IssueList, Location
from engine.domain.json_schema import closed_properties
from engine.domain.reads import MAX_SHOWN, Fault, Readable, Reader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from engine.domain.json import JsonObject, JsonValue

__all__ = ["check_references"]

RESULT_ROOTS: Final = ("input", "steps", "execution")
"""What everything else reads: ``when``, ``transform``, ``recall``, the definition's own ``output_mapping``."""
MAX_CYCLES: Final = 10
"""Most cycles reported at once."""


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
        self._steps = [(place, step, place[0] == "finally") for place, step in _steps(document)]
        self._by_id: dict[str, JsonObject] = {}
        self._final_ids: set[str] = set()
        for _, step, is_final in self._steps:
            step_id = step.get("id")
            if isinstance(step_id, str) and step_id not in self._by_id:
                self._by_id[step_id] = step
                if is_final:
                    self._final_ids.add(step_id)
        self._readable = Readable(
            {step_id: step for step_id, step in self._by_id.items() if step_id not in self._final_ids},
            {step_id: self._by_id[step_id] for step_id in self._by_id if step_id in self._final_ids},
            closed_properties(document.get("input_schema")),
        )
        self._edges: dict[str, dict[str, Location]] = {step_id: {} for step_id in self._by_id}
        """Step to what it waits for, with the place that says so first."""

    def check(self) -> None:
        for place, step, is_final in self._steps:
            step_id = step.get("id")
            # Of steps with one id only the first has edges: the others have to be renamed anyway.
            owner = step_id if isinstance(step_id, str) and self._by_id[step_id] is step else None
            reader = Reader(step_id, owner, is_final, recalls=isinstance(step.get("context"), dict))
            self._check_dependencies(step.get("depends_on"), reader, (*place, "depends_on"))
            self._check_mappings(step, reader, place)
            self._check_condition(step.get("when"), RESULT_ROOTS, reader, (*place, "when"))
            self._check_parts(step, reader, place)
        self._check_mapping(self._document.get("output_mapping"), RESULT_ROOTS, Reader(), ("output_mapping",))
        self._check_cycles()

    def _check_mappings(self, step: JsonObject, reader: Reader, place: Location) -> None:
        foreach, repeat = step.get("foreach"), step.get("repeat_until")
        of_item = _item_roots(foreach)
        of_turn = (*of_item, "iteration") if isinstance(repeat, dict) else of_item
        turns = replace(reader, has_turns=isinstance(repeat, dict))
        self._check_mapping(step.get("input_mapping"), (*INPUT_ROOTS, *of_turn), turns, (*place, "input_mapping"))
        self._check_mapping(step.get("output_mapping"), (*OUTPUT_ROOTS, *of_turn), reader, (*place, "output_mapping"))
        self._check_mapping(step.get("transform"), (*RESULT_ROOTS, *of_item), reader, (*place, "transform"))
        if isinstance(foreach, dict):
            self._check_values(foreach, ("items",), reader, (*place, "foreach"))
        if isinstance(repeat, dict):
            roots = (*OUTPUT_ROOTS, *of_item, "iteration")
            self._check_condition(repeat.get("condition"), roots, reader, (*place, "repeat_until", "condition"))

    def _check_parts(self, step: JsonObject, reader: Reader, place: Location) -> None:
        for name, keys in (("context", ("recall",)), ("approval", ("question",)), ("wait", ("seconds", "until"))):
            part = step.get(name)
            if isinstance(part, dict):
                self._check_values(part, keys, reader, (*place, name))
        compensate = step.get("compensate")
        if isinstance(compensate, dict):
            undoing = replace(reader, owner=None, is_compensation=True, recalls=False)
            mapping = compensate.get("input_mapping")
            self._check_mapping(mapping, RESULT_ROOTS, undoing, (*place, "compensate", "input_mapping"))

    def _check_dependencies(self, names: JsonValue, reader: Reader, place: Location) -> None:
        seen: set[str] = set()
        for index, name in enumerate(names if isinstance(names, list) else []):
            if not isinstance(name, str):
                continue
            here = (*place, index)
            if name in seen:
                self._issues.error(IssueCode.DUPLICATE_ID, here, f"{name} is named twice; remove one of them.")
            elif name == reader.step_id:
                self._issues.error(IssueCode.CYCLE, here, f"The step waits for itself: {name} -> {name}; remove it.")
            elif (fault := self._readable.dependency_fault(name, is_final=reader.is_final)) is not None:
                self._add([fault], here)
            elif reader.owner is not None:
                self._edges[reader.owner].setdefault(name, here)
            seen.add(name)

    def _check_values(self, part: JsonObject, keys: tuple[str, ...], reader: Reader, place: Location) -> None:
        """Check single values of a part of a step that are templates: texts, and lists that hold some."""
        mapping: JsonObject = {
            key: value for key, value in part.items() if key in keys and isinstance(value, (str, list))
        }
        self._check_mapping(mapping, RESULT_ROOTS, reader, place)

    def _check_mapping(self, mapping: JsonValue, roots: Collection[str], reader: Reader, place: Location) -> None:
        if not isinstance(mapping, dict):
            return
        try:
            paths = compile_template(mapping, roots=roots).paths
        except ExpressionError as error:
            paths, found = self._check_strings(mapping, roots, reader, place)
            # A limit of the mapping as a whole belongs to none of its strings.
            if not found or not error.text:
                self._issues.error(IssueCode.LIMIT_EXCEEDED, place, f"{_sentence(error.message)}.")
        else:
            if any(self._readable.fault(path, reader) for path in paths):
                self._check_strings(mapping, roots, reader, place)
        self._add_edges(paths, reader, place)

    def _check_condition(self, text: JsonValue, roots: Collection[str], reader: Reader, place: Location) -> None:
        if not isinstance(text, str):
            return
        try:
            paths = parse_condition(text, roots=roots).paths
        except ExpressionError as error:
            message = f"{_sentence(error.message)} (at character {error.position + 1})"
            self._issues.error(IssueCode.INVALID_EXPRESSION, place, message)
            return
        self._add(self._faults(paths, reader), place)
        self._add_edges(paths, reader, place)

    def _add_edges(self, paths: tuple[Path, ...], reader: Reader, place: Location) -> None:
        if reader.owner is None:
            return
        edges = self._edges[reader.owner]
        for path in paths:
            name = str(path.segments[0]) if path.root == "steps" and path.segments else None
            # Main steps are over when finally steps begin: nothing waits across the two.
            if name in self._by_id and (name in self._final_ids) is reader.is_final and name != reader.owner:
                edges.setdefault(name, place)

    def _check_strings(
        self, mapping: JsonObject, roots: Collection[str], reader: Reader, place: Location
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
            faults = self._faults(paths, reader)
            found = found or bool(faults)
            self._add(faults, here)
        return tuple(readable), found

    def _faults(self, paths: Iterable[Path], reader: Reader) -> list[Fault]:
        """The faults of a text's paths; what two of them have in common is one fault."""
        faults = (self._readable.fault(path, reader) for path in paths)
        return list({fault.message: fault for fault in faults if fault is not None}.values())

    def _add(self, faults: list[Fault], place: Location) -> None:
        for fault in faults:
            add = self._issues.warn if fault.is_warning else self._issues.error
            add(fault.code, place, fault.message, self._issues.did_you_mean(fault.word, fault.known))

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


def _steps(document: JsonObject) -> Iterator[tuple[Location, JsonObject]]:
    for key in ("steps", "finally"):
        steps = document.get(key)
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            if isinstance(step, dict):
                yield (key, index), step


def _item_roots(foreach: JsonValue) -> tuple[str, ...]:
    """What a step that is run for each item reads of the item."""
    if not isinstance(foreach, dict):
        return ()
    name = foreach.get("as")
    return ("item", "index", name) if isinstance(name, str) and name != "item" else ("item", "index")


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
