"""What an archive may say of itself, and what it may hold: the pure part."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from walrecover import archive
from walrecover.archive import LeftOut, Statement
from walrecover.errors import Corrupt, UnsupportedVersion

SAID = Statement(1, "a-run", "0.1.0", 12.0, 3, 7, 900, (LeftOut("stream", "a1-0/rank-0", "torn"),))
CAPTURE = "step-00000002.a1-0"


@pytest.mark.parametrize(
    "place",
    [
        "export.json",
        "README.md",
        "SHA256SUMS",
        "sequence/00000001.json",
        "sequence/123456789.json",
        f"snapshots/{CAPTURE}/manifest.json",
        f"snapshots/{CAPTURE}/rank-00012.safetensors",
        "snapshots/step-00000002-end.a1-0/rank-00000.msgpack",
        "journal/a1-0/rank-0/data.mdb",
        "adopted/running",
        "adopted/records/00000001.json",
        "adopted/files/00000001-model (1).pt",
        "artefacts/a1-0/rank-00000.txt",
    ],
)
def test_what_a_run_has_has_a_place(place: str) -> None:
    assert archive.require_place("a-run", f"a-run/{place}") == place


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/etc/passwd", "is absolute"),
        ("a-run/../../x", "leads out"),
        ("..", "leads out"),
        (f"a-run/snapshots/../snapshots/{CAPTURE}/manifest.json", "leads out"),
        ("other/README.md", "has no place"),
        ("a-run", "has no place"),
        ("a-run/", "has no place"),
        ("a-run//README.md", "has no place"),
        ("a-run/./README.md", "has no place"),
        ("a-run/sitecustomize.py", "has no place"),
        ("a-run/imported.json", "has no place"),
        ("a-run/snapshots/step-1.a1-0/manifest.json", "has no place"),
        (f"a-run/snapshots/{CAPTURE}/rank-00000.part", "has no place"),
        (f"a-run/snapshots/{CAPTURE}/manifest.json/x", "has no place"),
        ("a-run/journal/a1-0/rank-0/lock.mdb", "has no place"),
        ("a-run/journal/a1-0/.hidden/data.mdb", "has no place"),
        ("a-run/adopted/files/00000001-a\nb", "has no place"),
        ("a-run/adopted/files/00000001-a\\b", "has no place"),
        ("a-run/adopted/files/00000001-\x1b[2J", "has no place"),
        ("a-run/artefacts/a1-0/.bashrc", "has no place"),
        ("a-run/sequence/00000001.json\n", "has no place"),
    ],
)
def test_any_other_name_is_refused(name: str, says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        archive.require_place("a-run", name)


def test_a_statement_comes_back() -> None:
    assert archive.decode_statement(archive.encode_statement(SAID)) == SAID


def test_a_statement_of_another_format_is_told_from_damage() -> None:
    newer = msgspec.json.encode({"format": 2, "run": 5})
    with pytest.raises(UnsupportedVersion, match="format 2, and this release reads 1"):
        archive.decode_statement(newer)
    for data in (b"", b"{", b"[]", b'{"format": 1}', b"\xff", b"[" * 100_000):
        with pytest.raises(Corrupt, match=r"export\.json cannot be read"):
            archive.decode_statement(data)


@pytest.mark.parametrize("change", [{"run": "../x"}, {"files": -1}, {"bytes": -1}, {"entries": -1}])
def test_a_statement_that_no_run_can_make_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Corrupt, match=r"export\.json"):
        archive.decode_statement(archive.encode_statement(msgspec.structs.replace(SAID, **change)))


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"x")
    sums = {"a b": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    (tmp_path / "SHA256SUMS").write_bytes(archive.encode_sums(sums))
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tmp_path)
    assert done.returncode == 0
    assert archive.decode_sums((tmp_path / "SHA256SUMS").read_bytes()) == sums


@pytest.mark.parametrize("data", [b"x\n", b"0" * 64 + b" a\n", b"\xff" * 70, b"\n"])
def test_sums_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt, match="none of sha256sum's"):
        archive.decode_sums(data)
    with pytest.raises(Corrupt, match="names a twice"):
        archive.decode_sums((b"0" * 64 + b"  a\n") * 2)


def test_every_difference_is_named() -> None:
    archive.require_same({"a": "1"}, {"a": "1"})
    with pytest.raises(Corrupt, match="b is in SHA256SUMS and not in the archive"):
        archive.require_same({"a": "1", "b": "2"}, {"a": "1"})
    with pytest.raises(Corrupt, match="b is in the archive and not in SHA256SUMS"):
        archive.require_same({"a": "1"}, {"a": "1", "b": "2"})
    with pytest.raises(Corrupt, match="a has another sum"):
        archive.require_same({"a": "1"}, {"a": "2"})


def test_the_readme_says_what_lacks() -> None:
    assert "Its newest snapshot is step 8." in archive.readme("a-run", 8, ())
    assert "left out" not in archive.readme("a-run", 8, ())
    assert "- stream a1-0/rank-0: torn" in archive.readme("a-run", None, SAID.left_out)
