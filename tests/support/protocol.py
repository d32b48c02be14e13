"""A run without torch: attempts, steps, votes and commits over plain buffers.

Owns the training that the protocol's tests stand for. Its state after step s is a pure function
of s, so that any recovered snapshot can be checked by itself; beside it each rank stores who
wrote it, so that a mixture of attempts shows.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
from blake3 import blake3

from walrecover import entries as model
from walrecover import events as ev
from walrecover import failpoints, recovery, shards, snapshot
from walrecover.consumed import Consumed
from walrecover.entries import AttemptEntry, CommitEntry, Entry, Holder, Plan, SnapshotRef
from walrecover.errors import Corrupt, StorageFailed
from walrecover.failpoints import failpoint
from walrecover.journal import Journal
from walrecover.manifest import Part
from walrecover.processes import identity
from walrecover.reuse import Past
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.shards import TensorData
from walrecover.snapshot import Capture, Disagreed, DurableStream

BYTES = 48
FROZEN_BYTES = 6000
MAP_BYTES = 1 << 20

_OTHERS = ("adopt.", "fork.", "saver.", "export.", "import.", "vault.")
NAMES = [name for name in failpoints.NAMES if not name.startswith(_OTHERS)]
"""The failpoints of the protocol; the others have tests of their own."""


def holder(pid: int = 1) -> Holder:
    """A holder that is dead (no pid is as high), so that anybody may take over."""
    return msgspec.structs.replace(identity(), pid=(1 << 22) + pid, started=0.0)


@functools.lru_cache(maxsize=4096)
def state_after(step: int, rank: int | None = None) -> bytes:
    """The bytes that training has made by the end of this step."""
    return blake3(f"{step}/{rank}".encode()).digest(BYTES)


@functools.lru_cache(maxsize=8)
def frozen(rank: int | None = None) -> bytes:
    """What training never changes."""
    return blake3(f"frozen/{rank}".encode()).digest(FROZEN_BYTES)


def tensor(data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None) -> TensorData:
    buffer = (ctypes.c_char * max(len(data), 1)).from_buffer_copy(data or b"\0")
    place = ctypes.addressof(buffer)
    return TensorData(dtype, (len(data),) if shape is None else shape, place, len(data), buffer)


def signature(label: str, rank: int, step: int) -> bytes:
    return f"{label}/{rank}/{step}".encode()


def capture(
    run: str, entry: AttemptEntry, rank: int, world: int, step: int, *, end: bool = False,
    after: int = 0, position: str = "",
) -> Capture:  # fmt: skip
    """What a rank stores: replicated weights (tied under two names), its own part, its author,
    and what never changes: most of the bytes."""
    weights = tensor(state_after(step))
    base = entry.plan.base
    return Capture(
        run=run,
        step=step,
        end=end,
        attempt=entry.number,
        nonce=entry.nonce,
        rank=rank,
        world=world,
        base=base.manifest if base else "",
        position=position or f"position {step}",
        tensors={
            "weights": weights,
            "tied": weights,
            "own": tensor(state_after(step, rank)),
            "author": tensor(signature(entry.label, rank, step)),
            "frozen": tensor(frozen()),
            "own frozen": tensor(frozen(rank)),
        },
        shared=frozenset({"weights", "tied", "frozen"}),
        tree={"objects": {}, "step": step, "rank": rank},
        writer=f"rank-{rank}",
        events_after=after,
    )


class Launch:
    """One attempt: all its ranks, and rank 0's keeper, in this process."""

    def __init__(
        self, run: RunDir, entry: AttemptEntry, world: int = 2, journals: Iterable[Journal] = ()
    ) -> None:
        self.run, self.entry, self.world = run, entry, world
        self.step = entry.plan.base.step if entry.plan.base else 0
        self.journals = list(journals)
        self.verified: set[str] = set()
        self.committed_lsn = [0] * world
        self.pasts = [Past() for _ in range(world)]

    @classmethod
    def begin(cls, run: RunDir, who: Holder | None = None, *, world: int = 2) -> Launch:
        run.create()
        launch = cls(run, recovery.begin_attempt(run, who or holder()).entry, world)
        launch.open()
        return launch

    def open(self) -> None:
        """Open the ranks' streams; each restores the plan's base and says so, as a session does."""
        base = self.entry.plan.base
        if base is not None:
            parts = snapshot.load_manifest(self.run, base).parts
            self.pasts = [Past(part) for part in parts]
        for rank in range(len(self.journals), self.world):
            journal = open_stream(self.run, self.entry, rank, self.world)
            self.journals.append(journal)
            if base is not None:
                check_state(self.run, base, self.world)
            failpoint("restore.read")
            failpoint("restore.applied")
            journal.append(ev.Resumed(step=base.step if base else 0))
            failpoint("restore.announced")

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            for journal in self.journals:
                journal.append(completed(self.step))

    def vote(
        self, rank: int, *, end: bool = False, stream: DurableStream | None = None,
        position: str = "",
    ) -> Part:  # fmt: skip
        taken = capture(
            self.run.name, self.entry, rank, self.world, self.step, end=end,
            after=self.committed_lsn[rank], position=position,
        )  # fmt: skip
        past = self.pasts[rank]
        part = snapshot.vote(self.run, taken, stream or self.journals[rank], offers=past.offers())
        past.cast(part)
        return part

    def commit(self, *, end: bool = False, finished: bool = False) -> CommitEntry | None:
        entry = snapshot.commit(
            self.run, step=self.step, end=end, attempt=self.entry.number, nonce=self.entry.nonce,
            world=self.world, finished=finished,
        )  # fmt: skip
        for past in self.pasts if entry else ():
            past.committed({(self.step, end)})
        return entry

    def save(self, *, end: bool = False, finished: bool = False) -> CommitEntry:
        """All ranks vote, rank 0 commits."""
        parts = [self.vote(rank, end=end) for rank in range(self.world)]
        entry = self.commit(end=end, finished=finished)
        if entry is None:
            raise Disagreed("the votes are gone: a newer attempt has swept them away")
        self.committed_lsn = [part.lsn for part in parts]
        return entry

    def keep(self, commit: CommitEntry, retention: int = 2) -> tuple[SnapshotRef, ...]:
        """Read a commit back, then retire what it replaced, as rank 0's keeper does."""
        try:
            snapshot.verify(self.run, commit.snapshot)
        except (Corrupt, OSError):
            for past in self.pasts:
                past.distrust(commit.snapshot.name)
            raise
        self.verified.add(commit.snapshot.manifest)
        failpoint("snapshot.verified")
        return snapshot.retire(
            self.run, attempt=self.entry.number, nonce=self.entry.nonce,
            verified=frozenset(self.verified), keep=retention,
        )  # fmt: skip

    def close(self) -> None:
        for journal in self.journals:
            journal.close()

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stream(run: RunDir, entry: AttemptEntry, rank: int, world: int) -> Journal:
    writer = f"rank-{rank}"
    return Journal.create(
        run.stream(entry.number, entry.nonce, writer),
        attempt=entry.number,
        first=ev.AttemptBegun(
            run=run.name, attempt=entry.number, nonce=entry.nonce, writer=writer, rank=rank,
            world=world,
        ),
        map_bytes=MAP_BYTES,
    )  # fmt: skip


