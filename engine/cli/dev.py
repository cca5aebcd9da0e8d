"""`baton dev`: everything that developing needs, in one process that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.cli.invocation import Invocation, output_option

if TYPE_CHECKING:
    from engine.bootstrap import WorkerSession


@click.command()
@output_option
@click.pass_context
def dev(ctx: click.Context) -> None:
    """Start Temporal's development server, its UI and a worker, and stay until Ctrl-C or SIGTERM.

    Other commands and programs with the same data_dir use this server; when they are done, it ends with the last.
    """
    from engine.cli.printing import note, print_answer, print_fields
    from engine.cli.serving import describe, make_sure_of_server, serve_worker
    from engine.errors import ConfigurationError

    invocation = ctx.ensure_object(Invocation)
    settings = invocation.settings()
    if settings.has_temporal_address():
        raise ConfigurationError(
            f"`baton dev` starts a server of its own, and temporal_address is set to {settings.temporal_address}. "
            "Use `baton worker` to serve that one, or unset the address.",
            {"path": "temporal_address"},
        )
    make_sure_of_server()

    def announce(session: WorkerSession) -> None:
        answer = describe(session) | {"data_dir": str(settings.data_dir)}
        print_answer(answer, invocation.output, lambda: print_fields(answer))
        note("ready; Ctrl-C ends it")

    ctx.exit(serve_worker(settings, announce))
