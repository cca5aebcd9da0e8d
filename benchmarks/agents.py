"""The agents' work, the same on every side: nothing but an addition."""

from __future__ import annotations

__all__ = ["add", "add_async"]


def add(content: dict[str, int]) -> dict[str, int]:
    """Add up what is given, and one more."""
    return {"n": sum(content.values()) + 1}


async def add_async(content: dict[str, int]) -> dict[str, int]:
    """Do as ``add`` does, on an event loop."""
    return add(content)
