"""The rehearsal: one undisturbed run, one under kills, and the comparison of the two.

Owns the order of these, the scratch directory, and what each way of failing is called. The
user's own run directory is never opened.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from walrecover import pace, recovery
from walrecover.errors import BadInput, WalrecoverError
from walrecover.pace import Every
from walrecover.rehearse import readout, report
from walrecover.rehearse.compare import Difference, compare, weights_digest
from walrecover.rehearse.flow import Flows
from walrecover.rehearse.kill import Killer, Strike
from walrecover.rehearse.page import leave
from walrecover.rehearse.plan import Kill, aim_of, draw, pace_for, reach, shortcomings
from walrecover.rehearse.readout import Timing, Unfinished
from walrecover.rehearse.report import Progressing, Result
from walrecover.rehearse.scan import scan, written_by_both
from walrecover.rehearse.scratch import Scratch, ended_by_sigterm, scratch_directory
from walrecover.rehearse.stage import Performance
from walrecover.rehearse.watch import Watch
from walrecover.rundir import RunDir

if TYPE_CHECKING:
    from rich.console import Console

LOOK_SECONDS = 0.05
RESTARTS = 25
"""In a row without a new step. Every kill comes after one, though the journal may have lost it; so
many in a row are the script's own failures."""


class CannotRehearse(WalrecoverError):
    """What the command does undisturbed is nothing to rehearse. `exit_code` as for a shell."""

    def __init__(self, reason: str, performance: Performance, code: int) -> None:
        super().__init__(f"there is nothing to rehearse: {reason}\n{performance.last_words()}")
        self.exit_code = code


def rehearse(
    command: Sequence[str],
    *,
    kills: int,
    seed: int,
    every: str | None = None,
    memory_every: str | None = None,
    keep: Path | None = None,
    determinism: bool = False,
    page: bool = False,
    json: bool = False,
    console: Console | None = None,
) -> int:
    """Rehearse the crash of a command; 0 only if the killed run ended with the same bits and all
    kills landed as they should. `determinism`: two undisturbed runs come first, and if they differ
    nothing is killed. `page`: the runs are kept, and the killed one's page is left behind, for a
    while. For the main thread. Raises BadInput, CannotRehearse and other
    WalrecoverErrors."""
    asked = pace.parse(every) if every else None
    if memory_every:
        pace.parse_memory(memory_every)
    if kills < 1:
        raise BadInput("--kills is a whole number from 1")
    began = time.monotonic()
    progress = Progressing(console)
    with ended_by_sigterm(), scratch_directory(keep, progress.line, kept=page) as scratch:
        with progress:
            rehearsal = _Rehearsal(
                command, kills, seed, asked, every, memory_every, scratch, progress
            )
            result = rehearsal.perform(began, determinism)
        scratch.failed = bool(result.problems) or result.difference is not None
        if json:
            report.write_json(result)
        else:
            report.write_text(result, progress.line)
        if page and scratch.killed.is_dir():
            progress.line(leave(scratch.killed))
    return 0 if result.identical else 1


