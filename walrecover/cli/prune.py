"""`walrecover prune`: retire snapshots by rules."""

from __future__ import annotations

import time
from typing import Any

import click

from walrecover.cli.options import as_json, directory, journal_dir, resolve
from walrecover.cli.output import bytes_of, harmless, seconds, write_json, write_table
from walrecover.pruning import Pruned, prune
from walrecover.retention import LEAST_KEPT, Rules, Verdict, parse_age, parse_best


@click.command(
    "prune",
    help="Retire the snapshots of RUN that no rule keeps, and delete their files; RUN may be "
    "training. Nothing goes before two newer ones that share no file have been read back.",
)
@click.argument("run")
@click.option(
    "--keep-last",
    type=click.IntRange(min=LEAST_KEPT),
    default=3,
    show_default=True,
    metavar="N",
    help="Keep the newest N.",
)
@click.option(
    "--keep-every",
    type=click.IntRange(min=1),
    metavar="M",
    help="Keep the first at or after each multiple of M steps.",
)
@click.option(
    "--best",
    multiple=True,
    metavar="METRIC:min|max",
    help="Keep the one with the best value of a scalar of run.step; may be given again.",
)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="STEP",
    help="Keep that of this step; may be given again.",
)
@click.option("--older-than", metavar="AGE", help="Keep all that are younger, such as 12h or 7d.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
@directory
@journal_dir
@as_json
def command(
    run: str,
    keep_last: int,
    keep_every: int | None,
    best: tuple[str, ...],
    pins: tuple[int, ...],
    older_than: str | None,
    dry_run: bool,
    directory: str | None,
    journal_dir: str | None,
    as_json: bool,
) -> int:
    from rich.console import Console

    rules = Rules(
        keep_last,
        keep_every,
        tuple(parse_best(one) for one in best),
        frozenset(pins),
        parse_age(older_than) if older_than else None,
        older_than or "",
    )
    found = resolve(run, directory, journal_dir)
    console, now = Console(stderr=True), time.time()
    with console.status("reading back", spinner="dots") as status:
        done = prune(
            found, rules, now=now, dry_run=dry_run,
            told=lambda checked: status.update(f"read back {checked.name}"),
        )  # fmt: skip
    if as_json:
        write_json({"run": found.name, "dry_run": dry_run, **_answer(done)})
    else:
        _print(found.name, done, dry_run, now)
    return 1 if done.damaged else 0


def _answer(done: Pruned) -> dict[str, Any]:
    return {
        "snapshots": [
            {
                "name": one.commit.snapshot.name,
                "step": one.commit.snapshot.step,
                "attempt": one.commit.snapshot.attempt,
                "committed_at": one.commit.at,
                "bytes": done.sizes.get(one.commit.snapshot.manifest),
                "kept": one.kept,
                "reason": one.reason,
            }
            for one in done.verdicts
        ],
        "retired": [ref.name for ref in done.retired],
        "freed": done.freed,
        "damaged": [{"name": one.name, "problem": one.problem} for one in done.damaged],
        "losses": list(done.gaps),
    }


def _print(run: str, done: Pruned, dry_run: bool, now: float) -> None:
    write_table(
        f"run {run}",
        ["snapshot", "step", "age", "size", "", "because"],
        [_row(one, done, dry_run, now) for one in done.verdicts],
    )
    for one in done.damaged:
        click.echo(f"does not read back: {one.name}: {harmless(one.problem or '')}")
    for gap in done.gaps:
        click.echo(f"lost from the journal: {harmless(gap)}")
    gone = [one for one in done.verdicts if not one.kept]
    verb = "would retire" if dry_run else "retired"
    click.echo(f"{verb} {len(gone)} of {len(done.verdicts)} snapshots, {bytes_of(done.freed)}")


def _row(one: Verdict, done: Pruned, dry_run: bool, now: float) -> list[str]:
    ref = one.commit.snapshot
    size = done.sizes.get(ref.manifest)
    return [
        ref.name,
        str(ref.step),
        seconds(max(0.0, now - one.commit.at)),
        "" if size is None else bytes_of(size),
        "kept" if one.kept else "goes" if dry_run else "gone",
        one.reason,
    ]
