"""The fork server, one for all tests of a process; folders in memory, and where things lie."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forkserver import ForkServer
from tests.support.waiting import await_savers

# Where there is such a place: what these tests kill are processes, and an fsync has nothing to add.
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for runs, gone after the test, and once nobody saves anything in it any more."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)
        await_savers(Path(name))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where runs are kept by default."""
    return tmp_path / ".walrecover"


@pytest.fixture
def path(root: Path) -> Path:
    """The daemon's read model of them, by default."""
    return root / "daemon" / "read-model.db"


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Forks children that have torch imported."""
    started = ForkServer()
    yield started
    started.close()
