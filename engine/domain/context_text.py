"""What a step's output says in words: the text that context memory keeps of it, and the item that carries it.

Only texts count; numbers, flags and keys alone are nothing that a search could go by. The text follows from the output
alone, and the item's id from its source and text, so that a repeated write, or one made later from the step's record,
is the same item.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from engine.domain.context import ContextItem
from engine.domain.hashing import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from engine.domain.json import JsonValue

__all__ = ["MAX_TEXT_CHARS", "hash_of_text", "item_id_of", "step_item", "text_of"]

MAX_TEXT_CHARS: Final = 8_000
"""Of one output; what comes behind is left out."""
LEAST_LETTERS: Final = 3
MAX_VALUES: Final = 20_000
"""Of one output that are looked at: one of the top size has millions, and nobody waits for them."""
MAX_LOOKED_CHARS: Final = 200_000
"""In all of them together, so that numbers written as texts don't take their time either."""
MAX_KEY_CHARS: Final = 200


def text_of(output: JsonValue) -> str | None:
    """Return an output's texts, a line ``key: text`` for each; None when they hold fewer than three letters.

    A text that stands alone, or below the only key ``text``, comes without a key. An element of a list has the key of
    the list, and keys within keys are joined by dots. At most 8,000 characters.
    """
    lines: list[str] = []
    room = MAX_TEXT_CHARS
    letters = looked = 0
    for key, text in _texts(output):
        shown = text[:room].strip()
        looked += len(shown)
        if looked > MAX_LOOKED_CHARS:
            break
        found = sum(map(str.isalpha, shown))
        if not found:
            continue
        letters += found
        line = f"{key}: {shown}" if key else shown
        lines.append(line)
        room -= len(line) + 1
        if room <= 0:
            break
    return "\n".join(lines)[:MAX_TEXT_CHARS].rstrip() if letters >= LEAST_LETTERS else None


def step_item(
    execution_id: str,
    definition_id: str,
    step_id: str,
    agent_id: str | None,
    output: JsonValue,
    created_at: datetime,
) -> ContextItem | None:
    """Return the context item of a completed step, with an id that follows from its content; None without a text.

    Args:
        execution_id: the step's execution.
        definition_id: the execution's workflow.
        step_id: the step; the items of a loop's turns differ by their texts.
        agent_id: whose output it is.
        output: the step's output itself, no reference to it.
        created_at: when the step was completed.
    """
    text = text_of(output)
    if text is None:
        return None
    return ContextItem(
        item_id=item_id_of(execution_id, step_id, text),
        text=text,
        text_hash=hash_of_text(text),
        definition_id=definition_id,
        execution_id=execution_id,
        step_id=step_id,
        agent_id=agent_id,
        created_at=created_at,
    )


def item_id_of(*source_and_text: str | None) -> str:
    """Return the id of an item: 64 hex digits that follow from where its text comes from and the text."""
    return content_hash([*source_and_text]).removeprefix("sha256:")


def hash_of_text(text: str) -> str:
    """Return ``sha256:<64 hex digits>`` of a text."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _texts(output: JsonValue) -> Iterator[tuple[str, str]]:
    """Yield key and text of each text, in the output's order, of the first so many values."""
    if isinstance(output, dict) and output.keys() == {"text"}:
        output = output["text"]
    open_levels = [iter([("", output)])]
    for _ in range(MAX_VALUES):
        found = None
        while open_levels and (found := next(open_levels[-1], None)) is None:
            open_levels.pop()
        if found is None:
            return
        key, value = found
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict | list):
            open_levels.append(_children(key, value))


def _children(key: str, value: dict[str, JsonValue] | list[JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, list):
        yield from ((key, child) for child in value)
        return
    for name, child in value.items():
        yield (f"{key}.{name}" if key else name)[:MAX_KEY_CHARS], child
