"""Secrets from this process's environment or from files, by name: what an operator named one, and nothing else.

A name reaches ``BATON_SECRET_<NAME>``, the file that ``BATON_SECRET_<NAME>_FILE`` names, or ``<secrets_dir>/<NAME>``.
A template comes from stored records that anybody with the API can write, so that no name may lead to another variable
or path. They are read at each use, since operators exchange them while a process runs; every value that is handed out
is masked from then on wherever this process writes.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from engine.adapters.agents.allowed_hosts import AllowedHosts
from engine.domain.agent_call import AgentFailure, FailureReason
from engine.errors import ConfigurationError
from engine.masking import MIN_SECRET_CHARS, remember_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["MAX_SECRET_BYTES", "ConfiguredSecrets"]

MAX_SECRET_BYTES: Final = 64 * 1024
_PREFIX: Final = "BATON_SECRET_"
_FILE_SUFFIX: Final = "_FILE"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_REFERENCE: Final = re.compile(r"\$\{secret\.([^{}]*)(\}?)")
_HOST: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+|[^:\[\]]*:[^\[\]]*:[^\[\]]*)(?::(?P<port>[0-9]{1,5}))?")


class ConfiguredSecrets:
    """A ``SecretSource`` on what the operator configured.

    Args:
        environ: the process's environment; read at each use.
        secrets_dir: a folder with a file a secret, as Docker and Kubernetes mount them; None when there is none.
        secret_hosts: ``NAME=host``, ``NAME=host:port`` or ``NAME=*.domain``. A secret that is named here goes to its
            hosts only, one that is not to any. What stays in this machine is for the operator's own settings to say.

    Raises:
        ConfigurationError: an entry of ``secret_hosts`` has none of these forms.
    """

    def __init__(
        self, environ: Mapping[str, str], secrets_dir: Path | None = None, secret_hosts: Sequence[str] = ()
    ) -> None:
        self._environ = environ
        self._secrets_dir = secrets_dir
        self._hosts = _hosts_by_name(secret_hosts)

    def fill_in(self, template: str, host: str | None) -> str:
        """Return ``template`` with every ``${secret.NAME}`` replaced; see ``SecretSource``.

        Reads files: not for an event loop when the template refers to a secret.

        Raises:
            AgentFailure: invalid_request, naming the secret and never its value.
        """
        parts: list[str] = []
        done = 0
        for found in _REFERENCE.finditer(template):
            name = found[1]
            if not found[2] or not _NAME.fullmatch(name) or name.endswith(_FILE_SUFFIX):
                raise _invalid(
                    f"The reference {found[0]!a:.100} is not of the form ${{secret.NAME}}, with a name of letters,"
                    f" digits and _ that does not begin with a digit or end in {_FILE_SUFFIX}"
                )
            self._check_host(name, host)
            parts += (template[done : found.start()], self._resolve(name))
            done = found.end()
        return "".join((*parts, template[done:]))

    def _check_host(self, name: str, host: str | None) -> None:
        hosts = self._hosts.get(name)
        if hosts is None or host is None:
            return
        place = _HOST.fullmatch(host)
        # Without a port only an entry without one allows it; no entry has the port 0.
        if place is None or not hosts.allows(place["host"], int(place["port"] or 0)):
            raise _invalid(
                f"The secret {name} may not go to {host:.200}; add {name}={host:.200} to the setting `secret_hosts`"
                " if it may",
                setting="secret_hosts",
            )

    def _resolve(self, name: str) -> str:
        variable = _PREFIX + name
        value = self._environ.get(variable) or None
        path = self._environ.get(variable + _FILE_SUFFIX) or None
        if value is not None and path is not None:
            raise _invalid(f"Both {variable} and {variable}{_FILE_SUFFIX} are set; the secret {name} can have only one")
        if value is not None:
            return _checked(value, name, f"the variable {variable}")
        if path is not None:
            source = f"the file that {variable}{_FILE_SUFFIX} names"
            try:
                return _checked(_read(path, name, source), name, source)
            except FileNotFoundError:
                raise _unreadable(name, source, "there is no such file") from None
        if self._secrets_dir is None:
            raise _unset(name)
        source = f"the file {name} of `secrets_dir`"
        try:
            return _checked(_read(self._secrets_dir / name, name, source), name, source)
        except FileNotFoundError:
            raise _unset(name) from None


def _read(path: str | Path, name: str, source: str) -> str:
    """Return a file's text without its final line break.

    Raises:
        FileNotFoundError: there is no such file.
        AgentFailure: invalid_request, for all else that is wrong with it.
    """
    try:
        with open(path, "rb", opener=_opened_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unreadable(name, source, "it is no ordinary file")
            data = file.read(MAX_SECRET_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(name, source, error.strerror or "the system refuses it") from None
    except ValueError:
        raise _unreadable(name, source, "its path can't be one") from None
    if len(data) > MAX_SECRET_BYTES:
        raise _invalid(f"The secret {name} in {source} is larger than {MAX_SECRET_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Without a cause: that one holds the bytes.
        raise _invalid(f"The secret {name} in {source} is no text in UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _opened_at_once(path: str, flags: int) -> int:
    # A named pipe would keep the caller waiting until somebody writes into it.
    return os.open(path, flags | os.O_NONBLOCK)


def _checked(value: str, name: str, source: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _invalid(f"The secret {name} in {source} is no text in UTF-8") from None
    if "\0" in value:
        raise _invalid(f"The secret {name} in {source} is no text: it holds a character 0")
    if size > MAX_SECRET_BYTES:
        raise _invalid(f"The secret {name} in {source} is larger than {MAX_SECRET_BYTES} bytes")
    try:
        remember_secret(value)
    except ValueError:
        raise _invalid(
            f"The secret {name} in {source} has less than {MIN_SECRET_CHARS} characters, too few to be masked in"
            " outputs; set a longer one"
        ) from None
    return value


def _hosts_by_name(entries: Sequence[str]) -> dict[str, AllowedHosts]:
    by_name: dict[str, list[str]] = {}
    for entry in entries:
        name, _, host = entry.partition("=")
        if not _NAME.fullmatch(name.strip()):
            raise _bad_entry(entry)
        by_name.setdefault(name.strip(), []).append(host)
    found: dict[str, AllowedHosts] = {}
    for name, hosts in by_name.items():
        try:
            found[name] = AllowedHosts(hosts)
        except ConfigurationError:
            raise _bad_entry(f"{name}={','.join(hosts)}") from None
    return found


def _bad_entry(entry: str) -> ConfigurationError:
    return ConfigurationError(
        f"The entry {entry!r:.100} of the setting `secret_hosts` is none of NAME=host, NAME=host:port, NAME=*.domain"
        " (in ASCII, without scheme or path)",
        {"setting": "secret_hosts"},
    )


def _unset(name: str) -> AgentFailure:
    variable = _PREFIX + name
    return _invalid(
        f"The secret {name} is not set where this worker runs; set {variable}, or {variable}{_FILE_SUFFIX} to the path"
        f" of a file that holds it, or put the file {name} into the folder of the setting `secrets_dir`"
    )


def _unreadable(name: str, source: str, why: str) -> AgentFailure:
    return _invalid(f"The secret {name} can't be read from {source}: {why}")


def _invalid(message: str, setting: str | None = None) -> AgentFailure:
    return AgentFailure(FailureReason.INVALID_REQUEST, message, details={"setting": setting} if setting else None)
