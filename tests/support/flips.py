"""Single bits of a run directory flipped, and what recovery makes of each.

Owns the run that is damaged, the flips and the verdict on each. `check` runs in a child that is
the caller of recovery here: it must never die. After a flip there may be the same result, a named
loss (a snapshot rejected with its reason and an older one restored, or a stream read up to its
damage, which is told), or a refusal. Anything else is a wrong result.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.protocol import Launch, check_state, entries_of, files_below, kill
from walrecover import checkpoints, recovery
from walrecover import entries as model
from walrecover.entries import SnapshotRef
from walrecover.errors import Corrupt, UnsupportedVersion
from walrecover.journal import Reader, find_streams
from walrecover.rundir import RunDir
from walrecover.state import StreamKey, StreamRecord, apply

Flip = tuple[str, int]  # a file below the run's directory, and one of its bits


def build(root: Path, steps: int = 4, saves: tuple[int, ...] = (1, 2)) -> RunDir:
    """Attempts of two ranks, so many snapshots in each, and a fold checkpoint of one stream.
    `steps`: in each snapshot."""
    run = RunDir(root / ".walrecover", "a-run")
    for snapshots in saves:
        launch = Launch.begin(run)
        for _ in range(snapshots):
            launch.train(steps)
            launch.save()
        launch.train(1)
        for journal in launch.journals:
            journal.sync()
            kill(journal)
    stream, path = find_streams(run.journal)[0]
    with Reader(path) as reader:
        head = reader.head()
        checkpoints.store(path, stream, head, _records(reader)[-1])
    return run


def _records(reader: Reader) -> list[StreamRecord]:
    """A stream's record after every LSN, none included."""
    records = [StreamRecord()]
    for lsn, event in reader.read():
        record = apply(copy.deepcopy(records[-1]), event)
        record.lsn = lsn
        records.append(record)
    return records


def kind_of(name: str) -> str:
    path = Path(name)
    if path.suffix == ".json":
        return "manifest" if path.name == "manifest.json" else "sequence"
    return {".mdb": "journal", ".safetensors": "shard", ".msgpack": "plain", ".part": "vote",
            ".fold": "checkpoint"}[path.suffix]  # fmt: skip


def files_of(run: RunDir) -> dict[str, int]:
    """The files that are in scope, with their sizes."""
    return {
        str(path.relative_to(run.path)): path.stat().st_size
        for path in files_below(run.path)
        if path.name != "lock.mdb" and path.relative_to(run.path).parts[0] != "attempts"
    }


def draw(run: RunDir, count: int, seed: int) -> list[Flip]:
    """Bits at random: half of them anywhere, half from a file of a kind drawn first, since most
    bytes of a small run are LMDB's."""
    random_ = random.Random(seed)
    sizes = files_of(run)
    kinds = sorted({kind_of(name) for name in sizes})
    names = sorted(sizes)
    weights = [sizes[name] for name in names]
    found = []
    for place in range(count):
        if place % 2:
            (name,) = random_.choices(names, weights)
        else:
            kind = random_.choice(kinds)
            name = random_.choice([n for n in names if kind_of(n) == kind])
        found.append((name, random_.randrange(8 * sizes[name])))
    return found


def every_bit(run: RunDir) -> Iterable[Flip]:
    for name, size in sorted(files_of(run).items()):
        for bit in range(8 * size):
            yield name, bit


class Truth(NamedTuple):
    """What the undamaged run says. `prefixes`: each stream's record after every LSN."""

    entries: list[model.Entry]
    live: list[SnapshotRef]
    prefixes: dict[StreamKey, list[StreamRecord]]


def truth_of(run: RunDir) -> Truth:
    entries = entries_of(run)
    prefixes = {}
    for stream, path in find_streams(run.journal):
        with Reader(path) as reader:
            prefixes[StreamKey(*stream)] = _records(reader)
    return Truth(entries, [c.snapshot for c in model.candidates(entries)], prefixes)


def verdict(run: RunDir, truth: Truth, kind: str) -> str:
    """What recovery makes of the run as it lies, where a file of this kind was flipped: what does
    not read such files is not asked. An AssertionError is a wrong result."""
    try:
        entries = entries_of(run)
    except (Corrupt, UnsupportedVersion):
        return "refused"
    assert entries == truth.entries
    lost = False
    if kind not in ("journal", "checkpoint"):
        lost = sum(_is_rejected(run, truth, place) for place in range(len(truth.live))) > 0
    if kind not in ("manifest", "shard", "plain", "vote"):
        lost = _is_told(run, truth) or lost
    return "named loss" if lost else "same"


def _is_rejected(run: RunDir, truth: Truth, place: int) -> bool:
    """Recovery at or before one of the snapshots: that one, or the next older and a reason."""
    live = truth.live[place:]
    chosen = recovery.choose(run, truth.entries, at=live[0].step)
    rejected = [r.manifest for r in chosen.rejected if r.reason]
    assert rejected == [ref.manifest for ref in live[: len(chosen.rejected)]]
    assert len(rejected) <= 1
    assert chosen.base == (live[len(rejected)] if len(rejected) < len(live) else None)
    if chosen.base is not None:
        check_state(run, chosen.base)
    return bool(rejected)


def _is_told(run: RunDir, truth: Truth) -> bool:
    """Every stream folded through some event of it, and all of it unless a loss is told."""
    lost = False
    records = recovery.fold_run(run, truth.entries).records
    assert records.keys() == truth.prefixes.keys()
    for key, record in records.items():
        told, record.losses = record.losses, []
        assert record == truth.prefixes[key][record.lsn]
        assert told or record == truth.prefixes[key][-1]
        lost = lost or bool(told)
    return lost


def flip(path: Path, bit: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        (byte,) = os.pread(fd, 1, bit // 8)
        os.pwrite(fd, bytes([byte ^ 1 << bit % 8]), bit // 8)
    finally:
        os.close(fd)


def check(root: str, flips: list[Flip], result: str) -> int:
    """Flip each bit, look, flip it back. Writes counts; exit code 2 at a wrong result."""
    run = RunDir(Path(root) / ".walrecover", "a-run")
    truth = truth_of(run)
    counts: Counter[str] = Counter()
    out = Path(result)
    place = os.open(f"{result}.place", os.O_WRONLY | os.O_CREAT, 0o600)
    for number, (name, bit) in enumerate(flips):
        os.pwrite(place, b"%-12d" % number, 0)
        flip(run.path / name, bit)
        try:
            kind = kind_of(name)
            counts[f"{kind}: {verdict(run, truth, kind)}"] += 1
        except BaseException as error:
            out.write_text(json.dumps({"wrong": f"{name} bit {bit}: {error!r}"}))
            raise
        finally:
            flip(run.path / name, bit)
    out.write_text(json.dumps(counts))
    return 0
