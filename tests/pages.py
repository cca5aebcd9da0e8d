"""The pages for users, read: tables, blocks of code, links, and what a script prints."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = [
    "CHECKOUT",
    "DOCS",
    "Script",
    "Table",
    "blocks",
    "broken_links",
    "files",
    "prose",
    "run_script",
    "scripts",
    "tables",
]

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"

Table: TypeAlias = "list[dict[str, str]]"

_PRINTS = re.compile(r"^prints( at its end)?\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Script:
    """A block of Python that a page lets run."""

    name: str
    printed: str
    is_end: bool
    """The page shows only the end of what it prints."""


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[Table]:
    """Tables in order, each row as title to cell."""
    found: list[Table] = []
    titles: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            titles = []
            continue
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if not titles:
            titles = cells
            found.append([])
        elif set(line) - set("|- "):
            assert len(cells) == len(titles), f"another number of cells than titles: {line}"
            found[-1].append(dict(zip(titles, cells, strict=True)))
    return found


def blocks(language: str, text: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    """Blocks of Python and YAML by the file name in their first line; each block of Python has one."""
    found: dict[str, str] = {}
    for language in ("python", "yaml"):
        for block in blocks(language, text):
            name = re.match(r"# ([a-z_]+\.(?:py|yaml))\n", block)
            assert name or language == "yaml", f"a block of Python has to begin with the name of its file: {block[:60]}"
            if name:
                found[name[1]] = block
    return found


def scripts(text: str) -> dict[str, Script]:
    """The blocks of Python that are programs, with what the page says that they print."""
    found: dict[str, Script] = {}
    for name, block in files(text).items():
        if name.endswith(".py") and "asyncio.run(" in block:
            said = _PRINTS.search(text, text.index(block))
            assert said, f"the page does not say what {name} prints"
            found[name] = Script(name, said[2], bool(said[1]))
    return found


def broken_links(page: str) -> list[str]:
    """The targets of a page's links that are no file, or no heading of one."""
    text = (DOCS / page).read_text(encoding="utf-8")
    broken: list[str] = []
    for target in re.findall(r"\]\(([^)]+)\)", prose(text)):
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    return broken


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


async def run_script(text: str, name: str, folder: Path, settings: Mapping[str, str]) -> str:
    """Write a page's files into a folder, run one of them there and return what it printed."""
    for file, content in files(text).items():
        (folder / file).write_text(content, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BATON_", "TEMPORAL_"))}
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", name),
        cwd=folder,
        env=environment | {"PYTHONPATH": str(CHECKOUT)} | dict(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, complaints = (part.decode() for part in await ran.communicate())
    assert ran.returncode == 0, complaints
    return printed
