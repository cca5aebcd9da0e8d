"""docker-compose.yml is what the compose specification allows, pinned, loopback only, and made for this code."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml

from engine.adapters.hashing_embedder import HashingEmbedder
from engine.cli.doctor import doctor
from engine.settings import EngineSettings

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
ONCE = {"setup", "pinecone-index"}
"""Services that end when they have done their work."""
PORTS = {"temporal": 7233, "mongodb": 27017, "redis": 6379, "neo4j": 7687}
"""Those of docs/API.md, and Temporal's own."""


def values(service: str) -> dict[str, str]:
    """A service's variables with what they are when the user sets none."""
    found: dict[str, str] = SERVICES[service].get("environment", {})
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text) for name, text in found.items()}


def test_the_file_satisfies_the_compose_specification():
    folder = resources.files(check_jsonschema) / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    broken = {**COMPOSE, "services": {"worker": {"image": "baton", "port": ["1:1"]}}}
    assert not validator.is_valid(broken)


def test_every_image_is_pinned_to_a_whole_version():
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) >= 8
    assert [image for image in images if not re.search(r":v?\d+\.\d+(\.\d+|-alpine)", image)] == []


def test_ports_are_those_of_the_contract_and_on_loopback_only():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    for service, port in PORTS.items():
        assert f"127.0.0.1:{port}:{port}" in SERVICES[service]["ports"]
    api = (CHECKOUT / "docs" / "API.md").read_text(encoding="utf-8")
    assert re.findall(r"://localhost:(\d+)", api) == [str(PORTS[name]) for name in ("mongodb", "redis", "neo4j")]
    assert len(published) == len(set(published))


def test_what_stays_has_a_health_check_and_comes_back():
    staying = {name: service for name, service in SERVICES.items() if name not in ONCE}
    assert [name for name, service in staying.items() if "healthcheck" not in service] == ["pinecone"]
    assert {service["restart"] for service in staying.values()} == {"unless-stopped"}


def test_nothing_waits_for_what_is_not_there():
    for name, service in SERVICES.items():
        needed = service.get("depends_on", {})
        assert set(needed) <= set(SERVICES), name
        for other, how in needed.items() if isinstance(needed, dict) else ():
            expected = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": expected}, f"{name} waits for {other}"
            assert other in ONCE or "healthcheck" in SERVICES[other]


def test_the_worker_waits_for_the_set_up_of_every_store():
    assert list(SERVICES["worker"]["depends_on"]) == ["setup"]
    assert set(SERVICES["setup"]["depends_on"]) == {"temporal", "mongodb", "redis", "neo4j", "pinecone-index"}
    assert SERVICES["setup"]["command"] == ["python", "-m", "engine.cli", "doctor", "--fix"]
    assert "--fix" in [name for parameter in doctor.params for name in parameter.opts]


@pytest.mark.parametrize("service", ["setup", "worker"])
def test_the_settings_are_ones_that_baton_reads(service: str):
    settings = EngineSettings.load({}, environ=values(service), cwd=CHECKOUT / "docs")
    assert settings.temporal_address == "temporal:7233"
    assert settings.worker == "none"
    addresses = [settings.mongo_uri, settings.redis_uri, settings.neo4j_uri]
    hosts = [re.findall(r"://([a-z0-9]+):(\d+)", uri.get_secret_value())[0] for uri in addresses if uri]
    assert hosts == [(name, str(PORTS[name])) for name in ("mongodb", "redis", "neo4j")]
    assert settings.pinecone_host == "http://pinecone:5081"
    assert settings.pinecone_index == "baton"
    assert settings.neo4j_password is not None
    password = settings.neo4j_password.get_secret_value()
    assert values("neo4j")["NEO4J_AUTH"] == f"{settings.neo4j_user}/{password}"


def test_the_index_is_made_for_the_embedder():
    [script] = SERVICES["pinecone-index"]["command"]
    made = json.loads(script[script.index("{") : script.rindex("}") + 1])
    assert (made["name"], made["dimension"], made["metric"]) == ("baton", HashingEmbedder().dimension, "cosine")


def test_passwords_are_for_development_and_can_be_given():
    for text in re.findall(r"PASSWORD: (.*)|PWD: (.*)|_AUTH: neo4j/(.*)", TEXT):
        assert re.fullmatch(r"\$\{(POSTGRES|NEO4J)_PASSWORD:-[a-z]+\}", "".join(text))


def test_the_image_holds_what_the_lock_names_and_runs_as_nobody():
    assert "--require-hashes" in DOCKERFILE
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [name for names in copied for name in names.split()]
    assert [name for name in sources if not (CHECKOUT / name).exists()] == []
    assert {"engine", "activities", "workflows", "worker.py", "pyproject.toml", "requirements-llm.lock"} == set(sources)
    ignored = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(sources)
    for service in ("setup", "worker"):
        assert SERVICES[service]["read_only"] is True
        assert SERVICES[service]["cap_drop"] == ["ALL"]
