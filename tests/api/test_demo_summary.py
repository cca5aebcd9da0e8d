"""The demo with a model that sums its report up, on a stub of the model's endpoint; and without one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.testing import ModelStub

CHECKOUT = Path(__file__).resolve().parents[2]
HINT = "For a summary by a model: "
WITHOUT_EXTRA = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "openai" else find(name, package)
from engine.cli.root import baton
baton()
"""


@pytest.fixture
def place(tmp_path, monkeypatch, dev_server):
    """A tree to review in the current folder, a server, and nothing of this machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("BATON_", "TEMPORAL_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("BATON_TEMPORAL_ADDRESS", dev_server.address)
    monkeypatch.setenv("BATON_TASK_QUEUE", f"demo-{os.getpid()}-{tmp_path.name}")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "shop.py").write_text("def price() -> int:\n    return 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def run(*words, program=("-m", "engine.cli")):
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode(), stderr.decode()


async def test_a_model_sums_the_report_up(place, monkeypatch):
    async with ModelStub("Write docstrings first.") as stub:
        monkeypatch.setenv("BATON_LLM_BASE_URL", stub.base_url)
        monkeypatch.setenv("OPENAI_MODEL", "small-model")
        stdout, stderr = await run("demo", "tree")
    assert "In a model's words (cost: unknown):\n\nWrite docstrings first.\n" in stdout
    assert "step.completed        summary" in stderr
    assert HINT not in stderr
    (request,) = stub.requests
    assert request["body"]["model"] == "small-model"
    told = json.loads(request["body"]["messages"][-1]["content"])
    assert told["figures"].startswith("1 module in ")
    assert any("docstring" in finding for finding in told["findings"])


async def test_a_model_that_fails_fails_no_review(place, monkeypatch):
    async with ModelStub(ModelStub.error(401)) as stub:
        monkeypatch.setenv("BATON_LLM_BASE_URL", stub.base_url)
        stdout, stderr = await run("demo", "tree", "-o", "json")
    assert len(stub.requests) == 1
    result = json.loads(stdout)
    assert result["steps"]["summary"]["agent_id"] == "agent-figures"
    assert result["output"]["model_summary"] == result["output"]["summary"]
    assert "step.fell_back" in stderr
    assert "unauthorized" in stderr


async def test_without_a_model_one_line_says_how_to_get_its_summary(place, monkeypatch):
    stdout, stderr = await run("demo", "tree")
    assert [line for line in stderr.splitlines() if HINT in line] == [
        f"{HINT}set BATON_SECRET_OPENAI_API_KEY, or BATON_LLM_BASE_URL for another endpoint than OpenAI's."
    ]
    assert "model's words" not in stdout
    monkeypatch.setenv("BATON_SECRET_OPENAI_API_KEY", "the-key")
    stdout, stderr = await run("demo", "tree", program=("-c", WITHOUT_EXTRA))
    assert f"{HINT}run `./baton install llm`.\n" in stderr
    assert "model's words" not in stdout


async def test_the_doctor_says_whether_model_agents_can_be_called(place):
    def line(stdout):
        return next(found.split(maxsplit=3)[2:] for found in stdout.splitlines() if found.startswith("model agents"))

    stdout, _ = await run("doctor")
    assert line(stdout) == ["ok", "their packages are installed"]
    stdout, _ = await run("doctor", program=("-c", WITHOUT_EXTRA))
    assert line(stdout) == ["ok", "can't be called: openai not installed. ./baton install llm gets them"]
