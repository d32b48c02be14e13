"""From a recording to the ordered list of operations below its root.

Owns: the way from strace's file to operations, and the proof that nothing was missed: the tree
that the operations build must be, byte for byte, the tree that the program left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from . import ops
from .calls import Call, TraceError, read_calls
from .contents import Contents
from .processes import Processes
from .record import Recording, Tree

Drop = Callable[[str], bool]


def keep_everything(path: str) -> bool:
    return False


def parse(recording: Recording, drop: Drop = keep_everything) -> list[ops.Op]:
    """The operations, in the order in which their calls returned.

    `drop` takes a path below the root and says that this file is out of scope (LMDB's lock.mdb);
    what lies in a dropped directory is dropped with it.
    """
    with recording.trace.open(encoding="ascii") as lines:
        calls = sorted(read_calls(lines), key=_took_effect)
    processes = Processes(calls, str(recording.root))
    meaning = Contents(str(recording.root), str(recording.ack), processes, drop)
    setup = _setup(meaning, recording.before)
    for index, call in enumerate(calls):
        meaning.apply(call, partial(_began_before_return, calls, index))
    _check_complete(meaning, recording.after)
    return setup + meaning.found


def _took_effect(call: Call) -> int:
    """Where in the trace a call counts: at its return, but a descriptor is free from the moment
    that its close begins, and another thread may be given its number before the close returns.
    """
    return call.begun if call.name in ("close", "close_range") else call.seq


def _began_before_return(calls: Sequence[Call], index: int) -> Iterator[Call]:
    """The calls that return after this one, of those that had begun by then."""
    now = calls[index].seq
    return (call for call in calls[index + 1 :] if call.begun < now)


def _setup(meaning: Contents, before: Tree) -> list[ops.Op]:
    """What stood below the root before the program ran: durable before the first operation."""
    shadow, found = meaning.shadow, list[ops.Op]()
    for path, data in sorted(before.items()):
        *above, name = path.split("/")
        directory = shadow.lookup(tuple(above))
        assert directory is not None
        ino = shadow.new_directory() if data is None else shadow.new_file()
        shadow.add(directory, name, ino)
        if directory in meaning.dropped or meaning.drop(path):
            meaning.dropped.add(ino)
            continue
        made = ops.Mkdir if data is None else ops.Create
        found.append(made(path=path, dir=directory, name=name, ino=ino))
        if data:
            shadow.write(ino, 0, data)
            found.append(ops.Write(path=path, ino=ino, offset=0, data=data))
    if found:
        found.append(ops.Sync(ino=ops.EVERYTHING, how="setup"))
    times = range(-2 * len(found), 0, 2)
    return [
        replace(op, seq=seq, begun=seq, pid=ops.SETUP_PID)
        for op, seq in zip(found, times, strict=True)
    ]


def _check_complete(meaning: Contents, after: Tree) -> None:
    """Catches what strace did not show: unseen writes, lost offsets, aliases of the root."""
    shadow = meaning.shadow
    built = {
        path: None if ino in shadow.directories else bytes(shadow.contents[ino])
        for path, ino in shadow.walk()
        if ino not in meaning.dropped
    }
    left = {}
    for path, data in after.items():
        ino = shadow.lookup(tuple(path.split("/")))
        if ino is None or ino not in meaning.dropped:
            left[path] = data
    wrong = sorted(
        path for path in built.keys() | left.keys()
        if path not in built or path not in left or built[path] != left[path]
    )  # fmt: skip
    if wrong:
        raise TraceError(f"the operations do not explain what the program left in {wrong[:5]}")
