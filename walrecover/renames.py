"""The same thing under another name: which of the names that only one side has belong together.

Pure. Owns the wrappers that are known, the guess of a common prefix, and how a rename is said. Two
names are paired only where no third could be meant; what stays unpaired is missing, or extra.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "model",
        "state_dict",
        "model_state_dict",
    }
)
"""Components of a name that wrap what is below them, and say nothing about it."""

_SAMPLES = 32
_ROUNDS = 32


class Rename(NamedTuple):
    """`here` of one side is `there` of the other; they differ by these prefixes, each with its
    dot ("" where that side has none)."""

    here: str
    there: str
    by_here: str
    by_there: str

    @property
    def rule(self) -> tuple[str, str]:
        return self.by_here, self.by_there


class Sign(NamedTuple):
    """What is known of a name's content. Names are guessed to belong together where `form` is
    equal (type and shape), or `content` (a digest; None: not known)."""

    form: Hashable
    content: Hashable = None


Signs = Mapping[str, Sign]


def pair(here: Signs, there: Signs) -> list[Rename]:
    """The renames between two sets of names that have none in common."""
    left, right = dict(here), dict(there)
    found: list[Rename] = []

    def take(renames: Iterable[Rename]) -> int:
        taken = 0
        for rename in renames:
            if rename.here in left and rename.there in right:
                del left[rename.here], right[rename.there]
                found.append(rename)
                taken += 1
        return taken

    take(list(_unwrapped(left, right)))
    for _ in range(_ROUNDS):
        if not (left and right and take(_common_prefix(left, right))):
            break
    take(list(_same_content(left, right)))
    return found


def _unwrapped(left: Signs, right: Signs) -> Iterator[Rename]:
    """Names that are equal without their wrappers."""
    by_bare = _unique(right, lambda name: ".".join(_bare(name)))
    for bare, here in _unique(left, lambda name: ".".join(_bare(name))).items():
        there = by_bare.get(bare)
        if there is not None:
            yield Rename(here, there, *_excess(here, there))


def _bare(name: str) -> list[str]:
    parts = name.split(".")
    return [part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:]


def _unique(signs: Signs, key: Callable[[str], str]) -> dict[str, str]:
    """Names by their key, without those that share it."""
    counts = Counter(map(key, signs))
    return {key(name): name for name in signs if counts[key(name)] == 1}


def _excess(here: str, there: str) -> tuple[str, str]:
    """The wrappers that each name has beyond the other's."""
    one, other = here.split("."), there.split(".")
    wrappers = [[part for part in parts[:-1] if part in WRAPPERS] for parts in (one, other)]
    more, less = (Counter(parts) for parts in wrappers)
    return _kept(wrappers[0], more - less), _kept(wrappers[1], less - more)


def _kept(parts: list[str], counts: Counter[str]) -> str:
    text = ""
    for part in parts:
        if counts[part]:
            counts[part] -= 1
            text += f"{part}."
    return text


def _common_prefix(left: Signs, right: Signs) -> list[Rename]:
    """The pair of prefixes under which most names with the same form meet; of one name alone only
    where its content is the same too."""
    best: list[Rename] = []
    for by_here, by_there in _prefixes(left, right):
        found = [
            Rename(here, there, *_without_beginning(by_here, by_there))
            for here, sign in left.items()
            if here.startswith(by_here)
            and (there := by_there + here[len(by_here) :]) in right
            and right[there].form == sign.form
        ]
        if len(found) > len(best):
            best = found
    if len(best) == 1:
        content = left[best[0].here].content
        return best if content is not None and content == right[best[0].there].content else []
    return best


def _prefixes(left: Signs, right: Signs) -> Iterator[tuple[str, str]]:
    """Pairs of prefixes that some names suggest, by the longest end that they have in common."""
    by_last = defaultdict(list)
    for name in right:
        by_last[name.rpartition(".")[2]].append(name.split("."))
    step = max(1, len(left) // _SAMPLES)
    seen = set()
    for here in list(left)[::step][: 2 * _SAMPLES]:
        parts = here.split(".")
        ends = [(_common_end(parts, other), other) for other in by_last[parts[-1]]]
        longest = max((end for end, _ in ends), default=0)
        for end, other in ends:
            if end == longest:
                prefixes = _joined(parts[:-end]), _joined(other[:-end])
                if prefixes not in seen:
                    seen.add(prefixes)
                    yield prefixes


def _common_end(one: list[str], other: list[str]) -> int:
    count = 0
    for mine, its in zip(reversed(one), reversed(other), strict=False):
        if mine != its:
            break
        count += 1
    return count


def _joined(parts: list[str]) -> str:
    return "".join(f"{part}." for part in parts)


def _without_beginning(one: str, other: str) -> tuple[str, str]:
    """Two prefixes without the components that both begin with."""
    mine, its = one.split("."), other.split(".")
    while mine and its and mine[0] == its[0] and (mine[0] or its[0]):
        mine, its = mine[1:], its[1:]
    return ".".join(mine), ".".join(its)


def _same_content(left: Signs, right: Signs) -> Iterator[Rename]:
    """Names whose content no other name has."""
    contents = [
        Counter(sign.content for sign in signs.values() if sign.content is not None)
        for signs in (left, right)
    ]
    by_content = {sign.content: name for name, sign in right.items()}
    for here, sign in left.items():
        if contents[0][sign.content] == contents[1][sign.content] == 1:
            there = by_content[sign.content]
            yield Rename(here, there, here, there)


def said(renames: Iterable[Rename], here: str, there: str) -> list[str]:
    """One sentence for each rule, the commonest first. `here`, `there` name the two sides."""
    rules: dict[tuple[str, str], list[Rename]] = defaultdict(list)
    for rename in renames:
        rules[rename.rule].append(rename)
    return [
        f"{_names(len(found))} {_by(rule, here, there)}"
        for rule, found in sorted(rules.items(), key=lambda item: -len(item[1]))
    ]


def _names(count: int) -> str:
    return "1 name differs" if count == 1 else f"{count} names differ"


def _by(rule: tuple[str, str], here: str, there: str) -> str:
    by_here, by_there = rule
    if by_here and by_there:
        return f"by `{by_here}` in {here} and `{by_there}` in {there}"
    if not by_here and not by_there:
        return "by the order of their wrappers"
    return f"by `{by_here or by_there}`, which only {here if by_here else there} has"
