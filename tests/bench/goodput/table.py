"""The tables of a race, from its report, in Markdown, and their place in a page.

Pure, but for `publish`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.goodput.costs import Costs, Saving, replay

ROOT = Path(__file__).parents[3]
PICTURE = "race.png"
PAGES = {ROOT / "README.md": "short", ROOT / "specs" / "17-goodput.md": "long"}
SEED = 1
"""Of the replays."""

RATES = {
    "a minute": 60.0,
    "10 minutes": 600.0,
    "an hour": 3600.0,
    "6 hours": 6 * 3600.0,
    "a day": 86400.0,
    "a week": 7 * 86400.0,
    "a fortnight": 14 * 86400.0,
}
"""Seconds from one kill to the next, in the mean."""

Report = Mapping[str, Any]


def costs_of(row: Mapping[str, Any]) -> Costs:
    down = tuple(kill["down"] for kill in row["kills"])
    return Costs(row["bare_step_seconds"], Saving(**row["saving"]), down, row["late"])


def between(row: Mapping[str, Any]) -> float:
    """Seconds of training for each kill that it had."""
    down = [kill["down"] for kill in row["kills"]]
    return (row["seconds"] - sum(down)) / len(down)


def ran(report: Report) -> list[Mapping[str, Any]]:
    """The rows of those that were killed and came to the end, best first."""
    rows = [row for row in report["contenders"] if row.get("kills")]
    return sorted(rows, key=lambda row: row["goodput"], reverse=True)


def ceiling(report: Report) -> Mapping[str, Any]:
    return report["contenders"][0]


def measured(report: Report) -> str:
    """What was measured under kills."""
    top = ceiling(report)
    lines = [
        _line(
            *("", "goodput", "of the ceiling", "replayed", "down after a kill", "steps made again"),
            *("a save costs", "a step more", "N", "after the kills"),
        ),
        _line(*["---"] * 10),
        _line(f"{top['name']}, no kills", percent(top["goodput"]), *["–"] * 8),
    ]
    for row in ran(report):
        kills = row["kills"]
        lines.append(
            _line(
                row["name"],
                percent(row["goodput"]),
                percent(row["goodput"] / top["goodput"]),
                percent(replay(costs_of(row), between(row), SEED)),
                seconds(statistics.median(kill["down"] for kill in kills)),
                f"{statistics.mean(kill['again'] for kill in kills):.1f}",
                seconds(row["saving"]["cost"]),
                seconds(row["saving"]["base"]),
                str(row["every"]),
                verdict(row),
            )
        )
    for row in report["contenders"]:
        if "reason" in row:
            lines.append(_line(row["name"], *["–"] * 8, f"did not run: {row['reason']}"))
    return "\n".join(lines)


def verdict(row: Mapping[str, Any]) -> str:
    differs, kills = row["first_step_that_differs"], len(row["kills"])
    if differs is None:
        return f"identical, {kills} kills" if row["same_weights"] else "other weights"
    return f"diverged from step {differs}"


def by_rate(report: Report) -> str:
    """What the measured costs come to where kills are rarer."""
    lines = [
        _line("a kill every", *RATES),
        _line(*["---"] * (len(RATES) + 1)),
    ]
    for row in ran(report):
        costs = costs_of(row)
        shares = [percent(replay(costs, between, SEED)) for between in RATES.values()]
        lines.append(_line(row["name"], *shares))
    return "\n".join(lines)


def conditions(report: Report) -> str:
    """Every setting and version, to repeat it."""
    task = ", ".join(f"{name} {value}" for name, value in report["task"].items())
    lines = [
        f"{report['steps']} steps ({task}; one thread; {report['processors']} processors), "
        f"{len(report['seconds_before_each_kill'])} kills at {report['kills_per_minute']:g} a "
        f"minute of training; a bare step took {seconds(ceiling(report)['bare_step_seconds'])}.",
        "",
    ]
    for row in report["contenders"]:
        versions = ", ".join(f"{name} {v}" for name, v in row.get("versions", {}).items())
        notes = "".join(f"; {note}" for note in row.get("notes", []))
        load = f"; load {row['load']}"
        lines.append(
            f"- **{row['name']}** ({versions or 'not here'}): {row['settings']}{notes}{load}"
        )
    return "\n".join(lines)


def tables(report: Report) -> str:
    return "\n\n".join((measured(report), by_rate(report), conditions(report)))


def put(page: str, text: str) -> str:
    """The page with the text between its marks."""
    return re.sub(
        r"(<!-- race -->\n).*?(<!-- /race -->)",
        lambda marks: f"{marks[1]}{text}\n{marks[2]}",
        page,
        flags=re.DOTALL,
    )


def block(report: Report, kind: str, picture: str) -> str:
    body = tables(report) if kind == "long" else f"{measured(report)}\n\n{by_rate(report)}"
    return f"\n{body}\n\n![Training time lost, by how often kills come]({picture})\n"


def told_in(page: Path, path: Path) -> str:
    """What that page tells of the report; nothing before there was a race."""
    if not path.exists():
        return ""
    report = json.loads(path.read_text())["counts"]
    return block(report, PAGES[page], str(path.with_name(PICTURE).relative_to(page.parent)))


def publish(path: Path) -> None:
    """Write the picture beside the report, and the tables into the pages."""
    from tests.bench.goodput import picture

    picture.draw(json.loads(path.read_text())["counts"], path.with_name(PICTURE))
    for page in PAGES:
        page.write_text(put(page.read_text(), told_in(page, path)))


def percent(share: float) -> str:
    """With as many digits as tell it from 100%."""
    lost = abs(1.0 - share)
    digits = 1 if lost >= 0.01 else 2 if lost >= 0.001 else 3 if lost >= 0.0001 else 4
    return f"{100 * share:.{digits}f}%"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if abs(value) >= 1.0 else f"{1000 * value:.1f} ms"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
