"""What each field of a step may read, and what has to wait for what."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest
from documents import flow, found, only_issue, step

from engine.domain.step_rules import FIELD_TYPES
from engine.domain.validation import MAX_STEPS, parse_definition

EVERYWHERE = ("input.x", "steps.b.output.x", "execution.id")
FIELDS: dict[str, dict[str, Any]] = {
    "input_mapping": {"input_mapping": {"v": "${PATH}"}},
    "output_mapping": {"output_mapping": {"v": "${PATH}"}},
    "transform": {"type": "transform", "agent_id": None, "transform": {"v": "${PATH}"}},
    "when": {"when": "PATH = 1"},
    "context.recall": {"context": {"recall": "as in ${PATH}"}},
    "foreach.items": {"foreach": {"items": "${PATH}"}},
    "repeat_until.condition": {"repeat_until": {"condition": "PATH = 1"}},
    "approval.question": {"type": "approval", "agent_id": None, "approval": {"question": "${PATH}?"}},
    "wait.seconds": {"type": "wait", "agent_id": None, "wait": {"seconds": "${PATH}"}},
    "wait.until": {"type": "wait", "agent_id": None, "wait": {"until": "${PATH}"}},
    "compensate.input_mapping": {"compensate": {"agent_id": "agent-y", "input_mapping": {"v": "${PATH}"}}},
}
ITEM = {"foreach": {"items": "${input.files}", "as": "file"}}
TURN = {"repeat_until": {"condition": "output.done"}}


def filled(value: Any, path: str) -> Any:
    """A field of ``FIELDS`` that reads ``path``."""
    if isinstance(value, dict):
        return {key: filled(part, path) for key, part in value.items()}
    return value.replace("PATH", path) if isinstance(value, str) else value


def reading(field: str, path: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A step that reads ``path`` in the field, and perhaps something it runs for or until."""
    return step("a", **{**(more or {}), **filled(FIELDS[field], path)})


def place_of(field: str) -> str:
    return f"{field}.v" if field.endswith("mapping") or field == "transform" else field


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_reads_the_input_other_steps_and_the_execution(field: str):
    for path in (*EVERYWHERE, "execution.started_at"):
        assert found(flow(reading(field, path), step("b"))) == [], path


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nothing.x", "invalid_expression"),
        ("source_output.x", "invalid_expression"),
        ("execution.name", "invalid_expression"),
        ("steps.b", "invalid_expression"),
        ("steps.c.output", "unknown_step"),
    ],
)
def test_no_field_reads_what_is_never_there(field: str, path: str, code: str):
    assert found(flow(reading(field, path), step("b"))) == [(code, f"steps[0].{place_of(field)}")]


SPECIAL = {
    "output.x": {"output_mapping", "repeat_until.condition"},
    "context": {"input_mapping"},
    "item.x": {"input_mapping", "output_mapping", "transform", "repeat_until.condition"},
    "index": {"input_mapping", "output_mapping", "transform", "repeat_until.condition"},
    "file.x": {"input_mapping", "output_mapping", "transform", "repeat_until.condition"},
    "iteration": {"input_mapping", "output_mapping", "repeat_until.condition"},
}


OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("item.x", "index", "file.x"), ITEM),
    "iteration": TURN,
    "context": {"context": {"recall": "x"}},
    "output.x": {},
}


@pytest.mark.parametrize("path", SPECIAL)
@pytest.mark.parametrize("field", FIELDS)
def test_what_a_step_has_of_its_own_is_read_where_it_is_there(field: str, path: str):
    kind = FIELDS[field].get("type", "agent")
    own = {name: value for name, value in OWN[path].items() if kind in FIELD_TYPES[name]}
    raw = flow(reading(field, path, own))
    if field in SPECIAL[path]:
        assert found(raw) == []
    else:
        assert found(raw) == [("invalid_expression", f"steps[0].{place_of(field)}")]


@pytest.mark.parametrize("path", ["item", "index", "iteration", "context"])
def test_without_items_turns_and_recall_there_is_none_to_read(path: str):
    assert found(flow(reading("input_mapping", path))) == [("invalid_expression", "steps[0].input_mapping.v")]


def test_an_item_without_a_name_of_its_own_is_called_item_alone():
    raw = flow(reading("input_mapping", "file.x", {"foreach": {"items": []}}))
    assert found(raw) == [("invalid_expression", "steps[0].input_mapping.v")]


