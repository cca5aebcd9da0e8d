"""What a mapping reads, without moving large values through the workflow.

The workflow resolves a mapping itself while everything it reads is in its memory and the result stays small.
Otherwise it names where each operand lies (an artifact, a step's record, the execution's record) and the
activity resolves the same mapping over values fetched from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from engine.domain.execution import ArtifactRef
from engine.domain.expressions import (
    MISSING,
    Missing,
    MissingPathError,
    Path,
    ResolvedTooLargeError,
    Template,
    json_size,
    parse_path,
    render_path,
    walk,
)
from engine.domain.messages import MAX_CALL_INPUT_BYTES, MAX_DECLARED_BYTES, CallInput, OperandRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.execution import Value
    from engine.domain.json import JsonValue

__all__ = [
    "CONTEXT_ROOT",
    "Located",
    "OperandScope",
    "Unavailable",
    "ValueSource",
    "call_input",
    "call_input_with_context",
    "declare",
    "locate_operands",
]

CONTEXT_ROOT: Final = "context"
"""Root of what was recalled, which only the activity knows."""
_MAX_INLINE_OPERANDS_BYTES: Final = 32 * 1024
_MAX_DECLARED_TOTAL_BYTES: Final = 64 * 1024


class Unavailable(Exception):  # noqa: N818 - a signal inside this module, never an error for a caller
    """A value is not in memory."""


class ValueSource(Protocol):
    """Finds what a path's root names.

    ``locate`` returns the value there with the segments that are left below it and the place where it is stored;
    or a plain JSON value when it is always small; or MISSING.
    """

    def locate(self, path: Path) -> Located | Missing:
        """Find the value that ``path`` starts in."""
        ...


class Located:
    """A value that a path starts in: in memory, in an artifact, or only in a record."""

    __slots__ = ("known", "lengths", "root", "segments", "stored", "value")

    def __init__(
        self,
        value: Value | None,
        segments: tuple[str | int, ...],
        root: str,
        stored: OperandRef | None,
        known: Mapping[str, JsonValue | Missing] | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.value = value
        """None when it is only in the record."""
        self.segments = segments
        self.root = root
        """``output`` or ``input``: the root of declared paths."""
        self.stored = stored
        """Where the record holds it."""
        self.known = known or {}
        """What is at declared paths of a value that is only in the record."""
        self.lengths = lengths or {}
        """Of the lists at such paths."""

    def read(self) -> JsonValue | Missing:
        """The value at the path. Raises ``Unavailable`` when it is not in memory."""
        if self.value is not None and self.value.ref is None:
            return walk(self.value.inline, self.segments)
        ref = None if self.value is None else self.value.ref
        declared = self.known if ref is None else ref.declared
        key = render_path(self.root, self.segments)
        if ref is not None and key in ref.absent:
            return MISSING
        if key not in declared:
            raise Unavailable
        return declared[key]

    def read_length(self) -> int | None:
        """The length of the list at the path; None when something else is there. Raises ``Unavailable``."""
        ref = None if self.value is None else self.value.ref
        lengths = self.lengths if ref is None else ref.lengths
        length = lengths.get(render_path(self.root, self.segments))
        if length is not None:
            return length
        found = self.read()
        return len(found) if isinstance(found, list) else None

    @property
    def is_stored(self) -> bool:
        """Whether an activity can find it; what is not stored is small."""
        return self.stored is not None or (self.value is not None and self.value.ref is not None)

    def reference(self) -> OperandRef:
        """Where an activity finds the value at the path."""
        segments = list(self.segments)
        if self.value is not None and self.value.ref is not None:
            return OperandRef(artifact_id=self.value.ref.artifact_id, segments=segments)
        if self.stored is None:
            raise Unavailable
        return self.stored.model_copy(update={"segments": segments})


class OperandScope:
    """A scope over a source, for conditions and for mappings that stay small."""

    def __init__(self, source: ValueSource) -> None:
        self._source = source

    def lookup(self, path: Path) -> JsonValue | Missing:
        """The value at ``path``. Raises ``Unavailable`` when it is not in memory."""
        located = self._source.locate(path)
        return MISSING if isinstance(located, Missing) else located.read()


def call_input(template: Template, mapping: JsonValue, source: ValueSource) -> CallInput:
    """Resolve ``mapping`` (``template`` is its compiled form), or name its operands.

    Raises:
        MissingPathError: a path without default that is not there.
    """
    try:
        return CallInput(inline=template.resolve(OperandScope(source), max_bytes=MAX_CALL_INPUT_BYTES))
    except (Unavailable, ResolvedTooLargeError):
        return CallInput(mapping=mapping, operands=locate_operands(template.paths, source))


def call_input_with_context(template: Template, mapping: JsonValue, source: ValueSource) -> CallInput:
    """Like ``call_input`` for a step with a recall: what reads ``${context}`` is left to the activity."""
    own = tuple(path for path in template.paths if path.root != CONTEXT_ROOT)
    if len(own) == len(template.paths):
        return call_input(template, mapping, source)
    return CallInput(mapping=mapping, operands=locate_operands(own, source))


def locate_operands(paths: tuple[Path, ...], source: ValueSource) -> dict[str, OperandRef]:
    """Name where the value of each path lies, small ones inline.

    Raises:
        MissingPathError: a path without default that is known to be missing.
    """
    operands: dict[str, OperandRef] = {}
    inline_bytes = 0
    for path in paths:
        located = source.locate(path)
        if isinstance(located, Missing):
            _require_default(path)
            continue
        try:
            value = located.read()
        except Unavailable:
            operands[path.text] = located.reference()
            continue
        if isinstance(value, Missing):
            _require_default(path)
            continue
        size = json_size(value, limit=MAX_DECLARED_BYTES)
        if located.is_stored and (size > MAX_DECLARED_BYTES or inline_bytes + size > _MAX_INLINE_OPERANDS_BYTES):
            operands[path.text] = located.reference()
        else:
            inline_bytes += size
            operands[path.text] = OperandRef(inline=value)
    return operands


def missing_path(subject: str, error: MissingPathError) -> str:
    """The sentence for a path that a mapping reads in vain."""
    return f"{subject} reads {error.path.text}, which is not there; map it, or give a default with ??"


def _require_default(path: Path) -> None:
    if isinstance(path.default, Missing):
        raise MissingPathError(path)


def declare(value: JsonValue, paths: list[str], artifact: tuple[str, int]) -> ArtifactRef:
    """Make the reference to a stored value, with what lies at the declared paths, as far as it is small."""
    declared: dict[str, JsonValue] = {}
    absent: list[str] = []
    lengths: dict[str, int] = {}
    room = _MAX_DECLARED_TOTAL_BYTES
    for text in paths:
        found = walk(value, parse_path(text).segments)
        if isinstance(found, Missing):
            absent.append(text)
            continue
        size = json_size(found, limit=MAX_DECLARED_BYTES)
        if size <= min(MAX_DECLARED_BYTES, room):
            declared[text] = found
            room -= size
        elif isinstance(found, list):
            lengths[text] = len(found)
    artifact_id, size_bytes = artifact
    return ArtifactRef(
        artifact_id=artifact_id, size_bytes=size_bytes, declared=declared, absent=absent, lengths=lengths
    )