def completed(step: int) -> ev.StepCompleted:
    """What every execution of this step must say: it depends on the step alone."""
    return ev.StepCompleted(
        step=step,
        position=(step,),
        lr=(1.0 / step,),
        scalars={"loss": 2.0**-step},
        consumed=(Consumed(0, 0, ((step - 1, step),)),),
        batch=state_after(step)[:16],
    )


def kill(journal: Journal) -> int:
    """What kill -9 does to a stream: events in memory are gone. Returns the last that survived."""
    with journal._appending:
        journal._waiting.clear()
    with suppress(StorageFailed):
        journal.close()
    return journal.committed


class FakeStream:
    """A journal that takes no time: every event is durable at once."""

    def __init__(self, events: int = 0) -> None:
        self.events = events

    def sync(self) -> tuple[int, bytes]:
        return self.events, bytes(16)

    def envelopes(self, after: int, upto: int) -> list[bytes]:
        return [b"%d" % lsn for lsn in range(after + 1, upto + 1)]


# --- reading ------------------------------------------------------------------------------------


def load(run: RunDir, ref: SnapshotRef) -> dict[tuple[int, str], bytes]:
    """Every rank's tensors, read as a session reads them: each digest checked on the way."""
    manifest = snapshot.load_manifest(run, ref)
    sizes = manifest.files()
    found = {}
    for part in manifest.parts:
        with ExitStack() as opened:
            files = {
                name: opened.enter_context(shards.Shard(run.snapshots, name, sizes[name]))
                for name in {at.file for at in part.tensors.values()}
            }
            for name, at in part.tensors.items():
                data = bytearray(files[at.file].size_of(at))
                files[at.file].read(name, at, data)
                found[part.rank, name] = bytes(data)
        plain = f"{manifest.name}/rank-{part.rank:05d}.msgpack"
        shards.read_plain(run.snapshots, plain, part.files[plain])
    return found


