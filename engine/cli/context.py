"""`baton context`: texts for steps to be reminded of, what a search of them finds, and their vectors made anew."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, cast

import click

from engine.cli.invocation import Invocation, output_option, quiet_drivers
from engine.cli.printing import note, print_answer, print_fields, print_json, print_table, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.domain.json import JsonObject
    from engine.services.reindexing import Reindexed
    from engine.settings import EngineSettings

_SHOWN_CHARS = 400


@click.group()
def context() -> None:
    """Add and search what steps are reminded of."""


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose texts are meant."""
    for option in (
        click.option("--execution", "execution_id", metavar="ID", help="Of this execution."),
        click.option("--agent", "agent_id", metavar="ID", help="Of this agent."),
        click.option("--workflow", "workflow_id", metavar="ID", help="Of this workflow."),
    ):
        command = option(command)
    return command


@context.command()
@click.argument("text", metavar="TEXT")
@_where
@click.option("--metadata", "pairs", multiple=True, metavar="KEY=VALUE", help="Something to filter by; repeatable.")
@output_option
@click.pass_obj
def add(
    invocation: Invocation,
    text: str,
    workflow_id: str | None,
    agent_id: str | None,
    execution_id: str | None,
    pairs: tuple[str, ...],
) -> None:
    """Keep TEXT (- for standard input), to be found under each ID that is given."""
    ids = {"workflow": workflow_id, "agent": agent_id, "execution": execution_id}
    scope = next((name for name, value in ids.items() if value is not None), None)
    if scope is None:
        raise click.UsageError("Give --workflow ID, --agent ID, --execution ID or several of them.")
    metadata = _values("--metadata", pairs)
    given = sys.stdin.read().rstrip("\n") if text == "-" else text
    item_id = invocation.call(
        lambda engine: engine.add_context(
            given,
            scope=scope,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            metadata=metadata,
        )
    )
    print_answer({"item_id": item_id}, invocation.output, lambda: click.echo(item_id))


@context.command()
@click.argument("query", metavar="QUERY")
@_where
@click.option("--top-k", type=int, default=5, show_default=True, help="Most texts, up to 100.")
@click.option(
    "--filter",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only texts with this metadata, or step_id=STEP; repeatable.",
)
@output_option
@click.pass_obj
def search(
    invocation: Invocation,
    query: str,
    workflow_id: str | None,
    agent_id: str | None,
    execution_id: str | None,
    top_k: int,
    pairs: tuple[str, ...],
) -> None:
    """Show the texts nearest to QUERY, best first; of all IDs that are given, or of everything."""
    wanted = _values("--filter", pairs)
    found = invocation.call(
        lambda engine: engine.search_context(
            query,
            workflow_id=workflow_id,
            agent_id=agent_id,
            execution_id=execution_id,
            top_k=top_k,
            filter=wanted,
        )
    )
    if invocation.output == "jsonl":
        for match in found:
            print_json(match, "jsonl")
    elif invocation.output == "json":
        print_json(found, "json")
    elif found:
        rows = [cast("Mapping[str, object]", match) for match in found]
        print_table(["SCORE", "SOURCE", "TEXT"], [_row(row) for row in rows])
    else:
        note("none")


@context.command()
@output_option
@click.pass_obj
def reindex(invocation: Invocation) -> None:
    """Make all vectors anew: after they were lost, or for another embedder.

    Completed steps that have left no text get theirs from the step records. Nothing else changes, and what was
    interrupted is run again from the start. Until it ends a search may find less, or say that a reindex has begun.
    """
    import asyncio

    from engine.observability import open_logging

    settings = invocation.settings()
    log = open_logging(settings.log_level if "log_level" in settings.model_fields_set else "WARNING", "text")
    try:
        with quiet_drivers():
            report = asyncio.run(_reindex(settings))
    finally:
        log.close()
    answer = {
        "items": report.items,
        "made": report.made,
        "executions": report.executions,
        "left": report.left,
    }
    print_answer(answer, invocation.output, lambda: print_fields({name: str(count) for name, count in answer.items()}))


async def _reindex(settings: EngineSettings) -> Reindexed:
    from asyncio import CancelledError
    from contextlib import aclosing

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.bootstrap import EngineSession

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    async with aclosing(EngineSession(settings)) as session:
        with bars:
            tasks = {name: bars.add_task(name, total=None) for name in ("executions", "items")}

            def tell(what: Literal["executions", "items"], done: int, total: int | None) -> None:
                bars.update(tasks[what], completed=done, total=total)

            try:
                return await session.context.reindex(tell)
            except CancelledError:
                note("stopping; run the same command again, because nothing is whole before it has ended")
                raise


def _row(match: Mapping[str, object]) -> list[str]:
    source = cast("Mapping[str, object]", match["source"])
    ids = [shown(source[name]) for name in ("execution_id", "step_id", "agent_id") if source[name] is not None]
    text = shown(match["text"])
    cut = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"
    return [f"{cast('float', match['score']):.3f}", " ".join(ids) or "-", cut]


def _values(option: str, pairs: tuple[str, ...]) -> JsonObject:
    """Return keys and values of an option; a value is JSON where it is JSON, else text."""
    from engine.cli.reading import merge_pairs

    values: JsonObject = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{option} takes KEY=VALUE, not {pair!r}.")
        values[key] = merge_pairs({}, [f"value={text}"])["value"]
    return values
