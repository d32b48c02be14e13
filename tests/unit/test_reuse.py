"""What a vote need not write: chosen by digest, in two lines, never from a file hardly alive."""

from __future__ import annotations

from collections.abc import Iterable

from walrecover.manifest import FileAt, Part, TensorAt
from walrecover.reuse import MOST_FILES, Offer, Past, worthwhile

BYTES = 1000


def shard(step: int) -> str:
    return f"step-{step:08d}.a1-0/rank-00000.safetensors"


def part(step: int, *, older: Iterable[int] = (), **tensors: tuple[str, int]) -> Part:
    """A vote for a step. `tensors`: name → (content, step of the shard that it lies in)."""
    return Part(
        run="a-run", step=step, end=False, attempt=1, nonce="0", rank=0, world=1, base="",
        position="",
        files={shard(at): FileAt(BYTES, f"header {at}") for at in (step, *older)},
        tensors={
            name: TensorAt(shard(at), name, content, "uint8", (BYTES,))
            for name, (content, at) in tensors.items()
        },
        replicated={}, writer="rank-0", lsn=0, chain="",
    )  # fmt: skip


def cast(past: Past, *parts: Part) -> None:
    for one in parts:
        past.cast(one)
        past.committed({(one.step, one.end)})


def offered(past: Past) -> dict[str, str]:
    return {name: offer.at.file for name, offer in past.offers().items()}


# --- which line -----------------------------------------------------------------------------------


def test_two_lines_take_turns() -> None:
    """So that a snapshot shares no file with the one before it (rule 10)."""
    past = Past()
    cast(past, part(1, base=("b", 1)))
    assert offered(past) == {}
    cast(past, part(2, base=("b", 2)))
    assert offered(past) == {"base": shard(1)}
    cast(past, part(3, older=[1], base=("b", 1)))
    assert offered(past) == {"base": shard(2)}
    cast(past, part(4, older=[2], base=("b", 2)))
    assert offered(past) == {"base": shard(1)}


def test_only_what_stayed_the_same_is_offered() -> None:
    past = Past()
    cast(past, part(1, base=("b", 1), moving=("m1", 1)), part(2, base=("b", 2), moving=("m2", 2)))
    assert offered(past) == {"base": shard(1)}


def test_what_returns_to_an_older_content_is_not_offered() -> None:
    """It changes: hashing it before anything is written would mostly be in vain."""
    past = Past()
    cast(past, part(1, swaps=("one", 1)), part(2, swaps=("two", 2)), part(3, swaps=("one", 3)))
    assert offered(past) == {}


def test_found_by_its_digest_under_another_name() -> None:
    past = Past()
    cast(past, part(1, old=("b", 1)), part(2, new=("b", 2)), part(3, new=("b", 3)))
    assert offered(past) == {"new": shard(2)}
    past = Past()
    cast(past, part(1, old=("b", 1), new=("n", 1)), part(2, new=("b", 2)))
    assert offered(past) == {}, "not known to stay"


def test_the_last_vote_need_not_be_committed_yet() -> None:
    past = Past()
    cast(past, part(1, base=("b", 1)), part(2, base=("b", 2)))
    past.cast(part(3, older=[1], base=("b", 1)))
    assert offered(past) == {"base": shard(2)}


def test_what_was_never_committed_is_not_referenced() -> None:
    past = Past()
    past.cast(part(1, base=("b", 1)))
    past.cast(part(2, base=("b", 2)))
    past.committed({(2, False)})
    past.cast(part(3, base=("b", 3)))
    assert offered(past) == {"base": shard(2)}
    past.committed({(2, False), (3, False)})
    past.cast(part(4, base=("b", 4)))
    assert set(offered(past).values()) <= {shard(2), shard(3)}


def test_a_resumed_attempt_begins_a_line_of_its_own_and_goes_on_with_its_base() -> None:
    """Its base was read back by recovery; whether more of the old run is whole nobody knows."""
    past = Past(part(7, older=[1], base=("b", 1)))
    assert offered(past) == {}
    cast(past, part(8, base=("b", 8)))
    assert offered(past) == {"base": shard(1)}
    cast(past, part(9, older=[1], base=("b", 1)))
    assert offered(past) == {"base": shard(8)}


def test_what_other_ranks_hold_is_not_referenced() -> None:
    """A vote says where rank 0 puts what all hold alike; that is rank 0's to reference."""
    past = Past()
    theirs = ("b", 99)
    cast(past, part(1, base=theirs), part(2, base=theirs), part(3, base=theirs))
    assert offered(past) == {}


def test_files_of_a_capture_that_did_not_read_back_are_not_referenced_again() -> None:
    past = Past()
    cast(past, part(1, base=("b", 1)), part(2, base=("b", 2)), part(3, older=[1], base=("b", 1)))
    name = "step-00000003.a1-0"
    assert name in past.names()
    past.distrust(name)
    cast(past, part(4, older=[2], base=("b", 2)))
    assert offered(past) == {}
    cast(past, part(5, base=("b", 5)))
    assert offered(past) == {"base": shard(2)}
    cast(past, part(6, older=[2], base=("b", 2)))
    assert offered(past) == {"base": shard(5)}


# --- what is worth it -----------------------------------------------------------------------------


def offer(name: str, file: str, size: int = BYTES, key: str = "") -> Offer:
    return Offer(TensorAt(file, key or name, "d", "uint8", (1,)), FileAt(size, "h"))


def test_a_file_of_which_less_than_half_is_alive_is_not_referenced() -> None:
    offers = {"a": offer("a", "one"), "b": offer("b", "two")}
    assert set(worthwhile(offers, {"a": 500, "b": 499})) == {"a"}


def test_the_parts_of_a_file_count_together() -> None:
    offers = {"a": offer("a", "one"), "b": offer("b", "one")}
    assert set(worthwhile(offers, {"a": 250, "b": 250})) == {"a", "b"}
    assert worthwhile(offers, {"a": 250, "b": 249}) == {}


def test_one_tensor_under_two_names_counts_once() -> None:
    offers = {"a": offer("a", "one", key="k"), "b": offer("b", "one", key="k")}
    assert worthwhile(offers, {"a": 300, "b": 300}) == {}


def test_of_many_files_those_with_most_alive_are_referenced() -> None:
    """Restoring opens them all."""
    many = MOST_FILES + 3
    offers = {f"t{n}": offer(f"t{n}", f"file {n}", size=10 + n) for n in range(many)}
    taken = worthwhile(offers, {f"t{n}": 10 + n for n in range(many)})
    assert set(taken) == {f"t{n}" for n in range(3, many)}


def test_nothing_alive_is_nothing_to_reference() -> None:
    assert worthwhile({"empty": offer("empty", "one")}, {"empty": 0}) == {}
    assert worthwhile({}, {}) == {}
