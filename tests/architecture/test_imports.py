"""Who may import whom, and what a start-up loads: contracts on the graph, and fresh processes that prove them."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from source_tree import CHECKOUT, PACKAGES, imports, sources

DRIVERS = (
    *("neo4j", "pymongo", "motor", "redis", "pinecone", "sqlite3", "httpx2"),
    *("mcp", "mcp_types", "pydantic_ai", "openai", "genai_prices"),
)
HEAVY = (*DRIVERS, "temporalio", "pydantic", "opentelemetry", "click", "rich", "yaml", "zstandard", "jsonschema")
ADAPTERS_OF = {
    "neo4j": "engine/adapters/neo4j",
    "pymongo": "engine/adapters/mongodb",
    "motor": "engine/adapters/mongodb",
    "redis": "engine/adapters/redis",
    "pinecone": "engine/adapters/pinecone",
    "sqlite3": "engine/adapters/sqlite",
    "httpx2": "engine/adapters/agents",
    "mcp": "engine/adapters/agents/tools",
    "pydantic_ai": "engine/adapters/agents/llm",
    "openai": "engine/adapters/agents/llm",
    "genai_prices": "engine/adapters/agents/llm",
    "mcp_types": "engine/adapters/agents/tools",
    "temporalio": "engine/adapters/temporal",
    "msgpack": "engine/adapters/",
    "zstandard": "engine/adapters/",
    "opentelemetry": "engine/observability",
    "click": "engine/cli",
    "rich": "engine/cli",
    "yaml": "engine/cli",
}
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
ALSO_ON_TEMPORAL = ("workflows/", "activities/")


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh process has loaded after a statement."""
    shown = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, cwd=CHECKOUT, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_the_import_contracts_hold():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 5
    assert f"Contracts: {len(contracts)} kept, 0 broken" in done.stdout


def test_the_interpreter_loads_no_driver():
    loaded = loaded_by("import workflows.interpreter")
    assert "temporalio" in loaded
    assert loaded.isdisjoint(DRIVERS)


@pytest.mark.parametrize("module", ["engine.domain", "engine.ports", "engine.services"])
def test_nothing_between_loads_a_driver_or_temporal(module: str):
    every = [source.module for source in sources(module.replace(".", "/"))]
    loaded = loaded_by(f"import {', '.join(every)}")
    assert loaded.isdisjoint((*DRIVERS, "temporalio"))


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import engine").isdisjoint(HEAVY)


def test_importing_the_errors_loads_nothing_heavy():
    assert loaded_by("from engine import EngineError, ErrorCode").isdisjoint(HEAVY)


def test_an_engine_on_embedded_stores_loads_no_other_driver():
    loaded = loaded_by("from engine import WorkflowEngine; WorkflowEngine({})")
    assert loaded.isdisjoint({"neo4j", "pymongo", "motor", "redis", "pinecone"})


def test_nobody_imports_the_worker_program():
    importers = [
        f"{source.path}:{line}"
        for source in sources(*PACKAGES, "examples")
        for name, line in imports(source)
        if name.partition(".")[0] == "worker"
    ]
    assert importers == []


def test_a_library_is_imported_at_the_top_only_where_it_is_adapted():
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in sources()
        for name, line in imports(source, top_level_only=True)
        if (home := ADAPTERS_OF.get(name.partition(".")[0]))
        and not source.path.startswith(home)
        and not (name.partition(".")[0] == "temporalio" and source.path.startswith(ALSO_ON_TEMPORAL))
    ]
    assert wrong == []


ADAPTERS_OF_STORES = tuple(
    f"engine.adapters.{name}" for name in ("sqlite", "neo4j", "mongodb", "redis", "pinecone", "caching", "agents")
)


def test_only_the_composition_root_imports_adapters_of_stores():
    """Besides the adapters themselves; the CLI may ask for the development server, which is no store."""
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in sources()
        for name, line in imports(source)
        if name.startswith(ADAPTERS_OF_STORES)
        and not source.path.startswith(("engine/adapters/", "engine/bootstrap.py", "engine/stores.py"))
    ]
    assert wrong == []
