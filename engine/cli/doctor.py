"""`baton doctor`: what is there, what is missing, and what to do about each.

It opens nothing that it could leave behind: a development server is not started, only its program is tried.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from engine.cli.invocation import ExitCode, Invocation, output_option, quiet_drivers
from engine.cli.printing import note, print_json, print_table
from engine.errors import ConfigurationError, RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.cli.store_probe import StoreProbe
    from engine.settings import EngineSettings

_CHECKOUT = Path(__file__).resolve().parents[2]
_CONNECT_SECONDS = 10.0
_GO_SECONDS = 20.0
_STORES = (
    ("definitions", "neo4j_uri", "definitions"),
    ("executions", "mongo_uri", "executions"),
    ("state", "redis_uri", "live state"),
    ("vectors", "pinecone_api_key", "vectors"),
)
"""Component, the setting that gives it a server, and its name here."""
_DISPENSABLE = ("state", "vectors")
_LLM_MODULES = ("pydantic_ai", "openai", "genai_prices", "mcp")
"""What model agents and their MCP tools import; named by the extra `llm`."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        check: what was looked at.
        status: ``warning`` does not keep the main job from running; ``missing`` and ``unreachable`` do.
        detail: what was found.
        fix: what to do; empty when nothing is.
    """

    check: str
    status: Literal["ok", "warning", "missing", "unreachable"]
    detail: str
    fix: str = ""


@click.command()
@click.option(
    "--fix", is_flag=True, help="Do what can be done: get a Temporal server, register search attributes, make indexes."
)
@output_option
@click.pass_context
def doctor(ctx: click.Context, fix: bool) -> None:  # noqa: FBT001 - click passes options by name
    """Say what is missing here and how to get it; exits 3 when something is, 4 when a server doesn't answer."""
    invocation = ctx.ensure_object(Invocation)
    checks = list(_checks(invocation, fix=fix))
    healthy = not any(check.status in {"missing", "unreachable"} for check in checks)
    if invocation.output == "json":
        print_json({"ok": healthy, "checks": [asdict(check) for check in checks]}, "json")
    elif invocation.output == "jsonl":
        for check in checks:
            print_json(asdict(check), "jsonl")
    else:
        print_table(
            ["CHECK", "STATUS", "WHAT"],
            [[c.check, c.status, f"{c.detail.rstrip('.')}. {c.fix}" if c.fix else c.detail] for c in checks],
        )
    if any(check.status == "missing" for check in checks):
        ctx.exit(ExitCode.CONFIGURATION)
    if not healthy:
        ctx.exit(ExitCode.UNREACHABLE)


def _checks(invocation: Invocation, *, fix: bool) -> Iterator[Check]:
    yield _python()
    packages = _packages()
    yield packages
    if packages.status != "ok":
        return
    try:
        settings = invocation.settings()
    except ConfigurationError as error:
        yield Check("settings", "missing", error.message, "Correct them")
        return
    yield _llm_packages()
    yield _config_file()
    yield _data_dir(settings.data_dir)
    if settings.has_temporal_address():
        yield from _configured_server(settings, fix=fix)
    else:
        yield from _server_program(fix=fix)
    yield from _stores(settings, fix=fix)


def _python() -> Check:
    version = ".".join(str(number) for number in sys.version_info[:3])
    return Check("Python", "ok", f"{version}, {sys.executable}")


def _packages() -> Check:
    project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in cast("list[str]", project["dependencies"])]
    absent: list[str] = []
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return Check(
            "packages",
            "missing",
            f"not installed: {', '.join(absent)}",
            "Start by ./baton, which installs requirements.lock into .venv",
        )
    return Check("packages", "ok", f"all {len(names)} of pyproject.toml")


def absent_llm_packages() -> list[str]:
    """Return what model agents need and is not installed; nothing is imported for that."""
    return [name for name in _LLM_MODULES if importlib.util.find_spec(name) is None]


def _llm_packages() -> Check:
    absent = absent_llm_packages()
    if absent:
        return Check(
            "model agents", "ok", f"can't be called: {', '.join(absent)} not installed", "./baton install llm gets them"
        )
    return Check("model agents", "ok", "their packages are installed")


