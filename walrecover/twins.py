"""Two executions of one step, held against each other: what differs, causes before effects.

Pure. Owns what the journal says of an execution, what counts as a difference, and what each is
called. Floating-point numbers are equal only if their bits are, unless a bound is given.

The order is that of cause and effect within a step: where the data stood, the samples, the batch,
the random generators, the learning rate, then what was computed: loss, gradient norm, other
scalars, and last the state. So the first difference is the one nearest to the root.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from walrecover.values import ABSENT, bits, first_difference, shown

POSITION, SAMPLES, BATCH = "the data position", "the samples", "the batch"
LEARNING_RATE, LOSS, NORM = "the learning rate", "loss", "grad_norm"
RNG, STATE = "the random state of ", "the state of "

DATA = (("consumed", SAMPLES), ("batch", BATCH))
"""Of the data, beside the position: compared where both executions give it."""

ALL = frozenset({"position", "consumed", "batch", "rng", "lr", "scalars"})


class Facts(NamedTuple):
    """What the journal says of one execution of a step.

    `rng`: digests by generator. `opening`: the first step of its attempt, which gives the digest
    of every generator; later ones give those that moved. `more`: what a session may record beside
    that (samples, digests of batch and state), compared where both give it.
    """

    position: tuple[int, ...]
    lr: tuple[float, ...]
    rng: Mapping[str, bytes]
    scalars: Mapping[str, float]
    opening: bool = False
    more: Mapping[str, Any] = {}


class Difference(NamedTuple):
    """`before` and `after` as text; `what` as people say it."""

    what: str
    before: str
    after: str


def facts_of(event: Any, *, opening: bool) -> Facts:
    """The facts of a `StepCompleted`."""
    names = [name for name, _ in DATA] + ["state"]
    scalars = event.scalars
    if event.grad_norm is not None:
        scalars = {**scalars, NORM: event.grad_norm}
    return Facts(
        position=event.position,
        lr=event.lr,
        rng=event.rng,
        scalars=scalars,
        opening=opening,
        more={name: value for name in names if (value := getattr(event, name, None))},
    )


def with_scalars(facts: Facts, arrived: Mapping[str, float]) -> Facts:
    """With those that came from a device later."""
    return facts._replace(scalars={**facts.scalars, **arrived})


def differences(
    before: Facts,
    after: Facts,
    used: Container[str],
    *,
    compared: Container[str] = ALL,
    bound: float = 0.0,
    common: bool = False,
) -> Iterator[Difference]:
    """What differs. `used`: the generators that count; nobody seeds what he does not draw from.

    `compared`: which kinds of facts. `bound`: how far scalars may lie apart, relative to the larger
    one; 0: not a bit. `common`: a scalar that only one of the two has is no difference.
    """
    if "position" in compared and before.position != after.position:
        yield Difference(POSITION, str(before.position), str(after.position))
    for name, said in DATA:
        if name in compared and before.more.get(name) and after.more.get(name):
            yield from _one(before.more[name], after.more[name], said)
    if "rng" in compared:
        for name in sorted(before.rng.keys() & after.rng.keys()):
            if name in used and before.rng[name] != after.rng[name]:
                yield Difference(RNG + name, before.rng[name].hex(), after.rng[name].hex())
    if "lr" in compared and list(map(bits, before.lr)) != list(map(bits, after.lr)):
        yield Difference(LEARNING_RATE, _numbers(before.lr), _numbers(after.lr))
    if "scalars" in compared:
        yield from scalars_that_differ(before.scalars, after.scalars, bound=bound, common=common)
    if "state" in before.more and "state" in after.more and "rng" in compared:
        yield from _one(before.more["state"], after.more["state"], STATE + "what moves in a step")


def scalars_that_differ(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    bound: float = 0.0,
    common: bool = False,
) -> Iterator[Difference]:
    """Loss first, then the gradient norm, then the others by name."""
    names = before.keys() & after.keys() if common else before.keys() | after.keys()
    for name in sorted(names, key=_rank):
        mine, its = before.get(name), after.get(name)
        if mine is None or its is None or (bits(mine) != bits(its) and not near(mine, its, bound)):
            yield Difference(name, _scalar(mine), _scalar(its))


def near(one: float, other: float, bound: float) -> bool:
    """Whether two numbers that are not the same bits lie within a relative bound, where there is
    one; infinities and NaN only near themselves."""
    if not bound:
        return False
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    if math.isinf(one) or math.isinf(other):
        return one == other
    return abs(one - other) <= bound * max(abs(one), abs(other))


def objects_that_differ(
    before: Mapping[str, bytes], after: Mapping[str, bytes]
) -> Iterator[Difference]:
    """Attached objects whose whole state both histories captured, and whose digests differ."""
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield Difference(STATE + name, before[name].hex(), after[name].hex())


def _rank(name: str) -> tuple[int, str]:
    return ((LOSS, NORM).index(name) if name in (LOSS, NORM) else 2, name)


def _one(before: Any, after: Any, what: str) -> Iterator[Difference]:
    if isinstance(before, bytes):
        if before != after:
            yield Difference(what, before.hex(), after.hex())
    elif found := first_difference(_plain(before), _plain(after), ""):
        path, mine, its = found
        yield Difference(f"{what}{_where(path)}", mine, its)


def _plain(value: Any) -> Any:
    """Structs as the tuples that they are written as."""
    if hasattr(value, "__struct_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value


def _where(path: str) -> str:
    return f" ({path.strip('.')})" if path else ""


def _scalar(value: float | None) -> str:
    return ABSENT if value is None else shown(value)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(shown(value) for value in values) or ABSENT
