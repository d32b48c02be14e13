"""Files that both runs of a rehearsal wrote: the second overwrote the first's.

Owns the look at the working directory, bounded in size. Reads only.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_FILES = 50_000
SKIPPED = frozenset({".git", ".venv", "venv", "node_modules", "__pycache__"})

Scan = dict[str, tuple[int, int]]


def scan(folder: Path, without: Path) -> Scan:
    """Size and time of change of files below the folder, by path; at most MAX_FILES of them.

    Left out are what versions, packages and walrecover keep, and the folder `without`.
    """
    found: Scan = {}
    waiting = [str(folder)]
    while waiting and len(found) < MAX_FILES:
        try:
            entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name in SKIPPED or entry.name.startswith(".walrecover"):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.path != str(without):
                        waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    seen = entry.stat(follow_symlinks=False)
                    found[os.path.relpath(entry.path, folder)] = (seen.st_size, seen.st_mtime_ns)
            except OSError:
                continue
    return found


def written_by_both(before: Scan, between: Scan, after: Scan) -> list[str]:
    """Files that changed, or came to be, in the first run and again in the second."""
    return sorted(
        path
        for path, seen in after.items()
        if path in between and between[path] != seen and before.get(path) != between[path]
    )
