"""The command line on whole, damaged and absent runs: the answer, the sentence, the exit code.

The run is made by the protocol's own functions (tests/support/protocol.py); no torch is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.protocol import Launch, holder
from walrecover import recovery
from walrecover.processes import identity
from walrecover.rundir import RunDir


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def walrecover(root: Path, *arguments: str, **environ: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "WALRECOVER_DIR": str(root), "COLUMNS": "200", **environ},
        cwd=root.parent,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def train(run: RunDir) -> list[str]:
    """Snapshots of steps 2, 4 and 6, then two steps more. Returns the snapshots' names."""
    launch = Launch.begin(run, holder())
    names = []
    for _ in range(3):
        launch.train(2)
        names.append(launch.save().snapshot.name)
    launch.train(2)
    for journal in launch.journals:
        journal.close()
    return names


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("whole") / ".walrecover", "train")
    train(run)
    return run


@pytest.fixture
def run(whole: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the run to break."""
    shutil.copytree(whole.root, tmp_path / ".walrecover")
    return RunDir(tmp_path / ".walrecover", "train")


def files_of(root: Path) -> dict[str, bytes]:
    # LMDB's lock file is the readers' own, and a fold's checkpoint is a cache.
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "lock.mdb" and path.suffix != ".fold"
    }


def test_replay_has_the_contract_s_fields(run: RunDir) -> None:
    answer = walrecover(run.root, "replay", "train", "--json")
    assert answer.code == 0
    body = answer.json
    assert body["version"] == 1
    assert body["run"] == "train"
    assert body["recovery_point"]["step"] == 6
    assert body["recovery_point"]["attempt"] == 1
    assert Path(body["recovery_point"]["path"]).is_dir()
    assert (body["last_step"], body["lost_steps"], body["rejected"]) == (8, 2, [])


@pytest.mark.parametrize(("at", "step"), [(5, 4), (4, 4), (2, 2)])
def test_replay_at_takes_the_newest_snapshot_at_or_before(run: RunDir, at: int, step: int) -> None:
    for option in ("--at", "--to-step"):
        body = walrecover(run.root, "replay", "--json", option, str(at)).json
        assert body["recovery_point"]["step"] == step


def test_replay_before_the_first_snapshot_recovers_nothing(run: RunDir) -> None:
    answer = walrecover(run.root, "replay", "--json", "--at", "1")
    assert (answer.code, answer.json["recovery_point"]) == (1, None)


def test_replay_into_writes_files_that_other_tools_open(run: RunDir, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    answer = walrecover(run.root, "replay", "--into", str(tmp_path / "out"))
    assert answer.code == 0, answer
    own = ["own", "own frozen", "author"]
    assert sorted(load_file(tmp_path / "out" / "state.safetensors")) == sorted(
        ["weights", "tied", "frozen", *own, *(f"rank1.{name}" for name in own)]
    )
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert (state["step"], len(state["ranks"])) == (6, 2)


def test_replay_into_refuses_a_directory_that_is_not_empty(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    answer = walrecover(run.root, "replay", "--into", str(tmp_path / "out"))
    assert answer.code == 2
    assert "not empty" in answer.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_status_show_log_and_verify_agree_on_a_whole_run(run: RunDir) -> None:
    row = walrecover(run.root, "status", "--json").json["runs"][0]
    assert (row["run"], row["last_step"], row["recovery_point"]) == ("train", 8, 6)
    shown = walrecover(run.root, "show", "--json").json
    assert (shown["last_step"], len(shown["attempts"])) == (8, 1)
    lines = [json.loads(line) for line in walrecover(run.root, "log", "--json").out.splitlines()]
    assert sum(line["type"] == "StepCompleted" for line in lines) == 16
    assert walrecover(run.root, "verify", "--json").json["whole"] is True
    for command in ("status", "show", "log", "verify", "replay"):
        assert walrecover(run.root, command).code == 0


@pytest.mark.parametrize("command", ["replay", "show", "log", "verify", "status"])
def test_reading_writes_nothing(run: RunDir, command: str) -> None:
    before = files_of(run.root)
    walrecover(run.root, command)
    assert files_of(run.root) == before


@pytest.mark.parametrize("command", ["replay", "show", "log", "verify"])
def test_a_run_that_is_not_there_is_named_with_those_that_are(run: RunDir, command: str) -> None:
    answer = walrecover(run.root, command, "nosuch")
    assert answer.code == 2
    assert "nosuch" in answer.err and "train" in answer.err
    error = walrecover(run.root, command, "nosuch", "--json").json["error"]
    assert error["type"] == "BadInput"


@pytest.mark.parametrize("command", ["replay", "show", "log", "verify", "status"])
def test_a_directory_that_is_not_a_run_is_said_to_be_none(tmp_path: Path, command: str) -> None:
    answer = walrecover(tmp_path / "empty", command)
    assert answer.code == 2
    assert str(tmp_path / "empty") in answer.err
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--bogus", "--", "true"],
        ["run"],
        ["run", "--every", "5", "--", "true"],
        ["run", "--every", "0s", "--", "true"],
        ["run", "--memory-every", "30s", "--", "true"],
        ["rehearse", "--memory-every", "1", "--", "true"],
        ["run", "--name", "../evil", "--", "true"],
        ["run", "--max-restarts", "-1", "--", "true"],
        ["replay", "--bogus"],
        ["replay", "--at", "x"],
        ["replay", "../evil"],
        ["bogus"],
    ],
)
def test_bad_options_are_usage_errors_and_write_nothing(run: RunDir, arguments: list[str]) -> None:
    before = files_of(run.root)
    answer = walrecover(run.root, *arguments)
    assert answer.code == 2, answer
    assert answer.err.strip()
    assert files_of(run.root) == before


def test_a_command_that_is_not_found_is_127_and_one_that_cannot_run_126(run: RunDir) -> None:
    (run.root / "plain").write_text("no program")
    assert walrecover(run.root, "run", "--", "no-such-command").code == 127
    assert walrecover(run.root, "run", "--", str(run.root / "plain")).code == 126


def test_a_run_whose_holder_lives_is_busy_and_says_who_holds_it(run: RunDir) -> None:
    recovery.begin_attempt(run, identity())
    answer = walrecover(run.root, "run", "--name", "train", "--", "true")
    assert answer.code == 2
    assert f"pid {os.getpid()}" in answer.err


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_the_newest_shard_falls_back_and_names_what_it_rejected(
    run: RunDir,
) -> None:
    newest = sorted(run.snapshots.iterdir())[-1]
    damage(newest / "rank-00001.safetensors", -1)
    body = walrecover(run.root, "replay", "--json").json
    assert body["recovery_point"]["step"] == 4
    assert [(r["step"], r["attempt"]) for r in body["rejected"]] == [(6, 1)]
    assert "rank-00001.safetensors" in body["rejected"][0]["reason"]
    answer = walrecover(run.root, "verify", "--json")
    assert (answer.code, answer.json["whole"]) == (1, False)


def test_a_missing_shard_falls_back(run: RunDir) -> None:
    newest = sorted(run.snapshots.iterdir())[-1]
    (newest / "rank-00000.msgpack").unlink()
    body = walrecover(run.root, "replay", "--json").json
    assert body["recovery_point"]["step"] == 4
    assert "is missing" in body["rejected"][0]["reason"]


def test_nothing_that_verifies_is_refused_not_started_over(run: RunDir) -> None:
    for folder in run.snapshots.iterdir():
        damage(folder / "manifest.json", 3)
    answer = walrecover(run.root, "replay", "--json")
    assert (answer.code, answer.json["recovery_point"]) == (1, None)
    assert len(answer.json["rejected"]) == 3
    again = walrecover(run.root, "run", "--name", "train", "--", "true")
    assert again.code == 1
    assert "WALRECOVER_RESUME=never" in again.err


def test_a_link_in_place_of_a_shard_is_refused(run: RunDir, tmp_path: Path) -> None:
    shard = sorted(run.snapshots.iterdir())[-1] / "rank-00000.safetensors"
    shard.rename(tmp_path / "shard")
    shard.symlink_to(tmp_path / "shard")
    body = walrecover(run.root, "replay", "--json").json
    assert body["recovery_point"]["step"] == 4
    assert "is a link" in body["rejected"][0]["reason"]


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_journal_is_a_named_loss_and_no_death(run: RunDir, keep: int) -> None:
    stream = next(run.journal.glob("a1-*/rank-0/data.mdb"))
    os.truncate(stream, keep)
    answer = walrecover(run.root, "replay", "--json")
    assert (answer.code, answer.json["recovery_point"]["step"]) == (0, 6)
    assert answer.json["losses"]
    assert walrecover(run.root, "verify").code == 1
    assert walrecover(run.root, "show").code == 0


def test_a_newer_format_is_unsupported_and_never_corrupt(run: RunDir) -> None:
    entry = sorted(run.sequence.iterdir())[-1]
    entry.write_text(entry.read_text().replace('"format": 1', '"format": 2'))
    error = walrecover(run.root, "replay", "--json").json["error"]
    assert error["type"] == "UnsupportedVersion"
    assert walrecover(run.root, "status", "--json").json["runs"][0]["state"] == "damaged"


def test_a_gap_in_the_sequence_is_refused(run: RunDir) -> None:
    sorted(run.sequence.iterdir())[1].unlink()
    answer = walrecover(run.root, "replay", "--json")
    assert (answer.code, answer.json["error"]["type"]) == (1, "Corrupt")


def test_a_directory_that_cannot_be_made_is_one_clear_sentence() -> None:
    root = Path("/proc/walrecover")  # not even by root
    answer = walrecover(root, "run", "--", "true")
    assert answer.code == 2
    assert answer.err.startswith("walrecover: making a folder in /proc failed")
    assert len(answer.err.splitlines()) == 1
    unseen = walrecover(root, "run", "--no-preflight", "--", "true")
    assert unseen.code == 1
    assert "cannot create the run directory" in unseen.err


def test_help_and_version_and_completion() -> None:
    for command in ("run", "replay", "status", "show", "log", "verify", "doctor", "rehearse"):
        done = subprocess.run(
            [sys.executable, "-m", "walrecover.cli", command, "-h"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli"],
        env={**os.environ, "_WALRECOVER_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
    )
    assert "complete" in done.stdout
