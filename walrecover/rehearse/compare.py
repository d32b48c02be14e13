"""The comparison of two runs that should be one: pure, over what `readout` has read.

Owns what counts as a difference, which of several comes first, and how it is said. Floating-point
numbers are equal only if their bits are. Must not read a file.

A generator that neither run draws from is left out: nobody seeds what he does not use, and an
unseeded one differs from the start. `used_generators` says which are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from blake3 import blake3

from walrecover.twins import Facts, differences
from walrecover.values import ABSENT, first_difference

_DRAWN = ("position", "rng")
"""What of the plain state holds states of generators."""


class Superseded(NamedTuple):
    """An execution of a step that was done again later."""

    step: int
    rank: int
    attempt: int
    facts: Facts


class Tensor(NamedTuple):
    digest: str
    dtype: str
    shape: tuple[int, ...]


class Final(NamedTuple):
    """The snapshot at the end, by rank. `plain`: everything of it that is not a tensor."""

    step: int
    tensors: tuple[Mapping[str, Tensor], ...]
    plain: tuple[Mapping[str, Any], ...]


class Outcome(NamedTuple):
    """One run: its surviving history by rank and step, what that replaced, and its end."""

    history: tuple[Mapping[int, Facts], ...]
    superseded: tuple[Superseded, ...]
    final: Final


class Difference(NamedTuple):
    """The first thing that differs. `step` None: only the final state does.

    `again`: both values are the killed run's, `calm` from the first execution of the step and
    `killed` from the one that replaced it.
    """

    step: int | None
    rank: int
    what: str
    calm: str
    killed: str
    again: bool = False


def compare(calm: Outcome, killed: Outcome) -> Difference | None:
    """The first difference between the runs, or None: they are the same, bit for bit."""
    if len(calm.history) != len(killed.history):
        return Difference(
            None, 0, "the number of ranks", str(len(calm.history)), str(len(killed.history))
        )
    used = used_generators(calm) | used_generators(killed)
    found = [
        *_first(_between_runs(calm, killed, used)),
        *_first(_within(killed, used)),
    ]
    if found:
        return min(found, key=lambda difference: difference.step or 0)
    return next(_between_ends(calm.final, killed.final, used), None)


def _first(differences: Iterator[Difference]) -> list[Difference]:
    return [difference for difference in [next(differences, None)] if difference is not None]


def used_generators(outcome: Outcome) -> frozenset[str]:
    """The generators that the run drew from, as far as journal and final state tell."""
    executions = [facts for steps in outcome.history for facts in steps.values()]
    executions += [one.facts for one in outcome.superseded]
    moved = {name for facts in executions if not facts.opening for name in facts.rng}
    for plain in outcome.final.plain:
        now = plain.get("rng", {})
        for place in plain.get("position", {}).get("places", ()):
            begun = place.get("begin", {})
            moved |= {name for name in now if name in begun and begun[name] != now[name]}
    return frozenset(moved)


# --- the journals -----------------------------------------------------------------------------


def _between_runs(calm: Outcome, killed: Outcome, used: frozenset[str]) -> Iterator[Difference]:
    last = max((step for steps in (*calm.history, *killed.history) for step in steps), default=0)
    for step in range(1, last + 1):
        for rank, (ours, theirs) in enumerate(zip(calm.history, killed.history, strict=True)):
            one, other = ours.get(step), theirs.get(step)
            if one is None or other is None:
                if one is not other:
                    yield Difference(step, rank, "the step", _presence(one), _presence(other))
                continue
            for what, value, changed in differences(one, other, used):
                yield Difference(step, rank, what, value, changed)


def _within(killed: Outcome, used: frozenset[str]) -> Iterator[Difference]:
    """Steps that were done again, against their first execution, of which a kill may have cut off
    the scalars that were still on a device."""
    for first in sorted(killed.superseded, key=lambda one: (one.step, one.rank, one.attempt)):
        again = killed.history[first.rank].get(first.step)
        if again is not None:
            for what, value, changed in differences(first.facts, again, used, common=True):
                yield Difference(first.step, first.rank, what, value, changed, again=True)


def _presence(facts: Facts | None) -> str:
    return ABSENT if facts is None else "completed"


# --- the final states -------------------------------------------------------------------------


def _between_ends(calm: Final, killed: Final, used: frozenset[str]) -> Iterator[Difference]:
    if calm.step != killed.step:
        yield Difference(None, 0, "the last step", str(calm.step), str(killed.step))
    for rank, (ours, theirs) in enumerate(zip(calm.tensors, killed.tensors, strict=True)):
        for name in sorted(ours.keys() | theirs.keys()):
            mine, its = ours.get(name), theirs.get(name)
            if mine is None or its is None or mine != its:
                yield Difference(None, rank, name, _tensor(mine, its), _tensor(its, mine))
    for rank, (one, other) in enumerate(zip(calm.plain, killed.plain, strict=True)):
        where = {part: (_seen(one[part], used), _seen(other[part], used)) for part in _DRAWN}
        for part, values in {"objects": (one["objects"], other["objects"]), **where}.items():
            if found := first_difference(*values, part):
                yield Difference(None, rank, *found)


def _tensor(tensor: Tensor | None, beside: Tensor | None) -> str:
    """What of a tensor differs from the one beside it."""
    if tensor is None or beside is None:
        return ABSENT if tensor is None else "present"
    if (tensor.dtype, tensor.shape) != (beside.dtype, beside.shape):
        return f"{tensor.dtype} of shape {tensor.shape}"
    return tensor.digest


def _seen(value: Any, used: frozenset[str]) -> Any:
    """Random states, and a position that holds some, without the generators that nobody uses."""
    if isinstance(value, list):
        return [_seen(item, used) for item in value]
    if not isinstance(value, dict):
        return value
    if "python" in value and "torch" in value:
        return {name: state for name, state in value.items() if name in used}
    return {key: _seen(item, used) for key, item in value.items()}


def weights_digest(final: Final) -> str:
    """One digest of all tensors: blake3 over their sorted names and digests, rank by rank."""
    hasher = blake3()
    for rank, tensors in enumerate(final.tensors):
        for name in sorted(tensors):
            hasher.update(f"{rank}\0{name}\0{tensors[name].digest}\n".encode())
    return f"blake3:{hasher.hexdigest()}"
