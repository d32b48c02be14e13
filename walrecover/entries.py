"""The entries of the sequence, and what follows from them: the chain and its candidates.

The sequence is the run's one order of decisions (specs/03-sequence.md). This module owns the
entries' types, the digest that guards their bytes, and the pure reading of a list of them;
`sequence` owns the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set

import msgspec
from blake3 import blake3

from walrecover.errors import Corrupt, UnsupportedVersion

FORMAT = 1
MAX_ENTRY_BYTES = 1 << 20
_NONCE = re.compile(r"[0-9a-z]{1,32}")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who drives an attempt. A process is named by boot, pid namespace, pid and start time."""

    host: str
    boot: str
    pid: int
    started: float
    supervisor: str = ""

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


class SnapshotRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A committed snapshot as the sequence names it. `end`: captured when the loops had ended."""

    step: int
    attempt: int
    nonce: str
    manifest: str
    end: bool = False

    @property
    def name(self) -> str:
        return snapshot_name(self.step, self.attempt, self.nonce, self.end)


class Rejected(msgspec.Struct, frozen=True, omit_defaults=True):
    """A candidate that recovery passed over. `confirmed` damage is inherited by later plans."""

    step: int
    attempt: int
    manifest: str
    reason: str
    confirmed: bool = True


class Skip(msgspec.Struct, frozen=True, omit_defaults=True):
    """Positions that a pass over a reader leaves out on purpose: `begin` to `end` - 1 of pass
    `epoch`. Reader and pass are those of `consumed`."""

    source: int
    epoch: int
    begin: int
    end: int
    why: str = ""


class Rewind(msgspec.Struct, frozen=True, omit_defaults=True):
    """The plan goes back to before `step`, whose numbers were bad; 0 where the journal does not
    know which it was."""

    step: int
    reason: str


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every rank of an attempt restores; `base` None starts from the beginning.

    `skips`: all that the history of this plan leaves out; the next plan inherits them. `ranks`: how
    many saved the base; another number may restore it.
    """

    base: SnapshotRef | None = None
    rejected: tuple[Rejected, ...] = ()
    fresh: bool = False
    skips: tuple[Skip, ...] = ()
    rewind: Rewind | None = None
    ranks: int = 0


