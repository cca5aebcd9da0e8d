"""The command line on a real server: runs, `dev`, the worker program, the demo."""

from __future__ import annotations

import json
import re
import signal

import pytest
from cli_program import CHECKOUT, SECONDS, call, place, process, read_until, start

__all__ = ["call", "place"]

needs_server = pytest.mark.usefixtures("server_program")


@pytest.fixture(scope="session")
def server_program():
    from engine.adapters.temporal.dev_server import find_binary

    if find_binary() is None:
        pytest.skip("no Temporal server program: ./baton doctor --fix gets one")


@needs_server
def test_a_run_from_a_file_shows_steps_on_stderr_and_the_result_on_stdout(call, place):
    call("agent", "register", "agents.yaml")
    options = ("-c", "agent_modules=cli_agents", "run", "definition.yaml", "-i", "text=hello", "-i", "end.mark=?")
    stdout, stderr = process(*options, "--watch", "-o", "json")
    result = json.loads(stdout)
    assert result["status"] == "completed"
    assert result["output"] == {"said": "hello ?"}
    assert "created workflow say-it" in stderr
    for step in ("first", "second"):
        assert re.search(rf"step\.completed +{step}\b", stderr), stderr
    assert re.search(r"http://\S+", stderr)

    again, notes = process(*options)
    assert "unchanged workflow say-it, version 1" in notes
    assert "step.completed" not in notes
    assert re.search(r"^status +completed in ", again, re.MULTILINE)
    assert '"said": "hello ?"' in again

    execution_id = result["execution_id"]
    assert "2 of 2" in call("execution", "status", execution_id).stdout
    assert json.loads(call("execution", "result", execution_id, "-o", "json").stdout) == result
    listed = call("execution", "list", "--workflow", "say-it", "--status", "completed", "-o", "jsonl").stdout
    assert execution_id in [json.loads(line)["execution_id"] for line in listed.splitlines()]
    assert call("execution", "cancel", execution_id).stdout == "already over\n"


@needs_server
def test_a_failed_run_exits_1_with_the_reason(call, place):
    call("agent", "register", "agents.yaml")
    (place / "fail.yaml").write_text(
        "name: Fail\nsteps: [{id: only, agent_id: agent-faulty, retry_policy: {max_retries: 0}}]\n", encoding="utf-8"
    )
    stdout, stderr = process("-c", "agent_modules=cli_agents", "run", "fail.yaml", code=1)
    assert re.search(r"^status +failed", stdout, re.MULTILINE)
    assert "nothing to be done" in stdout
    # Where it failed, once, for who writes the agent; nothing of the SDK's own.
    assert stderr.count("Traceback") == 1
    assert 'cli_agents.py", line' in stderr


@needs_server
def test_ctrl_c_in_a_run_ends_it_with_130(call, place):
    call("agent", "register", "agents.yaml")
    (place / "slow.yaml").write_text("name: Slow\nsteps: [{id: only, agent_id: agent-slow}]\n", encoding="utf-8")
    with start("-m", "engine.cli", "-c", "agent_modules=cli_agents", "run", "slow.yaml", "--watch") as started:
        execution_id = read_until(started.stderr, r"started (\S+)")[1]
        read_until(started.stderr, r"step\.started")
        started.send_signal(signal.SIGINT)
        stdout, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == 130, stderr
    assert f"baton execution cancel {execution_id}" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


@needs_server
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_dev_stays_until_a_signal(call, number, code):
    with start("-m", "engine.cli", "dev", "-o", "jsonl") as started:
        address = json.loads(read_until(started.stdout, r"\{.*\}\n")[0])["address"]
        checked = json.loads(call("-c", f"temporal_address={address}", "doctor", "-o", "json").stdout)
        assert {c["check"]: c["status"] for c in checked["checks"]}["search attributes"] == "ok"
        started.send_signal(number)
        _, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == code
    assert "Traceback" not in stderr
    call("-c", f"temporal_address={address}", "doctor", code=4)


