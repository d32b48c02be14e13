"""The versions that are kept of adopted files, and putting them back.

Owns `runs/<run>/adopted/`: bytes first, durable, then the record that commits them; and the one
way in which a file of the user's tree is replaced (`tree` opens those and puts them aside). Must
not decide what to keep or put back.

    files/00000012-model.pt       the bytes
    records/00000012.json         the record: created only if absent, last
    running                       an attempt runs, or ended without a look at its files
    looked.json                   what lay there at the last look (a cache)
    forgotten                     versions up to this number count no more (--resume never)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from blake3 import blake3

from walrecover.adopt import wholeness
from walrecover.adopt.patterns import Stamp
from walrecover.adopt.tree import (
    NO_LINK,
    Changed,
    NotKept,
    create_file,
    open_file,
    put_aside,
    require_inside,
    require_same,
    thin_asides,
)
from walrecover.adoption import How, Kept, retained
from walrecover.failpoints import failpoint
from walrecover.files import (
    create_if_absent,
    make_directory,
    replace_file,
    sync_directory,
    sync_file,
    write_durably,
)

_FICLONE = 0x40049409
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
ROOM = 2
"""Of a file's size: free space below which no copy of it is begun."""


class Running(msgspec.Struct, frozen=True):
    boot: str


class Put(NamedTuple):
    """A version that lies at its path again; `passed_over`: newer ones that do not verify."""

    kept: Kept
    aside: str
    passed_over: tuple[Kept, ...]