class Ancestor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Steps `base` + 1 to `cut` of a history were made by this attempt of this run. `cut` None: it
    is still open."""

    run: str
    attempt: int
    nonce: str
    base: int
    cut: int | None = None


class OriginEntry(msgspec.Struct, frozen=True, omit_defaults=True, tag="origin"):
    """Entry 1 of a fork: the snapshot of the run `parent` that this run goes on from.

    The snapshot exists in this run by this entry, as by a commit. `history`: where its steps were
    made, newest first, over all generations. `skips`: what the fork leaves out. `finished`: its
    parent's loops had ended there.
    """

    id: str
    at: float
    parent: str
    snapshot: SnapshotRef
    history: tuple[Ancestor, ...] = ()
    skips: tuple[Skip, ...] = ()
    finished: bool = False


class AttemptEntry(msgspec.Struct, frozen=True, omit_defaults=True, tag="attempt"):
    """An attempt begins, with its plan."""

    id: str
    at: float
    number: int
    nonce: str
    plan: Plan
    holder: Holder

    @property
    def label(self) -> str:
        return attempt_label(self.number, self.nonce)


class CommitEntry(msgspec.Struct, frozen=True, omit_defaults=True, tag="commit"):
    """A snapshot exists from here on."""

    id: str
    at: float
    snapshot: SnapshotRef
    finished: bool = False


class RetirementEntry(msgspec.Struct, frozen=True, omit_defaults=True, tag="retirement"):
    """Snapshots that are void from here on; their files may go afterwards."""

    id: str
    at: float
    attempt: int
    nonce: str
    manifests: tuple[str, ...]


Entry = AttemptEntry | CommitEntry | RetirementEntry | OriginEntry

_decoder = msgspec.json.Decoder(Entry, strict=True)
_encoder = msgspec.json.Encoder()


class _Guarded(msgspec.Struct):
    format: int
    digest: str = ""
    body: msgspec.Raw = msgspec.Raw(b"")


def digest_of(data: bytes | memoryview) -> str:
    """`blake3:…`, the way digests are written in JSON."""
    return "blake3:" + blake3(data).hexdigest()


def guard(body: bytes) -> bytes:
    """JSON with its format and digest around it: one flipped bit must not pass for a decision."""
    return b'{"format": %d, "digest": "%s",\n"body": %s}\n' % (
        FORMAT,
        digest_of(body).encode(),
        body,
    )


def unguard(data: bytes) -> bytes:
    """The JSON inside. Raises Corrupt or UnsupportedVersion."""
    try:
        found = msgspec.json.decode(data, type=_Guarded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(str(error)) from None
    if found.format != FORMAT:
        raise UnsupportedVersion(f"format {found.format}, and this release reads {FORMAT}")
    body = bytes(found.body)
    if digest_of(body) != found.digest:
        raise Corrupt("its bytes are not the ones that were written")
    return body


def encode(entry: Entry) -> bytes:
    return guard(msgspec.json.format(_encoder.encode(entry), indent=1))


def decode(data: bytes, number: int) -> Entry:
    """The entry in these bytes. Raises Corrupt or UnsupportedVersion, naming its number."""
    try:
        entry: Entry = _decoder.decode(unguard(data))
        _check(entry)
        if isinstance(entry, OriginEntry) and number != 1:
            raise Corrupt("an origin, which only the first can be")
        return entry
    except UnsupportedVersion as error:
        raise UnsupportedVersion(f"sequence entry {number}: {error}") from None
    except (Corrupt, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"sequence entry {number}: {error}") from None


def _check(entry: Entry) -> None:
    """What becomes part of a path must not lead anywhere else."""
    for step, attempt, nonce in _named(entry):
        if not (0 <= step < 1 << 53 and 1 <= attempt < 1 << 32 and _NONCE.fullmatch(nonce)):
            raise Corrupt(f"step {step} of attempt {attempt}, {nonce!r} is no name")
    if isinstance(entry, OriginEntry):
        for run in (entry.parent, *(one.run for one in entry.history)):
            if not is_run_name(run):
                raise Corrupt(f"{run!r} is not a run's name")


def _named(entry: Entry) -> Iterator[tuple[int, int, str]]:
    if isinstance(entry, AttemptEntry):
        yield 0, entry.number, entry.nonce
        if entry.plan.base is not None:
            yield entry.plan.base.step, entry.plan.base.attempt, entry.plan.base.nonce
    elif isinstance(entry, CommitEntry):
        yield entry.snapshot.step, entry.snapshot.attempt, entry.snapshot.nonce
    elif isinstance(entry, OriginEntry):
        yield entry.snapshot.step, entry.snapshot.attempt, entry.snapshot.nonce
        for one in entry.history:
            yield one.cut or 0, one.attempt, one.nonce


def is_run_name(name: str) -> bool:
    return bool(_RUN.fullmatch(name))


def attempt_label(number: int, nonce: str) -> str:
    """`a3-9f2c01d7`: how an attempt is named in paths and to people."""
    return f"a{number}-{nonce}"


def snapshot_name(step: int, attempt: int, nonce: str, end: bool = False) -> str:
    """The folder of one capture. The capture at the end of all loops is another than its step's."""
    return f"step-{step:08d}{'-end' if end else ''}.{attempt_label(attempt, nonce)}"


class Link(msgspec.Struct, frozen=True):
    """One attempt on the chain: it began above `base` and its history counts up to `cut`."""

    attempt: int
    nonce: str
    base: int
    cut: int | None

    def holds(self, step: int) -> bool:
        return step > self.base and (self.cut is None or step <= self.cut)


def attempts(entries: Sequence[Entry]) -> list[AttemptEntry]:
    return [entry for entry in entries if isinstance(entry, AttemptEntry)]


def newest_attempt(entries: Sequence[Entry]) -> AttemptEntry | None:
    for entry in reversed(entries):
        if isinstance(entry, AttemptEntry):
            return entry
    return None


def origin(entries: Sequence[Entry]) -> OriginEntry | None:
    """What a fork goes on from; None for a run that is none."""
    return entries[0] if entries and isinstance(entries[0], OriginEntry) else None


def skips(entries: Sequence[Entry]) -> tuple[Skip, ...]:
    """What the next plan inherits: what is skipped stays skipped, unless a run starts over."""
    newest = newest_attempt(entries)
    if newest is not None:
        return newest.plan.skips
    first = origin(entries)
    return first.skips if first else ()


def commits(entries: Sequence[Entry]) -> list[CommitEntry]:
    """The commits that count: each was entered while its own attempt was the newest one (P4).

    The snapshot of a fork's origin counts as the first.
    """
    counted = []
    first = origin(entries)
    if first is not None:
        counted.append(CommitEntry(first.id, first.at, first.snapshot, first.finished))
    newest: tuple[int, str] | None = None
    for entry in entries:
        if isinstance(entry, AttemptEntry):
            newest = (entry.number, entry.nonce)
        elif isinstance(entry, CommitEntry) and newest == (
            entry.snapshot.attempt,
            entry.snapshot.nonce,
        ):
            counted.append(entry)
    return counted


def retired(entries: Sequence[Entry]) -> frozenset[str]:
    """Digests of the manifests that are void."""
    return frozenset(
        digest
        for entry in entries
        if isinstance(entry, RetirementEntry)
        for digest in entry.manifests
    )


