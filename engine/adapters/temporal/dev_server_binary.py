"""Which Temporal CLI runs the development server, and how one is made where there is none.

A candidate is judged by what it can do, not by its version: one that lacks a flag of ours is passed over,
with the reason kept for `baton doctor`. A build goes into the user's cache under the hash of the
go.mod that it was built from, so that it happens once for all checkouts and never half.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.adapters.temporal import dev_server_supervisor as supervisor
from engine.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "PassedOver",
    "TemporalBinary",
    "build_binary",
    "examine_binaries",
    "find_binary",
    "last_lines",
    "lock_now",
]

_Source = Literal["PATH", "temporal-dev/bin", "cache", "sdk download"]

_CHECKOUT = Path(__file__).resolve().parents[3]
_BUILD_FOLDER = _CHECKOUT / "temporal-dev"
_COMMAND_PACKAGE = "github.com/temporalio/cli/cmd/temporal"
_INSTALL_ADVICE = (
    "Install the Temporal CLI (`temporal` on PATH, 1.5 or later) or Go 1.26 or later, "
    "which builds it from temporal-dev/go.mod."
)

_EXAMINE_SECONDS = 20.0
_BUILD_SECONDS = 1800.0
_DOWNLOAD_SECONDS = 300.0
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TemporalBinary:
    """A Temporal CLI that can run our development server.

    Attributes:
        path: the executable.
        version: as it names itself, for example ``1.5.1``.
        source: where it was found.
    """

    path: Path
    version: str
    source: _Source


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A Temporal CLI that is there and can't be used, with the reason in words."""

    path: Path
    source: _Source
    reason: str


def find_binary() -> TemporalBinary | None:
    """Return the first usable Temporal CLI; None when there is none. Runs candidates, builds nothing."""
    return next((found for found in examine_binaries() if isinstance(found, TemporalBinary)), None)


def examine_binaries() -> Iterator[TemporalBinary | PassedOver]:
    """Yield every Temporal CLI that is there, in order of preference, each examined when it is asked for.

    The order: `temporal` on PATH, the checkout's temporal-dev/bin, the user's cache, the SDK's own download.
    """
    for path, source in _candidates():
        if not path.is_file():
            continue
        try:
            version = _usable_version(path, source)
        except _UnusableError as unusable:
            yield PassedOver(path, source, str(unusable))
        else:
            yield TemporalBinary(path, version, source)


def _candidates() -> Iterator[tuple[Path, _Source]]:
    on_path = shutil.which("temporal")
    if on_path is not None:
        yield Path(on_path).absolute(), "PATH"
    yield _BUILD_FOLDER / "bin" / "temporal", "temporal-dev/bin"
    if _can_build():
        yield _build_target(), "cache"
    sdk_file = _sdk_file_name()
    if sdk_file is not None:
        yield _cache_folder() / sdk_file, "sdk download"
        yield Path(tempfile.gettempdir()) / sdk_file, "sdk download"


class _UnusableError(Exception):
    """Why one candidate is passed over; never leaves this module."""


def _usable_version(path: Path, source: _Source) -> str:
    if source == "sdk download" and path.stat().st_uid != os.geteuid():
        raise _UnusableError("it lies in a folder that everybody can write to and belongs to another user")
    usage = _output(path, "server", "start-dev", "--help")
    wanted = dict.fromkeys(
        part for part in supervisor.server_arguments(Path(), supervisor.Ports(0, 0, 0, 0)) if part.startswith("--")
    )
    missing = [flag for flag in wanted if not re.search(rf"{flag}\b(?!-)", usage)]
    if missing:
        raise _UnusableError(f"it is too old: `server start-dev` does not know {', '.join(missing)}")
    version = re.search(r"\d+\.\d+\.\d+\S*", _output(path, "--version"))
    if version is None:
        raise _UnusableError("`--version` names no version")
    return version.group()


