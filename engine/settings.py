"""What the user configured, read once and checked whole: the only reader of config, environment and baton.toml.

Four sources, each key from the first one that has it: the explicit mapping, ``BATON_*`` variables, the profile in
``baton.toml``, the default. A misspelt key is refused, because one that is silently ignored would put data into an
embedded store instead of the database that was meant. All faults are reported at once. Where Temporal is comes in
addition from Temporal's own environment and ``temporal.toml``, so that what its CLI uses works here untouched.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from engine.errors import ConfigurationError
from engine.toml_profiles import read_toml, table, temporal_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CONFIG_FILE", "EngineSettings", "McpServer", "config_from_text"]

CONFIG_FILE = "baton.toml"

_PREFIX = "BATON_"
_FILE_SUFFIX = "_FILE"
_SECRET_PREFIX = "BATON_SECRET_"  # noqa: S105 - the prefix of the variables that agents' secrets come from
_OWN_VARIABLES = ("BATON_PROFILE", "BATON_CONFIG_FILE")
_LISTS = ("agent_modules", "allowed_hosts", "secret_hosts")
_NUMBERS = (
    "connection_pool_size",
    "cache_ttl",
    "compression_threshold",
    "batch_size",
    "retry_count",
    "embedding_dimension",
)
_SHOWN_CHARS = 60


def _seconds(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("not a number of seconds")
    return timedelta(seconds=value)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _some_path(value: object) -> object:
    if value == "":
        raise ValueError("an empty path would be the current folder")
    return value


def _host_and_port(value: str) -> str:
    if not re.fullmatch(r"[^\s/@:]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}", value):
        raise ValueError("not host:port")
    return value


def _scheme(*allowed: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        if value.get_secret_value().partition("://")[0] not in allowed or "://" not in value.get_secret_value():
            raise ValueError("another scheme")
        return value

    return AfterValidator(check)


def _each(pattern: str) -> AfterValidator:
    def check(value: tuple[str, ...]) -> tuple[str, ...]:
        if any(re.fullmatch(pattern, item) is None for item in value):
            raise ValueError("an item of another form")
        return value

    return AfterValidator(check)


def _parsed(value: object) -> object:
    return cast("object", json.loads(value)) if isinstance(value, str) else value


def _named(value: dict[str, McpServer]) -> dict[str, McpServer]:
    if any(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is None for name in value):
        raise ValueError("a server's name of another form")
    return value


class McpServer(BaseModel):
    """How an MCP server is reached: started by ``command``, or at ``url``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Program and arguments; it speaks over its standard input and output."""
    env: dict[str, str] = Field(default_factory=dict[str, str])
    """Variables for the program, with ``${secret.NAME}`` filled in; of Baton's own environment it gets PATH, HOME,
    LANG and their like."""
    url: str | None = Field(default=None, pattern=r"https?://[^\s/@]+(/[^\s@]*)?")
    """Address of its streamable HTTP endpoint; its host must be in ``allowed_hosts``."""
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    """Headers for ``url``, with ``${secret.NAME}`` filled in."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("command or url, and not both")
        return self


_Texts = Annotated[tuple[str, ...], Field(strict=False)]
_Text = Annotated[str, Field(min_length=1)]
_Secret = Annotated[SecretStr, Field(min_length=1)]
_Address = Annotated[str, AfterValidator(_host_and_port)]
_Folder = Annotated[Path, Field(strict=False), BeforeValidator(_some_path)]


def _http_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", value):
        raise ValueError("not an http address")
    return value


_address = AfterValidator(_http_address)


