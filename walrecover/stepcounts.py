"""Step counts of optimizers, held against each other over the ranks.

Pure. Owns which counts must agree, the refusal, and what the person may order to be taken from one
rank. How many steps an optimizer has made is the largest count of its parameters: one that got no
gradient, or was frozen for a while, lags behind and is in order. So nothing within one rank is
refused, and ranks whose parameters lag differently are not either.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from walrecover.errors import BadInput

_COUNT = re.compile(r"(.+)\.state\.[^.]+\.step")
_TAKE = re.compile(r"([0-9]+)(?::(.+))?")

Counts = Mapping[str, float]
"""Of one rank: for each of its optimizers how many steps it has made."""


class Take(NamedTuple):
    """Take these objects from this rank where step counts disagree; no names: the optimizers that
    do."""

    rank: int
    names: tuple[str, ...] = ()


def counters(tensors: Iterable[str]) -> dict[str, list[str]]:
    """The tensors that count steps, by their optimizer."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        if match := _COUNT.fullmatch(name):
            found[match[1]].append(name)
    return dict(found)


def disagreeing(ranks: Sequence[Counts]) -> dict[str, dict[int, float]]:
    """By their name, optimizers that have made more steps on one rank than on another: the count
    of each rank that has some."""
    by_name: dict[str, dict[int, float]] = defaultdict(dict)
    for rank, counts in enumerate(ranks):
        for name, count in counts.items():
            by_name[name][rank] = count
    return {name: counts for name, counts in by_name.items() if len(set(counts.values())) > 1}


def said(found: Mapping[str, Mapping[int, float]]) -> str:
    """Both values: `optimizer: 5 steps on rank 0, 6 on ranks 1, 2`."""
    return "; ".join(f"{name}: {_by_value(counts)}" for name, counts in found.items())


def _by_value(counts: Mapping[int, float]) -> str:
    ranks: dict[float, list[int]] = defaultdict(list)
    for rank, count in counts.items():
        ranks[count].append(rank)
    groups = sorted(ranks.items(), key=lambda item: item[1])
    first = " steps"
    parts = []
    for count, of in groups:
        label = "rank" if len(of) == 1 else "ranks"
        more = f" and {len(of) - 8} more" if len(of) > 8 else ""
        parts.append(f"{count:g}{first} on {label} {', '.join(map(str, of[:8]))}{more}")
        first = ""
    return ", ".join(parts)


def refusal(found: Mapping[str, Mapping[int, float]], differing: Sequence[str]) -> str:
    """Why the snapshot is not restored, and the two ways on. `differing`: objects of the same form
    on all ranks, and of another content."""
    names = ",".join([*found, *(name for name in differing if name not in found)])
    rank = min(rank for counts in found.values() for rank in counts)
    also = ""
    if differing:
        also = f"; {', '.join(differing)} differs between the ranks too, and belongs to it"
    return (
        f"optimizers have made another number of steps on one rank than on another ({said(found)})"
        f"{also}. Replicas: WALRECOVER_TAKE_RANK={rank}:{names} gives every rank what rank {rank} "
        f"has of them. Ranks that train on their own: attach(strict=False) leaves each its own"
    )


def parse(text: str) -> Take:
    """`0`, or `0:optimizer,model`. Raises BadInput."""
    match = _TAKE.fullmatch(text.strip())
    if not match:
        raise BadInput(
            f"WALRECOVER_TAKE_RANK is {text!r}: give a rank, and names if you want, as in "
            f"0:optimizer,model"
        )
    names = tuple(name.strip() for name in (match[2] or "").split(",") if name.strip())
    return Take(int(match[1]), names)
