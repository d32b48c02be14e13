"""The stacks of hangs, as the supervisor kept them in the run's folder, for its page.

Owns reading these files: only those that an attempt's rows name, below the attempt's own folder,
through no link, and no more than a page can show. Must not serve anything else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from walrecover.entries import attempt_label
from walrecover.errors import Corrupt
from walrecover.files import open_regular
from walrecover.rundir import RunDir

MOST_BYTES = 64 * 1024
"""Of one file; the rest is where the note says."""

MOST_FILES = 16
"""Of one attempt: ranks that wait for the one that hangs look all the same."""

MOST_ATTEMPTS = 3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


class Stack(NamedTuple):
    """One file. `note`: why there is no text, or not all of it; else empty."""

    name: str
    text: str
    note: str = ""


class Hang(NamedTuple):
    """The stacks of one attempt. `more`: files that are not among them."""

    attempt: int
    reason: str
    stacks: Sequence[Stack]
    more: int = 0


def of_run(root: str, name: str, attempts: Sequence[dict[str, Any]]) -> list[Hang]:
    """The newest attempts that have any, the newest first. `attempts`: rows, the oldest first."""
    folder = RunDir(Path(root), name).path
    found: list[Hang] = []
    for row in reversed(attempts):
        paths = [str(path) for path in msgspec.json.decode(row["artefacts"] or "[]")]
        if paths and len(found) < MOST_ATTEMPTS:
            label = attempt_label(row["number"], row["nonce"])
            shown = [_stack(folder, label, path) for path in paths[:MOST_FILES]]
            found.append(Hang(row["number"], row["evidence"], shown, len(paths) - len(shown)))
    return found


def _stack(run: Path, label: str, path: str) -> Stack:
    """A journal is somebody else's word: what it calls an artefact may be any path."""
    folder, _, name = path.rpartition("/")
    if folder != f"artefacts/{label}" or not _NAME.fullmatch(name):
        return Stack(path, "", "is no file of this attempt: not shown")
    try:
        with os.fdopen(open_regular(run, path), "rb") as file:
            data, size = file.read(MOST_BYTES), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return Stack(path, "", "is not there any more")
    except OSError as error:
        return Stack(path, "", f"cannot be shown: {error.strerror}")
    except Corrupt as error:
        return Stack(path, "", f"cannot be shown: {error}")
    note = f"the first {MOST_BYTES} bytes of {size}" if size > MOST_BYTES else ""
    return Stack(path, data.decode(errors="replace"), note)
