"""The feature example as a user runs it, on a stub of a model's endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.testing import ModelStub
from examples import feature_workflow

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = CHECKOUT / "examples" / "feature_workflow.py"
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
WITHOUT_EXTRA = """
import runpy, sys
sys.modules["openai"] = sys.modules["pydantic_ai"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SCRIPT = [
    {"tool": "files_that_mention", "arguments": {"word": "login"}},
    {"plan": "Put a check of the session in front of every view."},
    {
        "specifications": [
            {"name": "sessions", "does": "keeps who is logged in"},
            {"name": "views", "does": "asks sessions before it answers"},
        ]
    },
    "graph LR\n    views --> sessions\n",
]
PRINTED = """\
Put a check of the session in front of every view.

- sessions: keeps who is logged in
- views: asks sessions before it answers

graph LR
    views --> sessions

"""


@pytest.fixture
def place(tmp_path, monkeypatch, dev_server):
    """A small project as the current folder, a server, and nothing of this machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("BATON_", "TEMPORAL_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BATON_TEMPORAL_ADDRESS", dev_server.address)
    monkeypatch.setenv("BATON_WORKER", "embedded")
    monkeypatch.setenv("BATON_TASK_QUEUE", f"feature-{os.getpid()}-{tmp_path.name}")
    (tmp_path / ".venv").mkdir()
    for name in ("views.py", ".venv/other.py"):
        (tmp_path / name).write_text("def login(): ...\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def run(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


async def test_the_example_plans_a_feature_in_a_process_of_its_own(place, monkeypatch):
    async with ModelStub(SCRIPT, api_key="the-key") as stub:
        monkeypatch.setenv("BATON_LLM_BASE_URL", stub.base_url)
        monkeypatch.setenv("BATON_SECRET_OPENAI_API_KEY", "the-key")
        code, stdout, stderr = await run(EXAMPLE, "Implement", "user authentication")
    assert code == 0, stderr
    assert stdout.startswith(PRINTED)
    used = stdout.removeprefix(PRINTED)
    assert used.startswith("4 requests, ")
    assert used.endswith(" tokens, cost unknown\n")
    assert "looks for login\n" in stderr
    assert "graph LR\n    views --> sessions\n" in stderr
    assert "\n-- step.completed relationship\n" in stderr
    assert "the-key" not in stdout + stderr
    first, second, detail, relationship = (request["body"] for request in stub.requests)
    assert first["messages"][-1]["content"] == "Implement user authentication"
    assert json.loads(second["messages"][-1]["content"]) == ["views.py"]
    assert detail["messages"][-1]["content"] == SCRIPT[1]["plan"]
    assert json.loads(relationship["messages"][-1]["content"]) == {"detailed_specs": SCRIPT[2]["specifications"]}


async def test_the_example_says_what_it_costs_where_the_price_is_known(place, monkeypatch, capsys):
    (place / "prices.toml").write_text('["gpt-4o-mini"]\ninput = 1\noutput = 2\n', encoding="utf-8")
    monkeypatch.setenv("BATON_PRICES_FILE", "prices.toml")
    script = [ModelStub.costing(answer, input_tokens=100, output_tokens=50) for answer in SCRIPT]
    async with ModelStub(script) as stub:
        monkeypatch.setenv("BATON_LLM_BASE_URL", stub.base_url)
        assert await feature_workflow.main("Implement user authentication") is None
    printed = capsys.readouterr().out
    assert printed == f"{PRINTED}4 requests, 400 + 200 tokens, cost 0.000800 USD\n"
    assert f"```text\n{printed}```\n" in README, "the README shows another output than this"


async def test_a_wrong_answer_of_the_model_is_repaired(place, monkeypatch, capsys):
    script = [SCRIPT[1], {"specifications": []}, {"specifications": [{"name": "sessions"}]}, *SCRIPT[2:]]
    async with ModelStub(script) as stub:
        monkeypatch.setenv("BATON_LLM_BASE_URL", stub.base_url)
        assert await feature_workflow.main("Implement user authentication") is None
    assert capsys.readouterr().out.startswith(f"{PRINTED}5 requests, ")


async def test_without_a_key_one_line_says_how_to_give_it(place):
    code, stdout, stderr = await run(EXAMPLE)
    assert (code, stdout) == (1, "")
    assert "secret OPENAI_API_KEY is not set" in stderr.splitlines()[-1]
    assert "BATON_SECRET_OPENAI_API_KEY" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


async def test_without_the_extra_one_line_says_how_to_get_it(place, monkeypatch):
    monkeypatch.setenv("BATON_SECRET_OPENAI_API_KEY", "the-key")
    code, stdout, stderr = await run("-c", WITHOUT_EXTRA, EXAMPLE)
    assert (code, stdout) == (1, "")
    assert stderr.splitlines()[-1].endswith("get it with: ./baton install llm")
    assert "Traceback" not in stderr


async def test_settings_that_cannot_be_used_are_one_line(place, monkeypatch):
    monkeypatch.setenv("BATON_LLM_BASE_URL", "nowhere")
    code, _, stderr = await run(EXAMPLE)
    assert code == 1
    assert "llm_base_url" in stderr
    assert "Traceback" not in stderr
