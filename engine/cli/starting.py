"""How a command starts an execution and, where nobody else would run it, stays for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engine.cli.execution import show_result
from engine.cli.invocation import Invocation
from engine.cli.printing import note, part, print_answer, print_fields, shown
from engine.cli.watching import follow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import click

    from engine.facade import WorkflowEngine

    Start = Callable[[WorkflowEngine], Awaitable[Mapping[str, object]]]


def start_and_show(ctx: click.Context, start: Start, *, watch: bool) -> None:
    """Start an execution and write what became of it.

    With a worker of this process it waits for the end, because the execution would stand still without the process.
    With workers elsewhere it returns after the start unless ``watch`` is given.

    Args:
        ctx: of the command; it ends with exit code 1 when the execution failed or was cancelled.
        start: starts it and returns the answer to that.
        watch: whether to show each step on stderr and wait for the end.
    """
    invocation = ctx.ensure_object(Invocation)
    waits = watch or invocation.settings().worker == "embedded"
    started: list[str] = []

    async def use(engine: WorkflowEngine) -> Mapping[str, object]:
        execution = await start(engine)
        started.append(str(execution["execution_id"]))
        _note_start(execution)
        return await follow(engine, started[0], quiet=not watch) if waits else execution

    try:
        answer = invocation.call(use)
    except KeyboardInterrupt:
        if started:
            note(
                f"{started[0]} is kept: a worker (`baton dev` or `baton worker`) goes on with it, "
                f"`baton execution cancel {started[0]}` ends it."
            )
        raise
    if waits:
        show_result(ctx, answer)
    else:
        told = {"execution": answer["execution_id"], "status": answer["status"]}
        print_answer(answer, invocation.output, lambda: print_fields(told))


def _note_start(execution: Mapping[str, object]) -> None:
    note(f"started {execution['execution_id']}")
    if "reused" in execution:
        note(f"runs again: {shown(execution['rerun']) or '-'}; keeps: {shown(execution['reused']) or '-'}")
    for warning in cast("list[Mapping[str, object]]", execution.get("warnings") or []):
        note(f"warning: {shown(warning.get('message'))}")
    ui_url = part(execution, "temporal").get("ui_url")
    if ui_url:
        note(f"Temporal UI: {ui_url}")
