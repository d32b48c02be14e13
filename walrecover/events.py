"""The events of a run: immutable records of something that happened, in the past tense.

Owns the types and their wire form (one msgpack map each, `type` first); the envelope around them
is `codec`'s, their meaning `state`'s. Adding an optional field or a type changes no format: a
type that this release does not know is kept as `Unknown` and skipped by the fold.

Units: steps are counted from 1 (step n is the n-th completed optimizer step), times are seconds,
`at` is Unix time, shown and added up and never decided upon, digests are raw bytes (xxh3-128 of
small states, blake3 of files), learning rates and scalars are float64, which holds every float32,
float16 and bfloat16 exactly (so equal values are equal bits).
"""

from __future__ import annotations

from typing import Any

import msgspec

from walrecover.consumed import Consumed, Ranges
from walrecover.entries import Plan
from walrecover.errors import Corrupt


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, kw_only=True, gc=False):
    at: float = 0.0


class Code(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ran: recorded at every attempt, compared on resume. `inexact`: what of it need not give
    the same bits twice."""

    argv: tuple[str, ...] = ()
    commit: str = ""
    dirty: str = ""
    python: str = ""
    libraries: dict[str, str] = {}
    threads: int = 0
    cpu: str = ""
    world: int = 1
    environment: dict[str, str] = {}
    inexact: tuple[str, ...] = ()


class AttemptBegun(_Event, frozen=True):
    """A writer opened its stream. First event of every stream."""

    run: str
    attempt: int
    nonce: str
    writer: str
    rank: int | None = None
    world: int = 1
    host: str = ""
    pid: int = 0
    code: Code | None = None


class StepCompleted(_Event, frozen=True):
    """One optimizer step is done and nothing half-done is left.

    `position`: items consumed by each active loop, outermost first. `consumed`: what it took of
    which reader. `batch`, `state`, `rng`: digests, the last by generator, only those that moved
    since the step before.
    """

    step: int
    epoch: int = 0
    position: tuple[int, ...] = ()
    lr: tuple[float, ...] = ()
    scalars: dict[str, float] = {}
    rng: dict[str, bytes] = {}
    consumed: tuple[Consumed, ...] = ()
    batch: bytes | None = None
    state: bytes | None = None
    grad_norm: float | None = None


class DataOpened(_Event, frozen=True):
    """What a reader of this attempt reads: once before its first step, and when it changes.

    `source`: its number. `loop`: the place of its `run.loop` among the script's, outermost first.
    `kind`: what a position is: "global" (a sample, in an order that all ranks share), "sample" (a
    sample, in the order of this rank's own sampler), "batch" or "item" (what a loader or an
    iterable of this rank gives). `length`: of one pass, None where it is not known. `batch`:
    samples of one batch, of all ranks together where the order is global; 0 for none. `seed`: of
    the order. `digest`: what else the order depends on. `dropped`: samples that no pass has, as
    drop_last leaves them out. `keyed`: randomness in the loader's
    workers is a function of the position. `world`: how many ranks share the order.
    """

    source: int
    loop: tuple[int, ...] = ()
    kind: str = ""
    length: int | None = None
    batch: int = 0
    seed: int | None = None
    digest: bytes | None = None
    dropped: int = 0
    keyed: bool = False
    world: int = 1


class PassEnded(_Event, frozen=True):
    """A pass over a reader is over on this rank, `step` steps being complete.

    `broken`: the script left it by break. `left`: positions that were handed out after the last
    step, as in a last accumulation that is not full.
    """

    step: int
    source: int
    epoch: int = 0
    broken: bool = False
    left: Ranges = ()


class ScalarsArrived(_Event, frozen=True):
    """Scalars of an earlier step that lay on a device when it completed."""

    step: int
    scalars: dict[str, float]


class WrittenFile(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    bytes: int
    digest: str


class ShardsWritten(_Event, frozen=True):
    """This rank's files of a snapshot are durable, and its vote is cast. `state`: the digest of
    each attached object's whole state, by its name."""

    step: int
    files: tuple[WrittenFile, ...]
    end: bool = False
    seconds: float = 0.0
    state: dict[str, bytes] = {}


class SnapshotCommitted(_Event, frozen=True):
    """A note: the sequence committed the snapshot. Nothing depends on this event."""

    step: int
    manifest: str
    end: bool = False


class SnapshotVerified(_Event, frozen=True):
    """The snapshot was read back from its files, and every digest held."""

    step: int
    manifest: str
    end: bool = False


class SnapshotAbandoned(_Event, frozen=True):
    """A capture that will never commit, and why. The last commit stands."""

    step: int
    reason: str
    end: bool = False


class SnapshotsRetired(_Event, frozen=True):
    names: tuple[str, ...]


class PaceSet(_Event, frozen=True):
    """From this step on, multiples of `every` are captured: about one in `seconds`.

    Where that follows from them: `cost`: seconds that a capture takes from the loop; `between`:
    seconds from one failure to the next.
    """

    from_step: int
    every: int
    seconds: float = 0.0
    cost: float = 0.0
    between: float = 0.0


class ArenaRefused(_Event, frozen=True):
    """No capture is kept in memory any more in this attempt, and why: they go to disk only."""

    reason: str


class LoopStalled(_Event, frozen=True):
    """For so long, until `at`, the training loop stood still for this step's capture: as the loop
    saw it, on its monotonic clock. `commit`: not for the capture, for its commit to be durable."""

    step: int
    seconds: float
    end: bool = False
    commit: bool = False


class RecoveryPlanned(_Event, frozen=True):
    """Recovery chose what the next attempt restores, and says what it passed over."""

    plan: Plan
    last_step: int = 0
    lost_steps: int = 0
    losses: tuple[str, ...] = ()
    seconds: float = 0.0


class PlanFailed(_Event, frozen=True):
    """This rank could not restore the plan's base."""

    reason: str


class ConfigurationChanged(_Event, frozen=True):
    differences: tuple[str, ...]


class StateRepaired(_Event, frozen=True):
    """By order of a person, this rank restored these objects as another rank had saved them."""

    step: int
    names: tuple[str, ...]
    from_rank: int
    reason: str


class Resumed(_Event, frozen=True):
    """This rank stands at the plan's step, every object restored.

    Where another number of ranks had saved it: `saved_by`, how many; `source`, whose position and
    values this rank took; `drawn_anew`, the digests of the generators' states that were begun anew
    for this rank. `arena`, `disk`: the bytes of tensors that came from the arena of the attempt
    before, and from snapshots; `refused`: why that arena, which was offered, was not used.
    """

    step: int
    seconds: float = 0.0
    saved_by: int = 0
    source: int = 0
    drawn_anew: dict[str, bytes] = {}
    arena: int = 0
    disk: int = 0
    refused: str = ""


class ResumeVerified(_Event, frozen=True):
    """What this rank did again after a resume equals what the journal holds of the first time.

    `from_step`, `to_step`: the first and the last step compared; both 0 where nothing was done
    twice. `restored`: one digest of the state given back after step `base`, equal to the
    snapshot's; where nothing was done twice, it is the proof. `states`: steps at which both
    histories captured the whole state, and it was equal. `tier`: "exact" (the bits), or "tolerant",
    with `why` and the relative `bound` of losses.
    """

    base: int
    tier: str
    from_step: int = 0
    to_step: int = 0
    restored: bytes | None = None
    states: tuple[int, ...] = ()
    why: tuple[str, ...] = ()
    bound: float = 0.0


class ResumeDiverged(_Event, frozen=True):
    """The first thing in which this rank's resumed history is another one than before.

    `step`: where; the snapshot's own step where the state given back was not the one saved. `what`:
    the cause comes before its effects. `before`: as it was; `after`: as it is now. `attempt`: the
    one that it was compared with.
    """

    step: int
    what: str
    before: str
    after: str
    attempt: int = 0
    tier: str = "exact"
    why: tuple[str, ...] = ()
    bound: float = 0.0


class ResumeUnproven(_Event, frozen=True):
    """Nothing proves this resume, or refutes it."""

    reason: str


class PlaceReached(_Event, frozen=True):
    """The script is back at the place in its loops that the snapshot was taken at, and every object
    restored once more: from now on it trains."""

    step: int


class StopAnnounced(_Event, frozen=True):
    """All ranks stop at this step's boundary."""

    step: int
    signal: int


class RunStopped(_Event, frozen=True):
    """The run was asked to stop, and its state at this step is durable."""

    step: int
    signal: int = 0


class RunFinished(_Event, frozen=True):
    step: int


class ModulesImported(_Event, frozen=True):
    """What this rank's process had imported at its first completed step, in order: only modules
    that are installed, none of the script's own. `environment`: names of the variables that
    differ from those the process was started with."""

    names: tuple[str, ...]
    environment: tuple[str, ...] = ()


class WorkerStarted(_Event, frozen=True):
    """`standby`: what kind of standby took over ("imported", "parked"); "" for a cold start."""

    pid: int
    argv: tuple[str, ...] = ()
    standby: str = ""


class WorkerExited(_Event, frozen=True):
    """The child of a supervisor ended. `cause` is its class, `evidence` what is known.

    `fingerprint`: equal for ends that are the same one again; `step`: the last completed one where
    it happened. `artefacts`: files that tell more (stacks), below the run's folder. `seen`: when
    the end was noticed, in Unix time: before what was left was ended, and asked for its cause.
    """

    pid: int
    code: int | None = None
    signal: int | None = None
    cause: str = ""
    evidence: str = ""
    seconds: float = 0.0
    fingerprint: str = ""
    artefacts: tuple[str, ...] = ()
    step: int = 0
    seen: float = 0.0


class ExceptionRaised(_Event, frozen=True):
    """An exception ends this rank's script: what its process said of itself on the way out.

    `kind`: the type's qualified name; `bases`: those of its bases, nearest first. `file`, `line`,
    `function`: the innermost frame of the user's own code. `step`: the last completed one.
    `fetching`: it came out of a loop's iterable, not out of the body.
    """

    kind: str
    message: str = ""
    bases: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    function: str = ""
    step: int = 0
    fetching: bool = False


class SalvageTried(_Event, frozen=True):
    """On this rank's way out: whether the state of its last completed step became a snapshot, and
    if not why. `stands`: the step of the last commit."""

    step: int
    saved: bool
    reason: str = ""
    stands: int = 0


class RestartDecided(_Event, frozen=True):
    """What follows the end. `environment`: variables that the next attempt finds changed."""

    action: str
    delay: float
    reason: str
    environment: dict[str, str] = {}


class FileAdopted(_Event, frozen=True):
    """A checkpoint file that the script wrote is whole, and kept (`--adopt`).

    `assurance`: what was checked. `how` it is kept: reflink, link or copy. `step`: about how many
    optimizer steps had been made.
    """

    path: str
    number: int
    bytes: int
    digest: str
    assurance: str = ""
    how: str = ""
    step: int = 0
    seconds: float = 0.0


class FileRejected(_Event, frozen=True):
    """A checkpoint file is not whole, or could not be kept, and why. `aside`: where it is now."""

    path: str
    reason: str
    bytes: int = 0
    aside: str = ""


class FileRestored(_Event, frozen=True):
    """The kept version of this number lies at its path again. `aside`: what lay there before."""

    path: str
    number: int
    digest: str
    reason: str = ""
    aside: str = ""


class PhaseTimes(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long one phase took, in seconds: how often, and the two longest."""

    count: int = 0
    median: float = 0.0
    longest: float = 0.0
    second: float = 0.0


class PhasesMeasured(_Event, frozen=True):
    """What the supervisor has learned so far of how long the phases take."""

    phases: dict[str, PhaseTimes]


class HangDetected(_Event, frozen=True):
    """A rank stood still for too long; nothing has been ended for it yet.

    `rank`: the slowest one, None where none had attached. `seconds`: for how long; `limit`: for
    how long it may. `artefacts`: the stacks, below the run's folder.
    """

    phase: str
    seconds: float
    limit: float
    rank: int | None = None
    step: int = 0
    reason: str = ""
    artefacts: tuple[str, ...] = ()


class Unknown(msgspec.Struct, frozen=True):
    """An event of a newer release: kept, skipped by the fold."""

    type: str
    fields: dict[str, Any]


Event = (
    AttemptBegun
    | StepCompleted
    | DataOpened
    | PassEnded
    | ScalarsArrived
    | ShardsWritten
    | SnapshotCommitted
    | SnapshotVerified
    | SnapshotAbandoned
    | SnapshotsRetired
    | PaceSet
    | LoopStalled
    | ArenaRefused
    | RecoveryPlanned
    | PlanFailed
    | ConfigurationChanged
    | StateRepaired
    | Resumed
    | PlaceReached
    | ResumeVerified
    | ResumeDiverged
    | ResumeUnproven
    | StopAnnounced
    | RunStopped
    | RunFinished
    | ModulesImported
    | WorkerStarted
    | WorkerExited
    | ExceptionRaised
    | SalvageTried
    | RestartDecided
    | FileAdopted
    | FileRejected
    | FileRestored
    | PhasesMeasured
    | HangDetected
)

EVENT_TYPES: tuple[type[_Event], ...] = Event.__args__
_NAMES = frozenset(kind.__name__ for kind in EVENT_TYPES)
_decoder = msgspec.msgpack.Decoder(Event)
_encode = msgspec.msgpack.Encoder().encode
_decode = _decoder.decode


def encode(event: Event) -> bytes:
    """The event as one msgpack map."""
    return _encode(event)


def decode(payload: bytes) -> Event | Unknown:
    """The event in these bytes. Raises Corrupt where a known type does not hold what it must."""
    try:
        event: Event = _decode(payload)
        return event
    except msgspec.ValidationError as error:
        return _unknown(payload, error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"not an event: {error}") from None


def _unknown(payload: bytes, error: Exception) -> Unknown:
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = None
    kind = fields.get("type") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind in _NAMES:
        raise Corrupt(f"not an event: {error}")
    return Unknown(kind, fields)
