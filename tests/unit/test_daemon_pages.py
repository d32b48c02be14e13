"""What pages are made of: markup that cannot be broken out of, curves of few points, drawings."""

from __future__ import annotations

import xml.etree.ElementTree as tree
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from walrecover_daemon import curves, drawing
from walrecover_daemon.curves import Part, Point
from walrecover_daemon.html import Markup, join, tag

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(texts, texts)
def test_no_text_breaks_out_of_its_place(content: str, attribute: str) -> None:
    made = tag("p", content, data_x=attribute)
    inside = made.removeprefix('<p data-x="').removesuffix("</p>")
    value, _, rest = inside.partition('">')
    assert not set(value) & set("<>\"'")
    assert not set(rest) & set("<>\"'")
    assert not any(ord(each) < 32 and each not in "\t\n" for each in made)
    printable = "".join(each for each in content if each.isprintable())
    if printable == content:
        assert unescape(rest) == content


def test_what_turns_the_direction_of_writing_is_shown() -> None:
    """Else `exe.txt` could be read as `txt.exe`, and what stands behind it backwards."""
    turning = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert (
        tag("p", f"a{turning}\u2028\u2029")
        == "<p>a" + "".join(f"\\u{ord(each):04x}" for each in f"{turning}\u2028\u2029") + "</p>"
    )


def test_only_what_tag_made_is_markup() -> None:
    inner = tag("b", "x")
    assert tag("p", inner) == "<p><b>x</b></p>"
    assert tag("p", str(inner)) == "<p>&lt;b&gt;x&lt;/b&gt;</p>"
    assert tag("p", ["a", None, [inner, 1]]) == "<p>a<b>x</b>1</p>"
    assert isinstance(join(["<"]), Markup)
    assert tag("a", "x", class_="c", hidden=True, title=None) == '<a class="c" hidden>x</a>'


def point(step: int, loss: float | None) -> Point:
    return Point(step, loss, loss, loss)


losses = st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=300)


@given(losses, st.integers(1, 400))
def test_a_thinned_curve_keeps_its_extremes_and_its_ends(
    values: list[float | None], most: int
) -> None:
    points = [point(step, value) for step, value in enumerate(values, start=1)]
    found = curves.curve([Part(1, points)], most)
    assert len(found["step"]) <= most
    assert found["step"][-1] == len(values)
    known = [value for value in values if value is not None]
    assert min((x for x in found["low"] if x is not None), default=None) == min(known, default=None)
    assert max((x for x in found["high"] if x is not None), default=None) == max(
        known, default=None
    )
    assert found["gone"] == [None] * len(found["step"])
    if most >= len(values):
        assert found["mean"] == values


def test_what_does_not_count_is_apart_and_a_later_attempt_takes_its_steps() -> None:
    first = Part(1, [point(step, 1.0) for step in (1, 2, 3, 4)], 3, "crash", 4)
    second = Part(2, [point(step, 2.0) for step in (3, 4, 5)], None, "", 5)
    assert curves.curve([first, second]) == {
        "step": [1, 2, 3, 4, 5],
        "mean": [1.0, 1.0, 2.0, 2.0, 2.0],
        "low": [1.0, 1.0, 2.0, 2.0, 2.0],
        "high": [1.0, 1.0, 2.0, 2.0, 2.0],
        "gone": [None, None, 1.0, 1.0, None],
        "shaded": [{"from": 3, "to": 4, "attempt": 1}],
        "crashes": [{"step": 4, "cause": "crash", "attempt": 1}],
    }


RECOVERY = {
    "attempt": 2,
    "planned_at": 103.0,
    "failed_at": 100.0,
    "cause": "out_of_memory",
    "evidence": "<script>",
    "decision": "restart",
    "reason": "at once",
    "delay": 1.0,
    "base_step": 40,
    "rejected": '[{"step": 50, "attempt": 1, "reason": "torn"}]',
    "rewind": None,
    "lost_steps": 12,
    "planning": 0.25,
    "begun_at": 104.0,
    "restored_at": 105.0,
    "restoring": 0.5,
    "training_at": 106.0,
    "verdict": "verified",
    "said": "resume verified to step 52",
    "verified_at": 107.0,
}


def test_the_recovery_flow_has_its_stages_with_seconds_and_reasons() -> None:
    boxes = {box.name: box for box in drawing.stages(RECOVERY, 52)}
    assert list(boxes) == [
        "failed", "snapshot read", "checked", "rescheduled", "restored", "verified", "training",
    ]  # fmt: skip
    assert boxes["failed"].text == "out_of_memory at step 52: <script>"
    assert boxes["snapshot read"] == ("snapshot read", "step 40, 12 steps are done again", 0.25, "")
    assert boxes["checked"] == ("checked", "step 50 rejected: torn", None, "bad")
    assert boxes["rescheduled"] == ("rescheduled", "restart after 1.0 s: at once", 3.0, "")
    assert (boxes["restored"].took, boxes["verified"].took, boxes["training"].took) == (0.5, 1, 6)
    drawn = tree.fromstring(drawing.flow(RECOVERY, 52))
    assert "out_of_memory at step 52: <script>" in (drawn.findtext("desc") or "")


def test_a_recovery_that_is_under_way_says_so() -> None:
    later = ("restored_at", "training_at", "restoring", "verified_at")
    boxes = drawing.stages({**RECOVERY, **dict.fromkeys(later), "verdict": "", "said": ""}, 52)
    assert [box.text for box in boxes[4:]] == ["not yet", "no verdict yet", "not yet"]


def test_the_line_of_time_is_well_formed_and_inside_its_frame() -> None:
    spent = '{"productive": 5.0, "restart": 1.0, "idle": 4.0}'
    attempts = [
        {"number": n, "began": 10.0 * n, "ended": 10.0 * n + 6, "spent": spent} for n in (1, 2, 3)
    ]
    drawn = tree.fromstring(drawing.timeline(attempts, 40.0) or "")
    bars = drawn.findall(".//rect[@class]")
    assert len(bars) == 3 * (1 + 3)
    for bar in bars:
        assert 0 <= float(bar.get("x", "")) <= float(bar.get("x", "")) + float(
            bar.get("width", "")
        ) <= 720  # fmt: skip
