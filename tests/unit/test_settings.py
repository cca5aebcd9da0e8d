"""Settings: four sources in their order, all faults at once, no secret on the outside."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from engine.errors import ConfigurationError
from engine.settings import EngineSettings, config_from_text

API_CONFIG = {
    "mongo_uri": "mongodb://localhost:27017/",
    "redis_uri": "redis://localhost:6379/0",
    "neo4j_uri": "bolt://localhost:7687",
    "neo4j_user": "neo4j",
    "neo4j_password": "password",
    "pinecone_api_key": "your-api-key",
    "pinecone_environment": "production",
    "connection_pool_size": 10,
    "cache_ttl": 300,
    "compression_threshold": 1024,
    "batch_size": 100,
    "retry_count": 3,
    "log_level": "INFO",
}
DEFAULTS = {
    "mongo_uri": None,
    "mongo_driver": "motor",
    "redis_uri": None,
    "neo4j_uri": None,
    "neo4j_user": None,
    "neo4j_password": None,
    "pinecone_api_key": None,
    "pinecone_environment": None,
    "pinecone_index": None,
    "pinecone_host": None,
    "connection_pool_size": 10,
    "cache_ttl": timedelta(minutes=5),
    "compression_threshold": 1024,
    "batch_size": 100,
    "retry_count": 3,
    "log_level": "INFO",
    "log_format": "text",
    "temporal_address": None,
    "temporal_namespace": "default",
    "task_queue": "baton",
    "worker": "embedded",
    "workflow_runner": "unsandboxed",
    "compression": "zstd",
    "metrics_address": None,
    "agent_modules": (),
    "allowed_hosts": (),
    "llm_base_url": None,
    "mcp_servers": {},
    "prices_file": None,
    "embedder": "hashing",
    "embedding_model": None,
    "embedding_dimension": None,
    "embedding_base_url": None,
    "embedding_api_key": None,
    "secret_hosts": (),
    "secrets_dir": None,
    "signing_key": None,
}


@pytest.fixture
def load(tmp_path):
    """Load with nothing of the machine's own: an empty environment in an empty folder."""

    def load(config=None, *, environ=None, **options):
        return EngineSettings.load(config, environ=environ or {}, cwd=tmp_path, **options)

    return load


def faults_of(load, config=None, **options):
    with pytest.raises(ConfigurationError) as caught:
        load(config, **options)
    details = caught.value.details
    issues = details.get("issues")
    if isinstance(issues, list):
        assert details["path"] == issues[0]["path"]
        assert all(issue["message"] in caught.value.message for issue in issues)
        return {issue["path"]: issue["message"] for issue in issues}
    return {details["path"]: caught.value.message}


def test_defaults_are_those_of_the_table(load, tmp_path):
    assert load().model_dump() == DEFAULTS | {"data_dir": tmp_path / ".baton"}


def test_the_documented_config_is_accepted_whole(load):
    settings = load(API_CONFIG)
    assert settings.model_fields_set >= API_CONFIG.keys()
    assert settings.cache_ttl == timedelta(seconds=300)
    assert settings.mongo_uri == SecretStr("mongodb://localhost:27017/")
    assert settings.pinecone_environment == "production"


def test_sources_win_in_their_order(load, tmp_path):
    (tmp_path / "baton.toml").write_text(
        '[profile.default]\nbatch_size = 1\nretry_count = 1\ntask_queue = "file"\n', encoding="utf-8"
    )
    environ = {"BATON_BATCH_SIZE": "2", "BATON_RETRY_COUNT": "2"}
    settings = load({"batch_size": 3}, environ=environ)
    assert (settings.batch_size, settings.retry_count, settings.task_queue) == (3, 2, "file")
    assert settings.connection_pool_size == 10


def test_an_explicit_none_wins_over_the_environment(load):
    assert load({"mongo_uri": None}, environ={"BATON_MONGO_URI": "mongodb://h/"}).mongo_uri is None


