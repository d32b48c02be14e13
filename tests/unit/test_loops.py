"""Positions of nested loops, without a disk: a host that keeps what it is given at a boundary.

A script is a generator: it yields what it does with each item, so that a test can leave it
anywhere, and start it again from any position that its host has kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover.errors import BadInput, NotRestored
from walrecover.session.iterating import Loop
from walrecover.session.loops import Loops
from walrecover.session.position import Position
from walrecover.session.restoring import position_from, position_tree
from walrecover.torch_adapter import rng

Script = Callable[["Host"], Iterator[Any]]


class Host:
    """The run as the loops see it. `kept`: a position and random state for each boundary."""

    def __init__(self, kept: tuple[int, Any, dict[str, Any]] | None = None) -> None:
        self.loops = Loops(self)
        self.step_count = 0
        self.kept: list[tuple[int, Any, dict[str, Any]]] = []
        self.ends = 0
        self.pauses = 0
        self.again = 0
        self.restored = kept
        if kept is not None:
            self.step_count = kept[0]
            position = position_from(kept[1])
            self.loops.begin_resume(position)
            rng.restore(position.begun if position.places else kept[2])

    def loop(self, *iterables: Any) -> Loop:
        return Loop(self.loops, iterables)

    def enumerate(self, iterable: Any) -> Loop:
        return Loop(self.loops, (iterable,), counted=True)

    def step(self) -> int:
        if self.loops.step_made():
            self.step_count += 1
            if self.loops.step_is_boundary():
                self.loops.step_waiting = False
                self.boundary()
        return self.step_count

    def boundary(self) -> None:
        self._keep(self.loops.position())

    def restore_again(self) -> None:
        assert self.restored is not None
        self.again += 1
        rng.restore(self.restored[2])

    def pausing(self) -> None:
        self.pauses += 1

    def loops_ended(self) -> None:
        self.ends += 1
        self._keep(self.loops.position())

    def _keep(self, position: Position) -> None:
        self.kept.append((self.step_count, position_tree(position), rng.capture()))


def run(script: Script, kept: tuple[int, Any, dict[str, Any]] | None = None) -> tuple[Host, list]:  # type: ignore[type-arg]
    """All that a script does, beginning with what it did at the step it resumes after."""
    if kept is None:
        random.seed(3)
    host = Host(kept)
    return host, list(script(host))


def check(script: Script) -> Host:
    """Resumed from any boundary, the script does what it did after it."""
    whole, done = run(script)
    assert whole.kept
    for kept in whole.kept:
        _, resumed = run(script, kept)
        assert resumed == [did for did in done if did[0] > kept[0]], f"after step {kept[0]}"
    return whole


def test_one_loop() -> None:
    def script(host: Host) -> Iterator[Any]:
        for item in host.loop("abcdef"):
            yield host.step(), item, random.random()

    assert check(script).ends == 1


def test_nested_loops_with_draws_everywhere() -> None:
    def script(host: Host) -> Iterator[Any]:
        first = random.random()
        for outer in host.loop(range(3)):
            before = random.random()
            for index, inner in host.enumerate([10, 20, 30]):
                drawn = random.random()
                yield host.step(), outer, index, inner, first, before, drawn
                random.random()
            random.random()

    assert check(script).ends == 1


def test_loops_of_any_depth_and_number() -> None:
    def script(host: Host) -> Iterator[Any]:
        for a in host.loop(range(2)):
            for b in host.loop("xy"):
                for c in host.loop(range(2)):
                    yield host.step(), a, b, c, random.random()
            between = random.random()
            for b in host.loop(range(2)):
                for _ in host.loop(range(2)):  # no steps: evaluation
                    random.random()
                yield host.step(), a, b, between
        for a in host.loop(range(2)):
            yield host.step(), a, random.random()

    assert check(script).ends == 2


def test_loops_left_by_break() -> None:
    def script(host: Host) -> Iterator[Any]:
        for a in host.loop(range(5)):
            for b in host.loop(range(5)):
                yield host.step(), a, b, random.random()
                if b == a:
                    break
            random.random()
            if a == 3:
                break

    assert check(script).ends == 0


def test_a_plain_loop_around() -> None:
    def script(host: Host) -> Iterator[Any]:
        for a in range(4):
            before = random.random()
            for b in host.loop(range(4)):
                yield host.step(), a, b, before
                if b == a:
                    break

    assert [kept[0] for kept in check(script).kept] == list(range(1, 10))


def test_a_plain_loop_within() -> None:
    def script(host: Host) -> Iterator[Any]:
        for a in host.loop(range(3)):
            for b in range(3):
                yield host.step(), a, b, random.random()

    whole = check(script)
    assert [kept[0] for kept in whole.kept] == [3, 6, 9, 9]


def test_steps_in_outer_and_inner_loops() -> None:
    """The script walks through steps before the snapshot again; they do not count."""

    def script(host: Host) -> Iterator[Any]:
        for a in host.loop(range(2)):
            yield host.step(), a, "before"
            for b in host.loop(range(2)):
                yield host.step(), a, b
            yield host.step(), a, "between"
            for b in host.loop(range(2)):
                yield host.step(), a, b
            yield host.step(), a, "behind"

    whole, done = run(script)
    for kept in whole.kept:
        _, resumed = run(script, kept)
        replayed = [did for did in resumed if did[0] <= kept[0]]
        assert [did for did in resumed if did[0] > kept[0]] == [d for d in done if d[0] > kept[0]]
        assert all(did[0] == kept[0] for did in replayed)


def test_a_zip_ends_with_its_shortest() -> None:
    def script(host: Host) -> Iterator[Any]:
        for _ in host.loop(range(2)):
            for items in host.loop([1, 2, 3, 4], "abc", (n for n in range(9))):
                yield host.step(), items

    assert len(check(script).kept) == 7


def test_a_tensor_an_array_and_a_set_of_windows() -> None:
    import numpy as np
    import torch

    class Windows:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            if index >= 3:
                raise IndexError
            return index * 10

    def script(host: Host) -> Iterator[Any]:
        for source in (torch.arange(4), np.arange(4), Windows(), {"b": 1, "a": 2}, "text"):
            for item in host.loop(source):
                yield host.step(), str(item)

    ends = [4, 8, 11, 13, 17]
    assert [kept[0] for kept in check(script).kept] == sorted([*range(1, 18), *ends])


class Table:
    """Has a length and items, and is iterated over by its columns: as pandas does."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, name: str) -> list[int]:
        return {"a": [1], "b": [2], "c": [3]}[name]

    def __iter__(self) -> Iterator[str]:
        return iter("abc")


