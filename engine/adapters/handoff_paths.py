"""Paths along handoffs, shortest first, found without walking into what leads nowhere.

No store's own path search says what it costs: each one tries every way through, and a few dozen agents that all hand
to each other have millions. Here a beginning is gone on with only when it has an end that visits no agent twice, which
one search backwards from the target shows. So the work grows with the paths that are returned and not with those
that there are. A store's part is to say who hands to whom.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["paths_between"]


def paths_between(
    targets_of: Mapping[str, Collection[str]], source: str, target: str, *, max_hops: int, limit: int
) -> list[list[str]]:
    """Return paths of agent ids from source to target, shortest first, then by their ids; no agent twice in one.

    Args:
        targets_of: whom each agent hands to, without repeats; at least of all within ``max_hops`` of the source.
        source: where each path begins; none is found when it is also the target.
        target: where each path ends.
        max_hops: most handoffs in a path.
        limit: most paths.
    """
    if source == target:
        return []
    sources_of: defaultdict[str, list[str]] = defaultdict(list)
    for giver, takers in targets_of.items():
        for taker in takers:
            sources_of[taker].append(giver)
    # Each beginning stands under the hops of its shortest end. A beginning is less than all that continue it, so
    # among equal ones the heap's order is that of the finished paths.
    beginnings: list[tuple[int, tuple[str, ...]]] = [(0, (source,))]
    found: list[list[str]] = []
    while beginnings and len(found) < limit:
        _, path = heapq.heappop(beginnings)
        if path[-1] == target:
            found.append(list(path))
            continue
        left = _hops_to(target, sources_of, avoiding=set(path), most=max_hops - len(path))
        for taker in targets_of.get(path[-1], ()):
            if taker in left:
                heapq.heappush(beginnings, (len(path) + left[taker], (*path, taker)))
    return found


def _hops_to(target: str, sources_of: Mapping[str, list[str]], *, avoiding: set[str], most: int) -> dict[str, int]:
    """Return how far the target is from each agent that reaches it within ``most`` hops."""
    hops = {target: 0}
    frontier = [target]
    for distance in range(1, most + 1):
        reached: list[str] = []
        for agent in frontier:
            for giver in sources_of.get(agent, ()):
                if giver not in hops and giver not in avoiding:
                    hops[giver] = distance
                    reached.append(giver)
        frontier = reached
    return hops
