"""What differs between two states, from their descriptions: names, types, shapes, digests, values.

Pure. Owns what counts as a difference, of which kind it is, and what two states have in common.
By how much two tensors differ is for whoever can read them. Floating-point values are equal only if
their bits are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

from walrecover import renames
from walrecover.renames import Rename, Sign
from walrecover.values import first_difference, shown

OWN = ("rng", "position", "step")
"""What only a snapshot has beside its objects."""

_STEP = re.compile(r"(.+)\.state\.([^.]+)\.step")
_STATE = re.compile(r"(.+)\.state\.([^.]+)\.([^.]+)")
_GROUP = re.compile(r"(.+\.param_groups\.[0-9]+)\.([^.]+)")


class Tensor(NamedTuple):
    """A tensor without its bytes. `number`: its value, where it has one element and is known.
    `name`: what its reader calls it."""

    dtype: str
    shape: tuple[int, ...]
    digest: str
    number: float | int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.dtype} {'×'.join(map(str, self.shape)) or 'scalar'}"


class State(NamedTuple):
    """One side. `ranks`: for each rank, its leaves (a Tensor or a plain value) by their paths.

    `kinds`: what each attached object is, where that is known. `tensors_only`: plain values were
    never kept there. `own`: the generators and the data position are among the leaves.
    `form_only`: values mean nothing (a model that was just built). `part`: only some of what a
    training has was asked for: objects of kinds that are not there are left out.
    """

    label: str
    ranks: tuple[Mapping[str, Any], ...]
    kinds: Mapping[str, str] = {}
    tensors_only: bool = False
    own: bool = False
    form_only: bool = False
    part: bool = False


class Change(NamedTuple):
    """One leaf that differs. `kind` is one of KINDS. `path` is A's name for it, `other` B's; "" on
    the side that lacks it. `a`, `b`: the two values for people."""

    kind: str
    rank: int
    path: str
    other: str
    a: str = ""
    b: str = ""


KINDS = {
    "only in A": "names that B lacks",
    "only in B": "names that A lacks",
    "kind": "a tensor here, a value there, or objects of two kinds",
    "shape": "tensors of another shape",
    "dtype": "tensors of another type",
    "group": "parameter groups: hyperparameters, sizes, order",
    "order": "optimizer state that belongs to other parameters",
    "step": "step counts of optimizers",
    "tensor": "tensors with other bytes",
    "generator": "random generators and the data position",
    "value": "plain values",
}


class Report(NamedTuple):
    """All that differs. `compared`: leaves that both sides have, over all ranks. `form_only`: of
    those, only types, shapes and sizes were."""

    changes: tuple[Change, ...]
    renamed: tuple[tuple[int, Rename], ...]
    compared: int
    notes: tuple[str, ...]
    form_only: bool = False

    @property
    def verdict(self) -> str:
        if self.changes:
            return "different"
        return "renamed" if self.renamed else "identical"


def leaves_of(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a nested state by their paths. Mappings are walked, and lists that hold more
    than plain values; a list of numbers is one leaf."""
    found: dict[str, Any] = {}
    for name, leaf in _walk(value, path):
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}~{count}"
        found[unique] = leaf
    return found


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}" if path else str(key))
    elif _is_branch(value):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}.{index}" if path else str(index))
    else:
        yield path, value


def _is_branch(value: Any) -> bool:
    """Whether a sequence is walked into rather than taken as one value."""
    if isinstance(value, Tensor) or not isinstance(value, list | tuple | deque):
        return False
    return any(isinstance(item, Tensor | Mapping) or _is_branch(item) for item in value)


