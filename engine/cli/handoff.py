"""`baton handoff`: who hands what over to whom, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import Invocation, output_option
from engine.cli.printing import HANDOFF_COLUMNS, note, print_answer, print_fields, print_json, print_page, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.group()
def handoff() -> None:
    """Create and read handoffs."""


@handoff.command()
@click.argument("source_agent_id", metavar="SOURCE")
@click.argument("target_agent_id", metavar="TARGET")
@click.option(
    "--type",
    "handoff_type",
    type=click.Choice(["sequential", "parallel", "escalation"]),
    default="sequential",
    show_default=True,
)
@click.option("--map", "pairs", multiple=True, metavar="KEY=INPUT", help="Source's output key to target's input key.")
@click.option("--when", "conditions", multiple=True, help="A trigger: completion, or an expression; repeatable.")
@click.option("--workflow", "workflow_id", metavar="ID", help="Only in this workflow.")
@output_option
@click.pass_obj
def create(
    invocation: Invocation,
    source_agent_id: str,
    target_agent_id: str,
    handoff_type: str,
    pairs: tuple[str, ...],
    conditions: tuple[str, ...],
    workflow_id: str | None,
) -> None:
    """Hand over from the agent SOURCE to the agent TARGET."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        key, equals, name = pair.partition("=")
        if not (key and equals and name):
            raise click.UsageError(f"--map takes KEY=INPUT, not {pair!r}.")
        mapping[key] = name
    handoff_id = invocation.call(
        lambda engine: engine.create_handoff(
            source_agent_id=source_agent_id,
            target_agent_id=target_agent_id,
            handoff_type=handoff_type,
            data_mapping=mapping,
            trigger_conditions=list(conditions),
            workflow_id=workflow_id,
        )
    )
    answer = {"handoff_id": handoff_id}
    print_answer(answer, invocation.output, lambda: click.echo(handoff_id))


@handoff.command()
@click.argument("handoff_id", metavar="ID")
@output_option
@click.pass_obj
def get(invocation: Invocation, handoff_id: str) -> None:
    """Show the handoff ID."""
    found = cast("Mapping[str, object]", invocation.call(lambda engine: engine.get_handoff(handoff_id)))
    print_answer(found, invocation.output, lambda: print_fields(found))


@handoff.command("list")
@click.option("--source", "source_agent_id", metavar="ID", help="Only those of this agent.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def list_(invocation: Invocation, source_agent_id: str | None, limit: int, cursor: str | None) -> None:
    """List handoffs."""
    page = invocation.call(
        lambda engine: engine.list_handoffs(source_agent_id=source_agent_id, limit=limit, cursor=cursor)
    )
    print_page(cast("Mapping[str, object]", page), invocation.output, HANDOFF_COLUMNS)


@handoff.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--max-hops", type=int, default=6, show_default=True, help="Most handoffs in a path.")
@output_option
@click.pass_obj
def paths(invocation: Invocation, source: str, target: str, max_hops: int) -> None:
    """Show the ways from the agent SOURCE to the agent TARGET along handoffs, shortest first."""
    found = invocation.call(lambda engine: engine.handoff_paths(source, target, max_hops))
    if invocation.output == "jsonl":
        for path in found:
            print_json(path, "jsonl")
    elif invocation.output == "json":
        print_json(found, "json")
    elif found:
        print_table(["HOPS", "PATH"], [[str(len(path) - 1), " > ".join(path)] for path in found])
    else:
        note("none")
