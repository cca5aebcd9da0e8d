"""Markdown that also reads well as plain text: prose within 100 columns, tables with aligned cells."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS: Final = 100


def paragraph(text: str) -> list[str]:
    """A paragraph, wrapped, and the empty line after it."""
    return [*textwrap.wrap(text, COLUMNS, break_long_words=False, break_on_hyphens=False), ""]


def bullets(items: Sequence[str], indent: str = "") -> list[str]:
    """A list, wrapped, and the empty line after it."""
    lines: list[str] = []
    for item in items:
        lines.extend(
            textwrap.wrap(
                item,
                COLUMNS,
                initial_indent=f"{indent}- ",
                subsequent_indent=f"{indent}  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return [*lines, ""]


def table(heads: Sequence[str], rows: Sequence[Sequence[str | int]]) -> list[str]:
    """A table and the empty line after it; numbers are set to the right."""
    right = [all(isinstance(row[column], int) for row in rows) for column in range(len(heads))]
    cells = [list(heads), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    lines = [_row(row, widths, right) for row in cells]
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)]
    return [lines[0], _row(rule, widths, right), *lines[1:], ""]


def code(text: str, width: int = COLUMNS) -> str:
    """Inline code; the start of a text longer than `width` is cut, since the end tells more."""
    if len(text) > width:
        text = "…" + text[1 - width :]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def plain(text: str) -> str:
    """Text that came from a file, so that none of it is taken for Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else re.sub(r"(?<!\\)\|", r"\\|", value)


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
