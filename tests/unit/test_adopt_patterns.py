"""Which files a pattern means: only those below the working directory, through no link."""

from __future__ import annotations

from pathlib import Path

import pytest

from walrecover.adopt.patterns import Pattern, find, is_aside
from walrecover.errors import BadInput


def found(tree: Path, *patterns: str) -> list[str]:
    parsed = [Pattern.parse(text, tree) for text in patterns]
    return sorted(find(tree, parsed, tree / ".walrecover"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in (
        "model.pt",
        "out/model.pt",
        "out/model.bin",
        "out/model.pt.torn-3",
        "out/.model.pt",
        "out/a/b/deep.pt",
        "out/a/.cache/hidden.pt",
        "ckpt-10/model.pt",
        "ckpt-20/model.pt",
        ".walrecover/runs/r/adopted/files/00000001-model.pt",
    ):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tree / "out" / "folder.pt").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.pt").write_bytes(b"x")
    (tree / "out" / "link.pt").symlink_to(outside / "secret.pt")
    (tree / "out" / "linked").symlink_to(outside)
    (tree / "elsewhere").symlink_to(outside)
    (tree / "latest").symlink_to(tree / "ckpt-20")
    return tree


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("out/*.pt", ["out/model.pt"]),
        ("*.pt", ["model.pt"]),
        ("out/model.*", ["out/model.bin", "out/model.pt"]),
        ("out/**/*.pt", ["out/a/b/deep.pt", "out/model.pt"]),
        (
            "**/*.pt",
            [
                "ckpt-10/model.pt",
                "ckpt-20/model.pt",
                "model.pt",
                "out/a/b/deep.pt",
                "out/model.pt",
            ],
        ),
        ("ckpt-*/model.pt", ["ckpt-10/model.pt", "ckpt-20/model.pt"]),
        ("out/a/**", ["out/a/b/deep.pt"]),
        ("latest/*.pt", ["ckpt-20/model.pt"]),  # a link that stays inside
        ("out/model.pt", ["out/model.pt"]),
        ("out/.*.pt", ["out/.model.pt"]),
        ("out/linked/*.pt", None),
        ("elsewhere/*.pt", None),
        ("../outside/*.pt", None),
        ("out/../../outside/*.pt", None),
        ("/etc/*", None),
        ("", None),
        (".", None),
        ("nowhere/*.pt", []),
    ],
)
def test_a_pattern_means_files_below_the_tree(
    tree: Path, pattern: str, files: list[str] | None
) -> None:
    if files is None:
        with pytest.raises(BadInput, match="--adopt"):
            found(tree, pattern)
    else:
        assert found(tree, pattern) == files


def test_an_absolute_pattern_inside_is_one(tree: Path) -> None:
    assert found(tree, f"{tree}/out/*.pt") == ["out/model.pt"]


def test_a_folder_that_becomes_a_link_is_not_followed(tree: Path) -> None:
    pattern = Pattern.parse("new/*.pt", tree)
    (tree / "new").symlink_to(tree.parent / "outside")
    assert find(tree, [pattern], tree / ".walrecover") == {}


def test_what_was_put_aside_is_no_checkpoint() -> None:
    assert is_aside("model.pt.torn-3")
    assert not any(map(is_aside, ("model.pt", "torn-3", ".torn-3", "model.pt.torn-", "a.torn-b")))