class EngineSettings(BaseModel):
    """The parsed settings; immutable. Use `load`: it alone reads the sources.

    Each field's description says what is allowed and is part of the message when something else was given. URIs and
    secrets are `SecretStr`, because a URI may hold a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    mongo_uri: Annotated[SecretStr, _scheme("mongodb", "mongodb+srv")] | None = Field(
        default=None, description="a URI beginning with mongodb:// or mongodb+srv://"
    )
    mongo_driver: Literal["motor", "pymongo"] = Field(default="motor", description="motor or pymongo")
    redis_uri: Annotated[SecretStr, _scheme("redis", "rediss", "unix")] | None = Field(
        default=None, description="a URI beginning with redis://, rediss:// or unix://"
    )
    neo4j_uri: Annotated[SecretStr, _scheme("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")] | None = (
        Field(default=None, description="a URI beginning with bolt:// or neo4j:// (also +s and +ssc)")
    )
    neo4j_user: _Text | None = Field(default=None, description="a text that is not empty")
    neo4j_password: _Secret | None = Field(default=None, description="a text that is not empty")
    pinecone_api_key: _Secret | None = Field(default=None, description="a text that is not empty")
    pinecone_environment: str | None = Field(default=None, description="a text")
    """A label: today's Pinecone takes no environment."""
    pinecone_index: _Text | None = Field(default=None, description="the name of an index")
    pinecone_host: _Text | None = Field(default=None, description="the address of an index")
    connection_pool_size: int = Field(default=10, ge=1, le=1000, description="a whole number of connections, 1 to 1000")
    cache_ttl: Annotated[timedelta, BeforeValidator(_seconds)] = Field(
        default=timedelta(seconds=300), description="a number of seconds, 0 or more"
    )
    compression_threshold: int = Field(default=1024, ge=0, description="a whole number of bytes, 0 or more")
    batch_size: int = Field(default=100, ge=1, le=10_000, description="a whole number, 1 to 10000")
    retry_count: int = Field(default=3, ge=0, le=1000, description="a whole number of retries, 0 to 1000")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = Field(
        default="INFO", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="text or json")
    temporal_address: _Address | None = Field(default=None, description="host:port of a Temporal frontend")
    """None: the development server of `data_dir`."""
    temporal_namespace: _Text = Field(default="default", description="the name of a namespace")
    task_queue: _Text = Field(default="baton", description="the name of a task queue")
    worker: Literal["embedded", "none"] = Field(default="embedded", description="embedded or none")
    """Whether an engine runs a worker in its own process. `load` says none where an address is known."""
    workflow_runner: Literal["unsandboxed", "sandboxed"] = Field(
        default="unsandboxed", description="unsandboxed or sandboxed"
    )
    compression: Literal["zstd", "gzip"] = Field(default="zstd", description="zstd or gzip")
    data_dir: _Folder = Field(default=Path(".baton"), description="the path of a folder")
    """Holds the embedded database and the development server's. `load` makes it absolute."""
    metrics_address: _Address | None = Field(default=None, description="host:port for the worker's Prometheus endpoint")
    agent_modules: Annotated[_Texts, _each(r"[^\W\d]\w*(\.[^\W\d]\w*)*")] = Field(
        default=(), description="a list of Python modules, for example my_agents or package.agents"
    )
    allowed_hosts: Annotated[_Texts, _each(r"(\*\.)?[^\s/@:*]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")] = Field(
        default=(), description="a list of host, host:port or *.domain"
    )
    llm_base_url: Annotated[_Text, _address] | None = Field(
        default=None, description="an address beginning with http:// or https://"
    )
    """OpenAI-compatible endpoint for model agents whose config names none; its host is allowed by being set here."""
    mcp_servers: Annotated[
        dict[str, McpServer], Field(strict=False), BeforeValidator(_parsed), AfterValidator(_named)
    ] = Field(
        default_factory=dict[str, McpServer],
        description="a table of names, each with command (a list) or url, and env or headers",
    )
    prices_file: _Folder | None = Field(default=None, description="the path of a TOML file of prices")
    embedder: Literal["hashing", "openai", "pinecone"] = Field(
        default="hashing", description="hashing, openai or pinecone"
    )
    """What makes vectors of texts: the built-in one, an OpenAI-compatible ``/embeddings`` endpoint, or Pinecone."""
    embedding_model: _Text | None = Field(default=None, description="the name of an embedding model")
    embedding_dimension: int | None = Field(default=None, ge=1, le=20_000, description="a whole number, 1 to 20000")
    embedding_base_url: Annotated[_Text, _address] | None = Field(
        default=None, description="an address beginning with http:// or https://"
    )
    """Endpoint of the embedder ``openai``; OpenAI's own when absent."""
    embedding_api_key: _Secret | None = Field(default=None, description="a text that is not empty")
    """Key for the embedder ``openai``."""
    secret_hosts: Annotated[
        _Texts, _each(r"[A-Za-z_]\w*=((\*\.)?[^\s/@:*]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?)")
    ] = Field(default=(), description="a list of NAME=host, NAME=host:port or NAME=*.domain")
    """Where a secret may go; one that is not named here may go to every allowed host."""
    secrets_dir: _Folder | None = Field(default=None, description="the path of a folder")
    signing_key: _Secret | None = Field(default=None, description="a text that is not empty")

    _temporal_environ: dict[str, str] = PrivateAttr(default_factory=dict)
    _temporal_file: Path | None = PrivateAttr(default=None)

    @classmethod
    def load(
        cls,
        config: Mapping[str, object] | None = None,
        *,
        profile: str | None = None,
        environ: Mapping[str, str] = os.environ,
        cwd: Path | None = None,
    ) -> Self:
        """Read all sources and check them.

        Args:
            config: keys and values as the user gave them; durations are seconds. Wins over everything else.
            profile: which ``[profile.<name>]`` of ``baton.toml``; else ``BATON_PROFILE``, else ``default``.
            environ: the environment. An empty variable counts as absent; a list is comma-separated; URIs and secrets
                may be in a file that ``BATON_<KEY>_FILE`` names.
            cwd: where ``baton.toml`` lies and relative paths begin; the current directory when absent.

        Raises:
            ConfigurationError: with every fault in ``details.issues`` and the first one's key in ``details.path``.
        """
        folder = cwd or Path.cwd()
        sources = _Sources()
        sources.add_profile(folder, environ, profile)
        sources.add_environment(environ)
        sources.add_config({} if config is None else config)
        values = sources.values
        temporal_file, told_profile = temporal_profile(environ)
        for key in ("address", "namespace"):
            told = environ.get(f"TEMPORAL_{key.upper()}") or told_profile.get(key)
            if told:
                values.setdefault(f"temporal_{key}", told)
        values.setdefault("worker", "embedded" if values.get("temporal_address") is None else "none")
        values.setdefault("data_dir", cls.model_fields["data_dir"].default)
        for key in ("data_dir", "secrets_dir", "prices_file"):
            value = values.get(key)
            if isinstance(value, str | Path) and str(value):
                values[key] = folder.absolute() / Path(value).expanduser()
        temporal_environ = {name: text for name, text in environ.items() if name.startswith("TEMPORAL_")}
        try:
            settings = cls.model_validate(values, context=(temporal_environ, temporal_file))
        except ValidationError as error:
            for key in dict.fromkeys(str(fault["loc"][0]) for fault in error.errors(include_input=False)):
                sources.add_wrong_value(key)
            sources.raise_faults()
            raise
        sources.raise_faults()
        return settings

    def model_post_init(self, context: tuple[dict[str, str], Path | None] | None, /) -> None:
        """Keep what `load` found of Temporal's own settings, for the moment of connecting."""
        if context is not None:
            self._temporal_environ, self._temporal_file = context

    def has_temporal_address(self) -> bool:
        """Whether a server is configured; without one the development server of `data_dir` is used."""
        return self.temporal_address is not None

    def temporal_connect_config(self) -> Mapping[str, object]:
        """Return the keyword arguments of ``temporalio.client.Client.connect``.

        Address and namespace are this object's own; API key, TLS and metadata come from Temporal's environment and
        ``temporal.toml``. Loads Temporal's SDK, so ask only when connecting. Without an address there is no
        ``target_host``.

        Raises:
            ConfigurationError: Temporal's own settings can't be used.
        """
        from temporalio.envconfig import ClientConfigProfile

        try:
            found = ClientConfigProfile.load(
                config_source=self._temporal_file,
                disable_file=self._temporal_file is None,
                override_env_vars=self._temporal_environ,
            ).to_client_connect_config()
        except (RuntimeError, OSError) as error:
            # The reason itself may quote a line of the file, and that line may be the one with the API key.
            raise ConfigurationError(
                f"Temporal's own settings can't be used: check {self._temporal_file or 'the TEMPORAL_ variables'}, "
                "the profile that TEMPORAL_PROFILE names and the files of certificates and keys.",
                {"path": "temporal_address"},
            ) from error
        address = {} if self.temporal_address is None else {"target_host": self.temporal_address}
        return {**found, **address, "namespace": self.temporal_namespace}