@pytest.mark.parametrize("field", [field for field in FIELDS if not field.startswith("compensate")])
def test_a_step_waits_for_what_any_field_reads(field: str):
    issue = only_issue(flow(reading(field, "steps.b.output.x"), step("b", depends_on=["a"])))
    assert issue.code.value == "cycle"
    assert "a -> b -> a" in issue.message


def test_a_compensation_reads_any_main_step_and_waits_for_none():
    mapping = {"own": "${steps.a.output.x}", "later": "${steps.b.output}", "why": "${execution.error.message}"}
    raw = flow(
        step("a", compensate={"agent_id": "agent-y", "input_mapping": mapping}),
        step("b", depends_on=["a"]),
        **{"finally": [step("z")]},
    )
    assert found(raw) == []
    mapping["final"] = "${steps.z.output}"
    assert found(raw) == [("unknown_step", "steps[0].compensate.input_mapping.final")]


@pytest.mark.parametrize("field", FIELDS)
def test_a_step_reads_its_own_output_only_of_the_turn_before_and_to_undo_it(field: str):
    more = TURN if field == "input_mapping" else {}
    raw = flow(reading(field, "steps.a.output.x", more))
    if field in ("input_mapping", "compensate.input_mapping"):
        assert found(raw) == []
    else:
        assert found(raw) == [("cycle", f"steps[0].{place_of(field)}")]
        assert "reads itself: a -> a" in only_issue(raw).message


def test_without_turns_a_step_does_not_read_itself_and_never_its_own_error():
    assert found(flow(reading("input_mapping", "steps.a.output.x"))) == [("cycle", "steps[0].input_mapping.v")]
    assert found(flow(reading("input_mapping", "steps.a.error.code", TURN))) == [("cycle", "steps[0].input_mapping.v")]


def test_a_step_that_reads_the_turn_before_is_held_to_what_it_maps():
    mapped = {"output_mapping": {"draft": "${output.text}"}, **TURN}
    assert found(flow(reading("input_mapping", "steps.a.output.draft", mapped))) == []
    raw = flow(reading("input_mapping", "steps.a.output.text", mapped))
    assert found(raw) == [("unmapped_output", "steps[0].input_mapping.v")]


@pytest.mark.parametrize("name", ["status", "error"])
@pytest.mark.parametrize("field", FIELDS)
def test_how_the_execution_ended_is_read_in_compensations_and_finally_steps(field: str, name: str):
    path = f"execution.{name}"
    reader = reading(field, path)
    if field.startswith("compensate"):
        assert found(flow(reader)) == []
        return
    issue = only_issue(flow(reader))
    assert (issue.code.value, issue.path) == ("invalid_expression", f"steps[0].{place_of(field)}")
    assert "finally steps and compensations only" in issue.message
    if field != "approval.question":
        assert found(flow(step("b"), **{"finally": [reader]})) == []


def test_the_output_of_the_execution_does_not_read_how_it_ended():
    assert found(flow(output_mapping={"x": "${execution.status}"})) == [("invalid_expression", "output_mapping.x")]


def test_a_finally_step_reads_main_steps_and_waits_for_finally_steps():
    main = step("a", output_mapping={"plan": "${output.plan}"})
    final = [
        step("y", input_mapping={"plan": "${steps.a.output.plan}", "why": "${steps.a.error.message ?? 'none'}"}),
        step("z", depends_on=["y"], when="steps.y.output.ok = true and execution.status = 'failed'", join="settled"),
    ]
    assert found(flow(main, **{"finally": final})) == []
    final[0]["when"] = "steps.z.error != null"
    assert found(flow(main, **{"finally": final})) == [("cycle", "finally[0].when")]


