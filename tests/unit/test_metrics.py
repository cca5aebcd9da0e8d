"""Time ranges, instants and the formulas of metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.execution import Usage
from engine.domain.metrics import (
    METRIC_NAMES,
    compute_metrics,
    format_instant,
    parse_instant,
    parse_metric_names,
    parse_time_range,
)
from engine.errors import InvalidInputError
from engine.ports.execution_store import Aggregates

NOW = datetime(2025, 5, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("last_15_minutes", timedelta(minutes=15)),
        ("last_1_hours", timedelta(hours=1)),
        ("last_7_days", timedelta(days=7)),
        ("last_30_days", timedelta(days=30)),
        ("last_2_weeks", timedelta(weeks=2)),
        (None, timedelta(days=30)),
    ],
)
def test_a_span_ends_now(value: object, span: timedelta):
    assert parse_time_range(value, NOW) == (NOW - span, NOW)


def test_a_range_has_its_own_ends():
    start, end = parse_time_range({"start": "2025-05-01T02:00:00+02:00", "end": "2025-05-31T23:59:59Z"}, NOW)
    assert (start, end) == (datetime(2025, 5, 1, tzinfo=UTC), datetime(2025, 5, 31, 23, 59, 59, tzinfo=UTC))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("last_0_days", "time_range"),
        ("last_-1_days", "time_range"),
        ("last_1.5_days", "time_range"),
        ("last_٣_days", "time_range"),
        ("last_99999999999999999999_days", "time_range"),
        ("last_999999999_weeks", "time_range"),
        ("last_900000_days", "time_range"),
        ("last_3_months", "time_range"),
        ("last_days", "time_range"),
        ("", "time_range"),
        (7, "time_range"),
        ({}, "time_range"),
        ({"start": "2025-05-01"}, "time_range"),
        ({"start": "2025-05-01", "end": "2025-05-02", "x": 1}, "time_range"),
        ({"start": "yesterday", "end": "2025-05-02"}, "time_range.start"),
        ({"start": "2025-05-01", "end": None}, "time_range.end"),
        ({"start": "2025-05-03", "end": "2025-05-02"}, "time_range.start"),
    ],
)
def test_another_range_is_refused_by_its_path(value: object, path: str):
    with pytest.raises(InvalidInputError) as caught:
        parse_time_range(value, NOW)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize(
    "text",
    [
        "2025-05-01T00:00:00Z",
        "2025-05-01T00:00:00",
        "2025-05-01",
        "2025-05-01T05:30:00+05:30",
        "2025-04-30T19:00:00-05:00",
    ],
)
def test_an_instant_is_utc_whatever_its_offset(text: str):
    instant = parse_instant(text)
    assert instant == datetime(2025, 5, 1, tzinfo=UTC)
    assert instant.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["", "now", "2025-13-01", "2025-05-01T25:00:00Z", "0001-01-01T00:00:00+10:00", 5, None]
)
def test_no_instant_is_refused_by_the_path_given(text: object):
    with pytest.raises(InvalidInputError) as caught:
        parse_instant(text, "start_time")
    assert caught.value.details["path"] == "start_time"
    assert "start_time" in caught.value.message


def test_an_instant_is_written_in_utc_with_microseconds():
    assert format_instant(datetime(2025, 5, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == "2025-05-01T00:00:00.000000Z"
    with pytest.raises(ValueError, match="naive"):
        format_instant(datetime(2025, 5, 1))


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=st.timezones()))
def test_what_is_written_reads_back(instant: datetime):
    assert parse_instant(format_instant(instant)) == instant.astimezone(UTC)


AGGREGATES = Aggregates(
    count=9,
    completed=4,
    failed=1,
    cancelled=2,
    durations=[1.0, 2.0, 3.0, 10.0],
    retries=5,
    fallbacks=3,
    handoffs_taken=6,
    handoffs_refused=8,
    usage=Usage(requests=7, input_tokens=100, output_tokens=20, tool_calls=2, cost_usd=0.5),
)


def test_every_metric_of_a_workflow():
    assert compute_metrics(AGGREGATES, None, "workflow") == {
        "execution_count": 9,
        "success_rate": 0.8,
        "average_duration": 4.0,
        "p50_duration": 2.0,
        "p95_duration": 10.0,
        "error_count": 1,
        "cancelled_count": 2,
        "retry_count": 5,
        "fallback_count": 3,
        "input_tokens": 100,
        "output_tokens": 20,
        "tool_calls": 2,
        "cost_usd": 0.5,
        "handoffs_taken": 6,
        "handoffs_refused": 8,
    }


def test_nothing_is_known_of_nothing():
    metrics = compute_metrics(Aggregates(), None, "agent")
    assert {name for name, value in metrics.items() if value is None} == {
        "success_rate",
        "average_duration",
        "p50_duration",
        "p95_duration",
        "cost_usd",
    }
    assert metrics["call_count"] == 0


def test_the_asked_metrics_come_in_the_asked_order():
    names = ["success_rate", "average_duration", "error_count"]
    assert list(compute_metrics(AGGREGATES, names, "agent")) == names
    assert parse_metric_names([], "agent") == METRIC_NAMES["agent"]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(sorted))
def test_a_percentile_is_the_nearest_rank(durations: list[float]):
    metrics = compute_metrics(Aggregates(durations=durations), ["p50_duration", "p95_duration"], "workflow")
    for percent, name in ((50, "p50_duration"), (95, "p95_duration")):
        value: Any = metrics[name]
        at_most = sum(duration <= value for duration in durations)
        below = sum(duration < value for duration in durations)
        assert at_most * 100 >= percent * len(durations) > below * 100


@pytest.mark.parametrize(
    ("names", "path", "word"),
    [
        (["succes_rate"], "metrics[0]", "success_rate"),
        (["success_rate", "execution_count"], "metrics[1]", "call_count"),
        (["handoffs_taken"], "metrics[0]", "call_count"),
        (["call_count", "handoffs_refused"], "metrics[1]", "call_count"),
        ([3], "metrics[0]", "call_count"),
        ("success_rate", "metrics", "success_rate"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(names: object, path: str, word: str):
    with pytest.raises(InvalidInputError, match=word) as caught:
        compute_metrics(AGGREGATES, names, "agent")
    assert caught.value.details["path"] == path
