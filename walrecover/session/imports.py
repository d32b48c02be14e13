"""What this process has imported, for the standby of the next attempt to import ahead.

Owns which modules those are: what comes with Python, is installed (a folder of PYTHONPATH's that
`pip install --target` filled, too), or is walrecover itself. Modules of the script's own folder, of
editable installations and of other places on `sys.path` are left out: they may do things when
imported, and may be edited while the run goes on.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import time
from pathlib import Path

import walrecover
from walrecover.events import ModulesImported
from walrecover.promotion import is_real

READ_LATE = frozenset(
    {"MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHONPATH"}
    | {"TORCHELASTIC_ERROR_FILE"}
)
"""Variables that nothing reads when it is imported: they are for process groups and children."""


def imported() -> ModulesImported:
    """To be called when the script has done all it does in a step."""
    roots = _roots()
    names = [name for name, module in list(sys.modules.items()) if _belongs(name, module, roots)]
    return ModulesImported(at=time.time(), names=tuple(names), environment=_changed_environment())


def _roots() -> tuple[str, ...]:
    found = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {*site.getsitepackages(), site.getusersitepackages()}
    found |= {folder for folder in sys.path if _holds_installed(folder)}
    found.add(str(Path(walrecover.__file__).parent))
    return tuple(os.path.join(folder, "") for folder in found)


def _holds_installed(folder: str) -> bool:
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder))
    except OSError:
        return False


def _belongs(name: str, module: object, roots: tuple[str, ...]) -> bool:
    if name in sys.builtin_module_names:
        return True
    if not is_real(name, module) or name in ("__main__", "sitecustomize", "usercustomize"):
        return False
    return str(module.__spec__.origin).startswith(roots)  # type: ignore[attr-defined]


def _changed_environment() -> tuple[str, ...]:
    """Names of the variables that are not as the process was started with."""
    try:
        started = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        started = []
    before = dict(line.partition(b"=")[::2] for line in started if line)
    now = dict(os.environb)
    changed = {os.fsdecode(name) for name in before | now if before.get(name) != now.get(name)}
    return tuple(
        sorted(n for n in changed if n not in READ_LATE and not n.startswith("WALRECOVER_"))
    )
