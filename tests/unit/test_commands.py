"""Which command lines are Python scripts: held against the interpreter itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from walrecover.commands import NotPython, Script, script_of


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("python train.py", Script("script", "train.py")),
        ("/opt/venv/bin/python3.12 train.py -m x", Script("script", "train.py")),
        ("python3 -u -W error -X dev a/train.py --lr 3", Script("script", "a/train.py")),
        ("python -uOWignore -Xutf8 train.py", Script("script", "train.py")),
        ("python -P train.py", Script("script", "train.py")),
        ("python -m pkg.train --lr 3", Script("module", "pkg.train")),
        ("python -um pkg.train -c", Script("module", "pkg.train")),
        ("python -umpkg.train", Script("module", "pkg.train")),
    ],
)
def test_a_python_script_is_recognised(line: str, found: Script) -> None:
    assert script_of(line.split()) == found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("torchrun train.py", "does not start with python"),
        ("bash -c python", "does not start with python"),
        ("python-config", "does not start with python"),
        ("./train.py", "does not start with python"),
        ("python", "no script"),
        ("python -u", "no script"),
        ("python -", "from its input"),
        ("python -c pass", "-c"),
        ("python -I train.py", "-I"),
        ("python -uE train.py", "-E"),
        ("python -S train.py", "-S"),
        ("python -i train.py", "-i"),
        ("python -v train.py", "-v"),
        ("python -X importtime train.py", "importtime"),
        ("python -Ximporttime=2 train.py", "importtime"),
        ("python --version", "--version"),
        ("python -m", "names nothing"),
    ],
)
def test_what_a_standby_could_not_stand_in_for_is_refused(line: str, says: str) -> None:
    refusal = script_of(line.split())
    assert isinstance(refusal, NotPython)
    assert says in refusal.reason


def test_an_empty_command_is_refused() -> None:
    assert isinstance(script_of([]), NotPython)


@pytest.mark.parametrize("options", [[], ["-u"], ["-OP"], ["-W", "ignore", "-Xdev"], ["-bqs"]])
def test_the_interpreter_reads_the_line_alike(options: list[str], tmp_path: Path) -> None:
    path = tmp_path / "probe.py"
    path.write_text("print(__file__)")
    command = [sys.executable, *options, str(path), "-m", "x"]
    script = script_of(command)
    assert isinstance(script, Script)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == script.target
