"""Content is compared by one canonical text, so that equal data has equal hashes everywhere.

Keys are sorted, nothing is padded, text stays UTF-8 and floats are written by ``repr``. ``1`` and ``1.0``
are different content: they are different in what an agent is given.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from engine.errors import InvalidInputError

if TYPE_CHECKING:
    from engine.domain.json import JsonValue


def canonical_json(value: JsonValue) -> bytes:
    """Return the one UTF-8 JSON text of ``value``: keys sorted by code point, no whitespace.

    Args:
        value: JSON data with string keys.

    Raises:
        InvalidInputError: it holds something that JSON can't, such as NaN, half a surrogate pair or a loop.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The value has no JSON form: {error}. Give only objects with text keys, lists, text, finite "
            "numbers, true, false and null."
        ) from error


def content_hash(value: JsonValue) -> str:
    """Return ``sha256:<64 hex digits>`` of the canonical JSON of ``value``.

    Raises:
        InvalidInputError: as ``canonical_json``.
    """
    return f"sha256:{hashlib.sha256(canonical_json(value)).hexdigest()}"
