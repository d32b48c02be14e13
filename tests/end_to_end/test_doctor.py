"""`walrecover doctor` and the preflight of `walrecover run`, on faults that need no root: each is
found, refused only where the run could not begin, and nothing that was tried stays.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.test_cli import Answer, train, walrecover
from walrecover.rundir import RunDir

TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def doctor(root: Path, *arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and of each check the worst finding."""
    answer = walrecover(root, "doctor", "--json", *arguments, **environ)
    worst: dict[str, dict[str, Any]] = {}
    order = ["ok", "note", "warning", "failure"]
    for finding in answer.json["findings"]:
        known = worst.get(finding["check"])
        if known is None or order.index(finding["level"]) > order.index(known["level"]):
            worst[finding["check"]] = finding
    assert answer.json["version"] == 1
    assert answer.json["fit"] == (answer.code == 0)
    return answer.code, worst


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def run(root: Path, *arguments: str, **environ: str) -> Answer:
    return walrecover(
        root, "run", *arguments, "--", sys.executable, "-c", "print('ran')", **environ
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    found = RunDir(tmp_path_factory.mktemp("whole") / ".walrecover", "train")
    train(found)
    return found


def test_a_fit_place_is_fit_and_stays_as_it_was(tmp_path: Path) -> None:
    code, found = doctor(tmp_path / ".walrecover", "--size", "1MB")
    assert code == 0, found
    for check in ("directory", "permission", "write", "fsync", "link", "rename", "room", "inodes"):
        assert found[check]["level"] == "ok", found[check]
    assert "--size" in found["room"]["found"]
    assert "size" not in found
    for check in ("kernel", "python", "walrecover", "lmdb", "torch"):
        assert found[check]["level"] == "ok", found[check]
    assert tree(tmp_path) == []


def test_the_table_says_what_follows_and_what_to_do(tmp_path: Path) -> None:
    answer = walrecover(tmp_path / ".walrecover", "doctor")
    assert answer.code == 0
    assert "whether there is space for its snapshots is not known" in answer.out
    assert "give the size of the model" in answer.out


def test_the_size_of_a_snapshot_is_the_newest_manifest_s(whole: RunDir) -> None:
    before = tree(whole.root)
    code, found = doctor(whole.root, "--name", "train", "--size", "900TB")
    assert code == 0, found
    assert "as step-00000006" in found["room"]["found"]
    assert "3 are there" in found["room"]["found"]
    assert found["owner"]["level"] == "ok"
    assert found["group"]["level"] in ("note", "warning")  # walrecover's folders are private
    assert found["clock"]["level"] == "ok"
    assert tree(whole.root) == before


def test_a_snapshot_larger_than_the_disk_is_a_failure_and_no_reason_not_to_try(
    tmp_path: Path,
) -> None:
    code, found = doctor(tmp_path / ".walrecover", "--size", "900TB")
    assert (code, found["room"]["level"]) == (1, "failure")


def in_the_way(path: Path) -> None:
    path.write_text("precious")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("plant", [in_the_way, a_dangling_link])
@pytest.mark.parametrize("where", [".walrecover", ".walrecover/runs", ".walrecover/runs/x/journal"])
def test_something_in_the_place_of_a_folder_stops_a_run(
    tmp_path: Path, plant: Callable[[Path], None], where: str
) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    plant(path)
    before = tree(tmp_path)
    code, found = doctor(tmp_path / ".walrecover", "--name", "x")
    assert (code, found["directory"]["level"]) == (1, "failure")
    assert str(path) in found["directory"]["found"]
    answer = run(tmp_path / ".walrecover", "--name", "x")
    assert (answer.code, answer.out) == (2, "")
    assert str(path) in answer.err
    assert "--dir" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert tree(tmp_path) == before


def test_journals_in_memory_are_a_warning_and_a_file_in_their_place_a_failure(
    tmp_path: Path,
) -> None:
    root, file = tmp_path / ".walrecover", tmp_path / "file"
    code, found = doctor(root, "--journal-dir", "/dev/shm/walrecover-test")
    assert (code, found["volatile"]["level"]) == (0, "warning")
    file.touch()
    code, found = doctor(root, "--journal-dir", str(file))
    assert (code, found["directory"]["level"]) == (1, "failure")
    assert f"{file} is no folder" in found["directory"]["found"]


def test_a_missing_directory_can_be_made(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b" / ".walrecover"
    answer = walrecover(tmp_path / "x", "doctor", "--json", "--dir", str(root))
    first = next(f for f in answer.json["findings"] if f["check"] == "directory")
    assert (first["level"], first["found"]) == ("ok", f"{root} can be made in {tmp_path}")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_used_port_is_found_with_its_holder_and_said_before_a_run(
    tmp_path: Path, taken: int
) -> None:
    root = tmp_path / ".walrecover"
    code, found = doctor(root, "--", TORCHRUN, "--master-port", str(taken), "train.py")
    assert (code, found["port"]["level"]) == (0, "warning")
    assert f"process {os.getpid()}" in found["port"]["found"]
    answer = run(root, MASTER_PORT=str(taken))
    assert answer.code == 0, answer  # who says that the command needs it
    assert f"port {taken} (MASTER_PORT) is taken" in answer.err
    quiet = run(root, "--no-preflight", MASTER_PORT=str(taken))
    assert (quiet.code, "port" in quiet.err) == (0, False)


def test_a_free_port_is_free(tmp_path: Path, taken: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        free = server.getsockname()[1]
    _, found = doctor(tmp_path / "r", "--", TORCHRUN, "--master-port", str(free), "train.py")
    assert found["port"]["level"] == "ok"


def limited(which: int, soft: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    hard = resource.getrlimit(which)[1]
    return subprocess.run(
        [sys.executable, "-m", "walrecover.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(which, (soft, hard)),
    )


def test_small_limits_are_found(tmp_path: Path) -> None:
    root = str(tmp_path / "r")
    done = limited(resource.RLIMIT_FSIZE, 10**6, "doctor", "--dir", root, "--size", "2MB")
    assert done.returncode == 1, done
    assert "files may have 1 MB; a snapshot has 2 MB" in done.stdout
    done = limited(resource.RLIMIT_NOFILE, 100, "doctor", "--dir", root)
    assert "the limit is 100 open files" in done.stdout, done


def test_the_command_s_own_python_is_asked(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\nexec "$REAL" -I -S "$@"\n')
    bare.chmod(0o755)
    _, found = doctor(tmp_path / "r", "--", str(bare), "x.py", REAL=sys.executable)
    assert found["python"]["level"] == "ok"
    assert str(bare) in found["python"]["found"]
    for package in ("torch", "walrecover", "lmdb"):
        assert found[package]["level"] == "warning"
        assert "not installed" in found[package]["found"]


def test_a_python_that_does_not_answer_is_a_finding(tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho sorry >&2\nexit 3\n")
    broken.chmod(0o755)
    code, found = doctor(tmp_path / "r", "--", str(broken), "x.py")
    assert (code, found["python"]["level"]) == (0, "warning")
    assert "ended with 3 and said sorry" in found["python"]["found"]


def test_a_gpu_that_is_named_and_not_there_is_found_by_a_child_only(tmp_path: Path) -> None:
    _, found = doctor(tmp_path / "r", CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7,8")
    assert found["gpu"]["level"] == "warning"
    code = "import sys\nfrom walrecover import cli\ntry:\n cli.main(['doctor'])\n"
    code += "except SystemExit:\n print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "False", done


def test_a_command_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    code, found = doctor(tmp_path / "r", "--", "no-such-command", "x.py")
    assert (code, found["command"]["level"]) == (1, "failure")
    assert "command not found" in found["command"]["found"]


@pytest.mark.parametrize("arguments", [["--size", "7"], ["--name", "a/b"], ["--nonsense"]])
def test_bad_input_is_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    answer = walrecover(tmp_path / "r", "doctor", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err


def test_damage_in_a_run_does_not_end_the_doctor(whole: RunDir, tmp_path: Path) -> None:
    root = tmp_path / ".walrecover"
    shutil.copytree(whole.root, root)
    for path in root.rglob("manifest.json"):
        path.write_bytes(b"\0" * 10)
    for path in root.rglob("sequence/*.json"):
        path.write_bytes(b"{")
    code, found = doctor(root)
    assert code == 0, found
    assert found["size"]["level"] == "note"


# --- before a run -------------------------------------------------------------------------------


def test_a_run_in_a_fit_place_says_nothing_more(tmp_path: Path) -> None:
    answer = run(tmp_path / ".walrecover", "--name", "x")
    assert answer.code == 0, answer
    said = [line for line in answer.err.splitlines() if "→" in line and " layer of " not in line]
    assert said == []


def test_a_run_looks_before_its_first_attempt_only(tmp_path: Path, taken: int) -> None:
    answer = walrecover(
        tmp_path / ".walrecover", "run", "--max-restarts", "2", "--backoff", "0", "--",
        sys.executable, "-c", "raise SystemExit(3)", MASTER_PORT=str(taken),
    )  # fmt: skip
    assert answer.code == 3
    assert answer.err.count("is taken") == 1
    assert answer.err.count("restarting") == 2


def test_a_command_that_is_not_there_comes_before_a_directory_that_is_not_fit(
    tmp_path: Path,
) -> None:
    (tmp_path / ".walrecover").write_text("in the way")
    answer = walrecover(tmp_path / ".walrecover", "run", "--", "no-such-command")
    assert answer.code == 127
