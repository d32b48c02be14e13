"""Commands that are Python scripts: what a command line starts, told without running it.

Owns reading a line as the interpreter reads it; pure. Only what a standby process can stand in for
counts: `python [options] script.py …` and `python [options] -m module …`. A line whose options
leave out what a standby hooks into, or would show that modules were imported ahead of time, is
refused with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_PLAIN = frozenset("bBdOPqsu")
_WITH_VALUE = frozenset("WX")
_TRACES = ("importtime",)


class Script(NamedTuple):
    """What a Python command line runs. `target`: the script's path, or the module's name."""

    kind: Literal["script", "module"]
    target: str


class NotPython(NamedTuple):
    """No standby can stand in for the command, and why."""

    reason: str


def script_of(argv: Sequence[str]) -> Script | NotPython:
    """The script that this command runs."""
    if not argv or not _PYTHON.fullmatch(argv[0].rpartition("/")[2]):
        return NotPython("the command does not start with python")
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-") or word == "-":
            break
        if word.startswith("--"):
            return NotPython(f"python {word} is not reproduced")
        for place, letter in enumerate(word[1:], 2):
            rest = word[place:]
            if letter in _WITH_VALUE:
                value = rest or next(words, "")
                if value.partition("=")[0] in _TRACES:
                    return NotPython(f"python -{letter} {value} is not reproduced")
                break
            if letter == "m":
                module = rest or next(words, "")
                return Script("module", module) if module else NotPython("-m names nothing")
            if letter not in _PLAIN:
                return NotPython(f"python -{letter} is not reproduced")
    else:
        return NotPython("python is given no script")
    if word == "-":
        return NotPython("python reads the script from its input")
    return Script("script", word)
