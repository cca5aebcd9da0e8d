"""The development server is shared, outlives nobody, and is found or refused with words: on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from engine.adapters.temporal import dev_server, dev_server_binary
from engine.adapters.temporal.dev_server import (
    DevServerLease,
    PassedOver,
    acquire_dev_server,
    build_binary,
    examine_binaries,
    find_binary,
    search_attributes,
)
from engine.errors import RuntimeUnavailableError

HOLD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from engine.adapters.temporal.dev_server import acquire_dev_server

    async def hold():
        lease = await acquire_dev_server(Path(sys.argv[1]))
        print(lease.address, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await lease.aclose()

    asyncio.run(hold())
    """
)


def start_holder(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def address_of(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return (await asyncio.to_thread(holder.stdout.readline)).strip()


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Return the server and the supervisor that the state file names."""
    return [psutil.Process(pid) for pid in pids_in((data_dir / "temporal" / "server.json").read_text())]


def pids_in(state: str) -> list[int]:
    return [json.loads(state)[key] for key in ("pid", "supervisor_pid")]


async def all_gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(is_alive(process) for process in processes):
            return True
        await asyncio.sleep(0.02)
    return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def serves(lease: DevServerLease) -> bool:
    binary = find_binary()
    assert binary is not None
    asked = await asyncio.create_subprocess_exec(
        *(str(binary.path), "operator", "cluster", "health", "--address", lease.address),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asked.communicate()
    return b"SERVING" in output


async def test_two_leases_share_one_server_and_the_second_close_ends_it(tmp_path: Path):
    first = await acquire_dev_server(tmp_path)
    second = await acquire_dev_server(tmp_path)
    processes = processes_of(tmp_path)
    try:
        assert second.address == first.address
        await first.aclose()
        assert all(is_alive(process) for process in processes)
        assert await serves(second)
    finally:
        await first.aclose()
        await second.aclose()
    assert not is_alive(processes[0])
    assert await all_gone(processes)
    assert not (tmp_path / "temporal" / "server.json").exists()


async def test_a_lease_closes_once(tmp_path: Path):
    first = await acquire_dev_server(tmp_path)
    await first.aclose()
    second = await acquire_dev_server(tmp_path)
    try:
        await first.aclose()
        assert await serves(second)
    finally:
        await second.aclose()


async def test_the_server_has_our_search_attributes_and_keeps_its_file_and_ports(tmp_path: Path):
    addresses: list[str] = []
    for _ in range(2):
        lease = await acquire_dev_server(tmp_path)
        binary = find_binary()
        assert binary is not None
        try:
            listed = await asyncio.create_subprocess_exec(
                *(str(binary.path), "operator", "search-attribute", "list", "--address", lease.address),
                *("--output", "json"),
                stdout=asyncio.subprocess.PIPE,
            )
            output = (await listed.communicate())[0].decode()
            addresses.append(lease.address)
        finally:
            await lease.aclose()
        for name, kind in search_attributes().items():
            assert f'"{name}"' in output, kind
    assert addresses[0] == addresses[1]


async def test_starters_in_several_processes_at_once_get_one_server(tmp_path: Path):
    holders = [start_holder(tmp_path) for _ in range(3)]
    try:
        addresses = [await address_of(holder) for holder in holders]
        processes = processes_of(tmp_path)
    finally:
        for holder in holders:
            holder.communicate("\n", timeout=20)
    assert len(set(addresses)) == 1
    assert addresses[0]
    assert [holder.returncode for holder in holders] == [0, 0, 0]
    assert not is_alive(processes[0])
    assert await all_gone(processes)


async def test_a_program_that_ends_without_closing_leaves_nothing_behind_and_says_nothing(tmp_path: Path):
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from engine.adapters.temporal.dev_server import acquire_dev_server

        asyncio.run(acquire_dev_server(Path(sys.argv[1])))
        print((Path(sys.argv[1]) / "temporal" / "server.json").read_text())
        """
    )
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, tmp_path],
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    left = [process for process in psutil.process_iter() if process.pid in pids_in(ran.stdout)]
    assert await all_gone(left)


async def test_a_killed_holder_leaves_nothing_behind(tmp_path: Path):
    holder = start_holder(tmp_path)
    assert await address_of(holder)
    processes = processes_of(tmp_path)
    holder.kill()
    holder.communicate()
    assert await all_gone(processes)


async def test_a_holder_joins_while_the_last_one_leaves(tmp_path: Path):
    lease = await acquire_dev_server(tmp_path)
    for _ in range(5):
        leaving = asyncio.create_task(lease.aclose())
        lease = await acquire_dev_server(tmp_path)
        await leaving
        assert await serves(lease)
    processes = processes_of(tmp_path)
    await lease.aclose()
    assert not is_alive(processes[0])
    assert await all_gone(processes)


async def test_a_server_that_is_killed_comes_back_on_its_address(tmp_path: Path):
    lease = await acquire_dev_server(tmp_path)
    try:
        server, supervisor = processes_of(tmp_path)
        server.kill()
        assert await all_gone([server])
        async with asyncio.timeout(20):
            while not await serves(lease):
                await asyncio.sleep(0.05)
        assert is_alive(supervisor)
        joined = await acquire_dev_server(tmp_path)
        assert joined.address == lease.address
        await joined.aclose()
    finally:
        await lease.aclose()


