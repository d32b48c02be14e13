"""Where a history was made: along the chain, over forks."""

from __future__ import annotations

from tests.support.protocol import attempt, committed, reference
from walrecover.entries import Ancestor, AttemptEntry, Entry, OriginEntry
from walrecover.lineage import history, superseded_from

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
