"""Whether a path of an expression can ever lead to something, judged by who reads it.

A main step reads steps that it then waits for; a ``finally`` step reads main steps too, since those are over; a
compensation reads what there was. Only these two see how the execution ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.domain.issues import IssueCode

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.domain.expressions import Path
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["ENDING_FIELDS", "EXECUTION_FIELDS", "MAX_SHOWN", "Fault", "Readable", "Reader"]

EXECUTION_FIELDS: Final = ("id", "workflow_id", "version", "tags", "started_at")
"""What ``${execution.<field>}`` can read everywhere."""
ENDING_FIELDS: Final = ("status", "error")
"""What it can read as well in ``finally`` steps and compensations."""
MAX_SHOWN: Final = 10
"""Most names in a list within a message."""

_FIXED_KEYS: Final = {"wait": ("waited_until",), "approval": ("answer", "data", "by", "at")}
"""Keys of the output of a step that no mapping makes."""


class Fault(NamedTuple):
    """What is wrong with one path."""

    code: IssueCode
    message: str
    word: object = None
    """What was written, for "did you mean"."""
    known: Collection[str] = ()
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: a field of a step, or the definition's own ``output_mapping``."""

    step_id: JsonValue = None
    owner: str | None = None
    """The step that has to wait for what is read; None: nothing waits."""
    is_final: bool = False
    """It stands in a ``finally`` step."""
    is_compensation: bool = False
    has_turns: bool = False
    """Its own output is that of the turn before."""
    recalls: bool = False
    """The step is reminded of something."""


class Readable:
    """What a definition's expressions can read.

    Args:
        main: the main steps by id, as JSON data.
        final: the ``finally`` steps by id.
        input_keys: the only keys that the input can have; None: any.
    """

    def __init__(
        self, main: dict[str, JsonObject], final: dict[str, JsonObject], input_keys: Collection[str] | None
    ) -> None:
        self._main = main
        self._final = final
        self._all = {**main, **final}
        self._input_keys = input_keys

    def fault(self, path: Path, reader: Reader) -> Fault | None:
        """Return what keeps ``path`` from being there for ``reader``, or None."""
        first = path.segments[0] if path.segments else None
        if path.root == "steps":
            return self._step_fault(path, reader)
        if path.root == "context" and not reader.recalls:
            return Fault(
                IssueCode.INVALID_EXPRESSION,
                "Nothing is recalled for this step; give it context: {recall: ...}, or take the reference out.",
            )
        if path.root == "execution" and first is not None:
            return _execution_fault(first, sees_ending=reader.is_final or reader.is_compensation)
        if path.root == "input" and first is not None and self._input_keys is not None:
            if first in self._input_keys:
                return None
            return Fault(
                IssueCode.UNKNOWN_FIELD,
                f"input_schema allows no key {first}, so ${{{path.text}}} is never there; add it to the schema's "
                "properties or correct the reference.",
                first,
                self._input_keys,
                is_warning=True,
            )
        return None

    def dependency_fault(self, name: str, *, is_final: bool) -> Fault | None:
        """Return what keeps a step from naming ``name`` in its ``depends_on``, or None."""
        if name in (self._final if is_final else self._main):
            return None
        if name in self._main:
            message = f"{name} is a main step, and those are over when finally steps begin; take it out."
            return Fault(IssueCode.UNKNOWN_STEP, message)
        if name in self._final:
            message = f"{name} is a finally step, which begins when all main steps are over; take it out."
            return Fault(IssueCode.UNKNOWN_STEP, message)
        return self._unknown_step(name, self._final if is_final else self._main)

    def _unknown_step(self, name: str, known: Collection[str]) -> Fault:
        shown = name if len(name) <= 80 else f"{name[:80]}..."
        return Fault(IssueCode.UNKNOWN_STEP, f"There is no step {shown}; name one of this definition.", name, known)

    def _step_fault(self, path: Path, reader: Reader) -> Fault | None:
        if not path.segments:
            return Fault(IssueCode.INVALID_EXPRESSION, "Name the step that is meant: ${steps.<id>.output}.")
        name = str(path.segments[0])
        source = self._all.get(name)
        if source is None:
            return self._unknown_step(name, self._all if reader.is_final else self._main)
        part = path.segments[1] if len(path.segments) > 1 else None
        if part not in ("output", "error"):
            return Fault(
                IssueCode.INVALID_EXPRESSION,
                f"Of a step output and error can be read: write ${{steps.{name}.output}} or ${{steps.{name}.error}}.",
                part,
                ("output", "error"),
            )
        if name in self._final and not reader.is_final:
            return Fault(
                IssueCode.UNKNOWN_STEP,
                f"{name} is a finally step, which begins when all main steps are over; read a main step.",
            )
        reads_turn = name == reader.step_id and reader.has_turns and part == "output"
        if name == reader.step_id and not reads_turn and not reader.is_compensation:
            return Fault(
                IssueCode.CYCLE,
                f"The step reads itself: {name} -> {name}; what its agent replied is ${{output}} in output_mapping, "
                f"and with repeat_until its input_mapping reads the turn before as ${{steps.{name}.output}}.",
            )
        if part == "error":
            return None
        return _output_fault(name, source, path, is_list=isinstance(source.get("foreach"), dict) and not reads_turn)


def _execution_fault(field: str | int, *, sees_ending: bool) -> Fault | None:
    if field in EXECUTION_FIELDS or (sees_ending and field in ENDING_FIELDS):
        return None
    if field in ENDING_FIELDS:
        return Fault(
            IssueCode.INVALID_EXPRESSION,
            f"How the execution ended (execution.{field}) can be read in finally steps and compensations only; "
            "move the reference there.",
        )
    known = EXECUTION_FIELDS + ENDING_FIELDS if sees_ending else EXECUTION_FIELDS
    return Fault(IssueCode.INVALID_EXPRESSION, f"An execution has no {field}; it has {', '.join(known)}.", field, known)


def _output_fault(name: str, source: JsonObject, path: Path, *, is_list: bool) -> Fault | None:
    """What keeps ``steps.<name>.output.<key>`` from being there."""
    below = path.segments[2:]
    if is_list and below:
        if not isinstance(below[0], int):
            return Fault(
                IssueCode.INVALID_EXPRESSION,
                f"{name} is run for each item, so its output is a list; read all of it, or one item's as "
                f"${{steps.{name}.output[0]}}.",
            )
        below = below[1:]
    if not below:
        return None
    key = below[0]
    kind = source.get("type", "agent")
    made_by = "transform" if kind == "transform" else "output_mapping"
    mapping = source.get(made_by)
    keys = _FIXED_KEYS.get(str(kind)) or (list(mapping) if isinstance(mapping, dict) else None)
    if keys is None or key in keys:
        return None
    listed = ", ".join(keys[:MAX_SHOWN]) + (", ..." if len(keys) > MAX_SHOWN else "")
    if kind in _FIXED_KEYS:
        message = f"The output of {name} has {listed}; {key} is not among them. Read one of these."
    else:
        message = (
            f"{name} maps its output to {listed or 'nothing'}; {key} is not among them. Add it to the {made_by} of "
            f"{name} or read a mapped key."
        )
    return Fault(IssueCode.UNMAPPED_OUTPUT, message, key, keys)
