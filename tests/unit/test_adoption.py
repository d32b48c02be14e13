"""The decisions about adopted files, over plain data."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.adoption import Found, Kept, Verdict, family, judge, retained

PATH = "out/model.pt"


def kept(number: int, path: str = PATH, size: int = 100, form: str = "torch") -> Kept:
    return Kept(
        number=number,
        path=path,
        bytes=size,
        digest=f"{number:064x}",
        format=form,
        assurance="",
        how="copy",
        mode=0o644,
        mtime_ns=number,
    )


def look(
    found: Found,
    *records: Kept,
    path: str = PATH,
    unsettled: bool = True,
    cut_off: bool = False,
) -> Verdict:
    return judge(path, found, records, unsettled=unsettled, cut_off=cut_off)


WHOLE = Found(state="whole", bytes=100, digest="ff" * 32)
TORN = Found(state="torn", bytes=7, reason="ends too early")
MISSING = Found(state="missing")


def test_a_whole_file_that_is_not_kept_is_kept_and_never_replaced() -> None:
    for unsettled, cut_off in itertools.product((False, True), repeat=2):
        for records in ((), (kept(1),), (kept(1), kept(2))):
            found = look(WHOLE, *records, unsettled=unsettled, cut_off=cut_off)
            assert found.action == "adopt"


def test_a_whole_file_that_is_the_newest_kept_is_left() -> None:
    same = Found(state="whole", digest=kept(2).digest)
    assert look(same, kept(1), kept(2), cut_off=True).action == "leave"


def test_an_older_version_is_replaced_only_where_the_machine_was_cut_off() -> None:
    older = Found(state="whole", digest=kept(1).digest)
    assert look(older, kept(1), kept(2)).action == "adopt"
    assert look(older, kept(1), kept(2), cut_off=True).kept == kept(2)


def test_the_newest_version_is_put_back_over_a_torn_file() -> None:
    for unsettled in (False, True):
        verdict = look(TORN, kept(3), kept(9), kept(4), unsettled=unsettled)
        assert (verdict.action, verdict.kept) == ("put back", kept(9))
        assert "ends too early" in verdict.reason


def test_a_torn_file_without_a_version_is_put_aside_if_this_run_can_have_torn_it() -> None:
    assert look(TORN).action == "put aside"
    before = Found(state="torn", reason="ends too early", touched=False)
    assert look(before, kept(1, "out/other.pt")).action == "leave"


def test_a_missing_file_comes_back_unless_somebody_removed_it() -> None:
    assert look(MISSING, kept(1)).kept == kept(1)
    assert look(MISSING, kept(1), unsettled=False).action == "leave"
    assert look(MISSING).action == "leave"


def test_a_numbered_file_that_was_rotated_away_does_not_come_back() -> None:
    rotated, newer = kept(1, "out/ckpt-100.pt"), kept(2, "out/ckpt-200.pt")
    assert look(MISSING, rotated, newer, path=rotated.path).action == "leave"
    assert look(MISSING, rotated, newer, path=newer.path).kept == newer
    other = kept(3, "out/best.pt")
    assert look(MISSING, rotated, newer, other, path=newer.path).kept == newer


@pytest.mark.parametrize(
    ("size", "form", "touched", "action"),
    [
        (99, "opaque", True, "put back"),
        (99, "opaque", False, "put back"),
        (100, "opaque", True, "adopt"),
        (101, "opaque", True, "adopt"),
        (101, "opaque", False, "leave"),
        (101, "torch", True, "put back"),  # what was a zip is one no more
    ],
)
def test_a_format_that_shows_nothing_is_judged_by_its_size(
    size: int, form: str, touched: bool, action: str
) -> None:
    found = Found(state="opaque", bytes=size, digest="ee" * 32, touched=touched)
    assert look(found, kept(1, form=form)).action == action


def test_a_format_that_shows_nothing_is_left_where_nothing_is_kept() -> None:
    assert look(Found(state="opaque", bytes=5)).action == "leave"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("out/ckpt-000100.pt", "out/ckpt-99.pt", True),
        ("checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors", True),
        ("out/epoch=3-loss=0.12.ckpt", "out/epoch=10-loss=0.08.ckpt", True),
        ("out/a3f90b1c22.pt", "out/feedfacecafe01.pt", True),
        ("out/best.pt", "out/last.pt", False),
        ("a/model.pt", "b/model.pt", False),
    ],
)
def test_paths_that_differ_in_numbers_only_are_one_family(one: str, other: str, same: bool) -> None:
    assert (family(one) == family(other)) is same


PATHS = ("out/best.pt", "out/last.pt", "out/ckpt-1.pt", "out/ckpt-20.pt")
RECORDS = st.lists(st.sampled_from(PATHS), max_size=30).map(
    lambda paths: [kept(number, path) for number, path in enumerate(paths, 1)]
)


@given(records=RECORDS, keep=st.integers(1, 4), seed=st.randoms())
def test_p10_of_each_family_the_newest_stay(records: list[Kept], keep: int, seed: object) -> None:
    shuffled = list(records)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    stay, go = retained(shuffled, keep)
    assert sorted(stay + go, key=lambda record: record.number) == records
    for name in {family(path) for path in PATHS}:
        numbers = [r.number for r in records if family(r.path) == name]
        assert [r.number for r in stay if family(r.path) == name] == numbers[-keep:]


@given(records=RECORDS, path=st.sampled_from(PATHS), unsettled=st.booleans())
def test_p7_what_was_put_back_is_left_when_judged_again(
    records: list[Kept], path: str, unsettled: bool
) -> None:
    for found in (TORN, MISSING):
        first = look(found, *records, path=path, unsettled=unsettled)
        if first.kept is not None:
            again = Found(state="whole", digest=first.kept.digest)
            for cut_off in (False, True):
                assert look(again, *records, path=path, cut_off=cut_off).action == "leave"
