"""`baton regress` as a user has it: a run of the configured stores, or a kept one, against a definition in a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine import WorkflowEngine
from engine.cli.root import baton
from engine.testing import Recording, ScriptedAgentInvoker

CHECKOUT = Path(__file__).resolve().parents[2]
DEFINITION = """
name: Say It
output_mapping: {said: "${steps.second.output.heard}"}
steps:
  - id: first
    agent_id: agent-echo
    input_mapping: {text: "${input.text}"}
    output_mapping: {heard: "${output.heard.loud}"}
  - id: second
    agent_id: agent-echo
    input_mapping: {text: "${steps.first.output.heard}"}
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
    (folder / "same.yaml").write_text(DEFINITION, encoding="utf-8")
    changed = DEFINITION.replace("first.output.heard", "first.output.heard[0]").replace("said:", "told:")
    (folder / "changed.yaml").write_text(changed + "    depends_on: []\n  - {id: third, agent_id: agent-echo}\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
async def execution_id(place, dev_server):
    """Of a run that lies in the folder's own embedded stores."""
    scripts = ScriptedAgentInvoker(steps={"first": {"heard": {"loud": ["yes"]}}, "second": {"heard": "yes yes"}})
    config = {"temporal_address": dev_server.address, "worker": "embedded", "task_queue": f"regress-{os.getpid()}"}
    async with WorkflowEngine(config, invoker=scripts) as engine:
        await engine.register_agent(name="Echo", config={"function": "nowhere:echo"})
        from engine.cli.reading import read_object

        workflow_id = await engine.create_workflow(**read_object("same.yaml", "a definition"))
        execution = await engine.execute_workflow(workflow_id, {"text": "yes"}, {"trace": True})
        await engine.get_execution_result(execution["execution_id"], wait=30)
        return execution["execution_id"]


@pytest.fixture
def call(place):
    """Run one command in a process; the answer has stdout and stderr."""

    def call(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", *arguments],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


def test_the_same_definition_is_equal_and_the_recording_is_kept(call, execution_id, place):
    done = call("regress", execution_id, "--against", "same.yaml", "--save", "run.json")
    assert re.search(rf"^recorded +{execution_id} \(say-it, version 1\): completed$", done.stdout, re.MULTILINE)
    assert re.findall(r"^(?:path|result) +(.*)$", done.stdout, re.MULTILINE) == ["equal", "equal"]
    assert "only what their output_mapping read is known" in done.stderr
    assert Recording.load("run.json").execution_id == execution_id
    assert not list(place.glob("**/baton-replay-*"))


def test_a_changed_definition_differs_in_path_and_result(call, execution_id):
    call("regress", execution_id, "--save", "run.json")
    done = call("regress", "--recording", "run.json", "--against", "changed.yaml", "-o", "json", code=1)
    answer = json.loads(done.stdout)
    assert (answer["equal"], answer["status_before"], answer["status_after"]) == (False, "completed", "failed")
    assert [(one["step_id"], one["kind"]) for one in answer["path"]] == [("third", "added")]
    assert [one["path"] for one in answer["result"]][:2] == ["status", "output"]

    text = call("regress", "--recording", "run.json", "--against", "changed.yaml", code=1).stdout
    assert re.search(r"^third +- +failed by agent-echo$", text, re.MULTILINE)
    assert '\nstatus\n  recorded  "completed"\n  replayed  "failed"\n' in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Give an EXECUTION"),
        (("x", "--recording", "run.json", "--against", "same.yaml"), "Give an EXECUTION"),
        (("x",), "Give --against"),
        (("x", "--against", "absent.yaml"), "absent.yaml can't be read"),
        (("x", "--against", "same.yaml"), "x"),
        (("--recording", "same.yaml", "--against", "same.yaml"), "no valid JSON"),
    ],
)
def test_what_cannot_be_used_exits_with_2(place, arguments, told):
    done = CliRunner().invoke(baton, ["regress", *arguments], catch_exceptions=False)
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert done.stdout == ""


def test_an_invalid_definition_exits_with_2_and_lists_its_issues(call, execution_id, place):
    (place / "wrong.yaml").write_text(DEFINITION.replace("name:", "nam:"), encoding="utf-8")
    done = call("regress", execution_id, "--against", "wrong.yaml", code=2)
    assert "nam" in done.stderr
    assert done.stdout == ""
