"""The judgement on a history: every position once, or which not, and never "ok" without proof."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from walrecover import events as ev
from walrecover.consumed import Consumed
from walrecover.entries import Ancestor, Skip
from walrecover.errors import Corrupt
from walrecover.intervals import Stretch
from walrecover.ledger import Book
from walrecover.tiling import Chapter, Judgement, judge

LENGTH, BATCH = 24, 4


def opened(kind: str = "global", world: int = 1, **more: object) -> ev.DataOpened:
    facts = {"length": LENGTH, "batch": BATCH, "seed": 7} | more
    return ev.DataOpened(source=0, kind=kind, world=world, **facts)  # type: ignore[arg-type]


def step(number: int, *ranges: tuple[int, int], epoch: int = 0) -> ev.StepCompleted:
    return ev.StepCompleted(step=number, consumed=(Consumed(0, epoch, ranges),))


def steps(
    first: int, last: int, rank: int = 0, world: int = 1, begin: int = 1
) -> list[ev.StepCompleted]:
    """A rank's steps, step `begin` taking the first global batch of pass 0."""
    share = BATCH // world
    found = []
    for n in range(first, last + 1):
        start = (n - begin) * BATCH + rank * share
        found.append(step(n, (start, start + share)))
    return found


def book(
    events: Iterable[ev.Event], base: int = 0, last: int | None = None, world: int = 1
) -> Book:
    found = Book(base, last)
    begun = ev.AttemptBegun(run="r", attempt=1, nonce="n", writer="rank-0", world=world)
    found.read(ev.encode(event) for event in (begun, *events))
    return found


def chapter(
    number: int, last: int, *books: Book | None, base: int = 0, cut: int | None = None
) -> Chapter:
    ancestor = Ancestor("r", number, f"n{number}", base, cut)
    return Chapter(ancestor, last, {n: b for n, b in enumerate(books) if b is not None})


def only(judgement: Judgement) -> tuple[str, tuple[Stretch, ...], tuple[Stretch, ...]]:
    (report,) = judgement.reports
    return judgement.verdict, report.gaps, report.repeats


ENDED = ev.PassEnded(step=6, source=0)


def test_one_attempt_that_took_all_is_ok() -> None:
    whole = book([opened(), *steps(1, 6), ENDED])
    assert only(judge([chapter(1, 6, whole)])) == ("ok", (), ())


def test_a_resume_takes_up_where_the_snapshot_was() -> None:
    before = book([opened(), *steps(1, 5)], last=3)
    after = book([opened(), *steps(4, 6), ENDED], base=3)
    history = [chapter(1, 3, before, cut=3), chapter(2, 6, after, base=3)]
    assert only(judge(history)) == ("ok", (), ())


@pytest.mark.parametrize(
    ("after", "gaps", "repeats"),
    [
        ([step(4, (16, 20)), step(5, (20, 24))], (Stretch(12, 4),), ()),
        ([step(4, (8, 12)), *steps(5, 7, begin=2)], (), (Stretch(8, 4),)),
    ],
)
def test_a_resume_beside_it_is_found_with_its_positions(
    after: Sequence[ev.StepCompleted], gaps: tuple[Stretch], repeats: tuple[Stretch]
) -> None:
    before = book([opened(), *steps(1, 3)], last=3)
    wrong = book([opened(), *after, ev.PassEnded(step=after[-1].step, source=0)], base=3)
    history = [chapter(1, 3, before, cut=3), chapter(2, after[-1].step, wrong, base=3)]
    assert only(judge(history)) == ("violated", gaps, repeats)


def test_ranks_share_a_global_order_over_changes_of_the_world() -> None:
    before = [book([opened(world=2), *steps(1, 4, r, 2)], last=2, world=2) for r in (0, 1)]
    after = [book([opened(world=4), *steps(3, 6, r, 4), ENDED], base=2, world=4) for r in range(4)]
    history = [chapter(1, 2, *before, cut=2), chapter(2, 6, *after, base=2)]
    judgement = judge(history)
    assert judgement.verdict == "ok"
    assert [(report.consumed, report.ranks) for report in judgement.reports] == [(LENGTH, ())]


def test_each_rank_tiles_an_order_of_its_own() -> None:
    books = [book([opened("sample"), *steps(1, 6), ENDED], world=2) for _ in range(2)]
    judgement = judge([chapter(1, 6, *books)])
    assert judgement.verdict == "ok"
    assert [report.ranks for report in judgement.reports] == [(0, 1)]


def test_a_pass_that_goes_on_lacks_nothing_yet() -> None:
    judgement = judge([chapter(1, 4, book([opened(), *steps(1, 4)]))])
    assert judgement.verdict == "ok"
    assert judgement.reports[0].to_come == 8


def test_a_pass_with_another_behind_it_is_over() -> None:
    events = [opened(), *steps(1, 4), step(5, (0, 4), epoch=1)]
    judgement = judge([chapter(1, 5, book(events))])
    assert judgement.verdict == "violated"
    assert judgement.reports[0].gaps == (Stretch(16, 8),)


def test_a_loop_that_the_script_left_lacks_nothing() -> None:
    left = ev.PassEnded(step=4, source=0, broken=True)
    judgement = judge([chapter(1, 4, book([opened(), *steps(1, 4), left]))])
    assert judgement.verdict == "ok"
    assert judgement.reports[0].beyond == 8


