"""A promoted standby is the script that `python train.py` is; where it could not be, the start is a
cold one. On real processes that know nothing of torch; with torch: `test_kills.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).parent / "scripts" / "probe.py"
AHEAD = ["ctypes", "decimal", "multiprocessing.pool", "multiprocessing.spawn", "xml.dom.minidom"]
PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
LISTS = """
import sys
for name in sys.argv[1:]: __import__(name)
from walrecover.promotion import is_real
print(*(name for name, module in sys.modules.items() if is_real(name, module)))
"""


@functools.cache
def names_of(*ahead: str) -> list[str]:
    """What a script's journal would say that has imported these."""
    command = [sys.executable, "-c", LISTS, *ahead]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return said.splitlines()[-1].split()


class Told(dict[str, Any]):
    """What became of a command: the driver's word, and what was printed."""

    out: str
    err: str


def drop_nice() -> None:
    """Without CAP_SYS_NICE, which we may have; and without room in RLIMIT_NICE."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NICE, (0, 0))


def drive(folder: Path, command: list[str], **scenario: Any) -> Told:
    path = scenario.pop("path", f"{ROOT}{os.pathsep}{PROBE.parent}")
    before = drop_nice if scenario.pop("unprivileged", False) else None
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.standby_driver", str(folder),
         json.dumps({"command": command, "names": names_of(*AHEAD), **scenario})],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        preexec_fn=before,
    )  # fmt: skip
    *out, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, done.stdout + done.stderr
    told = Told(json.loads(last))
    told.out, told.err = "\n".join(out), done.stderr
    return told


@pytest.fixture
def both(tmp_path: Path) -> Any:
    """A command as a cold start and as a promoted standby."""

    def both(command: list[str], **scenario: Any) -> tuple[Told, Told]:
        (tmp_path / "cold").mkdir()
        (tmp_path / "warm").mkdir()
        cold = drive(tmp_path / "cold", command, kind="off", **scenario)
        warm = drive(tmp_path / "warm", command, **scenario)
        assert (cold["standby"], warm["standby"], warm["same"]) == ("", "imported", True), warm.err
        return cold, warm

    return both


@pytest.mark.parametrize(
    "options",
    [
        [str(PROBE)],
        ["-m", "probe"],
        ["-u", "-O", "-W", "ignore::FutureWarning", "-X", "utf8", "-P", str(PROBE)],
    ],
    ids=["script", "module", "options"],
)
def test_a_promoted_standby_sees_what_a_cold_start_sees(both: Any, options: list[str]) -> None:
    cold, warm = both([sys.executable, *options, "3", "--lr", "1e-3"])
    was, now = json.loads(cold.out), json.loads(warm.out)
    extra = set(now.pop("modules")) - set(was.pop("modules"))
    del was["environ"]["WALRECOVER_DIR"], now["environ"]["WALRECOVER_DIR"]
    assert {key: (was[key], now[key]) for key in was if was[key] != now[key]} == {}
    assert (cold["code"], warm["code"]) == ("exit code 3", "exit code 3")
    # Beside what it was to import, it has what waited, and no trace of how that came to be run.
    assert {"walrecover.promotion", *AHEAD} <= extra
    assert "sitecustomize" not in extra


@pytest.mark.parametrize("unprivileged", [False, True])
def test_it_imports_so_that_it_does_not_disturb_and_comes_back(
    both: Any, tmp_path: Path, unprivileged: bool
) -> None:
    module = tmp_path / "installed" / "politeness.py"
    module.parent.mkdir()
    module.write_text(
        "import os, signal\nfound = os.nice(0), signal.getitimer(signal.ITIMER_PROF)[1] > 0\n"
    )
    script = tmp_path / "asks.py"
    script.write_text(
        "import os, signal, politeness\n"
        "print(*politeness.found, os.nice(0),"
        " signal.getitimer(signal.ITIMER_PROF)[1], signal.getsignal(signal.SIGPROF) == 0)\n"
    )
    cold, warm = both(
        [sys.executable, str(script)],
        names=[*names_of(*AHEAD), "politeness"],
        path=f"{module.parent}{os.pathsep}{ROOT}",
        unprivileged=unprivileged,
    )
    nice, paced, *rest = warm.out.split()
    assert (nice == "19") != (paced == "True")
    assert not (unprivileged and nice == "19")
    assert rest == cold.out.split()[2:]


@pytest.mark.parametrize("how", ["0", "3", "raise", "text", "signal"])
def test_it_ends_as_a_cold_start_ends(both: Any, how: str) -> None:
    cold, warm = both([sys.executable, str(PROBE), how])
    assert (warm["code"], warm.err) == (cold["code"], cold.err)


def test_what_importing_prints_comes_when_the_script_runs(both: Any, tmp_path: Path) -> None:
    script = tmp_path / "zen.py"
    script.write_text("print('first', flush=True)\nimport this\nprint('last')\n")
    cold, warm = both([sys.executable, str(script)], names=[*names_of("this")])
    assert "Zen" in cold.out
    assert sorted(warm.out.splitlines()) == sorted(cold.out.splitlines())


def test_the_sitecustomize_of_the_user_runs_once_and_stays(both: Any, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nsys.customized = 1\nif 'shows' in sys.argv[0]: print('customized')"
    )
    script = tmp_path / "shows.py"
    script.write_text("import sys; print(sys.customized, sys.modules['sitecustomize'].__file__)")
    path = f"{folder}{os.pathsep}{ROOT}"
    cold, warm = both([sys.executable, str(script)], path=path)
    assert cold.out.splitlines().count("customized") == 1
    assert warm.out == cold.out


# -- where it must not, or cannot, take over -----------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Any:
    """What became of a command whose standby could not take over; its line on stderr."""

    def spoilt(script: str = "print(1)", **scenario: Any) -> str:
        path = tmp_path / "script.py"
        path.write_text(script)
        told = drive(tmp_path / "run", [sys.executable, str(path)], **scenario)
        assert (told["standby"], told["same"], told["code"]) == ("", False, "exit code 0"), told.err
        assert told.out == "1"
        return told.err

    return spoilt


def test_one_that_was_killed_is_replaced_by_a_cold_start(spoilt: Any) -> None:
    assert "a cold one: it died" in spoilt(spoil="kill")


def test_one_that_was_stopped_is_replaced_by_a_cold_start(spoilt: Any) -> None:
    assert "did not answer within" in spoilt(spoil="stop")


def test_one_whose_supervisor_is_killed_dies_with_it(tmp_path: Path) -> None:
    scenario = {"command": [sys.executable, str(PROBE), "0"], "names": [], "spoil": "abandon"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.standby_driver", str(tmp_path), json.dumps(scenario)],
        cwd=ROOT,
    )
    assert done.returncode == -signal.SIGKILL  # and `no_process_left_behind` looks for the rest


def test_another_environment_is_a_cold_start(spoilt: Any) -> None:
    assert "environment is another one" in spoilt(environ={"MICRO_BATCH": "4"})


def test_a_file_that_has_changed_since_is_a_cold_start(spoilt: Any, tmp_path: Path) -> None:
    module = tmp_path / "installed" / "edited.py"
    module.parent.mkdir()
    module.write_text("")
    names = [*names_of(*AHEAD), "edited"]
    said = spoilt(spoil=f"touch {module}", names=names, path=f"{module.parent}{os.pathsep}{ROOT}")
    assert "edited.py has changed since" in said


def test_a_variable_that_the_script_sets_itself_is_a_cold_start(spoilt: Any) -> None:
    assert "the script sets OMP_STACKSIZE itself" in spoilt(environment=["OMP_STACKSIZE"])


def test_an_import_that_fails_is_a_cold_start(spoilt: Any) -> None:
    assert "ModuleNotFoundError" in spoilt(names=["no_such_module"])


def test_a_module_from_another_place_is_a_cold_start(spoilt: Any, tmp_path: Path) -> None:
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "__init__.py").write_text("")
    assert "xml" in spoilt(names=["xml.dom"])


def test_an_attempt_in_another_process_has_no_standby(spoilt: Any) -> None:
    assert spoilt(elsewhere=True) == ""


# -- parked --------------------------------------------------------------------------------------

PARKED = """
import os, sys
from walrecover import promotion
print("top half", "WALRECOVER_ATTEMPT" in os.environ, flush=True)
promotion.arrive()
print(os.environ["WALRECOVER_ATTEMPT"], promotion.MARK in os.environ)
sys.exit(4)
"""


def test_a_parked_one_has_run_the_script_up_to_attach(tmp_path: Path) -> None:
    script = tmp_path / "parked.py"
    script.write_text(PARKED)
    told = drive(tmp_path / "run", [sys.executable, str(script)], kind="parked")
    assert (told["standby"], told["same"], told["code"]) == ("parked", True, "exit code 4")
    assert told.out.splitlines() == ["top half False", "2-00000000 False"]


def test_a_parked_ones_script_that_was_edited_is_a_cold_start(tmp_path: Path) -> None:
    script = tmp_path / "parked.py"
    script.write_text(PARKED)
    spoil = f"touch {script}"
    told = drive(tmp_path / "run", [sys.executable, str(script)], kind="parked", spoil=spoil)
    assert (told["standby"], told["code"]) == ("", "exit code 4")
    assert told.out.splitlines() == ["top half False", "top half True", "2-00000000 False"]


DEAF = """
import os, signal, sys
from pathlib import Path
from walrecover import promotion
signal.signal(signal.SIGTERM, signal.SIG_IGN)
promotion.arrive()
from walrecover.beats import Beat
from walrecover.events import AttemptBegun, ModulesImported
from walrecover.journal import Journal
from walrecover.rundir import RunDir
signal.signal(signal.SIGTERM, signal.SIG_DFL)
number, _, nonce = os.environ["WALRECOVER_ATTEMPT"].partition("-")
run = RunDir(Path(os.environ["WALRECOVER_DIR"]), os.environ["WALRECOVER_RUN"])
Beat(run.meeting(int(number), nonce), 0).say("training", 1)
first = AttemptBegun(
    run=run.name, attempt=int(number), nonce=nonce, writer="rank-0", pid=os.getpid()
)
journal = Journal.create(run.stream(int(number), nonce, "rank-0"), attempt=int(number), first=first)
journal.append(ModulesImported(names=()))
while True: signal.pause()
"""


def test_a_stop_does_not_wait_for_a_standby_that_ignores_signals(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    command = [sys.executable, "-m", "walrecover.cli", "run", "--dir", str(tmp_path / "runs")]
    command += ["--grace", "10m", "--standby", "parked", "--", sys.executable, "deaf.py"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ) as supervisor:
        try:
            standby = wait_until(lambda: waiting_below(supervisor))
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(60) == 128 + signal.SIGTERM
            assert not Path(f"/proc/{standby}").exists()
        finally:
            supervisor.kill()


def waiting_below(supervisor: subprocess.Popen[bytes]) -> int:
    """The pid of a standby that waits; 0 where there is none."""
    assert supervisor.poll() is None
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    for pid in children.read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "walrecover-wait":
                return int(pid)
    return 0


def test_a_standby_whose_hook_never_ran_does_not_train(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from walrecover import promotion; promotion.arrive(); print('trained')")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "WALRECOVER_PROMOTION": "imported:3:4"}
    done = subprocess.run([sys.executable, str(script)], env=environ, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
