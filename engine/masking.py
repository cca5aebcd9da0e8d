"""No text that leaves this process shows a secret that was resolved in it.

Whoever resolves a secret remembers it here, and every way out masks by what is remembered: agents' replies and
failures, progress, log lines. What is masked is the secret and the forms that other programs write it in (JSON, URLs,
HTML, base64, Python's ``repr``). The set is the process's and not an object's, because a text does not tell where a
secret in it came from. A leaf: it imports nothing of Baton.

Texts are scanned once: a regular expression, a trie of the forms' first characters, finds where one may begin, and only
there the forms are compared.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeVar, cast
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MASK", "MIN_SECRET_CHARS", "knows_secrets", "mask_json", "mask_text", "remember_secret"]

MASK: Final = "***"
MIN_SECRET_CHARS: Final = 4
"""A shorter one would mask ordinary text."""

_MAX_SECRETS: Final = 1_000
_MAX_CHARS: Final = 4_000_000
_MIN_LINE_CHARS: Final = 16
_CUT: Final = "…"
_NUMERIC: Final = re.compile(r"[0-9.eE+-]+")

T = TypeVar("T")


class _Masks:
    """The forms of a set of secrets, in order to be found; immutable."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._by_head: dict[str, list[str]] = {}
        for form in sorted(forms, key=len, reverse=True):
            self._by_head.setdefault(form[:MIN_SECRET_CHARS], []).append(form)
        self._heads = re.compile(_trie(sorted(self._by_head)))
        self.may_be_numbers = any(_NUMERIC.fullmatch(form) for form in forms)

    def mask(self, text: str, *, is_cut: bool) -> str:
        found = self._heads.search(text)
        if found is None:
            return text
        parts: list[str] = []
        done = 0
        while found is not None:
            start = found.start()
            end = self._end_of_form(text, start, is_cut=is_cut)
            if end is not None:
                parts += (text[done:start], MASK)
                done = end
            found = self._heads.search(text, end or start + 1)
        return "".join((*parts, text[done:])) if parts else text

    def _end_of_form(self, text: str, start: int, *, is_cut: bool) -> int | None:
        """Where the longest form that begins at ``start`` ends."""
        for form in self._by_head[text[start : start + MIN_SECRET_CHARS]]:
            if text.startswith(form, start):
                return start + len(form)
            if is_cut and len(text) - start < len(form) and form.startswith(text[start:]):
                return len(text)
        return None


_lock = threading.Lock()
_secrets: OrderedDict[str, None] = OrderedDict()
_masks: _Masks | None = None
"""Of ``_secrets``; None from each new one to the next use."""


def remember_secret(value: str) -> None:
    """Mask ``value`` from now on, in the whole process. Beyond 1,000 values, or 4 million characters, the oldest go.

    Raises:
        ValueError: it has less than 4 characters that are no white space.
    """
    global _masks  # noqa: PLW0603 - one set for the process is the point of this module
    if len(value.strip()) < MIN_SECRET_CHARS:
        raise ValueError(f"a secret of less than {MIN_SECRET_CHARS} characters would mask ordinary text")
    with _lock:
        if value in _secrets:
            _secrets.move_to_end(value)
            return
        _secrets[value] = None
        left = sum(map(len, _secrets))
        while len(_secrets) > 1 and (len(_secrets) > _MAX_SECRETS or left > _MAX_CHARS):
            left -= len(_secrets.popitem(last=False)[0])
        _masks = None


def knows_secrets() -> bool:
    """Whether there is anything to mask."""
    return bool(_secrets)


def mask_text(text: str, *, is_cut: bool = False) -> str:
    """Return ``text`` with ``***`` in place of every secret.

    Args:
        text: of any size; the time is linear in it.
        is_cut: the text's end was cut off, so that the beginning of a secret there is masked too. A text that ends in
            ``…`` is taken for one.
    """
    if not _secrets:
        return text
    masks = _current_masks()
    if text.endswith(_CUT):
        return masks.mask(text[:-1], is_cut=True) + _CUT
    return masks.mask(text, is_cut=is_cut)


def mask_json(value: T) -> T:
    """Return ``value`` with every text in it masked, keys too; what has none to mask comes back as it is.

    A number that shows a secret becomes the text ``***``. What is no JSON is left alone, tuples become lists.
    """
    if not _secrets:
        return value
    return cast("T", _masked(value, _current_masks()))


def _masked(value: object, masks: _Masks) -> object:
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        table = cast("dict[object, object]", value)
        masked = {_masked(key, masks): _masked(item, masks) for key, item in table.items()}
        return table if _is_same(masked.items(), table.items()) else masked
    if isinstance(value, list | tuple):
        given = cast("list[object]", value)
        items = [_masked(item, masks) for item in given]
        return given if all(a is b for a, b in zip(items, given, strict=True)) else items
    if masks.may_be_numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return MASK if MASK in masks.mask(repr(value), is_cut=False) else value
    return value


def _is_same(masked: Iterable[tuple[object, object]], given: Iterable[tuple[object, object]]) -> bool:
    pairs = zip(masked, given, strict=False)
    return all(key is old_key and item is old_item for (key, item), (old_key, old_item) in pairs)


def _current_masks() -> _Masks:
    global _masks  # noqa: PLW0603 - as in remember_secret
    masks = _masks
    if masks is not None:
        return masks
    with _lock:
        if _masks is None:
            _masks = _Masks(_secrets)
        return _masks


def _forms(secret: str) -> Iterator[str]:
    """The texts that mean the secret; those of a long one's lines too, since a writer may indent or prefix lines."""
    lines = [line.strip() for line in secret.splitlines()]
    for text in (secret, *(line for line in lines if len(line) >= _MIN_LINE_CHARS)):
        escaped = {text, *_escaped(text)}
        yield from escaped
        # An answer in JSON quoted in a message in JSON, a list of bytes in an exception's repr.
        for once in escaped:
            yield from _escaped(once)
        data = text.encode("utf-8", "surrogatepass")
        yield from (html.escape(text), html.escape(text, quote=False))
        for quoted in (quote(data), quote(data, safe=""), quote(data, safe="!*'()"), quote_plus(data)):
            yield from (quoted, re.sub("%..", lambda found: found[0].lower(), quoted))
        # Without padding, which thus stays behind a mask.
        yield from (base64.b64encode(data).decode().rstrip("="), base64.urlsafe_b64encode(data).decode().rstrip("="))


def _escaped(text: str) -> Iterator[str]:
    written = json.dumps(text)[1:-1]
    yield from (written, json.dumps(text, ensure_ascii=False)[1:-1], written.replace("/", "\\/"))
    # As encoders write JSON that is safe within HTML: Go's in lower case, .NET's in upper.
    yield re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", written)
    yield re.sub("[<>&'+`]", lambda found: f"\\u{ord(found[0]):04X}", written)
    for value in (text, text.encode("utf-8", "surrogatepass")):
        plain = repr(value).removeprefix("b")[1:-1]
        # What else stands in the same repr decides whether a single quote is escaped.
        yield from (plain, re.sub(r"(?<!\\)'", r"\\'", plain))


def _trie(words: list[str]) -> str:
    """A pattern for one of ``words`` (sorted) that looks at each character of a text a bounded number of times."""
    if len(words) == 1:
        return re.escape(words[0])
    branches: dict[str, list[str]] = {}
    for word in words:
        branches.setdefault(word[:1], []).append(word[1:])
    return "(?:" + "|".join(re.escape(first) + _trie(rest) for first, rest in branches.items()) + ")"
