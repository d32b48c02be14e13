"""The judgement of `doctor` on planted facts: each fault is found, by its name and level, and what
works is never called a fault."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from walrecover.errors import BadInput
from walrecover.findings import CHECKS, FAILURE, NOTE, OK, WARNING, examine, preflight
from walrecover.findings.facts import (
    Belongs,
    Clock,
    Facts,
    Gpu,
    Interpreter,
    Limit,
    MountPoint,
    Outcome,
    Place,
    Port,
    Sharing,
    Snapshots,
    Theirs,
)
from walrecover.findings.mounts import Mount, mount_of, parse_mounts
from walrecover.findings.rendezvous import Meeting, meeting_of
from walrecover.findings.sizes import of_manifest, parse_size

GB = 10**9
NOW = 1_800_000_000.0
WORKS = {step: Outcome() for step in ("make", "write", "fsync", "rename", "link", "exclusive")}
DISK = Mount("/data", "/", "ext4", "/dev/sda1", ("rw",), ("rw",))


def failing(step: str, number: int) -> dict[str, Outcome]:
    return {**WORKS, step: Outcome(number, os.strerror(number))}


def place(**changes: Any) -> Place:
    given: dict[str, Any] = {
        "path": "/data/.walrecover",
        "anchor": "/data",
        "mount": DISK,
        "rehearsal": {**WORKS, "direct": Outcome(), "folder": Outcome()},
        "free_bytes": 100 * GB,
        "free_inodes": 10**6,
    }
    return Place(**{**given, **changes})


def python(**changes: Any) -> Interpreter:
    given = {
        "path": "/usr/bin/python3",
        "python": "3.12.1",
        "torch": "2.9.0+cu128",
        "walrecover": "1.0",
        "lmdb": "3.0.0",
    }
    return Interpreter(**{**given, **changes})


def mount(kind: str, root: str = "/", *own: str, point: str = "/data") -> Place:
    return place(mount=Mount(point, root, kind, "source", ("rw",), own))


UNLIMITED = Limit(None, None)
EMPTY = MountPoint("/data", 0, 0, runs=False)


def facts(**changes: Any) -> Facts:
    """A machine on which nothing is wrong, but for the changes."""
    given: dict[str, Any] = {
        "run": place(),
        "user": (1000, "ada"),
        "belongs": Belongs("/data/.walrecover", 1000, "ada"),
        "mount_point": MountPoint("/data", 0, 3, runs=False),
        "sharing": Sharing("", 0, "lab", meant=True),
        "keep": 3,
        "snapshots": Snapshots(GB, 8, "the newest snapshot"),
        "shm": 16 * GB,
        "memory": 4 * GB,
        "clock": Clock(NOW, NOW - 60, NOW, 0.1),
        "limits": {
            **dict.fromkeys(("nofile", "memlock", "fsize", "nproc"), UNLIMITED),
            "core": Limit(0, 0),
        },
        "processes": 100,
        "port": Port(29500, "--master-port", surely=True),
        "gpu": Gpu(1, None, tool=True),
        "interpreter": python(cuda=1),
        "walrecover": "1.0",
        "kernel": "6.1.0",
    }
    return Facts(**{**given, **changes})


def limit(name: str, soft: int, hard: int | None = None) -> dict[str, Any]:
    return {"limits": {name: Limit(soft, hard)}}


def snapshots(free: int, existing: int = 0, inodes: int = 10**6) -> dict[str, Any]:
    known = Snapshots(GB, 8, "the newest snapshot", existing)
    return {"run": place(free_bytes=free, free_inodes=inodes), "snapshots": known}


PLANTED: list[tuple[str, str, str, dict[str, Any]]] = [
    # (what, check, level, facts)
    ("a file in its place", "directory", FAILURE, {"run": place(blocker="/data is a file")}),
    ("read-only", "read-only", FAILURE, {"run": place(rehearsal=failing("make", errno.EROFS))}),
    ("no right", "permission", FAILURE, {"run": place(rehearsal=failing("make", errno.EACCES))}),
    (
        "another user's snapshot",
        "permission",
        FAILURE,
        {"theirs": Theirs("/data/x", "bob", 0o600, "read")},
    ),
    ("an I/O error", "write", FAILURE, {"run": place(rehearsal=failing("write", errno.EIO))}),
    ("full", "full", FAILURE, {"run": place(rehearsal=failing("write", errno.ENOSPC))}),
    ("a quota", "full", FAILURE, {"run": place(rehearsal=failing("write", errno.EDQUOT))}),
    (
        "no inodes",
        "inodes",
        FAILURE,
        {"run": place(rehearsal=failing("make", errno.ENOSPC), free_inodes=0)},
    ),
    ("few inodes", "inodes", WARNING, snapshots(100 * GB, inodes=90)),
    ("room for none", "room", FAILURE, snapshots(GB - 1)),
    ("room for two of four", "room", WARNING, snapshots(2 * GB)),
    ("little, size unknown", "room", WARNING, {"run": place(free_bytes=10**6), "snapshots": None}),
    (
        "a quota on the snapshots",
        "room",
        WARNING,
        {"run": place(reserve=Outcome(errno.EDQUOT, "Disk quota exceeded"))},
    ),
    ("a failing fsync", "fsync", FAILURE, {"run": place(rehearsal=failing("fsync", errno.EIO))}),
    ("no fsync of a folder", "fsync", FAILURE, {"run": place(rehearsal=failing("folder", 22))}),
    ("no hard links", "link", FAILURE, {"run": place(rehearsal=failing("link", errno.EPERM))}),
    ("links that replace", "link", FAILURE, {"run": place(rehearsal=failing("exclusive", 17))}),
    ("no rename", "rename", FAILURE, {"run": place(rehearsal=failing("rename", errno.EPERM))}),
    ("no O_DIRECT", "direct", NOTE, {"run": place(rehearsal=failing("direct", errno.EINVAL))}),
    ("tmpfs", "volatile", FAILURE, {"run": mount("tmpfs")}),
    ("ramfs", "volatile", FAILURE, {"run": mount("ramfs")}),
    ("journals in memory", "volatile", WARNING, {"journal": mount("tmpfs")}),
    (
        "a container's own layer",
        "layer",
        WARNING,
        {"run": mount("overlay", point="/")},
    ),
    (
        "a container's own layer on ZFS",
        "layer",
        WARNING,
        {"run": place(mount=Mount("/", "/", "zfs", "tank/docker/3f", ("rw",)))},
    ),
    (
        "a disk of its own, and the mark of a container",
        "layer",
        NOTE,
        {"run": mount("ext4", point="/"), "container": "/.dockerenv is there"},
    ),
    ("emptyDir", "layer", WARNING, {"run": mount("ext4", "/pods/1/kubernetes.io~empty-dir/x")}),
    ("an overlay", "layer", NOTE, {"run": mount("overlay", "/", "upperdir=/upper")}),
    (
        "an empty bind of root's",
        "bind",
        WARNING,
        {"run": mount("ext4", "/srv/dta"), "mount_point": EMPTY},
    ),
    (
        "an empty bind of a user's",
        "bind",
        NOTE,
        {"run": mount("ext4", "/srv/dta"), "mount_point": MountPoint("/data", 7, 0, runs=False)},
    ),
    ("no barriers", "unsafe-mount", WARNING, {"run": mount("ext4", "/", "nobarrier")}),
    ("a volatile overlay", "unsafe-mount", WARNING, {"run": mount("overlay", "/", "volatile")}),
    ("journals on NFS", "network", FAILURE, {"run": mount("nfs4")}),
    ("--journal-dir on Lustre", "network", FAILURE, {"journal": mount("lustre")}),
    ("journals on FUSE", "network", WARNING, {"run": mount("fuse.sshfs")}),
    ("another's run", "owner", WARNING, {"belongs": Belongs("/data/.walrecover", 0, "root")}),
    ("private", "group", NOTE, {"sharing": Sharing("/data/r", 0o700, "lab", meant=False)}),
    (
        "private in a shared folder",
        "group",
        WARNING,
        {"sharing": Sharing("/data/r", 0o700, "lab", meant=True)},
    ),
    ("no size", "size", NOTE, {"snapshots": None}),
    ("docker's shm", "shm", WARNING, {"shm": 64 << 20}),
    ("no shm", "shm", WARNING, {"shm": 0}),
    ("small shm", "shm", NOTE, {"shm": 512 << 20}),
    ("little memory", "memory", NOTE, {"memory": 3 * GB}),
    ("a clock of 1970", "clock", WARNING, {"clock": Clock(100.0)}),
    ("a clock behind the journal", "clock", WARNING, {"clock": Clock(NOW, NOW + 60)}),
    ("another clock on the storage", "clock", WARNING, {"clock": Clock(NOW, None, NOW - 60)}),
    ("a monotonic clock that is none", "clock", WARNING, {"clock": Clock(NOW, monotonic=-1.0)}),
    ("few open files", "nofile", WARNING, limit("nofile", 256, 4096)),
    ("little locked memory", "memlock", NOTE, limit("memlock", 64 << 10)),
    ("small files", "fsize", FAILURE, limit("fsize", GB // 2)),
    ("files no larger than 4 GB", "fsize", WARNING, limit("fsize", 4 * GB)),
    ("few processes", "nproc", WARNING, limit("nproc", 120)),
    ("core files", "core", NOTE, {"limits": {"core": UNLIMITED}}),
    ("a used port", "port", WARNING, {"port": Port(29400, "x", surely=True, taken="in use")}),
    ("a used default port", "port", NOTE, {"port": Port(29500, "x", surely=False, taken="in use")}),
    ("GPUs hidden", "gpu", NOTE, {"gpu": Gpu(2, "", tool=True), "interpreter": None}),
    ("more GPUs named than there are", "gpu", WARNING, {"gpu": Gpu(1, "0,1", tool=True)}),
    ("a GPU that torch does not see", "gpu", WARNING, {"interpreter": python(cuda=0)}),
    ("torch cannot say", "gpu", WARNING, {"interpreter": python(cuda_error="timed out")}),
    ("a tool and no device", "gpu", WARNING, {"gpu": Gpu(0, None, tool=True)}),
    ("no pidfd", "kernel", FAILURE, {"pidfd": "Function not implemented"}),
    ("no Python", "python", WARNING, {"interpreter": Interpreter("/x", error="not executable")}),
    ("an old Python", "python", FAILURE, {"interpreter": python(python="3.9.2")}),
    ("no torch", "torch", WARNING, {"interpreter": python(torch="")}),
    ("an old torch", "torch", FAILURE, {"interpreter": python(torch="2.3.1")}),
    ("no lmdb", "lmdb", WARNING, {"interpreter": python(lmdb="")}),
    ("an old lmdb", "lmdb", FAILURE, {"interpreter": python(lmdb="1.4.1")}),
    ("another walrecover", "walrecover", WARNING, {"interpreter": python(walrecover="0.9")}),
    ("no walrecover", "walrecover", WARNING, {"interpreter": python(walrecover="")}),
    ("no such command", "command", FAILURE, {"command": "foo: command not found"}),
]


@pytest.mark.parametrize(
    ("check", "level", "changes"), [item[1:] for item in PLANTED], ids=[item[0] for item in PLANTED]
)
def test_a_planted_fault_is_found(check: str, level: str, changes: dict[str, Any]) -> None:
    found = [f for f in examine(facts(**changes)) if f.check == check and f.level != OK]
    assert [f.level for f in found] == [level]
    assert found[0].consequence == CHECKS[check].consequence
    assert found[0].remedy == CHECKS[check].remedy


def test_every_check_has_a_planted_fault() -> None:
    assert {check for _, check, _, _ in PLANTED} == set(CHECKS)


def test_where_nothing_is_wrong_nothing_is_found() -> None:
    found = examine(facts())
    assert [str(f) for f in found if f.level != OK] == []
    assert all((f.consequence, f.remedy) == ("", "") for f in found)
    assert len(found) > 20


@pytest.mark.parametrize(
    "changes",
    [
        snapshots(GB, existing=3),  # three are there: only the one in the making is missing
        {"run": mount("btrfs", "/@data", "subvol=/@data"), "mount_point": EMPTY},
        {"run": mount("ext4", "/docker/volumes/v/_data"), "mount_point": EMPTY},
        {"run": mount("ext4", "/srv"), "mount_point": MountPoint("/data", 0, 0, runs=True)},
        {"run": place(counts_inodes=False, free_inodes=0)},
        {"run": mount("nfs"), "journal": place()},
        {"gpu": Gpu(0, None, tool=False), "interpreter": python(cuda=0)},
        {"gpu": Gpu(0, "-1", tool=False)},
    ],
)  # fmt: skip
def test_what_works_is_no_fault(changes: dict[str, Any]) -> None:
    assert [str(f) for f in examine(facts(**changes)) if f.level != OK] == []


STOPPING = {"directory", "read-only", "permission", "write", "full", "inodes", "link"}
STOPPING |= {"rename", "kernel"}


@pytest.mark.parametrize(
    ("check", "level", "changes"), [item[1:] for item in PLANTED], ids=[item[0] for item in PLANTED]
)
def test_a_preflight_stops_only_what_cannot_begin(
    check: str, level: str, changes: dict[str, Any]
) -> None:
    verdict = preflight(examine(facts(**changes)))
    stops = [f.check for f in verdict.stops]
    assert stops == ([check] if check in STOPPING and level == FAILURE else [])
    assert all(f.level == WARNING for f in verdict.says)
    if not stops and level in (WARNING, FAILURE):
        assert [f.check for f in verdict.says] == ([check] if CHECKS[check].preflight else [])


# --- mounts -------------------------------------------------------------------------------------

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:27 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw,size=24683656k
31 27 254:0 /srv/my\040data /mnt/my\040data ro,relatime master:1 - ext4 /dev/vda rw
32 27 0:40 / /mnt/late rw - nfs4 host:/x rw,vers=4.2
33 27 0:41 / /mnt/late rw - tmpfs over rw
not a line
"""