class Store:
    """What is kept of one run's adopted files. `tree` is the working directory. `breathe` is
    called between two pieces of a copy, and may raise to give it up."""

    def __init__(
        self, folder: Path, tree: Path, keep: int, breathe: Callable[[], object] = lambda: None
    ) -> None:
        self.folder, self.tree, self.keep, self.breathe = folder, tree, keep, breathe
        self.files, self.records = folder / "files", folder / "records"

    def create(self) -> None:
        make_directory(self.files)
        make_directory(self.records)

    # --- records --------------------------------------------------------------------------------

    def read(self) -> list[Kept]:
        """Every version that counts, oldest first. A damaged record is no record."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.records.glob("*.json"):
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    found.append(msgspec.json.decode(path.read_bytes(), type=Kept))
        least = self._forgotten()
        return sorted((r for r in found if r.number > least), key=lambda record: record.number)

    def forget(self) -> None:
        """All that is kept now counts no more; its bytes go with the next versions."""
        replace_file(self.folder / "forgotten", str(self._last()).encode())
        sync_file(self.folder / "forgotten")
        sync_directory(self.folder)

    def sweep(self) -> None:
        """Remove bytes without a record: what a keeper that died had begun."""
        numbers = {path.stem for path in self.records.glob("*.json")}
        for path in self.files.iterdir():
            if path.name.split("-")[0] not in numbers:
                path.unlink(missing_ok=True)

    def _forgotten(self) -> int:
        try:
            return int((self.folder / "forgotten").read_text())
        except (OSError, ValueError):
            return 0

    def _last(self) -> int:
        return max((int(path.stem) for path in self.records.glob("*.json")), default=0)

    # --- keeping --------------------------------------------------------------------------------

    def adopt(self, path: str, stamp: Stamp, *, arrived: bool, step: int, trust: str = "") -> Kept:
        """Keep what lies at this path, if it is whole and still what it was; durable on return.

        `arrived`: this very inode came by a rename. `trust`: why a format that shows nothing may
        pass for whole. Where the newest version has the same bytes, that is the answer. Raises
        NotKept, OSError.
        """
        own = [record for record in self.read() if record.path == path]
        temporary = self.files / f".{os.urandom(8).hex()}"
        try:
            with open_file(self.tree / path) as source:
                if Stamp.of(os.fstat(source.fileno())) != stamp:
                    raise Changed(f"{path} is being written")
                mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
                how = self._take(source, temporary, arrived)
                look, digest = self._check(temporary, path, trust)
                require_same(self.tree / path, stamp)
            if own and own[-1].digest == digest:
                return own[-1]
            failpoint("adopt.copied")
            record = Kept(
                number=0,
                path=path,
                bytes=stamp.bytes,
                digest=digest,
                format=look.format,
                assurance=look.assurance,
                how=how,
                mode=mode,
                mtime_ns=stamp.mtime_ns,
                step=step,
            )
            return self._commit(temporary, record)
        finally:
            temporary.unlink(missing_ok=True)

    def _take(self, source: IO[bytes], temporary: Path, arrived: bool) -> How:
        if _reflink(source, temporary):
            return "reflink"
        if arrived and _link(source, temporary):
            return "link"
        self._require_room(os.fstat(source.fileno()).st_size)
        with create_file(temporary) as target:
            while chunk := source.read(wholeness.CHUNK):
                target.write(chunk)
                self.breathe()
        return "copy"

    def _require_room(self, size: int) -> None:
        """A full disk must not be of our making: the script's next file has to fit as well."""
        space = os.statvfs(self.files)
        free = space.f_bavail * space.f_frsize
        if free < ROOM * size:
            raise NotKept(f"a copy takes {size} bytes, and only {free} are free")

    def _check(self, kept: Path, path: str, trust: str) -> tuple[wholeness.Look, str]:
        """The kept bytes, made durable: what they show, and their digest."""
        with open_file(kept) as file:
            look = wholeness.look(file, path, deep=True)
            if look.whole is False:
                raise NotKept(f"{path} {look.reason}", torn=True, format=look.format)
            if look.whole is None:
                look = look._replace(assurance=f"its size: {trust}")
            digest = digest_of(file)
            os.fsync(file.fileno())
        return look, digest

    def _commit(self, temporary: Path, record: Kept) -> Kept:
        number = self._last()
        while True:
            number += 1
            record = msgspec.structs.replace(record, number=number)
            bytes_at = self.bytes_of(record)
            try:
                os.link(temporary, bytes_at, follow_symlinks=False)  # replaces nobody's bytes
            except FileExistsError:
                continue
            sync_directory(self.files)
            failpoint("adopt.named")
            data = msgspec.json.encode(record)
            if create_if_absent(self.records / f"{number:08d}.json", data):
                failpoint("adopt.recorded")
                return record
            bytes_at.unlink()  # a late keeper of an older attempt took the number

    def bytes_of(self, record: Kept) -> Path:
        name = record.path.rpartition("/")[2]
        return self.files / f"{record.number:08d}-{name[-200:]}"

    def thin(self) -> None:
        """Keep the newest of each family: the record goes first, then the bytes."""
        for record in retained(self.read(), self.keep)[1]:
            (self.records / f"{record.number:08d}.json").unlink(missing_ok=True)
            sync_directory(self.records)
            self.bytes_of(record).unlink(missing_ok=True)

    # --- putting back ---------------------------------------------------------------------------

    def put_back(self, record: Kept, found: Stamp | None) -> Put:
        """Put this version, or the newest older one that verifies, at its path; durable on return.

        `found` is what lies there now, to be kept aside; None for nothing. Raises NotKept where
        none verifies, Changed where something else lies there, OSError.
        """
        target = self.tree / record.path
        versions = [r for r in self.read() if r.path == record.path and r.number <= record.number]
        passed_over: list[Kept] = []
        temporary = target.parent / f".{target.name}.walrecover"
        require_inside(target.parent, self.tree)
        os.makedirs(target.parent, exist_ok=True)
        try:
            for version in reversed(versions):
                if self._fill(temporary, version):
                    break
                passed_over.append(version)
            else:
                raise NotKept(f"no version of {record.path} that is kept verifies")
            aside = put_aside(target, found) if found else None
            require_same(target, found, or_gone=found is not None)
            temporary.replace(target)
            failpoint("adopt.restored")
            sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
        if found:
            thin_asides(target, self.keep)
        where = self._relative(aside) if aside else ""
        return Put(version, where, tuple(passed_over))

    def take_away(self, path: str, found: Stamp) -> str:
        """Put aside what lies there, and nothing in its place; where it is now. Raises Changed."""
        target = self.tree / path
        aside = put_aside(target, found)
        require_same(target, found, or_gone=True)
        target.unlink(missing_ok=True)
        sync_directory(target.parent)
        thin_asides(target, self.keep)
        return self._relative(aside)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.tree).as_posix()

    def _fill(self, temporary: Path, version: Kept) -> bool:
        """Write this version's bytes; False where they are not the ones that were kept."""
        temporary.unlink(missing_ok=True)
        try:
            source = open_file(self.bytes_of(version))
        except OSError:
            return False
        with source, create_file(temporary) as target:
            hasher = blake3()
            while chunk := source.read(wholeness.CHUNK):
                hasher.update(chunk)
                target.write(chunk)
            if hasher.hexdigest() != version.digest:
                return False
            target.flush()
            os.fchmod(target.fileno(), version.mode)
            os.utime(target.fileno(), ns=(time.time_ns(), version.mtime_ns))
            os.fsync(target.fileno())
        return True

    # --- what was looked at ---------------------------------------------------------------------

    def running(self) -> Running | None:
        """The mark of an attempt that ended without a look at its files."""
        try:
            return msgspec.json.decode((self.folder / "running").read_bytes(), type=Running)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError:  # torn: by a machine that lost power
            return Running("")

    def mark_running(self, boot: str) -> None:
        (self.folder / "running").unlink(missing_ok=True)
        write_durably(self.folder / "running", msgspec.json.encode(Running(boot)))
        sync_directory(self.folder)

    def mark_settled(self) -> None:
        (self.folder / "running").unlink(missing_ok=True)
        sync_directory(self.folder)

    def looked(self) -> dict[str, Stamp] | None:
        """What lay there at the last look; None where nobody ever looked."""
        try:
            data = (self.folder / "looked.json").read_bytes()
            return msgspec.json.decode(data, type=dict[str, Stamp])
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError:
            return {}

    def note_look(self, stamps: dict[str, Stamp]) -> None:
        replace_file(self.folder / "looked.json", msgspec.json.encode(stamps))


def digest_of(file: IO[bytes]) -> str:
    file.seek(0)
    hasher = blake3()
    while chunk := file.read(wholeness.CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest()


def _reflink(source: IO[bytes], temporary: Path) -> bool:
    with create_file(temporary) as target:
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
            return True
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
    temporary.unlink()
    return False


def _link(source: IO[bytes], temporary: Path) -> bool:
    """Give the opened inode, and no other that took its name meanwhile, a name of ours."""
    fd = source.fileno()
    try:
        # Only with a folder given does Python ask the kernel to follow; the path is absolute.
        os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
        return True
    except OSError as error:
        if error.errno not in NO_LINK and error.errno != errno.ENOENT:
            raise
        return False
