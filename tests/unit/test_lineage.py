"""Where a history was made: along the chain, over forks."""

from __future__ import annotations

import msgspec

from tests.support.protocol import attempt, committed, reference
from walrecover.entries import Ancestor, AttemptEntry, Entry, OriginEntry
from walrecover.lineage import history, superseded_from, worlds_between

PARENT: list[Entry] = [
    attempt(1),
    committed(4, 1),
    attempt(2, reference(4, 1)),
    committed(6, 2),
    committed(8, 2),
    attempt(3, reference(6, 2)),
]


def made(run: str, number: int, base: int, cut: int | None) -> Ancestor:
    return Ancestor(run, number, f"{number:08d}", base, cut)


def test_the_newest_attempt_is_open_and_those_before_it_end_where_the_chain_leaves_them() -> None:
    assert history("a", []) == ()
    assert history("a", PARENT) == (
        made("a", 3, 6, None),
        made("a", 2, 4, 6),
        made("a", 1, 0, 4),
    )


def test_the_history_behind_a_snapshot_ends_with_it() -> None:
    assert history("a", PARENT, reference(6, 2)) == (made("a", 2, 4, 6), made("a", 1, 0, 4))
    assert history("a", PARENT, reference(2, 1)) == (made("a", 1, 0, 2),)


def test_a_fork_goes_on_with_the_history_of_its_parents() -> None:
    behind = history("a", PARENT, reference(6, 2))
    first = OriginEntry("0f", 0.0, "a", reference(6, 2), behind)
    assert history("b", [first]) == history("b", [first], reference(6, 2)) == behind
    own: list[Entry] = [first, attempt(3, reference(6, 2)), committed(9, 3)]
    assert history("b", own) == (made("b", 3, 6, None), *behind)
    assert history("b", own, reference(9, 3)) == (made("b", 3, 6, 9), *behind)
    assert history("b", [*own, attempt(4)]) == (made("b", 4, 0, None),)  # it has started over


def test_what_an_attempt_supersedes_begins_behind_its_base() -> None:
    first, second, third = (one for one in PARENT if isinstance(one, AttemptEntry))
    assert superseded_from(PARENT[:1], first) is None
    assert superseded_from([], first) is None
    assert superseded_from(PARENT[:3], second) == 5
    assert superseded_from(PARENT, third) == 7
    anew = attempt(4)
    assert superseded_from([*PARENT, anew], anew) == 1


def test_a_fork_supersedes_nothing_that_its_parent_logged() -> None:
    origin = OriginEntry("0f", 0.0, "a", reference(6, 2))
    mine, again = attempt(3, reference(6, 2)), attempt(4, reference(6, 2))
    assert superseded_from([origin, mine], mine) is None
    assert superseded_from([origin, mine, again], again) == 7


def resumed(number: int, step: int, of: int, ranks: int) -> AttemptEntry:
    """An attempt from a snapshot that so many ranks of an older one had saved."""
    entry = attempt(number, reference(step, of))
    return msgspec.structs.replace(entry, plan=msgspec.structs.replace(entry.plan, ranks=ranks))


WORLDS: list[Entry] = [
    attempt(1),  # of 2 ranks
    resumed(2, 4, 1, 2),  # of 3
    resumed(3, 4, 1, 2),  # of 3, from the same base
    resumed(4, 4, 1, 2),  # of 1
    resumed(5, 6, 4, 1),  # of 3
    resumed(6, 5, 1, 2),  # of 3, from an older snapshot of the first attempt
    resumed(7, 6, 6, 3),  # of 3
]


def test_attempts_from_the_same_base_have_no_other_world_between_them() -> None:
    assert worlds_between(WORLDS, 2, 3) == frozenset()
    assert worlds_between(WORLDS, 6, 7) == {3}


def test_another_world_on_either_way_to_the_common_past_lies_between() -> None:
    assert worlds_between(WORLDS, 3, 5) == {1}
    assert worlds_between(WORLDS, 2, 6) == {2}  # step 5 was made by 2 ranks, and by 3
    assert worlds_between(WORLDS, 1, 2) == {2}
    assert worlds_between(WORLDS, 4, 7) == {2, 3}
    assert worlds_between(WORLDS, 1, 99) == frozenset()
