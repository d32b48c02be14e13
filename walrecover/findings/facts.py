"""What `doctor` found out, as plain data: the only input of every judgement.

Owns the shapes; `walrecover.doctor` fills them, `examine` reads them. None means "not asked" (a
preflight asks less), never "not there".
"""

from __future__ import annotations

import msgspec

from walrecover.findings.mounts import Mount


class Outcome(msgspec.Struct, frozen=True):
    """How one step of the rehearsal ended: errno 0 where it worked."""

    errno: int = 0
    error: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that a run is to use. `anchor`: the directory itself, or the nearest one above
    it that exists. `blocker`: why it cannot be made. `rehearsal`: the steps that were tried in
    `anchor`, up to the first that failed; `reserve`: asking for the room of its snapshots."""

    path: str
    anchor: str
    blocker: str = ""
    mount: Mount | None = None
    rehearsal: dict[str, Outcome] = {}
    reserve: Outcome = Outcome()
    free_bytes: int | None = None
    free_inodes: int | None = None
    counts_inodes: bool = True


class MountPoint(msgspec.Struct, frozen=True):
    """The directory where the run's file system is mounted. `others`: entries in it beside the
    run directory on this path; `runs`: whether there are runs in it already."""

    path: str
    owner: int
    others: int
    runs: bool


class Belongs(msgspec.Struct, frozen=True):
    """A folder that is in use already, and whose it is."""

    path: str
    uid: int
    name: str


class Theirs(msgspec.Struct, frozen=True):
    """A file or folder of the run that this user cannot use: `wants` is read or write."""

    path: str
    owner: str
    mode: int
    wants: str


class Sharing(msgspec.Struct, frozen=True):
    """What another user of the group meets: the first folder or file that keeps them out, and
    whether the folder above is meant for the group (its set-group-ID bit is set, or the group
    may write). `made`: whether the run is there yet."""

    closed: str
    mode: int
    group: str
    meant: bool
    made: bool = True


class Snapshots(msgspec.Struct, frozen=True):
    """What a snapshot of this run needs, from where that is known, and how many there are."""

    bytes: int
    files: int
    source: str
    existing: int = 0


class Limit(msgspec.Struct, frozen=True):
    """A soft and a hard limit; None is unlimited."""

    soft: int | None
    hard: int | None


class Clock(msgspec.Struct, frozen=True):
    """`now` by the system's clock; `newest`: of the run's newest decision; `storage`: by the clock
    of the file system, read at the same time; `monotonic`: seconds that went by meanwhile."""

    now: float
    newest: float | None = None
    storage: float | None = None
    monotonic: float = 0.0


class Port(msgspec.Struct, frozen=True):
    """The port that the ranks meet at. `surely`: they will bind this one. `taken`: why it cannot
    be bound, by whom where that can be seen."""

    number: int
    source: str
    surely: bool
    taken: str = ""
    holder: str = ""


class Gpu(msgspec.Struct, frozen=True):
    """`devices`: of /dev/nvidiaN; `visible`: CUDA_VISIBLE_DEVICES; `tool`: nvidia-smi is there."""

    devices: int
    visible: str | None
    tool: bool


class Interpreter(msgspec.Struct, frozen=True):
    """The Python that the command runs with. Versions are "" where a package is not there;
    `error`: why it could not be asked. `cuda`: how many devices torch sees, None if not asked;
    `cuda_error`: why torch could not say."""

    path: str
    python: str = ""
    torch: str = ""
    walrecover: str = ""
    lmdb: str = ""
    error: str = ""
    cuda: int | None = None
    cuda_error: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known. `user` is (uid, name); `container`: why this looks like one, or "";
    `memory`: bytes that can be taken without harm; `pidfd`: why the kernel gives none; `command`:
    why it cannot be run. `walrecover`: this release."""

    run: Place
    journal: Place | None = None
    user: tuple[int, str] = (0, "root")
    belongs: Belongs | None = None
    container: str = ""
    mount_point: MountPoint | None = None
    theirs: Theirs | None = None
    sharing: Sharing | None = None
    keep: int = 3
    snapshots: Snapshots | None = None
    shm: int | None = None
    memory: int | None = None
    clock: Clock | None = None
    limits: dict[str, Limit] = {}
    processes: int = 0
    port: Port | None = None
    gpu: Gpu | None = None
    interpreter: Interpreter | None = None
    walrecover: str = ""
    kernel: str = ""
    pidfd: str = ""
    command: str = ""
