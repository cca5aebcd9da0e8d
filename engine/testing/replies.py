"""An agent's reply, made again from what its step's output mapping left of it.

Records keep a step's output, not the reply that it was mapped from. What the mapping has read can be put back where
it was read, so that the same mapping yields the same output; what it did not read is lost.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Final

from engine.domain.expressions import MISSING, Missing, Path, compile_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.domain.json import JsonValue

__all__ = ["rebuilt_reply"]

_MARK: Final = "\x00"


def rebuilt_reply(mapping: JsonValue, output: JsonValue, handed: JsonValue = None) -> tuple[JsonValue, bool]:
    """Return the reply as far as it is known, and whether that is all of it.

    Args:
        mapping: the step's ``output_mapping``; None when it has none.
        output: what the step put out.
        handed: what handoffs and ``repeat_until`` read of the reply overlaid by the output, as the record keeps it.
    """
    if mapping is None:
        return output, True
    found = [(path.segments, value) for path, value in _read_values(mapping, output) if path.root == "output"]
    # What holds others goes first, and so does a value of its own type before one out of a text.
    found.sort(key=lambda one: len(one[0]))
    reply: JsonValue | Missing = MISSING
    for segments, value in found:
        reply = _with_value(reply, segments, copy.deepcopy(value))
    is_whole = any(not segments for segments, _ in found)
    if not is_whole and isinstance(handed, dict) and isinstance(reply, (dict, Missing)):
        mapped = output if isinstance(output, dict) else {}
        of_reply = {key: value for key, value in handed.items() if key not in mapped}
        reply = {**({} if isinstance(reply, Missing) else reply), **copy.deepcopy(of_reply)}
    return ({} if isinstance(reply, Missing) else reply), is_whole


def _read_values(mapping: JsonValue, output: JsonValue) -> Iterator[tuple[Path, JsonValue]]:
    """Every path of the mapping with the value that stands for it in the output; those out of texts come last."""
    texts: list[tuple[str, str]] = []
    pairs = [(mapping, output)]
    while pairs:
        template, value = pairs.pop(0)
        if isinstance(template, dict) and isinstance(value, dict):
            pairs += [(inner, value[key]) for key, inner in template.items() if key in value]
        elif isinstance(template, list) and isinstance(value, list):
            pairs += zip(template, value, strict=False)
        elif isinstance(template, str):
            single = compile_template(template).single
            if single is not None:
                yield single, value
            elif isinstance(value, str):
                texts.append((template, value))
    for template, text in texts:
        yield from _values_in_text(template, text)


def _values_in_text(template: str, text: str) -> Iterator[tuple[Path, JsonValue]]:
    """Part an interpolated text at the words between its paths.

    Where that can be done in more than one way, any of them gives the same text again.
    """
    compiled = compile_template(template)
    parts = str(compiled.resolve(_Marks(compiled.paths))).split(_MARK)
    # Words and numbers of paths take turns.
    pattern = "".join("(.*?)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    matched = re.fullmatch(pattern, text, re.DOTALL)
    if matched is not None:
        for number, value in zip(parts[1::2], matched.groups(), strict=True):
            yield compiled.paths[int(number)], value


class _Marks:
    """A scope in which every path yields its number between marks."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths

    def lookup(self, path: Path) -> JsonValue | Missing:
        return f"{_MARK}{self._paths.index(path)}{_MARK}"


def _with_value(tree: JsonValue | Missing, segments: Sequence[str | int], value: JsonValue) -> JsonValue:
    """Put a value at a place where nothing is yet, with the containers that lead to it."""
    if not segments:
        return value if isinstance(tree, Missing) else tree
    first, rest = segments[0], segments[1:]
    if isinstance(first, str):
        members = {} if isinstance(tree, Missing) else tree
        if isinstance(members, dict):
            members[first] = _with_value(members.get(first, MISSING), rest, value)
        return members
    items = [] if isinstance(tree, Missing) else tree
    if isinstance(items, list):
        there = items[first] if first < len(items) else None
        items += [None] * (first + 1 - len(items))
        items[first] = _with_value(MISSING if there is None else there, rest, value)
    return items
