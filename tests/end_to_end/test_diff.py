"""`walrecover diff` on real snapshots, files and scripts: what differs, by how much, the exit code.

What is planted is in tests/end_to_end/scripts/compared.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.forkserver import ROOT, ForkServer
from tests.support.trial import Trial

SCRIPT = """
import sys
import torch, walrecover
from torch import nn

def build_model(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

if __name__ == "__main__":
    print("what a script prints is not an answer")
    model = build_model(int(sys.argv[1]))
    optimizer = torch.optim.AdamW(model.parameters())
    from walrecover.session import attach
    try:
        (attach if sys.argv[1] == "8" else walrecover.attach)(model=model, optimizer=optimizer)
    finally:
        open("went on", "w")
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def trained(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its files and a script."""
    trial = Trial(
        server, tmp_path_factory.mktemp("trained"), "compared:training",
        {"WALRECOVER_EVERY": "2steps", "WALRECOVER_KEEP": "9"},
    )  # fmt: skip
    status, output = trial.run()
    assert status == 0, output
    (trial.folder / "train.py").write_text(SCRIPT)
    return trial.folder


def diff(folder: Path, *arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "diff", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        timeout=180,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def found(answer: Answer) -> dict[str, dict[str, Any]]:
    """The differences by their kind and path."""
    return {f"{d['kind']} {d['path'] or d['other']}": d for d in answer.json["differences"]}


def test_a_snapshot_is_identical_to_itself_and_to_what_is_saved_of_it(trained: Path) -> None:
    folder = next((trained / ".walrecover/runs/trained/snapshots").glob("*-end.*"))
    for other in ("trained", str(folder), "same.pt"):
        answer = diff(trained, "trained", other)
        assert (answer.code, answer.err) == (0, "")
        assert "identical: " in answer.out
    assert "B holds no generators" in answer.out


def test_two_snapshots_of_a_run(trained: Path) -> None:
    answer = diff(trained, "trained@3", "trained", "--json")
    assert answer.code == 1
    body = answer.json
    assert (body["version"], body["verdict"]) == (1, "different")
    assert body["a"]["name"] == "run trained, step 2 of attempt 1"
    kinds = [d["kind"] for d in body["differences"]]
    assert {"step", "tensor", "generator"} == set(kinds)
    step = found(answer)["step optimizer.state.0.step"]
    assert (step["a"], step["b"]) == ("2.0", "6.0")
    numbers = [d["numbers"] for d in body["differences"] if "numbers" in d]
    assert len(numbers) == 10
    assert numbers[0]["elements"] == numbers[0]["of"] == 32


def test_every_planted_difference_of_a_file_is_found_and_nothing_else(trained: Path) -> None:
    answer = diff(trained, "trained", "planted.pt", "--json")
    assert answer.code == 1
    differences = found(answer)
    assert set(differences) == {
        "only in A model.2.bias",
        "only in B model.module.grown",
        "only in B epoch",
        "shape model.1.bias",
        "dtype model.2.weight",
        "group optimizer.param_groups.0.lr",
        "step optimizer.state.1.step",
        "tensor model.0.weight",
        "tensor model.0.bias",
    }
    assert {(r["by_a"], r["by_b"]) for r in answer.json["renamed"]} == {("", "module.")}
    assert len(answer.json["renamed"]) == 8
    weight = differences["tensor model.0.weight"]["numbers"]
    assert (weight["elements"], weight["first"], weight["max_abs"]) == (
        1,
        [1, 2],
        pytest.approx(0.5),
    )
    bias = differences["tensor model.0.bias"]["numbers"]
    assert (bias["elements"], bias["nan_a"], bias["nan_b"], bias["first_b"]) == (1, 0, 1, "nan")
    lr = differences["group optimizer.param_groups.0.lr"]
    assert (lr["a"], lr["b"]) == ("0.05", "0.1")


def test_tensors_under_other_names_are_renamed_and_not_missing(trained: Path) -> None:
    answer = diff(trained, "model.safetensors", "wrapped.pt")
    assert answer.code == 1
    assert "renamed: 9 names differ by `module.`, which only B has" in answer.out
    assert "renamed: 9 values are the same, bit for bit, under other names" in answer.out


def test_a_safetensors_file_needs_no_torch(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "diff", "trained@2", "model.safetensors"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=trained,
        timeout=180,
    )
    assert done.returncode == 1, done.stderr
    assert "renamed: 9 names differ by `model.`, which only A has" in done.stdout
    assert "by how much tensors differ needs torch" in done.stdout


# -- scripts --------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_script_is_run_up_to_attach_and_no_further(trained: Path) -> None:
    before = contents(trained)
    answer = diff(trained, "trained", "train.py 8")
    assert (answer.code, answer.err) == (0, "what a script prints is not an answer\n")
    assert "fits: " in answer.out
    assert "its code was run" in answer.out
    assert contents(trained) == before


def test_a_model_of_another_width_does_not_fit(trained: Path) -> None:
    answer = diff(trained, "train.py 6", "trained", "--json")
    assert answer.code == 1
    assert set(found(answer)) == {
        *(f"shape model.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")),
        *(f"shape model.1.running_{n}" for n in ("mean", "var")),
        "shape model.2.weight",
    }


def test_a_function_that_builds_the_model(trained: Path) -> None:
    answer = diff(trained, "trained", "train.py:build_model")
    assert answer.code == 0, answer
    assert "fits: 9 names have the same shapes and types" in answer.out
    assert not (trained / "went on").exists()


# -- bad input ------------------------------------------------------------------------------------


def test_code_in_a_file_is_named_and_not_run(trained: Path) -> None:
    answer = diff(trained, "trained", "harmful.pt")
    assert answer.code == 2
    assert "harmful.pt holds a posix.system, and reading that would run code" in answer.err
    assert not (trained / "harmed").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torn.pt", "torn.pt cannot be read as a checkpoint of torch: PytorchStreamReader failed"),
        ("broken.py", "broken.py raised ValueError: no data, "),
        ("idle.py", "idle.py ended without calling walrecover.attach(): name what builds"),
        ("broken.py:build", "broken.py:build raised ValueError"),
        ("dying.py", "the process that compares was ended by signal 9"),
    ],
)
def test_what_cannot_be_had_with_torch_is_said_in_a_sentence(
    trained: Path, text: str, said: str
) -> None:
    (trained / "broken.py").write_text("def build(): pass\nraise ValueError('no data')\n")
    (trained / "idle.py").write_text("pass\n")
    (trained / "dying.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    answer = diff(trained, "trained", text)
    assert answer.code == 2
    assert said in answer.err


@pytest.fixture
def bad(trained: Path) -> Iterator[Path]:
    whole = (trained / "model.safetensors").read_bytes()
    (trained / "torn.safetensors").write_bytes(whole[:-8])
    (trained / "huge.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + whole)
    (trained / "empty.safetensors").write_bytes(b"")
    header = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    (trained / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"8" * 8)
    (trained / "empty.pt").write_bytes(b"")
    (trained / "notes.txt").write_text("neither")
    (trained / "folder").mkdir(exist_ok=True)
    yield trained


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nobody", "no run 'nobody'"),
        ("trained@two", "after the @ comes a step"),
        ("trained@1", "has no snapshot at or before trained@1 (it has: 2, 4, 6, 6)"),
        ("gone.pt", "gone.pt: no such file or folder"),
        ("gone.py", "gone.py: no such script"),
        ("gone.py:build", "gone.py: no such script"),
        ("notes.txt", "neither a safetensors file nor one of torch"),
        ("folder", "holds no manifest.json"),
        ("torn.safetensors", "lies beyond the file's end: it is cut short"),
        ("huge.safetensors", "its header says 1152921504606846976 bytes, the file has"),
        ("empty.safetensors", "its header says 0 bytes"),
        ("empty.pt", "cannot be read as a checkpoint of torch: EOFError"),
        ("odd.safetensors", "w has 8 bytes, which is not its shape's number"),
    ],
)
def test_what_is_no_state_is_bad_input(bad: Path, text: str, said: str) -> None:
    answer = diff(bad, "trained", text)
    assert answer.code == 2
    assert said in answer.err


def test_two_scripts_are_refused(trained: Path) -> None:
    answer = diff(trained, "train.py", "train.py:build_model", "--json")
    assert answer.code == 2
    assert "only one of A and B can be a script" in answer.json["error"]["message"]


def test_a_damaged_snapshot_is_refused_and_not_compared(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / ".walrecover", tmp_path / ".walrecover")
    folder = next((tmp_path / ".walrecover/runs/trained/snapshots").glob("*2.a1*"))
    (folder / "rank-00000.msgpack").write_bytes(b"x" * 40)
    answer = diff(tmp_path, "trained", "trained@2")
    assert answer.code == 2
    assert "B cannot be read: " in answer.err


def test_a_folder_that_no_sequence_commits_is_said_to_be_unproven(
    trained: Path, tmp_path: Path
) -> None:
    import shutil

    folder = next((trained / ".walrecover/runs/trained/snapshots").glob("*-end.*"))
    shutil.copytree(folder, tmp_path / folder.name)
    answer = diff(trained, "trained", str(tmp_path / folder.name))
    assert answer.code == 0
    assert "no sequence commits" in answer.out


def test_a_name_in_a_file_gives_no_orders_to_the_terminal(tmp_path: Path) -> None:
    """Neither where it stands alone, nor in the prefix of a rename."""
    here = {f"\x1b[2J\r\x9b.{name}": np.ones(2) for name in "ab"}
    save_file(here | {"\x1b[1mlonely": np.ones(3)}, tmp_path / "a.safetensors")
    save_file({name: np.ones(2) for name in "ab"}, tmp_path / "b.safetensors")
    answer = diff(tmp_path, "a.safetensors", "b.safetensors")
    assert answer.code == 1
    assert "by `\\x1b[2J\\x0d\\x9b.`" in answer.out and "\\x1b[1mlonely" in answer.out
    assert not {char for char in answer.out if char != "\n" and not char.isprintable()}