@needs_server
def test_with_a_worker_elsewhere_run_returns_after_the_start(call, place):
    call("agent", "register", "agents.yaml")
    with start("-m", "engine.cli", "-c", "agent_modules=cli_agents", "dev", "-o", "jsonl") as started:
        address = json.loads(read_until(started.stdout, r"\{.*\}\n")[0])["address"]
        there = ("-c", f"temporal_address={address}")
        answer = json.loads(call(*there, "run", "definition.yaml", "-i", "text=hello", "-o", "json").stdout)
        assert "output" not in answer
        watched = call(*there, "execution", "watch", answer["execution_id"])
        assert '"said": "hello !"' in watched.stdout
        assert "execution.completed" in watched.stderr

        (place / "slow.yaml").write_text("name: Slow\nsteps: [{id: only, agent_id: agent-slow}]\n", encoding="utf-8")
        slow = json.loads(call(*there, "run", "slow.yaml", "-o", "json").stdout)["execution_id"]
        assert re.search(r"^status +(pending|running)$", call(*there, "execution", "status", slow).stdout, re.MULTILINE)
        assert call(*there, "execution", "cancel", slow, "--reason", "enough").stdout == "cancellation requested\n"
        shown = call(*there, "execution", "watch", slow, code=1).stdout
        assert re.search(r"^status +cancelled", shown, re.MULTILINE)
        assert re.search(r"^reason +enough$", shown, re.MULTILINE)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=SECONDS)


def test_dev_refuses_a_configured_address(call):
    assert "baton worker" in call("-c", "temporal_address=h:1", "dev", code=3).stderr


@needs_server
@pytest.mark.parametrize("program", [("worker.py",), ("-m", "engine.cli", "worker")])
def test_the_worker_program_stops_on_sigterm(place, program):
    arguments = [str(CHECKOUT / part) if part == "worker.py" else part for part in program]
    with start(*arguments) as started:
        read_until(started.stderr, r"worker ready: address=127\.0\.0\.1:\d+")
        started.send_signal(signal.SIGTERM)
        _, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == 0, stderr
    assert "Traceback" not in stderr


def test_the_worker_program_names_wrong_settings(place, capsys):
    from worker import main

    assert main(["-c", "task_queu=x"]) == 3
    assert "did you mean task_queue?" in capsys.readouterr().err


def test_the_worker_program_names_a_server_that_does_not_answer(place):
    with start(str(CHECKOUT / "worker.py"), "-c", "temporal_address=127.0.0.1:9") as started:
        _, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == 4
    assert "127.0.0.1:9" in stderr
    assert "Traceback" not in stderr


@needs_server
def test_the_demo_reviews_a_tree_and_names_broken_files(place):
    tree = place / "tree"
    tree.mkdir()
    (tree / "good.py").write_text('"""Good."""\n\n\ndef f() -> int:\n    return 1\n', encoding="utf-8")
    (tree / "broken.py").write_text("def f(:\n", encoding="utf-8")
    stdout, stderr = process("demo", str(tree), "--report", "review.md")
    report = (place / "review.md").read_text(encoding="utf-8")
    assert "broken.py" in stdout
    assert "broken.py" in report
    assert str(place / "review.md") in stdout
    assert re.search(r"^Temporal UI +http://\S+", stdout, re.MULTILINE)
    for step in ("architecture", "detail", "relationship", "report"):
        assert re.search(rf"step\.completed +{step}\b", stderr), stderr
    assert "Traceback" not in stderr


@needs_server
def test_the_demo_keeps_server_and_worker_until_ctrl_c(place):
    with start("-m", "engine.cli", "demo", str(CHECKOUT / "examples"), "--keep") as started:
        read_until(started.stderr, r"stay until Ctrl-C")
        assert started.poll() is None
        started.send_signal(signal.SIGINT)
        stdout, stderr = started.communicate(timeout=SECONDS)
    assert started.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert str(place / "baton-review.md") in stdout


def test_the_demo_refuses_what_it_cannot_review(call, place):
    (place / "empty").mkdir()
    (place / "text.txt").write_text("", encoding="utf-8")
    assert "There is nothing at" in call("demo", "absent", code=2).stderr
    assert "No Python file" in call("demo", "empty", code=2).stderr
    assert "no Python file" in call("demo", "text.txt", code=2).stderr
    assert ".md" in call("demo", ".", "--report", "report.txt", code=2).stderr
    assert "no folder" in call("demo", ".", "--report", "absent/report.md", code=2).stderr
