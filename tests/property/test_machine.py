"""A stateful machine over journal, snapshots and recovery (tests/support/machine.py).

In `ci` at least 20,000 rules, every failpoint crashed at least 20 times; the counts are printed.
`tests/campaigns/machine.py` runs a million.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase

from tests.support.machine import COUNTS, run_machine
from tests.support.protocol import NAMES
from walrecover import entries as model
from walrecover import snapshot
from walrecover.entries import CommitEntry, Entry, SnapshotRef
from walrecover.errors import WalrecoverError
from walrecover.reuse import Past

Patch = pytest.MonkeyPatch

PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"
RULES, FLOOR = {"dev": (1_500, 0), "ci": (20_000, 20)}.get(PROFILE, (100_000, 100))
OPTIONS: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    COUNTS.clear()
    yield
    COUNTS.clear()


@pytest.mark.slow(180)
def test_the_protocol_under_crashes_at_every_seam(
    capfd: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    run_machine(RULES, FLOOR, seed=int(pytestconfig.option.hypothesis_seed), **OPTIONS)
    with capfd.disabled():
        print("", *COUNTS.lines(), sep="\n", file=sys.stderr)
    assert COUNTS.rules.total() >= RULES
    assert {name: COUNTS.crashes[name] for name in NAMES if COUNTS.crashes[name] < FLOOR} == {}


# --- the tests of the test: what the machine finds when a rule is left out ------------------------


def rename_replaces(patch: Patch) -> None:
    patch.setattr(os, "link", lambda source, target, **_: os.rename(source, target))


def deletes_what_it_does_not_know(patch: Patch) -> None:
    """A late actor that woke up deleted what a newer attempt had committed."""

    def delete_void(run: Any, found: list[Entry]) -> None:
        void = model.retired(found)
        alive = {c.snapshot.name for c in model.commits(found) if c.snapshot.manifest not in void}
        newest = model.newest_attempt(found)
        for folder in run.snapshots.iterdir():
            if folder.name not in alive and newest and not folder.name.endswith(newest.label):
                shutil.rmtree(folder)

    patch.setattr(snapshot, "delete_void", delete_void)


def every_commit_is_a_candidate(patch: Patch) -> None:
    def all_of_them(entries: Sequence[Entry]) -> list[CommitEntry]:
        void = model.retired(entries)
        left = [c for c in model.commits(entries) if c.snapshot.manifest not in void]
        return sorted(left, key=lambda c: c.snapshot.step, reverse=True)

    patch.setattr(model, "candidates", all_of_them)


def retention_does_not_verify(patch: Patch) -> None:
    def newest_few(
        entries: Sequence[Entry], verified: frozenset[str], keep: int, *_: object
    ) -> tuple[SnapshotRef, ...]:
        return tuple(c.snapshot for c in model.candidates(entries)[keep:])

    patch.setattr(model, "retirable", newest_few)


def never_fenced(patch: Patch) -> None:
    patch.setattr(snapshot, "require_newest", lambda *_: None)


def commits_before_the_votes(patch: Patch) -> None:
    real = snapshot.read_votes

    def read_votes(run: Any, name: str, world: int) -> Any:
        return real(run, name, world) or real(run, name, 1)

    patch.setattr(snapshot, "read_votes", read_votes)
    patch.setattr(snapshot.votes, "disagreement", lambda parts: None)


def digests_are_not_compared(patch: Patch) -> None:
    patch.setattr(snapshot, "verify", lambda run, ref: snapshot.load_manifest(run, ref))


def deletes_what_is_referenced(patch: Patch) -> None:
    patch.setattr(snapshot, "_alive_files", lambda *_: set())


def any_two_are_enough(patch: Patch) -> None:
    """All snapshots but the newest may reference one file."""
    real = Past.offers

    def offers(self: Past) -> Any:
        if self._last is not None:
            self._last = msgspec.structs.replace(self._last, files={})
        return real(self)

    patch.setattr(Past, "offers", offers)
    whole = model.retirable
    patch.setattr(model, "retirable", lambda *given: whole(*given[:3]))


def tied_tensors_are_guessed(patch: Patch) -> None:
    """Rank 1's guess of where rank 0 put a tied tensor was believed."""
    real = snapshot.votes.seal_manifest

    def seal(parts: Any, digests: Any) -> Any:
        return msgspec.structs.replace(real(parts, digests), parts=tuple(parts))

    patch.setattr(snapshot.votes, "seal_manifest", seal)


BROKEN = [
    rename_replaces,
    deletes_what_it_does_not_know,
    every_commit_is_a_candidate,
    retention_does_not_verify,
    never_fenced,
    commits_before_the_votes,
    digests_are_not_compared,
    tied_tensors_are_guessed,
    deletes_what_is_referenced,
    any_two_are_enough,
]


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_rule_left_out_is_found(
    broken: Callable[[Patch], None], monkeypatch: Patch, pytestconfig: pytest.Config
) -> None:
    seed = int(pytestconfig.option.hypothesis_seed)
    broken(monkeypatch)
    with pytest.raises((AssertionError, WalrecoverError, OSError, ExceptionGroup)):
        run_machine(20_000, seed=seed, database=None, phases=[Phase.generate], **OPTIONS)