def _config_file() -> Check:
    from engine.settings import CONFIG_FILE

    path = Path(os.environ.get("BATON_CONFIG_FILE") or CONFIG_FILE).absolute()
    return Check("settings", "ok", str(path) if path.is_file() else f"no {CONFIG_FILE} here; environment and defaults")


def _data_dir(folder: Path) -> Check:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("data_dir", "ok", str(folder) + ("" if folder.exists() else " (made when needed)"))
    return Check(
        "data_dir", "missing", f"{folder} can't be written", "Make it writable or choose another: -c data_dir=FOLDER"
    )


def _server_program(*, fix: bool) -> Iterator[Check]:
    from engine.adapters.temporal.dev_server import TemporalBinary, build_binary, examine_binaries

    found: TemporalBinary | None = None
    for candidate in examine_binaries():
        if isinstance(candidate, TemporalBinary):
            found = candidate
            break
        yield Check("Temporal CLI", "warning", f"{candidate.path} is passed over: {candidate.reason}")
    failure = ""
    if found is None and fix:
        try:
            found = build_binary(note)
        except RuntimeUnavailableError as error:
            failure = error.message
    go = shutil.which("go")
    if found is not None:
        yield Check("Temporal server", "ok", f"{found.version}, {found.path} ({found.source})")
    else:
        way = "./baton doctor --fix builds it with Go" if go else "./baton doctor --fix downloads it, or install Go"
        yield Check("Temporal server", "missing", failure or "no usable Temporal CLI", "" if failure else way)
    if go:
        yield Check("Go", "ok", _go_version(go))
    else:
        yield Check(
            "Go",
            "ok" if found else "warning",
            "not installed; needed only to build the Temporal server",
            "" if found else "Install Go 1.26 or later, or the Temporal CLI",
        )


def _go_version(go: str) -> str:
    try:
        ran = subprocess.run(  # noqa: S603 - Go from PATH, fixed arguments, no shell
            [go, "version"], capture_output=True, text=True, timeout=_GO_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{go} can't be run: {error}"
    return f"{ran.stdout.strip().removeprefix('go version ')}, {go}"


def _configured_server(settings: EngineSettings, *, fix: bool) -> Iterator[Check]:
    import asyncio

    from engine.cli.temporal_probe import ServerProbe, probe_server

    name = "Temporal server"
    try:
        found: ServerProbe = asyncio.run(
            probe_server(settings.temporal_connect_config(), timeout_seconds=_CONNECT_SECONDS, register=fix)
        )
    except ConfigurationError as error:
        yield Check(name, "missing", error.message)
        return
    except RuntimeUnavailableError as error:
        yield Check(name, "unreachable", error.message)
        return
    yield Check(name, "ok", f"{found.version} at {settings.temporal_address}, namespace {settings.temporal_namespace}")
    if found.absent_attributes:
        yield Check(
            "search attributes",
            "warning",
            f"not registered: {', '.join(found.absent_attributes)}; runs can't be found by them in the UI",
            "" if fix else "./baton doctor --fix registers them",
        )
    else:
        yield Check("search attributes", "ok", "all registered")


def _stores(settings: EngineSettings, *, fix: bool) -> Iterator[Check]:
    import asyncio

    from engine.cli.store_probe import probe_stores

    configured = [component for component, key, _ in _STORES if getattr(settings, key) is not None]
    probes: dict[str, StoreProbe] = {}
    if configured:
        try:
            with quiet_drivers():
                probes = asyncio.run(probe_stores(settings, configured, make_schemas=fix))
        except ConfigurationError as error:
            yield Check("stores", "missing", error.message)
            return
    for component, _, name in _STORES:
        yield _store(name, probes[component]) if component in probes else Check(name, "ok", "embedded in data_dir")


def _store(name: str, probe: StoreProbe) -> Check:
    if not probe.fault:
        made = "; constraints and indexes are made" if probe.is_made else ""
        return Check(name, "ok", probe.found + made)
    if probe.component in _DISPENSABLE:
        return Check(name, "warning", probe.fault, "Until then Baton does without it")
    return Check(name, "unreachable", probe.fault)
