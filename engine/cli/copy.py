"""`baton copy`: from the embedded stores to the configured ones, or back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, cast

import click

from engine.cli.invocation import Invocation, output_option, quiet_drivers
from engine.cli.printing import note, print_answer, print_table

if TYPE_CHECKING:
    from engine.services.copying import CopyReport, Kind
    from engine.settings import EngineSettings

_SIDES = click.Choice(["embedded", "configured"])


@click.command()
@click.option("--from", "source", type=_SIDES, required=True, help="Where to read: data_dir, or the configured stores.")
@click.option("--to", "target", type=_SIDES, required=True, help="Where to write.")
@output_option
@click.pass_obj
def copy(
    invocation: Invocation,
    source: Literal["embedded", "configured"],
    target: Literal["embedded", "configured"],
) -> None:
    """Carry workflows, agents, handoffs and finished executions over to other stores, as they are.

    neo4j_uri decides on workflows, agents and handoffs, mongo_uri on executions with their steps and artifacts. What is
    there already is not written again, so an interrupted copy is gone on with by the same command. Open executions
    stay where they are and are named.
    """
    import asyncio

    from engine.observability import open_logging

    if source == target:
        raise click.UsageError("--from and --to must differ: one is embedded, the other configured.")
    settings = invocation.settings()
    log = open_logging(settings.log_level if "log_level" in settings.model_fields_set else "WARNING", "text")
    try:
        with quiet_drivers():
            report = asyncio.run(_copy(settings, source))
    finally:
        log.close()
    print_answer(_answer(report), invocation.output, lambda: _print_report(report, source, target))


async def _copy(settings: EngineSettings, source: Literal["embedded", "configured"]) -> CopyReport:
    from asyncio import CancelledError

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from engine.bootstrap import open_copy

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    async with open_copy(settings, source) as service:
        counts = await service.count()
        with bars:
            tasks = {kind: bars.add_task(kind, total=count) for kind, count in counts.items()}

            def looked_at(kind: Kind) -> None:
                bars.advance(tasks[kind])

            try:
                return await service.copy(looked_at)
            except CancelledError:
                note("stopping; what was copied stays, and the same command goes on from there")
                raise


def _answer(report: CopyReport) -> dict[str, object]:
    return {
        "kinds": {
            kind: {
                "copied": tally.copied,
                "source": tally.source,
                "source_versions": tally.source_versions,
                "target": tally.target,
                "target_versions": tally.target_versions,
            }
            for kind, tally in report.tallies.items()
        },
        "left": [{"kind": left.kind, "id": left.object_id, "reason": left.reason} for left in report.left],
    }


def _print_report(report: CopyReport, source: str, target: str) -> None:
    rows: list[list[str]] = []
    for kind, tally in report.tallies.items():
        rows.append([kind, str(tally.copied), str(tally.source), str(tally.target)])
        if kind in {"workflows", "agents"}:
            rows.append([f"{kind}' versions", "", str(tally.source_versions), str(tally.target_versions)])
    print_table(["KIND", "COPIED", source.upper(), target.upper()], rows)
    if report.left:
        click.echo()
        print_table(
            ["LEFT ALONE", "ID", "WHY"],
            [[cast("str", left.kind).removesuffix("s"), left.object_id, left.reason] for left in report.left],
        )
    if not any(tally.copied for tally in report.tallies.values()):
        note("nothing was copied: all that could be is there already")
