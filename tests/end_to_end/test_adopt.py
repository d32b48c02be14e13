"""`walrecover run --adopt` as people use it: unchanged scripts, real kills, real files."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import walrecover
from tests.support.savers import SAVERS, contents_of, whole_after_each
from tests.support.stand_in import write_stand_in
from walrecover import beats, recovery
from walrecover.entries import attempts
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"


@pytest.mark.parametrize(
    ("saver", "name", "at"),
    [
        ("in place", "model.pt", (0, 1, 3, -2)),
        ("removed first", "model.safetensors", (-2,)),
    ],
)
def test_killed_at_file_events_an_unchanged_script_comes_back_from_the_newest_whole_file(
    root: Path, saver: str, name: str, at: tuple[int, ...]
) -> None:
    contents = contents_of(name)
    whole = whole_after_each(SAVERS[saver], root.parent / name, contents)
    events = [n % len(whole) for n in at]
    done = walrecover(
        root, "run", "--name", "run", "--adopt", "out/*.pt", "--adopt", "out/*.safetensors",
        "--backoff", "0", "--max-restarts", "50", "--",
        sys.executable, str(SCRIPTS / "overwrites.py"), saver, name, *map(str, events), "-1",
        PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.code == 0, done
    # Each attempt writes one version, which is kept, and is killed in the second.
    expected = [0]
    for event in events:
        expected.append(expected[-1] + 1 + whole[event])
    assert (root.parent / "attempts").read_text().split() == [str(n) for n in expected], done.err
    newest = (root.parent / "out" / name).read_bytes()
    assert newest == contents(expected[-1] + 2)  # the last attempt ended in order
    assert "Exact resume is not claimed" in done.err
    shown = walrecover(root, "show", "run")
    assert "put back" in shown.out and "version" in shown.out, shown.out
    story = walrecover(root, "show", "run", "--json").json["attempts"]
    assert all(kept["assurance"] for item in story for kept in item["files"]["adopted"])
    hows = {kept["how"] for item in story for kept in item["files"]["adopted"]}
    assert hows <= ({"copy", "reflink"} if saver == "in place" else {"link", "reflink", "copy"})
    assert walrecover(root, "verify", "run").code == 0


def test_p7_a_supervisor_killed_with_its_script_in_a_save_puts_the_file_back_when_it_starts_again(
    root: Path,
) -> None:
    command = [
        "run", "--name", "run", "--adopt", "out/*.pt", "--", sys.executable,
        str(SCRIPTS / "overwrites.py"), "in place", "model.pt", "2", "-1",
    ]  # fmt: skip
    killed = walrecover(root, *command, PYTHONPATH=str(ROOT), WHOM="supervisor")
    assert killed.code == -signal.SIGKILL
    done = walrecover(root, *command, PYTHONPATH=str(ROOT))
    assert done.code == 0, done
    assert (root.parent / "attempts").read_text().split() == ["0", "1"]
    assert (root.parent / "out" / "model.pt.torn-1").exists()


def test_an_unchanged_script_of_torch_resumes_and_its_steps_are_counted(root: Path) -> None:
    """Killed each time 8 steps after it began, it has 3 to do again: still every attempt makes new
    steps, and its budget of restarts is refilled."""
    script = str(SCRIPTS / "unchanged.py")
    done = walrecover(
        root, "run", "--name", "run", "--adopt", "out/*.pt", "--max-restarts", "1", "--backoff",
        "0", "--", sys.executable, script, "16",
    )  # fmt: skip
    assert done.code == 0, done
    assert "trained 16" in done.out
    run = RunDir(root, "run")
    reached = [
        beats.furthest(run.meeting(entry.number, entry.nonce))
        for entry in attempts(Sequence(run.sequence).read())
    ]
    assert reached == [8, 13, 16]
    assert done.err.count("without a new step") == 0, done.err
    kept = recovery.fold_run(run).records
    assert any(e.assurance.startswith("torch") for r in kept.values() for e in r.adopted.values())


def test_of_a_command_of_several_programs_the_one_that_hangs_is_found(root: Path) -> None:
    """Over a stand-in for torch. The first ends, and its rank is not missed; the second stands."""
    write_stand_in(root.parent / "site")
    steps = "from torch.optim.optimizer import Optimizer as O; o = O(); o.step(); o.step()"
    first = f'{sys.executable} -c "{steps}"'
    second = f'{sys.executable} -c "{steps}; import time; time.sleep(3600)"'
    done = walrecover(
        root, "run", "--name", "run", "--adopt", "*.pt", "--max-restarts", "0", "--hang-timeout",
        "between=4s", "--", "sh", "-c", f"{first}; {second}",
        PYTHONPATH=str(root.parent / "site"),
    )  # fmt: skip
    assert done.code != 0
    ended = walrecover(root, "show", "run", "--json").json["attempts"][0]
    assert ended["cause"] == "hang", done.err
    assert "at step 4" in ended["evidence"]
    run = RunDir(root, "run")
    (entry,) = attempts(Sequence(run.sequence).read())
    assert beats.furthest(run.meeting(entry.number, entry.nonce)) == 4


@pytest.mark.parametrize("pattern", ["../*.pt", "/etc/*.pt", "outside/*.pt", "."])
def test_a_pattern_outside_the_tree_is_refused_before_anything_is_written(
    root: Path, pattern: str
) -> None:
    (root.parent / "outside").symlink_to("/etc")
    refused = walrecover(
        root, "run", "--adopt", pattern, "--", sys.executable, "-c", "open('ran', 'w')"
    )
    assert refused.code == 2
    assert "--adopt" in refused.err and len(refused.err.splitlines()) == 1
    assert not root.exists() and not (root.parent / "ran").exists()


def test_files_in_new_folders_are_kept_and_a_foreign_format_says_what_is_known(
    root: Path,
) -> None:
    code = (
        "import os\n"
        "os.makedirs('out/deep/er')\n"
        "open('out/deep/er/state.pt', 'wb').write(b'pickled' * 9)\n"
    )
    done = walrecover(
        root, "run", "--name", "run", "--adopt", "out/**/*.pt", "--", sys.executable, "-c", code
    )
    assert done.code == 0, done
    files = walrecover(root, "show", "run", "--json").json["attempts"][0]["files"]
    assert [kept["path"] for kept in files["adopted"]] == ["out/deep/er/state.pt"]
    assert files["adopted"][0]["assurance"].startswith("its size")


def test_the_commands_exit_code_and_environment_are_its_own(root: Path) -> None:
    code = "import sys, os; print(sys.path[0], os.environ['PYTHONPATH']); sys.exit(7)"
    done = walrecover(
        root, "run", "--name", "run", "--adopt", "*.pt", "--max-restarts", "0", "--",
        sys.executable, "-c", code, PYTHONPATH=f"{ROOT}{os.pathsep}/nowhere",
    )  # fmt: skip
    assert done.code == 7
    assert done.out.rstrip().endswith(f"{ROOT}{os.pathsep}/nowhere")
