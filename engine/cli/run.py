"""`baton run`: from a file or an id to a result in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import output_option
from engine.cli.printing import note
from engine.cli.starting import start_and_show
from engine.cli.workflow import create_checked, replace_checked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.domain.json import JsonObject
    from engine.facade import WorkflowEngine

_FILE_SUFFIXES = (".yaml", ".yml", ".json")


@click.command()
@click.argument("target", metavar="FILE|ID")
@click.option("-i", "pairs", multiple=True, metavar="KEY=VALUE", help="A key of the input; a.b=1 sets an inner one.")
@click.option("--input", "input_text", metavar="@FILE|-|JSON", help="The whole input; -i wins over its keys.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]))
@click.option("--timeout", type=float, metavar="SECONDS", help="Deadline of the execution.")
@click.option("--idempotency-key", metavar="KEY", help="The same key and input never start a second execution.")
@click.option("--tag", "tags", multiple=True, help="A tag of the execution; repeatable.")
@click.option("--version", type=int, help="An older version of the workflow.")
@click.option("--watch", is_flag=True, help="Show each step on stderr and wait for the end.")
@output_option
@click.pass_context
def run(
    ctx: click.Context,
    target: str,
    pairs: tuple[str, ...],
    input_text: str | None,
    watch: bool,  # noqa: FBT001 - click passes options by name
    tags: tuple[str, ...],
    **options: object,
) -> None:
    """Run the workflow in FILE (stored first, under the id of its name) or the stored one ID.

    With a worker of its own (no Temporal address configured) it waits for the end, because the execution would
    stand still without this process. With workers elsewhere it returns after the start unless --watch is given.
    Exits 1 when the execution failed or was cancelled.
    """
    from engine.cli.reading import read_input, read_object

    definition = read_object(target, "a workflow definition") if _is_file(target) else None
    input_data = read_input(input_text, pairs)
    given = {name: value for name, value in options.items() if value is not None} | (
        {"tags": list(tags)} if tags else {}
    )

    async def start(engine: WorkflowEngine) -> Mapping[str, object]:
        workflow_id = target if definition is None else await store(engine, definition)
        execution = await engine.execute_workflow(
            workflow_id=workflow_id, input_data=input_data, execution_options=cast("JsonObject", given)
        )
        return cast("Mapping[str, object]", execution)

    start_and_show(ctx, start, watch=watch)


def _is_file(target: str) -> bool:
    return target == "-" or target.endswith(_FILE_SUFFIXES) or "/" in target or Path(target).is_file()


async def store(engine: WorkflowEngine, definition: JsonObject) -> str:
    """Store a file's definition under the slug of its name, created or updated, and return the id.

    Equal content makes no new version, so that running a file twice leaves one.
    """
    from engine.domain.ids import slug
    from engine.errors import DefinitionNotFoundError

    name = definition.get("name")
    workflow_id = slug(name) if isinstance(name, str) else ""
    try:
        before = (await engine.get_workflow(workflow_id))["version"] if workflow_id else None
    except DefinitionNotFoundError:
        before = None
    if before is None:
        workflow_id = await create_checked(engine, definition)
        note(f"created workflow {workflow_id}")
        return workflow_id
    await replace_checked(engine, workflow_id, definition)
    version = (await engine.get_workflow(workflow_id))["version"]
    note(f"{'unchanged' if version == before else 'updated'} workflow {workflow_id}, version {version}")
    return workflow_id
