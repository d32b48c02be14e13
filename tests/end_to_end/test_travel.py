"""Fork, compare and show --at on the command line. The runs are made without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.test_cli import walrecover
from tests.support.protocol import Launch, candidates
from tests.support.reading import OPENED, step_of
from walrecover.rundir import RunDir


def train(run: RunDir, last: int, *, bad: int = 0) -> None:
    """One more attempt, through step `last`, which saves every second step. From step `bad` on the
    losses are other ones."""
    with Launch.begin(run) as launch:
        for journal in launch.journals:
            journal.append(OPENED)
        while launch.step < last:
            launch.step += 1
            loss = 1.0 / launch.step + (0.5 if 0 < bad <= launch.step else 0.0)
            for rank, journal in enumerate(launch.journals):
                journal.append(step_of(launch.step, rank, loss))
            if launch.step % 2 == 0:
                launch.save()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Steps 1 to 5, then 5 to 8."""
    made = RunDir(tmp_path / ".walrecover", "train")
    train(made, 5)
    train(made, 8)
    return made


def test_a_fork_is_made_shown_and_compared_with_its_parent(run: RunDir) -> None:
    made = walrecover(run.root, "fork", "train", "--at", "6", "--skip", "50:56", "--name", "other")
    assert made.code == 0, made.err
    assert made.out.splitlines()[0] == "run other: forked from run train at step 6"
    assert "left out: positions 48 to 55 of pass 0" in made.out
    assert "walrecover run --name other -- python train.py" in made.out
    train(RunDir(run.root, "other"), 8, bad=8)
    shown = walrecover(run.root, "show", "other")
    assert "forked from run train at step 6, leaving out positions 48 to 55 of pass 0" in shown.out
    assert "left out  positions 48 to 55 of pass 0" in shown.out
    compared = walrecover(run.root, "compare", "train", "other")
    assert compared.code == 1
    assert "one history through step 6" in compared.out
    assert "first difference: step 8 of rank 0: loss" in compared.out
    body = walrecover(run.root, "compare", "train", "other", "--json").json
    assert (body["verdict"], body["shared_through"], body["last_common_step"]) == (
        *("different", 6),
        8,
    )
    assert body["first_difference"]["step"] == 8
    assert [one["what"] for one in body["first_difference"]["differences"]] == ["loss"]


def test_a_fork_s_json_has_its_history(run: RunDir) -> None:
    body = walrecover(run.root, "fork", "train", "--at", "6", "--json").json
    assert (body["run"], body["parent"], body["step"]) == ("train-at-6", "train", 6)
    assert [(one["attempt"], one["first_step"], one["last_step"]) for one in body["history"]] == [
        (2, 5, 6),
        (1, 1, 4),
    ]
    assert walrecover(run.root, "show", "train-at-6", "--json").json["forked_from"] == {
        "run": "train",
        "step": 6,
    }


def test_runs_that_do_not_differ(run: RunDir, tmp_path: Path) -> None:
    other = RunDir(run.root, "again")
    train(other, 7)
    answer = walrecover(run.root, "compare", "train", "again")
    assert answer.code == 0, answer
    assert answer.out.splitlines()[-1] == "no difference through step 7"


def test_a_journal_that_is_gone_leaves_the_question_open(run: RunDir) -> None:
    train(RunDir(run.root, "again"), 8)
    (run.journal / "rank-9").mkdir()
    first = sorted(path for path in run.journal.iterdir() if path.name.startswith("a1-"))[0]
    first.rename(run.path / "elsewhere")
    answer = walrecover(run.root, "compare", "train", "again")
    assert answer.code == 1
    assert "lost from the journal: the journal of attempt a1-" in answer.out
    assert "no difference through step 8, as far as the journals tell" in answer.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--at", "5"],
            "run train has no snapshot of step 5: the nearest are of step 4 and step 6",
        ),
        (["--at", "6", "--skip", "0:8"], "were already consumed by step 6"),
        (["--at", "6", "--skip", "72:81"], "outside the epoch: reader 0 has 80 positions, 0 to 79"),
        (["--at", "6", "--skip", "9:8"], "give two positions"),
        (["--at", "6", "--epoch", "1"], "say where a --skip lies, and there is none"),
        (["--at", "6", "--name", "train"], "is there already: choose another name"),
    ],
)
def test_what_cannot_be_forked_is_a_sentence_and_changes_nothing(
    run: RunDir, words: list[str], says: str
) -> None:
    answer = walrecover(run.root, "fork", "train", *words)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert [path.name for path in (run.root / "runs").iterdir()] == ["train"]


def test_compare_refuses_what_has_nothing_in_common(run: RunDir) -> None:
    RunDir(run.root, "empty").create()
    answer = walrecover(run.root, "compare", "train", "empty")
    assert (answer.code, answer.out) == (2, "")
    assert "have no step in common" in answer.err
    answer = walrecover(run.root, "compare", "train", "train")
    assert (answer.code, answer.out) == (2, "")
    assert "train is one run" in answer.err


def test_two_forks_of_one_run_are_compared_from_where_they_part(run: RunDir) -> None:
    for at in ("4", "6"):
        walrecover(run.root, "fork", "train", "--at", at)
        train(RunDir(run.root, f"train-at-{at}"), 9)
    answer = walrecover(run.root, "compare", "train-at-4", "train-at-6")
    assert answer.code == 0, answer
    assert "one history through step 4" in answer.out
    assert "no difference through step 9" in answer.out


def test_every_other_command_takes_a_fork_for_a_run(run: RunDir, tmp_path: Path) -> None:
    walrecover(run.root, "fork", "train", "--at", "6", "--name", "b")
    assert walrecover(run.root, "verify", "b").code == 0
    replayed = walrecover(run.root, "replay", "b", "--into", str(tmp_path / "out"), "--json").json
    assert replayed["recovery_point"]["step"] == 6
    assert walrecover(run.root, "diff", "b@6", "train@6").code == 0
    rows = walrecover(run.root, "status", "--json").json["runs"]
    assert {row["run"]: row["recovery_point"] for row in rows} == {"b": 6, "train": 8}
    path = next((run.root / "runs" / "b" / "snapshots").rglob("rank-00000.msgpack"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    assert walrecover(run.root, "verify", "b").code == 1
    assert walrecover(run.root, "verify", "train").code == 0


def test_replay_at_does_not_know_what_came_later(run: RunDir) -> None:
    later = walrecover(run.root, "replay", "train", "--at", "3", "--json").json
    assert (later["recovery_point"]["step"], later["last_step"], later["lost_steps"]) == (2, 3, 1)
    walrecover(run.root, "fork", "train", "--at", "6")
    answer = walrecover(run.root, "replay", "train-at-6", "--at", "5")
    assert answer.code == 2
    assert "step 5 was made by run train, from which train-at-6 was forked at step 6" in answer.err
    assert walrecover(run.root, "replay", "train-at-6", "--at", "6").code == 0


def test_show_at_tells_what_was_known_then(run: RunDir) -> None:
    then = walrecover(run.root, "show", "train", "--at", "3", "--json").json
    assert (then["last_step"], then["attempts"][0]["last_step"], then["recovery_point"]) == (
        3,
        3,
        2,
    )
    assert len(then["attempts"]) == 1
    later = walrecover(run.root, "show", "train", "--at", "5", "--json").json
    assert (later["last_step"], len(later["attempts"])) == (5, 2)
    assert candidates(run)[0].step == 8
