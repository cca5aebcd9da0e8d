"""Real servers for tests: found or installed once, started on a free loopback port in a temporary folder, and stopped.

Each module beside this one knows one server: ``install()`` gets it (printing what it does, keeping what takes long in
the user's cache), ``start(folder)`` starts it. ``python -m tests.servers`` installs all. What a machine can't have is
``UnavailableError`` with the reason, and its tests are skipped with it, unless ``TEST_SERVERS=required``.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["RunningServer", "UnavailableError", "are_required", "cache_folder", "free_port"]


class UnavailableError(Exception):
    """The server can't be had here; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server of the tests' own."""

    uri: str
    version: str
    pid: int
    stop: Callable[[], Awaitable[None]]


def are_required() -> bool:
    """Whether a missing server is a failure."""
    return os.environ.get("TEST_SERVERS") == "required"


def cache_folder(name: str) -> Path:
    """Where an installation is kept between test runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton" / "test-servers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