def test_what_has_an_order_of_its_own_is_read_by_it() -> None:
    table = Table()

    def script(host: Host) -> Iterator[Any]:
        for item in host.loop(table):
            yield host.step(), item, table[item]

    whole = check(script)
    host, _ = run(script, whole.kept[1])
    assert host.loops.opaque == ["Table was read again from its beginning (2 items)"]


def test_only_what_is_skipped_of_an_opaque_iterable_is_read() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(5):
            read.append(n)
            yield n

    def script(host: Host) -> Iterator[Any]:
        for item in host.loop(numbers()):
            yield host.step(), item

    whole, _ = run(script)
    read.clear()
    random.seed(0)
    host = Host(whole.kept[2])
    steps = script(host)
    assert next(steps) == (4, 3)
    assert read == [0, 1, 2, 3]


def test_no_item_of_a_sequence_is_fetched_to_be_skipped() -> None:
    class Recorded(list[int]):
        fetched: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: Any) -> Any:
            self.fetched.append(index)
            return super().__getitem__(index)

    def script(host: Host) -> Iterator[Any]:
        for item in host.loop(Recorded(range(6))):
            yield host.step(), item

    whole, _ = run(script)
    Recorded.fetched.clear()
    assert run(script, whole.kept[3])[1] == [(5, 4), (6, 5)]
    assert Recorded.fetched == [4, 5]


# -- the end, and more ----------------------------------------------------------------------------


def test_a_finished_loop_does_nothing_again_unless_it_grew() -> None:
    def of(epochs: int) -> Script:
        def script(host: Host) -> Iterator[Any]:
            for a in host.loop(range(epochs)):
                for b in host.loop(range(2)):
                    yield host.step(), a, b, random.random()

        return script

    three, _ = run(of(3))
    _, five = run(of(5))
    assert run(of(3), three.kept[-1])[1] == []
    assert run(of(2), three.kept[-1])[1] == []
    assert run(of(5), three.kept[-1])[1] == five[6:]


def test_a_loop_that_was_left_and_finished_goes_on_only_where_it_grew() -> None:
    def of(epochs: int) -> Script:
        def script(host: Host) -> Iterator[Any]:
            for a in host.loop(range(epochs)):
                yield host.step(), a
                if a == 1 and not host.again:
                    break
            host._keep(host.loops.end_position())

        return script

    stopped, _ = run(of(4))
    assert run(of(4), stopped.kept[-1])[1] == []
    assert run(of(6), stopped.kept[-1])[1] == [(3, 2), (4, 3), (5, 4), (6, 5)]


def test_the_last_items_may_belong_to_a_step_that_is_to_come() -> None:
    """Accumulated gradients are no state: the end of the loop is not the end of the run."""

    def script(host: Host) -> Iterator[Any]:
        for n in host.loop(range(5)):
            if n % 2:
                yield host.step(), n
        yield host.step(), "left over"

    whole, _ = run(script)
    assert whole.ends == 0
    assert [kept[0] for kept in whole.kept] == [1, 2]
    assert run(script, whole.kept[-1])[1] == [(3, "left over")]


