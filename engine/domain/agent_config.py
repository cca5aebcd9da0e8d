"""What an agent's registration may hold: the keys of each kind, and nothing secret in plain text.

A ``config`` is checked whole against its kind, because a key that nothing reads is a mistake that would show up
only in the middle of a run. Messages never repeat a value of a config: it may be a secret in the wrong place.
"""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from engine.domain.agent import AgentKind, kind_of
from engine.domain.expressions import ExpressionError, compile_template
from engine.domain.hashing import canonical_json
from engine.domain.issues import Issue, IssueCode, IssueList, Location
from engine.domain.json import JsonObject, JsonValue
from engine.domain.json_schema import check_schema
from engine.domain.structure import check_json, check_labels, check_name, check_structure, without_nulls

__all__ = [
    "INSTRUCTION_ROOTS",
    "MAX_CONFIG_BYTES",
    "AgentForm",
    "LlmConfig",
    "check_config",
    "may_be_object",
    "parse_agent_form",
]

MAX_CONFIG_BYTES: Final = 64 * 1024
INSTRUCTION_ROOTS: Final = ("input", "context")
"""What a model agent's instructions may read: the step's mapped input, and what was recalled for it."""

_KIND_ADVICE: Final = (
    "give model (an llm agent), function (a python agent) or url (an http agent), or kind with one of llm, python, http"
)
_CHOOSING_KEYS: Final = ("model", "function", "url", "kind")
_OTHER_TYPES: Final = ("array", "string", "number", "integer", "boolean", "null")
_CREDENTIAL_HEADERS: Final = ("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie")


class LlmConfig(BaseModel):
    """Config of a language model's agent."""

    kind: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    """The model's name, as its provider writes it."""
    instructions: str | None = None
    """What the model is told before the step's input; may hold ``${input.key}`` and ``${context}``."""
    base_url: str | None = None
    """Endpoint that speaks OpenAI's API, up to and with ``/v1``; without it the setting ``llm_base_url`` holds, and
    without that OpenAI's own."""
    api_key: str | None = None
    """``${secret.NAME}``; without it the secret ``OPENAI_API_KEY`` for OpenAI and the setting ``llm_base_url``, and no
    key for an endpoint of the agent's own."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one answer."""
    max_turns: int | None = Field(default=None, ge=1, le=100)
    """Most requests in one attempt, those after tools and for repairs included; 10 without it."""
    output_schema: JsonObject | None = None
    """JSON Schema of an object that the answer must fit."""


class PythonConfig(BaseModel):
    """Config of a Python function's agent."""

    kind: Literal["python"] = "python"
    function: str


class HttpConfig(BaseModel):
    """Config of an agent behind an address."""

    kind: Literal["http"] = "http"
    url: str
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    method: Literal["POST", "PUT", "PATCH"] = "POST"


_CONFIGS: Final[dict[AgentKind, type[BaseModel]]] = {"llm": LlmConfig, "python": PythonConfig, "http": HttpConfig}


class AgentForm(BaseModel):
    """What ``register_agent`` takes, checked."""

    name: str = Field(min_length=1)
    description: str | None = None
    capabilities: list[str] = Field(default_factory=list[str])
    tools: list[str] = Field(default_factory=list[str])
    config: JsonObject


def parse_agent_form(raw: JsonObject) -> tuple[AgentForm | None, list[Issue]]:
    """Check a registration; the form is None when an issue is an error. Null stands for "not given"."""
    issues = IssueList(raw)
    faulty: list[Location] = [(key,) for key, value in raw.items() if not check_json(value, issues, (key,))]
    document = without_nulls(AgentForm, {key: value for key, value in raw.items() if (key,) not in faulty})
    document.setdefault("config", {})
    form = check_structure(AgentForm, document, issues, ignored=faulty)
    check_name(document.get("name"), issues, ("name",))
    check_labels(document.get("capabilities"), issues, ("capabilities",))
    check_labels(document.get("tools"), issues, ("tools",))
    found = issues.in_order()
    config = document["config"]
    if isinstance(config, dict) and ("config",) not in faulty:
        config, config_issues = check_config(config)
        found.extend(config_issues)
        form = form and form.model_copy(update={"config": config})
    return (None if any(issue.severity == "error" for issue in found) else form), found


def check_config(config: JsonObject) -> tuple[JsonObject, list[Issue]]:
    """Return the config without its nulls, and everything that keeps it from being used."""
    issues = IssueList(config, prefix=("config",))
    size = len(canonical_json(config))
    if size > MAX_CONFIG_BYTES:
        issues.error(
            IssueCode.LIMIT_EXCEEDED,
            (),
            f"config has {size} bytes; at most {MAX_CONFIG_BYTES} are allowed. Shorten the instructions or schema.",
        )
    kind = kind_of(config)
    if kind is None:
        _add_kindless(config, issues)
        return config, issues.in_order()
    config = without_nulls(_CONFIGS[kind], config)
    check_structure(_CONFIGS[kind], config, issues)
    _check_values(config, issues)
    return config, issues.in_order()