def chain(entries: Sequence[Entry]) -> list[Link]:
    """The newest plan's attempt, its base's attempt, that one's base's, and so on (rule 3)."""
    by_nonce = {(entry.number, entry.nonce): entry for entry in attempts(entries)}
    links: list[Link] = []
    entry = newest_attempt(entries)
    cut: int | None = None
    while entry is not None:
        base = entry.plan.base
        links.append(Link(entry.number, entry.nonce, base.step if base else 0, cut))
        if base is None or len(links) > len(by_nonce):
            break
        entry, cut = by_nonce.get((base.attempt, base.nonce)), base.step
    return links


def candidates(entries: Sequence[Entry]) -> list[CommitEntry]:
    """Commits on the chain that are not retired, newest first (rule 3).

    Where the chain leaves an attempt at its base, what that attempt committed later is off the
    chain for good, and so is an end capture of the same step unless it is the base itself.
    """
    void = retired(entries)
    counted = commits(entries)
    found: list[CommitEntry] = []
    base: SnapshotRef | None = None
    by_nonce = {(entry.number, entry.nonce): entry for entry in attempts(entries)}
    for link in chain(entries):
        own = [
            c
            for c in counted
            if (c.snapshot.attempt, c.snapshot.nonce) == (link.attempt, link.nonce)
            and (base is None or (c.snapshot.step, c.snapshot.end) <= (base.step, base.end))
        ]
        found += sorted(own, key=lambda c: (c.snapshot.step, c.snapshot.end), reverse=True)
        base = by_nonce[(link.attempt, link.nonce)].plan.base
    first = origin(entries)
    if first is not None and (base == first.snapshot or not by_nonce):
        found.append(counted[0])  # the chain goes back to it
    return [c for c in found if c.snapshot.manifest not in void]


def retried(entries: Sequence[Entry]) -> list[CommitEntry]:
    """Commits off the chain that recovery tries first: the newest plan passed them over only
    because they could not be read, and nothing was committed since (rule 5)."""
    newest = newest_attempt(entries)
    counted = commits(entries)
    if newest is None or any(_is_own(commit, newest) for commit in counted):
        return []
    void = retired(entries)
    unread = {r.manifest for r in newest.plan.rejected if not r.confirmed} - void
    return [commit for commit in reversed(counted) if commit.snapshot.manifest in unread]


def _is_own(commit: CommitEntry, attempt: AttemptEntry) -> bool:
    return (commit.snapshot.attempt, commit.snapshot.nonce) == (attempt.number, attempt.nonce)


def finished(entries: Sequence[Entry]) -> bool:
    """Whether the newest live commit says that the run came to its end."""
    live = candidates(entries)
    return bool(live) and live[0].finished


def retirable(
    entries: Sequence[Entry],
    verified: frozenset[str],
    keep: int,
    files: Callable[[SnapshotRef], frozenset[str] | None] = lambda ref: frozenset({ref.name}),
) -> tuple[SnapshotRef, ...]:
    """Snapshots that retention may retire now (rule 10, P10).

    Only the live chain counts as kept. The newest `keep` stay; so does the newest plan's base
    until the newest attempt has a commit that was read back and `verified`; and nothing goes
    unless at least two snapshots newer than it are known to verify and share no file. `files`:
    what a snapshot's manifest lists, None where that cannot be read.
    """
    kept = {c.snapshot.manifest for c in candidates(entries)[: max(keep, 2)]}
    return voidable(entries, verified, kept, files)


def voidable(
    entries: Sequence[Entry],
    verified: frozenset[str],
    kept: Set[str],
    files: Callable[[SnapshotRef], frozenset[str] | None],
) -> tuple[SnapshotRef, ...]:
    """As `retirable`, of all but the manifests in `kept`, whoever chose those."""
    newest = newest_attempt(entries)
    live = candidates(entries)
    if newest is None or not live:
        return ()
    secured = any(c.snapshot.manifest in verified for c in live if _is_own(c, newest))
    base = newest.plan.base.manifest if newest.plan.base else None
    if base is not None and not secured:
        kept = kept | {base}
    void = retired(entries)
    out = []
    proven: list[frozenset[str]] = []
    apart = False
    for commit in live:
        if commit.snapshot.manifest not in kept and secured and apart:
            out.append(commit.snapshot)
        if commit.snapshot.manifest in verified and not apart:
            listed = files(commit.snapshot)
            if listed is not None:
                apart = any(listed.isdisjoint(other) for other in proven)
                proven.append(listed)
    on_chain = {c.snapshot.manifest for c in live} | void
    if secured and apart:
        # What a rewind or a late actor left behind is never read again.
        out += [
            c.snapshot
            for c in commits(entries)
            if c.snapshot.manifest not in on_chain and c.snapshot.manifest != base
        ]
    return tuple(out)
