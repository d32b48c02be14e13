"""What may be taken from another rank, and what is refused: from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from walrecover.errors import BadInput, Mismatch
from walrecover.manifest import Manifest, Part, TensorAt
from walrecover.session.replicas import Repair, repair
from walrecover.stepcounts import Take

KINDS = {"model": "module", "optimizer": "optimizer"}
FOUND = {"optimizer": {0: 6.0, 1: 5.0}}


def part(rank: int, shapes: Mapping[str, tuple[int, ...]], content: str) -> Part:
    file = f"step-00000006.a1-aa/rank-{rank:05d}.safetensors"
    tensors = {n: TensorAt(file, n, content + n, "float32", shape) for n, shape in shapes.items()}
    return Part(
        run="r", step=6, end=False, attempt=1, nonce="aa", rank=rank, world=2, base="",
        position="", files={}, tensors=tensors, replicated={}, writer=f"rank-{rank}", lsn=1,
        chain="",
    )  # fmt: skip


def manifest(width: int = 3, content: str = "other") -> Manifest:
    def shapes(n: int) -> dict[str, tuple[int, ...]]:
        return {"model.w": (n,), "model_ema.w": (7,), "optimizer.state.0.exp_avg": (n,)}

    return Manifest(
        run="r", step=6, end=False, attempt=1, nonce="aa", world=2,
        parts=(part(0, shapes(3), "one"), part(1, shapes(width), content)), part_digests=("", ""),
    )  # fmt: skip


def test_without_an_order_it_is_refused_with_what_else_differs() -> None:
    with pytest.raises(Mismatch, match="WALRECOVER_TAKE_RANK=0:optimizer,model gives every rank"):
        repair(manifest(), FOUND, KINDS, None)
    with pytest.raises(Mismatch, match="WALRECOVER_TAKE_RANK=0:optimizer gives every rank"):
        repair(manifest(content="one"), FOUND, KINDS, None)


def test_an_order_without_names_is_for_the_optimizers_that_disagree() -> None:
    reason = "optimizer: 6 steps on rank 0, 5 on rank 1"
    assert repair(manifest(), FOUND, KINDS, Take(1)) == Repair(1, ("optimizer",), reason)
    names = ("optimizer", "model")
    assert repair(manifest(), FOUND, KINDS, Take(0, names)) == Repair(0, names, reason)


def test_ranks_that_hold_other_tensors_are_no_replicas() -> None:
    for rank in (0, 1):
        with pytest.raises(Mismatch, match="these ranks are no replicas"):
            repair(manifest(width=4), FOUND, KINDS, Take(rank))


@pytest.mark.parametrize(
    ("take", "said"),
    [(Take(2), "names rank 2 of 2 ranks"), (Take(0, ("scaler",)), "names scaler, which is not")],
)
def test_an_order_that_names_nothing_is_bad_input(take: Take, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        repair(manifest(), FOUND, KINDS, take)
