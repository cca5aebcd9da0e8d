"""A side's process as the parent sees it: commands in, answers out, its memory watched meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

import psutil

if TYPE_CHECKING:
    from engine.domain.json import JsonObject

__all__ = ["ROOT", "Child"]

ROOT: Final = Path(__file__).resolve().parent.parent
_SAMPLE_SECONDS: Final = 0.02
_MAX_LINE_BYTES: Final = 4 * 1024 * 1024


class Child:
    """A started side.

    Attributes:
        name: of the side.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._watched = psutil.Process(process.pid)

    @classmethod
    async def start(cls, name: str, module: str, *args: str) -> Self:
        """Start a module as a process and wait until it is ready."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=_MAX_LINE_BYTES,
        )
        child = cls(name, process)
        await child._answer()
        return child

    async def run(self, shape: str, executions: int) -> JsonObject:
        """Run executions one after another."""
        return await self._ask(do="run", shape=shape, executions=executions)

    async def burst(self, shape: str, executions: int) -> tuple[JsonObject, int]:
        """Run executions at once; return the answer and the peak of resident memory meanwhile, in bytes."""
        peaks = [self._resident_bytes()]

        async def watch() -> None:
            while True:
                peaks.append(self._resident_bytes())
                await asyncio.sleep(_SAMPLE_SECONDS)

        watching = asyncio.create_task(watch())
        try:
            answer = await self._ask(do="burst", shape=shape, executions=executions)
        finally:
            watching.cancel()
        return answer, max(peaks)

    async def statuses(self) -> JsonObject:
        """Time status reads."""
        return await self._ask(do="statuses")

    async def rest(self, seconds: int) -> int:
        """Let it be idle; return its resident memory then, in bytes."""
        await self._ask(do="rest", seconds=seconds)
        return self._resident_bytes()

    async def aclose(self) -> None:
        """Let it end, and wait for that."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def _ask(self, **command: str | int) -> JsonObject:
        assert self._process.stdin is not None  # it was started with a pipe
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self._answer()

    async def _answer(self) -> JsonObject:
        assert self._process.stdout is not None  # it was started with a pipe
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):
                return cast("JsonObject", json.loads(line))
            # The SDK's core writes its warnings to standard output, too.
            print(f"{self.name}: {line.decode().rstrip()}", file=sys.stderr, flush=True)
        raise RuntimeError(f"{self.name} ended with {await self._process.wait()}; its words are above")

    def _resident_bytes(self) -> int:
        return self._watched.memory_info().rss
