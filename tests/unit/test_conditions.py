"""Conditions and triggers: the grammar, JSON's equality, and what errors say."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain.conditions import (
    EVENTS,
    MAX_TRIGGER_ENTRIES,
    json_equal,
    parse_condition,
    parse_trigger,
)
from engine.domain.expressions import HANDOFF_ROOTS, INPUT_ROOTS, ExpressionError, RootsScope

INPUT = {
    "kind": "feature",
    "n": 3,
    "zero": 0,
    "half": 0.5,
    "yes": True,
    "no": False,
    "none": None,
    "empty": "",
    "tags": ["a", "b", 1, None, {"k": [1]}],
    "object": {"a": 1, "b": None},
    "not": "a key may be any word",
    "true": True,
}
SCOPE = RootsScope({"input": INPUT, "size": 4, "source_output": {"plan_complete": True}})

TRUE = [
    "true",
    "!false",
    "not false",
    "(true)",
    "input.yes",
    "${input.yes}",
    "${ input.yes }",
    "input['yes']",
    "input.true",
    "input.not startsWith 'a key'",
    "source_output.plan_complete = true",
    "input.kind = 'feature'",
    "${input.kind} = 'feature'",
    'input.kind == "feature"',
    "'feature'=input.kind",
    "input.kind != 'other'",
    "input.n = 3 and input.n == 3.0 && input.n != '3'",
    "input.n > 2 and input.n >= 3 and input.n < 4 and input.n <= 3",
    "input.half < 1 and input.n > -5 and 1e2 > 99.5",
    "'a' < 'b' and 'B' < 'a' and 'a' <= 'a' and 'b' >= 'a'",
    "input.missing = null",
    "input.missing.deeper = null",
    "input.none = null",
    "null = null",
    "null != 1",
    "input.missing != 1",
    "true != 1 and false != 0",
    "not (input.n < 'a') and not (input.n >= 'a') and not (null < 1) and not (null <= null)",
    "not (true < false) and not (false <= true) and not ([1] <= [1])",
    "not input.n",
    "not input.kind",
    "not input.missing",
    "!input.missing",
    "!input.no = true",
    "!(input.n = 4)",
    "not input.n = 4",
    "not not input.yes",
    "!!input.yes",
    "false or input.yes",
    "false || false || true",
    "true or true and false",
    "(input.n = 3) = true",
    "(input.n = 4) = false",
    "(input.n = 3) = (input.zero = 0)",
    "'a' in input.tags and 1 in input.tags and 1.0 in input.tags and null in input.tags",
    "not (true in input.tags)",
    "input.tags[4] in input.tags",
    "input.kind in ['bug', 'feature']",
    "input.n in [input.zero, input.n]",
    "not (input.n in [])",
    "'eat' in input.kind and '' in input.kind",
    "'a' in input.object and 'b' in input.object and not ('c' in input.object)",
    "not (1 in input.kind) and not ('a' in null) and not ('a' in input.n) and not (1 in input.object)",
    "input.kind contains 'eat' and contains(input.kind, 'eat') and input.tags contains 'a'",
    "contains ( input.object , 'a' )",
    "input.kind startsWith 'feat' and startsWith(input.kind, 'f') and not startsWith(input.n, '3')",
    "input.kind endsWith 'ure' and endsWith(input.kind, 'e') and not (input.kind endsWith null)",
    "has(input.none) and has(${input.n}) and not has(input.missing) and !has(other)",
    "has(input.tags[0]) and not has(input.tags[9]) and not has(input.kind.x)",
    "size(input.kind) = 7 and size(input.tags) = 5 and size(input.object) = 2 and size([]) = 0",
    "size(input.n) = null and size(input.missing) = null",
    "size = 4",
    "size(size) = null",
    "input.tags[4] = input.tags[4] and input.tags[4].k = [1] and input.tags[4].k = [1.0]",
    "[1, [true, null], 'x'] = [1.0, [true, null], 'x'] and [1] != [true] and [1] != [1, 1]",
    "[] = []",
    "${input.missing ?? 5} = 5 and ${input.none ?? 'd'} = 'd' and ${input.n ?? 5} = 3",
    "${input.missing ?? true}",
    "'$${x}' = \"$${x}\" and size('$${x}') = 4",
    "'it\\'s' = \"it's\" and '\\u0041' = 'A'",
    "\n\t input.yes\r\n and(input.yes)or(false)",
    "input.yes and not(false)",
]


@pytest.mark.parametrize("text", TRUE)
def test_holds_and_its_negation_does_not(text):
    condition = parse_condition(text)
    assert condition.text == text
    assert condition.evaluate(SCOPE) is True
    assert condition.evaluate(SCOPE) is True
    assert parse_condition(f"not ({text})").evaluate(SCOPE) is False


@pytest.mark.parametrize("text", ["input.kind", "input.n", "input.tags", "input.none", "input.nowhere", "input"])
def test_a_path_is_true_only_when_its_value_is_true(text):
    assert parse_condition(text).evaluate(SCOPE) is False


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "empty"),
        ("  ", 2, "empty"),
        ("5", 0, "neither true nor false"),
        ("'text'", 0, "neither true nor false"),
        ("null", 0, "neither true nor false"),
        ("[true]", 0, "neither true nor false"),
        ("size(input.n)", 0, "neither true nor false"),
        ("input.yes and 5", 14, "neither true nor false"),
        ("not 'a'", 4, "neither true nor false"),
        ("! 1 = 1", 2, "neither true nor false"),
        ("input.n < 3 < 4", 12, "chained"),
        ("input.n = 3 = true", 12, "chained"),
        ("1 in [1] in [true]", 9, "chained"),
        ("input.n =", 9, "found the end"),
        ("= 3", 0, "expected a path, a literal"),
        ("input.n === 3", 10, "found '='"),
        ("input.n = not true", 10, "before 'not'"),
        ("input.n <> 3", 9, "found '>'"),
        ("input.n 3", 8, "expected an operator or the end, found '3'"),
        ("input.n + 1 = 4", 8, "found '+'"),
        ("input.n & 1", 8, "found '&'"),
        ("input.yes AND input.yes", 10, "found 'AND'"),
        ("input.n not in [1]", 8, "write not (a in b)"),
        ("and input.yes", 0, "before 'and'"),
        ("in = 3", 0, "before 'in'"),
        ("not", 3, "found the end"),
        ("(input.yes", 10, "expected ')'"),
        ("input.yes)", 9, "found ')'"),
        ("()", 1, "found ')'"),
        ("[1", 2, "or ']' in the list"),
        ("[1 2] = 1", 3, "or ']' in the list"),
        ("[1,] = 1", 3, "expected a path"),
        ("input.kind = 'a", 13, "no closing '"),
        ("'${input.kind}' = 'feature'", 0, "inside quotes"),
        ("${input.n = 3}", 10, "expected '}'"),
        ("${input.n", 9, "expected '}'"),
        ("input.n ?? 3 = 3", 8, "found '?'"),
        ("input[-1] = 3", 6, "index from 0"),
        ("007 = 7", 0, "no number"),
        ("+7 = 7", 0, "found '+'"),
        ("input.kind.startsWith('f')", 21, "found '('"),
        ("matches(input.kind, 'f')", 0, "unknown function 'matches'; the functions are has, size, contains"),
        ("contains(input.kind)", 19, "expected ',' between"),
        ("contains(input.kind, 'a', 'b')", 24, "expected ')'"),
        ("size() = 0", 5, "found ')'"),
        ("has(3)", 4, "expected a path"),
        ("has('a')", 4, "expected a path"),
        ("has(${input.n ?? 1})", 4, "without a default"),
        ("inputs.n = 3", 0, "did you mean 'input'?"),
        ("input.kind = feature", 13, "Readable here: context, execution, input, steps. Put text in quotes."),
        ("True", 0, "did you mean 'true'?"),
        ("has(outputs.x)", 4, "unknown root 'outputs'"),
    ],
)
def test_refuses(text, position, says):
    with pytest.raises(ExpressionError) as caught:
        parse_condition(text, roots=INPUT_ROOTS)
    assert says in caught.value.message
    assert (caught.value.position, caught.value.text) == (position, text)


def test_lists_distinct_paths_in_order():
    condition = parse_condition("has(steps.b) and ${input.a ?? 1} = input.a or input['a'] = size(steps.b)")
    assert [(path.text, path.default) for path in condition.paths][:2] == [
        ("steps.b", condition.paths[0].default),
        ("input.a", 1),
    ]
    assert [path.text for path in condition.paths] == ["steps.b", "input.a", "input.a"]


def test_equal_conditions_are_equal_and_hashable():
    assert len({parse_condition("input.a"), parse_condition("input.a"), parse_condition("input.b")}) == 2


def test_errors_of_a_scope_pass_through():
    class Refusing:
        def lookup(self, path):
            raise PermissionError(path.text)

    for text in ("input.a = 1", "has(input.a)", "false or input.a"):
        with pytest.raises(PermissionError, match=r"input\.a"):
            parse_condition(text).evaluate(Refusing())


class TestTriggers:
    def test_the_example_of_the_api(self):
        trigger = parse_trigger(["completion", "source_output.plan_complete = true"])
        assert trigger.events == ("completion",)
        assert [condition.text for condition in trigger.conditions] == ["source_output.plan_complete = true"]
        assert trigger.fires("completion", SCOPE) is True
        assert trigger.fires("failure", SCOPE) is False
        assert trigger.fires("completion", RootsScope({"source_output": {"plan_complete": 1}})) is False
        assert trigger.fires("completion", RootsScope({})) is False

    @pytest.mark.parametrize(
        ("texts", "fired"),
        [
            ([], {"completion"}),
            (["input.yes"], {"completion"}),
            (["failure"], {"failure"}),
            ([" timeout ", "failure", "failure"], {"failure", "timeout"}),
            (["input.yes", "failure", "completion", "input.n = 3"], {"failure", "completion"}),
            (["failure", "input.yes", "input.no"], set()),
        ],
    )
    def test_events_are_alternatives_and_conditions_all_hold(self, texts, fired):
        trigger = parse_trigger(texts)
        assert {event for event in EVENTS if trigger.fires(event, SCOPE)} == fired

    @pytest.mark.parametrize(
        ("texts", "says"),
        [
            (["completed"], "did you mean 'completion'?"),
            (["failure = true"], "events completion, failure, timeout are entries of their own"),
            (["completion", "output.done = true"], "did you mean 'source_output'?"),
            (["completion", ""], "empty"),
            ("completion", "is a list"),
            (["input.yes"] * (MAX_TRIGGER_ENTRIES + 1), "more than 64"),
        ],
    )
    def test_refuses(self, texts, says):
        with pytest.raises(ExpressionError) as caught:
            parse_trigger(texts, roots=HANDOFF_ROOTS)
        assert says in caught.value.message


# An independent reading of the rules, to compare with: values are tagged so that Python's own equality is JSON's.
def tagged(value):
    if isinstance(value, bool) or value is None:
        return ("word", repr(value))
    if isinstance(value, (int, float)):
        return ("number", Fraction(value))
    if isinstance(value, str):
        return ("text", value)
    if isinstance(value, list):
        return ("list", tuple(tagged(item) for item in value))
    return ("object", frozenset((key, tagged(item)) for key, item in value.items()))


scalars = st.sampled_from([None, True, False, 0, 1, 1.0, -2, 2**53 + 1, 2.0**53, 0.5, "", "a", "ab", "1"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@given(left=values, right=values)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_equality_is_that_of_json(left, right):
    assert json_equal(left, right) is (tagged(left) == tagged(right))
    assert json_equal(left, json.loads(json.dumps(left))) is True
    assert json_equal([left], [right]) is json_equal({"k": left}, {"k": right})


ORDERINGS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@st.composite
def comparisons(draw):
    left, right = draw(values), draw(values)
    operator = draw(st.sampled_from(["=", "==", "!=", *ORDERINGS]))
    sides = {"l": left, "r": right}
    one, other = tagged(left), tagged(right)
    if operator in ORDERINGS:
        holds = one[0] == other[0] and one[0] in ("number", "text") and ORDERINGS[operator](one[1], other[1])
    else:
        holds = (one == other) is (operator != "!=")
    path = draw(st.sampled_from(["{root}.l", "${{{root}.l}}", '{root}["l"]']))
    return f"{path} {operator} {{root}}.r", sides, holds


@st.composite
def conditions(draw, depth=3):
    """A text, its roots and what it must give; a level of the tree is in parentheses unless it binds closer."""
    if depth == 0 or draw(st.booleans()):
        text, sides, holds = draw(comparisons())
        root = f"r{draw(st.integers(0, 10**9))}"
        return text.format(root=root), {root: sides}, holds
    if draw(st.integers(0, 3)) == 0:
        text, roots, holds = draw(conditions(depth=depth - 1))
        return f"{draw(st.sampled_from(['not ', '!', 'not']))}({text})", roots, not holds
    parts = [draw(conditions(depth=depth - 1)) for _ in range(draw(st.integers(2, 3)))]
    roots = {name: sides for _, part_roots, _ in parts for name, sides in part_roots.items()}
    if len(roots) < sum(len(part_roots) for _, part_roots, _ in parts):
        return parts[0]
    if draw(st.booleans()):
        word = draw(st.sampled_from([" and ", "&&"]))
        return word.join(f"({text})" for text, _, _ in parts), roots, all(holds for *_, holds in parts)
    word = draw(st.sampled_from([" or ", "||"]))
    # "or" binds least: only another "or" side by side could be read otherwise, with the same meaning.
    return word.join(text for text, _, _ in parts), roots, any(holds for *_, holds in parts)


@given(case=conditions())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_agrees_with_an_independent_reading(case):
    text, roots, holds = case
    assert parse_condition(text, roots=roots).evaluate(RootsScope(roots)) is holds