def test_steps_behind_a_loop_are_no_boundaries() -> None:
    """Resuming goes through what stands there again: nobody can come back into its middle. A loop
    of the script's own is kept step by step only where no `run.loop` came before it."""

    def behind(host: Host) -> Iterator[Any]:
        for n in host.loop(range(2)):
            yield host.step(), n
        for _ in range(3):
            yield host.step(), "own"

    def alone(host: Host) -> Iterator[Any]:
        for _ in range(3):
            for _ in host.loop(range(2)):  # evaluation
                random.random()
            yield host.step(), "own"

    assert [kept[0] for kept in run(behind)[0].kept] == [1, 2, 2]
    assert [kept[0] for kept in run(alone)[0].kept] == [1, 2, 3]


# -- what is an error -----------------------------------------------------------------------------


def _nested(host: Host) -> Iterator[Any]:
    for a in host.loop(range(3)):
        for b in host.loop(range(3)):
            yield host.step(), a, b


@pytest.fixture
def inside() -> tuple[int, Any, dict[str, Any]]:
    """A position within the second item of `_nested`."""
    return run(_nested)[0].kept[4]


def _without_inner(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        yield None


def _with_fewer(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(1)):
        for _ in host.loop(range(3)):
            yield host.step()


def _with_a_shorter_inner(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        for _ in host.loop(range(1)):
            yield host.step()


def _with_two(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        for _ in host.loop(range(3), range(3)):
            yield host.step()


def _with_a_step_before(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        yield host.step()


def _with_another_around(host: Host) -> Iterator[Any]:
    for _ in host.loop(range(3)):
        yield None
    for _ in host.loop(range(3)):
        for _ in host.loop(range(3)):
            yield host.step()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (_without_inner, "loop number 1 at depth 2, which this script did not enter"),
        (_with_fewer, "had handed out 2 items when the snapshot was taken, and has 1 now"),
        (_with_a_shorter_inner, "had handed out 2 items when the snapshot was taken, and has 1"),
        (_with_two, "went over 1 iterables, and goes over 2 now"),
        (_with_a_step_before, "before the loop that the snapshot was taken in"),
        (_with_another_around, "which this script did not enter"),
    ],
)
def test_a_script_that_has_changed_is_not_restored(script: Script, said: str, inside: Any) -> None:
    with pytest.raises(NotRestored, match=said):
        run(script, inside)


def test_two_loops_read_in_turn() -> None:
    host = Host()
    one, other = iter(host.loop(range(3))), iter(host.loop(range(3)))
    next(one)
    with pytest.raises(BadInput, match="give both to one"):
        next(other)


def test_a_loop_that_was_left_while_somebody_held_its_iterator_has_ended() -> None:
    host = Host()
    outer = iter(host.loop(range(3)))
    next(outer)
    inner = iter(host.loop(range(3)))
    next(inner)
    host.step()
    next(outer)
    ((step, tree, _),) = host.kept
    (place,) = position_from(tree).places
    assert (step, place.consumed, len(place.done)) == (1, 1, 1)
    with pytest.raises(BadInput):
        next(inner)


def test_a_loop_over_what_cannot_be_iterated_over() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        iter(Host().loop(3))


def test_lengths() -> None:
    host = Host()
    assert len(host.loop(range(5))) == 5
    assert len(host.loop(range(5), "abc")) == 3
    with pytest.raises(TypeError, match="generator has no length"):
        len(host.loop(n for n in ()))


# -- any shape ------------------------------------------------------------------------------------

bodies = st.recursive(
    st.just("step") | st.just("draw"),
    lambda body: st.lists(st.tuples(st.integers(0, 3), st.booleans(), body) | body, max_size=3),
    max_leaves=6,
)


loops = st.tuples(st.integers(1, 3), st.booleans(), bodies)


@given(st.lists(loops | st.just("draw"), min_size=1, max_size=3))
def test_loops_of_any_shape(body: Any) -> None:
    """A body is "step", "draw", a list of bodies, or a loop: (items, left by break, its body).

    Steps outside of the innermost loops are walked through again, and do not count twice.
    """

    def script(host: Host) -> Iterator[Any]:
        yield from _perform(body, host, ())

    whole, done = run(script)
    for kept in whole.kept:
        _, resumed = run(script, kept)
        assert [did for did in resumed if did[0] > kept[0]] == [d for d in done if d[0] > kept[0]]


def _perform(body: Any, host: Host, where: tuple[Any, ...]) -> Iterator[Any]:
    if body == "draw":
        random.random()
    elif body == "step":
        drawn = random.random()
        yield host.step(), where, drawn
    elif isinstance(body, list):
        for n, part in enumerate(body):
            yield from _perform(part, host, (*where, n))
    else:
        items, left, inner = body
        for item in host.loop(range(items)):
            yield from _perform(inner, host, (*where, item))
            if left and item == items // 2:
                break
