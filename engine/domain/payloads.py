"""How much of a list goes with one payload: a long list goes in parts, and no payload grows with the run."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

__all__ = ["take_payload"]

R = TypeVar("R", bound=BaseModel)


def take_payload(records: list[R], limit_bytes: int) -> list[R]:
    """Take the first of ``records`` out of the list, as many as ``limit_bytes`` of JSON hold, but one at least."""
    count = 0
    size_bytes = 0
    for record in records:
        size_bytes += len(record.model_dump_json().encode())
        if count and size_bytes > limit_bytes:
            break
        count += 1
    taken = records[:count]
    del records[:count]
    return taken
