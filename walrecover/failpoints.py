"""Named points where the tests crash the program. Nothing at all happens while they are off.

    WALRECOVER_FAILPOINT=snapshot.vote.written:kill        SIGKILL at the first passage
    WALRECOVER_FAILPOINT=journal.commit:raise:3            an exception at the third
    WALRECOVER_FAILPOINT=shards.write:enospc,…             OSError(ENOSPC); several by commas
    WALRECOVER_FAILPOINT=sequence.linked:stop              SIGSTOP (late actors; the tests wake it)

A point is passed by `failpoint("name")` in the code; every name is listed in `NAMES` with what a
crash there leaves, which is the row of specs/05-crash-safety.md.
"""

from __future__ import annotations

import errno
import os
import signal

ENVIRONMENT = "WALRECOVER_FAILPOINT"

NAMES: dict[str, str] = {
    "journal.create.built": "an environment under a temporary name; no stream",
    "journal.create.renamed": "an empty stream whose name may not be durable",
    "journal.append": "the event is in memory only",
    "journal.commit.before": "a group of events is in memory only",
    "journal.commit.after": "the group survives the process, perhaps not the machine",
    "journal.sync.after": "the group survives the machine; nobody was told",
    "shards.tensors.written": "a shard that nobody voted for, not durable",
    "shards.tensors.synced": "a durable shard that nobody voted for",
    "shards.plain.written": "both files of a rank, no vote",
    "saver.settled": "all that a dead process left is saved, and its memory not yet offered",
    "saver.taken": "the memory of the attempt before is mapped; its saver still offers it",
    "saver.digested": "a capture in the arena with its digests; its shard is being written",
    "snapshot.vote.before": "shards are durable, no vote",
    "snapshot.vote.after": "this rank's vote is durable; the others' may not exist",
    "snapshot.manifest.before": "every vote, no manifest",
    "snapshot.manifest.after": "a manifest that nothing names: no snapshot",
    "sequence.entry.written": "an entry under a temporary name: no entry",
    "sequence.entry.linked": "the entry exists, its name may not be durable",
    "sequence.entry.synced": "the entry is durable; its author was not told",
    "snapshot.committed": "the snapshot exists; the journal does not say so yet",
    "snapshot.verified": "read back; nothing retired yet",
    "snapshot.retired": "retired by the sequence; its files are still there",
    "snapshot.deleting": "a retired snapshot, some of its files gone",
    "recovery.folded": "nothing written",
    "recovery.verified": "nothing written",
    "recovery.planned": "the attempt's entry is durable; no worker started",
    "restore.read": "nothing written; the attempt has not said that it restored",
    "restore.applied": "every object is restored, nobody was told",
    "restore.announced": "this rank said that it restored",
    "fork.linked": "a fork's snapshot under a temporary name; no run",
    "fork.entered": "a whole fork under a temporary name; no run",
    "fork.renamed": "the fork exists; its name may not be durable",
    "export.staged": "a run once more under a temporary name; no archive",
    "export.packed": "part of an archive under a temporary name; no archive",
    "export.written": "a whole archive under a temporary name; no archive",
    "export.renamed": "the archive exists; its name may not be durable",
    "import.unpacked": "part of a run under a temporary name; no run",
    "import.verified": "a whole run under a temporary name; no run",
    "import.journal": "the streams at their place elsewhere; no run",
    "import.renamed": "the run exists; its name may not be durable",
    "vault.request": "the objects of a vault before it",
    "vault.answered": "an object of a vault; its author was not told",
    "adopt.copied": "a checked copy of a script's file under a temporary name, no version",
    "adopt.named": "the copy, durable under its name; no record names it",
    "adopt.recorded": "the version is kept, durable; the journal does not say so",
    "adopt.aside": "a torn file has a second name beside its own",
    "adopt.restored": "the version lies at its path; that may not be durable",
}


class FailpointReached(RuntimeError):
    """Raised by the `raise` action."""


def _parse(text: str) -> dict[str, tuple[str, int]]:
    armed = {}
    for item in filter(None, text.split(",")):
        name, _, rest = item.partition(":")
        action, _, count = rest.partition(":")
        if name not in NAMES or action not in ("kill", "raise", "enospc", "stop"):
            raise SystemExit(f"{ENVIRONMENT}: no failpoint {item!r}")
        armed[name] = (action, int(count or 1))
    return armed


_armed = _parse(os.environ.get(ENVIRONMENT, ""))
_passed: dict[str, int] = {}


def arm(text: str) -> None:
    """Arm as if the environment held `text`; "" disarms all. For tests in one process."""
    _armed.clear()
    _armed.update(_parse(text))
    _passed.clear()


def passages() -> dict[str, int]:
    """How often each armed failpoint was passed in this process."""
    return dict(_passed)


def failpoint(name: str) -> None:
    """Do what the environment asks for at this point; by default nothing."""
    if _armed and name in _armed:
        _reach(name)


def _reach(name: str) -> None:
    action, count = _armed[name]
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != count:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, f"failpoint {name}")
    else:
        raise FailpointReached(name)