def test_the_environment_has_numbers_lists_and_durations(load):
    settings = load(
        environ={
            "BATON_CACHE_TTL": "1.5",
            "BATON_COMPRESSION_THRESHOLD": "0",
            "BATON_AGENT_MODULES": "examples, my_agents.review,",
            "BATON_ALLOWED_HOSTS": "api.example.com:443,*.example.org",
            "BATON_LOG_LEVEL": "debug",
            "BATON_TASK_QUEUE": "7",
            "BATON_MONGO_URI": "",
        }
    )
    assert settings.cache_ttl == timedelta(seconds=1.5)
    assert settings.compression_threshold == 0
    assert settings.agent_modules == ("examples", "my_agents.review")
    assert settings.allowed_hosts == ("api.example.com:443", "*.example.org")
    assert settings.log_level == "DEBUG"
    assert settings.task_queue == "7"
    assert settings.mongo_uri is None


def test_unknown_keys_are_refused_with_the_nearest_name(load, tmp_path):
    (tmp_path / "baton.toml").write_text("[profile.default]\nbatchsize = 1\n", encoding="utf-8")
    faults = faults_of(load, {"mongo_url": "x", "zzz": 1}, environ={"BATON_REDIS_URL": "y"})
    assert "did you mean mongo_uri?" in faults["mongo_url"]
    assert "did you mean BATON_REDIS_URI?" in faults["BATON_REDIS_URL"]
    assert "did you mean batch_size?" in faults["batchsize"]
    assert "baton.toml" in faults["batchsize"]
    assert "did you mean" not in faults["zzz"]


def test_variables_of_others_are_left_alone(load):
    environ = {"BATON_SECRET_OPENAI_API_KEY": "k", "BATON_CI_IMAGE": "x", "BATON_CONFIG_FILE": "", "PATH": "/bin"}
    assert load(environ=environ).model_dump() == load().model_dump()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mongo_uri", "http://host"),
        ("mongo_uri", "localhost:27017"),
        ("redis_uri", 5),
        ("neo4j_uri", "https://h"),
        ("neo4j_user", ""),
        ("neo4j_password", 5),
        ("pinecone_api_key", ""),
        ("pinecone_environment", 1),
        ("mongo_driver", "pymong"),
        ("connection_pool_size", 0),
        ("connection_pool_size", "10"),
        ("connection_pool_size", True),
        ("connection_pool_size", 1.5),
        ("cache_ttl", -1),
        ("cache_ttl", "300"),
        ("cache_ttl", True),
        ("cache_ttl", float("inf")),
        ("cache_ttl", None),
        ("compression_threshold", -1),
        ("batch_size", 0),
        ("retry_count", -1),
        ("log_level", "LOUD"),
        ("log_format", "xml"),
        ("temporal_address", "localhost"),
        ("temporal_address", "http://localhost:7233"),
        ("temporal_namespace", ""),
        ("task_queue", ""),
        ("worker", "external"),
        ("workflow_runner", True),
        ("compression", "lz4"),
        ("data_dir", 5),
        ("data_dir", ""),
        ("metrics_address", "9090"),
        ("agent_modules", "examples"),
        ("agent_modules", ["examples/review"]),
        ("agent_modules", [5]),
        ("allowed_hosts", ["https://api.example.com"]),
        ("allowed_hosts", ["*"]),
        ("secrets_dir", 5),
        ("signing_key", ""),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(load, key, value):
    message = faults_of(load, {key: value})[key]
    assert message.startswith(f"{key} must be {EngineSettings.model_fields[key].description}, not ")


def test_all_faults_are_told_at_once(load):
    config = {"batch_size": "many", "cache_ttl": -1, "mongo_url": "x", "agent_modules": ["a b", "c d"]}
    faults = faults_of(load, config, environ={"BATON_RETRY_COUNT": "often"})
    assert faults.keys() == {"batch_size", "cache_ttl", "mongo_url", "agent_modules", "retry_count"}
    assert faults["retry_count"].endswith("not 'often' (BATON_RETRY_COUNT)")


