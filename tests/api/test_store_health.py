"""What health and `baton doctor` say of real stores, of stores that are away, and never of their credentials."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from test_shapes import fits

from engine import WorkflowEngine, types
from engine.cli.root import baton
from tests.servers import free_port
from tests.servers.fixtures import ON_BOTH_STORES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import click.testing

STORES = ("definitions", "executions", "state", "vectors")
SECRETS = ("neo-secret", "mongo-secret", "redis-secret", "pine-secret")
BACKENDS = {"definitions": "neo4j", "executions": "mongodb", "state": "redis", "vectors": "pinecone"}


def settings_at(host: str, folder: Path) -> dict[str, object]:
    """All four stores at one address, with credentials."""
    return {
        "data_dir": str(folder),
        "neo4j_uri": f"bolt://{host}",
        "neo4j_user": "neo4j",
        "neo4j_password": SECRETS[0],
        "mongo_uri": f"mongodb://user:{SECRETS[1]}@{host}/",
        "redis_uri": f"redis://user:{SECRETS[2]}@{host}/0",
        "pinecone_api_key": SECRETS[3],
        "pinecone_host": f"http://{host}",
    }


@pytest.fixture
def away(tmp_path: Path) -> dict[str, object]:
    """Settings of stores where nobody listens."""
    return settings_at(f"127.0.0.1:{free_port()}", tmp_path)


def doctor(config: Mapping[str, object], *words: str) -> click.testing.Result:
    settings = [word for key, value in config.items() for word in ("-c", f"{key}={value}")]
    return CliRunner().invoke(baton, [*settings, "doctor", *words])


def store_checks(done: click.testing.Result) -> dict[str, dict[str, Any]]:
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    return {name: checks["live state" if name == "state" else name] for name in STORES}


@ON_BOTH_STORES
async def test_each_store_tells_its_version_and_where_it_is(store_settings: dict[str, object], tmp_path: Path):
    async with WorkflowEngine({"data_dir": str(tmp_path), **store_settings}) as engine:
        health = await engine.get_system_health()
    fits(health, types.SystemHealth)
    assert health["status"] == "healthy"
    for name in STORES:
        part = health["components"][name]
        assert part["status"] == "up"
        assert part["backend"] == (BACKENDS[name] if store_settings else "sqlite")
        assert part["latency_ms"] is not None
        assert part["detail"]
    for name in ("definitions", "executions", "state"):
        assert health["components"][name]["version"]


@pytest.mark.parametrize("store_settings", ["four stores"], indirect=True)
async def test_the_use_of_the_pools_is_told(store_settings: dict[str, object], tmp_path: Path):
    config = {"data_dir": str(tmp_path), **store_settings, "connection_pool_size": 7}
    async with WorkflowEngine(config) as engine:
        health = await engine.get_system_health()
    for name in ("definitions", "state"):
        assert "of 7 connections in use" in str(health["components"][name]["detail"])


async def test_stores_that_are_away_are_told_in_time_and_without_their_credentials(away: dict[str, object]):
    async with WorkflowEngine(away) as engine:
        await engine.get_system_health()  # loads the drivers
        for _ in range(6):
            started = time.monotonic()
            health = await engine.get_system_health()
            assert time.monotonic() - started < 2
            fits(health, types.SystemHealth)
            assert health["status"] == "unhealthy"
            down = {name for name, part in health["components"].items() if part["status"] == "down"}
            assert down == set(STORES)
            assert all("Without it " in str(health["components"][name]["detail"]) for name in STORES)
            assert [secret for secret in SECRETS if secret in str(health)] == []


async def test_stores_that_take_calls_and_never_answer_do_not_hold_the_report_up(tmp_path: Path):
    released = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    config = settings_at(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path)
    async with WorkflowEngine(config) as engine:
        await engine.get_system_health()  # loads the drivers
        started = time.monotonic()
        health = await engine.get_system_health()
        assert time.monotonic() - started < 2
    released.set()
    server.close()
    await server.wait_closed()
    assert {health["components"][name]["status"] for name in STORES} == {"down"}
    assert [secret for secret in SECRETS if secret in str(health)] == []


@pytest.mark.parametrize(
    ("kept", "status"),
    [("neo4j", "unhealthy"), ("mongo", "unhealthy"), ("redis", "degraded"), ("pinecone", "degraded")],
)
async def test_one_store_that_is_away_counts_by_what_it_holds(away: dict[str, object], kept: str, status: str):
    config = {key: value for key, value in away.items() if key.startswith((kept, "data_dir"))}
    async with WorkflowEngine(config) as engine:
        health = await engine.get_system_health()
    assert health["status"] == status
    assert len([part for part in health["components"].values() if part["status"] == "down"]) == 1


def test_the_doctor_tells_of_stores_that_are_away_without_their_credentials(away: dict[str, object]):
    done = doctor(away, "-o", "json")
    assert done.exit_code == 4
    assert {name: check["status"] for name, check in store_checks(done).items()} == {
        "definitions": "unreachable",
        "executions": "unreachable",
        "state": "warning",
        "vectors": "warning",
    }
    assert [secret for secret in SECRETS if secret in done.output] == []


def test_the_doctor_asks_nothing_of_embedded_stores(tmp_path: Path):
    checks = store_checks(doctor({"data_dir": tmp_path / "data"}, "-o", "json"))
    assert {(check["status"], check["detail"]) for check in checks.values()} == {("ok", "embedded in data_dir")}
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("store_settings", ["four stores"], indirect=True)
def test_the_doctor_visits_configured_stores_and_makes_their_indexes(store_settings: dict[str, object], tmp_path: Path):
    config = {"data_dir": tmp_path, **store_settings}
    looked = store_checks(doctor(config, "-o", "json"))
    assert {check["status"] for check in looked.values()} == {"ok"}
    for name, check in looked.items():
        assert check["detail"].startswith(BACKENDS[name])
        assert "are made" not in check["detail"]
    fixed = store_checks(doctor(config, "--fix", "-o", "json"))
    assert {name: "are made" in check["detail"] for name, check in fixed.items()} == {
        "definitions": True,
        "executions": True,
        "state": False,
        "vectors": False,
    }
