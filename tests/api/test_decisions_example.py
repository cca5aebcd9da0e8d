"""The example that decides as a user runs it: each message takes its own way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "examples" / "README.md").read_text(encoding="utf-8")
BUG = """\
sort completed
fix completed
explain skipped when
reply completed
send failed unavailable
keep completed kept for later: The mail server is away
publish skipped handoff
archive completed in the archive
"""
QUESTION = """\
sort completed
fix skipped when
explain completed
reply completed
send failed unavailable
keep completed kept for later: The mail server is away
publish completed on the page of questions, in en
archive skipped handoff
"""
TAKEN = "taken: its trigger fired"
PUBLISH_REFUSED = "refused: source_output.for_all = true does not hold"
ARCHIVE_REFUSED = "refused: source_output.for_all = false does not hold"
WARNING = "Step send failed, and the execution went on: The mail server is away"


async def run(message, folder, dev_server):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BATON_", "TEMPORAL_"))}
    environment |= {
        "BATON_TEMPORAL_ADDRESS": dev_server.address,
        "BATON_WORKER": "embedded",
        "BATON_TASK_QUEUE": f"decisions-{os.getpid()}-{folder.name}",
        "PYTHONPATH": str(CHECKOUT),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", CHECKOUT / "examples" / "decisions.py", message),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, complaints = (part.decode() for part in await process.communicate())
    assert process.returncode == 0, complaints
    return [line.rstrip() for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("message", "steps", "handoffs"),
    [
        (
            "The login page shows an error",
            BUG,
            {f"handoff to archive {TAKEN}", f"handoff to publish {PUBLISH_REFUSED}"},
        ),
        (
            "How do I change my name?",
            QUESTION,
            {f"handoff to publish {TAKEN}", f"handoff to archive {ARCHIVE_REFUSED}"},
        ),
    ],
)
async def test_a_message_takes_its_way(message, steps, handoffs, tmp_path, dev_server):
    lines = await run(message, tmp_path, dev_server)
    assert lines[:8] == steps.splitlines()
    assert set(lines[8:10]) == handoffs
    assert lines[10:] == [WARNING]


async def test_the_example_can_be_run_again_and_readme_shows_what_it_prints(tmp_path, dev_server):
    first = await run("The login page shows an error", tmp_path, dev_server)
    assert sorted(await run("The login page shows an error", tmp_path, dev_server)) == sorted(first)
    assert f"```text\n{BUG}" in README, "examples/README.md shows another output than this"
