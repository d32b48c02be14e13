"""A run that dies, goes into a file, comes back elsewhere, and goes on to the same bits; and the
commands on what is no archive.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import files_of, walrecover
from tests.end_to_end.test_frozen import server as server  # the fixture
from tests.end_to_end.test_frozen import train
from tests.end_to_end.test_travel import train as train_without_torch
from tests.support.forkserver import ForkServer
from tests.support.protocol import Launch, candidates, holder
from walrecover.rundir import RunDir


def test_p6_a_run_that_was_brought_back_ends_with_the_same_bits(
    server: ForkServer, tmp_path: Path
) -> None:
    code, straight = train(server, tmp_path / "straight", steps=12)
    assert code == 0
    folder = tmp_path / "killed"
    assert train(server, folder, steps=12, die_at=7) == (-signal.SIGKILL, "")
    made = walrecover(folder / ".walrecover", "export", "a-run", str(tmp_path / "a.tar.zst"))
    assert made.code == 0, made
    kept = walrecover(folder / ".walrecover", "export", "a-run", f"{tmp_path}/vault/")
    assert (kept.code, kept.err) == (0, ""), kept
    restored = tmp_path / "restored"
    restored.mkdir()
    back = walrecover(restored / ".walrecover", "import", str(tmp_path / "vault" / "a-run"))
    assert "run a-run: brought back and verified" in back.out, back
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    brought = walrecover(elsewhere / ".walrecover", "import", str(tmp_path / "a.tar.zst"))
    assert brought.code == 0, brought
    assert "run a-run: brought back and verified" in brought.out
    for where in (folder, elsewhere, restored):
        code, resumed = train(server, where, steps=12)
        assert (code, resumed) == (0, straight)
        shown = walrecover(where / ".walrecover", "show", "a-run")
        assert "resume verified to step" in shown.out, shown


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / ".walrecover", "train")
    train_without_torch(made, 8)
    return made


def test_the_answers_of_export_and_import(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.zst"
    body = walrecover(run.root, "export", "train", str(file), "--json").json
    assert (body["run"], body["path"], body["size"]) == ("train", str(file), file.stat().st_size)
    assert (body["left_out"], body["entries"]) == ([], 5)
    made = walrecover(run.root, "import", "a.tar.zst", "--name", "b")
    assert made.out.splitlines() == [
        "run b: brought back and verified, exported as train",
        f"  {run.root / 'runs' / 'b'}",
        "go on with: walrecover run --name b -- python train.py",
    ]
    body = walrecover(run.root, "import", str(file), "--name", "c", "--json").json
    assert (body["run"], body["exported_as"], body["entries"]) == ("c", "train", 5)
    compared = walrecover(run.root, "compare", "train", "c")
    assert "no difference through step 8" in compared.out
    assert walrecover(run.root, "audit", "c").code == 0
    assert walrecover(run.root, "verify", "c").code == 0


def test_what_does_not_verify_is_named_and_the_exit_code_says_so(
    run: RunDir, tmp_path: Path
) -> None:
    newest = candidates(run)[0]
    (run.snapshots / newest.name / "rank-00000.msgpack").write_bytes(b"")
    made = walrecover(run.root, "export", "train", "a.tar.zst")
    assert made.code == 1
    assert f"left out: snapshot {newest.name}: " in made.out
    assert walrecover(run.root, "import", "a.tar.zst", "--name", "b").code == 0
    (tmp_path / "a.tar.zst").unlink()
    fork = walrecover(run.root, "fork", "train", "--at", "6", "--name", "f")
    assert fork.code == 0
    told = walrecover(run.root, "export", "f", "a.tar.zst")
    assert "the journal of run train, from which it was forked, is not in it" in told.out


def test_bad_input_is_a_sentence_and_changes_nothing(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.zst"
    assert walrecover(run.root, "export", "train", str(file)).code == 0
    data = file.read_bytes()
    before = files_of(tmp_path)
    cut, flipped = tmp_path / "cut", tmp_path / "flipped"
    for words, code, says in (
        (["export", "train", str(file)], 2, "is there already: give the archive another name"),
        (["export", "nobody", "x"], 2, "no run 'nobody'"),
        (["import", "nothing"], 2, "cannot be read: No such file or directory"),
        (["import", sys.executable], 2, "is not an archive of a run"),
        (["import", str(file)], 2, "is there already: choose another name for the run"),
        (["import", str(cut), "--name", "b"], 1, "it is cut short"),
        (["import", str(flipped), "--name", "b"], 1, "flipped: it is damaged"),
    ):
        cut.write_bytes(data[:-1])
        flipped.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        answer = walrecover(run.root, *words)
        assert (answer.code, answer.out) == (code, ""), answer
        assert says in answer.err
        assert "error" in walrecover(run.root, *words, "--json").json
        cut.unlink()
        flipped.unlink()
        assert files_of(tmp_path) == before
        assert os.listdir(run.root / "runs") == ["train"]


@pytest.mark.parametrize(("package", "target"), [("zstandard", "a.tar.zst"), ("obstore", "a/")])
def test_without_its_package_there_is_a_sentence(
    run: RunDir, tmp_path: Path, package: str, target: str
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{package}.py").write_text("raise ImportError('none here')\n")
    answer = walrecover(run.root, "export", "train", target, PYTHONPATH=str(hidden))
    assert (answer.code, answer.out) == (2, "")
    assert f"needs the package {package}: pip install 'walrecover[daemon]'" in answer.err
    assert not (tmp_path / target).exists()


def test_the_answers_about_a_vault(run: RunDir, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    body = walrecover(run.root, "export", "train", f"{vault}/", "--json").json
    assert (body["vault"], body["entries"], body["finished"]) == (str(vault), 5, False)
    assert body["sent"] > 10 and body["deleted"] == 0
    again = walrecover(run.root, "export", "train", "vault")
    assert again.out == "run train: up to entry 5 in vault (0 objects, 0 bytes sent, 0 deleted)\n"
    body = walrecover(run.root, "import", "vault/train", "--name", "b", "--json").json
    assert (body["run"], body["exported_as"], body["damaged"]) == ("b", "train", [])
    newest = candidates(run)[0]
    (vault / "train" / "snapshots" / newest.name / "rank-00000.msgpack").write_bytes(b"")
    told = walrecover(run.root, "import", "vault/train", "--name", "c")
    assert told.code == 1
    assert f"not whole in the vault: {newest.name}: " in told.out
    for words, says in (
        (["export", "train", "s3://"], "names no bucket"),
        (["import", "s3://bucket"], "names no run: give s3://bucket/prefix/RUN"),
        (["import", "vault"], "holds no copy of a run 'vault'"),
        (["export", "train", "x.tar.zst", "--follow"], "--follow keeps up a copy"),
    ):
        answer = walrecover(run.root, *words)
        assert (answer.code, answer.out) == (2, ""), answer
        assert says in answer.err


def test_follow_goes_on_until_the_run_has_ended(run: RunDir, tmp_path: Path) -> None:
    with Launch.begin(run, holder()) as launch:
        launch.train()
        launch.save(end=True, finished=True)
    done = walrecover(run.root, "export", "train", f"{tmp_path}/vault/", "--follow")
    assert done.code == 0 and "up to entry 7" in done.out
