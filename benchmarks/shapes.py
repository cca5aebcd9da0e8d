"""The workflows that both sides run, as data: what depends on what, and which answer is right.

A step adds up the numbers it is given and one more, so that an answer is wrong as soon as one step was left out, ran
on another's input or ran for another execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

__all__ = ["ADD_AGENT", "SHAPES", "Shape", "long_chain"]

ADD_AGENT: Final = "agent-add"


@dataclass(frozen=True, slots=True)
class Shape:
    """A workflow: each step's id with the ids of those it reads; the last one's output is the workflow's."""

    name: str
    steps: dict[str, tuple[str, ...]]

    def answer(self, number: int) -> JsonObject:
        """The right output for the input ``{"n": number}``."""
        values: dict[str, int] = {}
        for step, read in self.steps.items():
            values[step] = sum(values[one] for one in read) + 1 if read else number + 1
        return {"n": values[next(reversed(self.steps))]}

    def definition_steps(self) -> list[JsonObject]:
        """The steps as ``create_workflow`` takes them."""
        return [
            {"id": step, "agent_id": ADD_AGENT, "input_mapping": {**_mapping(read)}}
            for step, read in self.steps.items()
        ]


def _mapping(read: tuple[str, ...]) -> dict[str, str]:
    return {one: f"${{steps.{one}.output.n}}" for one in read} or {"n": "${input.n}"}


def long_chain(length: int) -> Shape:
    """Steps in a row."""
    ids = [f"s{number}" for number in range(1, length + 1)]
    return Shape(f"chain{length}", {ids[0]: (), **{after: (before,) for before, after in pairwise(ids)}})


_BRANCHES: Final = ("b1", "b2", "b3", "b4")
_DAG10: Final = Shape(
    "dag10",
    {
        "a1": (),
        "a2": ("a1",),
        "a3": ("a2",),
        **dict.fromkeys(_BRANCHES, ("a3",)),
        "c1": _BRANCHES,
        "c2": ("c1",),
        "c3": ("c2",),
    },
)
SHAPES: Final = {shape.name: shape for shape in (long_chain(3), long_chain(10), _DAG10)}
