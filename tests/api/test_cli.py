"""The command line as a user has it: what it prints where, its exit codes, and whole runs on a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from cli_program import CHECKOUT, SECONDS, call, place

from engine import errors
from engine.cli.invocation import ExitCode, error_lines, exit_code_of
from engine.cli.printing import print_table
from engine.cli.reading import merge_pairs, read_input, read_object
from engine.errors import EngineError, InvalidInputError

__all__ = ["call", "place"]


# Help and start-up


def test_help_lists_the_commands_and_loads_nothing_heavy():
    program = (
        "import sys; from click.testing import CliRunner; from engine.cli.root import baton\n"
        "print(CliRunner().invoke(baton, ['--help']).output)\n"
        "heavy = {'pydantic', 'temporalio', 'rich', 'yaml', 'engine.facade'}\n"
        "print('loaded:', *heavy & sys.modules.keys())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=SECONDS
    ).stdout
    words = "demo dev worker doctor run workflow execution agent handoff"
    for word in (*words.split(), "./baton test", "./baton check", "130"):
        assert re.search(rf"^ +{re.escape(word)}\b", shown, re.MULTILINE), word
    assert shown.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "dev",
        "worker",
        "doctor",
        "run",
        "regress",
        *(f"context {verb}" for verb in ("add", "search", "reindex")),
        *(f"workflow {verb}" for verb in ("create", "get", "list", "update", "delete", "validate")),
        *(f"execution {verb}" for verb in ("status", "result", "list", "cancel", "watch")),
        *(f"execution {verb}" for verb in ("pause", "resume", "retry-step", "skip-step")),
        *(f"gate {verb}" for verb in ("list", "show", "answer", "approve", "reject")),
        *(f"agent {verb}" for verb in ("register", "get", "list")),
        *(f"handoff {verb}" for verb in ("create", "get", "list")),
    ],
)
def test_every_command_has_help(call, command):
    shown = call(*command.split(), "--help").stdout
    assert f"Usage: baton {command}" in shown
    assert ("--output" in shown) == (command != "worker")


def test_an_unknown_command_is_refused(call):
    assert "No such command" in call("workflows", code=2).stderr


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInputError("m"), ExitCode.INVALID_INPUT),
        (errors.DefinitionNotFoundError("w"), ExitCode.INVALID_INPUT),
        (errors.ConflictError("m"), ExitCode.INVALID_INPUT),
        (errors.UnsupportedError("m"), ExitCode.INVALID_INPUT),
        (errors.ConfigurationError("m"), ExitCode.CONFIGURATION),
        (errors.StoreError("m"), ExitCode.UNREACHABLE),
        (errors.RuntimeUnavailableError("m"), ExitCode.UNREACHABLE),
        (errors.AgentError("m"), ExitCode.EXECUTION_FAILED),
        (errors.ExecutionTimeoutError("m"), ExitCode.EXECUTION_FAILED),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert exit_code_of(error) is code


def test_issues_are_listed_one_a_line():
    issues = [
        {"severity": "error", "path": "steps[0].agent", "message": "unknown key", "hint": "did you mean agent_id?"},
        {"severity": "warning", "path": "", "message": "no tags"},
    ]
    assert error_lines(EngineError("It is invalid.", {"issues": issues})) == [
        "Error (internal_error): It is invalid.",
        "  steps[0].agent: unknown key (did you mean agent_id?)",
        "  warning: no tags",
    ]


def test_wrong_settings_exit_with_3_and_name_all_faults(call):
    shown = call("-c", "mongo_url=x", "-c", "batch_size=many", "workflow", "list", code=3)
    assert shown.stdout == ""
    assert shown.stderr.startswith("Error (invalid_input): 2 faults in the settings")
    assert "did you mean mongo_uri?" in shown.stderr
    assert "KEY=VALUE" in call("-c", "batch_size", "workflow", "list", code=3).stderr
    assert "no profile 'x'" in call("--profile", "x", "doctor", "-o", "json", code=3).stdout


def test_errors_for_programs_are_the_apis_object_on_stderr(call):
    shown = call("workflow", "create", "absent.yaml", "-o", "json", code=2)
    assert shown.stdout == ""
    error = json.loads(shown.stderr)["error"]
    assert error["code"] == "invalid_input"
    assert error["details"] == {"path": "absent.yaml"}


# Reading files and options


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2025-01-01", "2025-01-01"),
        ("12:30", "12:30"),
        ("yes", "yes"),
        ("010", "010"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("True", True),
        ("~", None),
        ("-3", -3),
        ("1.5e3", 1500.0),
        ("'1'", "1"),
    ],
)
def test_plain_words_of_yaml_are_what_json_says(place, word, value):
    (place / "f.yaml").write_text(f"on: {word}\n", encoding="utf-8")
    read = read_object("f.yaml", "anything")
    assert read == {"on": value}
    assert type(read["on"]) is type(value)


def test_yaml_keeps_anchors_and_merges(place):
    (place / "f.yaml").write_text("base: &b {x: 1}\nmore: {<<: *b, y: 2}\n", encoding="utf-8")
    assert read_object("f.yaml", "anything")["more"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("f.yaml", "a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice"),
        ("f.yaml", "{a: 1", "no valid YAML"),
        ("f.yaml", "a: !!python/object/apply:os.getcwd []", "no valid YAML"),
        ("f.yaml", "a: !!timestamp 2025-01-01", "type date"),
        ("f.yaml", "a: &a [*a]", "nested deeper"),
        ("f.yaml", "1: 2", "not a string"),
        ("f.yaml", "- a\n", "keys and values"),
        ("f.yaml", "", "keys and values"),
        ("f.yaml", "[" * 5000, "no valid YAML"),
        ("f.json", '{"a": 1, "a": 2}', "there twice"),
        ("f.json", '{"a": NaN}', "NaN is no JSON"),
        ("f.json", "{\n'a': 1}", "line 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(place, name, text, words):
    (place / name).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=re.escape(words)) as caught:
        read_object(name, "anything")
    assert caught.value.message.startswith(name)


def test_files_that_are_no_text_or_no_file(place):
    (place / "f.yaml").write_bytes(b"\xff\xfe")
    for path in ("f.yaml", "absent.yaml", "."):
        with pytest.raises(InvalidInputError):
            read_object(path, "anything")


def test_the_input_comes_from_a_file_a_text_and_pairs(place):
    (place / "in.json").write_text('{"a": {"b": 1}, "c": 2}', encoding="utf-8")
    assert read_input("@in.json", ["a.d=x=y", "c=[1]"]) == {"a": {"b": 1, "d": "x=y"}, "c": [1]}
    assert read_input('{"a": null}', []) == {"a": None}
    assert read_input(None, ["a=NaN", "b=", "c=true", 'd="1"']) == {"a": "NaN", "b": "", "c": True, "d": "1"}
    for text in ("[1]", "{", "@absent.json"):
        with pytest.raises(InvalidInputError):
            read_input(text, [])
    for pairs in (["a"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"]):
        with pytest.raises(InvalidInputError, match="-i "):
            merge_pairs({}, pairs)


# Commands on embedded stores


def test_a_workflow_from_its_file_to_its_end(call, place):
    created = json.loads(call("workflow", "create", "definition.yaml", "-o", "json").stdout)
    assert created == {"workflow_id": "say-it", "version": 1}

    shown = call("workflow", "get", "say-it")
    assert re.search(r"^name +Say It$", shown.stdout, re.MULTILINE)
    assert re.search(r"^second +agent-echo", shown.stdout, re.MULTILINE)
    assert json.loads(call("workflow", "get", "say-it", "-o", "json").stdout)["steps"][0]["id"] == "first"

    updated = call("workflow", "update", "say-it", "-i", "description=Once more", "-o", "jsonl")
    assert updated.stdout == '{"workflow_id": "say-it", "version": 2}\n'
    assert json.loads(call("workflow", "get", "say-it", "--version", "1", "-o", "json").stdout)["version"] == 1

    (place / "bare.json").write_text('{"name": "Bare", "steps": [{"id": "a", "agent_id": "b"}]}', encoding="utf-8")
    assert json.loads(call("workflow", "update", "say-it", "bare.json", "-o", "json").stdout)["version"] == 3
    bare = json.loads(call("workflow", "get", "say-it", "-o", "json").stdout)
    assert not (bare.get("description") or bare.get("tags") or bare.get("output_mapping"))

    line = call("workflow", "list").stdout.splitlines()[1]
    assert line.split()[:3] == ["say-it", "3", "1"]
    assert [w["workflow_id"] for w in json.loads(call("workflow", "list", "-o", "json").stdout)["items"]] == ["say-it"]

    assert json.loads(call("workflow", "delete", "say-it", "-o", "json").stdout)["deleted"] is True
    assert "(workflow_not_found)" in call("workflow", "get", "say-it", code=2).stderr
    empty = call("workflow", "list")
    assert (empty.stdout, empty.stderr) == ("", "none\n")


def test_a_definition_from_standard_input_under_an_id_of_its_own(call):
    definition = json.dumps({"name": "Piped", "steps": [{"id": "a", "agent_id": "agent-echo"}]})
    created = call("workflow", "create", "-", "--id", "my-own", "-o", "json", stdin=definition)
    assert json.loads(created.stdout)["workflow_id"] == "my-own"
    assert "(conflict)" in call("workflow", "create", "-", "--id", "my-own", stdin=definition, code=2).stderr


def test_pages_go_on_by_their_cursor(call):
    for name in ("one", "two", "three"):
        call(
            "workflow",
            "create",
            "-",
            stdin=json.dumps({"name": name, "steps": [{"id": "a", "agent_id": "agent-echo"}]}),
        )
    first = call("workflow", "list", "--limit", "2", "-o", "jsonl")
    cursor = re.search(r"--cursor (\S+)", first.stderr)
    assert cursor
    second = call("workflow", "list", "--limit", "2", "--cursor", cursor[1], "-o", "jsonl")
    assert second.stderr == ""
    ids = [json.loads(line)["workflow_id"] for line in (first.stdout + second.stdout).splitlines()]
    assert len(first.stdout.splitlines()) == 2
    assert sorted(ids) == ["one", "three", "two"]


def test_an_invalid_definition_exits_2_with_every_issue(call, place):
    (place / "bad.yaml").write_text(
        "name: Bad\nsteps:\n  - {id: a, agent: agent-echo}\n  - {id: a, agent_id: x, depends_on: [nowhere]}\n",
        encoding="utf-8",
    )
    shown = call("workflow", "validate", "bad.yaml", code=2).stdout
    assert "steps[0]" in shown
    assert "nowhere" in shown
    assert shown.splitlines()[-1] == "invalid"
    report = json.loads(call("workflow", "validate", "bad.yaml", "-o", "json", code=2).stdout)
    assert report["valid"] is False

    refused = call("workflow", "create", "bad.yaml", code=2)
    assert refused.stdout == ""
    assert "nowhere" in refused.stderr
    assert json.loads(call("workflow", "create", "bad.yaml", "-o", "json", code=2).stderr)["error"]["details"]["issues"]


def test_a_valid_definition_stores_nothing(call):
    assert call("workflow", "validate", "definition.yaml").stdout.splitlines()[-1] == "valid"
    assert call("workflow", "list").stdout == ""


def test_agents_are_registered_from_a_file(call):
    assert call("agent", "register", "agents.yaml").stdout.split() == ["agent-echo", "agent-faulty", "agent-slow"]
    assert json.loads(call("agent", "get", "agent-echo", "-o", "json").stdout)["name"] == "Echo Agent"
    assert re.search(r"^capabilities +echo$", call("agent", "get", "agent-echo").stdout, re.MULTILINE)
    listed = call("agent", "list", "--capability", "echo", "-o", "jsonl").stdout
    assert [json.loads(line)["agent_id"] for line in listed.splitlines()] == ["agent-echo"]
    assert "(agent_not_found)" in call("agent", "get", "agent-nobody", code=2).stderr


def test_an_agent_with_an_unknown_key_is_refused(call):
    agents = "- {name: Good, config: {function: 'a:b'}}\n- {name: Bad, capabilites: []}\n"
    assert "did you mean capabilities?" in call("agent", "register", "-", stdin=agents, code=2).stderr
    assert call("agent", "list").stdout == ""


def test_handoffs_are_created_and_read(call):
    call("agent", "register", "agents.yaml")
    created = call(
        *("handoff", "create", "agent-echo", "agent-faulty", "--map", "heard=text"),
        *("--when", "completion", "--when", "source_output.heard = 'x'", "-o", "json"),
    )
    handoff_id = json.loads(created.stdout)["handoff_id"]
    handoff = json.loads(call("handoff", "get", handoff_id, "-o", "json").stdout)
    assert handoff["data_mapping"] == {"heard": "text"}
    assert handoff["trigger_conditions"] == ["completion", "source_output.heard = 'x'"]
    assert handoff_id in call("handoff", "list", "--source", "agent-echo").stdout
    assert handoff_id not in call("handoff", "list", "--source", "agent-faulty").stdout
    assert "(handoff_not_found)" in call("handoff", "get", "nothing", code=2).stderr


@pytest.mark.parametrize("verb", ["status", "result", "watch", "cancel"])
def test_an_unknown_execution_exits_2(call, verb):
    assert "(execution_not_found)" in call("execution", verb, "say-it-01J", code=2).stderr


def test_no_executions_yet(call):
    assert json.loads(call("execution", "list", "-o", "json").stdout) == {"items": [], "next_cursor": None}


# Doctor


def test_doctor_tells_of_every_thing_it_looks_at(call, place):
    (place / "baton.toml").write_text("[profile.default]\nbatch_size = 5\n", encoding="utf-8")
    report = json.loads(call("-c", "temporal_address=127.0.0.1:9", "doctor", "-o", "json", code=4).stdout)
    checks = {check["check"]: check for check in report["checks"]}
    assert report["ok"] is False
    assert checks["Temporal server"]["status"] == "unreachable"
    assert "127.0.0.1:9" in checks["Temporal server"]["detail"]
    assert checks["settings"]["detail"] == str(place / "baton.toml")
    assert {"Python", "packages", "data_dir", "definitions", "executions", "live state", "vectors"} <= checks.keys()


def test_doctor_without_any_server_program(call, place, monkeypatch):
    from engine.adapters.temporal import dev_server_binary

    monkeypatch.setattr(dev_server_binary, "_BUILD_FOLDER", place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    old = place / "temporal"
    old.write_text("#!/bin/sh\necho 'temporal 0.9.0'\n", encoding="utf-8")
    old.chmod(0o755)
    checks = {c["check"]: c for c in json.loads(call("doctor", "-o", "json", code=3).stdout)["checks"]}
    assert checks["Temporal CLI"]["status"] == "warning"
    assert f"{old} is passed over: it is too old" in checks["Temporal CLI"]["detail"]
    assert checks["Temporal server"]["status"] == "missing"
    assert "doctor --fix" in checks["Temporal server"]["fix"]
    assert checks["Go"]["status"] == "warning"


def test_doctor_names_a_folder_that_cannot_be_written(call, place):
    (place / "file").write_text("", encoding="utf-8")
    shown = call("-c", "data_dir=file/data", "doctor", "-o", "jsonl", code=3).stdout
    checks = [json.loads(line) for line in shown.splitlines()]
    assert [check["status"] for check in checks if check["check"] == "data_dir"] == ["missing"]


# Tables


def test_a_table_in_a_pipe_keeps_ids_whole_and_lines_within_100_columns(capsys):
    print_table(["ID", "TEXT"], [["a" * 60, "word " * 30], ["b", "c" * 120]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ID" + " " * 60 + "TEXT"
    assert lines[1].startswith("a" * 60 + "  word word")
    assert all(len(line) <= 100 for line in lines[:-1])
    assert lines[-1].endswith("c" * 120)
    assert " ".join(line[62:] for line in lines[1:-1]).split() == ["word"] * 30