@pytest.mark.parametrize(
    ("raw", "expected", "words"),
    [
        (
            flow(**{"finally": [step("z", depends_on=["a"])]}),
            ("unknown_step", "finally[0].depends_on[0]"),
            "a is a main step",
        ),
        (
            flow(step(depends_on=["z"]), **{"finally": [step("z")]}),
            ("unknown_step", "steps[0].depends_on[0]"),
            "z is a finally step",
        ),
        (
            flow(step(when="steps.z.output.x = 1"), **{"finally": [step("z")]}),
            ("unknown_step", "steps[0].when"),
            "z is a finally step",
        ),
        (
            flow(output_mapping={"x": "${steps.z.output}"}, **{"finally": [step("z")]}),
            ("unknown_step", "output_mapping.x"),
            "z is a finally step",
        ),
        (
            flow(**{"finally": [step("z", input_mapping={"x": "${steps.z.output}"})]}),
            ("cycle", "finally[0].input_mapping.x"),
            "reads itself",
        ),
        (flow(**{"finally": [step("z", depends_on=["z"])]}), ("cycle", "finally[0].depends_on[0]"), "for itself"),
    ],
)
def test_main_and_finally_steps_do_not_wait_for_each_other(raw: dict[str, Any], expected: tuple[str, str], words: str):
    issue = only_issue(raw)
    assert (issue.code.value, issue.path) == expected
    assert words in issue.message


def test_an_unknown_step_is_guessed_from_those_that_can_be_read():
    final = [step("report", input_mapping={"x": "${steps.draf.output}", "y": "${steps.reprt2.output}"})]
    issues = parse_definition(flow(step("draft"), **{"finally": [*final, step("report2")]})).issues
    assert [issue.hint for issue in issues] == ["Did you mean 'draft'?", "Did you mean 'report2'?"]
    issue = only_issue(
        flow(step("draft", input_mapping={"x": "${steps.reprt.output}"}), **{"finally": [step("report")]})
    )
    assert issue.hint is None


SOURCES: dict[str, dict[str, Any]] = {
    "items": step("b", foreach={"items": [1]}, output_mapping={"text": "${output.t}"}),
    "transform": {"id": "b", "type": "transform", "transform": {"text": "${input.t}"}},
    "wait": {"id": "b", "type": "wait", "wait": {"seconds": 1}},
    "approval": {"id": "b", "type": "approval", "approval": {"question": "?"}},
    "workflow": {"id": "b", "type": "workflow", "workflow_id": "w"},
}


@pytest.mark.parametrize(
    ("source", "path", "code"),
    [
        ("items", "", None),
        ("items", "[0]", None),
        ("items", "[0].text", None),
        ("items", "[0].txt", "unmapped_output"),
        ("items", ".text", "invalid_expression"),
        ("transform", ".text", None),
        ("transform", ".txt", "unmapped_output"),
        ("wait", ".waited_until", None),
        ("wait", ".until", "unmapped_output"),
        ("approval", ".data.note", None),
        ("approval", ".answr", "unmapped_output"),
        ("workflow", ".anything", None),
    ],
)
def test_a_reference_leads_to_what_the_output_has(source: str, path: str, code: str | None):
    raw = flow(step("a", input_mapping={"v": "${steps.b.output" + path + "}"}), SOURCES[source])
    assert found(raw) == ([] if code is None else [(code, "steps[0].input_mapping.v")])


def test_what_two_references_of_one_text_have_in_common_is_said_once():
    assert found(flow(step(when="steps.b.output.x = 1 and steps.b.output.y = 2"))) == [
        ("unknown_step", "steps[0].when")
    ]
    raw = flow(step(input_mapping={"x": "${steps.b.output.x} ${steps.b.output.y}"}))
    assert found(raw) == [("unknown_step", "steps[0].input_mapping.x")]


def test_checking_takes_time_in_proportion_to_the_steps():
    def chain(count: int) -> dict[str, Any]:
        steps = [step("s0"), *(linked(i) for i in range(1, count))]
        final = [{**one, "compensate": None} for one in steps[count // 2 :]]
        return flow(*steps[: count // 2], **{"finally": final})

    def linked(i: int) -> dict[str, Any]:
        kind = {"foreach": {"items": f"${{steps.s{i - 1}.output}}"}} if i % 2 else TURN
        undone = {"agent_id": "agent-y", "input_mapping": {"x": f"${{steps.s{i}.output}}"}}
        return step(f"s{i}", when=f"steps.s{i - 1}.error = null", compensate=undone, **kind)

    def took(count: int) -> float:
        started = process_time()
        assert parse_definition(chain(count)).issues == []
        return process_time() - started

    took(10)
    assert took(MAX_STEPS) < 30 * took(MAX_STEPS // 10)
