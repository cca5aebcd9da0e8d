"""The words of context items, in an index of SQLite's own (FTS5) that keeps no text.

The index is changed in the transaction that changes the items. As it holds words only, taking an item out of it needs
the text that was put in, which the item's packed body has. English endings are cut off (Porter) and accents do not
count. Each entry also has the hashes of the ids that it came from, so that a search in one execution never ranks the
words of all the others; the row's own columns decide in the end, for a hash may be shared.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from engine.adapters.sqlite.schema import TENANT

if TYPE_CHECKING:
    import sqlite3

    from engine.domain.context import ContextFilter, ContextItem

__all__ = ["MAX_WORDS", "add_words", "drop_words", "find_words", "question_of"]

MAX_WORDS: Final = 64
"""Of a question; the first ones count."""

_READ_WORDS: Final = 2000
"""How many words of a question are read to find different ones."""
_WORD = re.compile(r"[^\W_]+")

_ADD = "INSERT INTO context_words (rowid, text, source) VALUES (?, ?, ?)"
_DROP = "INSERT INTO context_words (context_words, rowid, text, source) VALUES ('delete', ?, ?, ?)"
_FIND = """SELECT item_id FROM context_words CROSS JOIN context_items ON number = context_words.rowid
    WHERE context_words MATCH ?1 AND tenant = ?2 AND (?3 IS NULL OR definition_id = ?3)
        AND (?4 IS NULL OR execution_id = ?4) AND (?5 IS NULL OR agent_id = ?5)
    ORDER BY rank, created_at DESC, item_id LIMIT ?6"""


def add_words(connection: sqlite3.Connection, number: int, item: ContextItem) -> None:
    """Put the words of the item with this number into the index."""
    connection.execute(_ADD, (number, item.text, _source_of(item)))


def drop_words(connection: sqlite3.Connection, number: int, item: ContextItem) -> None:
    """Take out what ``add_words`` was given with the same number; anything else would damage the index."""
    connection.execute(_DROP, (number, item.text, _source_of(item)))


def find_words(connection: sqlite3.Connection, text: str, query: ContextFilter, limit: int) -> list[str]:
    """Return ids of the items of ``query`` that share words with ``text``, best first by BM25, then newest first."""
    question = question_of(text, query)
    if question is None:
        return []
    chosen = (question, TENANT, query.definition_id, query.execution_id, query.agent_id, limit)
    rows = cast("list[tuple[str]]", connection.execute(_FIND, chosen).fetchall())
    return [item_id for (item_id,) in rows]


def question_of(text: str, query: ContextFilter) -> str | None:
    """Return the question to the index, in which each word is quoted; None for a text without a word."""
    read = (match.group() for match in islice(_WORD.finditer(text), _READ_WORDS))
    different = {word.lower(): word for word in read}
    if not different:
        return None
    words = " OR ".join(f'"{word}"' for word in islice(different.values(), MAX_WORDS))
    sources = [f'source : "{source}"' for source in _sources(query)]
    return " AND ".join([*sources, f"text : ({words})"])


def _source_of(item: ContextItem) -> str:
    return " ".join(_sources(item))


def _sources(of: ContextItem | ContextFilter) -> list[str]:
    """Return one word for each id that is there."""
    ids = {"d": of.definition_id, "e": of.execution_id, "a": of.agent_id}
    return [kind + blake2b(one.encode(), digest_size=8).hexdigest() for kind, one in ids.items() if one is not None]
