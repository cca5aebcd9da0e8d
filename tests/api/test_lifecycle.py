"""An engine needs no ceremony: it opens with use, closes with its loop or by word, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import EngineError, WorkflowEngine, bootstrap
from engine.services.reconciliation import ReconciliationService
from engine.testing import ScriptedAgentInvoker

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 30


async def until(condition: Any) -> Any:
    """Wait for what ``condition`` returns to be true; it may be async."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


async def prepare(engine: WorkflowEngine, *names: str) -> None:
    """A workflow of one step for each agent: ``agent-a`` for ``a``."""
    for name in names:
        await engine.register_agent(name=name, config={"function": f"lifecycle_agents:{name}"})
        steps = [{"id": "s", "agent_id": f"agent-{name}", "retry_policy": {"max_retries": 0}}]
        await engine.create_workflow(name=name, steps=steps)


async def run(engine: WorkflowEngine, workflow_id: str) -> Any:
    started = await engine.execute_workflow(workflow_id)
    return await engine.get_execution_result(started["execution_id"], wait=SECONDS)


async def hang(given: object) -> object:
    await asyncio.sleep(600)
    return given


def open_under(folder: str) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(folder)]


@contextlib.asynccontextmanager
async def leaving_nothing(folder: str):
    """The block leaves no thread, task, child process or open file that was not there before."""
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    children = set(psutil.Process().children(recursive=True))
    yield
    await until(lambda: set(psutil.Process().children(recursive=True)) <= children)
    # The one that waits for an embedded server's process ends with that process.
    await until(lambda: set(threading.enumerate()) <= threads)
    assert asyncio.all_tasks() <= tasks
    assert open_under(folder) == []


# Opening and closing.


async def test_making_an_engine_opens_nothing(engine_config):
    async with leaving_nothing(engine_config["data_dir"]):
        WorkflowEngine(engine_config)
        assert not Path(engine_config["data_dir"]).exists()
        await WorkflowEngine(engine_config).aclose()
        async with WorkflowEngine(engine_config):
            pass
    assert not Path(engine_config["data_dir"]).exists()


async def test_after_aclose_nothing_is_left_and_the_engine_works_again(engine_config):
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": {"n": 1}}))
    for round_ in range(3):
        async with leaving_nothing(engine_config["data_dir"]):
            if round_ == 0:
                await prepare(engine, "a")
            assert (await run(engine, "a"))["output"] == {"n": 1}
            assert open_under(engine_config["data_dir"]) != []
            await engine.aclose()
            await engine.aclose()
    async with engine:
        assert len((await engine.list_executions())["items"]) == 3
    assert open_under(engine_config["data_dir"]) == []


async def test_an_embedded_server_is_gone_after_aclose(tmp_path):
    engine = WorkflowEngine({"data_dir": str(tmp_path)}, invoker=ScriptedAgentInvoker({"agent-a": {"n": 1}}))
    async with leaving_nothing(str(tmp_path)):
        await prepare(engine, "a")
        assert (await run(engine, "a"))["status"] == "completed"
        await engine.aclose()


async def test_closing_ends_the_call_of_a_running_agent_and_its_execution_goes_on_later(engine_config):
    config = {**engine_config}
    begun = threading.Event()

    async def stuck(given: object) -> object:
        begun.set()
        return await hang(given)

    async with leaving_nothing(config["data_dir"]):
        engine = WorkflowEngine(config, invoker=ScriptedAgentInvoker({"agent-a": stuck}))
        await prepare(engine, "a")
        started = await engine.execute_workflow("a")
        assert await asyncio.to_thread(begun.wait, SECONDS)
        await engine.aclose()
    async with WorkflowEngine(config, invoker=ScriptedAgentInvoker({"agent-a": {"n": 2}})) as later:
        result = await later.get_execution_result(started["execution_id"], wait=SECONDS)
        assert (result["status"], result["output"]) == ("completed", {"n": 2})


