"""The worker program: `python worker.py`, for containers and process supervisors.

SIGTERM or Ctrl-C stops it gracefully: no new work is taken, running steps may end. A second signal ends it at once.
Exit codes are the CLI's: 0 after SIGTERM, 130 after Ctrl-C, 3 for settings that can't be used, 4 when Temporal or a
store can't be reached.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from engine.cli.invocation import Invocation, end_process, error_lines, exit_code_of, import_from_working_folder
from engine.cli.serving import describe, serve_worker
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.bootstrap import WorkerSession


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until a signal stops it.

    Args:
        arguments: the program's; those of the process when absent.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="worker.py", description="Run a Baton worker until SIGTERM or Ctrl-C.")
    parser.add_argument("--profile", metavar="NAME", help="profile of baton.toml to use instead of default")
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="KEY=VALUE", help="a setting; repeatable"
    )
    options = parser.parse_args(arguments)
    invocation = Invocation(profile=options.profile, config=tuple(options.config))
    try:
        return int(serve_worker(invocation.settings(), _announce))
    except EngineError as error:
        sys.stderr.write("\n".join(error_lines(error)) + "\n")
        return int(exit_code_of(error))


def _announce(session: WorkerSession) -> None:
    told = " ".join(f"{name}={value}" for name, value in describe(session).items() if value is not None)
    sys.stderr.write(f"worker ready: {told}\n")


if __name__ == "__main__":
    import_from_working_folder()
    end_process(main())
