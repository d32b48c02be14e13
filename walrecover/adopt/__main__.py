"""`python -m walrecover.adopt JOB`: looks after the adopted files of one attempt.

Owns this process: its job (JSON, from `supervisor.keeper`), its priority, its stream of the
journal, its end. Started before the command, it settles, says "ready" on stdout, and watches until
SIGTERM; started after it, it only settles. A kill at any moment leaves what the crash table says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec

from walrecover import beats
from walrecover.adopt.job import Job, base_path
from walrecover.adopt.patterns import Pattern
from walrecover.adopt.settling import Setting, Telling, settle
from walrecover.adopt.store import Store
from walrecover.errors import WalrecoverError
from walrecover.events import AttemptBegun
from walrecover.journal.notes import Notes
from walrecover.rundir import RunDir

BOOT = Path("/proc/sys/kernel/random/boot_id")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"walrecover: {text}\n")
        sys.stderr.flush()


def main() -> int:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    run = RunDir(Path(job.root), job.run, Path(job.journal) if job.journal else None)
    tree = Path(job.tree)
    store = Store(run.path / "adopted", tree, job.keep)
    notes = Notes(
        run.stream(job.attempt, job.nonce, job.writer),
        AttemptBegun(run=job.run, attempt=job.attempt, nonce=job.nonce, writer=job.writer),
        lambda why: _say(f"what is done with adopted files cannot be journaled: {why}"),
    )
    telling = Telling(notes.note, _say)
    meeting = run.meeting(job.attempt, job.nonce)
    setting = Setting(
        tree=tree,
        root=run.root,
        patterns=[Pattern.parse(text, tree) for text in job.patterns],
        boot=BOOT.read_text().strip(),
        orderly=job.orderly,
        step=0 if job.watch else beats.furthest(meeting),
    )
    try:
        store.create()
        if job.watch:
            _watch(job, store, setting, telling, meeting)
        else:
            settle(store, setting, telling)
            store.mark_settled()
    except (OSError, WalrecoverError) as error:
        _say(f"the adopted files are not looked after: {error}")
        return 1
    finally:
        notes.close()
    return 0


def _watch(job: Job, store: Store, setting: Setting, telling: Telling, meeting: Path) -> None:
    if job.forget:
        store.forget()
    store.sweep()
    settle(store, setting, telling)
    store.mark_running(setting.boot)
    newest = max((record.step for record in store.read()), default=0)
    with contextlib.suppress(OSError):  # then the count starts over
        base_path(meeting).write_text(str(newest))
    _step_back()
    from walrecover.adopt.watching import Watching

    watching = Watching(store, setting, telling, lambda: beats.furthest(meeting))
    leaving = False

    def leave(number: int | None = None, frame: object = None) -> None:
        nonlocal leaving
        leaving = leaving or number is not None
        if leaving and (number is None or watching.waiting):
            raise SystemExit

    store.breathe = leave  # a copy under way is not waited for
    signal.signal(signal.SIGTERM, leave)
    watching.begin()
    os.write(sys.stdout.fileno(), b"ready\n")  # at once: whoever reads it closes the pipe
    watching.run(lambda: leaving)


def _step_back() -> None:
    """From here on everything here comes after the training."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


if __name__ == "__main__":
    raise SystemExit(main())
