"""The command line as tests run it: in a folder of its own, in this process or as a program."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.cli.root import baton

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 60

AGENTS = """
- name: Echo Agent
  description: Says what it hears.
  capabilities: [echo]
  tools: []
  config: {function: "cli_agents:echo"}
- name: Faulty Agent
  description: Always fails.
  capabilities: []
  tools: []
  config: {function: "cli_agents:faulty"}
- name: Slow Agent
  description: Waits.
  capabilities: []
  tools: []
  config: {function: "cli_agents:slow"}
"""
AGENT_CODE = """
import asyncio


def echo(input, call):
    call.emit("echoing")
    return {"heard": input["text"]}


def faulty(input, call):
    raise ValueError("nothing to be done")


async def slow(input, call):
    await asyncio.sleep(600)
    return {}
"""
DEFINITION = """
name: Say It
description: Says it twice.
tags: [speech]
output_mapping: {said: "${steps.second.output.heard}"}
steps:
  - id: first
    agent_id: agent-echo
    input_mapping: {text: "${input.text}"}
  - id: second
    agent_id: agent-echo
    input_mapping: {text: "${steps.first.output.heard} ${input.end.mark ?? '!'}"}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder, with nothing of this machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("BATON_", "TEMPORAL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("NO_COLOR", "1")
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "definition.yaml").write_text(DEFINITION, encoding="utf-8")
    (folder / "agents.yaml").write_text(AGENTS, encoding="utf-8")
    (folder / "cli_agents.py").write_text(AGENT_CODE, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(place):
    """Run one command in this process; the answer has exit_code, stdout and stderr."""

    def call(*arguments, stdin=None, code=0):
        result = CliRunner().invoke(baton, list(arguments), input=stdin, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


@contextlib.contextmanager
def start(*arguments):
    """Start one command as a process in the current folder; after the block it is gone."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(Path.cwd())])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def process(*arguments, code=0):
    with start("-m", "engine.cli", *arguments) as started:
        stdout, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == code, stdout + stderr
    return stdout, stderr


def read_until(stream, pattern):
    """Read a process's stream up to a line that has the pattern, and return its match."""
    seen = ""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        readable, _, _ = select.select([stream], [], [], 0.5)
        if readable:
            read = os.read(stream.fileno(), 65536).decode()
            if not read:
                break
            seen += read
            if found := re.search(pattern, seen):
                return found
    pytest.fail(f"{pattern} did not come; seen: {seen}")
