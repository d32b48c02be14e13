"""Prints, as one JSON line, what a script can see of how it was started; then ends as told."""

import json
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path

STACK = len(traceback.extract_stack())
MODULES = sorted(sys.modules)
MAIN = sorted(vars(sys.modules["__main__"]))
DESCRIPTORS = sorted(os.listdir("/proc/self/fd"))
THREADS = threading.active_count(), len(os.listdir("/proc/self/task"))
VARYING = ("WALRECOVER_ATTEMPT", "WALRECOVER_SUPERVISOR", "TORCHELASTIC_ERROR_FILE")


class Mine:
    pass


def twice(number):
    return 2 * number


def handled(number):
    return repr(signal.getsignal(number)).partition(" at ")[0]


def seen():
    import ctypes
    import multiprocessing

    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(twice, [21])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.map(twice, [4])
    spec = __spec__
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "cmdline": Path("/proc/self/cmdline").read_text(),
        "path": sys.path,
        "flags": list(sys.flags),
        "warnoptions": sys.warnoptions,
        "xoptions": sys._xoptions,
        "filters": list(map(repr, warnings.filters)),
        "name": __name__,
        "file": __file__,
        "spec": spec and (spec.name, spec.origin),
        "package": __package__,
        "cached": __cached__,
        "loader": type(__loader__).__name__,
        "main": MAIN,
        "modules": MODULES,
        "cwd": os.getcwd(),
        "environ": {n: v for n, v in os.environ.items() if n not in VARYING},
        "told": sorted(n for n in os.environ if n in VARYING),
        "signals": {str(number): handled(number) for number in signal.valid_signals()},
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "group": os.getpgid(0) == os.getpid(),
        "session": os.getsid(0) == os.getsid(os.getppid()),
        "death": death.value,
        "stdin": os.fstat(0).st_ino,
        "streams": [s.line_buffering or s.write_through for s in (sys.stdout, sys.stderr)],
        "descriptors": DESCRIPTORS,
        "threads": THREADS,
        "stack": STACK,
        "schedule": (os.sched_getscheduler(0), os.nice(0), os.sched_getparam(0).sched_priority),
        "comm": Path("/proc/self/comm").read_text(),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "umask": os.umask(0o22),
        "pickled": type(pickle.loads(pickle.dumps(Mine()))) is Mine,
        "spawned": spawned,
        "forked": forked,
    }


if __name__ == "__main__":
    print(json.dumps(seen()), flush=True)
    how = sys.argv[1]
    if how == "raise":
        raise ValueError("on purpose")
    if how == "text":
        sys.exit("a text")
    if how == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(int(how))
