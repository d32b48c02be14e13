"""What an exception says of itself in the journal.

Owns the way from an exception to `ExceptionRaised`: its type and bases, its message (bounded, and
without what looks like a secret), and the frame of the user's own code that it came through.
"""

from __future__ import annotations

import os
import sysconfig
import time
import traceback
from types import CodeType
from typing import NamedTuple

from walrecover.events import ExceptionRaised
from walrecover.session.loops import Frame as LoopFrame
from walrecover.wording import cut, redacted_text

_FOREIGN = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Place(NamedTuple):
    file: str
    line: int
    code: CodeType


def describe(error: BaseException, step: int) -> ExceptionRaised:
    """`step`: the last completed one."""
    walked = traceback.walk_tb(error.__traceback__)
    places = [Place(frame.f_code.co_filename, line, frame.f_code) for frame, line in walked]
    file, line, function = innermost(places)
    return ExceptionRaised(
        at=time.time(),
        kind=_name(type(error)),
        message=_message(error),
        bases=tuple(_name(base) for base in type(error).__mro__[1:-1]),
        file=file,
        line=line,
        function=function,
        step=step,
        fetching=any(place.code is LoopFrame.fetch.__code__ for place in places),
    )


def innermost(places: list[Place]) -> tuple[str, int, str]:
    """The innermost frame of the user's own code, else of any that is not walrecover's."""
    libraries = _libraries()
    own = [p for p in places if not _is_library(p.file, libraries)]
    other = [p for p in places if not p.file.startswith(libraries[0])]
    for chosen in (own, other, places):
        if chosen:
            return chosen[-1].file, chosen[-1].line, chosen[-1].code.co_qualname
    return "", 0, ""


def _libraries() -> tuple[str, ...]:
    """Folders whose code is not the user's, walrecover's own first."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = sysconfig.get_paths()
    return tuple(
        os.path.join(path, "") for path in (own, *(paths[n] for n in ("stdlib", "platstdlib")))
    )


def _is_library(file: str, libraries: tuple[str, ...]) -> bool:
    return file.startswith(("<frozen", *libraries)) or any(part in file for part in _FOREIGN)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        text = redacted_text(str(error))
    except Exception as failure:  # a __str__ of the user's own
        return f"(its message cannot be read: {type(failure).__name__})"
    return cut(text.encode("utf-8", "replace").decode())