def compare(a: State, b: State) -> Report:
    """Everything that differs between two states."""
    notes = list(_notes(a, b))
    changes = [
        Change("kind", 0, name, name, kind, b.kinds[name])
        for name, kind in a.kinds.items()
        if b.kinds.get(name, kind) != kind
    ]
    renamed: list[tuple[int, Rename]] = []
    compared = 0
    said: set[Hashable] = set()
    a, b = _part_of(a, b), _part_of(b, a)
    for rank, (ours, theirs) in enumerate(zip(a.ranks, b.ranks, strict=False)):
        one, other = _comparable(ours, a, b), _comparable(theirs, a, b)
        if a.form_only or b.form_only:
            one, other = _of_form(one, other), _of_form(other, one)
        found = _of_rank(one, other, rank, a.form_only or b.form_only)
        changes += [c for c in found.changes if not _is_said(c, one, other, said)]
        renamed += found.renamed
        compared += found.compared
    changes.sort(key=lambda change: list(KINDS).index(change.kind))
    form = a.form_only or b.form_only
    return Report(tuple(changes), tuple(renamed), compared, tuple(notes), form)


def _notes(a: State, b: State) -> Iterator[str]:
    if len(a.ranks) != len(b.ranks):
        yield (
            f"A has {len(a.ranks)} ranks and B {len(b.ranks)}: compared are the first "
            f"{min(len(a.ranks), len(b.ranks))}"
        )
    for side, state in (("A", a), ("B", b)):
        if state.form_only:
            yield f"{side} was just built: names, shapes and types are compared, values are not"
        elif state.tensors_only:
            yield f"{side} holds tensors only: plain values are not compared"
    if a.own != b.own and not (a.form_only or b.form_only):
        yield f"{'B' if a.own else 'A'} holds no generators and no data position of walrecover's"


def _part_of(state: State, beside: State) -> State:
    """Without the objects of kinds that a side which is a part does not have."""
    if not beside.part:
        return state
    names = {name for name, kind in state.kinds.items() if kind in beside.kinds.values()}
    common = names & beside.kinds.keys() or names
    ranks = tuple(
        {path: leaf for path, leaf in leaves.items() if path.partition(".")[0] in common}
        for leaves in state.ranks
    )
    return state._replace(ranks=ranks)


def _comparable(leaves: Mapping[str, Any], a: State, b: State) -> dict[str, Any]:
    """Without what one of the sides could never hold."""
    own = a.own and b.own
    tensors_only = a.tensors_only or b.tensors_only
    return {
        path: leaf
        for path, leaf in leaves.items()
        if (own or path.partition(".")[0] not in OWN)
        and (not tensors_only or isinstance(leaf, Tensor))
    }