class _Rehearsal:
    def __init__(
        self,
        command: Sequence[str],
        kills: int,
        seed: int,
        asked: Every | None,
        every: str | None,
        memory_every: str | None,
        scratch: Scratch,
        progress: Progressing,
    ) -> None:
        self.command, self.kills, self.seed = command, kills, seed
        self.asked, self.every, self.memory_every = asked, every, memory_every
        self.scratch, self.progress = scratch, progress
        self.strikes: list[Strike] = []

    def perform(self, began: float, determinism: bool = False) -> Result:
        here = Path.cwd()
        before = scan(here, self.scratch.path)
        calm = self._undisturbed()
        if determinism and (result := self._twin(calm, began)) is not None:
            return result
        between = scan(here, self.scratch.path)
        timing = readout.timing(calm)
        every = self.asked or pace_for(self.kills, timing.steps)
        plan = draw(
            self.kills, self.seed, reach(self.kills, timing.steps, timing.step_seconds), every
        )
        killed, problems = self._under_kills(plan, timing, every)
        landed = sum(strike.landed for strike in self.strikes)
        inside = sum(strike.inside for strike in self.strikes)
        problems += shortcomings(self.kills, landed, inside)
        difference, digest = self._compare(calm, killed, problems)
        return Result(
            kills=self.kills,
            strikes=self.strikes,
            difference=difference,
            digest=digest,
            steps=timing.steps,
            files=written_by_both(before, between, scan(here, self.scratch.path)),
            seconds=time.monotonic() - began,
            problems=problems,
            deterministic=True if determinism else None,
        )

    # -- undisturbed runs -----------------------------------------------------------------------

    def _twin(self, calm: RunDir, began: float) -> Result | None:
        """Undisturbed once more: what differs then is the script's own, and no crash's."""
        self._undisturbed(again=True)
        twin = RunDir(self.scratch.twin, calm.name)
        difference, digest = self._compare(calm, twin, [])
        steps = readout.timing(calm).steps
        if difference is None:
            self.progress.line(
                f"deterministic by itself: {steps} steps twice, the same bits ({digest})"
            )
            return None
        seconds = time.monotonic() - began
        return Result(0, [], difference, digest, steps, [], seconds, deterministic=False)

    def _undisturbed(self, *, again: bool = False) -> RunDir:
        scratch = self.scratch
        root, log = (scratch.twin, scratch.twin_log) if again else (scratch.calm, scratch.calm_log)
        self.progress.begin(
            "undisturbed once more"
            if again
            else f"rehearsing with seed {self.seed}: first undisturbed"
        )
        performance = Performance(
            self.command,
            root,
            log,
            every=self.every,
            memory_every=self.memory_every,
            max_restarts=0,
        )
        with performance, closing(Watch(performance.run, performance.pid)) as watch:
            step = 0
            while (code := performance.wait(LOOK_SECONDS)) is None:
                attempt = watch.attempt()
                step = attempt.read(0).step if attempt else step
                self.progress.step(step)
        self.progress.done(step)
        self._check(performance, code)
        return performance.run

    def _check(self, performance: Performance, code: int) -> None:
        if code:
            raise CannotRehearse(
                f"undisturbed, the command {_meaning(code)}",
                performance,
                code if code in (126, 127) else 1,
            )
        run = performance.run
        if not readout.has_ranks(run):
            raise CannotRehearse("the command never called walrecover.attach()", performance, 2)
        try:
            readout.final_manifest(run, recovery.fold_run(run))
        except Unfinished as error:
            raise CannotRehearse(
                f"the undisturbed run has no end to compare. {error}. Call run.finish() where "
                f"training ends",
                performance,
                2,
            ) from None

    # -- the killed run -------------------------------------------------------------------------

    def _under_kills(
        self, plan: Sequence[Kill], timing: Timing, every: Every
    ) -> tuple[RunDir, list[str]]:
        scratch = self.scratch
        text = self.every or f"{every.steps}steps"
        shown = "step" if every.steps == 1 else f"{every.steps} steps" if every.steps else text
        self.progress.begin(
            f"again with {self.kills} kills, a snapshot every {shown}", timing.steps
        )
        performance = Performance(
            self.command,
            scratch.killed,
            scratch.killed_log,
            every=text,
            memory_every=self.memory_every,
            max_restarts=RESTARTS,
        )
        flows = Flows(performance.run, lambda flow: self.progress.line(report.describe_flow(flow)))
        killer = Killer(performance, timing, on_step=self.progress.step, on_lull=flows.look)
        with performance, closing(killer):
            self._strike_all(killer, plan, flows)
            code = killer.follow()
        flows.settle()
        self.progress.done(timing.steps)
        if code:
            return performance.run, [
                f"after a kill the command {_meaning(code)} and did not come to its end\n"
                f"{performance.last_words()}"
            ]
        return performance.run, []

    def _strike_all(self, killer: Killer, plan: Sequence[Kill], flows: Flows) -> None:
        landed = inside = after = 0
        while landed < len(plan):
            strike = killer.strike(aim_of(plan, landed, inside), after)
            if strike is None:
                return
            flows.expect(strike)
            self.strikes.append(strike)
            after = strike.step
            landed += strike.landed
            inside += strike.inside
            number = landed if strike.landed else landed + 1
            self.progress.line(report.describe_strike(strike, number, len(plan)))

    # -- the comparison -------------------------------------------------------------------------

    def _compare(
        self, calm: RunDir, killed: RunDir, problems: list[str]
    ) -> tuple[Difference | None, str]:
        first = readout.outcome(calm)
        digest = weights_digest(first.final)
        try:
            second = readout.outcome(killed)
        except Unfinished as error:
            if not problems:
                problems.append(f"the killed run has no end to compare: {error}")
            return None, digest
        difference = compare(first, second)
        if difference is not None and difference.step is None:
            found = readout.first_elements(calm, killed, difference.rank, difference.what)
            if found is not None:
                difference = difference._replace(calm=found[0], killed=found[1])
        return difference, digest


def _meaning(code: int) -> str:
    if code > 128:
        try:
            return f"was ended by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    meanings = {126: "could not be executed", 127: "was not found"}
    return meanings.get(code, f"ended with exit code {code}")