def test_what_was_handed_out_behind_the_last_step_is_told_apart() -> None:
    end = ev.PassEnded(step=5, source=0, left=((20, 24),))
    judgement = judge([chapter(1, 5, book([opened(), *steps(1, 5), end]))])
    assert (judgement.verdict, judgement.reports[0].left) == ("ok", (Stretch(20, 4),))


def test_what_was_skipped_on_purpose_is_no_gap() -> None:
    events = [opened(), *steps(1, 2), *steps(3, 5, begin=0), ev.PassEnded(step=5, source=0)]
    history = [chapter(1, 5, book(events))]
    assert judge(history).verdict == "violated"
    judgement = judge(history, [Skip(0, 0, 8, 12, "a batch gave NaN")])
    assert (judgement.verdict, judgement.reports[0].skipped) == ("ok", (Stretch(8, 4),))


def test_what_was_to_be_skipped_and_was_not_is_found() -> None:
    whole = [chapter(1, 6, book([opened(), *steps(1, 6), ENDED]))]
    judgement = judge(whole, [Skip(0, 0, 8, 12)])
    assert (judgement.verdict, judgement.reports[0].unskipped) == ("violated", (Stretch(8, 4),))


def test_padding_is_counted_and_no_part_of_the_pass() -> None:
    share = Consumed(0, 0, ((20, 22),), None, ((22, 24),))
    events = [opened(length=22), *steps(1, 5), ev.StepCompleted(step=6, consumed=(share,)), ENDED]
    judgement = judge([chapter(1, 6, book(events))])
    assert (judgement.verdict, judgement.reports[0].padded) == ("ok", 2)


def test_positions_that_no_pass_has_are_found() -> None:
    judgement = judge([chapter(1, 6, book([opened(length=20), *steps(1, 6), ENDED]))])
    assert (judgement.verdict, judgement.reports[0].outside) == ("violated", (Stretch(20, 4),))


@pytest.mark.parametrize("changed", [{"seed": 8}, {"length": 25}, {"digest": b"x" * 16}])
def test_an_order_that_changed_within_a_pass_is_found(changed: dict[str, object]) -> None:
    before = book([opened(), *steps(1, 3)], last=3)
    after = book([opened(**changed), *steps(4, 6)], base=3)  # type: ignore[arg-type]
    history = [chapter(1, 3, before, cut=3), chapter(2, 6, after, base=3)]
    judgement = judge(history)
    assert judgement.verdict == "violated"
    assert judgement.reports[0].changed.startswith(next(iter(changed)))


def test_a_loop_that_was_given_more_to_do_goes_on() -> None:
    """3 epochs, and then 5: the pass over them was over, and is not."""
    first = [opened("item", length=3), *(step(n, (n - 1, n)) for n in (1, 2, 3))]
    more = [opened("item", length=5), *(step(n, (n - 1, n)) for n in (4, 5))]
    history = [
        chapter(1, 3, book([*first, ev.PassEnded(step=3, source=0)]), cut=3),
        chapter(2, 5, book([*more, ev.PassEnded(step=5, source=0)], base=3), base=3),
    ]
    assert only(judge(history)) == ("ok", (), ())
    shorter = [history[0], chapter(2, 4, book(more[:2], base=3), base=3)]
    assert only(judge(shorter)) == ("ok", (), ())
    assert judge(shorter).reports[0].to_come == 1


def test_a_journal_that_is_missing_is_no_gap_and_never_ok() -> None:
    after = book([opened(), *steps(4, 6), ENDED], base=3)
    history = [chapter(1, 3, cut=3), chapter(2, 6, after, base=3)]
    judgement = judge(history)
    assert judgement.verdict == "unproven"
    assert judgement.reports[0].unknown == (Stretch(0, 12),)
    assert "attempt a1-n1 of run r: its journal is missing" in judgement.unproven[0]


def test_a_rank_whose_journal_is_missing_is_named() -> None:
    first = book([opened(world=2), *steps(1, 6, 0, 2), ENDED], world=2)
    judgement = judge([chapter(1, 6, first)])
    assert judgement.verdict == "unproven"
    assert judgement.unproven[0].startswith("rank 1 of attempt a1-n1")
    (unknown,) = judgement.reports[0].unknown
    assert str(unknown) == "2 to 3 and so on every 4, 6 times"


def test_steps_that_a_journal_lacks_are_named() -> None:
    events = [opened(), *steps(1, 3), *steps(5, 6), ENDED]
    judgement = judge([chapter(1, 6, book(events))])
    assert judgement.verdict == "unproven"
    assert "what step 4 consumed is not known" in judgement.unproven[0]


def test_steps_that_are_missing_elsewhere_explain_no_gap() -> None:
    """The first pass was over before the steps that nothing is known of."""
    events = [opened(), *steps(1, 5), ev.PassEnded(step=5, source=0), step(6, (0, 4), epoch=1)]
    judgement = judge([chapter(1, 7, book(events))])
    assert judgement.verdict == "violated"
    assert judgement.reports[0].gaps == (Stretch(20, 4),)


def test_steps_that_say_nothing_of_data_prove_nothing() -> None:
    silent = book([ev.StepCompleted(step=n) for n in (1, 2)])
    assert judge([chapter(1, 2, silent)]).verdict == "unproven"


def test_a_run_without_steps_has_nothing_to_prove() -> None:
    assert judge([chapter(1, 0, book([]))]).verdict == "ok"


def test_bytes_that_are_no_event_are_refused() -> None:
    with pytest.raises(Corrupt):
        Book(0, None).read([b"\x82\xa4type\xadStepCompleted\xa4step\xa1x"])
