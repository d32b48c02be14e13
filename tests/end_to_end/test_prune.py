"""`walrecover prune` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.test_cli import files_of, walrecover
from tests.end_to_end.test_travel import train
from tests.support.protocol import candidates
from walrecover.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "train")
    train(made, 12)
    return made


def test_a_dry_run_is_a_table_and_changes_nothing(run: RunDir) -> None:
    before = files_of(run.root)
    words = ["prune", "train", "--keep-last", "2", "--best", "loss:max", "--pin", "6", "--dry-run"]
    shown = walrecover(run.root, *words)
    assert shown.code == 0, shown
    assert shown.out.splitlines()[-1].startswith("would retire 2 of 6 snapshots, ")
    for step, why in ((12, "of the newest 2"), (6, "pinned"), (2, "best loss: 0.5")):
        assert any(
            f" {step} " in line and "kept" in line and why in line
            for line in shown.out.splitlines()
        )
    assert (
        sum("goes" in line and "no rule keeps it" in line for line in shown.out.splitlines()) == 2
    )
    assert files_of(run.root) == before
    done = walrecover(run.root, *words[:-1], "--json").json
    assert [ref.step for ref in candidates(run)] == [12, 10, 6, 2]
    assert [one["step"] for one in done["snapshots"] if not one["kept"]] == [8, 4]
    assert len(done["retired"]) == 2 and done["freed"] > 0 and not done["dry_run"]
    assert walrecover(run.root, "verify", "train").code == 0


def test_what_is_young_stays_and_old_goes(run: RunDir) -> None:
    kept = walrecover(run.root, "prune", "train", "--older-than", "7d", "--json").json
    assert kept["retired"] == []
    assert {one["reason"] for one in kept["snapshots"]} == {"of the newest 3", "not older than 7d"}
    gone = walrecover(
        run.root, "prune", "train", "--older-than", "0s", "--keep-every", "5", "--json"
    )
    assert [one["step"] for one in gone.json["snapshots"] if one["kept"]] == [12, 10, 8, 6, 2]


def test_what_does_not_read_back_is_named_by_the_exit_code_too(run: RunDir) -> None:
    name = candidates(run)[0].name
    (run.snapshots / name / "rank-00000.msgpack").write_bytes(b"")
    answer = walrecover(run.root, "prune", "train", "--keep-last", "2")
    assert answer.code == 1
    assert f"does not read back: {name}: " in answer.out
    assert [ref.step for ref in candidates(run)] == [12, 10, 8]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep-last", "1"], "is not in the range x>=2"),
        (["--best", "loss"], "give a metric and which end is best"),
        (
            ["--best", "acc:max"],
            "no snapshot's step has that scalar in the journal (there are: loss",
        ),
        (["--pin", "7"], "--pin 7: there is no snapshot of that step"),
        (["--older-than", "7"], "give a number and its unit, such as 12h or 7d"),
    ],
)
def test_bad_input_is_a_sentence_and_changes_nothing(
    run: RunDir, words: list[str], says: str
) -> None:
    before = files_of(run.root)
    answer = walrecover(run.root, "prune", "train", *words)
    assert (answer.code, answer.out) == (2, "")
    assert says in " ".join(answer.err.split())
    assert files_of(run.root) == before