def check_state(run: RunDir, ref: SnapshotRef, world: int = 2) -> None:
    """The snapshot holds exactly what training had made by its step, all of one attempt."""
    label = model.attempt_label(ref.attempt, ref.nonce)
    expected = {}
    for rank in range(world):
        expected[rank, "weights"] = expected[rank, "tied"] = state_after(ref.step)
        expected[rank, "own"] = state_after(ref.step, rank)
        expected[rank, "author"] = signature(label, rank, ref.step)
        expected[rank, "frozen"], expected[rank, "own frozen"] = frozen(), frozen(rank)
    assert load(run, ref) == expected


def damage(run: RunDir, ref: SnapshotRef, file: str = "rank-00001.safetensors") -> None:
    """Flip a bit of a snapshot."""
    path = run.snapshots / ref.name / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def entries_of(run: RunDir) -> list[Entry]:
    return Sequence(run.sequence).read()


def candidates(run: RunDir) -> list[SnapshotRef]:
    return [commit.snapshot for commit in model.candidates(entries_of(run))]


def recovery_point(run: RunDir) -> SnapshotRef | None:
    """What a recovery would restore now, checked; nothing is entered."""
    base = recovery.choose(run, entries_of(run)).base
    if base is not None:
        check_state(run, base)
    return base


# --- entries without files ----------------------------------------------------------------------


def nonce_of(number: int) -> str:
    return f"{number:08x}"


def attempt(
    number: int, base: SnapshotRef | None = None, *, rejected: tuple[model.Rejected, ...] = (),
    fresh: bool = False, nonce: str | None = None,
) -> AttemptEntry:  # fmt: skip
    nonce = nonce_of(number) if nonce is None else nonce
    plan = Plan(base, rejected, fresh)
    return AttemptEntry(
        id=f"attempt-{number}", at=0.0, number=number, nonce=nonce, plan=plan, holder=holder()
    )


def reference(step: int, number: int, *, end: bool = False) -> SnapshotRef:
    return SnapshotRef(step, number, nonce_of(number), f"blake3:{step}.{number}.{end}", end)


def committed(step: int, number: int, *, end: bool = False, finished: bool = False) -> CommitEntry:
    ref = reference(step, number, end=end)
    return CommitEntry(id=f"commit-{ref.manifest}", at=0.0, snapshot=ref, finished=finished)


def retirement(number: int, *refs: SnapshotRef) -> model.RetirementEntry:
    return model.RetirementEntry(
        id=f"retirement-{number}-{len(refs)}", at=0.0, attempt=number, nonce=nonce_of(number),
        manifests=tuple(ref.manifest for ref in refs),
    )  # fmt: skip


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
