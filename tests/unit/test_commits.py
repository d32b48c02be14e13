"""What a rank's saver reads back of its commits, and what it retires for that (P10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.protocol import Launch, candidates, damage
from walrecover import events as ev
from walrecover import snapshot
from walrecover.commits import Attempt, Commits, Key
from walrecover.rundir import RunDir

SHARD = "rank-00000.safetensors"


class Keeping:
    """Commits of one rank that were not read back yet."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.run, self.said = launch, launch.run, list[str]()
        self.events: list[ev.Event] = []
        whose = Attempt(launch.entry.number, launch.entry.nonce, 1)
        self.commits = Commits(
            launch.run, whose, verified=frozenset(), retention=2, note=self.events.append,
            say=self.said.append,
        )  # fmt: skip

    def commit(self, count: int) -> None:
        for _ in range(count):
            self.launch.train()
            self.launch.vote(0)
            self.commits.expect(Key(self.launch.step, False))
            self.commits.settle()
            self.launch.pasts[0].committed({(self.launch.step, False)})

    @property
    def steps(self) -> list[int]:
        return [ref.step for ref in candidates(self.run)]

    @property
    def verified(self) -> list[int]:
        return [one.step for one in self.events if isinstance(one, ev.SnapshotVerified)]


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    with Launch.begin(RunDir(tmp_path / ".walrecover", "a-run"), world=1) as launch:
        yield Keeping(launch)


def test_of_several_the_newest_two_are_read_and_what_they_replace_is_retired(
    keeping: Keeping,
) -> None:
    keeping.commit(5)
    assert keeping.commits.unverified == 5
    keeping.commits.read_back()
    assert (keeping.verified, keeping.steps) == ([5, 4], [5, 4])
    assert keeping.commits.unverified == 0
    assert keeping.said == []


@pytest.mark.parametrize("rotten", [5, 4])
def test_p10_nothing_is_retired_for_what_does_not_read_back(keeping: Keeping, rotten: int) -> None:
    keeping.commit(5)
    (ref,) = (ref for ref in candidates(keeping.run) if ref.step == rotten)
    damage(keeping.run, ref, SHARD)
    keeping.commits.read_back()
    assert keeping.steps == [5, 4, 3, 2, 1]
    assert any(f"the snapshot of step {rotten} does not read back" in line for line in keeping.said)
    assert rotten not in keeping.verified
    entry = keeping.launch.entry
    assert snapshot.distrusted(keeping.run, entry.number, entry.nonce, ref.name).exists()
