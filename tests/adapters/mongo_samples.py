"""Counters, child processes and looks from outside for the tests of MongoDB."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

WRITES = ("insert", "update", "delete", "findAndModify")


class CommandLog(CommandListener):
    """The commands that a driver sent, by name."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any]]] = []

    def started(self, event: Any) -> None:
        self.commands.append((event.command_name, dict(event.command)))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass

    def take(self) -> list[str]:
        """Return the names of the commands since the last time."""
        names = [name for name, _ in self.commands]
        self.commands = []
        return names


def writes_in(names: list[str]) -> int:
    return sum(name in WRITES for name in names)


@asynccontextmanager
async def outside(uri: str) -> AsyncGenerator[Any]:
    """The database of ``uri``, through a client that the tests have for themselves."""
    async with AsyncMongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=5000) as client:
        yield client.get_default_database()


async def plan_of(database: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Return ``keys``, ``documents`` and ``stages`` of a command as the server ran it."""
    explained = await database.command({"explain": command, "verbosity": "executionStats"})
    if "stages" in explained:
        explained = explained["stages"][0]["$cursor"]
    stats = explained["executionStats"]
    return {
        "keys": stats["totalKeysExamined"],
        "documents": stats["totalDocsExamined"],
        "stages": _stages(explained["queryPlanner"]["winningPlan"]),
    }


def _stages(plan: dict[str, Any]) -> list[str]:
    inner = [plan["inputStage"]] if "inputStage" in plan else plan.get("inputStages", [])
    named = plan.get("queryPlan", plan)
    return [named["stage"], *(stage for below in inner for stage in _stages(below))]


_PREAMBLE = """
import asyncio, sys
from engine.adapters.codec import Codec
from engine.adapters.mongodb.connection import MongoDatabase
from engine.adapters.mongodb.execution_store import MongoExecutionStore
from engine.domain.execution import StepStatus, Value
from tests.contract.samples import NOW, ended, execution, seconds, step

async def main(uri, driver, who):
    database = MongoDatabase(uri, driver)
    store = MongoExecutionStore(database, Codec())
    await store.check_health()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await work(store, who)
    await database.aclose()
"""


async def run_children(code: str, uri: str, driver: str, count: int = 2) -> list[list[str]]:
    """Run ``async def work(store, who)`` in processes that begin together; return the lines that each printed."""
    program = _PREAMBLE + textwrap.dedent(code) + "\nasyncio.run(main(*sys.argv[1:]))\n"
    pipe = asyncio.subprocess.PIPE
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, uri, driver, str(who), stdin=pipe, stdout=pipe, stderr=pipe
        )
        for who in range(count)
    ]
    for child in children:
        assert await child.stdout.readline() == b"ready\n", (await child.communicate())[1].decode()
    for child in children:
        child.stdin.write(b"\n")
    outputs = [await child.communicate() for child in children]
    for child, (_, complaint) in zip(children, outputs, strict=True):
        assert child.returncode == 0, complaint.decode()
    return [output.decode().splitlines() for output, _ in outputs]