async def test_a_worker_that_does_not_end_is_left_behind_and_said_so(engine_config, monkeypatch, caplog):
    released = threading.Event()

    async def endless(_: object) -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    monkeypatch.setattr(ReconciliationService, "run_forever", endless)
    monkeypatch.setattr(bootstrap, "STOP_MARGIN", -bootstrap.EMBEDDED_GRACE + timedelta(seconds=1))
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": {"n": 1}}))
    await prepare(engine, "a")
    assert (await run(engine, "a"))["output"] == {"n": 1}
    async with asyncio.timeout(SECONDS):
        await engine.aclose()
    released.set()
    (told,) = [record.message for record in caplog.records if "left behind" in record.message]
    assert told == (
        "The worker has not ended within 1 s and is left behind; look for an agent that goes on when it is cancelled, "
        "and end the process"
    )
    assert open_under(engine_config["data_dir"]) == []


async def test_calls_under_way_end_when_the_engine_is_closed(engine_config):
    """Nobody waits for an answer that can't come any more."""
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": hang}))
    await prepare(engine, "a")
    started = await engine.execute_workflow("a")

    async def watch() -> None:
        async for _ in engine.watch_execution(started["execution_id"]):
            pass

    waiting = asyncio.create_task(engine.get_execution_result(started["execution_id"], wait=600))
    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.2)
    await engine.aclose()
    done, pending = await asyncio.wait([waiting, watching], timeout=SECONDS)
    for task in pending:
        task.cancel()
    assert pending == set()
    for task in done:
        error = task.exception() if not task.cancelled() else asyncio.CancelledError()
        assert isinstance(error, EngineError | asyncio.CancelledError), error


# Loops that come and go.


def test_one_engine_serves_one_loop_after_another(engine_config):
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": {"n": 1}}))
    asyncio.run(prepare(engine, "a"))
    before = set(threading.enumerate())
    for _ in range(2):
        assert asyncio.run(run(engine, "a"))["status"] == "completed"
        assert open_under(engine_config["data_dir"]) == [], "the end of the loop closes the engine"
        assert set(threading.enumerate()) <= before


def test_a_cancelled_main_closes_the_engine(engine_config):
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": hang}))

    async def main() -> None:
        await prepare(engine, "a")
        started = await engine.execute_workflow("a")
        async with asyncio.timeout(0.3):
            await engine.get_execution_result(started["execution_id"], wait=600)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert open_under(engine_config["data_dir"]) == []


async def test_a_cancelled_call_leaves_the_engine_usable(engine_config):
    async with WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": hang, "agent-b": {}})) as engine:
        await prepare(engine, "a", "b")
        started = await engine.execute_workflow("a")
        waiting = asyncio.create_task(engine.get_execution_result(started["execution_id"], wait=600))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await run(engine, "b"))["status"] == "completed"
        assert await engine.cancel_execution(started["execution_id"]) is True
        await engine.get_execution_result(started["execution_id"], wait=SECONDS)


async def test_an_engine_serves_two_loops_at_once(engine_config):
    engine = WorkflowEngine(engine_config, invoker=ScriptedAgentInvoker({"agent-a": {"n": 1}}))
    await prepare(engine, "a")
    elsewhere = asyncio.to_thread(lambda: asyncio.run(run(engine, "a")))
    here, there = await asyncio.gather(run(engine, "a"), elsewhere)
    assert (here["status"], there["status"]) == ("completed", "completed")
    assert (await run(engine, "a"))["status"] == "completed", "the end of the other loop did not close it"
    await engine.aclose()


# Several engines.


