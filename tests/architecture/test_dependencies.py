"""What Baton is built on is declared, locked by hash, and locked without a word about where it came from."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from source_tree import CHECKOUT, PACKAGES, imports, sources

CARD = ("temporalio", "pydantic", "msgpack", "zstandard", "motor", "redis", "neo4j", "pinecone")
DISTRIBUTIONS = {
    "pydantic_ai": "pydantic-ai-slim",
    "yaml": "pyyaml",
    "ulid": "python-ulid",
    "opentelemetry": "opentelemetry-sdk",
    "google": "protobuf",
    "bson": "pymongo",
}
BROUGHT = {
    "protobuf": "temporalio",
    "httpcore2": "httpx2",
    "pydantic-core": "pydantic",
    "referencing": "jsonschema",
    "mcp-types": "mcp",
    "anyio": "mcp",
    "typing-extensions": "pydantic",
}
"""Parts of what is declared, and of its public face: they come in the version that it needs."""
LOCKS = ("requirements.lock", "requirements-llm.lock", "requirements-dev.lock")
EXTRA_ROOMS = ("engine/adapters/agents/llm/", "engine/adapters/agents/tools/")
"""Where what the extra ``llm`` brings may be imported."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    matched = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert matched is not None
    return normal(matched[0])


def declared(group: str | None = None) -> dict[str, str]:
    """Return what pyproject asks for: name to the whole requirement."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    listed = (
        project["project"]["dependencies"]
        if group is None
        else project["project"]["optional-dependencies"][group]
        if group == "llm"
        else project["dependency-groups"][group]
    )
    return {requirement_name(requirement): requirement for requirement in listed}


def locked(lock: str) -> dict[str, tuple[int, ...]]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([0-9][^\s;\\]*)", (CHECKOUT / lock).read_text(), re.MULTILINE)
    return {normal(name): release(version) for name, version in pins}


def release(version: str) -> tuple[int, ...]:
    matched = re.match(r"\d+(\.\d+)*", version)
    assert matched is not None
    return tuple(int(part) for part in matched[0].split("."))


def satisfies(version: tuple[int, ...], requirement: str) -> bool:
    """Check ``>=`` and ``<``, all that pyproject uses."""
    bounds = re.findall(r"(>=|<)\s*([0-9.]+)", requirement)
    assert len(bounds) == requirement.count(",") + 1
    return all((version >= release(bound)) is (sign == ">=") for sign, bound in bounds)


@pytest.mark.parametrize("module", CARD)
def test_the_card_is_declared(module: str):
    assert module in declared()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_satisfies_what_is_declared(lock: str):
    pins = locked(lock)
    asked = declared() | (declared("dev") if "dev" in lock else {})
    asked |= {} if lock == "requirements.lock" else declared("llm")
    missing = [name for name, wanted in asked.items() if name not in pins or not satisfies(pins[name], wanted)]
    assert missing == []


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_host_and_hashes_all(lock: str):
    text = (CHECKOUT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text.replace("--no-emit-index-url", "")
    requirements = re.split(r"\n(?=[A-Za-z0-9])", text.partition("\n\n")[2] or text)
    unhashed = [entry.split()[0] for entry in requirements if "==" in entry and "--hash=sha256:" not in entry]
    assert unhashed == []


def test_the_dev_lock_pins_the_same_versions():
    users, models, developers = (locked(lock).items() for lock in LOCKS)
    assert users <= models <= developers


def test_whatever_is_imported_is_declared():
    """Nothing is used that only happens to be installed."""
    extra = declared("llm")
    assert set(BROUGHT.values()) <= {*declared(), *extra}
    known = {*declared(), *BROUGHT}
    undeclared = sorted(
        {
            f"{source.path} imports {name}"
            for source in sources()
            for name, _ in imports(source)
            if (top := name.partition(".")[0]) not in (*PACKAGES, "examples")
            and top not in sys.stdlib_module_names
            and (distribution := normal(DISTRIBUTIONS.get(top, top))) not in known
            and not (distribution in extra and source.path.startswith(EXTRA_ROOMS))
        }
    )
    assert undeclared == []
