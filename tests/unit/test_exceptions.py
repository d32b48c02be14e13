"""What an exception says of itself: kind, message without secrets, the user's own frame; and the
hooks that see it, chained and put back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from walrecover.session.exceptions import describe
from walrecover.session.leaving import Leaving
from walrecover.wording import MOST, redacted_text


def caught(call: Any) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def test_the_frame_is_the_innermost_of_the_users_own_code() -> None:
    def forward() -> None:
        torch.nn.Linear(2, 2)(torch.ones(3))

    event = describe(caught(forward), 7)
    assert event.kind == "builtins.RuntimeError"
    assert event.file == __file__
    assert event.function.endswith("forward")
    assert event.line == forward.__code__.co_firstlineno + 1
    assert (event.step, event.fetching) == (7, False)


def test_a_frame_is_named_where_all_of_it_is_library_code() -> None:
    event = describe(caught(lambda: json.loads("{")), 0)
    assert event.file == __file__
    error = ValueError("never raised")
    assert (describe(error, 0).file, describe(error, 0).line) == ("", 0)


def test_a_long_message_keeps_its_head_and_its_end() -> None:
    # Time in the square of its length would be hours here.
    message = describe(RuntimeError("a" * 2_000_000 + "the error itself"), 0).message
    assert len(message) <= MOST + 3
    assert message.startswith("aaa") and message.endswith("the error itself")


def test_a_message_that_cannot_be_read_or_encoded_is_still_an_event() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise KeyError("no")

    assert describe(Rude(), 0).message == "(its message cannot be read: KeyError)"
    describe(ValueError("\udcff"), 0).message.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open s3://me:hunter2@host/x", "cannot open s3://me:<redacted>@host/x"),
        ("api_key='abc-123' refused", "api_key='<redacted>' refused"),
        ('{"HF_TOKEN": "hf_abc"}', '{"HF_TOKEN": "<redacted>"}'),
        ("Authorization: Bearer abcdefghij", "Authorization: Bearer <redacted>"),
        ("password: hunter2, user: me", "password: <redacted>, user: me"),
        ("my-secret_name = 'hunter2', x", "my-secret_name = '<redacted>', x"),
        ("the api key: hunter2", "the api key: <redacted>"),
        ("max_tokens=512 is too many", "max_tokens=512 is too many"),
        ("Token indices are too long (1024 > 512)", "Token indices are too long (1024 > 512)"),
    ],
)
def test_what_looks_like_a_secret_is_left_out(text: str, expected: str) -> None:
    assert redacted_text(text) == expected


class Host:
    def __init__(self) -> None:
        self.seen: list[BaseException] = []

    def raised(self, error: BaseException) -> None:
        self.seen.append(error)
        raise OSError("what fails here is nobody's business")

    def left(self) -> None: ...

    def exits(self) -> None: ...

    def trains_in(self, thread: int | None) -> bool:
        return thread == threading.main_thread().ident


def test_the_hook_comes_before_the_one_that_was_there_and_is_put_back() -> None:
    order: list[str] = []
    before, sys.excepthook = sys.excepthook, lambda *_: order.append("printed")
    mine = sys.excepthook
    try:
        host = Host()
        leaving = Leaving(host)
        error = ValueError("planted")
        sys.excepthook(ValueError, error, None)
        assert (host.seen, order) == ([error], ["printed"])
        chained = sys.excepthook
        sys.excepthook = lambda *given: chained(*given)  # somebody else chains on ours
        leaving.close()
        sys.excepthook(ValueError, error, None)
        assert (host.seen, order) == ([error], ["printed", "printed"])
        sys.excepthook = mine
        again = Leaving(host)
        again.close()
        assert sys.excepthook is mine
    finally:
        sys.excepthook = before


def test_only_the_training_threads_exception_counts() -> None:
    assert raised_by_a_thread(Host(), lambda: 1 / 0) == []


def test_the_training_may_have_a_thread_of_its_own() -> None:
    class Elsewhere(Host):
        def trains_in(self, thread: int | None) -> bool:
            return not super().trains_in(thread)

    (error,) = raised_by_a_thread(Elsewhere(), lambda: 1 / 0)
    assert isinstance(error, ZeroDivisionError)
    assert raised_by_a_thread(Elsewhere(), lambda: sys.exit(0)) == []  # that is no failure


def raised_by_a_thread(host: Host, work: Callable[[], object]) -> list[BaseException]:
    before, threading.excepthook = threading.excepthook, lambda *_: None
    leaving = Leaving(host)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return host.seen
    finally:
        leaving.close()
        threading.excepthook = before


@pytest.mark.parametrize("flags", [[], ["-i"]])
def test_an_exception_before_a_prompt_ends_nothing(tmp_path: Path, flags: list[str]) -> None:
    script = (
        "from walrecover.session.leaving import Leaving\n"
        "class Host:\n"
        "    def raised(self, error): print('raised', repr(error), flush=True)\n"
        "    def left(self): print('left', flush=True)\n"
        "    def exits(self): print('exits', flush=True)\n"
        "    def trains_in(self, thread): return True\n"
        "leaving = Leaving(Host())\n"
        "raise ValueError('planted')\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = "exits\n" if flags else "raised ValueError('planted')\nleft\nexits\n"
    assert done.stdout == expected
    assert "ValueError: planted" in done.stderr
