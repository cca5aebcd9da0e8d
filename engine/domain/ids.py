"""The formats of ids, and nothing that makes random ones.

An id that a person sees (workflow, agent) is a slug of the name, so that Temporal's UI and logs read well; every
other id is derived from those, so that a repeated write hits the same row.
"""

from __future__ import annotations

import unicodedata

MAX_ID_BYTES = 100
MAX_STEP_ID_CHARS = 64
MAX_IDEMPOTENCY_KEY_CHARS = 200
AGENT_ACTIVITY_PREFIX = "agent."

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = frozenset("0123456789")
_SLUG = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
_STEP_START = _LETTERS | {"_"}
_STEP_REST = _LETTERS | _DIGITS | {"_", "-"}
_KEY = _LETTERS | _DIGITS | frozenset("._:-")


def slug(name: str) -> str:
    """Lower-case ASCII letters, digits and single dashes of ``name``, at most 80 bytes; may be empty."""
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = "".join(c if c in _LETTERS or c in _DIGITS else " " for c in ascii_text).split()
    return "-".join(words)[:80].strip("-")


def agent_id_of(name: str) -> str:
    """``"Project Architect Agent"`` -> ``"agent-project-architect"``; empty when no ASCII word is left."""
    words = slug(name).split("-")
    if len(words) > 1 and words[-1] == "agent":
        words = words[:-1]
    if len(words) > 1 and words[0] == "agent":
        words = words[1:]
    rest = "-".join(words)
    return f"agent-{rest}" if rest else ""


def is_public_id(text: str) -> bool:
    """Whether ``text`` is 1 to 100 of ``a-z 0-9 - _ .``, not led by a dot or dash: the form of public ids."""
    return 0 < len(text) <= MAX_ID_BYTES and text[0] not in "-." and all(c in _SLUG for c in text)


def is_step_id(text: str) -> bool:
    """Whether ``text`` is ``[A-Za-z_][A-Za-z0-9_-]{0,63}``."""
    return 0 < len(text) <= MAX_STEP_ID_CHARS and text[0] in _STEP_START and all(c in _STEP_REST for c in text)


def is_idempotency_key(text: str) -> bool:
    """Whether ``text`` is 1 to 200 of ``[A-Za-z0-9._:-]``."""
    return 0 < len(text) <= MAX_IDEMPOTENCY_KEY_CHARS and all(c in _KEY for c in text)


def keyed_execution_id(definition_id: str, key: str) -> str:
    """The execution id of a start with an idempotency key; the slash keeps it apart from ``<id>-<ulid>``."""
    return f"{definition_id}/{key}"


def call_address(step_id: str, item: int | None, n: int) -> str:
    """The readable address of one logical call: ``step.1`` or ``step[3].1``. Never parsed."""
    return f"{step_id}.{n}" if item is None else f"{step_id}[{item}].{n}"


def idempotency_key(execution_id: str, run_id: str, address: str) -> str:
    """The key that every attempt of one logical call hands to its agent."""
    return f"{execution_id}/{run_id}/{address}"
