"""Reading stacks: where the main thread stands, and whether it waits for others."""

from __future__ import annotations

import pytest

from walrecover.blame import Condition
from walrecover.stacks import read

FAULTHANDLER = """\
Thread 0x00007f27b19a16c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait

Current thread 0x00007f27dac75b80 (most recent call first):
{frames}"""

SPIED = """\
Process 4711: python train.py
Python v3.11.7 (/usr/bin/python3.11)

Thread 4711 (idle): "MainThread"
{frames}
Thread 4800 (idle): "Thread-1"
    wait (threading.py:327)
"""

TORCH = "/venv/lib/python3.11/site-packages/torch"


@pytest.mark.parametrize(
    ("frames", "where", "waits"),
    [
        ([("/home/me/train.py", 7, "spin")], "/home/me/train.py line 7 in spin", False),
        (
            [
                (f"{TORCH}/autograd/graph.py", 9, "_engine_run_backward"),
                ("/me/train.py", 8, "main"),
            ],
            "/me/train.py line 8 in main",
            True,
        ),
        (
            [(f"{TORCH}/nn/parallel/distributed.py", 3, "forward"), ("/me/train.py", 8, "main")],
            "/me/train.py line 8 in main",
            True,
        ),
        (  # the user's own model inside the wrapper
            [
                ("/me/model.py", 5, "forward"),
                (f"{TORCH}/nn/parallel/distributed.py", 3, "forward"),
                ("/me/train.py", 8, "main"),
            ],
            "/me/model.py line 5 in forward",
            False,
        ),
    ],
)
def test_the_main_thread_in_either_format(
    frames: list[tuple[str, int, str]], where: str, waits: bool
) -> None:
    own = "\n".join(f'  File "{file}", line {line} in {name}' for file, line, name in frames)
    assert read(FAULTHANDLER.format(frames=own), "S") == Condition("S", waits, where)
    own = "\n".join(f"    {name} ({file}:{line})" for file, line, name in frames)
    assert read(SPIED.format(frames=own), "S") == Condition("S", waits, where)


@pytest.mark.parametrize("text", ["", "Error: no such process\n", "Thread 1 (idle)\n"])
def test_no_stacks_are_no_place(text: str) -> None:
    assert read(text, "D") == Condition("D")
