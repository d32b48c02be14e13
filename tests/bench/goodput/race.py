"""The order of a race: what is run for each contender, and the row that comes of it.

The bare loop runs before and after each contender, and the contender is measured by what a step
takes there: a machine is not the same an hour later.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.goodput import costs, schedule
from tests.bench.goodput.contenders import BARE, Contender
from tests.bench.goodput.running import DidNotRun, Ran, run
from tests.bench.goodput.steplog import StepLog, first_difference

CALIBRATED_EVERY = 20
"""Steps between two saves of the undisturbed run from which the price of a save is taken."""


class Task(NamedTuple):
    """What is trained. `calibration`: steps of the runs that measure a bare step, and a save."""

    layers: int = 4
    width: int = 256
    batch_size: int = 16
    context: int = 32
    steps_per_epoch: int = 20
    calibration: int = 200


class Race:
    def __init__(self, folder: Path, task: Task, seed: int, rate: float, kills: int) -> None:
        self._folder, self._task, self._seed, self._rate = folder, task, seed, rate
        self._gaps = schedule.gaps(seed, rate, kills)
        self._runs = 0

    def run(self, contenders: list[Contender], partial: Path) -> dict[str, Any]:
        """`partial`: a file that has what is known so far, as long as the race goes on. Raises
        DidNotRun only where the bare loop itself does not run."""
        bare = costs.median_step([self._bare()])
        total = schedule.steps_for(self._gaps, bare, self._task.steps_per_epoch)
        reference = before = self._run(BARE, total).log
        rows = [self._ceiling(reference)]
        report = {
            "task": self._task._asdict(),
            "steps": total,
            "kills_per_minute": self._rate,
            "seconds_before_each_kill": self._gaps,
            "calibrated_every": CALIBRATED_EVERY,
            "processors": os.cpu_count(),
            "contenders": rows,
        }
        for contender in contenders:
            if contender == BARE:
                continue
            row, before = self._contend(contender, total, reference, before)
            rows.append(row)
            partial.write_text(json.dumps(report, indent=2))
        partial.unlink(missing_ok=True)
        return report

    def _ceiling(self, reference: StepLog) -> dict[str, Any]:
        bare = costs.median_step([reference])
        return {
            "name": BARE.name,
            "versions": BARE.versions(),
            "settings": BARE.settings,
            "load": _load(),
            "bare_step_seconds": bare,
            "goodput": costs.measured(reference, bare),
            "seconds": _seconds(reference),
        }

    def _contend(
        self, contender: Contender, total: int, reference: StepLog, before: StepLog
    ) -> tuple[dict[str, Any], StepLog]:
        """Its row, and the bare run after it."""
        row = {"name": contender.name, "settings": contender.settings, "load": _load()}
        missing = contender.missing()
        if missing:
            return {**row, "reason": missing}, before
        row["versions"] = contender.versions()
        try:
            calm = self._run(contender, self._task.calibration, CALIBRATED_EVERY)
            bare = costs.median_step([before])
            saving = costs.saving(calm.log, CALIBRATED_EVERY, bare)
            every = costs.best_every(saving, bare, 60.0 / self._rate)
            if contender.own_reference:
                reference = self._run(contender, total, every).log
            killed = self._run(contender, total, every, self._gaps)
            if not killed.killed:
                raise DidNotRun("it came to its end before the first kill")
        except DidNotRun as reason:
            return {**row, "reason": str(reason)}, self._bare()
        after = self._bare()
        bare = costs.median_step([before, after])
        return {
            **row,
            "every": every,
            "bare_step_seconds": bare,
            **_measured(killed, calm.log, every, bare),
            "first_step_that_differs": first_difference(killed.log.steps, reference.steps),
            "same_weights": killed.log.weights == reference.weights,
            "notes": sorted({*calm.log.notes, *killed.log.notes}),
        }, after

    def _bare(self) -> StepLog:
        return self._run(BARE, self._task.calibration).log

    def _run(
        self, contender: Contender, total: int, every: int = 0, gaps: list[float] | None = None
    ) -> Ran:
        self._runs += 1
        folder = self._folder / f"{self._runs:02}-{contender.name}"
        task = {name.replace("_", "-"): value for name, value in self._task._asdict().items()}
        del task["calibration"]
        told = {**task, "total": total, "seed": self._seed % (1 << 31)}
        what = f"{len(gaps)} kills" if gaps else "undisturbed"
        print(f"{contender.name}: {total} steps, N = {every}, {what}", file=sys.stderr)
        environment = contender.environment(self._folder / "bytecode")
        return run(contender.command(folder, every, told), environment, folder, total, gaps or ())


def _measured(killed: Ran, calm: StepLog, every: int, bare: float) -> dict[str, Any]:
    found = costs.kills(killed.log, killed.killed, bare)
    return {
        "goodput": costs.measured(killed.log, bare),
        "seconds": _seconds(killed.log),
        "saving": costs.saving(calm, CALIBRATED_EVERY, bare)._asdict(),
        "kills": [kill._asdict() for kill in found],
        "late": costs.late(found, every),
    }


def _seconds(log: StepLog) -> float:
    return log.steps[-1].at - log.steps[0].at


def _load() -> float:
    """Processes that wanted to run in the last minute, those of the race with them."""
    return round(os.getloadavg()[0], 2)