_KEYS = tuple(EngineSettings.model_fields)
_CONFIDENTIAL = frozenset(
    key for key, described in EngineSettings.model_fields.items() if "SecretStr" in str(described.annotation)
) | {"mcp_servers"}


def config_from_text(pairs: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Make a config mapping of texts, as a command line has them: lists by comma, numbers as numbers.

    Unknown keys and wrong values stay, for `EngineSettings.load` to report with all others.
    """
    return {key: _value_of_text(key, text) for key, text in pairs}


def _value_of_text(key: str, text: str) -> object:
    if key in _LISTS:
        return [item.strip() for item in text.split(",") if item.strip()]
    if key in _NUMBERS:
        for read in cast("tuple[Callable[[str], object], ...]", (int, float)):
            try:
                return read(text)
            except ValueError:
                continue
    return text


@dataclass
class _Sources:
    """Values by key as the sources are added, later ones winning, with where each came from."""

    values: dict[str, object] = field(default_factory=dict[str, object])
    _origin: dict[str, str] = field(default_factory=dict[str, str])
    _faults: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    def add_profile(self, folder: Path, environ: Mapping[str, str], profile: str | None) -> None:
        named = environ.get("BATON_CONFIG_FILE")
        path = folder / (named or CONFIG_FILE)
        name = profile or environ.get("BATON_PROFILE")
        document = read_toml(path)
        if document is None:
            if named:
                self._fault("BATON_CONFIG_FILE", f"BATON_CONFIG_FILE names {path}, and there is no such file")
            if name:
                self._fault("profile", f"There is no profile {name!r}, because there is no {path}")
            return
        for key in document:
            if key != "profile":
                self._fault(key, f"{path} has {key!r} outside of a profile; write it below [profile.default]")
        profiles = table(document, "profile")
        chosen = name or "default"
        if chosen not in profiles:
            if name:
                there = ", ".join(profiles) or "none"
                self._fault("profile", f"{path} has no profile {name!r}; it has: {there}{_nearest(name, profiles)}")
        elif not isinstance(profiles[chosen], dict):
            self._fault("profile", f"profile.{chosen} in {path} must be a table of keys and values")
        else:
            self._add(table(profiles, chosen), f"profile {chosen} in {path.name}")

    def add_environment(self, environ: Mapping[str, str]) -> None:
        keys = {f"{_PREFIX}{key.upper()}": key for key in _KEYS}
        files = {f"{_PREFIX}{key.upper()}{_FILE_SUFFIX}": key for key in sorted(_CONFIDENTIAL)}
        for variable in sorted(environ):
            text = environ[variable]
            if not text or not variable.startswith(_PREFIX) or variable.startswith(_SECRET_PREFIX):
                continue
            if variable in keys:
                self._set(keys[variable], _value_of_text(keys[variable], text), variable)
            elif variable in files:
                self._add_file(files[variable], variable, Path(text), environ)
            elif variable not in _OWN_VARIABLES and (hint := _nearest(variable, (*keys, *files))):
                # Only what looks like a slip: others may have variables with this prefix too.
                self._fault(variable, f"There is no setting {variable}{hint}")

    def _add_file(self, key: str, variable: str, path: Path, environ: Mapping[str, str]) -> None:
        if environ.get(f"{_PREFIX}{key.upper()}"):
            self._fault(key, f"Both {_PREFIX}{key.upper()} and {variable} are set; keep one of them")
            return
        try:
            self._set(key, path.read_text(encoding="utf-8").rstrip("\r\n"), variable)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            self._fault(key, f"{variable} names {path}, which can't be read: {reason}")

    def add_config(self, config: Mapping[str, object]) -> None:
        if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
            raise ConfigurationError(
                f"config must be a dict of settings, not {type(config).__name__}", {"path": "config"}
            )
        self._add(config, "config")

    def add_wrong_value(self, key: str) -> None:
        value = self.values.get(key)
        shown = f"{value!r:.{_SHOWN_CHARS}}" if key not in _CONFIDENTIAL else f"this {type(value).__name__}"
        allowed = EngineSettings.model_fields[key].description
        origin = self._origin.get(key, "Temporal's own settings")
        self._fault(key, f"{key} must be {allowed}, not {shown} ({origin})")

    def raise_faults(self) -> None:
        if not self._faults:
            return
        texts = [str(fault["message"]) for fault in self._faults]
        count = "" if len(texts) == 1 else f"{len(texts)} faults in the settings: "
        raise ConfigurationError(count + "; ".join(texts), {"path": self._faults[0]["path"], "issues": self._faults})

    def _add(self, table: Mapping[str, object], origin: str) -> None:
        for key, value in table.items():
            if key in _KEYS:
                self._set(key, value, origin)
            else:
                self._fault(str(key), f"There is no setting {str(key)!r} ({origin}){_nearest(str(key), _KEYS)}")

    def _set(self, key: str, value: object, origin: str) -> None:
        self.values[key] = value
        self._origin[key] = origin

    def _fault(self, path: str, message: str) -> None:
        self._faults.append(
            {"severity": "error", "code": "invalid_input", "path": path, "message": message, "hint": None}
        )


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
