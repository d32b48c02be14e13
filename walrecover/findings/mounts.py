"""What /proc/self/mountinfo says: which file system a path lies on, and of what kind.

Owns reading its lines (proc(5)) and the names of file systems; judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

VOLATILE = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs"})

NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "panfs"),
        *("afs", "9p", "virtiofs", "glusterfs", "orangefs", "ocfs2", "gfs2", "wekafs", "vboxsf"),
    }
)
"""Others than fuse, whose kinds are `fuse` and `fuse.NAME`."""

LAYERED = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})


class Mount(msgspec.Struct, frozen=True):
    """One line. `root`: which directory of the file system is mounted at `point`."""

    point: str
    root: str
    kind: str
    source: str
    options: tuple[str, ...]
    own_options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.own_options

    @property
    def is_bind(self) -> bool:
        """Whether a directory of a file system was mounted, not all of it. A subvolume of btrfs
        is what was asked for, and a bind of a whole file system cannot be told from a mount."""
        return self.root != "/" and f"subvol={self.root}" not in self.own_options

    @property
    def is_layer(self) -> bool:
        """Whether this is what the layers of an image are laid over one another with: by its
        kind, or by the folder or data set in which a container's engine keeps them."""
        return self.kind in LAYERED or any(
            re.search(r"(^|/)(docker|containerd?|containers)/", text)
            for text in (self.root, self.source)
        )

    @property
    def is_network(self) -> bool:
        return self.kind in NETWORK or self.is_fuse

    @property
    def is_fuse(self) -> bool:
        return self.kind == "fuse" or self.kind.startswith("fuse.")

    def option(self, name: str) -> str:
        """The value of an option of the file system, "" where it is not given."""
        for item in self.own_options:
            key, _, value = item.partition("=")
            if key == name:
                return value
        return ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.source} at {self.point})"


def parse_mounts(text: str) -> list[Mount]:
    """The lines that can be read, in the order of mounting."""
    found = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        left, right = fields.split(" "), rest.split(" ")
        if len(left) < 6 or len(right) < 2:
            continue
        own = tuple(right[2].split(",")) if len(right) > 2 else ()
        point, root = _plain(left[4]), _plain(left[3])
        found.append(Mount(point, root, right[0], _plain(right[1]), tuple(left[5].split(",")), own))
    return found


def mount_of(mounts: Sequence[Mount], path: str) -> Mount | None:
    """Where an absolute path without links lies: the deepest mount, of those the last."""
    best: Mount | None = None
    for mount in mounts:
        prefix = mount.point.rstrip("/") + "/"
        inside = path == mount.point or path.startswith(prefix)
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _plain(text: str) -> str:
    """The kernel writes blanks, newlines and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