def test_a_config_that_is_no_mapping_is_refused(load):
    assert "not list" in faults_of(load, [("batch_size", 1)])["config"]


def test_no_secret_shows(load):
    secrets = {
        "mongo_uri": "mongodb://user:hunter2@host/",
        "redis_uri": "redis://:hunter2@host",
        "neo4j_uri": "bolt://u:hunter2@host",
        "neo4j_password": "hunter2",
        "pinecone_api_key": "hunter2",
        "signing_key": "hunter2",
    }
    settings = load(secrets, environ={"TEMPORAL_API_KEY": "hunter2"})
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings.signing_key is not None
    assert settings.signing_key.get_secret_value() == "hunter2"
    wrong = {key: f"wrong-{value}" for key, value in secrets.items() if key.endswith("uri")} | {
        "signing_key": ["hunter2"]
    }
    assert "hunter2" not in str(faults_of(load, wrong))


def test_secrets_and_uris_come_from_files(load, tmp_path):
    (tmp_path / "key").write_text("from-file\n", encoding="utf-8")
    settings = load(environ={"BATON_PINECONE_API_KEY_FILE": str(tmp_path / "key")})
    assert settings.pinecone_api_key == SecretStr("from-file")


def test_files_of_secrets_that_cannot_be_used(load, tmp_path):
    (tmp_path / "key").write_text("k", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    environ = {
        "BATON_SIGNING_KEY_FILE": str(tmp_path / "absent"),
        "BATON_NEO4J_PASSWORD_FILE": str(tmp_path / "binary"),
        "BATON_MONGO_URI_FILE": str(tmp_path / "key"),
        "BATON_MONGO_URI": "mongodb://h/",
    }
    faults = faults_of(load, environ=environ)
    assert "No such file" in faults["signing_key"]
    assert "UTF-8" in faults["neo4j_password"]
    assert "keep one of them" in faults["mongo_uri"]


def test_a_file_is_no_way_to_give_what_is_no_secret(load):
    assert "BATON_TASK_QUEUE" in faults_of(load, environ={"BATON_TASK_QUEUE_FILE": "/x"})["BATON_TASK_QUEUE_FILE"]


def test_the_profile_is_chosen_by_argument_then_variable(load, tmp_path):
    (tmp_path / "baton.toml").write_text(
        '[profile.default]\ntask_queue="d"\n[profile.prod]\ntask_queue="p"\n[profile.test]\ntask_queue="t"\n',
        encoding="utf-8",
    )
    environ = {"BATON_PROFILE": "test"}
    assert load().task_queue == "d"
    assert load(environ=environ).task_queue == "t"
    assert load(environ=environ, profile="prod").task_queue == "p"
    message = faults_of(load, profile="prd")["profile"]
    assert "default, prod, test" in message
    assert "did you mean prod?" in message


def test_the_config_file_may_lie_elsewhere(load, tmp_path):
    path = tmp_path / "elsewhere.toml"
    path.write_text("[profile.default]\nbatch_size = 7\n", encoding="utf-8")
    assert load(environ={"BATON_CONFIG_FILE": str(path)}).batch_size == 7
    assert "no such file" in faults_of(load, environ={"BATON_CONFIG_FILE": "absent.toml"})["BATON_CONFIG_FILE"]
    assert "no profile 'x'" in faults_of(load, profile="x")["profile"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profile.default\n", "no valid TOML"),
        ("batch_size = 5\n", "outside of a profile"),
        ("[profile]\ndefault = 5\n", "must be a table"),
    ],
)
def test_a_broken_config_file_is_named(load, tmp_path, text, words):
    (tmp_path / "baton.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=words) as caught:
        load()
    assert "baton.toml" in caught.value.message


def test_folders_become_absolute(load, tmp_path):
    settings = load({"data_dir": "data", "secrets_dir": Path("~/secrets")})
    assert settings.data_dir == tmp_path / "data"
    assert settings.secrets_dir == Path.home() / "secrets"


def test_a_worker_is_embedded_only_without_an_address(load):
    assert load().worker == "embedded"
    assert not load().has_temporal_address()
    with_address = load({"temporal_address": "temporal.internal:7233"})
    assert with_address.worker == "none"
    assert with_address.has_temporal_address()
    assert load({"temporal_address": "[::1]:7233", "worker": "embedded"}).worker == "embedded"


@pytest.fixture
def temporal_file(tmp_path):
    path = tmp_path / "temporal.toml"
    path.write_text(
        '[profile.default]\naddress = "file:1"\nnamespace = "file"\n'
        '[profile.cloud]\naddress = "cloud:2"\nnamespace = "ns"\napi_key = "hunter2"\n'
        '[profile.cloud.tls]\nserver_name = "cloud.example"\n',
        encoding="utf-8",
    )
    return path


def test_temporals_own_environment_and_file_give_the_address(load, temporal_file):
    environ = {"TEMPORAL_CONFIG_FILE": str(temporal_file)}
    settings = load(environ=environ)
    assert (settings.temporal_address, settings.temporal_namespace, settings.worker) == ("file:1", "file", "none")
    assert settings.temporal_connect_config() == {"target_host": "file:1", "namespace": "file"}
    environ["TEMPORAL_ADDRESS"] = "variable:3"
    assert load(environ=environ).temporal_connect_config() == {"target_host": "variable:3", "namespace": "file"}
    ours = load({"temporal_address": "ours:4", "temporal_namespace": "own"}, environ=environ)
    assert ours.temporal_connect_config() == {"target_host": "ours:4", "namespace": "own"}


def test_temporals_file_is_found_where_temporals_tools_look(load, tmp_path, temporal_file, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    home = tmp_path / "home" / ".config" / "temporalio"
    home.mkdir(parents=True)
    temporal_file.rename(home / "temporal.toml")
    assert load(environ={"HOME": str(tmp_path / "home")}).temporal_address == "file:1"
    assert load(environ={"XDG_CONFIG_HOME": str(home.parent)}).temporal_address == "file:1"


def test_tls_and_key_of_temporals_profile_are_used(load, temporal_file):
    environ = {"TEMPORAL_CONFIG_FILE": str(temporal_file), "TEMPORAL_PROFILE": "cloud"}
    connect = load(environ=environ).temporal_connect_config()
    assert (connect["target_host"], connect["namespace"], connect["api_key"]) == ("cloud:2", "ns", "hunter2")
    assert getattr(connect["tls"], "domain", None) == "cloud.example"


def test_temporals_settings_that_cannot_be_used(load, temporal_file):
    environ = {"TEMPORAL_CONFIG_FILE": str(temporal_file), "TEMPORAL_PROFILE": "absent"}
    with pytest.raises(ConfigurationError, match="TEMPORAL_PROFILE"):
        load(environ=environ).temporal_connect_config()
    temporal_file.write_text('[profile.default]\napi_key = "hunter2', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no valid TOML") as caught:
        load(environ={"TEMPORAL_CONFIG_FILE": str(temporal_file)})
    assert "hunter2" not in caught.value.message


def test_settings_are_frozen_and_pickle(load):
    settings = load(API_CONFIG, environ={"TEMPORAL_ADDRESS": "h:1"})
    with pytest.raises(ValidationError):
        settings.batch_size = 5
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.temporal_connect_config()["target_host"] == "h:1"


def test_text_of_a_command_line_is_read_by_the_keys_kind(load):
    config = config_from_text(
        [("cache_ttl", "5"), ("agent_modules", "a,b.c"), ("task_queue", "5"), ("batch_size", "x"), ("nope", "1")]
    )
    assert config == {
        "cache_ttl": 5,
        "agent_modules": ["a", "b.c"],
        "task_queue": "5",
        "batch_size": "x",
        "nope": "1",
    }
    assert faults_of(load, config).keys() == {"batch_size", "nope"}
