"""`baton repair` and `baton verify`: the records and live state of executions against Temporal, on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import ExitCode, Invocation, output_option
from engine.cli.printing import note, print_answer, print_table, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rows = Sequence[Mapping[str, object]]

_NOT_COMPARED = "live state does not answer and was not compared; see baton doctor"


@click.command()
@click.argument("execution_id", metavar="[ID]", required=False)
@output_option
@click.pass_obj
def repair(invocation: Invocation, execution_id: str | None) -> None:
    """Make the records and live state of the execution ID, or of all, say what Temporal says.

    Workers do that by themselves every five seconds; this is for when none has run for a while.
    """
    answer = invocation.call(lambda engine: engine.repair_executions(execution_id))
    print_answer(answer, invocation.output, lambda: _print_repairs(cast("Mapping[str, object]", answer)))
    if not answer["live_state"]:
        note(_NOT_COMPARED)


@click.command()
@output_option
@click.pass_context
def verify(ctx: click.Context) -> None:
    """Compare all executions with Temporal and print what differs; exits 1 when something does."""
    invocation = ctx.ensure_object(Invocation)
    answer = invocation.call(lambda engine: engine.verify_executions())
    print_answer(answer, invocation.output, lambda: _print_drift(answer["drift"], answer["checked"]))
    if not answer["live_state"]:
        note(_NOT_COMPARED)
    if answer["drift"]:
        ctx.exit(ExitCode.EXECUTION_FAILED)


def _print_repairs(answer: Mapping[str, object]) -> None:
    repaired = cast("Rows", answer["repaired"])
    left = cast("Rows", answer["left"])
    if repaired:
        print_table(
            ["EXECUTION", "REPAIRED", "BEFORE", "AFTER"],
            [
                [shown(row["execution_id"]), shown(row["what"]).replace("_", " "), *_statuses(row, "before", "after")]
                for row in repaired
            ],
        )
    if left:
        note("not repaired:")
        _print_drift(left, answer["checked"])
    if not repaired and not left:
        note(f"nothing to repair in {shown(answer['checked'])} executions")


def _print_drift(drift: Rows, checked: object) -> None:
    if not drift:
        note(f"no drift in {shown(checked)} executions")
        return
    print_table(
        ["EXECUTION", "RECORD", "TEMPORAL", "LIVE", "WRONG"],
        [
            [shown(row["execution_id"]), *_statuses(row, "record", "temporal", "live"), shown(row["text"])]
            for row in drift
        ],
    )


def _statuses(row: Mapping[str, object], *names: str) -> list[str]:
    return [shown(row[name]) or "-" for name in names]
