"""Recordings of `workload`, and changes to them that leave something out.

Owns: running the workload under strace, over nothing or over a crash state, and cutting a
recording down to where a change shows.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as with_fields
from itertools import islice
from pathlib import Path

from . import ops, promises
from .explore import Exploration, State
from .model import History
from .pool import Check
from .record import record
from .trace import parse

_REPOSITORY = Path(__file__).parents[2]


def story(folder: Path, name: str = "run", state: State | None = None) -> list[ops.Op]:
    """The operations of one of the workload's stories, in a new folder.

    `state`: the tree that it finds there.
    """
    root = folder / "root"
    root.mkdir(parents=True)
    if state is not None:
        state.tree.write(root)
    recording = record(
        [sys.executable, "-m", "tests.crash_states.workload", name],
        root,
        folder / "work",
        env={"PYTHONPATH": str(_REPOSITORY)},
    )
    return parse(recording, drop=lambda path: path.endswith("lock.mdb"))


def find(operations: Sequence[ops.Op], wanted: Callable[[ops.Op], object], nth: int = 0) -> int:
    """The place of the n-th operation that is wanted; negative counts from the last."""
    return [at for at, op in enumerate(operations) if wanted(op)][nth]


def around(operations: Sequence[ops.Op], at: int, acks: int = 2) -> list[ops.Op]:
    """The recording, to crash only from operation `at` on, through so many acknowledgements."""
    before = [with_fields(op, pid=ops.SETUP_PID) for op in operations[: max(0, at - 1)]]
    rest = list(operations[len(before) :])
    told = [place for place, op in enumerate(rest) if isinstance(op, ops.Ack) and place > 1]
    return before + rest[: told[:acks][-1] + 1]


def left_out(operations: Sequence[ops.Op], at: int, acks: int = 2) -> list[ops.Op]:
    """The recording without one operation, to crash only where that can show."""
    return around([*operations[:at], *operations[at + 1 :]], at, acks)


def recoveries(
    operations: Sequence[ops.Op],
    rows: Callable[[ops.Op], str],
    folder: Path,
    *,
    seed: int,
    count: int,
) -> Iterator[tuple[list[ops.Op], Check]]:
    """Recordings of a recovery, each over another crash state, and the check of their own."""
    drawn = iter(Exploration(History(operations), rows, seed))
    apart = max(1, 4 * len(operations) // count)
    for number, state in enumerate(islice(drawn, apart - 1, None, apart)):
        if number == count:
            return
        base = promises.base_of(state.tree, folder / f"undisturbed-{number}")
        check = functools.partial(promises.check_again, before=state.acks, base=base)
        yield story(folder / f"recovery-{number}", "recover", state), check
