"""Where a secret's value comes from, that nothing else can be reached by its name, and where it may go."""

from __future__ import annotations

import os
import time
from collections import OrderedDict

import pytest

from engine import masking
from engine.adapters.secrets import MAX_SECRET_BYTES, ConfiguredSecrets
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.errors import ConfigurationError
from engine.masking import mask_text


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """What is remembered here would be masked in all later tests."""
    monkeypatch.setattr(masking, "_secrets", OrderedDict())
    monkeypatch.setattr(masking, "_masks", None)


def value_of(template="${secret.KEY}", *, host=None, folder=None, hosts=(), **environ):
    return ConfiguredSecrets(environ, folder, hosts).fill_in(template, host)


def refusal(template="${secret.KEY}", **given):
    with pytest.raises(AgentFailure) as caught:
        value_of(template, **given)
    assert caught.value.reason is FailureReason.INVALID_REQUEST
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.message


def test_a_template_is_filled_in_once_and_nothing_else_of_it_is_expanded():
    environ = {"BATON_SECRET_KEY": "value-of-key${secret.B}", "BATON_SECRET_B": "value-of-b", "HOME": "/root"}
    template = "${secret.KEY}/${secret.B}${secret.B} ${input.a} $HOME ${HOME} $$"
    filled = value_of(template, **environ)
    assert filled == "value-of-key${secret.B}/value-of-bvalue-of-b ${input.a} $HOME ${HOME} $$"
    assert value_of("plain", **environ) == "plain"
    assert mask_text(f"{filled}!") == "***/****** ${input.a} $HOME ${HOME} $$!"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " KEY",
        "KEY ",
        "1KEY",
        "a-b",
        "a.b",
        "../key",
        "a/b",
        "/etc/passwd",
        ".",
        "..",
        "KEY\n",
        "K\0Y",
        "KÉY",
        "KEY_FILE",
        "K" * 201,
        "{KEY",
        "$KEY",
        "${secret.KEY",
    ],
)
def test_a_name_of_another_form_reaches_nothing(tmp_path, name):
    folder = tmp_path / "secrets"
    folder.mkdir()
    for place in (tmp_path / "key", folder / "KEY", folder / "KEY_FILE"):
        place.write_text("a-secret-value")
    message = refusal(f"${{secret.{name}}}", folder=folder, BATON_SECRET_KEY_FILE=str(tmp_path / "key"))
    assert "not of the form" in message
    assert "a-secret-value" not in message


def test_only_variables_of_the_prefix_are_read():
    for name in ("HOME", "BATON_MONGO_URI", "SECRET_KEY", "AWS_SECRET_ACCESS_KEY"):
        given = {name: "another-value"}
        assert "is not set" in refusal(f"${{secret.{name}}}", **given)
        assert "is not set" in refusal("${secret.KEY}", **given)


def test_a_reference_without_end_is_refused():
    assert "not of the form" in refusal("Bearer ${secret.KEY", BATON_SECRET_KEY="a-secret-value")
    assert "not of the form" in refusal("${secret.KEY${secret.KEY}", BATON_SECRET_KEY="a-secret-value")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_variable_may_name_a_file(tmp_path, end):
    path = tmp_path / "key"
    path.write_bytes(f"  value-é \n{end}".encode())
    assert value_of(BATON_SECRET_KEY_FILE=str(path)) == ("  value-é \n" if end else "  value-é ")
    path.write_text("exchanged")
    assert value_of(BATON_SECRET_KEY_FILE=str(path)) == "exchanged"


def test_both_variables_are_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text("value-of-file")
    message = refusal(BATON_SECRET_KEY="value-of-variable", BATON_SECRET_KEY_FILE=str(path))
    assert "BATON_SECRET_KEY_FILE" in message
    assert "value-of" not in message


def test_a_secret_may_be_a_file_of_the_folder_as_kubernetes_mounts_it(tmp_path):
    versions = [tmp_path / f"..2026_{number}" for number in (1, 2)]
    for number, version in enumerate(versions):
        version.mkdir()
        (version / "KEY").write_text(f"value-{number}\n")
    (tmp_path / "..data").symlink_to(versions[0].name)
    (tmp_path / "KEY").symlink_to("..data/KEY")
    secrets = ConfiguredSecrets({}, tmp_path)
    assert secrets.fill_in("${secret.KEY}", None) == "value-0"
    (tmp_path / "next").symlink_to(versions[1].name)
    (tmp_path / "next").rename(tmp_path / "..data")
    assert secrets.fill_in("${secret.KEY}", None) == "value-1"
    assert value_of(folder=tmp_path, BATON_SECRET_KEY="of-the-variable") == "of-the-variable"
    assert "is not set" in refusal("${secret.OTHER}", folder=tmp_path)
    assert "is not set" in refusal("${secret.OTHER}", folder=tmp_path / "missing")


