"""Worker programs to be killed, and the ledger of what their agents did."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]
AGENTS = Path(__file__).parent / "agents"
PATIENCE_SECONDS = 60.0


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for a condition; fail with words when it does not come."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.02)


class Ledger:
    """What the agents wrote down, and the holds that make them wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def hold(self, step_id: str) -> None:
        (self.folder / f"hold-{step_id}").touch()

    def release(self, step_id: str) -> None:
        (self.folder / f"hold-{step_id}").unlink(missing_ok=True)

    def lines(self, what: str = "began", **wanted: object) -> list[dict[str, Any]]:
        file = self.folder / "ledger"
        if not file.exists():
            return []
        whole = file.read_bytes().rpartition(b"\n")[0]
        notes = [json.loads(line) for line in whole.splitlines()]
        return [
            note for note in notes if note["what"] == what and all(note[key] == item for key, item in wanted.items())
        ]


class WorkerProgram:
    """``python worker.py`` as a process of its own, in development mode so that it warns of all it leaves open."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "dev", str(CHECKOUT / "worker.py")],
                env=environment,
                cwd=log.parent,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    @property
    def stderr(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    async def ready(self) -> None:
        await until(lambda: "worker ready" in self.stderr or self.process.poll() is not None, "the worker program")
        assert self.process.poll() is None, self.stderr

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        await until(lambda: self.process.poll() is not None, "the worker program's end")
        assert self.process.returncode is not None
        return self.process.returncode


class Workers:
    """Starts worker programs of one data directory and queue."""

    def __init__(self, config: dict[str, object], folder: Path, ledger: Ledger) -> None:
        self.started: list[WorkerProgram] = []
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "TEMPORAL_"))}
        self._environment = {
            **kept,
            "PYTHONPATH": str(AGENTS),
            "BATON_TEMPORAL_ADDRESS": str(config["temporal_address"]),
            "BATON_TASK_QUEUE": str(config["task_queue"]),
            "BATON_DATA_DIR": str(config["data_dir"]),
            "BATON_AGENT_MODULES": "ledger_agents",
        }
        self._ledger = ledger

    def start(self) -> WorkerProgram:
        log = self._folder / f"worker-{len(self.started)}.log"
        program = WorkerProgram({**self._environment, "LEDGER_FOLDER": str(self._ledger.folder)}, log)
        self.started.append(program)
        return program
