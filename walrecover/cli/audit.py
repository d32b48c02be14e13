"""`walrecover audit`: which samples the surviving history consumed, proved from the journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import click
import msgspec

from walrecover import auditing, resumes, verdicts
from walrecover.cli.options import as_json, directory, journal_dir, resolve, run_argument
from walrecover.cli.output import harmless, write_json, write_table
from walrecover.intervals import Stretch
from walrecover.resumes import Judged
from walrecover.tiling import Judgement, Report

SHOWN_STRETCHES = 8
_FAULTS = {
    "gaps": "no step consumed",
    "repeats": "consumed more than once:",
    "outside": "no positions of the pass, and consumed:",
    "unskipped": "to be skipped, and consumed:",
}
_NOTES = {
    "unknown": "not known whether consumed:",
    "skipped": "skipped on purpose:",
    "left": "handed out, and no step followed:",
}
_SENTENCES = {
    "ok": "every position was consumed exactly once",
    "violated": "the surviving history did not consume every position exactly once",
    "unproven": "not proved: see what is missing",
}


@click.command(
    "audit",
    help="Prove from the journal that the surviving history consumed every sample exactly once, "
    "over all crashes, rewinds, forks and world sizes, or list the positions; and that each resume "
    "went on as the same run. Exit code 1 where it did not, or where the journal cannot prove it.",
)
@run_argument
@directory
@journal_dir
@as_json
def command(run: str | None, directory: str | None, journal_dir: str | None, as_json: bool) -> int:
    found = resolve(run, directory, journal_dir)
    judgement, proofs = auditing.audit(found), resumes.verdicts(found)
    if as_json:
        write_json({"run": found.name, **body(judgement), "resumes": list(map(_resume, proofs))})
    else:
        _print(found.name, judgement, proofs)
    proven = all(verdicts.is_good(one.verdict) for one in proofs)
    return 0 if judgement.verdict == "ok" and proven else 1


def body(judgement: Judgement) -> dict[str, Any]:
    """The JSON of an audit."""
    return {
        "verdict": judgement.verdict,
        "passes": [_pass(report) for report in judgement.reports],
        "unproven": list(judgement.unproven),
    }


def _resume(one: Judged) -> dict[str, Any]:
    """`verdict`: verified, diverged or unproven, and what its event says."""
    fields = msgspec.to_builtins(one.verdict)
    kind = fields.pop("type").removeprefix("Resume").lower()
    for name in ("at", "restored"):
        fields.pop(name, None)
    if getattr(one.verdict, "restored", None):
        fields["restored"] = one.verdict.restored.hex()  # type: ignore[union-attr]
    return {"attempt": one.attempt, "rank": one.rank, "verdict": kind, **fields}


def _pass(report: Report) -> dict[str, Any]:
    facts = report.facts
    return {
        "source": report.source,
        "loop": list(report.loop),
        "epoch": report.epoch,
        "ranks": list(report.ranks) or None,
        "kind": facts.kind,
        "length": facts.length,
        "seed": facts.seed,
        "steps": list(report.steps),
        "consumed": report.consumed,
        "padded": report.padded,
        "to_come": report.to_come,
        "beyond": report.beyond,
        "changed": report.changed,
        **{
            name: [stretch._asdict() for stretch in getattr(report, name)]
            for name in (*_FAULTS, *_NOTES)
        },
    }


def _print(run: str, judgement: Judgement, proofs: Sequence[Judged]) -> None:
    write_table(
        f"run {run}",
        ["reader", "pass", "steps", "positions", "consumed", "verdict"],
        [_row(same) for same in _grouped(judgement.reports)],
    )
    for report in judgement.reports:
        for line in _remarks(report):
            print(harmless(f"reader {report.source}, pass {report.epoch}{_ranks(report)}: {line}"))
    for one in proofs:
        print(harmless(f"attempt {one.attempt}, rank {one.rank}: {verdicts.said(one.verdict)}"))
    for sentence in judgement.unproven:
        print(harmless(f"not proved: {sentence}"))
    print(f"{judgement.verdict}: {_SENTENCES[judgement.verdict]}")


def _grouped(reports: Sequence[Report]) -> Iterator[list[Report]]:
    """Passes in a row of which the same is to be said."""

    def alike(report: Report) -> tuple[Any, ...]:
        rest = report._replace(epoch=0, steps=(0, 0))
        return (rest,)

    for _, same in groupby(reports, key=alike):
        yield list(same)


def _row(same: Sequence[Report]) -> list[str]:
    first, last = same[0], same[-1]
    length = "" if first.facts.length is None else str(first.facts.length)
    return [
        f"{first.source} (loop {'.'.join(str(n + 1) for n in first.loop)}{_ranks(first)})",
        str(first.epoch) if first is last else f"{first.epoch} to {last.epoch}",
        f"{first.steps[0]} to {last.steps[1]}",
        f"{length} {first.facts.kind}".strip(),
        str(first.consumed),
        _verdict(first),
    ]


def _ranks(report: Report) -> str:
    if not report.ranks:
        return ""
    many = "s" if len(report.ranks) > 1 else ""
    return f", rank{many} {', '.join(map(str, report.ranks))}"


def _verdict(report: Report) -> str:
    if report.faults:
        return "violated"
    if report.unknown:
        return "not proved"
    if report.to_come:
        return f"exactly once so far, {report.to_come} to come"
    if report.beyond:
        return f"exactly once, the loop left before the last {report.beyond}"
    return "exactly once"


def _remarks(report: Report) -> Iterator[str]:
    for name, words in (_FAULTS | _NOTES).items():
        stretches: tuple[Stretch, ...] = getattr(report, name)
        if stretches:
            shown = ", ".join(map(str, stretches[:SHOWN_STRETCHES]))
            more = len(stretches) - SHOWN_STRETCHES
            size = sum(stretch.size for stretch in stretches)
            yield f"{words} {shown}{f' and {more} more' if more > 0 else ''} ({size} in all)"
    if report.padded:
        yield f"{report.padded} samples were repeated to fill up the last batch"
    if report.changed:
        yield f"its order is not one: {report.changed}"
