"""Where the values of a mapping lie: in memory, in an artifact, in a record; and how much of them may travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.domain.execution import ArtifactRef, Value
from engine.domain.expressions import MISSING, Missing, MissingPathError, Path, compile_template, json_size
from engine.domain.messages import MAX_CALL_INPUT_BYTES, MAX_DECLARED_BYTES, MAX_PAYLOAD_BYTES, OperandRef
from engine.domain.operands import Located, call_input, declare, locate_operands

if TYPE_CHECKING:
    from engine.domain.json import JsonValue


class Steps:
    """A source with one root: ``steps.<id>.output``."""

    def __init__(self, **values: Value | None) -> None:
        self.values = values

    def locate(self, path: Path) -> Located | Missing:
        if path.root != "steps" or str(path.segments[0]) not in self.values:
            return MISSING
        step_id = str(path.segments[0])
        stored = OperandRef(step_id=step_id, run_id="run", n=2)
        return Located(self.values[step_id], path.segments[2:], "output", stored)


def resolve(mapping: JsonValue, source: Steps) -> Any:
    return call_input(compile_template(mapping), mapping, source)


def artifact(**declared: JsonValue) -> Value:
    paths = {f"output.{key}": value for key, value in declared.items()}
    return Value(ref=ArtifactRef(artifact_id="art", size_bytes=10**6, declared=paths))


def test_what_is_in_memory_is_resolved_at_once():
    source = Steps(a=Value.of({"x": [1, 2]}), b=artifact(title="T"))
    found = resolve({"x": "${steps.a.output.x[1]}", "t": "${steps.b.output.title}!"}, source)
    assert found.operands is None
    assert found.inline == {"x": 2, "t": "T!"}


def test_what_is_not_declared_is_named_by_its_place_and_the_small_rest_travels():
    mapping: JsonValue = {
        "x": "${steps.a.output.x}",
        "body": "${steps.b.output.body[0]}",
        "recorded": "${steps.c.output.deep}",
        "none": "${steps.a.output.none ?? 5}",
    }
    found = resolve(mapping, Steps(a=Value.of({"x": None}), b=artifact(title="T"), c=None))
    assert found.mapping == mapping
    assert found.operands == {
        "steps.a.output.x": OperandRef(inline=None),
        "steps.b.output.body[0]": OperandRef(artifact_id="art", segments=["body", 0]),
        "steps.c.output.deep": OperandRef(step_id="c", run_id="run", n=2, segments=["deep"]),
    }


def test_a_result_that_is_too_large_names_its_operands():
    values = {f"s{n}": Value.of("x" * 31_000) for n in range(12)}
    found = resolve({"all": [f"${{steps.{step_id}.output}}" for step_id in values]}, Steps(**values))
    assert found.operands is not None
    assert {operand.step_id for operand in found.operands.values()} == set(values)
    assert len(found.model_dump_json()) < MAX_PAYLOAD_BYTES


def test_small_operands_travel_inline_up_to_a_bound():
    values = {f"s{n}": Value.of(f"{n:>2000}") for n in range(200)}
    found = resolve({"all": [f"${{steps.{step_id}.output}}" for step_id in values]}, Steps(**values))
    assert found.operands is not None
    inline = [operand for operand in found.operands.values() if operand.inline is not None]
    assert 0 < len(inline) < len(values)
    assert len(found.model_dump_json()) < MAX_PAYLOAD_BYTES


def test_just_below_the_limit_is_inline_and_just_above_is_not():
    text = "x" * (MAX_CALL_INPUT_BYTES // 2 - 20)
    source = Steps(a=Value.of(text), b=Value.of("xxxx"))
    assert resolve({"t": "${steps.a.output}${steps.a.output}"}, source).operands is None
    assert resolve({"t": "${steps.a.output}${steps.a.output}" + "${steps.b.output}" * 20}, source).operands is not None


@pytest.mark.parametrize("mapping", ["${steps.a.output.y}", "${steps.z.output}", "t ${steps.a.output.y}"])
def test_a_path_that_is_known_to_be_missing_is_an_error_at_once(mapping: str):
    source = Steps(a=Value.of({"x": 1}))
    with pytest.raises(MissingPathError):
        resolve(mapping, source)
    with pytest.raises(MissingPathError):
        locate_operands(compile_template(mapping).paths, source)


def test_a_declared_value_is_kept_when_it_is_small_and_there():
    value: JsonValue = {"title": "T", "big": "x" * (MAX_DECLARED_BYTES + 1), "null": None}
    paths = ["output.title", "output.big", "output.null", "output.absent", "output.title.below"]
    reference = declare(value, paths, ("art", 99))
    assert (reference.artifact_id, reference.size_bytes) == ("art", 99)
    assert reference.declared == {"output.title": "T", "output.null": None}


def test_declared_values_do_not_add_up_to_more_than_a_payload_holds():
    value: JsonValue = {f"k{n}": "x" * 15_000 for n in range(40)}
    reference = declare(value, [f"output.k{n}" for n in range(40)], ("art", 10**6))
    assert 0 < len(reference.declared) < 40
    assert json_size(reference.declared) < MAX_PAYLOAD_BYTES // 2
