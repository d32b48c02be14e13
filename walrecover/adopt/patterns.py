"""Which files are adopted: patterns below the working directory, and the files that match now.

Owns refusing what leads out of the tree, and never following a link on the way. Must not open a
file.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from walrecover.errors import BadInput

ASIDE = ".torn-"
"""Between a torn file's name and its number, where it was put aside."""


class Stamp(NamedTuple):
    """What changes when a file does."""

    inode: int
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Pattern(NamedTuple):
    """`base`: the fixed folders in front, relative to the tree. `parts`: the rest, names last."""

    base: tuple[str, ...]
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, tree: Path) -> Pattern:
        """Raises BadInput, as a sentence."""
        path = Path(text)
        if path.is_absolute():
            try:
                path = path.relative_to(tree)
            except ValueError:
                raise _outside(text, tree) from None
        parts = path.parts
        if not parts:
            raise BadInput(f"--adopt {text!r}: name files, such as 'out/*.pt'")
        if ".." in parts:
            raise _outside(text, tree)
        fixed = next((n for n, part in enumerate(parts) if _is_magic(part)), len(parts) - 1)
        fixed = min(fixed, len(parts) - 1)
        if parts[-1] == "**":
            parts = (*parts, "*")
        real = Path(os.path.realpath(tree.joinpath(*parts[:fixed])))
        if not real.is_relative_to(os.path.realpath(tree)):
            raise _outside(text, tree, f", through {real}")
        base = real.relative_to(os.path.realpath(tree)).parts
        return cls(base, parts[fixed:])

    @property
    def deep(self) -> bool:
        return len(self.parts) > 1


def _is_magic(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _outside(text: str, tree: Path, how: str = "") -> BadInput:
    return BadInput(
        f"--adopt {text!r} leads outside {tree}{how}: only files below the working directory are "
        f"adopted"
    )


def find(tree: Path, patterns: Sequence[Pattern], apart: Path) -> dict[str, Stamp]:
    """The regular files that match now, by their path relative to `tree`; none below `apart`."""
    found: dict[str, Stamp] = {}
    for pattern in patterns:
        folder = tree.joinpath(*pattern.base)
        if os.path.realpath(folder) == os.path.join(os.path.realpath(tree), *pattern.base):
            found.update(_matches(folder, pattern.base, pattern.parts, os.fspath(apart)))
    return found


def _matches(
    folder: Path, below: tuple[str, ...], parts: tuple[str, ...], apart: str
) -> Iterator[tuple[str, Stamp]]:
    wanted, rest = parts[0], parts[1:]
    if wanted == "**":
        yield from _matches(folder, below, rest, apart)
    try:
        entries = list(os.scandir(folder))
    except OSError:  # gone, or not for us to read
        return
    for entry in entries:
        name = entry.name
        if entry.path == apart or (name[0] == "." and wanted[0] != "."):
            continue
        if wanted == "**":
            if entry.is_dir(follow_symlinks=False):
                yield from _matches(Path(entry.path), (*below, name), parts, apart)
        elif fnmatch.fnmatchcase(name, wanted):
            if rest:
                if entry.is_dir(follow_symlinks=False):
                    yield from _matches(Path(entry.path), (*below, name), rest, apart)
            elif (stamp := _stamp(entry)) is not None:
                yield "/".join((*below, name)), stamp


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    """None for what is no file, was put aside here, or is gone."""
    if is_aside(entry.name):
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return Stamp.of(status) if stat.S_ISREG(status.st_mode) else None


def is_aside(name: str) -> bool:
    before, mark, number = name.rpartition(ASIDE)
    return bool(before and mark) and number.isdecimal()
