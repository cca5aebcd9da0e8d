"""`baton execution`: what runs and what ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import ExitCode, Invocation, output_option
from engine.cli.printing import instant, part, print_answer, print_fields, print_page, shown
from engine.cli.watching import follow, print_result, print_steps

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.group()
def execution() -> None:
    """Follow, list and cancel executions."""


@execution.command()
@click.argument("execution_id", metavar="ID")
@output_option
@click.pass_obj
def status(invocation: Invocation, execution_id: str) -> None:
    """Show where the execution ID stands."""
    answer = invocation.call(lambda engine: engine.get_execution_status(execution_id))
    print_answer(answer, invocation.output, lambda: _print_status(cast("Mapping[str, object]", answer)))


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option("--wait", type=float, default=0, metavar="SECONDS", help="Wait that long for the end.")
@output_option
@click.pass_context
def result(ctx: click.Context, execution_id: str, wait: float) -> None:
    """Show the result of the execution ID; exits 1 when it failed or was cancelled."""
    invocation = ctx.ensure_object(Invocation)
    answer = invocation.call(lambda engine: engine.get_execution_result(execution_id, wait=wait))
    show_result(ctx, cast("Mapping[str, object]", answer))


@execution.command("list")
@click.option("--workflow", "workflow_id", metavar="ID", help="Only those of this workflow.")
@click.option("--status", help="Only those with this status.")
@click.option("--since", "start_time", metavar="INSTANT", help="Only those created then or later (ISO 8601).")
@click.option("--until", "end_time", metavar="INSTANT", help="Only those created before.")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@output_option
@click.pass_obj
def list_(invocation: Invocation, **filters: object) -> None:
    """List executions, the newest first."""
    from collections.abc import Awaitable, Callable

    page = invocation.call(
        lambda engine: cast("Callable[..., Awaitable[Mapping[str, object]]]", engine.list_executions)(**filters)
    )
    print_page(
        page,
        invocation.output,
        {
            "EXECUTION": lambda item: item.get("execution_id"),
            "STATUS": lambda item: item.get("status"),
            "CREATED (UTC)": lambda item: instant(item.get("created_at")),
            "STEPS": lambda item: _progress_text(part(item, "progress")),
        },
    )


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option("--reason", help="Why; kept in the record.")
@output_option
@click.pass_obj
def cancel(invocation: Invocation, execution_id: str, reason: str | None) -> None:
    """Ask the execution ID to stop; one that is over stays as it is."""
    requested = invocation.call(lambda engine: engine.cancel_execution(execution_id, reason=reason))
    answer = {"execution_id": execution_id, "requested": requested}
    text = "cancellation requested" if requested else "already over"
    print_answer(answer, invocation.output, lambda: click.echo(text))


@execution.command()
@click.argument("execution_id", metavar="ID")
@output_option
@click.pass_context
def watch(ctx: click.Context, execution_id: str) -> None:
    """Follow the execution ID to its end, then show its result; exits 1 when it failed or was cancelled."""
    invocation = ctx.ensure_object(Invocation)
    show_result(ctx, invocation.call(lambda engine: follow(engine, execution_id)))


def show_result(ctx: click.Context, result: Mapping[str, object]) -> None:
    """Write a result and end the program with the exit code that belongs to it."""
    print_answer(result, ctx.ensure_object(Invocation).output, lambda: print_result(result))
    if result["status"] != "completed":
        ctx.exit(ExitCode.EXECUTION_FAILED)


def _print_status(answer: Mapping[str, object]) -> None:
    error = part(answer, "error")
    print_fields(
        {
            "execution": answer.get("execution_id"),
            "workflow": f"{answer.get('workflow_id')} (version {answer.get('version')})",
            "status": answer.get("status"),
            "steps": _progress_text(part(answer, "progress")),
            "now": answer.get("current_steps"),
            "created": instant(answer.get("created_at")),
            "completed": instant(answer.get("completed_at")),
            "error": f"{error['message']} ({error.get('code')})" if error else None,
            "reason": part(answer, "cancel").get("reason"),
            "hint": answer.get("hint"),
        }
    )
    print_steps(part(answer, "steps"))


def _progress_text(progress: Mapping[str, object]) -> str:
    return f"{shown(progress.get('completed'))} of {shown(progress.get('total'))}" if progress else ""
