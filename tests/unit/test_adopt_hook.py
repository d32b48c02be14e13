"""What `--adopt` puts into the command's Python, over a stand-in for torch: the real one is in
tests/end_to_end/test_adopt.py."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stand_in import write_stand_in
from walrecover import beats
from walrecover.adopt.job import base_path
from walrecover.rundir import RunDir
from walrecover.supervisor.keeper import HOOK

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    folder = RunDir(tmp_path / ".walrecover", "run").meeting(3, "ab12")
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(tmp_path: Path, meeting: Path) -> Run:
    """A script beside a package that calls itself torch, started as the supervisor starts it."""
    write_stand_in(tmp_path / "site")

    def run(code: str, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
        told = {
            "PYTHONPATH": os.pathsep.join([str(HOOK), str(tmp_path / "site")]),
            "WALRECOVER_DIR": str(tmp_path / ".walrecover"),
            "WALRECOVER_RUN": "run",
            "WALRECOVER_ATTEMPT": "3-ab12",
        }
        return subprocess.run(
            [sys.executable, *flags, "-c", textwrap.dedent(code)],
            env={**os.environ, **told, **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


STEPS = "from torch.optim.optimizer import Optimizer\no = Optimizer()\n"


def test_every_step_is_in_the_beat_of_its_rank(run: Run, meeting: Path) -> None:
    done = run(STEPS + "for _ in range(7): o.step()\nimport os; print(os.getpid())", RANK="2")
    assert (done.returncode, done.stderr) == (0, "")
    page = beats.Page(beats.beat_path(meeting, 2))
    assert (page.read().step, page.read().phase, page.pid) == (7, "counted", int(done.stdout))
    page.close()
    assert beats.furthest(meeting) == 7


def test_the_count_goes_on_only_where_state_was_loaded(run: Run, meeting: Path) -> None:
    base_path(meeting).write_text("1000")
    assert run(STEPS + "o.step()").stderr == ""
    assert beats.furthest(meeting) == 1
    beats.beat_path(meeting, 0).unlink()
    assert run(STEPS + "o.state['loaded'] = 1\no.step()").stderr == ""
    assert beats.furthest(meeting) == 1001
    # A second process of the attempt, after the first: two stages of one command.
    assert run(STEPS + "o.step()").stderr == ""
    assert beats.furthest(meeting) == 1002


def test_only_the_first_process_that_steps_is_the_rank(run: Run, meeting: Path) -> None:
    """Neither its forks (a loader's workers) nor another process that trains beside it."""
    done = run(
        STEPS
        + """
import os, subprocess, sys
o.step(); o.step()
if os.fork() == 0:
    o.step(); os._exit(0)
os.wait()
other = "from torch.optim.optimizer import Optimizer as O; O().step()"
subprocess.run([sys.executable, "-c", other])
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert beats.furthest(meeting) == 2


def test_a_process_that_never_steps_leaves_nothing(run: Run, meeting: Path) -> None:
    assert run("import json, torch.optim.optimizer").stderr == ""
    assert list(meeting.iterdir()) == []


def test_a_script_that_attaches_speaks_for_itself(run: Run, meeting: Path) -> None:
    mark = "import sys, types\nsys.modules['walrecover.session'] = types.ModuleType('session')\n"
    assert run(mark + STEPS + "o.step()").stderr == ""
    assert list(meeting.iterdir()) == []


def test_the_script_sees_the_path_it_would_have_had(run: Run, tmp_path: Path) -> None:
    code = "import sys; print(sys.path); print('sitecustomize' in sys.modules)"
    ours, plain = run(code), run(code, PYTHONPATH=str(tmp_path / "site"))
    assert ours.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    assert run("import sys; print(7)", "-I").stdout == "7\n"


def test_the_users_own_sitecustomize_runs(run: Run, tmp_path: Path, meeting: Path) -> None:
    own = tmp_path / "site" / "sitecustomize.py"
    own.write_text("import sys; sys.mine = __name__\n")
    code = "import sys, sitecustomize; print(sys.mine, sitecustomize.__file__)\n"
    done = run(code + STEPS + "o.step()")
    assert done.stdout == f"sitecustomize {own}\n", done.stderr
    assert beats.furthest(meeting) == 1
    own.write_text("raise RuntimeError('mine')")
    done = run(STEPS + "o.step()")
    assert done.returncode == 0 and "RuntimeError: mine" in done.stderr
    assert beats.furthest(meeting) == 2


@pytest.mark.parametrize("broken", ["the folder is gone", "torch has no such hook"])
def test_what_fails_inside_is_one_line_and_the_script_goes_on(
    run: Run, tmp_path: Path, meeting: Path, broken: str
) -> None:
    if broken == "the folder is gone":
        meeting.rmdir()
        hooks = ""
    else:
        hooks = "import torch.optim.optimizer as m\n"
        path = tmp_path / "site" / "torch" / "optim" / "optimizer.py"
        path.write_text(path.read_text().replace("register_optimizer", "nothing"))
    done = run(hooks + STEPS + "o.step(); o.step(); print('trained')")
    assert done.stdout == "trained\n"
    assert len(done.stderr.splitlines()) == 1 and "steps are not counted" in done.stderr


def test_a_finder_that_wraps_ours_does_not_break_the_script(run: Run, meeting: Path) -> None:
    """Nor somebody who took ours out of `sys.meta_path` and asks it all the same."""
    finders = """
import sys
waiting = sys.meta_path[0]
class Asks:
    def find_spec(self, name, path=None, target=None):
        return waiting.find_spec(name, path, target)
sys.meta_path[:1] = [Asks()]
"""
    done = run(finders + STEPS + "o.step(); print('trained')")
    assert (done.stdout, done.stderr) == ("trained\n", "")
    assert beats.furthest(meeting) == 1
