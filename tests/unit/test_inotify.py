"""Folders that come to be quickly are followed without a word on stderr."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from watchdog.events import FileCreatedEvent, FileSystemEvent, FileSystemEventHandler

from tests.support.waiting import wait_until
from walrecover.inotify import observer

FOLDERS = 1000
"""So that some of them are met twice: watchdog warns of about one in fifty."""


def test_a_folder_met_twice_is_followed_and_not_warned_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    seen = set()

    class Seeing(FileSystemEventHandler):
        def dispatch(self, event: FileSystemEvent) -> None:
            seen.add(Path(os.fsdecode(event.src_path)).parts[-4])

    watching = observer()
    watching.schedule(Seeing(), str(tmp_path), recursive=True, event_filter=[FileCreatedEvent])
    watching.start()
    try:
        for number in range(FOLDERS):
            leaf = tmp_path / str(number) / "attempt" / "rank"
            leaf.mkdir(parents=True)
            (leaf / "data").touch()
        wait_until(lambda: len(seen) == FOLDERS)
    finally:
        watching.stop()
        watching.join()
    assert [str(each.message) for each in recwarn] == []