def _output(path: Path, *arguments: str) -> str:
    try:
        ran = subprocess.run(  # noqa: S603 - the user's own `temporal`, fixed arguments, no shell
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_EXAMINE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnusableError(f"it can't be run: {error}") from error
    if ran.returncode != 0:
        raise _UnusableError(f"`temporal {' '.join(arguments)}` ended with code {ran.returncode}")
    return ran.stdout.decode(errors="replace") + ran.stderr.decode(errors="replace")


def _cache_folder() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return base / "baton" / "temporal"


def _can_build() -> bool:
    return (_BUILD_FOLDER / "go.mod").is_file() and (_BUILD_FOLDER / "go.sum").is_file()


def _build_target() -> Path:
    """Return where a build belongs: another go.mod is another file, so that checkouts keep apart."""
    locked = (_BUILD_FOLDER / "go.mod").read_bytes() + (_BUILD_FOLDER / "go.sum").read_bytes()
    return _cache_folder() / hashlib.sha256(locked).hexdigest()[:16] / "temporal"


def _sdk_file_name() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"temporal-sdk-python-{version('temporalio')}"
    except PackageNotFoundError:
        return None


def build_binary(progress: Callable[[str], None]) -> TemporalBinary:
    """Get a Temporal CLI for this user: built with Go, or downloaded by Temporal's SDK when there is no Go.

    Blocks for minutes the first time, so asynchronous code calls it in a thread. Two at once build once.

    Args:
        progress: takes short lines for people, at the start, every 10 seconds and at the end.

    Raises:
        RuntimeUnavailableError: neither way worked; the message has the reason and says what to install.
    """
    folder = _cache_folder()
    go = shutil.which("go")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "build.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise RuntimeUnavailableError(
            f"The cache folder {folder} can't be used: {error.strerror}. Make it writable or set XDG_CACHE_HOME."
        ) from error
    try:
        _wait_for_build_lock(lock, progress)
        found = find_binary()
        if found is not None:
            return found
        if go is not None and _can_build():
            _build_with_go(go, _build_target(), progress)
        else:
            _download_with_sdk(folder, progress)
        found = find_binary()
    finally:
        os.close(lock)
    if found is None:
        reasons = "; ".join(f"{one.path}: {one.reason}" for one in examine_binaries() if isinstance(one, PassedOver))
        raise RuntimeUnavailableError(f"The Temporal CLI just made can't be used ({reasons}). {_INSTALL_ADVICE}")
    return found


def _wait_for_build_lock(lock: int, progress: Callable[[str], None]) -> None:
    started = time.monotonic()
    told = started - _PROGRESS_SECONDS
    while not lock_now(lock, fcntl.LOCK_EX):
        now = time.monotonic()
        if now - started > _BUILD_SECONDS:
            raise RuntimeUnavailableError(
                "Another process has been building the Temporal CLI for half an hour. End it and try again."
            )
        if now - told >= _PROGRESS_SECONDS:
            told = now
            progress(f"waiting for another build of the Temporal server ({now - started:.0f} s) ...")
        time.sleep(0.2)


def _build_with_go(go: str, target: Path, progress: Callable[[str], None]) -> None:
    declared = re.search(r"github\.com/temporalio/cli v(\S+)", (_BUILD_FOLDER / "go.mod").read_text(encoding="utf-8"))
    version = declared.group(1) if declared else "0.0.0"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name("temporal.partial")
    link_flags = f"-s -w -X github.com/temporalio/cli/temporalcli.Version={version}"
    command = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", link_flags, "-o", str(partial)]
    progress(f"building the Temporal server {version} with Go (once, some minutes) ...")
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(  # noqa: S603 - Go from PATH on our own go.mod, no shell
            [*command, _COMMAND_PACKAGE],
            cwd=_BUILD_FOLDER,
            env={**os.environ, "CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as build,
    ):
        try:
            while build.poll() is None and time.monotonic() - started < _BUILD_SECONDS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    build.wait(_PROGRESS_SECONDS)
                if build.returncode is None:
                    progress(f"still building ({time.monotonic() - started:.0f} s) ...")
        finally:
            build.kill()
        build.wait()
        if build.returncode != 0:
            output.seek(0)
            raise RuntimeUnavailableError(
                "Go could not build the Temporal server from temporal-dev/go.mod:\n"
                f"{last_lines(output.read())}\n{_INSTALL_ADVICE}",
                {"exit_code": build.returncode},
            )
    partial.replace(target)
    progress(f"built the Temporal server in {time.monotonic() - started:.0f} s")


def _download_with_sdk(folder: Path, progress: Callable[[str], None]) -> None:
    from temporalio.testing import WorkflowEnvironment

    async def download() -> None:
        async with (
            asyncio.timeout(_DOWNLOAD_SECONDS),
            await WorkflowEnvironment.start_local(  # pyright: ignore[reportUnknownMemberType] - untyped in the SDK
                download_dest_dir=str(folder)
            ),
        ):
            pass

    progress("Go is not there: downloading the Temporal server (once) ...")
    try:
        asyncio.run(download())
    except (RuntimeError, OSError) as error:
        raise RuntimeUnavailableError(
            f"There is no Temporal CLI and no Go, and the download failed. {_INSTALL_ADVICE}",
            {"reason": last_lines(str(error).encode())},
        ) from error


def lock_now(descriptor: int, kind: int) -> bool:
    """Take a file lock (`fcntl.LOCK_SH` or `LOCK_EX`) if that needs no waiting; tell whether it was taken."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def last_lines(output: bytes) -> str:
    """Return the end of a program's output, short enough for an error message."""
    return "\n".join(output.decode(errors="replace").rstrip().splitlines()[-15:])
