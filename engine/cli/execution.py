"""`baton execution`: what runs and what ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from engine.cli.invocation import ExitCode, Invocation, by_option, output_option
from engine.cli.printing import instant, part, print_answer, print_fields, print_page, shown
from engine.cli.watching import follow, print_result, print_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.facade import WorkflowEngine


@click.group()
def execution() -> None:
    """Follow, list, hold, cancel and rerun executions."""


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
@by_option
@click.option("--reason", help="Why; kept in the record.")
@output_option
@click.pass_obj
def pause(invocation: Invocation, execution_id: str, by: str | None, reason: str | None) -> None:
    """Let nothing new start in the execution ID; what runs goes on to its end."""
    invocation.call(lambda engine: engine.pause_execution(execution_id, by, reason))
    _print_done(invocation, {"execution_id": execution_id, "paused": True}, "paused")


@execution.command()
@click.argument("execution_id", metavar="ID")
@by_option
@output_option
@click.pass_obj
def resume(invocation: Invocation, execution_id: str, by: str | None) -> None:
    """Let the paused execution ID go on."""
    invocation.call(lambda engine: engine.resume_execution(execution_id, by))
    _print_done(invocation, {"execution_id": execution_id, "resumed": True}, "resumed")


@execution.command("retry-step")
@click.argument("execution_id", metavar="ID")
@click.argument("step_id", metavar="STEP")
@by_option
@output_option
@click.pass_obj
def retry_step(invocation: Invocation, execution_id: str, step_id: str, by: str | None) -> None:
    """Begin again with the failed step STEP, which asks what to do."""
    invocation.call(lambda engine: engine.retry_step(execution_id, step_id, by))
    _print_done(invocation, {"execution_id": execution_id, "step_id": step_id, "retried": True}, "retried")


@execution.command("skip-step")
@click.argument("execution_id", metavar="ID")
@click.argument("step_id", metavar="STEP")
@click.option("--data", "output_text", metavar="@FILE|-|JSON", help="Stands in for the step's own output.")
@by_option
@output_option
@click.pass_obj
def skip_step(invocation: Invocation, execution_id: str, step_id: str, output_text: str | None, by: str | None) -> None:
    """Pass over the failed step STEP, which asks what to do."""
    from engine.cli.reading import read_value

    output = None if output_text is None else read_value(output_text, "--data")
    invocation.call(lambda engine: engine.skip_step(execution_id, step_id, output, by))
    _print_done(invocation, {"execution_id": execution_id, "step_id": step_id, "skipped": True}, "skipped")


@execution.command()
@click.argument("execution_id", metavar="ID")
@output_option
@click.pass_obj
def explain(invocation: Invocation, execution_id: str) -> None:
    """Tell why each step of the execution ID ran, was skipped, failed or was never reached."""
    answer = invocation.call(lambda engine: engine.explain_execution(execution_id))
    print_answer(answer, invocation.output, lambda: click.echo(answer["text"]))


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option(
    "--from-step", "from_steps", multiple=True, metavar="STEP", help="Run it and what rests on it; again for more."
)
@click.option(
    "--input", "input_text", metavar="@FILE|-|JSON", help="Other input; steps that read the change run again."
)
@click.option("--version", type=click.Choice(["original", "latest"]), default="original", show_default=True)
@click.option("--preview", is_flag=True, help="Only tell what would run, what would be kept and what that saves.")
@click.option("--watch", is_flag=True, help="Show each step on stderr and wait for the end.")
@output_option
@click.pass_context
def rerun(
    ctx: click.Context,
    execution_id: str,
    from_steps: tuple[str, ...],
    input_text: str | None,
    version: str,
    preview: bool,  # noqa: FBT001 - click passes options by name
    watch: bool,  # noqa: FBT001
) -> None:
    """Run the ended execution ID again as a new one; steps that still hold keep what they came to.

    Without --from-step it runs what did not complete. It waits for the end as `baton run` does.
    """
    from engine.cli.reading import read_input
    from engine.cli.starting import start_and_show

    invocation = ctx.ensure_object(Invocation)
    input_data = None if input_text is None else read_input(input_text, ())
    chosen = list(from_steps) or None

    async def ask(engine: WorkflowEngine) -> Mapping[str, object]:
        answer = await engine.rerun_execution(execution_id, chosen, input_data, version, preview)
        return cast("Mapping[str, object]", answer)

    if not preview:
        start_and_show(ctx, ask, watch=watch)
        return
    answer = invocation.call(ask)
    print_answer(answer, invocation.output, lambda: _print_preview(answer))


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


def _print_done(invocation: Invocation, answer: Mapping[str, object], text: str) -> None:
    print_answer(answer, invocation.output, lambda: click.echo(text))


def _print_status(answer: Mapping[str, object]) -> None:
    error = part(answer, "error")
    print_fields(
        {
            "execution": answer.get("execution_id"),
            "workflow": f"{answer.get('workflow_id')} (version {answer.get('version')})",
            "status": answer.get("status"),
            "steps": _progress_text(part(answer, "progress")),
            "now": answer.get("current_steps"),
            "gates": answer.get("gates"),
            "created": instant(answer.get("created_at")),
            "completed": instant(answer.get("completed_at")),
            "error": f"{error['message']} ({error.get('code')})" if error else None,
            "reason": part(answer, "cancel").get("reason"),
            "hint": answer.get("hint"),
        }
    )
    print_steps(part(answer, "steps"))


_SAVINGS = {
    "agent_calls": "agent calls {:,}",
    "tokens": "tokens {:,}",
    "cost_usd": "USD {:,.4f}",
    "seconds": "{:,.0f} s",
}


def _print_preview(answer: Mapping[str, object]) -> None:
    saved = part(answer, "saves")
    saves = [form.format(saved[name]) for name, form in _SAVINGS.items() if saved.get(name)]
    print_fields(
        {
            "runs again": shown(answer.get("rerun")) or "-",
            "keeps": shown(answer.get("reused")) or "-",
            "saves": ", ".join(saves) or "-",
        }
    )


def _progress_text(progress: Mapping[str, object]) -> str:
    return f"{shown(progress.get('completed'))} of {shown(progress.get('total'))}" if progress else ""