def _of_form(leaves: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """Tensors, sizes of parameter groups and kinds of objects. State of an optimizer counts only
    where the other side has some: before its first step it has none."""
    stateless = {path[: -len(".state")] for path, leaf in beside.items() if leaf == {}}
    return {
        path: leaf
        for path, leaf in leaves.items()
        if (isinstance(leaf, Tensor) or (path.endswith(".params") and _GROUP.fullmatch(path)))
        and not ((match := _STATE.fullmatch(path)) and match[1] in stateless)
    }


def _is_said(
    change: Change, one: Mapping[str, Any], other: Mapping[str, Any], said: set[Hashable]
) -> bool:
    """What an earlier rank shows alike, to the bit (replicated tensors above all), is said once."""
    contents = _content(one.get(change.path)), _content(other.get(change.other))
    key = (change._replace(rank=0), contents)
    if key in said:
        return True
    said.add(key)
    return False


def _content(leaf: Any) -> str:
    return leaf.digest if isinstance(leaf, Tensor) else repr(leaf)


def _of_rank(one: dict[str, Any], other: dict[str, Any], rank: int, form: bool) -> Report:
    left = {path: _sign(leaf) for path, leaf in one.items() if path not in other}
    right = {path: _sign(leaf) for path, leaf in other.items() if path not in one}
    renamed = renames.pair(left, right)
    names = {path: path for path in one if path in other}
    names |= {rename.here: rename.there for rename in renamed}
    back = {there: here for here, there in names.items()}
    changes = [
        *(Change("only in A", rank, p, "", _leaf(one[p])) for p in one if p not in names),
        *(Change("only in B", rank, "", p, "", _leaf(other[p])) for p in other if p not in back),
    ]
    orders = _reordered(one, other, names)
    changes += [
        Change("order", rank, path, names.get(f"{path}.param_groups", path), *numbers)
        for path, numbers in orders.items()
    ]
    for path, there in names.items():
        match = _STATE.fullmatch(path)
        if match and match[1] in orders:
            continue
        changes += _between(path, there, one[path], other[there], rank, form)
    return Report(tuple(changes), tuple((rank, rename) for rename in renamed), len(names), ())


def _sign(leaf: Any) -> Sign:
    if isinstance(leaf, Tensor):
        return Sign((leaf.dtype, leaf.shape), leaf.digest if 0 not in leaf.shape else None)
    return Sign(type(leaf).__name__)


def _between(path: str, there: str, mine: Any, its: Any, rank: int, form: bool) -> Iterator[Change]:
    """The difference between two leaves, if there is one."""
    if not (isinstance(mine, Tensor) and isinstance(its, Tensor)):
        if isinstance(mine, Tensor) or isinstance(its, Tensor):
            yield Change("kind", rank, path, there, _leaf(mine), _leaf(its))
        elif form:
            if _size(mine) != _size(its):
                yield Change("group", rank, path, there, _size(mine), _size(its))
        elif found := first_difference(mine, its, ""):
            yield _plain(path, there, mine, its, found, rank)
    elif mine.shape != its.shape:
        yield Change("shape", rank, path, there, str(mine), str(its))
    elif mine.dtype != its.dtype:
        yield Change("dtype", rank, path, there, str(mine), str(its))
    elif mine.digest != its.digest and not form:
        kind = "step" if _STEP.fullmatch(path) else "tensor"
        yield Change(kind, rank, path, there, _value(mine), _value(its))


def _plain(
    path: str, there: str, mine: Any, its: Any, found: tuple[str, str, str], rank: int
) -> Change:
    where, a, b = found
    kind = "value"
    if path.partition(".")[0] in OWN:
        kind = "generator"
    elif _STEP.fullmatch(path):
        kind = "step"
    elif match := _GROUP.fullmatch(path):
        kind = "group"
        if match[2] == "params" and _size(mine) != _size(its):
            return Change(kind, rank, path, there, _size(mine), _size(its))
    if where.startswith("the length"):
        a, b = f"{a} items", f"{b} items"
    elif where:
        a, b = f"{where}: {a}", f"{where}: {b}"
    return Change(kind, rank, path, there, a, b)


def _size(parameters: Any) -> str:
    return f"{len(parameters)} parameters" if isinstance(parameters, list) else shown(parameters)


def _value(tensor: Tensor) -> str:
    return str(tensor) if tensor.number is None else shown(tensor.number)


def _leaf(leaf: Any) -> str:
    return _value(leaf) if isinstance(leaf, Tensor) else shown(leaf)


# --- optimizers ---------------------------------------------------------------------------------


def _reordered(
    one: Mapping[str, Any], other: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Optimizers whose parameters have the same states as the other side's, at other numbers:
    for each, the numbers that moved."""
    back = {there: here for here, there in names.items()}
    mine = _records({path: leaf for path, leaf in one.items() if path in names})
    its = _records({back[path]: leaf for path, leaf in other.items() if path in back})
    found = {}
    for optimizer in mine.keys() & its.keys():
        ours, theirs = mine[optimizer], its[optimizer]
        if ours != theirs and Counter(ours.values()) == Counter(theirs.values()):
            moved = [number for number in ours if ours[number] != theirs.get(number)]
            by_record = {record: number for number, record in theirs.items()}
            found[optimizer] = (
                f"parameters {', '.join(moved)}",
                f"parameters {', '.join(by_record[ours[number]] for number in moved)}",
            )
    return found


def _records(leaves: Mapping[str, Any]) -> dict[str, dict[str, Hashable]]:
    """For each optimizer, what it holds of each parameter that has tensors of a real size."""
    found: dict[str, dict[str, set[Hashable]]] = defaultdict(lambda: defaultdict(set))
    for path, leaf in leaves.items():
        match = _STATE.fullmatch(path)
        if match and isinstance(leaf, Tensor) and leaf.shape:
            found[match[1]][match[2]].add((match[3], leaf.dtype, leaf.shape, leaf.digest))
    return {
        optimizer: {number: frozenset(record) for number, record in records.items()}
        for optimizer, records in found.items()
    }
