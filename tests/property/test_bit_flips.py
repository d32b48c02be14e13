"""One flipped bit anywhere in a run directory: the same result, a named loss, or a refusal.

20,000 bits in `ci`; every bit of a small run is `tests/campaigns/bit_flips.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import flips
from tests.support.flips import Flip
from tests.support.forks import Forks
from walrecover import entries as model
from walrecover import recovery
from walrecover.rundir import RunDir

PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"
FLIPS = {"dev": 500, "ci": 20_000}.get(PROFILE, 100_000)
CHUNK = 250
MEMORY = Path("/dev/shm")


@pytest.fixture
def run() -> Iterator[RunDir]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield flips.build(Path(folder))


def check(server: Forks, run: RunDir, chosen: list[Flip]) -> Counter[str]:
    """Have a child check these; a child that dies says at which bit."""
    folder = run.root.parent
    result = folder / "result"
    code = server.call(
        "tests.support.flips:check", root=str(folder), flips=chosen, result=str(result)
    )
    if code:
        at = int((folder / "result.place").read_text())
        said = result.read_text() if result.exists() else "it died"
        pytest.fail(f"exit code {code} at {chosen[at]}: {said}")
    return Counter(json.loads(result.read_text()))


@pytest.mark.slow(150)
def test_a_flipped_bit_is_the_same_result_a_named_loss_or_a_refusal(
    run: RunDir, pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    seed = int(pytestconfig.option.hypothesis_seed)
    chosen = flips.draw(run, FLIPS, seed)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with Forks() as server:
        for start in range(0, len(chosen), CHUNK):
            counts += check(server, run, chosen[start : start + CHUNK])
    rate = counts.total() / (time.monotonic() - began)
    with capfd.disabled():
        table = "\n".join(f"  {what}: {count}" for what, count in sorted(counts.items()))
        said = f"\n{counts.total()} bits flipped, {rate:.0f}/s, seed {seed}:\n{table}"
        print(said, file=sys.stderr)
    assert counts.total() == FLIPS
    assert {what.partition(":")[0] for what in counts} == {
        "sequence", "manifest", "shard", "plain", "vote", "journal", "checkpoint",
    }  # fmt: skip


# --- the test of the test -----------------------------------------------------------------------


def test_an_entry_without_its_digest_is_a_wrong_result(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some flip of the sequence would pass for another decision."""
    truth = flips.truth_of(run)
    monkeypatch.setattr(model, "digest_of", _Whatever)
    names = [name for name in flips.files_of(run) if flips.kind_of(name) == "sequence"]
    assert _wrong(run, truth, names[-2:]) > 0


def test_a_shard_that_is_not_verified_is_a_wrong_result(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = flips.truth_of(run)
    monkeypatch.setattr(recovery.snapshot.shards, "verify_files", lambda *_: None)
    newest = truth.live[0].name
    assert _wrong(run, truth, [f"snapshots/{newest}/rank-00001.safetensors"]) > 0


class _Whatever(str):
    """A digest that equals every other."""

    def __new__(cls, _: object) -> _Whatever:
        return super().__new__(cls, "blake3:")

    def __ne__(self, other: object) -> bool:
        return False


def _wrong(run: RunDir, truth: flips.Truth, names: list[str]) -> int:
    wrong = 0
    for name in names:
        for bit in range(0, 8 * (run.path / name).stat().st_size, 13):
            flips.flip(run.path / name, bit)
            try:
                flips.verdict(run, truth, flips.kind_of(name))
            except Exception:
                wrong += 1
            finally:
                flips.flip(run.path / name, bit)
            if wrong:
                return wrong
    return wrong
