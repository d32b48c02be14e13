"""A rank's saver: what it says of a capture is what became of it, whoever committed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.streams import read
from tests.support.protocol import Launch, capture
from walrecover import events as ev
from walrecover import snapshot
from walrecover.commits import Key
from walrecover.rundir import RunDir
from walrecover.session.saving import Saver

Make = Callable[[int], Saver]


@pytest.fixture
def launch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Launch]:
    with Launch.begin(RunDir(tmp_path / ".walrecover", "a-run"), world=request.param) as begun:
        begun.train(3)
        yield begun


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def saver(launch: Launch, said: list[str]) -> Iterator[Make]:
    made: list[Saver] = []

    def make(rank: int) -> Saver:
        made.append(
            Saver(
                launch.run,
                launch.journals[rank],
                attempt=launch.entry.number,
                nonce=launch.entry.nonce,
                rank=rank,
                world=launch.world,
                verified=frozenset(),
                retention=3,
                say=said.append,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def save(saver: Saver, launch: Launch, **how: Any) -> bool:
    taken = capture(launch.run.name, launch.entry, saver.rank, launch.world, launch.step)
    return saver.save(taken, **how)


def kinds(launch: Launch) -> set[type]:
    """Of the events of the first rank."""
    launch.journals[0].sync()
    return {type(event) for _, event in read(launch.journals[0].path)}


@pytest.mark.parametrize("launch", [2], indirect=True)
def test_a_capture_that_another_rank_commits_is_not_said_to_be_abandoned(
    launch: Launch, saver: Make, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Key(launch.step, False)
    first, second = saver(0), saver(1)
    commit, quicker = snapshot.commit, iter([second])

    def late(*given: Any, **more: Any) -> Any:
        for other in quicker:
            assert other.settle(key, 10.0)
        return commit(*given, **more)

    monkeypatch.setattr(snapshot, "commit", late)
    assert save(second, launch) and save(first, launch)
    assert first.wait(key)
    first.drain()
    assert said == []
    assert {ev.SnapshotCommitted, ev.SnapshotVerified} <= kinds(launch)
    assert ev.SnapshotAbandoned not in kinds(launch)


@pytest.mark.parametrize("launch", [1], indirect=True)
def test_what_is_saved_as_the_interpreter_ends_is_read_back_without_a_thread(
    launch: Launch, saver: Make, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    only = saver(0)
    assert save(only, launch, lone=True)
    assert only.committed == Key(launch.step, False)
    assert said == []
    assert ev.SnapshotVerified in kinds(launch)