async def test_two_engines_in_one_process_share_data_and_server(tmp_path):
    scripts = ScriptedAgentInvoker({"agent-a": {"n": 1}})
    one, other = (WorkflowEngine({"data_dir": str(tmp_path)}, invoker=scripts) for _ in range(2))
    async with leaving_nothing(str(tmp_path)), one, other:
        await prepare(one, "a")
        first, second = await asyncio.gather(run(one, "a"), run(other, "a"))
        assert (first["status"], second["status"]) == ("completed", "completed")
        assert await other.get_execution_result(first["execution_id"]) == first
        await one.aclose()
        assert (await run(other, "a"))["status"] == "completed"


AGENTS = """
import asyncio, pathlib, time

def quick(given, call):
    return {"key": call.idempotency_key}

async def slow(given, call):
    pathlib.Path("begun").touch()
    await asyncio.sleep(600)

def deaf(given, call):
    pathlib.Path("begun").touch()
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with agents for programs that run there."""
    (tmp_path / "lifecycle_agents.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


def program(place: Path, body: str) -> subprocess.Popen[str]:
    """Start a program whose ``main`` is ``body``; it has an ``engine`` on an embedded server and real agents."""
    source = f"""
import asyncio, sys, threading
from engine import WorkflowEngine
engine = WorkflowEngine({{"data_dir": "data", "agent_modules": ["lifecycle_agents"]}})
async def main():
{textwrap.indent(textwrap.dedent(body), "    ")}
asyncio.run(main())
"""
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("BATON_", "TEMPORAL_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source],
        env={**environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{place}"},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = await asyncio.to_thread(process.communicate, timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out, err


def processes_in(place: Path) -> list[str]:
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and str(place) in " ".join(process.info["cmdline"])
    ]


@pytest.mark.parametrize("agent", ["slow", "deaf"])
@pytest.mark.parametrize("closing", ["async with engine:", "if True:"])
async def test_ctrl_c_while_an_execution_runs_ends_the_program_at_once(place, agent, closing):
    async with WorkflowEngine({"data_dir": str(place / "data")}) as engine:
        await prepare(engine, agent)
    process = program(
        place,
        f"""
        {closing}
            started = await engine.execute_workflow("{agent}")
            await engine.get_execution_result(started["execution_id"], wait=600)
        """,
    )
    await until(lambda: (place / "begun").exists() or process.poll() is not None)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = await ended(process)
    assert time.monotonic() - began < SECONDS
    assert code == -signal.SIGINT, err
    assert err.strip().endswith("KeyboardInterrupt"), err
    assert "never retrieved" not in err
    assert "was destroyed" not in err
    assert processes_in(place) == []


async def test_a_program_that_never_closes_ends_clean(place):
    async with WorkflowEngine({"data_dir": str(place / "data")}) as engine:
        await prepare(engine, "quick", "slow")
    process = program(
        place,
        """
        started = await engine.execute_workflow("quick")
        print((await engine.get_execution_result(started["execution_id"], wait=60))["status"])
        await engine.execute_workflow("slow")
        """,
    )
    assert await ended(process) == (0, "completed\n", "")
    assert processes_in(place) == []


async def test_an_exception_in_main_is_what_the_program_ends_with(place):
    async with WorkflowEngine({"data_dir": str(place / "data")}) as engine:
        await prepare(engine, "quick")
    process = program(place, 'await engine.execute_workflow("quick")\nraise LookupError("mine")')
    code, _, err = await ended(process)
    assert (code, err.strip().splitlines()[-1]) == (1, "LookupError: mine")
    assert processes_in(place) == []


async def test_two_processes_on_one_folder_share_a_server(place):
    async with WorkflowEngine({"data_dir": str(place / "data")}) as engine:
        await prepare(engine, "quick")
    body = """
    started = await engine.execute_workflow("quick")
    print((await engine.get_execution_result(started["execution_id"], wait=60))["status"])
    """
    ends = await asyncio.gather(*(ended(program(place, body)) for _ in range(2)))
    assert ends == [(0, "completed\n", "")] * 2
    assert processes_in(place) == []
    async with WorkflowEngine({"data_dir": str(place / "data")}) as engine:
        assert [item["status"] for item in (await engine.list_executions())["items"]] == ["completed"] * 2


# Results and status.


async def test_a_result_is_waited_for_as_long_as_was_asked(engine_factory):
    engine = engine_factory({"agent-a": {"n": 1}, "agent-b": hang})
    await prepare(engine, "a", "b")
    started = await engine.execute_workflow("b")
    for wait in (0, 0.2):
        with pytest.raises(EngineError) as refused:
            await engine.get_execution_result(started["execution_id"], wait=wait)
        assert refused.value.code == "invalid_input"
        assert "wait=" in refused.value.message
        assert refused.value.details["execution_id"] == started["execution_id"]
    waiting = asyncio.create_task(engine.get_execution_result(started["execution_id"], wait=SECONDS))
    assert await engine.cancel_execution(started["execution_id"], "enough") is True
    assert (await waiting)["status"] == "cancelled"
    quick = await engine.execute_workflow("a")
    many = await asyncio.gather(*(engine.get_execution_result(quick["execution_id"], wait=SECONDS) for _ in range(5)))
    assert {result["status"] for result in many} == {"completed"}
    assert await engine.get_execution_result(quick["execution_id"]) == many[0]


async def test_status_answers_in_every_state_and_without_live_state_or_temporal(
    engine_factory, unused_tcp_port, tmp_path
):
    engine = engine_factory({"agent-a": {"n": 1}, "agent-b": hang, "agent-c": ValueError("no")})
    await prepare(engine, "a", "b", "c")
    ids = {name: (await engine.execute_workflow(name))["execution_id"] for name in "abc"}
    for name in "ac":
        await engine.get_execution_result(ids[name], wait=SECONDS)
    wanted = {"a": "completed", "b": "running", "c": "failed"}

    async def states(asked: WorkflowEngine) -> dict[str, str]:
        return {name: (await asked.get_execution_status(ids[name]))["status"] for name in "abc"}

    async def as_wanted() -> bool:
        return await states(engine) == wanted

    await until(as_wanted)
    await until(lambda: engine.list_executions(status="running"))
    steps_before = (await engine.get_execution_status(ids["a"]))["steps"]
    await engine.aclose()
    for file in (tmp_path / "data").glob("live.db*"):
        file.unlink()
    assert await states(engine) == wanted, "rebuilt from records"
    assert (await engine.get_execution_status(ids["a"]))["steps"] == steps_before
    cut_off = engine_factory(temporal_address=f"127.0.0.1:{unused_tcp_port}", worker="none")
    assert await states(cut_off) == wanted
    assert (await cut_off.get_execution_status(ids["b"]))["stale"] is True
    assert "stale" not in await cut_off.get_execution_status(ids["a"])
    # An agent that runs would hold up the close for its grace.
    await engine.cancel_execution(ids["b"])
    await engine.get_execution_result(ids["b"], wait=SECONDS)


# Watching.


async def watched(engine: WorkflowEngine, execution_id: str, from_event: str | None = None) -> list[Any]:
    async with asyncio.timeout(SECONDS):
        return [event async for event in engine.watch_execution(execution_id, from_event)]


async def chain(engine: WorkflowEngine) -> str:
    for name in "ab":
        await engine.register_agent(name=name, config={"function": "m:f"})
    quick = {"retry_policy": {"max_retries": 1, "initial_interval": 0.01}}
    steps = [{"id": "one", "agent_id": "agent-a", **quick}, {"id": "two", "agent_id": "agent-b", "depends_on": ["one"]}]
    await engine.create_workflow(name="chain", steps=steps)
    return (await engine.execute_workflow("chain"))["execution_id"]


WHOLE = [
    "execution.started",
    "step.started",
    "step.retried",
    "step.completed",
    "step.started",
    "step.completed",
    "execution.completed",
]
CHAIN = {"agent-a": [ValueError("once"), {"n": 1}], "agent-b": {"n": 2}}


async def test_a_watcher_sees_all_events_once_in_order_live_and_afterwards(engine_factory, tmp_path):
    engine = engine_factory(CHAIN)
    execution_id = await chain(engine)
    live = await watched(engine, execution_id)
    assert [event["type"] for event in live] == WHOLE
    assert [event["step_id"] for event in live] == [None, "one", "one", "one", "two", "two", None]
    assert len({event["id"] for event in live}) == len(live)
    assert [event["id"] for event in live] == sorted(event["id"] for event in live)
    assert await watched(engine, execution_id) == live, "of an ended execution"
    for index, event in enumerate(live):
        assert await watched(engine, execution_id, event["id"]) == live[index + 1 :]
    await engine.aclose()
    for file in (tmp_path / "data").glob("live.db*"):
        file.unlink()
    assert await watched(engine, execution_id) == live, "of an ended execution whose stream is lost"
    assert await watched(engine, execution_id, live[2]["id"]) == live[3:]


async def test_progress_that_agents_emit_is_seen_while_they_run(engine_factory):
    said = threading.Event()

    async def talk(given: object, call: Any) -> object:
        call.emit("first line")
        while not said.is_set():
            await asyncio.sleep(0.01)
        return {}

    engine = engine_factory({"agent-a": talk})
    await prepare(engine, "a")
    execution_id = (await engine.execute_workflow("a"))["execution_id"]
    seen = []
    async with asyncio.timeout(SECONDS):
        async for event in engine.watch_execution(execution_id):
            seen.append(event["type"])
            if event["type"] == "agent.progress":
                assert (event["step_id"], event["data"]) == ("s", {"text": "first line"})
                said.set()
    assert {"step.started", "agent.progress"} <= set(seen)
    assert seen[-1] == "execution.completed"


async def test_a_watcher_may_leave_early_and_come_back(engine_config):
    scripts = ScriptedAgentInvoker(CHAIN)
    async with leaving_nothing(engine_config["data_dir"]), WorkflowEngine(engine_config, invoker=scripts) as engine:
        execution_id = await chain(engine)
        async for event in engine.watch_execution(execution_id):
            first = event
            break
        # An iterator that is left behind ends with the engine or the collector, and hinders neither.
        gc.collect()
        rest = await watched(engine, execution_id, first["id"])
        assert [event["type"] for event in [first, *rest]] == WHOLE


async def test_many_watchers_and_a_cancelled_one_do_not_disturb_each_other(engine_factory):
    engine = engine_factory({"agent-a": hang})
    await prepare(engine, "a")
    execution_id = (await engine.execute_workflow("a"))["execution_id"]
    watchers = [asyncio.create_task(watched(engine, execution_id)) for _ in range(3)]
    await asyncio.sleep(0.1)
    watchers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await watchers[0]
    assert await engine.cancel_execution(execution_id) is True
    one, other = await asyncio.gather(*watchers[1:])
    assert one == other
    assert [event["type"] for event in one][-2:] == ["step.cancelled", "execution.cancelled"]


async def test_the_stream_may_be_lost_while_somebody_watches(engine_factory, tmp_path):
    """Live state may be lost at any time without losing anything else."""
    begun, released = threading.Event(), threading.Event()

    async def hold(given: object) -> object:
        begun.set()
        while not released.is_set():
            await asyncio.sleep(0.01)
        return {}

    engine = engine_factory({"agent-a": hold})
    await prepare(engine, "a")
    execution_id = (await engine.execute_workflow("a"))["execution_id"]
    assert await asyncio.to_thread(begun.wait, SECONDS)
    seen: list[str] = []
    async with asyncio.timeout(SECONDS):
        async for event in engine.watch_execution(execution_id):
            seen.append(event["type"])
            if event["type"] == "step.started":
                for file in (tmp_path / "data").glob("live.db*"):
                    file.unlink()
                released.set()
    assert seen == ["execution.started", "step.started", "step.completed", "execution.completed"]