def test_a_folder_a_pipe_and_a_loop_are_no_secrets_and_keep_nobody_waiting(tmp_path):
    (tmp_path / "FOLDER").mkdir()
    os.mkfifo(tmp_path / "PIPE")
    (tmp_path / "LOOP").symlink_to("LOOP")
    started = time.monotonic()
    for name in ("FOLDER", "PIPE", "LOOP"):
        assert "can't be read" in refusal(f"${{secret.{name}}}", folder=tmp_path)
    for path in ("/dev/zero", str(tmp_path / "missing"), "a\0b"):
        assert "can't be read" in refusal(BATON_SECRET_KEY_FILE=path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("variable", ["BATON_SECRET_KEY", "BATON_SECRET_KEY_FILE"])
def test_an_empty_variable_counts_as_absent(tmp_path, variable):
    assert "is not set" in refusal(**{variable: ""})
    (tmp_path / "KEY").write_text("a-secret-of-the-folder")
    assert ConfiguredSecrets({variable: ""}, tmp_path).fill_in("${secret.KEY}", None) == "a-secret-of-the-folder"


@pytest.mark.parametrize("value", ["abc", "a\n", "    "])
def test_what_would_mask_ordinary_text_is_refused(tmp_path, value):
    (tmp_path / "KEY").write_text(value)
    assert "less than 4 characters" in refusal(folder=tmp_path)
    assert "less than 4 characters" in refusal(BATON_SECRET_KEY=value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xfe marker-9", "UTF-8"),
        (b"marker-9\0", "character 0"),
        (b"marker-9" * (MAX_SECRET_BYTES // 8) + b"x", "larger"),
    ],
)
def test_what_is_no_text_or_too_large_is_refused(tmp_path, data, told):
    (tmp_path / "KEY").write_bytes(data)
    message = refusal(folder=tmp_path)
    assert told in message
    assert "marker-9" not in message
    if told != "character 0":  # which no variable can hold
        message = refusal(BATON_SECRET_KEY=os.fsdecode(data))
        assert told in message
        assert "marker-9" not in message


def test_a_secret_of_the_top_size_passes(tmp_path):
    value = "é" * (MAX_SECRET_BYTES // 2)
    (tmp_path / "KEY").write_text(value)
    assert value_of(folder=tmp_path) == value


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.test", True),
        ("API.test.", True),
        ("api.test:443", True),
        ("port.test:8443", True),
        ("port.test:443", False),
        ("port.test", False),
        ("a.domain.test:80", True),
        ("domain.test:80", False),
        ("127.0.0.1:9000", True),
        ("[::1]:80", True),
        ("::1", True),
        ("[::2]:80", False),
        ("evil.test", False),
        ("api.test.evil.test", False),
        ("api.test:x", False),
        ("", False),
        (None, True),
    ],
)
def test_a_bound_secret_goes_to_its_hosts_only(host, allowed):
    hosts = ["KEY=api.test", "KEY=port.test:8443", "KEY=*.domain.test", "KEY=127.0.0.1", "KEY=[::1]", "OTHER=evil.test"]
    if allowed:
        assert value_of(host=host, hosts=hosts, BATON_SECRET_KEY="bound-value") == "bound-value"
    else:
        message = refusal(host=host, hosts=hosts, BATON_SECRET_KEY="bound-value")
        assert "KEY" in message
        assert "secret_hosts" in message
        assert "bound-value" not in message


def test_a_secret_without_hosts_goes_to_any():
    assert value_of(host="any.test:1", hosts=["OTHER=a.test"], BATON_SECRET_KEY="free-value") == "free-value"


@pytest.mark.parametrize(
    "entry", ["", "KEY", "KEY=", "=host", "K-Y=host", "KEY=https://host", "KEY=host/path", "KEY=*"]
)
def test_an_entry_of_another_form_is_refused_when_made(entry):
    with pytest.raises(ConfigurationError, match="secret_hosts"):
        ConfiguredSecrets({}, None, [entry])


def test_a_refused_value_is_not_remembered():
    refusal(host="evil.test", hosts=["KEY=api.test"], BATON_SECRET_KEY="bound-value")
    assert not masking.knows_secrets()
