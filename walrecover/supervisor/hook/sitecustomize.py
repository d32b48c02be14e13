"""What the interpreter of a standby runs before the script: it waits for its promotion.

On `sys.path` only through the PYTHONPATH of a standby, which is put back here. The `sitecustomize`
that this one hides runs first. Whatever goes wrong ends the process: a script must never run as a
second copy that nobody promoted.
"""

import os
import sys


def _uncover() -> BaseException | None:
    """Take this folder away, and run the module that it hides; what that raised."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path_importer_cache.pop(here, None)
    rest = os.environ.pop("PYTHONPATH", here).partition(os.pathsep)
    if rest[1]:
        os.environ["PYTHONPATH"] = rest[2]
    del sys.modules["sitecustomize"]
    try:
        __import__("sitecustomize")
    except Exception as error:
        return error
    return None


def _stand_by() -> None:
    first = os.getcwd() if sys.argv[0] == "-m" else os.path.dirname(os.path.realpath(sys.argv[0]))
    here = [] if sys.flags.safe_path else [first]
    sys.path[:0] = here  # as the script will find its modules
    try:
        from walrecover import promotion

        promotion.stand_by()
    finally:
        del sys.path[: len(here)]


try:
    _hidden = _uncover()
    _stand_by()
except BaseException as error:
    os.write(2, f"walrecover: a standby ended: {error!r}\n".encode(errors="replace"))
    os._exit(1)
if _hidden is not None:
    raise _hidden  # none is there, or its own error: the interpreter says what it always says
