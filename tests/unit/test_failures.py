"""What an attempt's rank 0 is told of the run's past: the same, or nothing, never an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from walrecover import failures
from walrecover.pace import Known, Rate


@pytest.mark.parametrize("cost", [None, 0.25])
def test_what_was_told_is_heard(tmp_path: Path, cost: float | None) -> None:
    known = Known(Rate(3, 1234.5), cost)
    failures.tell(tmp_path / "a1", known)
    assert failures.told(tmp_path / "a1") == known


def test_nothing_is_told_of_a_run_that_has_not_failed(tmp_path: Path) -> None:
    failures.tell(tmp_path / "a1", Known(Rate(0, 9.0), 0.25))
    assert not (tmp_path / "a1").exists()
    assert failures.told(tmp_path / "a1") == Known()


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"failures": "x", "seconds": 1}'])
def test_what_cannot_be_read_is_as_if_nothing_had_failed(tmp_path: Path, content: bytes) -> None:
    failures.tell(tmp_path, Known(Rate(3, 1.0)))
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert failures.told(tmp_path) == Known()


def test_a_place_that_cannot_be_written_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failures.tell(tmp_path / "file" / "a1", Known(Rate(3, 1.0)))
