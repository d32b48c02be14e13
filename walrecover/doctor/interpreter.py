"""Asks the Python that a command runs with for its versions, and torch for its GPUs.

Owns the child process that is asked, bounded in time; the parent never imports torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec

from walrecover.findings.facts import Interpreter

SECONDS = 60.0
_PYTHON = re.compile(r"python[0-9.]*")

QUESTION = """
import json, sys
sys.path[:1] = []
from importlib import metadata
def version(name):
    try:
        return metadata.version(name) or ""
    except Exception:
        return ""
answer = {name: version(name) for name in ("torch", "walrecover", "lmdb")}
answer["python"] = "%d.%d.%d" % sys.version_info[:3]
if sys.argv[1:] == ["torch"] and answer["torch"]:
    try:
        import torch
        answer["cuda"] = torch.cuda.device_count()
    except BaseException as error:
        answer["cuda_error"] = "%s: %s" % (type(error).__name__, error)
print("\\n" + json.dumps(answer))
"""
"""For any Python 3, and nothing of walrecover: it may not be installed there."""


class _Answer(msgspec.Struct):
    python: str
    torch: str
    walrecover: str
    lmdb: str
    cuda: int | None = None
    cuda_error: str = ""


def ask(command: Sequence[str], environ: Mapping[str, str], *, torch: bool) -> Interpreter:
    """`torch`: whether to import it, which takes seconds."""
    path = of_command(command, environ)
    said = _said(path, environ, ["torch"] if torch else [])
    if isinstance(said, _Answer):
        return Interpreter(
            path, said.python, said.torch, said.walrecover, said.lmdb,
            cuda=said.cuda, cuda_error=said.cuda_error,
        )  # fmt: skip
    if torch:  # the versions need no torch
        again = ask(command, environ, torch=False)
        return msgspec.structs.replace(again, cuda_error=said)
    return Interpreter(path, error=said)


def of_command(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """The command's first word where that is a Python, or a script that names one (torchrun);
    else the Python of this process."""
    found = shutil.which(command[0], path=environ.get("PATH")) if command else None
    if found is None:
        return sys.executable
    if _PYTHON.fullmatch(os.path.basename(found)):
        return found
    return _of_script(found) or sys.executable


def _of_script(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            line = file.readline(512)
    except OSError:
        return None
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    fits = bool(words) and _PYTHON.fullmatch(os.path.basename(words[0]))
    return words[0] if fits else None


def _said(path: str, environ: Mapping[str, str], words: list[str]) -> _Answer | str:
    """The answer, or why there is none."""
    try:
        done = subprocess.run(
            [path, "-c", QUESTION, *words],
            env={**environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer in {SECONDS:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=_Answer)
    except (IndexError, msgspec.DecodeError):
        lines = done.stderr.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        return f"it ended with {done.returncode} and said {last.strip()[:200]}"
