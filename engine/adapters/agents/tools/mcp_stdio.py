"""An MCP server as a program: messages are lines of its standard input and output.

Of our own and not the ``mcp`` package's: that one writes what it can't parse to the log, whatever it holds, keeps no
bound on a line, and tells neither that the program ended nor how. The program leads a process group, so that what it
started goes with it, and it sees a few variables of our environment and those of the settings, nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from engine.adapters.agents.tools.mcp_voice import ServerVoice

    Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]

__all__ = ["basic_environment", "open_stdio"]

_BASICS: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL", "TERM",
)  # fmt: skip
_MAX_LINE_BYTES: Final = 8 * 1024 * 1024
_GRACE_SECONDS: Final = 1.0
"""How long the program may take to leave after its input's end, and again after SIGTERM."""
_POLL_SECONDS: Final = 0.01


def basic_environment() -> dict[str, str]:
    """Return what a program needs of our environment to find its files and speak its user's language."""
    return {name: os.environ[name] for name in _BASICS if name in os.environ}


@asynccontextmanager
async def open_stdio(
    command: Sequence[str], environ: Mapping[str, str], voice: ServerVoice, ended: Callable[[], None]
) -> AsyncGenerator[Streams]:
    """Start the program, and stop it at the end, whatever it does then.

    Args:
        command: program and arguments.
        environ: all of its variables.
        voice: gets what it lets be heard.
        ended: called when its standard output ends or can't be read any more.

    Raises:
        OSError: it can't be started.
        ValueError: the command or a variable holds a character that none can have.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(limit=_MAX_LINE_BYTES, loop=loop),
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=environ,
        start_new_session=True,
    )
    process = Process(transport, protocol, loop)
    to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_server, from_session = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read_errors, process, voice)
            tasks.start_soon(_read, process, to_session, voice, ended)
            tasks.start_soon(_write, process, from_session, ended)
            try:
                yield from_server, to_server
            finally:
                # The reader goes on to the end without a session, or a full pipe would keep the program from leaving.
                from_server.close()
                with anyio.CancelScope(shield=True):
                    await _stop(process)
                voice.exit_code = process.returncode
                # A program that left the group may hold the pipes open for ever.
                with anyio.move_on_after(_GRACE_SECONDS, shield=True):
                    while not _is_read(process):  # noqa: ASYNC110 - a pipe's end has no event
                        await anyio.sleep(_POLL_SECONDS)
                tasks.cancel_scope.cancel()
    finally:
        transport.close()
        for stream in (to_session, from_server, to_server, from_session):
            stream.close()


async def _read(
    process: Process,
    to_session: MemoryObjectSendStream[SessionMessage | Exception],
    voice: ServerVoice,
    ended: Callable[[], None],
) -> None:
    output = process.stdout
    if output is None:
        raise RuntimeError("the program was started without a pipe for its output")
    with to_session:
        try:
            while line := await output.readline():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    voice.add_stray_line(line)
                    continue
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await to_session.send(SessionMessage(message))
        except ValueError:
            voice.add_stray_line(f"a line of more than {_MAX_LINE_BYTES} bytes".encode())
        finally:
            ended()


async def _write(
    process: Process, from_session: MemoryObjectReceiveStream[SessionMessage], ended: Callable[[], None]
) -> None:
    given = process.stdin
    if given is None:
        raise RuntimeError("the program was started without a pipe for its input")
    with from_session:
        async for item in from_session:
            try:
                given.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await given.drain()
            except OSError:
                ended()
                return


async def _read_errors(process: Process, voice: ServerVoice) -> None:
    errors = process.stderr
    if errors is None:
        raise RuntimeError("the program was started without a pipe for its errors")
    rest = b""
    while part := await errors.read(65_536):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            voice.add_error_line(line)
        # What has no line's end for so long is shown in pieces.
        if len(rest) > 65_536:
            voice.add_error_line(rest)
            rest = b""
    voice.add_error_line(rest)


async def _stop(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if not await _has_left(process):
        _send(process, signal.SIGTERM)
        await _has_left(process)
    # What it started and did not take along.
    _send(process, signal.SIGKILL)
    await _has_left(process)


async def _has_left(process: Process) -> bool:
    """Wait for the program itself: ``Process.wait`` also waits for its pipes, which a child may hold open."""
    until = time.monotonic() + _GRACE_SECONDS
    while process.returncode is None and time.monotonic() < until:  # noqa: ASYNC110 - it has no event of its own
        await anyio.sleep(_POLL_SECONDS)
    return process.returncode is not None


def _send(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _is_read(process: Process) -> bool:
    return all(stream is None or stream.at_eof() for stream in (process.stdout, process.stderr))
