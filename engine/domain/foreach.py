"""A step that is run over a list: how many items there are, how many may fail, and what comes of them all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from engine.domain.execution import Value
from engine.domain.expressions import Missing, json_size
from engine.domain.messages import MAX_INLINE_OUTPUT_BYTES, CollectInput
from engine.domain.operands import Unavailable
from engine.domain.plan_values import items_path
from engine.domain.step_state import ItemStates

if TYPE_CHECKING:
    from engine.domain.json import JsonValue
    from engine.domain.plan import PlanForEach, PlanStep
    from engine.domain.plan_values import PlanValues

__all__ = ["MAX_ITEMS", "ItemsError", "collect_input", "collected", "count_items", "stretches"]

MAX_ITEMS: Final = 10_000


class ItemsError(ValueError):
    """What a step is to be run over can't be used."""


def count_items(step: PlanStep, values: PlanValues) -> ItemStates:
    """Find how many items a step has.

    Raises:
        ItemsError: they are no list, or too many, or not there.
    """
    foreach = step.foreach
    if foreach is None:
        raise ItemsError(f"Step {step.id} has no foreach")
    count = _length(foreach, values)
    what = str(foreach.items)[:200]
    if count is None:
        raise ItemsError(f"foreach of step {step.id} needs a list, and {what} is none")
    if count > MAX_ITEMS:
        raise ItemsError(
            f"foreach of step {step.id} has {count} items; at most {MAX_ITEMS} are allowed: split the list"
        )
    return ItemStates(count=count, tolerated=_tolerated(foreach, count))


def _length(foreach: PlanForEach, values: PlanValues) -> int | None:
    path = items_path(foreach.items)
    if path is None:
        return len(foreach.items) if isinstance(foreach.items, list) else None
    located = values.locate(path)
    if isinstance(located, Missing):
        return len(path.default) if isinstance(path.default, list) else None
    try:
        length = located.read_length()
    except Unavailable:
        return None
    if length is None and isinstance(located.read(), Missing) and isinstance(path.default, list):
        return len(path.default)
    return length


def _tolerated(foreach: PlanForEach, count: int) -> int:
    if foreach.tolerated is not None:
        return foreach.tolerated
    # A share such as 29% of 100 is a hair below 29 in binary; the rounding takes it back.
    return math.floor(round(foreach.tolerated_share * count, 9))


def collected(items: ItemStates) -> Value | None:
    """Return the list of all outputs, with null for failed items; None when it is not in memory, or large."""
    if items.recorded or any(output.ref is not None for output in items.outputs.values()):
        return None
    outputs: list[JsonValue] = [
        items.outputs[item].inline if item in items.outputs else None for item in range(items.count)
    ]
    if json_size(outputs, limit=MAX_INLINE_OUTPUT_BYTES) > MAX_INLINE_OUTPUT_BYTES:
        return None
    return Value.of(outputs)


def collect_input(items: ItemStates) -> CollectInput:
    """Return what an activity needs to make the list from the items' records."""
    return CollectInput(count=items.count, completed=stretches({*items.recorded, *items.outputs}))


def stretches(items: set[int]) -> list[tuple[int, int]]:
    """Return the first and last item of each run of neighbours, ascending."""
    found: list[tuple[int, int]] = []
    for item in sorted(items):
        if found and item == found[-1][1] + 1:
            found[-1] = (found[-1][0], item)
        else:
            found.append((item, item))
    return found
