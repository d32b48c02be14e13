"""Which snapshots rules keep, and why: the pure decision."""

from __future__ import annotations

import math

import msgspec
import pytest

from tests.support.protocol import attempt, committed, reference, retirement
from walrecover.entries import Entry, SnapshotRef
from walrecover.errors import BadInput
from walrecover.retention import Best, Rules, Values, Verdict, decide, parse_age, parse_best

STEPS = range(100, 1100, 100)
TEN: list[Entry] = [attempt(1), *(committed(step, 1) for step in STEPS)]
LEAST = Rules(keep_last=2)


def own_files(ref: SnapshotRef) -> frozenset[str]:
    return frozenset({ref.name})


def verdicts(
    rules: Rules, found: list[Entry] = TEN, *, now: float = 0.0, values: Values | None = None,
    proven: tuple[int, ...] = tuple(STEPS),
) -> list[Verdict]:  # fmt: skip
    known = frozenset(reference(step, number).manifest for step in proven for number in range(1, 4))
    return decide(found, rules, now=now, values=values or {}, verified=known, files=own_files)


def kept(*given: object, **more: object) -> dict[int, str]:
    return {v.commit.snapshot.step: v.reason for v in verdicts(*given, **more) if v.kept}  # type: ignore[arg-type]


def at(step: int, moment: float) -> Entry:
    return msgspec.structs.replace(committed(step, 1), at=moment)


def test_the_newest_stay() -> None:
    assert list(kept(Rules())) == [1000, 900, 800]
    assert kept(LEAST) == {1000: "of the newest 2", 900: "of the newest 2"}
    assert list(kept(Rules(keep_last=99))) == [*reversed(STEPS)]


def test_the_first_of_every_so_many_steps_stays() -> None:
    rules = Rules(keep_last=2, keep_every=250)
    assert list(kept(rules)) == [1000, 900, 800, 500, 300, 100]
    assert kept(rules)[300] == "the first from step 250 on"
    later = [*TEN, committed(1100, 1), committed(1200, 1)]
    again = [entry for entry in later if entry != committed(700, 1)]
    assert {800, 500, 300, 100} <= set(kept(rules, again, proven=(*STEPS, 1100, 1200)))


def test_the_best_stays() -> None:
    values = {"loss": {100: 3.0, 200: 0.5, 300: 0.5, 400: math.nan, 1000: 9.0}, "f1": {500: 1.0}}
    low, high = Rules(2, best=(Best("loss", "min"),)), Rules(2, best=(Best("loss", "max"),))
    assert kept(low, values=values)[200] == "best loss: 0.5"
    assert 300 not in kept(low, values=values)
    assert set(kept(high, values=values)) == {1000, 900}
    both = Rules(2, best=(Best("loss", "min"), Best("f1", "max")))
    assert set(kept(both, values=values)) == {1000, 900, 500, 200}
    with pytest.raises(BadInput, match=r"--best acc: no snapshot's step has .*there are: f1, loss"):
        verdicts(Rules(best=(Best("acc", "min"),)), values=values)
    with pytest.raises(BadInput, match="there are: none"):
        verdicts(low)


def test_the_pinned_stay() -> None:
    both = [*TEN, committed(1000, 1, end=True)]
    assert kept(Rules(2, pins=frozenset({300})))[300] == "pinned"
    assert [v.reason for v in verdicts(Rules(2, pins=frozenset({1000})), both)][:2] == [
        "pinned"
    ] * 2
    with pytest.raises(BadInput, match="--pin 350: there is no snapshot of that step"):
        verdicts(Rules(pins=frozenset({300, 350})))


def test_the_young_stay() -> None:
    found = [attempt(1), *(at(step, float(step)) for step in STEPS)]
    rules = Rules(2, younger_than=400.0, said="400s")
    assert list(kept(rules, found, now=1000.0)) == [1000, 900, 800, 700]
    assert kept(rules, found, now=1000.0)[700] == "not older than 400s"
    assert list(kept(rules, found, now=-5.0)) == [*reversed(STEPS)]  # a clock that went back


def test_no_rule_overrides_what_must_stay() -> None:
    alone = kept(LEAST, proven=(1000,))
    assert len(alone) == 10
    assert alone[100] == "no two newer ones are known to verify and share no file"
    assert list(kept(LEAST, proven=(1000, 500))) == [1000, 900, 800, 700, 600, 500]
    resumed = [*TEN, attempt(2, reference(500, 1))]
    assert kept(LEAST, resumed)[100] == "attempt 2 has no snapshot that was read back yet"
    resumed += [committed(600, 2)]
    assert kept(LEAST, resumed, proven=(500, 400))[100].startswith("attempt 2 has no snapshot")
    assert set(kept(LEAST, resumed)) == {600, 500}
    origin = kept(LEAST, [])
    assert origin == {}


def test_what_the_chain_left_goes_last_and_says_so() -> None:
    found = [*TEN, attempt(2, reference(200, 1)), committed(300, 2), committed(400, 2)]
    seen = verdicts(LEAST, found)
    assert [v.commit.snapshot.step for v in seen if v.kept] == [400, 300]
    assert [(v.commit.snapshot.step, v.reason) for v in seen if not v.kept] == [
        (200, "no rule keeps it"), (100, "no rule keeps it"),
        *((step, "off the chain") for step in reversed(STEPS) if step > 200),
    ]  # fmt: skip
    assert all(v.kept for v in verdicts(LEAST, found, proven=(400,)))


def test_what_is_retired_is_not_decided_again() -> None:
    found = [*TEN, retirement(1, reference(100, 1), reference(1000, 1))]
    assert [v.commit.snapshot.step for v in verdicts(LEAST, found)] == [*reversed(STEPS[1:-1])]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("1.5m", 90.0), ("12h", 43200.0), ("7d", 604800.0)]
)
def test_an_age_has_a_unit(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "-1d", "7 d", "1e3s", "7w", "", "nan s"])
def test_an_age_without_one_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="such as 12h or 7d"):
        parse_age(text)


def test_a_metric_has_a_way() -> None:
    assert parse_best("val/loss:min") == Best("val/loss", "min")
    assert parse_best("a:b:max") == Best("a:b", "max")
    for text in ("loss", "loss:best", ":min", "min", ""):
        with pytest.raises(BadInput, match="such as loss:min"):
            parse_best(text)
