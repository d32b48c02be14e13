"""What people and programs read of a rehearsal: progress, the flow of each kill, the verdict.

Owns the words and where they go: progress to stderr (a bar only on a terminal), the verdict to
stdout. Decides nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from walrecover.rehearse import usual
from walrecover.rehearse.compare import Difference
from walrecover.rehearse.flow import Flow
from walrecover.rehearse.kill import Strike

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

VERSION = 1
REFRESH_SECONDS = 0.2
SHOWN_FILES = 10


class Result(NamedTuple):
    """The rehearsal's outcome. `problems`: why it proves nothing, or not what was asked.

    `deterministic`: whether two undisturbed runs were the same; None where nobody asked. If not,
    `difference` is between these two, and nothing was killed.
    """

    kills: int
    strikes: Sequence[Strike]
    difference: Difference | None
    digest: str
    steps: int
    files: Sequence[str]
    seconds: float
    problems: Sequence[str] = ()
    deterministic: bool | None = None

    @property
    def landed(self) -> list[Strike]:
        return [strike for strike in self.strikes if strike.landed]

    @property
    def inside(self) -> int:
        return sum(strike.inside for strike in self.strikes)

    @property
    def identical(self) -> bool:
        return self.difference is None and not self.problems


class Progressing:
    """Lines and a bar on stderr. A context manager. No thread: it is drawn when told of a step."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0

    def __enter__(self) -> Progressing:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, Elapsed(), console=self._console, auto_refresh=False)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, text: str, steps: int | None = None) -> None:
        """A run begins, of so many steps if that is known."""
        if self._bar is None:
            self.line(text)
        else:
            self._task = self._bar.add_task(text, total=steps)
            self._bar.refresh()

    def step(self, step: int) -> None:
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)
            if now - self._drawn > REFRESH_SECONDS:
                self._drawn = now
                self._bar.refresh()

    def done(self, step: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, total=step)
            self._bar.refresh()

    def line(self, text: str) -> None:
        """Text, never markup: it may hold what a script printed."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_strike(strike: Strike, number: int, kills: int) -> str:
    where = "in a snapshot" if strike.inside else "in a step"
    missed = "" if strike.landed else " (the run had ended: it does not count)"
    return (
        f"kill {number}/{kills}: SIGKILL of {strike.victim} at step {strike.step}, {where}{missed}"
    )


def describe_flow(flow: Flow | None) -> str:
    if flow is None:
        return "  → no other attempt trained before the next kill, or the end"
    seen = f"seen after {duration(flow.seen)} → " if flow.seen is not None else ""
    base = f"resumed after step {flow.base}" if flow.base else "started from the beginning"
    steps = "step" if flow.again == 1 else "steps"
    again = f" ({flow.again} {steps} done again)" if flow.again else ""
    return (
        f"  → {seen}{base}{again}, restored after {duration(flow.restored)} "
        f"→ training again after {duration(flow.training)}"
    )


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def describe_difference(difference: Difference, *, itself: bool = False) -> str:
    """`itself`: between two undisturbed runs."""
    where = "" if difference.rank == 0 else f", on rank {difference.rank}"
    values = f"{difference.calm} in the undisturbed run, {difference.killed} in the killed one"
    if itself:
        values = f"{difference.calm} in one run, {difference.killed} in the other"
    if difference.again:
        values = f"{difference.calm} the first time, {difference.killed} when it was done again"
    if difference.step is None:
        return f"different in the final state{where}: {difference.what} is {values}"
    return f"different from step {difference.step} on{where}: {difference.what} is {values}"


def write_text(result: Result, say: Callable[[str], None]) -> None:
    """Notes to `say`, the verdict on stdout."""
    landed, inside = len(result.landed), result.inside
    if result.deterministic is False and result.difference is not None:
        found = describe_difference(result.difference, itself=True)
        sys.stdout.write(f"not deterministic by itself, without any crash: {found}\n")
        for cause in usual.causes(result.difference.what):
            sys.stdout.write(f"  a usual cause: {cause}\n")
        sys.stdout.flush()
        return
    say(
        f"{landed} of {result.kills} kills landed while the script trained, {inside} of them in a "
        f"snapshot, in {result.seconds:.0f} s"
    )
    if result.files:
        more = len(result.files) - SHOWN_FILES
        names = ", ".join(result.files[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")
        say(f"both runs wrote these files, and the second overwrote the first: {names}")
    lines = [f"not shown: {problem}" for problem in result.problems]
    if result.difference is not None:
        lines.append(describe_difference(result.difference))
    elif not lines:
        lines.append(f"identical after {result.steps} steps: final weights {result.digest}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def write_json(result: Result) -> None:
    """One object on stdout."""
    body = {
        "version": VERSION,
        "identical": result.identical,
        "deterministic": result.deterministic,
        "usual_causes": list(usual.causes(result.difference.what))
        if result.difference is not None and result.deterministic is False
        else [],
        "kills": [
            {
                "step": s.step,
                "phase": s.phase,
                "victim": s.victim,
                "attempt": s.attempt,
                "landed": s.landed,
            }
            for s in result.strikes
        ],
        "digest": result.digest,
        "first_difference": _difference(result.difference, result.deterministic is False),
        "files": list(result.files),
        "problems": list(result.problems),
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(body), indent=2).decode() + "\n")
    sys.stdout.flush()


def _difference(difference: Difference | None, itself: bool) -> dict[str, Any] | None:
    if difference is None:
        return None
    first, second = ("first", "again") if difference.again else ("undisturbed", "killed")
    if itself:
        first, second = "one", "other"
    return {
        "step": difference.step,
        "rank": difference.rank,
        "what": difference.what,
        first: difference.calm,
        second: difference.killed,
    }