def _add_kindless(config: JsonObject, issues: IssueList) -> None:
    if "kind" in config:
        hint = issues.did_you_mean(config["kind"], tuple(_CONFIGS))
        issues.error(IssueCode.INVALID_VALUE, ("kind",), f"There is no such kind of agent: {_KIND_ADVICE}.", hint)
        return
    hints = (issues.did_you_mean(key, _CHOOSING_KEYS) for key in config)
    hint = next((hint for hint in hints if hint is not None), None)
    issues.error(IssueCode.MISSING, (), f"config does not say which kind of agent this is: {_KIND_ADVICE}.", hint)


def _check_values(config: JsonObject, issues: IssueList) -> None:
    for key in ("url", "base_url"):
        _check_address(config.get(key), issues, (key,))
    function = config.get("function")
    if isinstance(function, str) and not _is_function_path(function):
        issues.error(
            IssueCode.INVALID_VALUE, ("function",), "function must be written package.module:name, with one plain name."
        )
    api_key = config.get("api_key")
    if isinstance(api_key, str) and not _is_secret_reference(api_key):
        issues.error(
            IssueCode.INVALID_VALUE,
            ("api_key",),
            "A key does not belong into a definition; put it in a secret and write ${secret.NAME} here.",
        )
    _check_output_schema(config.get("output_schema"), issues)
    _check_instructions(config.get("instructions"), issues)
    headers = config.get("headers")
    for name, value in headers.items() if isinstance(headers, dict) else ():
        _check_header(name, value, issues)


def may_be_object(schema: JsonObject) -> bool:
    """Whether a schema's ``type`` lets the value be an object, which is all that a model agent answers with."""
    named = schema.get("type", "object")
    return "object" in named if isinstance(named, list) else named not in _OTHER_TYPES


def _check_output_schema(schema: JsonValue, issues: IssueList) -> None:
    if not isinstance(schema, dict):
        return
    check_schema(schema, issues, ("output_schema",))
    if not may_be_object(schema):
        issues.error(
            IssueCode.INVALID_SCHEMA,
            ("output_schema", "type"),
            "A model agent answers with an object; write type: object, and put the value under a property.",
        )


def _check_instructions(instructions: JsonValue, issues: IssueList) -> None:
    if not isinstance(instructions, str):
        return
    try:
        compile_template(instructions, roots=INSTRUCTION_ROOTS)
    except ExpressionError as error:
        issues.error(IssueCode.INVALID_EXPRESSION, ("instructions",), str(error))


def _check_address(address: JsonValue, issues: IssueList, location: Location) -> None:
    if not isinstance(address, str):
        return
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable, parts = False, None
    if not usable:
        issues.error(
            IssueCode.INVALID_VALUE,
            location,
            f"{location[-1]} must be an address that begins with http:// or https://.",
        )
    elif parts is not None and location == ("base_url",) and (parts.query or parts.fragment):
        issues.error(
            IssueCode.INVALID_VALUE,
            location,
            "base_url must be an address like https://host/v1; no ?query and no #fragment is sent.",
        )
    elif parts is not None and "@" in parts.netloc:
        issues.error(
            IssueCode.INVALID_VALUE,
            location,
            f"{location[-1]} must not hold a user or password; put them in a secret and refer to it in headers.",
        )


def _check_header(name: str, value: JsonValue, issues: IssueList) -> None:
    if not isinstance(value, str):
        return
    if not name or any(char in name + value for char in "\r\n\0"):
        issues.error(
            IssueCode.INVALID_VALUE, ("headers", name), "A header needs a name, and neither may hold a line break."
        )
    elif name.lower() in _CREDENTIAL_HEADERS and "${secret." not in value:
        issues.warn(
            IssueCode.INVALID_VALUE,
            ("headers", name),
            f"The header {name} seems to hold a credential in plain text; put it in a secret and write "
            "${secret.NAME} in its place.",
        )


def _is_function_path(text: str) -> bool:
    module, colon, name = text.partition(":")
    return colon == ":" and text.isascii() and name.isidentifier() and all(p.isidentifier() for p in module.split("."))


def _is_secret_reference(text: str) -> bool:
    name = text.removeprefix("${secret.").removesuffix("}")
    written = f"${{secret.{name}}}"
    return text == written and bool(name) and name.isascii() and name.replace("_", "a").isalnum()
