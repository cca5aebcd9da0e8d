"""The root of the commands: a table of names, so that help costs no more than reading it.

A command's module is imported when the command runs. Each error becomes an exit code in one place, here.
"""

from __future__ import annotations

import importlib
import os
from typing import cast

import click

from engine.cli.invocation import ExitCode, Failure, Invocation
from engine.errors import EngineError

_COMMANDS = {
    "demo": ("engine.cli.demo:demo", "Review a Python source tree: the whole of Baton in one run."),
    "dev": ("engine.cli.dev:dev", "Start the development server, its UI and a worker, and stay."),
    "worker": ("engine.cli.worker:worker", "Run a worker until SIGTERM or Ctrl-C."),
    "doctor": ("engine.cli.doctor:doctor", "Say what is missing here and how to get it."),
    "run": ("engine.cli.run:run", "Run a workflow from a file or by its id."),
    "regress": ("engine.cli.regress:regress", "Run a definition on a recorded run's answers; print what differs."),
    "workflow": ("engine.cli.workflow:workflow", "Create, read, change and check workflows."),
    "execution": ("engine.cli.execution:execution", "Follow, list, hold and cancel executions."),
    "gate": ("engine.cli.gate:gate", "List and answer the gates that executions wait with."),
    "repair": ("engine.cli.repair:repair", "Make records say what Temporal says."),
    "verify": ("engine.cli.repair:verify", "Compare executions with Temporal; print what differs."),
    "agent": ("engine.cli.agent:agent", "Register and read agents."),
    "handoff": ("engine.cli.handoff:handoff", "Create and read handoffs."),
    "context": ("engine.cli.context:context", "Add, search and reindex what steps are reminded of."),
    "copy": ("engine.cli.copy:copy", "Carry everything from the embedded stores to configured ones, or back."),
}

_EPILOG = """\b
From the checkout there are two more:
  ./baton test    run all tests
  ./baton check   lint, types and import contracts

\b
Exit codes:
  0  ok
  1  the execution failed or was cancelled; verify, regress: something differs
  2  invalid input, an unknown id, a conflict or a missing file
  3  configuration, or something is not installed
  4  Temporal or a store can't be reached
  130  interrupted
"""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return cast("object", super().invoke(ctx))
        except EngineError as error:
            raise Failure(error, ctx.ensure_object(Invocation).output) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(ExitCode.INTERRUPTED)


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--profile", metavar="NAME", help="Profile of baton.toml to use instead of default.")
@click.option(
    "-c",
    "--config",
    "config",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, before environment and baton.toml; repeatable. Lists are comma-separated.",
)
@click.pass_context
def baton(ctx: click.Context, profile: str | None, config: tuple[str, ...]) -> None:
    """Durable agent workflows on Temporal."""
    ctx.obj = Invocation(profile=profile, config=config)
    if os.environ.get("NO_COLOR"):
        ctx.color = False
