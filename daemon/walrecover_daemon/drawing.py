"""Drawings of a run, as SVG: recovery flow, attempts on a line of time, where the time went.

Pure. Each has a title and a description, and leaves colours to the style sheet's classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from walrecover.cli.output import seconds
from walrecover.cli.times import WORDS
from walrecover.goodput import KINDS
from walrecover_daemon.html import Markup, tag

Row = dict[str, Any]

BOX_WIDTH, BOX_HEIGHT, GAP = 144, 139, 18
_LINES = 5
IN_TIME = (
    "restart",
    "restore",
    "productive",
    "reexecuted",
    "capture_stall",
    "detection",
    "idle",
)
"""The order in which an attempt goes through the kinds of time, as far as it has one."""
_CHARACTERS = 18


class Box(NamedTuple):
    """One stage. `mood`: bad, good, or "" where it is neither; `took` in seconds."""

    name: str
    text: str
    took: float | None = None
    mood: str = ""


def stages(recovery: Row, last_step: int | None) -> list[Box]:
    """What a recovery went through, from the failure to training again."""
    rejected = msgspec.json.decode(recovery["rejected"] or "[]")
    base, lost = recovery["base_step"], recovery["lost_steps"]
    failed, planned = recovery["failed_at"], recovery["planned_at"]
    where = f" at step {last_step}" if last_step else ""
    evidence = f": {recovery['evidence']}" if recovery["evidence"] else ""
    checked = "; ".join(f"step {each['step']} rejected: {each['reason']}" for each in rejected)
    chosen = f"step {base}" if base is not None else "none: from the beginning"
    again = f", {_steps(lost)} done again" if lost else ""
    total = _between(failed, recovery["training_at"])
    decided = recovery["decision"] or "started again"
    pause = f" after {seconds(recovery['delay'])}" if recovery["delay"] else ""
    reason = f": {recovery['reason']}" if recovery["reason"] else ""
    verdict = recovery["verdict"]
    return [
        Box("failed", f"{recovery['cause'] or 'ended'}{where}{evidence}", None, "bad"),
        Box("snapshot read", chosen + again, recovery["planning"]),
        Box("checked", checked or "every byte is what it was", None, "bad" if rejected else "good"),
        Box("rescheduled", f"{decided}{pause}{reason}", _between(failed, planned)),
        Box("restored", _restored(recovery), recovery["restoring"]),
        Box(
            verdict or "verified",
            recovery["said"] or "no verdict yet",
            _between(recovery["training_at"], recovery["verified_at"]),
            {"verified": "good", "diverged": "bad"}.get(verdict, ""),
        ),
        Box("training", _training(recovery, total), total, "good" if total is not None else ""),
    ]


def _steps(count: int) -> str:
    return "1 step is" if count == 1 else f"{count} steps are"


def _restored(recovery: Row) -> str:
    return "every object of every rank" if recovery["restored_at"] else "not yet"


def _training(recovery: Row, total: float | None) -> str:
    if total is None:
        return "not yet"
    return f"again, {seconds(total)} after the failure"


def _between(begin: float | None, end: float | None) -> float | None:
    return max(0.0, end - begin) if begin and end else None


def flow(recovery: Row, last_step: int | None) -> Markup:
    boxes = stages(recovery, last_step)
    width = len(boxes) * (BOX_WIDTH + GAP) - GAP
    told = ". ".join(f"{box.name}: {box.text}{_took(box)}" for box in boxes)
    drawn = []
    for number, box in enumerate(boxes):
        left = number * (BOX_WIDTH + GAP)
        drawn.append(_box(box, left))
        if number:
            middle = BOX_HEIGHT // 2
            line = f"M{left - GAP + 2} {middle}H{left - 7}"
            head = f"M{left - 8} {middle - 5}L{left - 1} {middle}L{left - 8} {middle + 5}Z"
            drawn += [tag("path", d=line, class_="arrow"), tag("path", d=head, class_="head")]
    return tag(
        "svg",
        tag("title", f"How attempt {recovery['attempt']} came to be"),
        tag("desc", told),
        drawn,
        viewBox=f"-1 -1 {width + 2} {BOX_HEIGHT + 2}",
        width=width,
        height=BOX_HEIGHT,
        role="img",
        class_="flow",
    )


def _box(box: Box, left: int) -> Markup:
    lines = textwrap.wrap(box.text, _CHARACTERS, max_lines=_LINES, placeholder=" …")
    return tag(
        "g",
        tag("title", f"{box.name}: {box.text}"),
        tag("rect", x=left, y=0, width=BOX_WIDTH, height=BOX_HEIGHT, rx=6, class_="frame"),
        tag("text", box.name, x=left + 10, y=20, class_="name"),
        tag("text", seconds(box.took), x=left + BOX_WIDTH - 8, y=BOX_HEIGHT - 9, class_="took")
        if box.took is not None
        else None,
        [
            tag("text", line, x=left + 10, y=42 + 17 * number, class_="line")
            for number, line in enumerate(lines)
        ],
        class_=f"box {box.mood}".strip(),
    )


def _took(box: Box) -> str:
    return f" ({seconds(box.took)})" if box.took is not None else ""


# --- time -----------------------------------------------------------------------------------------


def timeline(attempts: Sequence[Row], latest: float) -> Markup | None:
    """A line for each attempt: when it was, and what it spent its time with."""
    shown = attempts[-40:]
    if not shown:
        return None
    begin = shown[0]["began"]
    end = max([latest, *((row["ended"] or row["began"]) for row in shown)])
    scale = 640 / (end - begin) if end > begin else 0.0
    drawn = []
    for number, row in enumerate(shown):
        after = shown[number + 1]["began"] if number + 1 < len(shown) else end
        left, right = (scale * (at - begin) for at in (row["began"], after))
        drawn.append(_attempt(row, number * 26, left, right))
    height = 26 * len(shown)
    return tag(
        "svg",
        tag("title", "Attempts on a line of time"),
        tag("desc", f"{len(shown)} attempts in {seconds(end - begin)}; the table below has each."),
        drawn,
        viewBox=f"0 0 720 {height}",
        width=720,
        height=height,
        role="img",
        class_="timeline",
    )


def _attempt(row: Row, top: int, left: float, right: float) -> Markup:
    told = msgspec.json.decode(row["spent"]) if row["spent"] else {}
    spent: dict[str, float] = {kind: told.get(kind) or 0.0 for kind in KINDS}  # null: not finite
    width, at, parts = max(2.0, right - left), left, []
    total = sum(spent.values()) or 1.0
    for kind in IN_TIME:
        part = width * spent[kind] / total
        parts.append(_bar(at, top + 5, part, 14, kind, spent[kind]))
        at += part
    return tag(
        "g",
        tag("text", f"{row['number']}", x=0, y=top + 17, class_="line"),
        tag("rect", x=_n(30 + left), y=top + 5, width=_n(width), height=14, class_="frame"),
        parts,
    )


def _bar(left: float, top: int, width: float, height: int, kind: str, took: float) -> Markup | None:
    if width < 0.05:
        return None
    return tag(
        "rect",
        tag("title", f"{WORDS[kind]}: {seconds(took)}"),  # type: ignore[index]
        x=_n(30 + left),
        y=top,
        width=_n(width),
        height=height,
        class_=f"kind {kind}",
    )


def spending(run: Row) -> Markup | None:
    """Where the run's wall time went, as one bar."""
    wall = run["wall"]
    if not wall:
        return None
    at, drawn = -30.0, []
    for kind in KINDS:
        width = 720 * (run[kind] or 0.0) / wall
        drawn.append(_bar(at, 0, width, 24, kind, run[kind] or 0.0))
        at += width
    told = ", ".join(f"{WORDS[kind]} {seconds(run[kind] or 0.0)}" for kind in KINDS)
    return tag(
        "svg",
        tag("title", "Where the time went"),
        tag("desc", told),
        drawn,
        viewBox="0 0 720 24",
        width=720,
        height=24,
        role="img",
        class_="spending",
    )


def _n(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "0"
