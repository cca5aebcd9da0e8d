"""What an output says in words, and the item that keeps it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain.context_text import MAX_TEXT_CHARS, step_item, text_of
from tests.contract.samples import AWKWARD_TEXTS, AWKWARD_VALUES, NOW, deep_value, seconds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)

OUTPUTS: list[tuple[Any, str | None]] = [
    ("A plan.", "A plan."),
    ({"text": "A plan."}, "A plan."),
    ({"plan": "Use Postgres."}, "plan: Use Postgres."),
    ({"plan": "Use Postgres.", "risk": "Downtime"}, "plan: Use Postgres.\nrisk: Downtime"),
    ({"text": "A plan.", "score": 3}, "text: A plan."),
    ({"b": "second key first", "a": "as written"}, "b: second key first\na: as written"),
    ({"findings": ["one thing", "another"]}, "findings: one thing\nfindings: another"),
    ({"plan": {"title": "Move", "steps": [{"name": "copy"}]}}, "plan.title: Move\nplan.steps.name: copy"),
    (["first", "then"], "first\nthen"),
    ({"text": ["first", "then"]}, "first\nthen"),
    ({"text": {"de": "Übung", "zh": "架構圖"}}, "de: Übung\nzh: 架構圖"),
    ({"plan": "  padded \n"}, "plan: padded"),
    ({"plan": "real words", "at": "2026-03-01 12:00", "n": "17.5", "empty": " "}, "plan: real words"),
    ({"": "no key"}, "no key"),
    (None, None),
    (42, None),
    (True, None),
    ("", None),
    ("ok", None),
    ("a1", None),
    ("yes", "yes"),
    ({"a": "x", "b": "y", "c": "z"}, "a: x\nb: y\nc: z"),
    ({"long_key_of_words": "12", "done": True}, None),
    ([1, 2.5, None, False, [], {}], None),
    ("17 - 4 = 13", None),
]


@pytest.mark.parametrize(("output", "text"), OUTPUTS)
def test_the_text_of_an_output(output: Any, text: str | None):
    assert text_of(output) == text


@pytest.mark.parametrize(
    "output",
    [
        "x" * 50_000,
        ["word " * 100] * 500,
        {"k" * 50_000: "text", "other": "words"},
        {f"key {number}": "text" for number in range(50_000)},
    ],
)
def test_a_long_output_is_cut(output: Any):
    text = text_of(output)
    assert text is not None
    assert 0 < len(text) <= MAX_TEXT_CHARS


@pytest.mark.parametrize(
    "output",
    [
        [0] * 3_000_000,
        ["1" * 8_000] * 5_000,
        ["x" * 60_000_000],
        {"a" * 30_000_000: {"b" * 30_000_000: "text"}},
        {"k" * 1_000: [[str(number)] for number in range(500_000)]},
    ],
    ids=["numbers", "digits", "one text", "keys", "lists"],
)
def test_the_largest_output_takes_no_time(output: Any):
    began = time.perf_counter()
    text_of(output)
    assert time.perf_counter() - began < 2


def test_deep_outputs_are_read_to_the_bottom():
    assert text_of(deep_value(64)) == ".".join(["below"] * 32) + ": bottom"


@settings(deadline=None, derandomize=True)
@given(JSON)
def test_any_output_has_a_bounded_text_or_none(output: Any):
    text = text_of(output)
    assert text is None or (len(text) <= MAX_TEXT_CHARS and text == text_of(output))
    assert text is None or sum(map(str.isalpha, text)) >= 3


def test_the_same_again_is_the_same_item():
    first = step_item("e-1", "flow", "a", "agent-a", {"plan": "Use Postgres."}, NOW)
    again = step_item("e-1", "flow", "a", "agent-a", {"plan": " Use Postgres. "}, NOW + seconds(5))
    assert first is not None
    assert again is not None
    assert (again.item_id, again.text_hash) == (first.item_id, first.text_hash)
    assert first.model_dump(exclude={"item_id", "text_hash"}) == {
        "text": "plan: Use Postgres.",
        "definition_id": "flow",
        "execution_id": "e-1",
        "step_id": "a",
        "agent_id": "agent-a",
        "metadata": {},
        "created_at": NOW,
    }
    assert len(first.item_id) == 64


def test_another_source_or_text_is_another_item():
    given_sources = [
        ("e-1", "a", "one text"),
        ("e-2", "a", "one text"),
        ("e-1", "b", "one text"),
        ("e-1", "a", "another text"),
        ("e-1a", "", "one text"),
    ]
    items = [step_item(execution, "flow", step, "agent-a", text, NOW) for execution, step, text in given_sources]
    assert len({item.item_id for item in items if item is not None}) == len(given_sources)


def test_an_output_without_words_is_no_item():
    assert step_item("e-1", "flow", "a", None, {"count": 7}, NOW) is None


@pytest.mark.parametrize("output", [*AWKWARD_TEXTS, *AWKWARD_VALUES])
def test_awkward_outputs_make_items_or_none(output: Any):
    item = step_item("e-1", "flow", "a", None, output, NOW)
    assert (item is None) == (text_of(output) is None)
