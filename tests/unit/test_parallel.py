"""Many bytes moved by several threads: all of them, once each, and in any case."""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walrecover import parallel

AT_ONCE = parallel.AT_ONCE_BYTES


@given(st.lists(st.sampled_from([0, 1, 7, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])))
def test_every_byte_comes_to_its_place(sizes: list[int]) -> None:
    data = os.urandom(1 << 16)
    sources = [ctypes.create_string_buffer((data * (size // len(data) + 1))[:size] + b"!")
               for size in sizes[:6]]  # fmt: skip
    targets = [ctypes.create_string_buffer(len(source)) for source in sources]
    parallel.copy(
        (ctypes.addressof(target), ctypes.addressof(source), len(source) - 2)
        for target, source in zip(targets, sources, strict=True)
    )
    for target, source in zip(targets, sources, strict=True):
        assert target.raw[:-2] == source.raw[:-2]
        assert target.raw[-2:] == bytes(2), "and nothing behind it"


def test_who_is_done_takes_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large and small ones take turns where they come from: a weight, its bias."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    entered = threading.Barrier(2)
    by: dict[str, list[int]] = {}

    def call(number: int) -> None:
        if number < 2:
            entered.wait(10)
        by.setdefault(threading.current_thread().name, []).append(number)
        if number == 0:
            done.wait(10)
        if number == 7:
            done.set()

    done = threading.Event()
    parallel.in_threads(call, range(8), 8 * AT_ONCE)
    assert sorted(map(len, by.values())) == [1, 7]


def test_few_bytes_are_not_worth_a_thread() -> None:
    names: set[str] = set()
    parallel.in_threads(lambda _: names.add(threading.current_thread().name), range(8), AT_ONCE)
    assert names == {threading.current_thread().name}


def test_an_error_in_any_thread_is_raised() -> None:
    def fail(number: int) -> None:
        if number == 7:
            raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        parallel.in_threads(fail, range(8), 8 * AT_ONCE)


def test_an_error_is_raised_where_only_some_threads_have_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    begin, begun = ThreadPoolExecutor.submit, []
    here = threading.current_thread()
    entered = threading.Event()

    def once(pool: ThreadPoolExecutor, call: object) -> object:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(call)
        return begin(pool, call)  # type: ignore[arg-type]

    def fail_elsewhere(number: int) -> None:
        if threading.current_thread() is here:
            assert entered.wait(10)
        else:
            entered.set()
            raise OSError("unreadable")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", once)
    with pytest.raises(OSError, match="unreadable"):
        parallel.in_threads(fail_elsewhere, range(8), 8 * AT_ONCE)


def test_where_no_thread_begins_any_more_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way out of the interpreter, from Python 3.12 on."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    done: list[int] = []
    parallel.in_threads(done.append, range(8), 8 * AT_ONCE)
    assert done == [*range(8)]