async def test_a_killed_supervisor_takes_its_server_along_and_the_next_start_is_clean(tmp_path: Path):
    lease = await acquire_dev_server(tmp_path)
    server, supervisor = processes_of(tmp_path)
    supervisor.kill()
    try:
        assert await all_gone([supervisor])
        if sys.platform == "linux":
            assert await all_gone([server])
        again = await acquire_dev_server(tmp_path)
        try:
            assert not is_alive(server)
            assert await serves(again)
            assert again.address == lease.address
        finally:
            await again.aclose()
    finally:
        await lease.aclose()


async def test_a_server_left_behind_is_ended_before_another_opens_its_file(tmp_path: Path):
    directory = tmp_path / "temporal"
    directory.mkdir()
    left = subprocess.Popen(
        [sys.executable, "-c", "input()", "--db-filename", directory / "temporal.db", "-"], stdin=subprocess.PIPE
    )
    (directory / "server.json").write_text(json.dumps({"pid": left.pid, "ready": True}))
    lease = await acquire_dev_server(tmp_path)
    try:
        assert left.wait(timeout=5) == -signal.SIGKILL
    finally:
        left.stdin.close()
        await lease.aclose()


async def test_a_stale_state_file_neither_misleads_nor_ends_a_stranger(tmp_path: Path):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "temporal").mkdir()
    (tmp_path / "temporal" / "server.json").write_text(
        json.dumps(
            {
                "address": "127.0.0.1:1",
                "ui_url": "http://127.0.0.1:2",
                "codec_port": 4,
                "pid": stranger.pid,
                "supervisor_pid": os.getpid(),
                "version": "0",
                "ready": True,
            }
        )
    )
    lease = await acquire_dev_server(tmp_path)
    try:
        assert lease.address != "127.0.0.1:1"
        assert await serves(lease)
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
        await lease.aclose()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path):
    lease = await acquire_dev_server(tmp_path)
    try:
        assert os.getsid(0) not in {os.getsid(process.pid) for process in processes_of(tmp_path)}
    finally:
        await lease.aclose()


async def test_a_forked_child_does_not_keep_the_server(tmp_path: Path):
    program = textwrap.dedent(
        """
        import asyncio, os, sys, time
        from pathlib import Path
        from engine.adapters.temporal.dev_server import acquire_dev_server

        async def main():
            lease = await acquire_dev_server(Path(sys.argv[1]))
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.write(writing, b"I run")
                sys.stdin.readline()
                os._exit(0)
            os.read(reading, 5)
            await lease.aclose()
            print((Path(sys.argv[1]) / "temporal" / "server.json").exists(), flush=True)

        asyncio.run(main())
        """
    )
    ran = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server_is_there = await address_of(ran)
    ran.communicate("\n", timeout=10)
    assert server_is_there == "False"


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path):
    starting = asyncio.create_task(acquire_dev_server(tmp_path))
    async with asyncio.timeout(10):
        while not (tmp_path / "temporal" / "server.json").exists():
            await asyncio.sleep(0.005)
    processes = processes_of(tmp_path)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await all_gone(processes)


async def test_a_server_that_dies_at_once_is_reported_with_its_log(tmp_path: Path):
    (tmp_path / "temporal" / "temporal.db").mkdir(parents=True)
    with pytest.raises(RuntimeUnavailableError) as caught:
        await acquire_dev_server(tmp_path)
    assert str(tmp_path / "temporal" / "server.log") in caught.value.message
    assert "did not start" in caught.value.message
    assert "unable to open database file" in caught.value.message
    # What was wrong can be put right, and nothing is in the way.
    (tmp_path / "temporal" / "temporal.db").rmdir()
    lease = await acquire_dev_server(tmp_path)
    await lease.aclose()


async def test_a_data_directory_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "data").write_text("")
    with pytest.raises(RuntimeUnavailableError, match="Make it writable or set data_dir"):
        await acquire_dev_server(tmp_path / "data")


async def test_somebody_who_never_finishes_starting_is_not_waited_for_without_end(tmp_path: Path):
    lease = await acquire_dev_server(tmp_path)
    blocker = os.open(tmp_path / "temporal" / "startup.lock", os.O_RDWR)
    try:
        assert dev_server.lock_now(blocker, 2)  # LOCK_EX
        with pytest.raises(RuntimeUnavailableError, match="Another process"):
            await acquire_dev_server(tmp_path, timeout=timedelta(seconds=0.2))
    finally:
        os.close(blocker)
        await lease.aclose()


