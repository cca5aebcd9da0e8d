"""The workflows that both sides run, as data: what depends on what, and which answer is right.

A step adds up the numbers it is given and one more, so that an answer is wrong as soon as one step was left out, ran
on another's input or ran for another execution.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from engine.domain.json import JsonObject, JsonValue

__all__ = ["ADD_AGENT", "FLOW_SHAPES", "SHAPES", "WINDOW", "Decisions", "FanOut", "Graph", "Shape", "long_chain"]

ADD_AGENT: Final = "agent-add"


class Shape(Protocol):
    """A workflow that both sides know."""

    @property
    def name(self) -> str:
        """Names it on both sides."""
        ...

    @property
    def calls(self) -> int:
        """How many calls of the agent it makes."""
        ...

    def given(self, number: int) -> JsonObject:
        """Its input that is made of a number."""
        ...

    def answer(self, number: int) -> JsonValue:
        """The right output for that input."""
        ...

    def definition_steps(self) -> list[JsonObject]:
        """The steps as ``create_workflow`` takes them."""
        ...


@dataclass(frozen=True, slots=True)
class Graph:
    """Each step's id with the ids of those it reads; the last one's output is the workflow's."""

    name: str
    steps: dict[str, tuple[str, ...]]

    @property
    def calls(self) -> int:
        """See ``Shape``."""
        return len(self.steps)

    def given(self, number: int) -> JsonObject:
        """See ``Shape``."""
        return {"n": number}

    def answer(self, number: int) -> JsonValue:
        """See ``Shape``."""
        values: dict[str, int] = {}
        for step, read in self.steps.items():
            values[step] = sum(values[one] for one in read) + 1 if read else number + 1
        return {"n": values[next(reversed(self.steps))]}

    def definition_steps(self) -> list[JsonObject]:
        """See ``Shape``."""
        return [
            {"id": step, "agent_id": ADD_AGENT, "input_mapping": {**_mapping(read)}}
            for step, read in self.steps.items()
        ]


def _mapping(read: tuple[str, ...]) -> dict[str, str]:
    return {one: f"${{steps.{one}.output.n}}" for one in read} or {"n": "${input.n}"}


@dataclass(frozen=True, slots=True)
class FanOut:
    """One step over as many numbers; the output is the list of what it made of each."""

    width: int

    @property
    def name(self) -> str:
        """See ``Shape``."""
        return f"foreach{self.width}"

    @property
    def calls(self) -> int:
        """See ``Shape``."""
        return self.width

    def given(self, number: int) -> JsonObject:
        """See ``Shape``."""
        return {"numbers": [*range(number, number + self.width)]}

    def answer(self, number: int) -> JsonValue:
        """See ``Shape``."""
        return [{"n": one + 1} for one in range(number, number + self.width)]

    def definition_steps(self) -> list[JsonObject]:
        """See ``Shape``."""
        foreach: JsonObject = {"items": "${input.numbers}", "max_concurrency": WINDOW}
        return [{"id": "each", "agent_id": ADD_AGENT, "foreach": foreach, "input_mapping": {"n": "${item}"}}]


@dataclass(frozen=True, slots=True)
class Decisions:
    """Blocks in a row, each of two calls, a transform between them, and a step that a condition leaves out."""

    blocks: int

    @property
    def name(self) -> str:
        """See ``Shape``."""
        return f"decisions{self.blocks * 4}"

    @property
    def calls(self) -> int:
        """See ``Shape``."""
        return self.blocks * 2

    def given(self, number: int) -> JsonObject:
        """See ``Shape``."""
        return {"n": number}

    def answer(self, number: int) -> JsonValue:
        """See ``Shape``."""
        return {"n": number + self.calls}

    def definition_steps(self) -> list[JsonObject]:
        """See ``Shape``."""
        steps: list[JsonObject] = []
        before = "${input.n}"
        for block in range(1, self.blocks + 1):
            made = f"${{steps.t{block}.output.n}}"
            value: JsonObject = {"n": f"${{steps.a{block}.output.n}}"}
            transform: JsonObject = {"id": f"t{block}", "type": "transform", "transform": value}
            unlikely: JsonObject = {"when": f"steps.t{block}.output.n < 0"}
            behind: JsonObject = {"depends_on": [f"s{block}"], "join": "settled"}
            steps += [
                _call(f"a{block}", before),
                transform,
                {**_call(f"s{block}", made), **unlikely},
                {**_call(f"b{block}", made), **behind},
            ]
            before = f"${{steps.b{block}.output.n}}"
        return steps


def _call(step: str, n: str) -> JsonObject:
    return {"id": step, "agent_id": ADD_AGENT, "input_mapping": {"n": n}}


WINDOW: Final = 100
"""Calls of a wide step at once, on both sides; more would be no quicker."""


def long_chain(length: int) -> Graph:
    """Steps in a row."""
    ids = [f"s{number}" for number in range(1, length + 1)]
    return Graph(f"chain{length}", {ids[0]: (), **{after: (before,) for before, after in pairwise(ids)}})


_BRANCHES: Final = ("b1", "b2", "b3", "b4")
_DAG10: Final = Graph(
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
FLOW_SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape for shape in (long_chain(1000), long_chain(2000), FanOut(1000), FanOut(2000), Decisions(50))
}
