"""`baton worker`: the worker program, under the CLI's options."""

from __future__ import annotations

import click

from engine.cli.invocation import Invocation


@click.command()
@click.pass_context
def worker(ctx: click.Context) -> None:
    """Run a worker until SIGTERM or Ctrl-C, which let running steps end; a second one ends it at once.

    It serves the configured Temporal address, else the development server of data_dir. The same as
    `python worker.py`.
    """
    from engine.cli.printing import note, shown
    from engine.cli.serving import describe, serve_worker

    settings = ctx.ensure_object(Invocation).settings()
    ctx.exit(
        serve_worker(
            settings,
            lambda session: note(
                "worker ready: " + " ".join(f"{name}={shown(value)}" for name, value in describe(session).items())
            ),
        )
    )
