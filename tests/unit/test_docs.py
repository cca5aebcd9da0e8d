"""The pages for users say what the code does: tables name all there is, examples run, links lead somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import pytest
import yaml

from activities.agent_activities import WRITE_PATIENCE
from activities.step_context import RECALL_DEADLINE
from engine import types
from engine.adapters.agents.llm import conversation, tool_uses
from engine.adapters.hashing_embedder import HashingEmbedder
from engine.adapters.pinecone_embedder import DEFAULT_MODEL as PINECONE_MODEL
from engine.adapters.temporal.worker_factory import WORKFLOW_TASKS
from engine.bootstrap import EMBEDDED_GRACE, WORKER_GRACE
from engine.cli.root import baton
from engine.domain import (
    children,
    decisions,
    expressions,
    flow_rules,
    following,
    gates,
    messages,
    plan,
    plan_compiler,
    progress,
    structure,
    validation,
)
from engine.domain.agent_call import NON_RETRYABLE_REASONS, AgentCall, FailureReason
from engine.domain.agent_config import MAX_CONFIG_BYTES, HttpConfig, LlmConfig, PythonConfig
from engine.domain.conditions import parse_condition
from engine.domain.context import ContextScope
from engine.domain.context_text import MAX_TEXT_CHARS as MAX_STEP_TEXT_CHARS
from engine.domain.decisions import Admission
from engine.domain.definition import (
    Approval,
    Budget,
    Compensation,
    ForEach,
    RepeatUntil,
    RetryPolicySpec,
    Step,
    Wait,
    WorkflowDefinition,
)
from engine.domain.execution import ExecutionStatus, StepStatus
from engine.domain.expressions import HANDOFF_ROOTS, MissingPathError, RootsScope, compile_template
from engine.domain.issues import IssueCode
from engine.domain.json import MAX_DEPTH, MAX_VALUE_BYTES
from engine.domain.metrics import METRIC_NAMES
from engine.domain.page import MAX_LIMIT
from engine.domain.step_rules import FIELD_TYPES, MAX_FALLBACKS, NEEDED_FIELDS
from engine.errors import ErrorCode, InvalidInputError
from engine.masking import MIN_SECRET_CHARS
from engine.services import context, context_search
from engine.services.executions import parse_options
from engine.services.paging import DEFAULT_LIMIT
from engine.services.repair import START_GRACE
from engine.settings import EngineSettings
from tests.pages import CHECKOUT, DOCS, Table, blocks, broken_links, files, run_script, scripts, tables
from workflows.activity_options import HEARTBEAT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.adapters.temporal.dev_server import DevServerLease

GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")
ANSWERS = (DOCS / "answers.md").read_text(encoding="utf-8")

STEP_RESULT = types.StepResult.__annotations__


def section(heading: str) -> str:
    """The text below a heading, down to the next one of its level or above."""
    found: list[str] | None = None
    level, is_code = 0, False
    for line in GUIDE.splitlines(keepends=True):
        is_code ^= line.startswith("```")
        hashes = 0 if is_code else len(line) - len(line.lstrip("#"))
        if found is None and hashes and line.strip("# \n") == heading:
            found, level = [], hashes
        elif found is not None and 0 < hashes <= level:
            break
        elif found is not None:
            found.append(line)
    assert found is not None, f"the guide has no heading {heading!r}"
    return "".join(found)


def table(heading: str, title: str) -> Table:
    """The one table below a heading whose first column has the title."""
    chosen = [rows for rows in tables(section(heading)) if rows and next(iter(rows[0])) == title]
    assert len(chosen) == 1, f"{heading} has {len(chosen)} tables of {title}"
    return chosen[0]


def names(rows: Table, title: str) -> list[str]:
    """The words in code marks in a column."""
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[title])]


def test_answers_are_what_the_generator_makes():
    made = subprocess.run(
        [sys.executable, DOCS / "make_answers.py"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    assert made.stdout == ANSWERS, "run: python docs/make_answers.py > docs/answers.md"


def shown_default(default: object) -> str:
    match default:
        case None:
            return "none"
        case () | {}:
            return "empty"
        case timedelta():
            return f"{default.total_seconds():g}"
        case _:
            return str(default)


def known_options() -> list[str]:
    with pytest.raises(InvalidInputError) as refused:
        parse_options({"no such option": 1})
    return refused.value.message.partition("known are ")[2].split(", ")


def test_settings_are_those_of_the_code():
    rows = {row["key"].strip("`"): row for row in table("Settings", "key")}
    assert set(rows) == set(EngineSettings.model_fields)
    for key, row in rows.items():
        field = EngineSettings.model_fields[key]
        assert row["variable"] == f"`BATON_{key.upper()}`" + (
            " (*file*)" if "SecretStr" in str(field.annotation) else ""
        )
        assert row["default"].strip("`") == shown_default(field.get_default(call_default_factory=True)), key


@pytest.mark.parametrize(
    ("heading", "title", "expected"),
    [
        ("Errors", "code", ErrorCode),
        ("Failure reasons", "reason", FailureReason),
        ("Definitions", "issue code", IssueCode),
        ("Definitions", "type", NEEDED_FIELDS),
        ("Statuses", "execution", ExecutionStatus),
        ("Statuses", "step", StepStatus),
        ("What runs when", "asked", re.findall(r"'(\w+)'", Admission.__annotations__["refused_by"])),
        ("Metrics and health", "metric", dict.fromkeys(METRIC_NAMES["workflow"] + METRIC_NAMES["agent"])),
        ("Executing", "option", known_options()),
        ("Models", "key", set(LlmConfig.model_fields) - {"kind"}),
        ("Context memory", "scope", get_args(ContextScope)),
        ("Context memory", "embedder", get_args(EngineSettings.model_fields["embedder"].annotation)),
        ("Results", "key", [key for key, kind in STEP_RESULT.items() if "NotRequired" in str(kind)]),
    ],
)
def test_a_table_has_each_name_of_the_code_once(heading: str, title: str, expected: Any):
    assert sorted(names(table(heading, title), title)) == sorted(str(name) for name in expected)


def kib(size_bytes: int) -> str:
    return f"{size_bytes // 1024} KiB" if size_bytes < 2**20 else f"{size_bytes // 2**20} MiB"


def seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g}"


@pytest.mark.parametrize(
    ("heading", "text"),
    [
        ("Definitions", f"| `timeout` | {seconds(plan.DEFAULT_STEP_TIMEOUT)} |"),
        ("Definitions", f"| `backoff_factor` | {plan_compiler.DEFAULT_BACKOFF:g} |"),
        ("Definitions", f"| `initial_interval` | {seconds(plan_compiler.DEFAULT_INITIAL_INTERVAL)} |"),
        ("Definitions", f"| `max_interval` | {seconds(plan_compiler.DEFAULT_MAX_INTERVAL)} |"),
        ("Definitions", f"| `name` | required | what people call it, up to {structure.MAX_NAME_CHARS} "),
        ("Definitions", f"up to {structure.MAX_LABELS} of up to {structure.MAX_LABEL_CHARS} characters"),
        ("Definitions", f"| `steps` | required | 1 to {validation.MAX_STEPS:,} steps"),
        ("Definitions", f"or a list of up to {MAX_FALLBACKS}"),
        ("Definitions", f"the list itself, of up to {flow_rules.MAX_ITEMS:,} items"),
        ("Definitions", f"up to {flow_rules.MAX_ALLOWED} of up to {flow_rules.MAX_ANSWER_CHARS} characters"),
        ("Definitions", f"from 0 to {flow_rules.MAX_WAIT_SECONDS // 86400} days"),
        ("Expressions", f"up to {expressions.MAX_TEMPLATE_NODES:,} values, {expressions.MAX_TEMPLATE_DEPTH} levels"),
        ("Expressions", f" {expressions.MAX_TEMPLATE_CHARS:,} characters"),
        ("Models", f"| `max_turns` | {conversation._DEFAULT_MAX_TURNS} |"),
        ("Models", f"goes back to the model, at most {conversation._MAX_REPAIRS} times in an attempt"),
        ("Secrets", f"A secret of less than {MIN_SECRET_CHARS} characters is refused"),
        ("Context memory", f"up to {MAX_STEP_TEXT_CHARS:,} characters"),
        ("Context memory", f"a text of up to {context.MAX_TEXT_CHARS:,} characters"),
        ("Context memory", f"in the nearest {context_search.FILTERED_DEPTH:,} |"),
        ("Context memory", f"or else the newest {context_search.MAX_MEASURED}."),
        ("Context memory", f"longer than {seconds(RECALL_DEADLINE)} s, or"),
        ("Context memory", f"no meaning; {HashingEmbedder().dimension} numbers |"),
        ("Context memory", f"(`{PINECONE_MODEL}` unless set, 1024 numbers)"),
        ("Limits", f"| a tool's result | {tool_uses._MAX_RESULT_CHARS:,} characters |"),
        ("Limits", f"| a context item's text | {context.MAX_TEXT_CHARS:,} characters |"),
        ("Limits", f"| a context item's metadata | {kib(context.MAX_METADATA_BYTES)} |"),
        ("Limits", f"| items of a recall or a search | {context.MAX_TOP_K} |"),
        ("Long runs", f"At most {progress.MAX_PENDING_CALLS} calls"),
        ("Long runs", f"about {kib(progress.MAX_WINDOW_BYTES)} of input"),
        ("Conditions", f"a value over {kib(messages.MAX_DECLARED_BYTES)} that lies in a"),
        (
            "Events",
            f"those over {kib(decisions.MAX_SHOWN_BYTES)} cut, up to about {kib(decisions.MAX_SHOWN_TOTAL_BYTES)} |",
        ),
        ("Large values", f"a step's output over {kib(messages.MAX_INLINE_OUTPUT_BYTES)} "),
        ("Large values", f"an execution's output over {kib(messages.MAX_INLINE_OUTPUT_BYTES)} "),
        ("Large values", f"in parts of up to {kib(messages.MAX_DECLARED_BYTES)} "),
        ("Large values", f"a mapped input over {kib(messages.MAX_CALL_INPUT_BYTES)} "),
        ("Large values", f"an execution's input over {kib(messages.MAX_PAYLOAD_BYTES)} "),
        ("Large values", f"anything over {kib(MAX_VALUE_BYTES)} "),
        ("What happens when", f"{seconds(HEARTBEAT_TIMEOUT)} s after its last heartbeat"),
        ("What happens when", f"the write is repeated for {seconds(WRITE_PATIENCE)} s"),
        ("What happens when", f"have {seconds(WORKER_GRACE)} s to end ({seconds(EMBEDDED_GRACE)} s in an embedded"),
        ("What happens when", f"a read later than {seconds(START_GRACE)} s after acceptance"),
        ("Workers in production", f"and {WORKFLOW_TASKS} workflow tasks"),
        ("Limits", f"| steps of a workflow | {validation.MAX_STEPS:,} |"),
        ("Limits", f"| items of a `foreach` | {flow_rules.MAX_ITEMS:,} |"),
        ("Limits", f"| a `wait` | {flow_rules.MAX_WAIT_SECONDS // 86400} days |"),
        ("Limits", f"up to 1,000; an id of up to {following.MAX_ID_CHARS} characters |"),
        ("Limits", f"| children of children | {children.MAX_CHILD_DEPTH} deep |"),
        ("Limits", f"| a gate's question | {gates.MAX_QUESTION_CHARS:,} characters |"),
        ("Limits", f"| who does it (`by`) | {gates.MAX_BY_CHARS} characters |"),
        ("Limits", f"| a definition | {kib(validation.MAX_DEFINITION_BYTES)} of JSON |"),
        ("Limits", f"| {kib(MAX_VALUE_BYTES)}, {MAX_DEPTH} levels |"),
        ("Limits", f"| an agent's `config` | {kib(MAX_CONFIG_BYTES)} |"),
        ("Limits", f"| pending calls of one execution | {progress.MAX_PENDING_CALLS} |"),
        ("Limits", f"| {MAX_LIMIT:,} items, {DEFAULT_LIMIT} by default |"),
    ],
)
def test_a_figure_is_that_of_the_code(heading: str, text: str):
    assert text in section(heading).replace("\n", " ")


def test_events_are_those_that_the_code_makes():
    """A type is written as a literal, but for the three ends of an execution; adapters make none."""
    made = {f"execution.{status}" for status in ExecutionStatus if status.is_terminal}
    parts = ("engine", "activities", "workflows")
    sources = [path for part in parts for path in (CHECKOUT / part).rglob("*.py") if "adapters" not in path.parts]
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str(text)) if re.fullmatch(
                    r"(execution|step|agent|handoff|gate)\.[a-z_]+|budget\.exceeded", text
                ):
                    made.add(text)
                case _:
                    pass
    assert sorted(names(table("Events", "type"), "type")) == sorted(made)


def test_what_is_not_retried_is_said_of_each_reason():
    said = {row["reason"].strip("`"): row["retried"].partition(",")[0] for row in table("Failure reasons", "reason")}
    assert said == {str(reason): "no" if reason in NON_RETRYABLE_REASONS else "yes" for reason in FailureReason}


def test_fields_are_those_of_the_models():
    described = [rows for rows in tables(section("Definitions")) if "field" in rows[0]]
    models = (WorkflowDefinition, Step, RetryPolicySpec, ForEach, RepeatUntil, Approval, Wait, Compensation, Budget)
    for rows, model in zip(described, models, strict=True):
        fields = [field.alias or name for name, field in model.model_fields.items()]
        assert sorted(names(rows, "field")) == sorted(fields)
    kinds = {row["kind"].strip("`"): row["config"] for row in table("Agents", "kind")}
    for kind, model in {"python": PythonConfig, "http": HttpConfig, "llm": LlmConfig}.items():
        shown = [name.partition(":")[0] for name in re.findall(r"`([^`]+)`", kinds[kind])]
        assert sorted(shown) == sorted(set(model.model_fields) - {"kind"})
    call = [name.partition("(")[0] for name in names(table("Python", "`call.`"), "`call.`")]
    assert sorted(call) == sorted(name for name in vars(AgentCall) if not name.startswith("_"))


def test_a_type_of_step_has_the_fields_that_the_guide_says():
    for row in table("Definitions", "type"):
        kind = row["type"].strip("`")
        assert row["needs"].strip("`") == NEEDED_FIELDS[kind]
        counting = [name for name, kinds in FIELD_TYPES.items() if kind in kinds and name != NEEDED_FIELDS[kind]]
        assert sorted(re.findall(r"`([^`]+)`", row["may have"])) == sorted(counting)


def values_of(heading: str) -> RootsScope:
    return RootsScope(json.loads(blocks("json", section(heading))[0]))


@pytest.mark.parametrize("row", table("Expressions", "template"), ids=lambda row: row["template"])
def test_a_template_gives_what_the_guide_says(row: dict[str, str]):
    template = compile_template(json.loads(row["template"].strip("`")))
    if row["gives"] == "fails":
        with pytest.raises(MissingPathError):
            template.resolve(values_of("Expressions"))
    else:
        assert json.dumps(template.resolve(values_of("Expressions"))) == row["gives"].strip("`")


@pytest.mark.parametrize("row", table("Conditions", "condition"), ids=lambda row: row["condition"])
def test_a_condition_holds_as_the_guide_says(row: dict[str, str]):
    condition = parse_condition(row["condition"].strip("`"), roots=HANDOFF_ROOTS)
    assert condition.evaluate(values_of("Conditions")) is {"yes": True, "no": False}[row["holds"]]


def test_definitions_are_valid_without_a_warning():
    found = blocks("yaml", GUIDE)
    assert found
    for text in found:
        assert validation.parse_definition(yaml.safe_load(text)).issues == []


def test_the_settings_file_is_right_in_each_profile(tmp_path: Path):
    (tmp_path / "baton.toml").write_text(blocks("toml", section("Settings"))[0], encoding="utf-8")
    for profile in ("default", "production"):
        settings = EngineSettings.load({}, profile=profile, environ={}, cwd=tmp_path)
        assert settings.agent_modules == ("my_agents",)


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def options_of(command: click.Command) -> set[str]:
    """An option by its longest name; ``-o`` is told of once for all."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {max(option.opts, key=len) for option in options} - {"--output"}


