"""The Python blocks of docs/API.md as code that runs, and the one table of what is put in for their placeholders."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

API_MD = Path(__file__).resolve().parents[2] / "docs" / "API.md"

SUBSTITUTIONS = {
    # Placeholders of the text; all else runs as written. The names on the right are given to the block that runs.
    "List Workflows": {'"cursor-token"': "cursor_token"},
    "List Executions": {
        '"cursor-token"': "cursor_token",
        '"2025-05-01T00:00:00Z"': "start_time",
        '"2025-05-31T23:59:59Z"': "end_time",
    },
    "Complete Workflow Execution Example": {"config={...}": "config=config"},
}

NOT_RUN = {"Error Handling": "shows the form of an error: compared with a real one"}


@dataclass(frozen=True)
class Block:
    heading: str
    line: int
    source: str

    @property
    def filled_in(self) -> str:
        source = self.source
        for placeholder, name in SUBSTITUTIONS.get(self.heading, {}).items():
            assert source.count(placeholder) == 1, f"{self.heading} has {placeholder} no longer once"
            source = source.replace(placeholder, name)
        return source

    async def run(self, names: dict[str, Any]) -> None:
        """Run the block with ``names`` as its variables; what it sets is there afterwards."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        # Blank lines before it, so that a traceback names the line in the page.
        code = compile("\n" * (self.line - 1) + self.filled_in, str(API_MD), "exec", flags)
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)
        else:
            exec(code, names)


def read_blocks(page: str) -> list[Block]:
    """Return all fenced blocks that are marked as Python, under the heading they stand below."""
    blocks: list[Block] = []
    heading = ""
    lines = page.splitlines()
    for index, line in enumerate(lines):
        if found := re.fullmatch(r"#+ (.*)", line):
            heading = found[1] if not _inside(blocks, index) else heading
        if line == "```python":
            end = lines.index("```", index)
            blocks.append(Block(heading, index + 2, "\n".join(lines[index + 1 : end])))
    return blocks


def _inside(blocks: list[Block], index: int) -> bool:
    """Whether a line belongs to the last block: its comments look like headings."""
    return bool(blocks) and index < blocks[-1].line - 1 + len(blocks[-1].source.splitlines())
