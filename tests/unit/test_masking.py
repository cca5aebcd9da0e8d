"""What is masked, in which of its forms, and that masking leaves all else as it is."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import re
import threading
import time
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import masking
from engine.adapters.agents.masking_invoker import MaskingAgentInvoker
from engine.domain.agent import PlanAgent
from engine.domain.agent_call import AgentFailure, AgentInvocation, AgentReply, FailureReason
from engine.domain.execution import ExecutionWarning, ToolCall, Usage
from engine.masking import MASK, knows_secrets, mask_json, mask_text, remember_secret
from engine.observability import open_logging

SECRET = "k3y/+é\"\\ &'<tail>"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """Each test begins with no secret, and leaves none to those after it."""
    monkeypatch.setattr(masking, "_secrets", OrderedDict())
    monkeypatch.setattr(masking, "_masks", None)


def forget():
    masking._secrets.clear()
    masking._masks = None


def dotnet(text):
    return "".join(f"\\u{ord(item):04X}" if item in "+&<>'`" else item for item in json.dumps(text)[1:-1])


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
        lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
        dotnet,
        lambda text: repr(text)[1:-1],
        lambda text: repr(text.encode())[2:-1],
        lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
        lambda text: repr(repr(bytearray(text.encode())))[14:-4],
        lambda text: repr(f'{text}"')[1:-2],
        html.escape,
        urllib.parse.quote,
        urllib.parse.quote_plus,
        lambda text: urllib.parse.quote(text, safe=""),
        lambda text: re.sub("%..", lambda found: found[0].lower(), urllib.parse.quote(text)),
        lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    ],
)
def test_a_secret_is_masked_in_each_form_that_others_write_it_in(form):
    text = f"Bearer {form(SECRET)}, and {form(SECRET)}{form(SECRET)}."
    assert mask_text(text) == text
    remember_secret(SECRET)
    assert mask_text(text) == "Bearer ***, and ******."


def test_without_secrets_values_come_back_as_they_are():
    value = {"a": ["text", 1, None]}
    assert not knows_secrets()
    assert mask_json(value) is value
    remember_secret("never-there")
    assert knows_secrets()
    assert mask_json(value) is value
    assert mask_text("") == ""


def test_json_is_masked_in_keys_texts_and_numbers():
    remember_secret("secret-text")
    remember_secret("40412345")
    value = {
        "a": ["x secret-text", {"secret-text": 1}, ("secret-text",)],
        "n": [40412345, -40412345.5, 4041234, True, None],
        "same": {"b": ["c"]},
    }
    masked = mask_json(value)
    assert masked == {
        "a": ["x ***", {"***": 1}, ["***"]],
        "n": ["***", "***", 4041234, True, None],
        "same": {"b": ["c"]},
    }
    assert masked["same"] is value["same"]
    assert value["a"][1] == {"secret-text": 1}


def test_the_longest_secret_at_a_place_wins():
    for secret in ("abcd", "abcdefgh", "defg"):
        remember_secret(secret)
    assert mask_text("abcdefgh abcde defgh") == "*** ***e ***h"


@pytest.mark.parametrize("value", ["", "abc", "  a  ", "\n\n\n\n"])
def test_what_would_mask_ordinary_text_is_refused(value):
    with pytest.raises(ValueError, match="4 characters"):
        remember_secret(value)
    assert not knows_secrets()


def test_a_text_that_was_cut_shows_no_beginning_of_a_secret():
    remember_secret("sk-0123456789")
    assert mask_text("key sk-01234", is_cut=True) == "key ***"
    assert mask_text("key sk-01234…") == "key ***…"
    assert mask_text("key sk-01234") == "key sk-01234"
    assert mask_text("key sk-01234 more", is_cut=True) == "key sk-01234 more"
    assert mask_text("sk-0123456789 sk-", is_cut=True) == "*** sk-"


def test_the_lines_of_a_secret_are_masked_where_a_writer_breaks_it_up():
    remember_secret("-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\nshort\n-----END KEY-----\n")
    assert mask_text("log:\n    -----BEGIN KEY-----\n  | MIIEvQIBADANBgkqhkiG\n") == "log:\n    ***\n  | ***\n"


def test_only_the_newest_thousand_are_kept():
    for number in range(1_001):
        remember_secret(f"secret-{number:05d}")
    assert mask_text("secret-00000 secret-00001 secret-01000") == "secret-00000 *** ***"
    remember_secret("secret-00001")
    remember_secret("one-more")
    assert mask_text("secret-00001 secret-00002 one-more") == "*** secret-00002 ***"


def test_the_characters_kept_are_bounded_too():
    for number in range(5):
        remember_secret(f"{number}" * 1_000_000)
    assert [len(secret) for secret in masking._secrets] == [1_000_000] * 4


ALPHABET = 'ab"\\/ \néü%+'


@given(
    secrets=st.lists(
        st.text(ALPHABET, min_size=4, max_size=12).filter(lambda text: len(text.strip()) >= 4), max_size=6
    ),
    parts=st.lists(st.one_of(st.integers(0, 5), st.text(ALPHABET, max_size=6)), max_size=12),
)
@settings(deadline=None)
def test_no_text_keeps_a_secret(secrets, parts):
    forget()
    for secret in secrets:
        remember_secret(secret)
    known = [secrets[part % len(secrets)] if secrets else "" for part in parts if isinstance(part, int)]
    text = "".join(part if isinstance(part, str) else known.pop() for part in parts)
    masked = mask_text(text)
    assert not [secret for secret in secrets if secret in masked.replace(MASK, "\0")]
    if not any(form in text for secret in secrets for form in masking._forms(secret)):
        assert masked == text
    assert json.loads(json.dumps(mask_json({"k": [text]}))) == {"k": [masked]}


def test_a_hostile_text_takes_linear_time():
    remember_secret("a" * 5_000 + "b")
    for number in range(200):
        remember_secret(f"aaaa{number}")
    started = time.perf_counter()
    assert mask_text("a" * 50_000) == "a" * 50_000
    assert time.perf_counter() - started < 20


def test_threads_remember_and_mask_at_once():
    wrong = []

    def work(name):
        for number in range(50):
            secret = f"secret-{name}-{number:03d}"
            remember_secret(secret)
            if mask_text(f"<{secret}>") != "<***>":
                wrong.append(secret)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# In front of agents.


@dataclass
class KeepingCall:
    execution_id: str = "flow-1"
    step_id: str = "step1"
    attempt: int = 2
    idempotency_key: str = "flow-1/run/step1/1"
    deadline: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(seconds=30))
    context: list = field(default_factory=lambda: [{"text": "recalled"}])
    cancelled: bool = False
    told: list = field(default_factory=list)

    def heartbeat(self, progress=None):
        self.told.append(progress)

    def emit(self, text):
        self.told.append(text)


class Invoker:
    """Answers with what it was given, or raises it."""

    def __init__(self, outcome):
        self.outcome = outcome

    async def invoke_agent(self, invocation):
        self.seen = invocation
        invocation.call.emit(f"working with {SECRET}")
        invocation.call.heartbeat({"key": [SECRET]})
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


async def invoked(outcome):
    invoker = Invoker(outcome)
    call = KeepingCall()
    agent = PlanAgent(agent_id="agent-x", version=1, kind="http", config={})
    asked = AgentInvocation(agent=agent, input={"a": 1}, call=call, reply_keys=["k"], trace=True)
    try:
        return invoker, call, await MaskingAgentInvoker(invoker).invoke_agent(asked)
    except Exception as error:  # noqa: BLE001 - it is what these tests look at
        return invoker, call, error


TOOL_CALL = ToolCall(name=f"tool {SECRET}", arguments={"key": SECRET}, duration=timedelta(1), error=f"no {SECRET}")


async def test_all_of_a_reply_is_masked():
    remember_secret(SECRET)
    reply = AgentReply(
        {"echo": f"Bearer {SECRET}"},
        Usage(requests=3),
        tool_calls=[TOOL_CALL],
        warnings=[ExecutionWarning(code="odd", message=f"saw {SECRET}")],
        transcript=[{"role": "user", "content": SECRET}],
    )
    invoker, call, masked = await invoked(reply)
    assert masked.output == {"echo": "Bearer ***"}
    assert masked.usage == Usage(requests=3)
    assert masked.tool_calls == [
        ToolCall(name="tool ***", arguments={"key": "***"}, duration=timedelta(1), error="no ***")
    ]
    assert masked.warnings == [ExecutionWarning(code="odd", message="saw ***")]
    assert masked.transcript == [{"role": "user", "content": "***"}]
    assert call.told == ["working with ***", {"key": ["***"]}]
    seen = invoker.seen
    assert (seen.input, seen.reply_keys, seen.trace) == ({"a": 1}, ["k"], True)
    for name in ("execution_id", "step_id", "attempt", "idempotency_key", "deadline", "context", "cancelled"):
        assert getattr(seen.call, name) == getattr(call, name)


async def test_a_failure_is_masked_and_brings_no_cause():
    remember_secret(SECRET)
    failure = AgentFailure(
        FailureReason.RATE_LIMITED,
        f"no: {SECRET}",
        timedelta(seconds=7),
        {"body": [SECRET]},
        usage=Usage(requests=2),
        tool_calls=[TOOL_CALL],
    )
    failure.__cause__ = ValueError(SECRET)
    _, _, masked = await invoked(failure)
    assert (masked.reason, masked.message, str(masked)) == ("rate_limited", "no: ***", "no: ***")
    assert (masked.retry_after, masked.details, masked.usage) == (
        timedelta(seconds=7),
        {"body": ["***"]},
        Usage(requests=2),
    )
    assert masked.tool_calls[0].arguments == {"key": "***"}
    assert masked.__cause__ is None
    assert masked.__context__ is None


async def test_another_exception_that_shows_a_secret_becomes_a_failure():
    remember_secret(SECRET)
    shown = RuntimeError("outer")
    shown.__cause__ = ValueError(SECRET)
    for error, message in ((ValueError(f"bad {SECRET}"), "ValueError: bad ***"), (shown, "RuntimeError: outer")):
        _, _, masked = await invoked(error)
        assert (masked.reason, masked.message) == (FailureReason.ERROR, message)
        assert masked.__cause__ is masked.__context__ is None
    harmless = RuntimeError("nothing to hide")
    assert (await invoked(harmless))[2] is harmless


async def test_without_secrets_replies_and_failures_pass_as_they_are():
    reply = AgentReply({"a": 1})
    assert (await invoked(reply))[2] is reply
    failure = AgentFailure(FailureReason.ERROR, "no")
    failure.__cause__ = cause = ValueError("why")
    assert (await invoked(failure))[2] is failure
    assert failure.__cause__ is cause


# Log lines.

LINES = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END KEY-----"


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_are_masked_with_all_that_they_carry(form):
    for secret in (SECRET, LINES, "40412345"):
        remember_secret(secret)
    logger = logging.getLogger("engine.test")
    stream = io.StringIO()
    handle = open_logging("info", form, stream)
    try:
        raise ExceptionGroup("several", [ValueError(SECRET), OSError(LINES)])
    except ExceptionGroup:
        logger.exception(
            "it holds %s and %r", LINES, SECRET, extra={"key": SECRET, "deep": {SECRET: [LINES]}, "n": 40412345}
        )
    logger.info("plain")
    handle.close()
    text = stream.getvalue()
    for part in ("k3y", "tail", "MIIE", "BEGIN", "40412345"):
        assert part not in text
    first, *_, last = text.splitlines()
    if form == "json":
        entry = json.loads(first)
        assert entry["message"] == "it holds *** and '***'"
        assert (entry["key"], entry["deep"], entry["n"]) == ("***", {"***": ["***"]}, "***")
        assert "ValueError: ***" in entry["exception"]
        assert json.loads(last)["message"] == "plain"
    else:
        assert "it holds *** and '***'  key=*** deep={'***': ['***']} n=***" in first
        assert last.endswith("plain")


async def test_what_the_http_client_logs_is_masked_in_a_programs_own_handlers(caplog):
    MaskingAgentInvoker(Invoker(AgentReply({})))
    caplog.set_level(logging.DEBUG, "httpcore2.http11")
    logger = logging.getLogger("httpcore2.http11")
    logger.debug("headers %s", SECRET)
    remember_secret(SECRET)
    logger.debug("headers %s", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logger.exception("not %s", "sent")
    assert [record.getMessage() for record in caplog.records] == [f"headers {SECRET}", "headers ***", "not sent"]
    assert "ValueError: ***" in caplog.text
    assert caplog.records[2].args == ("sent",)