@pytest.fixture
def no_temporal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Temporal: nothing on PATH, no build, an empty cache and temporary folder."""
    for name in ("PATH", "XDG_CACHE_HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "TMPDIR"))
    monkeypatch.setattr(dev_server_binary, "_BUILD_FOLDER", tmp_path / "temporal-dev")
    return tmp_path


def fake_temporal(folder: Path, usage: str, version: str = "temporal version 9.9.9") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "temporal"
    script.write_text(f'#!/bin/sh\ncase "$1" in --version) echo "{version}" ;; *) echo "{usage}" ;; esac\n')
    script.chmod(0o755)
    return script


ALL_FLAGS = (
    "--ip --port --ui-port --http-port --ui-codec-endpoint --db-filename --log-level --sqlite-pragma "
    "--dynamic-config-value --search-attribute"
)


async def test_without_any_temporal_the_error_names_the_commands(no_temporal: Path):
    assert find_binary() is None
    old = fake_temporal(no_temporal / "PATH", "--ip --port")
    with pytest.raises(RuntimeUnavailableError) as caught:
        await acquire_dev_server(no_temporal / "data")
    assert f"{old}: it is too old" in caught.value.message
    assert "./baton doctor --fix" in caught.value.message
    assert "./baton dev" in caught.value.message
    assert caught.value.code == "runtime_unavailable"


def test_a_temporal_on_path_that_knows_the_flags_comes_first(no_temporal: Path):
    script = fake_temporal(no_temporal / "PATH", ALL_FLAGS)
    fake_temporal(no_temporal / "temporal-dev" / "bin", ALL_FLAGS)
    found = find_binary()
    assert found == dev_server.TemporalBinary(script, "9.9.9", "PATH")


def test_a_temporal_on_path_that_is_too_old_is_passed_over_with_the_reason(no_temporal: Path):
    old = fake_temporal(no_temporal / "PATH", ALL_FLAGS.replace("--search-attribute", "").replace("--port ", ""))
    ours = fake_temporal(no_temporal / "temporal-dev" / "bin", ALL_FLAGS)
    passed_over, found = examine_binaries()
    assert isinstance(passed_over, PassedOver)
    assert passed_over.path == old
    assert passed_over.reason.endswith("does not know --port, --search-attribute")
    assert found == find_binary() == dev_server.TemporalBinary(ours, "9.9.9", "temporal-dev/bin")


def test_a_temporal_that_can_not_run_is_passed_over(no_temporal: Path):
    fake_temporal(no_temporal / "PATH", ALL_FLAGS).write_bytes(b"\x7fELF nothing")
    (passed_over,) = examine_binaries()
    assert isinstance(passed_over, PassedOver)
    assert "can't be run" in passed_over.reason


def test_another_users_file_in_the_temporary_folder_is_never_run(no_temporal: Path, monkeypatch: pytest.MonkeyPatch):
    ran = no_temporal / "ran"
    script = fake_temporal(no_temporal / "TMPDIR", ALL_FLAGS)
    script.write_text(f"#!/bin/sh\necho > '{ran}'\n")
    name = dev_server_binary._sdk_file_name()
    assert name is not None
    script.rename(script.with_name(name))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    (passed_over,) = examine_binaries()
    assert isinstance(passed_over, PassedOver)
    assert "another user" in passed_over.reason
    assert not ran.exists()


GO = """#!/bin/sh
# As `go build`: the last but one argument is the output.
while [ $# -gt 2 ]; do shift; done
echo one >> "$BUILDS"
/bin/sleep 0.3
{ending}
"""


def build_folder(machine: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = machine / "temporal-dev"
    folder.mkdir()
    (folder / "go.mod").write_text("require github.com/temporalio/cli v1.2.3\n")
    (folder / "go.sum").write_text("")
    go = machine / "PATH" / "go"
    go.write_text(GO.format(ending=ending))
    go.chmod(0o755)
    monkeypatch.setenv("BUILDS", str(machine / "builds"))
    monkeypatch.setenv("TEMPLATE", str(fake_temporal(machine / "template", ALL_FLAGS)))
    return machine / "builds"


async def test_two_builders_at_once_build_once_into_the_cache(no_temporal: Path, monkeypatch: pytest.MonkeyPatch):
    builds = build_folder(no_temporal, '/bin/cp "$TEMPLATE" "$1"', monkeypatch)
    lines: list[str] = []
    made = await asyncio.gather(*(asyncio.to_thread(build_binary, lines.append) for _ in range(2)))
    assert made[0] == made[1] == find_binary()
    assert made[0].source == "cache"
    assert (no_temporal / "XDG_CACHE_HOME") in made[0].path.parents
    assert builds.read_text() == "one\n"
    assert [line for line in lines if line.startswith("building the Temporal server 1.2.3")]
    assert [line for line in lines if line.startswith("built ")]
    assert not list(made[0].path.parent.glob("*.partial"))
    (no_temporal / "temporal-dev" / "go.sum").write_text("another lock")
    assert find_binary() is None


def test_a_failed_build_says_what_go_said_and_what_to_install(no_temporal: Path, monkeypatch: pytest.MonkeyPatch):
    build_folder(no_temporal, "echo 'go: no space left'; exit 1", monkeypatch)
    with pytest.raises(RuntimeUnavailableError) as caught:
        build_binary(lambda _line: None)
    assert "go: no space left" in caught.value.message
    assert "Go 1.26" in caught.value.message
    assert find_binary() is None
