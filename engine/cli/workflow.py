"""`baton workflow`: definitions, from files in YAML or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import Invocation, issue_line, output_option
from engine.cli.printing import (
    USE_COLUMNS,
    instant,
    note,
    part,
    print_answer,
    print_fields,
    print_page,
    print_table,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from engine.domain.json import JsonObject
    from engine.facade import WorkflowEngine

_DEFINITION = "a workflow definition"


@click.group()
def workflow() -> None:
    """Create, read, change and check workflows."""


@workflow.command()
@click.argument("file", metavar="FILE")
@click.option("--id", "workflow_id", help="The id instead of one made of the name.")
@output_option
@click.pass_obj
def create(invocation: Invocation, file: str, workflow_id: str | None) -> None:
    """Store a new workflow from FILE (YAML or JSON; - reads standard input)."""
    from engine.cli.reading import read_object

    definition = read_object(file, _DEFINITION)

    async def use(engine: WorkflowEngine) -> dict[str, object]:
        created = await create_checked(engine, definition, workflow_id)
        stored = await engine.get_workflow(created)
        return {"workflow_id": created, "version": stored["version"]}

    answer = invocation.call(use)
    print_answer(answer, invocation.output, lambda: print_fields(answer))


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--version", type=int, help="An older version instead of the newest.")
@output_option
@click.pass_obj
def get(invocation: Invocation, workflow_id: str, version: int | None) -> None:
    """Show the workflow ID."""
    found = invocation.call(lambda engine: engine.get_workflow(workflow_id, version=version))
    print_answer(found, invocation.output, lambda: _print_workflow(cast("Mapping[str, object]", found)))


@workflow.command("list")
@click.option("--tag", "tags", multiple=True, help="Only those with this tag; repeatable.")
@click.option("--status", default="active", show_default=True)
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def list_(invocation: Invocation, tags: tuple[str, ...], status: str, limit: int, cursor: str | None) -> None:
    """List workflows."""
    page = invocation.call(
        lambda engine: engine.list_workflows(
            tags=list(tags) if tags else None, status=status, limit=limit, cursor=cursor
        )
    )
    print_page(
        cast("Mapping[str, object]", page),
        invocation.output,
        {
            "WORKFLOW": lambda item: item.get("workflow_id"),
            "VERSION": lambda item: item.get("version"),
            "STEPS": lambda item: item.get("step_count"),
            "UPDATED (UTC)": lambda item: instant(item.get("updated_at")),
            "NAME": lambda item: item.get("name"),
        },
    )


@workflow.command()
@click.option("--agent", "agent_id", metavar="ID", required=True, help="The agent that they use.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def find(invocation: Invocation, agent_id: str, limit: int, cursor: str | None) -> None:
    """Find the workflows that use an agent: in a step, as a fallback or by a handoff."""
    page = invocation.call(lambda engine: engine.find_workflows(agent_id=agent_id, limit=limit, cursor=cursor))
    print_page(cast("Mapping[str, object]", page), invocation.output, USE_COLUMNS)


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@click.argument("file", metavar="[FILE]", required=False)
@click.option("-i", "pairs", multiple=True, metavar="KEY=VALUE", help="A field to change; repeatable.")
@output_option
@click.pass_obj
def update(invocation: Invocation, workflow_id: str, file: str | None, pairs: tuple[str, ...]) -> None:
    """Make a new version of the workflow ID: FILE is the whole of it, -i name=... changes one field."""
    from engine.cli.reading import merge_pairs, read_object

    if file is None and not pairs:
        raise click.UsageError("Give a FILE, or fields such as -i name='A better name'.")
    content = merge_pairs(read_object(file, _DEFINITION) if file else {}, pairs)

    async def use(engine: WorkflowEngine) -> dict[str, object]:
        if file is None:
            await engine.update_workflow(workflow_id=workflow_id, updates=content)
        else:
            await replace_checked(engine, workflow_id, content)
        stored = await engine.get_workflow(workflow_id)
        return {"workflow_id": workflow_id, "version": stored["version"]}

    answer = invocation.call(use)
    print_answer(answer, invocation.output, lambda: print_fields(answer))


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@output_option
@click.pass_obj
def delete(invocation: Invocation, workflow_id: str) -> None:
    """Archive the workflow ID: nothing new can be started, what runs ends as it would."""
    invocation.call(lambda engine: engine.delete_workflow(workflow_id))
    answer = {"workflow_id": workflow_id, "deleted": True}
    print_answer(answer, invocation.output, lambda: print_fields(answer))


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--from", "from_version", type=int, metavar="N", help="The older version; by default the one before.")
@click.option("--to", "to_version", type=int, metavar="M", help="The newer version; by default the newest.")
@output_option
@click.pass_obj
def diff(invocation: Invocation, workflow_id: str, from_version: int | None, to_version: int | None) -> None:
    """Show what changed between two versions of the workflow ID, and which open executions run an old one."""
    found = invocation.call(lambda engine: engine.diff_workflow(workflow_id, from_version, to_version))
    print_answer(found, invocation.output, lambda: _print_diff(cast("Mapping[str, object]", found)))


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--format", "graph_format", type=click.Choice(["text", "mermaid"]), default="text", show_default=True)
@click.option("--execution", "execution_id", metavar="ID", help="Show where the steps of this execution stand.")
@click.option("--version", type=int, help="An older version instead of the newest.")
@output_option
@click.pass_obj
def graph(
    invocation: Invocation, workflow_id: str, graph_format: str, execution_id: str | None, version: int | None
) -> None:
    """Draw the steps of the workflow ID, in the order in which they run."""
    drawn = invocation.call(lambda engine: engine.workflow_graph(workflow_id, graph_format, execution_id, version))
    answer = {"workflow_id": workflow_id, "format": graph_format, "graph": drawn}
    print_answer(answer, invocation.output, lambda: click.echo(drawn))


@workflow.command()
@click.argument("file", metavar="FILE")
@output_option
@click.pass_context
def validate(ctx: click.Context, file: str) -> None:
    """Check the definition in FILE and store nothing; exits 2 when it is invalid."""
    from engine.cli.reading import read_object

    invocation = ctx.ensure_object(Invocation)
    definition = read_object(file, _DEFINITION)
    report = invocation.call(lambda engine: engine.validate_workflow(definition))

    def render() -> None:
        for issue in report["issues"]:
            click.echo(issue_line(cast("Mapping[str, object]", issue)))
        click.echo("valid" if report["valid"] else "invalid")

    print_answer(report, invocation.output, render)
    if not report["valid"]:
        ctx.exit(2)


async def create_checked(engine: WorkflowEngine, definition: JsonObject, workflow_id: str | None = None) -> str:
    """Create a workflow from a file's content, whose keys nobody has checked yet, and return its id.

    Raises:
        InvalidInputError: with all issues in ``details.issues``; warnings are notes.
    """
    await _check(engine, definition)
    create_workflow = cast("Callable[..., Awaitable[str]]", engine.create_workflow)
    return await create_workflow(**definition, **({"workflow_id": workflow_id} if workflow_id else {}))


async def replace_checked(engine: WorkflowEngine, workflow_id: str, definition: JsonObject) -> None:
    """Make a file's content the whole of a stored workflow: a field that is not in the file is removed.

    Raises:
        InvalidInputError: with all issues in ``details.issues``; warnings are notes.
    """
    from engine.domain.definition import WorkflowDefinition

    await _check(engine, definition)
    stored = cast("Mapping[str, object]", await engine.get_workflow(workflow_id))
    removed: JsonObject = {key: None for key in WorkflowDefinition.model_fields if key in stored}
    await engine.update_workflow(workflow_id=workflow_id, updates=removed | definition)


async def _check(engine: WorkflowEngine, definition: JsonObject) -> None:
    from engine.errors import InvalidInputError

    report = await engine.validate_workflow(definition)
    if not report["valid"]:
        raise InvalidInputError(
            "The workflow definition is invalid; correct what is listed.", {"issues": list(report["issues"])}
        )
    for issue in report["issues"]:
        note(issue_line(cast("Mapping[str, object]", issue)))


def _print_diff(found: Mapping[str, object]) -> None:
    click.echo(f"{found['workflow_id']}: version {found['from_version']} to {found['to_version']}")
    changes = cast("list[Mapping[str, object]]", found["changes"])
    if changes:
        print_table(
            ["CHANGE", "PATH", "VALUE"],
            [[str(change["kind"]), str(change["path"]), _change_text(change)] for change in changes],
        )
    else:
        click.echo("nothing changed")
    pinned = part(found, "pinned")
    executions = cast("list[Mapping[str, object]]", pinned.get("executions") or [])
    if executions:
        click.echo()
        print_table(
            ["OPEN EXECUTION", "VERSION", "STATUS"],
            [[shown(item.get(key)) for key in ("execution_id", "version", "status")] for item in executions],
        )
    if pinned.get("more"):
        note("more open executions may run an older version")


def _change_text(change: Mapping[str, object]) -> str:
    before, after = (json.dumps(change[key], ensure_ascii=False) for key in ("before", "after"))
    match change["kind"]:
        case "added":
            return after
        case "removed":
            return before
        case _:
            return f"{before} -> {after}"


def _print_workflow(found: Mapping[str, object]) -> None:
    print_fields(
        {
            "workflow": found.get("workflow_id"),
            "name": found.get("name"),
            "version": found.get("version"),
            "status": found.get("status"),
            "description": found.get("description"),
            "tags": found.get("tags"),
            "metadata": found.get("metadata"),
            "updated": instant(found.get("updated_at")),
        }
    )
    steps = cast("list[Mapping[str, object]]", found.get("steps") or [])
    click.echo()
    print_table(
        ["STEP", "AGENT", "AFTER", "NAME"],
        [
            [
                shown(step.get("id")),
                shown(step.get("agent_id") or step.get("type")),
                shown(step.get("depends_on")),
                shown(step.get("name")),
            ]
            for step in steps
        ],
    )
