"""examples/char_gpt.py, which dies of what the file that FAULT names asks for.

What it trains is untouched: the loss is computed by the same calls, later while `slow` lies beside
that file.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import char_gpt

FAULT = Path(os.environ["FAULT"])
SLOW = FAULT.with_name("slow")
SLOW_SECONDS = 3.0
"""At most: a step may take 6 s before it is a hang."""

CHUNK = 64 << 20
computed = char_gpt.loss_of


def die(how):
    if how == "memory":
        # In a cgroup with a limit the kernel ends it; elsewhere Python says what it would say.
        hog = [b"\1" * CHUNK for _ in range(int(os.environ.get("HOG_CHUNKS", "0")))]
        raise MemoryError(f"on purpose, behind {len(hog)} chunks")
    raise RuntimeError("on purpose")


def loss_of(model, x, y):
    if model.training and FAULT.exists():
        how = FAULT.read_text()
        FAULT.unlink()
        die(how)
    until = time.monotonic() + SLOW_SECONDS
    while model.training and SLOW.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return computed(model, x, y)


char_gpt.loss_of = loss_of

if __name__ == "__main__":
    char_gpt.main()
