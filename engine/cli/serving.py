"""How a program that stays is stopped: the first signal lets work end, the second ends the process at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from engine.cli.invocation import ExitCode
from engine.cli.printing import note

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from engine.bootstrap import WorkerSession
    from engine.settings import EngineSettings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set by the first signal.

    Attributes:
        event: set from then on.
        signal_number: which signal it was; None before.
    """

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.signal_number: signal.Signals | None = None

    @property
    def exit_code(self) -> ExitCode:
        """130 after Ctrl-C; 0 after SIGTERM, which is how a supervisor ends a worker that does well."""
        return ExitCode.INTERRUPTED if self.signal_number is signal.SIGINT else ExitCode.OK

    def receive(self, number: signal.Signals) -> None:
        """Take a signal."""
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number = number
        note("stopping; once more to end at once")
        self.event.set()


@contextlib.contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest` while the block runs; for the main thread's event loop."""
    loop = asyncio.get_running_loop()
    request = StopRequest()
    for number in _SIGNALS:
        loop.add_signal_handler(number, request.receive, number)
    try:
        yield request
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def serve_worker(settings: EngineSettings, announce: Callable[[WorkerSession], None]) -> ExitCode:
    """Run a worker, with its log on stderr, until a signal stops it.

    Args:
        settings: of the worker.
        announce: called once with the open session, before it serves.

    Raises:
        EngineError: the worker can't be opened, or ended by a fault.
    """
    from engine.observability import open_logging

    log = open_logging(settings.log_level, settings.log_format)
    try:
        return asyncio.run(_serve(settings, announce))
    finally:
        log.close()


async def _serve(settings: EngineSettings, announce: Callable[[WorkerSession], None]) -> ExitCode:
    from engine.bootstrap import open_worker

    with stop_on_signals() as stop:
        stopped = asyncio.ensure_future(stop.event.wait())
        opening = asyncio.ensure_future(open_worker(settings))
        try:
            # A server that does not answer must not make the first signal wait.
            await asyncio.wait({stopped, opening}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return stop.exit_code
            session = opening.result()
            try:
                announce(session)
                await session.serve(stop.event)
            finally:
                await session.aclose()
        finally:
            for task in (stopped, opening):
                task.cancel()
            await asyncio.gather(stopped, opening, return_exceptions=True)
    return stop.exit_code


def describe(session: WorkerSession) -> dict[str, object]:
    """Return where a worker's server, UI and queue are."""
    return {
        "address": session.address,
        "ui_url": session.ui_url,
        "namespace": session.namespace,
        "task_queue": session.task_queue,
    }


def make_sure_of_server() -> None:
    """Build or download the development server's program when there is none; minutes, told on stderr.

    Raises:
        RuntimeUnavailableError: it can't be had; the message says what to install.
    """
    from engine.adapters.temporal.dev_server import build_binary, find_binary

    if find_binary() is None:
        note("There is no Temporal server on this machine yet; getting one, once.")
        build_binary(note)
