"""`baton gate` and the commands that hold and repair executions, on records in the embedded stores."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from cli_program import process, read_until, start
from click.testing import CliRunner

from engine.adapters.codec import Codec
from engine.adapters.sqlite.database import SqliteDatabase
from engine.adapters.sqlite.execution_store import SqliteExecutionStore
from engine.cli.reading import read_value
from engine.cli.root import baton
from engine.domain.execution import ExecutionStatus
from engine.errors import InvalidInputError
from tests.contract.samples import NOW, ended, execution, gate, seconds, transition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from click.testing import Result

    from engine.domain.gate import GateRecord

    Command = Callable[..., Result]

NOBODY = "127.0.0.1:9"
"""Where no Temporal is."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with nothing of this machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("BATON_", "TEMPORAL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("BATON_TEMPORAL_ADDRESS", NOBODY)
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(place: Path) -> Command:
    """Run one command in this process."""

    def call(*arguments: str, stdin: str | None = None, code: int = 0) -> Result:
        result = CliRunner().invoke(baton, list(arguments), input=stdin, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def store(
    place: Path, gates: Sequence[GateRecord] = (), *, execution_id: str = "flow-1", is_over: bool = False
) -> None:
    """Write an execution that runs, or has ended, with its gates."""

    async def write() -> None:
        database = SqliteDatabase(place / ".baton" / "baton.db")
        executions = SqliteExecutionStore(database, Codec())
        running = execution(
            execution_id, status=ExecutionStatus.WAITING, run_id="run-1", run_started_at=NOW + seconds(1)
        )
        await executions.create_execution(running, b"plan")
        await executions.record_transition(transition(execution_id=execution_id, gates=list(gates)))
        if is_over:
            await executions.finalize_execution(ended(execution_id), [])
        await database.aclose()

    asyncio.run(write())


def answered(**changes: Any) -> GateRecord:
    given = {"status": "answered", "answer": "reject", "by": "bob", "data": {"why": "late"}, "at": NOW + seconds(5)}
    return gate("second.1", **{**given, **changes})


def test_open_gates_are_a_table_and_pages_for_programs(call: Command, place: Path):
    assert call("gate", "list").stderr == "none\n"
    store(place, [gate(assignees=["ann"], expires_at=NOW + seconds(60)), gate("b.1", opened_at=NOW), answered()])
    lines = call("gate", "list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["EXECUTION", "GATE"], ["flow-1", "b.1"], ["flow-1", "approve.1"]]
    assert "approve, reject  Shall it go on?" in lines[2]
    assert "2026-03-01 12:01:00" in lines[2]
    only = json.loads(call("gate", "list", "--assignee", "ann", "--execution", "flow-1", "-o", "json").stdout)
    assert [item["gate_id"] for item in only["items"]] == ["approve.1"]
    assert only["items"][0]["workflow_id"] == "flow"
    assert json.loads(call("gate", "list", "--workflow", "none", "-o", "json").stdout)["items"] == []
    first = call("gate", "list", "--limit", "1", "-o", "jsonl")
    cursor = re.search(r"--cursor (\S+)", first.stderr)
    assert cursor
    rest = call("gate", "list", "--limit", "1", "--cursor", cursor[1], "-o", "jsonl")
    assert [json.loads(shown.stdout)["gate_id"] for shown in (first, rest)] == ["b.1", "approve.1"]


def test_a_gate_is_shown_with_its_answer(call: Command, place: Path):
    store(place, [gate(form={"type": "object"}), answered()])
    shown = call("gate", "show", "flow-1", "second.1").stdout
    for line in (r"^status +answered$", r"^answer +reject$", r"^by +bob$", r"^at +2026-03-01 12:00:05$"):
        assert re.search(line, shown, re.MULTILINE), shown
    for_programs = json.loads(call("gate", "show", "flow-1", "approve.1", "-o", "json").stdout)
    assert (for_programs["status"], for_programs["schema"]) == ("open", {"type": "object"})
    assert "(invalid_input)" in call("gate", "show", "flow-1", "none.1", code=2).stderr
    assert "(execution_not_found)" in call("gate", "show", "none", "a.1", code=2).stderr


def test_a_late_answer_exits_2_and_is_told_what_stands(call: Command, place: Path):
    store(place, [answered()], is_over=True)
    late = call("gate", "answer", "flow-1", "second.1", "approve", "-o", "json", code=2)
    error = json.loads(late.stderr)["error"]
    assert (error["code"], error["details"]["answer"], error["details"]["by"]) == ("conflict", "reject", "bob")
    assert late.stdout == ""
    for verb, arguments in {"pause": [], "resume": [], "retry-step": ["a"], "skip-step": ["a"]}.items():
        assert "(conflict)" in call("execution", verb, "flow-1", *arguments, code=2).stderr
        assert "(execution_not_found)" in call("execution", verb, "none", *arguments, code=2).stderr


def test_an_answer_without_temporal_exits_4(call: Command, place: Path):
    store(place, [gate()])
    assert NOBODY in call("gate", "answer", "flow-1", "approve.1", "approve", code=4).stderr
    # The only gate is found, so that this gets as far.
    assert NOBODY in call("gate", "approve", "flow-1", code=4).stderr
    assert NOBODY in call("execution", "pause", "flow-1", code=4).stderr


def test_a_gate_has_to_be_named_when_several_or_none_take_the_answer(call: Command, place: Path):
    store(place, [gate(), gate("b.1"), gate("c.1", allowed=["retry"])])
    assert "2 take approve; name one: approve.1, b.1" in call("gate", "approve", "flow-1", code=2).stderr
    store(place, [gate("c.1", execution_id="flow-2", allowed=["retry"])], execution_id="flow-2")
    assert "none takes reject" in call("gate", "reject", "flow-2", code=2).stderr
    assert "(execution_not_found)" in call("gate", "approve", "none", code=2).stderr


def test_data_is_json_a_file_or_standard_input(call: Command, place: Path, monkeypatch: pytest.MonkeyPatch):
    store(place, [gate()])
    (place / "data.yaml").write_text("price: 3\n", encoding="utf-8")
    (place / "data.json").write_text('{"price": 3', encoding="utf-8")
    assert read_value('{"price": 3}', "--data") == read_value("@data.yaml", "--data") == {"price": 3}
    assert read_value("null", "--data") is None
    for wrong in ("{price: 3}", "@data.json", "@absent.json"):
        with pytest.raises(InvalidInputError):
            read_value(wrong, "--data")
        assert "(invalid_input)" in call("gate", "approve", "flow-1", "--data", wrong, code=2).stderr
        assert "(invalid_input)" in call("execution", "skip-step", "flow-1", "a", "--data", wrong, code=2).stderr
    assert "(invalid_input)" in call("gate", "approve", "flow-1", "--data", "-", stdin="{", code=2).stderr


def test_who_acts_is_the_user_unless_said_otherwise(call: Command, place: Path, monkeypatch: pytest.MonkeyPatch):
    from engine.facade import WorkflowEngine

    given: list[tuple[object, ...]] = []

    async def answer_gate(self: WorkflowEngine, *arguments: object) -> dict[str, object]:
        given.append(arguments)
        return {"gate_id": "approve.1", "answer": "approve", "by": arguments[3], "at": "2026-03-01T12:00:00.000000Z"}

    monkeypatch.setattr(WorkflowEngine, "answer_gate", answer_gate)
    shown = call("gate", "answer", "flow-1", "approve.1", "approve", "--data", '{"n": 1}').stdout
    assert re.search(rf"^by +{re.escape(getpass.getuser())}$", shown, re.MULTILINE)
    assert json.loads(call("gate", "reject", "flow-1", "a.1", "--by", "ann", "-o", "json").stdout)["by"] == "ann"
    assert given == [
        ("flow-1", "approve.1", "approve", getpass.getuser(), {"n": 1}),
        ("flow-1", "a.1", "reject", "ann", None),
    ]
    monkeypatch.setattr("getpass.getuser", lambda: {}["no such user"])
    assert json.loads(call("gate", "reject", "flow-1", "a.1", "-o", "json").stdout)["by"] is None


# On a real server.


def test_a_run_in_one_terminal_is_answered_from_another(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BATON_TEMPORAL_ADDRESS")
    definition = {
        "name": "Ask Me",
        "steps": [{"id": "ask", "type": "approval", "approval": {"question": "Go on?"}}],
        "output_mapping": {"by": "${steps.ask.output.by}", "data": "${steps.ask.output.data}"},
    }
    (place / "ask.json").write_text(json.dumps(definition), encoding="utf-8")
    with start("-m", "engine.cli", "run", "ask.json", "--watch", "-o", "json") as run:
        execution_id = read_until(run.stderr, r"started (\S+)")[1]
        read_until(run.stderr, r"gate\.opened +ask +gate_id=ask\.1")
        shown, _ = process("gate", "list", "-o", "jsonl")
        assert json.loads(shown)["execution_id"] == execution_id
        status, _ = process("execution", "status", execution_id)
        assert re.search(r"^gates +ask\.1$", status, re.MULTILINE)
        paused, _ = process("execution", "pause", execution_id, "--reason", "lunch")
        assert paused == "paused\n"
        assert process("execution", "resume", execution_id)[0] == "resumed\n"
        process("gate", "approve", execution_id, "--by", "ann", "--data", '{"n": 1}')
        stdout, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert json.loads(stdout)["output"] == {"by": "ann", "data": {"n": 1}}
    assert "(conflict)" in process("gate", "approve", execution_id, "ask.1", code=2)[1]
