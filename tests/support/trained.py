"""What a script itself says that it trained on (`--ids`), held against the journal and the audit.

Owns reading both. The script's file has a line for every execution of a step: its process, the
step, the samples. The last attempt that made a step is the one that counts.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from walrecover import auditing
from walrecover.consumed import ids_digest
from walrecover.events import AttemptBegun, DataOpened, StepCompleted
from walrecover.order import Order
from walrecover.rehearse.readout import read_events
from walrecover.rundir import RunDir

Steps = dict[int, dict[int, list[int]]]
"""By step and rank, the samples in their order."""

DATA = ("global", "sample")
"""Kinds of readers that know their samples."""


def executions(run: RunDir, file: Path) -> dict[int, dict[int, dict[int, list[int]]]]:
    """Every execution that the script noted: the samples by step, attempt and rank."""
    who = {
        event.pid: (event.attempt, event.rank)
        for _, event in read_events(run, "rank-")
        if isinstance(event, AttemptBegun) and event.rank is not None
    }
    made: dict[int, dict[int, dict[int, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text().splitlines():
        pid, step, *ids = map(int, line.split())
        if pid in who:  # not of another run of the same command
            attempt, rank = who[pid]
            made[step][attempt][rank] = ids
    return made


def noted(run: RunDir, file: Path) -> tuple[Steps, dict[int, int]]:
    """What the script says of the surviving steps, and which attempt made each."""
    made = executions(run, file)
    last = {step: max(attempts) for step, attempts in made.items()}
    return {step: made[step][last[step]] for step in sorted(made)}, last


def journaled(run: RunDir, last: dict[int, int]) -> tuple[dict[tuple[int, int], bytes], Steps]:
    """Of the same steps, by step and rank: the digest of the samples that the journal has, and the
    samples themselves where the order is global."""
    digests: dict[tuple[int, int], bytes] = {}
    samples: Steps = defaultdict(dict)
    opened: dict[int, DataOpened] = {}
    stream = None
    for key, event in read_events(run, "rank-"):
        if key != stream:
            stream, opened = key, {}
        rank = int(key.writer.removeprefix("rank-"))
        if isinstance(event, DataOpened):
            opened[event.source] = event
        if not isinstance(event, StepCompleted) or last.get(event.step) != key.attempt:
            continue
        for one in event.consumed:
            data = opened[one.source]
            if data.kind not in DATA:
                continue
            assert one.samples is not None, event
            digests[event.step, rank] = one.samples
            if data.kind == "global":
                assert data.length is not None and data.seed is not None
                order = Order(data.seed, one.epoch, data.length)
                places = [n for first, end in one.ranges for n in range(first, end)]
                samples[event.step][rank] = [order(place) for place in places]
    return digests, dict(samples)


def agree(run: RunDir, file: Path, epochs: int, size: int) -> dict[str, int]:
    """The script's file, the journal and the audit tell the same of a finished run: every one of
    `size` samples once in each epoch. Returns what was counted. Raises AssertionError."""
    steps, last = noted(run, file)
    assert list(steps) == list(range(1, max(steps) + 1))
    digests, samples = journaled(run, last)
    said = {(step, rank): ids for step, ranks in steps.items() for rank, ids in ranks.items()}
    assert digests == {where: ids_digest(ids) for where, ids in said.items()}
    for step, ranks in samples.items():
        assert ranks == steps[step], step

    judgement = auditing.audit(run)
    assert judgement.verdict == "ok", judgement
    passes = [report for report in judgement.reports if report.facts.kind in DATA]
    assert [report.epoch for report in passes] == list(range(epochs))
    for report in passes:
        first, end = report.steps
        ids = [n for step in range(first, end + 1) for one in steps[step].values() for n in one]
        assert sorted(ids) == list(range(size)), report
        assert report.consumed == size
    assert sum(end - first + 1 for first, end in (report.steps for report in passes)) == len(steps)
    return {"steps": len(steps), "attempts": len(set(last.values())), "samples": epochs * size}