@pytest.mark.parametrize(
    ("path", "kind", "root"),
    [
        ("/home/ada", "ext4", "/"),
        ("/dev/shm/x/y", "tmpfs", "/"),
        ("/dev/shmore", "ext4", "/"),
        ("/mnt/my data/run", "ext4", "/srv/my data"),
        ("/mnt/late", "tmpfs", "/"),  # the last mount hides those below it
    ],
)
def test_a_path_lies_on_its_deepest_and_newest_mount(path: str, kind: str, root: str) -> None:
    found = mount_of(parse_mounts(MOUNTINFO), path)
    assert found is not None
    assert (found.kind, found.root) == (kind, root)
    assert found.is_bind == (root != "/")


def test_the_options_of_mount_and_file_system_are_both_read() -> None:
    found = parse_mounts(MOUNTINFO)
    assert [m.read_only for m in found] == [False, False, False, True, False, False]
    assert (found[2].option("size"), found[4].option("vers"), found[1].option("no")) == (
        "24683656k",
        "4.2",
        "",
    )


# --- the port -----------------------------------------------------------------------------------

DEFAULT = Meeting("127.0.0.1", 29500, "torchrun's default", surely=False)


@pytest.mark.parametrize(
    ("line", "environ", "meeting"),
    [
        ("torchrun train.py", {}, DEFAULT),
        ("torchrun --nproc-per-node 2 train.py --master-port 1", {}, DEFAULT),
        ("python -m torch.distributed.run train.py", {}, DEFAULT),
        ("/venv/bin/torchrun -m pkg.train", {}, DEFAULT),
        ("torchrun --nnodes=1:4 t.py", {}, DEFAULT._replace(surely=True)),
        ("torchrun --nnodes=2 --node_rank=1 t.py", {}, None),
        ("torchrun --standalone --nproc_per_node 2 t.py", {}, None),
        ("torchrun --master_port 2000 t.py", {}, Meeting("127.0.0.1", 2000, "--master-port")),
        ("torchrun t.py", {"PET_MASTER_PORT": "2001"}, Meeting("127.0.0.1", 2001, "--master-port")),
        ("torchrun --master-addr h --master-port 2 t.py", {}, Meeting("h", 2, "--master-port")),
        (
            "torchrun --rdzv-backend c10d --rdzv-endpoint=h:3 t.py",
            {},
            Meeting("h", 3, "--rdzv-endpoint"),
        ),
        (
            "torchrun --rdzv-backend=c10d --rdzv-endpoint h t.py",
            {},
            Meeting("h", 29400, "--rdzv-endpoint"),
        ),
        ("torchrun --rdzv-backend=c10d --rdzv-endpoint localhost:0 t.py", {}, None),
        ("torchrun --rdzv-backend=etcd-v2 --rdzv-endpoint e:2379 t.py", {}, None),
        ("python train.py", {}, None),
        (
            "python train.py",
            {"MASTER_PORT": "4", "MASTER_ADDR": "h"},
            Meeting("h", 4, "MASTER_PORT"),
        ),
        ("python train.py", {"MASTER_PORT": "4", "RANK": "1"}, None),
        ("python train.py torchrun", {}, None),
        ("", {}, None),
    ],
)
def test_the_port_is_read_from_the_command(
    line: str, environ: dict[str, str], meeting: Meeting | None
) -> None:
    assert meeting_of(line.split(), environ) == meeting


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("1.5 kb", 1500), ("7b", 7)]
)
def test_a_size_has_a_unit(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "7", "-1GB", "GB", "0GB", "1XB", "1e3MB", "nan GB"])
def test_a_size_without_one_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match="give a number and its unit"):
        parse_size(text)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"parts": 1}', b'{"parts":[{"files":[]}]}'])
def test_a_damaged_manifest_gives_no_size(data: bytes) -> None:
    with pytest.raises(ValueError):
        of_manifest(data)
