"""What a rehearsal says: each kill, its recovery, the verdict; and which files both runs wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from walrecover.rehearse import report
from walrecover.rehearse.compare import Difference
from walrecover.rehearse.flow import Flow
from walrecover.rehearse.kill import Strike
from walrecover.rehearse.report import Progressing, Result
from walrecover.rehearse.scan import scan, written_by_both

INSIDE = Strike(61, "snapshot", "rank 0", 0, 2, "9f2c01d7", 0.0, landed=True)
BESIDE = INSIDE._replace(victim="a DataLoader worker", rank=None)
LATE = Strike(99, "ended", "rank 1", 1, 3, "9f2c01d7", 0.0, landed=False)
RESULT = Result(
    kills=2,
    strikes=[INSIDE, LATE, BESIDE],
    difference=None,
    digest="blake3:00",
    steps=99,
    files=["out.txt"],
    seconds=12.25,
)
DIFFERENT = RESULT._replace(difference=Difference(12, 1, "loss", "0.5", "0.75"))


def said(result: Result, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """stdout and stderr of a verdict."""
    errors = io.StringIO()
    report.write_text(result, Progressing(Console(file=errors, width=200)).line)
    return capsys.readouterr().out, errors.getvalue()


def test_a_kill_is_said_with_its_step_and_phase() -> None:
    line = "kill 2/5: SIGKILL of rank 0 at step 61, in a snapshot"
    assert report.describe_strike(INSIDE, 2, 5) == line


def test_only_the_death_of_a_rank_is_inside_a_snapshot() -> None:
    assert INSIDE.inside and not BESIDE.inside and not LATE.inside
    assert report.describe_strike(BESIDE, 1, 5).endswith("at step 61, in a step")
    assert RESULT.inside == 1


def test_a_kill_that_does_not_count_is_said_to_be_none() -> None:
    assert "does not count" in report.describe_strike(LATE, 3, 5)
    assert RESULT.landed == [INSIDE, BESIDE]


def test_the_flow_of_a_recovery_is_one_line() -> None:
    flow = Flow(seen=0.031, base=58, again=3, restored=1.5, training=1.94)
    assert report.describe_flow(flow) == (
        "  → seen after 31 ms → resumed after step 58 (3 steps done again), restored after 1.5 s "
        "→ training again after 1.9 s"
    )
    fresh = report.describe_flow(flow._replace(seen=None, base=0, again=0))
    assert fresh.startswith("  → started from the beginning, restored")
    assert "(1 step done again)" in report.describe_flow(flow._replace(again=1))
    assert "no other attempt" in report.describe_flow(None)


def test_the_last_line_says_identical_with_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    out, errors = said(RESULT, capsys)
    assert out == "identical after 99 steps: final weights blake3:00\n"
    assert "2 of 2 kills landed while the script trained, 1 of them in a snapshot" in errors
    assert "the second overwrote the first: out.txt" in errors


def test_a_difference_is_said_with_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(DIFFERENT, capsys)
    assert out == (
        "different from step 12 on, on rank 1: loss is 0.5 in the undisturbed run, 0.75 in the "
        "killed one\n"
    )


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (
            Difference(4, 0, "loss", "0.5", "0.75", again=True),
            "different from step 4 on: loss is 0.5 the first time, 0.75 when it was done again",
        ),
        (
            Difference(None, 0, "model.bias", "1.0", "2.0"),
            "different in the final state: model.bias is 1.0 in the undisturbed run, 2.0 in the "
            "killed one",
        ),
    ],
)
def test_other_differences_are_said(difference: Difference, says: str) -> None:
    assert report.describe_difference(difference) == says


def test_what_was_asked_and_not_reached_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    result = RESULT._replace(problems=["only 1 of 2 kills landed"])
    out, _ = said(result, capsys)
    assert out == "not shown: only 1 of 2 kills landed\n"
    assert not result.identical


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    report.write_json(DIFFERENT)
    body = json.loads(capsys.readouterr().out)
    assert body["version"] == 1
    assert body["identical"] is False
    assert body["kills"][0] == {
        "step": 61,
        "phase": "snapshot",
        "victim": "rank 0",
        "attempt": 2,
        "landed": True,
    }
    assert body["first_difference"] == {
        "step": 12,
        "rank": 1,
        "what": "loss",
        "undisturbed": "0.5",
        "killed": "0.75",
    }
    assert (body["files"], body["digest"], body["seconds"]) == (["out.txt"], "blake3:00", 12.25)


def test_there_is_a_bar_on_a_terminal_only() -> None:
    for terminal in (True, False):
        written = io.StringIO()
        console = Console(file=written, force_terminal=terminal, width=120)
        with Progressing(console) as progress:
            progress.begin("undisturbed", steps=10)
            progress.step(3)
            progress.line("kill [1/5]")
            progress.done(10)
        assert "kill [1/5]" in written.getvalue()
        assert "undisturbed" in written.getvalue()
        assert ("10/10" in written.getvalue()) == terminal
        assert ("\x1b[" in written.getvalue()) == terminal


# --- files ----------------------------------------------------------------------------------------


def test_files_that_both_runs_wrote_are_found(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for folder in (scratch, tmp_path / ".git", tmp_path / ".walrecover", tmp_path / "out"):
        folder.mkdir()

    def write(text: str, *names: str) -> None:
        for name in names:
            (tmp_path / name).write_text(text)

    skipped = ["scratch/log", ".git/index", ".walrecover/data"]
    write("", "input.txt", "out/log.txt", *skipped)
    before = scan(tmp_path, scratch)
    write("1", "out/model.pt", "out/log.txt", "first.txt", *skipped)
    between = scan(tmp_path, scratch)
    write("two", "out/model.pt", "out/log.txt", "second.txt", *skipped)
    after = scan(tmp_path, scratch)
    assert written_by_both(before, between, after) == ["out/log.txt", "out/model.pt"]
    assert set(before) == {"input.txt", "out/log.txt"}
