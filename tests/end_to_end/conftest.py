"""The fork server, one for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.forkserver import ForkServer


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Forks children that have torch imported."""
    started = ForkServer()
    yield started
    started.close()
