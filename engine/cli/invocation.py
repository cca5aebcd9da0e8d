"""What the commands of one invocation share: settings, the form of the output, errors and exit codes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NoReturn, TypeVar, cast

import click

from engine.errors import (
    AgentError,
    BudgetExceededError,
    ConfigurationError,
    EngineError,
    ExecutionTimeoutError,
    InternalError,
    RuntimeUnavailableError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from engine.facade import WorkflowEngine
    from engine.settings import EngineSettings

_T = TypeVar("_T")

_DRIVERS = ("temporalio", "neo4j", "pymongo", "redis", "pinecone")

Output = Literal["text", "json", "jsonl"]


class ExitCode(IntEnum):
    """What the program's end says."""

    OK = 0
    EXECUTION_FAILED = 1
    INVALID_INPUT = 2
    CONFIGURATION = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


def exit_code_of(error: EngineError) -> ExitCode:
    """Return the exit code that stands for an error."""
    match error:
        case ConfigurationError():
            return ExitCode.CONFIGURATION
        case RuntimeUnavailableError() | StoreError():
            return ExitCode.UNREACHABLE
        case AgentError() | BudgetExceededError() | ExecutionTimeoutError() | InternalError():
            return ExitCode.EXECUTION_FAILED
        case _:
            return ExitCode.INVALID_INPUT


def import_from_working_folder() -> None:
    """Let agents' modules of the current folder be imported, behind everything else: they can't hide Baton's own."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


def end_process(code: int) -> NoReturn:
    """End this process now that all is closed, without the interpreter's own end.

    Threads of Temporal's SDK may still be letting go of Python objects; when the interpreter ends in that moment it
    aborts, and the exit code is lost.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@contextmanager
def quiet_drivers() -> Generator[None]:
    """Keep back what libraries log: a failed attempt is part of the answer, and they would say it with tracebacks."""
    import logging

    loggers = [logging.getLogger(name) for name in _DRIVERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class Failure(click.ClickException):
    """An error on its way out of the program: rendered on stderr, with its exit code."""

    def __init__(self, error: EngineError, output: Output) -> None:
        super().__init__(error.message)
        self.exit_code = int(exit_code_of(error))  # pyright: ignore[reportAttributeAccessIssue] - click reads it here
        self._error = error
        self._output = output

    def show(self, file: IO[str] | None = None) -> None:
        """Write it: the API's error object for programs, the message and its issues for people."""
        if self._output == "text":
            text = "\n".join(error_lines(self._error))
        else:
            text = json.dumps(self._error.to_response(), ensure_ascii=False, default=str)
        click.echo(text, file=file, err=True)


def error_lines(error: EngineError) -> list[str]:
    """Render an error for people: what and what to do, then the issues that the message does not hold."""
    issues = error.details.get("issues")
    rows = cast("list[Mapping[str, object]]", issues) if isinstance(issues, list) else []
    untold = [row for row in rows if str(row.get("message")) not in error.message]
    return [f"Error ({error.code.value}): {error.message}", *(f"  {issue_line(row)}" for row in untold)]


def issue_line(issue: Mapping[str, object]) -> str:
    """Render one issue of a definition: ``path: message (hint)``, warnings marked as such."""
    severity = "warning: " if issue.get("severity") == "warning" else ""
    where = f"{issue['path']}: " if issue.get("path") else ""
    hint = f" ({issue['hint']})" if issue.get("hint") else ""
    return f"{severity}{where}{issue.get('message')}{hint}"


@dataclass
class Invocation:
    """The options before the command, and the one of every data command."""

    profile: str | None = None
    config: tuple[str, ...] = ()
    output: Output = "text"

    def config_values(self) -> dict[str, object]:
        """Return ``-c KEY=VALUE`` as the config mapping of an engine.

        Raises:
            ConfigurationError: one is no ``KEY=VALUE``.
        """
        from engine.settings import config_from_text

        pairs: list[tuple[str, str]] = []
        for pair in self.config:
            key, equals, text = pair.partition("=")
            if not equals or not key:
                raise ConfigurationError(
                    f"-c takes KEY=VALUE, for example -c task_queue=reviews, not {key!r}", {"path": key}
                )
            pairs.append((key, text))
        return config_from_text(pairs)

    def settings(self) -> EngineSettings:
        """Return the settings that an engine of this invocation has.

        Raises:
            ConfigurationError: they can't be used.
        """
        from engine.settings import EngineSettings

        return EngineSettings.load(self.config_values(), profile=self.profile)

    def call(
        self,
        use: Callable[[WorkflowEngine], Awaitable[_T]],
        *,
        overrides: Mapping[str, object] | None = None,
        log_level: str = "WARNING",
    ) -> _T:
        """Open an engine, hand it to ``use`` and close it, on an event loop of its own.

        Args:
            use: does the work; its answer is returned.
            overrides: settings that win over the user's own.
            log_level: of Baton's log lines on stderr, unless the user has set one.
        """
        import asyncio

        from engine.facade import WorkflowEngine
        from engine.observability import open_logging

        settings = self.settings()
        config = self.config_values() | dict(overrides or {})

        async def session() -> _T:
            async with WorkflowEngine(config, profile=self.profile) as engine:
                try:
                    return await use(engine)
                except asyncio.CancelledError:
                    click.echo("stopping", err=True)
                    raise

        level = settings.log_level if "log_level" in settings.model_fields_set else log_level
        log = open_logging(level, settings.log_format)
        try:
            with quiet_drivers():
                return asyncio.run(session())
        finally:
            log.close()


def _keep_output(ctx: click.Context, _parameter: click.Parameter, value: Output) -> None:
    ctx.ensure_object(Invocation).output = value


def _user_name() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return None


by_option = click.option(
    "--by", metavar="NAME", default=_user_name, help="Who does it; kept in the record. Your user name unless given."
)
"""``--by`` of every command by which somebody acts on an execution."""

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    is_eager=True,
    expose_value=False,
    callback=_keep_output,
    help="Form of what is written on stdout.",
)
"""``-o`` of every command that answers with data; kept in the invocation, because errors follow it too."""
