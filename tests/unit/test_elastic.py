"""What some ranks saved, dealt out to another number of them: decided, or refused with its name."""

from __future__ import annotations

from typing import Any

import pytest

from walrecover import elastic
from walrecover.elastic import Reads, Saved, Tensor, Where
from walrecover.errors import Mismatch

WEIGHT = Tensor("float32", (2,), "blake3:aaaaaaaa")
EPOCHS = Where(2, 3, (Reads(elastic.NUMBERS, "range"),))
IN_ORDER = Where(4, 10, (Reads(elastic.GLOBAL, "DataLoader with GlobalBatchSampler"),))
OF_RANK = Where(4, 10, (Reads(elastic.LOADER, "DataLoader with DistributedSampler"),))


def rank(n: int, **changes: Any) -> Saved:
    given: dict[str, Any] = {
        "objects": {"model": {"weight": WEIGHT}, "scheduler": {"last_epoch": 4}},
        "kinds": {"model": "module", "scheduler": "stateful"},
        "led": frozenset(),
        "rng": {"python": (3, b"same", None), "torch": b"state of rank %d" % n},
        "places": (EPOCHS, IN_ORDER),
    }
    return Saved(**(given | changes))


def deal(saved: list[Saved], new: int = 0, world: int = 3, **more: Any) -> elastic.Deal:
    return elastic.deal(saved, new, world, **({"run": "r", "snapshot": "blake3:s"} | more))


def refused(saved: list[Saved], **more: Any) -> str:
    with pytest.raises(Mismatch) as found:
        deal(saved, **more)
    return str(found.value)


def test_new_ranks_take_after_the_saved_ones_in_turn() -> None:
    assert [deal([rank(0), rank(1)], n).source for n in range(3)] == [0, 1, 0]
    assert deal([rank(0), rank(1), rank(2)], 0, 1).source == 0


def test_a_generator_that_was_each_ranks_own_is_drawn_anew_for_each() -> None:
    dealt = [deal([rank(0), rank(1)], n) for n in range(3)]
    assert [list(one.seeds) for one in dealt] == [["torch"]] * 3  # python's was the same on both
    assert len({one.seeds["torch"] for one in dealt}) == 3


def test_what_is_drawn_anew_depends_on_run_snapshot_and_rank_alone() -> None:
    def drawn(**more: Any) -> int:
        return deal([rank(0), rank(1)], 1, **more).seeds["torch"]

    assert drawn() == drawn(world=4)
    assert len({drawn(), drawn(run="other"), drawn(snapshot="blake3:t")}) == 3
    assert elastic.seed("r", "s", 1, "torch") != elastic.seed("r", "s", 1, "python")


def test_of_one_saved_rank_every_global_generator_is_drawn_anew() -> None:
    assert list(deal([rank(0)]).seeds) == ["python", "torch"]


def test_an_attached_generator_is_kept_where_the_ranks_agreed() -> None:
    def drawing(*states: bytes) -> list[Saved]:
        kinds = {"noise": "torch generator"}
        return [rank(n, objects={"noise": s}, kinds=kinds) for n, s in enumerate(states)]

    assert not deal(drawing(b"a", b"a")).object_seeds
    assert list(deal(drawing(b"a", b"b")).object_seeds) == ["noise"]
    assert not deal(drawing(b"a")).object_seeds


def test_each_ranks_own_value_is_refused_by_its_path() -> None:
    def counting(n: int) -> Saved:
        return rank(n, objects={"own": {"best": 0.5, "seen": [n]}}, kinds={"own": "dict"})

    said = refused([counting(0), counting(1)])
    assert "taken by 2 ranks, and there are 3 now" in said
    assert "own.seen[0] (0 on rank 0, 1 on rank 1)" in said
    assert "start 2 ranks as before" in said
    assert "WALRECOVER_TAKE_RANK=0:own" in said
    assert deal([counting(0), counting(1)], taken=frozenset({"own"})).source == 0
    assert deal([counting(0)]).source == 0  # nothing tells that it is only this rank's


def test_tensors_that_differ_are_refused_unless_they_are_buffers_that_ddp_hands_out() -> None:
    def normed(digest: str, *led: str) -> Saved:
        mean = Tensor("float32", (2,), digest)
        return rank(0, objects={"model": {"mean": mean}}, led=frozenset(led))

    assert "model.mean (float32 [2] aaa on rank 0, float32 [2] bbb on rank 1)" in refused(
        [normed("blake3:aaa"), normed("blake3:bbb")]
    )
    handed = deal([normed("blake3:aaa", "model"), normed("blake3:bbb", "model")])
    assert handed.of_first == {"model"}
    assert "buffers of model are rank 0's" in handed.said(2, 3)


def test_buffers_of_another_shape_are_refused_even_so() -> None:
    def shaped(*shape: int) -> Saved:
        found = {"model": {"mean": Tensor("float32", shape, "blake3:a")}}
        return rank(0, objects=found, led=frozenset({"model"}))

    assert "model.mean" in refused([shaped(2), shaped(3)])


def test_an_object_that_only_one_rank_has_is_refused() -> None:
    with_more = rank(1, objects={**rank(1).objects, "logger": {}})
    assert "logger, which rank 0 has not" in refused([rank(0), with_more])
    assert "logger, which rank 1 has not" in refused([with_more, rank(0)])


def test_a_loader_that_stands_in_the_middle_of_what_is_its_own_is_refused() -> None:
    said = refused([rank(n, places=(EPOCHS, OF_RANK)) for n in range(2)])
    assert "DataLoader with DistributedSampler stands at item 4 of 10" in said
    assert "walrecover.data.GlobalBatchSampler" in said
    assert "TAKE_RANK" not in said


def test_a_loader_that_has_handed_out_all_is_at_its_end_for_any_number_of_ranks() -> None:
    at_end = OF_RANK._replace(consumed=10)
    assert deal([rank(n, places=(EPOCHS, at_end)) for n in range(2)]).ended
    assert not deal([rank(0), rank(1)]).ended
    assert not deal([rank(0, places=()), rank(1, places=())]).ended
    around = (at_end, IN_ORDER)  # its last item is being worked on
    assert "DistributedSampler stands at item 10" in refused(
        [rank(n, places=around) for n in (0, 1)]
    )


def test_zip_with_a_loader_of_its_own_is_refused() -> None:
    both = IN_ORDER._replace(reads=(*IN_ORDER.reads, Reads(elastic.STATE, "Stream")))
    assert "Stream stands at item 4" in refused([rank(n, places=(EPOCHS, both)) for n in range(2)])


def test_a_loop_is_come_back_to_only_where_all_ranks_go_over_the_same() -> None:
    in_order, numbers = IN_ORDER.reads[0], Reads(elastic.NUMBERS, "list")
    assert elastic.unlike(in_order, in_order, 10, 10) is None
    assert "had 10 items, and has 5" in str(elastic.unlike(in_order, in_order, 10, 5))
    assert "by the global order" in str(elastic.unlike(in_order, OF_RANK.reads[0], 10, 10))
    assert "had 10 items, and has 5" in str(elastic.unlike(numbers, numbers, 10, 5))
    assert elastic.unlike(*EPOCHS.reads * 2, 3, 5) is None  # more epochs
