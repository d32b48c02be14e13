"""The pages: what a person sees of all runs, and of one.

Pure: rows of the read model in, markup out. `now` is Unix time, for ages. Which sections a run's
page has, and their names, is `PARTS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from walrecover.cli.output import clock, seconds
from walrecover.cli.times import WORDS
from walrecover.goodput import KINDS
from walrecover_daemon import drawing, guardparts
from walrecover_daemon.html import Child, Markup, join, tag
from walrecover_daemon.pieces import (
    age,
    live,
    moment,
    number,
    page,
    percent,
    scrolling,
    short,
    size,
    span,
    table,
    word,
)
from walrecover_daemon.stacks import Hang

Row = dict[str, Any]
BAD = ("damaged", "ended", "gone")


class About(NamedTuple):
    """One run, with all that its page shows."""

    run: Row
    attempts: Sequence[Row]
    recoveries: Sequence[Row]
    snapshots: Sequence[Row]
    events: Sequence[Row]
    problems: Sequence[Row]
    same_name: Sequence[Row]
    ledger: str
    stacks: Sequence[Hang]
    now: float
    alerts: Sequence[Row] = ()
    upkeep: Sequence[Row] = ()


def link(run: Row, suffix: str = "") -> str:
    return f"/runs/{quote(run['name'])}{suffix}?id={run['id']}"


# --- all runs -------------------------------------------------------------------------------------


def overview(runs: Sequence[Row], count: int, alerts: Sequence[Row], now: float) -> Markup:
    return page(
        "runs",
        [
            tag("h1", "Runs"),
            live("runs", "/part/runs", table_of_runs(runs, count, now)),
            tag("h2", "Alerts"),
            live("alerts", "/part/alerts", guardparts.alerts(alerts, now)),
        ],
    )


def table_of_runs(runs: Sequence[Row], count: int, now: float) -> Markup:
    """`count`: how many there are; these are the first."""
    if not runs:
        return tag("p", "No runs yet. Start one with: walrecover run -- python train.py")
    same = Counter(row["name"] for row in runs)
    columns = ("run", "state", "step", "goodput", "recovery point", "attempts", "last end", "heard")
    return table(
        _counted(len(runs), count),
        columns,
        (
            [
                _named(row, same),
                state(row),
                number(row["last_step"]),
                percent(row["goodput"]),
                _recovery_point(row, now),
                number(row["attempts"]),
                row["problem"] or row["cause"],
                age(row["latest"], now),
            ]
            for row in runs
        ),
    )


def _counted(shown: int, count: int) -> str:
    if shown < count:
        return f"{shown} of {count} runs: those that are alive, then the newest"
    return f"{count} runs" if count > 1 else "1 run"


def _named(row: Row, same: Counter[str]) -> Child:
    """With its directory, where another one has a run of that name."""
    where = tag("div", row["root"], class_="root") if same[row["name"]] > 1 else None
    return [tag("a", row["name"], href=link(row)), where]


def state(row: Row) -> Markup:
    """The word says it; the colour only repeats it."""
    return tag(
        "span", row["state"], class_=f"state {'bad' if row['state'] in BAD else row['state']}"
    )


def _recovery_point(row: Row, now: float) -> Child:
    if row["recovery_point"] is None:
        return "none"
    if row["rot"]:
        return [f"step {row['recovery_point']}: ", tag("span", row["rot"], class_="problem")]
    whole = row["recovery_verified"] or row["rot"] == ""
    word = "verified" if whole else "not read back yet"
    return f"step {row['recovery_point']}, {age(row['committed_at'], now)}, {word}"


# --- one run --------------------------------------------------------------------------------------


def about(it: About) -> Markup:
    others = [row for row in it.same_name if row["id"] != it.run["id"]]
    sections = [
        tag(
            "section",
            tag("h2", heading, id=f"h-{name}"),
            live(name, link(it.run, f"/part/{name}"), part(it)),
            aria_labelledby=f"h-{name}",
        )
        for name, (heading, part) in PARTS.items()
    ]
    chart = tag(
        "section",
        tag("h2", "Loss", id="h-loss"),
        tag("div", "", id="curve", role="img", aria_label="The loss, step by step"),
        tag("p", "", id="curve-told"),
        aria_labelledby="h-loss",
    )
    return page(
        it.run["name"],
        [
            tag("h1", it.run["name"]),
            tag("p", f"in {it.run['root']}", class_="root"),
            tag("p", "Also: ", [_other(row) for row in others]) if others else None,
            [sections[0], chart, sections[1:]],
        ],
        run=it.run["id"],
        curve=link(it.run, "/curve.json"),
    )


def _other(row: Row) -> Markup:
    return join([tag("a", f"the run of that name in {row['root']}", href=link(row)), " "])


def _glance(it: About) -> Markup:
    run = it.run
    facts: list[tuple[str, Child]] = [
        ("state", state(run)),
        ("step", number(run["last_step"])),
        ("goodput", percent(run["goodput"]) or "not known yet"),
        ("recovery point", _recovery_point(run, it.now)),
        ("attempts", number(run["attempts"])),
        ("holder", run["holder"]),
        ("heard", age(run["latest"], it.now)),
    ]
    end = [run[key] for key in ("cause", "evidence", "decision", "reason") if run[key]]
    problems = [
        tag("li", f"{row['writer']} of attempt {row['attempt']}: {row['problem']}")
        for row in it.problems
    ]
    return join(
        [
            tag(
                "dl",
                [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts],
                tag("div", tag("dt", "last end"), tag("dd", ": ".join(end)), class_="long")
                if end
                else None,
            ),
            tag("p", run["problem"], class_="problem") if run["problem"] else None,
            tag("ul", problems, class_="problem") if problems else None,
        ]
    )


def _flow(it: About) -> Markup:
    if not it.recoveries:
        return tag("p", "It has never had to recover.")
    reached = {row["number"]: row["last_step"] for row in it.attempts}
    return join(
        tag(
            "figure",
            tag("figcaption", f"Attempt {row['attempt']}, {clock(row['planned_at'])}"),
            scrolling(
                f"Recovery flow of attempt {row['attempt']}",
                drawing.flow(row, _before(reached, row["attempt"])),
            ),
        )
        for row in it.recoveries
    )


def _before(reached: dict[int, int | None], number: int) -> int | None:
    older = [each for each in reached if each < number]
    return reached[max(older)] if older else None


def _attempts(it: About) -> Markup:
    columns = ("attempt", "began", "resumed after", "steps", "not counted from", "ended", "decided")
    drawn = drawing.timeline(it.attempts, it.run["latest"] or 0.0)
    return join(
        [
            scrolling("Attempts on a line of time", drawn) if drawn else None,
            table(
                "Attempts, the newest first",
                columns,
                (
                    [
                        f"{row['number']}" + (" (fenced)" if row["fenced"] else ""),
                        moment(row["began"]),
                        "the beginning" if row["base_step"] is None else f"step {row['base_step']}",
                        word(span(row["first_step"], row["last_step"])),
                        number(row["superseded_from"]),
                        ": ".join(filter(None, (row["cause"], row["evidence"]))),
                        ": ".join(filter(None, (row["decision"], row["reason"]))),
                    ]
                    for row in reversed(it.attempts)
                ),
            ),
        ]
    )


def _stacks(it: About) -> Markup:
    if not it.stacks:
        return tag("p", "No attempt has left any: none was ended because it hung.")
    return join([tag("h3", f"Attempt {hang.attempt}"), _of_hang(hang)] for hang in it.stacks)


def _of_hang(hang: Hang) -> Child:
    return [
        tag("p", hang.reason),
        [
            tag(
                "figure",
                tag("figcaption", ": ".join(filter(None, (stack.name, stack.note)))),
                scrolling(f"{stack.name} of attempt {hang.attempt}", tag("pre", stack.text))
                if stack.text
                else None,
            )
            for stack in hang.stacks
        ],
        tag("p", f"… and {hang.more} more files beside these") if hang.more else None,
    ]


def _snapshots(it: About) -> Markup:
    if not it.snapshots:
        return tag("p", "None is committed yet.")
    return table(
        "Snapshots, the newest first",
        ("step", "attempt", "committed", "status", "size", "took", "why"),
        (
            [
                f"{row['step']}" + (" (end)" if row["end"] else ""),
                number(row["attempt"]),
                [moment(row["committed_at"]), ", ", age(row["committed_at"], it.now)],
                tag("span", row["status"], class_=f"state {row['status']}"),
                size(row["bytes"]),
                seconds(row["seconds"]),
                row["reason"],
            ]
            for row in it.snapshots
        ),
    )


def _time(it: About) -> Markup:
    run = it.run
    drawn = drawing.spending(run)
    if drawn is None:
        return tag("p", "Nothing is known of its steps yet.")
    return join(
        [
            scrolling("Where the time went", drawn),
            table(
                f"Goodput {percent(run['goodput'])} of {seconds(run['wall'])}",
                ("kind", "time", "share"),
                (
                    [
                        tag("span", WORDS[kind], class_=f"key {kind}"),
                        seconds(run[kind]),
                        percent((run[kind] or 0.0) / run["wall"]),
                    ]
                    for kind in KINDS
                ),
            ),
        ]
    )


def _guard(it: About) -> Markup:
    return guardparts.guard(it.alerts, it.upkeep, it.snapshots, it.now)


def _ledger(it: About) -> Markup:
    return tag("p", it.ledger)


def _events(it: About) -> Markup:
    return table(
        f"The newest {len(it.events)} events that are no steps",
        ("time", "writer", "event", "what"),
        (
            [
                moment(row["at"]),
                word(f"{row['writer']} of {row['attempt']}"),
                word(row["type"]),
                tag("code", short(row["body"])),
            ]
            for row in it.events
        ),
    )


PARTS: dict[str, tuple[str, Callable[[About], Markup]]] = {
    "glance": ("At a glance", _glance),
    "recovery": ("Recovery", _flow),
    "attempts": ("Attempts", _attempts),
    "stacks": ("Stacks", _stacks),
    "snapshots": ("Snapshots", _snapshots),
    "time": ("Time", _time),
    "guard": ("Guard", _guard),
    "ledger": ("Data", _ledger),
    "events": ("Events", _events),
}