def test_the_command_line_has_every_command_with_its_options():
    rows = {
        re.sub(r" [\[A-Z].*", "", row["command"].strip("`")): row["options"] for row in table("Command line", "command")
    }
    found = dict(commands(baton))
    assert sorted(rows) == sorted(found)
    for name, command in found.items():
        assert set(re.findall(r"`([^`]+)`", rows[name])) == options_of(command), name


def test_commands_are_written_as_they_are_read():
    lines = [line for block in blocks("sh", GUIDE) for line in block.splitlines() if line.startswith("./baton ")]
    assert lines
    for line in lines:
        command, context, words = baton, None, shlex.split(line)[1:]
        while True:
            context = command.make_context(command.name, words, parent=context)
            if not isinstance(command, click.Group):
                break
            rest = [*context._protected_args, *context.args]  # pyright: ignore[reportPrivateUsage] - as click's own invoke
            _, found, words = command.resolve_command(context, rest)
            assert found is not None
            command = found


@pytest.mark.parametrize("page", ["guide.md", "answers.md"])
def test_links_lead_somewhere(page: str):
    assert broken_links(page) == []


SCRIPTS = scripts(GUIDE)


def test_each_python_block_is_a_script_or_read_by_one():
    found = {name: text for name, text in files(GUIDE).items() if name.endswith(".py")}
    run = "\n".join(found[name] for name in SCRIPTS)
    assert SCRIPTS
    for name in found:
        assert name in SCRIPTS or name.removesuffix(".py") in run


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_prints_what_the_guide_says(name: str, dev_server: DevServerLease, tmp_path: Path):
    settings = {
        "BATON_TEMPORAL_ADDRESS": dev_server.address,
        "BATON_WORKER": "embedded",
        "BATON_TASK_QUEUE": f"guide-{name}-{os.getpid()}",
    }
    printed = await run_script(GUIDE, name, tmp_path, settings)
    script = SCRIPTS[name]
    assert (printed[-len(script.printed) :] if script.is_end else printed) == script.printed
