"""Records, child processes and looks from outside for the tests of the embedded database."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.domain.execution import (
    ExecutionRecord,
    ExecutionStatus,
    LiveExecution,
    StepRecord,
    StepStatus,
    Value,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def execution(execution_id: str, **changes: Any) -> ExecutionRecord:
    given: dict[str, Any] = {"status": ExecutionStatus.PENDING, "input": Value.of({"q": execution_id}), **changes}
    return ExecutionRecord(
        execution_id=execution_id,
        definition_id="flow",
        version=1,
        plan_hash="sha256:plan",
        input_hash="sha256:input",
        created_at=NOW,
        **given,
    )


def step(token: int, **changes: Any) -> StepRecord:
    given: dict[str, Any] = {"execution_id": "flow-1", "run_id": "run-1", "status": StepStatus.COMPLETED, **changes}
    return StepRecord(step_id="a", token=token, **given)


def live_head(execution_id: str = "flow-1", token: int = 1) -> LiveExecution:
    return LiveExecution(
        execution_id=execution_id,
        definition_id="flow",
        version=1,
        token=token,
        status=ExecutionStatus.RUNNING,
        step_ids=["a"],
        created_at=NOW,
    )


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("baton-sqlite")]


def run_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a program that has the names of this module's header and a store on the file of its first argument."""
    header = """
        import asyncio, os, sys
        from datetime import datetime, timedelta, UTC
        from pathlib import Path
        from engine.adapters.codec import Codec
        from engine.adapters.sqlite.database import SqliteDatabase
        from engine.adapters.sqlite.execution_store import SqliteExecutionStore
        from engine.domain.execution import ExecutionRecord, ExecutionStatus, StepRecord, StepStatus, Value
        from engine.errors import StoreError
        NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
        database = SqliteDatabase(Path(sys.argv[1]))
        store = SqliteExecutionStore(database, Codec())
        def execution(execution_id, text="q"):
            return ExecutionRecord(execution_id=execution_id, definition_id="flow", version=1, plan_hash="p",
                status=ExecutionStatus.PENDING, input=Value.of(text), input_hash="i", created_at=NOW)
        def step(token):
            return StepRecord(execution_id="flow-1", run_id="run-1", step_id="a", token=token,
                              status=StepStatus.COMPLETED)
        """
    program = textwrap.dedent(header) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(child: subprocess.Popen[str]) -> str:
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    return out


def integrity(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as plain:
        return plain.execute("PRAGMA integrity_check").fetchone()[0]
