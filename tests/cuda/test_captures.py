"""Captures from a real device, copied while training goes on: each is the state of its boundary."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.on_device import Training
from walrecover.commits import Key
from walrecover.session.copying import Copying
from walrecover.torch_adapter import devices, memory
from walrecover.torch_adapter.devices import DeviceCopies, Event, Move

WIDTH, LAYERS = 1024, 8
"""Parameters and their optimizer's state: 100 MB."""

SLEEP_CYCLES = 60_000_000
"""Some 30 ms, behind which the copies of parameters are queued: what is not fenced comes first."""


@pytest.fixture(autouse=True)
def late_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeviceCopies._queue

    def queue_late(self: DeviceCopies, moves: Collection[Move]) -> Event:
        if any(move.steady for move in moves):
            torch.cuda._sleep(SLEEP_CYCLES)  # on the stream of the copies
        return queue(self, moves)

    monkeypatch.setattr(DeviceCopies, "_queue", queue_late)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path, "cuda", WIDTH, LAYERS, fused=True)
    made.saver.prepare(made.capture())
    yield made
    made.close()


def under_way(training: Training) -> bool:
    copying = training.saver._copying
    assert isinstance(copying, Copying)
    return copying._thread is not None and copying._thread.is_alive()


def rounds(training: Training, count: int) -> tuple[dict[int, dict[str, str]], list[bool]]:
    """Captures at so many boundaries, each followed by steps. The digests of each boundary, and
    whether its copies were under way still when the next step was queued."""
    expected, overlapped = {}, []
    for _ in range(count):
        step = training.step_now
        expected[step] = training.digests()
        assert training.saver.save(training.capture())
        training.step()
        overlapped.append(under_way(training))
        training.step()
        assert training.saver.wait(Key(step, False)), training.said
    return expected, overlapped


def test_every_snapshot_has_the_state_of_its_boundary(training: Training) -> None:
    expected, overlapped = rounds(training, 6)
    assert [training.committed(step) == digests for step, digests in expected.items()] == [True] * 6
    assert len({digests["model.0.weight"] for digests in expected.values()}) == 6
    assert all(overlapped), "nothing was copied beside training: this test shows nothing"
    assert training.said == []


def test_without_the_fence_the_copies_are_torn(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test above."""
    monkeypatch.setattr(DeviceCopies, "fence", lambda self: None)
    monkeypatch.setattr(devices, "_version", lambda tensor: 0)
    expected, _ = rounds(training, 4)
    torn = [training.committed(step) != digests for step, digests in expected.items()]
    assert torn == [False, True, True, True], "before the first, no step was seen"


def test_a_step_inside_a_graph_that_is_replayed_is_waited_for(tmp_path: Path) -> None:
    """The graph is recorded behind the first captures, which saw its warm-up."""
    training = Training(tmp_path, "cuda", WIDTH, LAYERS, capturable=True)
    training.saver.prepare(training.capture())
    expected, _ = rounds(training, 2)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        training.step()
    torch.cuda.current_stream().wait_stream(beside)
    step = training.step_now
    expected[step] = training.digests()
    training.saver.save(training.capture())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.forward_and_backward()
        training.optimizer.step()
    graph.replay()
    training.completed()
    assert training.saver.wait(Key(step, False)) or "recorded" in str(training.saver.abandoned)
    for _ in range(4):
        step = training.step_now
        expected[step] = training.digests()
        training.saver.save(training.capture())
        for _ in range(3):
            graph.replay()
            training.completed()
        assert training.saver.wait(Key(step, False)), training.said
    kept = {s: d for s, d in expected.items() if Key(s, False) not in training.saver.abandoned}
    assert len(kept) >= 6
    assert all(training.committed(step) == digests for step, digests in kept.items())
    assert len({digests["model.0.weight"] for digests in kept.values()}) == len(kept)
    training.close()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_is_fenced(training: Training) -> None:
    step = torch.compile(training.optimizer.step)

    def compiled() -> None:
        training.forward_and_backward()
        step()
        training.completed()

    training.step = compiled  # type: ignore[method-assign]
    expected, overlapped = rounds(training, 4)
    assert all(training.committed(step) == digests for step, digests in expected.items())
    assert any(overlapped[1:])


def test_what_the_script_moves_while_it_is_copied_is_no_snapshot_and_then_is_one(
    training: Training,
) -> None:
    rounds(training, 2)
    torn = training.save_and_move()
    assert not training.saver.wait(torn)
    assert training.saver.abandoned[torn] == devices.MOVED
    expected = training.digests()
    whole = training.save_and_move()
    assert training.saver.wait(whole)
    assert training.committed(whole.step) == expected


def test_memory_that_cannot_be_pinned_is_said_and_the_captures_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", Refused)
    training = Training(tmp_path, "cuda", 256, 2, fused=True)
    training.saver.prepare(training.capture())
    expected, _ = rounds(training, 3)
    assert all(training.committed(step) == digests for step, digests in expected.items())
    assert any("cannot be pinned" in line for line in training.said)
    training.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_bytes_of_a_device_are_brought_near_as_they_are(dtype: torch.dtype) -> None:
    tensor = torch.ones(2, 3, dtype=dtype, device="cuda").t()
    far = memory.tensor_data(tensor, "x", far=True)
    assert isinstance(far.owner, memory.Far)
    here = tensor.contiguous().cpu().flatten().view(torch.uint8)
    assert bytes(memory.near(far).view()) == bytes(here.tolist())
