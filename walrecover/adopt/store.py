"""The versions that are kept of adopted files, and putting them back.

Owns `runs/<run>/adopted/`: bytes first, durable, then the record that commits them; and the one
way in which a file of the user's tree is replaced. Must not decide what to keep or put back.

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
from walrecover.adopt.patterns import ASIDE, Stamp
from walrecover.adoption import How, Kept, retained
from walrecover.errors import WalrecoverError
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
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
ROOM = 2
"""Of a file's size: free space below which no copy of it is begun."""


class NotKept(WalrecoverError):
    """This version cannot be kept. `torn`: because it is not whole."""

    def __init__(self, message: str, *, torn: bool = False, format: str = "opaque") -> None:
        super().__init__(message)
        self.torn, self.format = torn, format


class Changed(NotKept):
    """The file is another one than when it was looked at: somebody writes it."""


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
            with _open(self.tree / path) as source:
                if Stamp.of(os.fstat(source.fileno())) != stamp:
                    raise Changed(f"{path} is being written")
                mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
                how = self._take(source, temporary, arrived)
                look, digest = self._check(temporary, path, trust)
                _require_same(self.tree / path, stamp)
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
        with _create(temporary) as target:
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
        with _open(kept) as file:
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
        _require_inside(target.parent, self.tree)
        os.makedirs(target.parent, exist_ok=True)
        try:
            for version in reversed(versions):
                if self._fill(temporary, version):
                    break
                passed_over.append(version)
            else:
                raise NotKept(f"no version of {record.path} that is kept verifies")
            aside = self.put_aside(record.path, found) if found else ""
            _require_same(target, found, or_gone=bool(aside))
            temporary.replace(target)
            failpoint("adopt.restored")
            sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
        if found:
            self._take_old_asides(record.path)
        return Put(version, aside, tuple(passed_over))

    def _fill(self, temporary: Path, version: Kept) -> bool:
        """Write this version's bytes; False where they are not the ones that were kept."""
        temporary.unlink(missing_ok=True)
        try:
            source = _open(self.bytes_of(version))
        except OSError:
            return False
        with source, _create(temporary) as target:
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

    def put_aside(self, path: str, found: Stamp) -> str:
        """Give what lies there a second name beside its own; the same one if it has one already.
        Where there are no hard links, that is its only one from then on. Raises Changed."""
        target = self.tree / path
        _require_same(target, found)
        taken = _asides(target)
        for aside in taken:
            if aside.stat().st_ino == found.inode:
                return self._relative(aside)
        number = 1 + max((_number(aside) for aside in taken), default=0)
        aside = target.with_name(f"{target.name}{ASIDE}{number}")
        try:
            os.link(target, aside, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            target.rename(aside)
        sync_directory(target.parent)
        failpoint("adopt.aside")
        return self._relative(aside)

    def remove(self, path: str, found: Stamp) -> None:
        """Take the name of what was put aside. Raises Changed."""
        target = self.tree / path
        _require_same(target, found, or_gone=True)
        target.unlink(missing_ok=True)
        sync_directory(target.parent)
        self._take_old_asides(path)

    def _take_old_asides(self, path: str) -> None:
        taken = sorted(_asides(self.tree / path), key=_number)
        for aside in taken[: -self.keep]:
            aside.unlink(missing_ok=True)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.tree).as_posix()

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


def open_stamped(path: Path) -> tuple[IO[bytes], Stamp]:
    file = _open(path)
    return file, Stamp.of(os.fstat(file.fileno()))


def _open(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags), "rb")


def _create(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _reflink(source: IO[bytes], temporary: Path) -> bool:
    with _create(temporary) as target:
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
        if error.errno not in _NO_LINK and error.errno != errno.ENOENT:
            raise
        return False


def _require_same(path: Path, stamp: Stamp | None, *, or_gone: bool = False) -> None:
    try:
        now: Stamp | None = Stamp.of(os.lstat(path))
    except FileNotFoundError:
        now = None
    if now != stamp and not (or_gone and now is None):
        raise Changed(f"{path} is being written")


def _require_inside(folder: Path, tree: Path) -> None:
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(tree)):
        raise NotKept(f"{folder} leads outside {tree} now")


def _asides(target: Path) -> list[Path]:
    start = target.name + ASIDE
    return [
        target.with_name(name)
        for name in os.listdir(target.parent)
        if name.startswith(start) and name[len(start) :].isdecimal()
    ]


def _number(aside: Path) -> int:
    return int(aside.name.rpartition(ASIDE)[2])
