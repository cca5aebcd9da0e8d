"""`baton gate`: the questions that executions wait with, and the answers of people."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import Invocation, by_option, output_option
from engine.cli.printing import instant, print_answer, print_fields, print_page, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine import types
    from engine.facade import WorkflowEngine

_APPROVE, _REJECT = "approve", "reject"


@click.group()
def gate() -> None:
    """List the open gates of executions and answer them."""


@gate.command("list")
@click.option("--execution", "execution_id", metavar="ID", help="Only those of this execution.")
@click.option("--workflow", "workflow_id", metavar="ID", help="Only those of this workflow's executions.")
@click.option("--assignee", metavar="NAME", help="Only those that are for this one.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def list_(
    invocation: Invocation,
    execution_id: str | None,
    workflow_id: str | None,
    assignee: str | None,
    limit: int,
    cursor: str | None,
) -> None:
    """List open gates, the oldest first."""
    page = invocation.call(lambda engine: engine.list_gates(execution_id, workflow_id, assignee, limit, cursor))
    print_page(
        cast("Mapping[str, object]", page),
        invocation.output,
        {
            "EXECUTION": lambda item: item.get("execution_id"),
            "GATE": lambda item: item.get("gate_id"),
            "SINCE (UTC)": lambda item: instant(item.get("opened_at")),
            "UNTIL (UTC)": lambda item: instant(item.get("expires_at")),
            "ANSWERS": lambda item: item.get("allowed"),
            "QUESTION": lambda item: item.get("question"),
        },
    )


@gate.command()
@click.argument("execution_id", metavar="EXECUTION")
@click.argument("gate_id", metavar="GATE")
@output_option
@click.pass_obj
def show(invocation: Invocation, execution_id: str, gate_id: str) -> None:
    """Show the gate GATE of the execution EXECUTION, open or answered."""
    found = cast("Mapping[str, object]", invocation.call(lambda engine: engine.get_gate(execution_id, gate_id)))
    times = {key: instant(found.get(key)) for key in ("opened_at", "expires_at", "at")}
    print_answer(found, invocation.output, lambda: print_fields({**found, **times}))


def _answering(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every answer."""
    for option in (
        output_option,
        click.option("--data", "data_text", metavar="@FILE|-|JSON", help="What goes with the answer."),
        by_option,
    ):
        command = option(command)
    return command


@gate.command("answer")
@click.argument("execution_id", metavar="EXECUTION")
@click.argument("gate_id", metavar="GATE")
@click.argument("answer", metavar="ANSWER")
@_answering
@click.pass_obj
def answer_(
    invocation: Invocation, execution_id: str, gate_id: str, answer: str, by: str | None, data_text: str | None
) -> None:
    """Answer the gate GATE of the execution EXECUTION with ANSWER, one of those that it takes."""
    _answer(invocation, execution_id, gate_id, answer, by, data_text)


@gate.command()
@click.argument("execution_id", metavar="EXECUTION")
@click.argument("gate_id", metavar="[GATE]", required=False)
@_answering
@click.pass_obj
def approve(
    invocation: Invocation, execution_id: str, gate_id: str | None, by: str | None, data_text: str | None
) -> None:
    """Answer approve; GATE can be left out when only one open gate of EXECUTION takes that."""
    _answer(invocation, execution_id, gate_id, _APPROVE, by, data_text)


@gate.command()
@click.argument("execution_id", metavar="EXECUTION")
@click.argument("gate_id", metavar="[GATE]", required=False)
@_answering
@click.pass_obj
def reject(
    invocation: Invocation, execution_id: str, gate_id: str | None, by: str | None, data_text: str | None
) -> None:
    """Answer reject; GATE can be left out when only one open gate of EXECUTION takes that."""
    _answer(invocation, execution_id, gate_id, _REJECT, by, data_text)


def _answer(
    invocation: Invocation, execution_id: str, gate_id: str | None, answer: str, by: str | None, data_text: str | None
) -> None:
    from engine.cli.reading import read_value

    data = None if data_text is None else read_value(data_text, "--data")

    async def use(engine: WorkflowEngine) -> types.GateAnswer:
        chosen = gate_id or await _only_gate(engine, execution_id, answer)
        return await engine.answer_gate(execution_id, chosen, answer, by, data)

    answered = invocation.call(use)
    told = cast("Mapping[str, object]", {**answered, "at": instant(answered["at"])})
    print_answer(answered, invocation.output, lambda: print_fields(told))


async def _only_gate(engine: WorkflowEngine, execution_id: str, answer: str) -> str:
    from engine.domain.page import MAX_LIMIT
    from engine.errors import InvalidInputError

    open_gates = (await engine.list_gates(execution_id, limit=MAX_LIMIT))["items"]
    fitting = [gate["gate_id"] for gate in open_gates if answer in gate["allowed"]]
    if len(fitting) == 1:
        return fitting[0]
    if not open_gates:
        # An unknown execution is named as such.
        await engine.get_execution_input(execution_id)
    fault = f"{len(fitting)} take {answer}; name one: {shown(fitting)}" if fitting else f"none takes {answer}"
    raise InvalidInputError(
        f"Of the open gates of {execution_id} {fault}", {"path": "gate_id", "execution_id": execution_id}
    )
