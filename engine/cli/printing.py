"""Data goes to stdout and notes to stderr; a table for a terminal is drawn by rich, for a pipe as plain columns.

Nothing is cut off in a pipe: the last column is folded to keep lines within 100 columns, ids are whole.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.cli.invocation import Output

    Columns = Mapping[str, Callable[[Mapping[str, object]], object]]
    """Title to the value of an item."""

USE_COLUMNS: Columns = {
    "WORKFLOW": lambda item: item.get("workflow_id"),
    "AS": lambda item: item.get("as"),
    "STEPS": lambda item: item.get("steps"),
}
HANDOFF_COLUMNS: Columns = {
    "HANDOFF": lambda item: item.get("handoff_id"),
    "TYPE": lambda item: item.get("handoff_type"),
    "SOURCE": lambda item: item.get("source_agent_id"),
    "TARGET": lambda item: item.get("target_agent_id"),
    "WHEN": lambda item: item.get("trigger_conditions"),
}
_WIDTH = 100
_LEAST_FOLDED = 20
_STYLES = {
    "completed": "green",
    "ok": "green",
    "failed": "red",
    "missing": "red",
    "running": "cyan",
    "retrying": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "warning": "yellow",
    "cancelled": "magenta",
}


def note(text: str) -> None:
    """Write a line of progress, or anything else that is not the answer."""
    click.echo(text, err=True)


def print_json(value: object, output: Output) -> None:
    """Write one JSON value: indented, or as one line for ``jsonl``."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if output == "json" else None))


def print_answer(answer: object, output: Output, render: Callable[[], None]) -> None:
    """Write one answer: as JSON, or by ``render`` for people."""
    if output == "text":
        render()
    else:
        print_json(answer, output)


def print_page(page: Mapping[str, object], output: Output, columns: Columns) -> None:
    """Write a page of a list; the cursor of the next one is a note unless it is part of the JSON.

    Args:
        page: ``items`` and ``next_cursor``.
        output: ``json`` writes the page, ``jsonl`` an item a line, ``text`` a table.
        columns: title to the value of an item.
    """
    items = cast("list[Mapping[str, object]]", page["items"])
    if output == "json":
        print_json(page, output)
        return
    if output == "jsonl":
        for item in items:
            print_json(item, output)
    elif items:
        print_rows(items, columns)
    else:
        note("none")
    if page.get("next_cursor"):
        note(f"more: --cursor {page['next_cursor']}")


def print_rows(items: Sequence[Mapping[str, object]], columns: Columns) -> None:
    """Write a table with a row for each item."""
    print_table(list(columns), [[shown(of(item)) for of in columns.values()] for item in items])


def print_fields(fields: Mapping[str, object]) -> None:
    """Write names and values below each other; what is None or empty is left out."""
    told = {name: shown(value) for name, value in fields.items() if value not in (None, "", [], {})}
    width = max((len(name) for name in told), default=0)
    for name, text in told.items():
        click.echo(f"{name:<{width}}  {text}")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table, with colours for statuses on a terminal."""
    if not sys.stdout.isatty():
        for line in _plain_lines(titles, rows):
            click.echo(line)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def _plain_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    table = [list(titles), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles) - 1)]
    before = sum(widths) + 2 * len(widths)
    room = max(_WIDTH - before, _LEAST_FOLDED)
    for row in table:
        # Only blanks may be broken at: an id in two pieces can't be copied.
        folded = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        yield (start + folded[0]).rstrip()
        yield from (" " * before + rest for rest in folded[1:])


def shown(value: object) -> str:
    """Return a value as people read it: lists by comma, objects as JSON, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        items = cast("list[object]", value)
        if all(isinstance(item, str) for item in items):
            return ", ".join(cast("list[str]", items))
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def instant(value: object) -> str:
    """Return an ISO 8601 instant as ``2025-05-01 12:00:00``, in UTC as it came."""
    return str(value)[:19].replace("T", " ") if value else ""


def part(answer: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return the object below a key; an empty one where there is none."""
    value = answer.get(key)
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}
