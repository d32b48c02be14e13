"""Whatever happens to a run, in whatever order, the ledger proves that every position was consumed
once, and finds what was falsified (tests/support/ledger_machine.py).

`tests/campaigns/ledger.py` does a million rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.ledger_machine import DONE, Machine, walk
from walrecover import entries, tiling
from walrecover.ledger import Book
from walrecover.tiling import Report

EXAMPLES = {"dev": 15, "ci": 30}.get(os.environ.get("HYPOTHESIS_PROFILE") or "dev", 1000)
Patch = pytest.MonkeyPatch


def test_the_surviving_history_is_exactly_once(pytestconfig: pytest.Config) -> None:
    DONE.clear()
    chosen = settings(
        max_examples=EXAMPLES, stateful_step_count=40, deadline=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate,),
    )  # fmt: skip
    hypothesis.seed(int(pytestconfig.option.hypothesis_seed))(Machine)
    run_state_machine_as_test(Machine, settings=chosen)  # type: ignore[no-untyped-call]
    assert {"step", "snapshot", "crash", "rewind", "fork"} <= set(DONE)


def test_what_is_falsified_is_found() -> None:
    DONE.clear()
    walk(400, seed=5)
    assert all(DONE[f"found: {how}"] for how in ("gone", "stream", "elsewhere", "twice"))


# --- the tests of the test: what it finds when the ledger is wrong --------------------------------


def steps_behind_the_cut_count(patch: Patch) -> None:
    read = Book.read

    def all_of_it(self: Book, payloads: Any) -> None:
        self.last = None
        read(self, payloads)

    patch.setattr(Book, "read", all_of_it)


def steps_of_the_base_count_again(patch: Patch) -> None:
    read = Book.read

    def one_more(self: Book, payloads: Any) -> None:
        self.base -= 1
        read(self, payloads)

    patch.setattr(Book, "read", one_more)


def a_later_plan_forgets_the_skips(patch: Patch) -> None:
    patch.setattr(entries, "skips", lambda known: ())


def missing_steps_are_passed_over(patch: Patch) -> None:
    patch.setattr(tiling, "_missing", lambda chapters: iter(()))


def repeats_do_not_matter(patch: Patch) -> None:
    patch.setattr(Report, "faults", property(lambda self: bool(self.gaps)))


@pytest.mark.parametrize(
    "fault",
    [
        steps_behind_the_cut_count,
        steps_of_the_base_count_again,
        a_later_plan_forgets_the_skips,
        missing_steps_are_passed_over,
        repeats_do_not_matter,
    ],
)
def test_the_machine_finds(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        walk(4000, seed=3)
