"""In the command's Python: counts the steps of optimizers, in a beat that the supervisor reads.

Owns waiting for `torch.optim` without importing it, one hook, and one page in the attempt's
folder; then it runs the `sitecustomize` that would have run without it. Found through PYTHONPATH
by any Python, so it needs nothing but the standard library, and nothing of walrecover: the page's
layout is that of `walrecover.beats`. Must never break the script, nor act in a process that is no
rank: the first process that steps for a rank is that rank, its forks are not.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing takes as long as all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Waiting:
    """A finder that finds nothing, and is gone once `torch.optim.optimizer` has been imported."""

    _asked = False  # somebody may wrap this finder, and ask it again from inside

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch.optim.optimizer" or self._asked:
            return None
        self._asked = True
        # It asks the finders as `import` does.
        from _frozen_importlib import _find_spec  # type: ignore[attr-defined]

        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = _find_spec(name, path, target)
        if spec is not None:
            _quietly(self._register_after, spec.loader)
        return spec

    def _register_after(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _quietly(_register, module)

        loader.exec_module = exec_module


def _register(module: Any) -> None:
    """A hook before the first step, to see whether the optimizer's state was loaded, and one after
    each, which is in the way for less than a microsecond."""
    begun = False

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal begun
        if not begun:  # it stays: torch walks its hooks while this runs
            begun = True
            _quietly(begin, optimizer)

    def begin(optimizer: Any) -> None:
        import os

        page = _claim(resumed=bool(optimizer.state))
        if page is not None:
            each = module.register_optimizer_step_post_hook(_counter(*page))
            os.register_at_fork(after_in_child=each.remove)  # a loader's worker

    module.register_optimizer_step_pre_hook(before)


def _counter(page: Any, step: int) -> Callable[[Any, Any, Any], None]:
    import struct
    from time import monotonic

    pack, size = struct.Struct("<QQd").pack, struct.calcsize("<QQd")

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal step
        step += 1
        page[:size] = pack(step, 7, monotonic())  # 7: "counted"

    return after


def _claim(resumed: bool) -> tuple[Any, int] | None:
    """This rank's page and the steps made before; None where another process has it, or where the
    script says itself what it does."""
    import fcntl
    import mmap
    import os
    import struct

    told = os.environ.get("WALRECOVER_ATTEMPT")
    if told is None or "walrecover.session" in sys.modules:
        return None
    number, _, nonce = told.partition("-")
    folder = os.path.join(
        os.environ["WALRECOVER_DIR"],
        "runs",
        os.environ["WALRECOVER_RUN"],
        "attempts",
        f"a{number}-{nonce}",
    )
    path = os.path.join(folder, f"rank-{_rank():05d}.beat")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except OSError:
        os.close(fd)
        return None
    os.posix_fallocate(fd, 0, mmap.PAGESIZE)  # a hole on a full disk ends who writes into it
    page = mmap.mmap(fd, mmap.PAGESIZE)
    step = struct.unpack_from("<Q", page)[0]  # by a process of this attempt that has ended
    if not step and resumed:
        step = _steps_before(os.path.join(folder, "adopted-step"))
    page[24:32] = struct.pack("<Q", os.getpid())
    return page, step


def _rank() -> int:
    import os

    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return int(os.environ.get("RANK") or 0)


def _steps_before(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _quietly(function: Callable[..., object], *arguments: object) -> None:
    """The script goes on whatever happens here."""
    try:
        function(*arguments)
    except Exception as error:
        if sys.stderr is not None:
            sys.stderr.write(f"walrecover: steps are not counted: {error!r}\n")


def _leave_the_path() -> None:
    import os

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    sys.meta_path.insert(0, _Waiting())


def _run_the_users_own() -> None:
    """As `site` would have without us; what it raises, `site` reports."""
    from _frozen_importlib import module_from_spec
    from _frozen_importlib_external import PathFinder

    spec = PathFinder.find_spec(__name__)
    if spec is None or spec.loader is None:
        return
    ours = sys.modules[__name__]
    sys.modules[__name__] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules[__name__] = ours
        raise


_quietly(_leave_the_path)
if __name__ == "sitecustomize":
    _run_the_users_own()
