"""What is looked at when a command has ended: counters, error files, output, the last scalars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.protocol import Launch
from walrecover import cgroups, recovery
from walrecover import events as ev
from walrecover.causes import Evidence, classify
from walrecover.rundir import RunDir
from walrecover.supervisor.child import Ending
from walrecover.supervisor.evidence import Before, read_error_file
from walrecover.wording import MOST

PLAIN: dict[str, Any] = {"started": True, "forced": None, "asked": None, "peak": 0}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / ".walrecover", "a-run")


def look(before: Before, run: RunDir, code: int = 1, records: Any = ()) -> Evidence:
    return before.look(Ending(code=code), list(records), run=run, **PLAIN)


# --- torch's error file -------------------------------------------------------------------------

RECORDED = """
import sys
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise KeyError("x")

main()
"""


def test_the_error_file_of_torch_itself_is_understood(tmp_path: Path, run: RunDir) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "train.py"
    script.write_text(RECORDED)
    environ = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    before = Before.note(environ)
    subprocess.run([sys.executable, script], env=environ, capture_output=True, timeout=120)
    found = look(before, run)
    (raised,) = found.raised
    event = raised.event
    assert (raised.rank, event.kind, event.message) == (None, "KeyError", "'x'")
    assert (event.file, event.line, event.function) == (str(script), 7, "main")
    assert event.at > 0
    verdict = classify(found)
    assert (verdict.cause, verdict.fingerprint) == ("code", "code:KeyError@train.py:7")
    # The next attempt leaves none: an old one at the same place tells nothing of it.
    assert look(Before.note(environ), run).raised == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"message": 3}',
        '{"message": {"extraInfo": 7}}',
        "\xff",
        "0" * 9,
    ],
)
def test_an_error_file_that_says_nothing_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_bytes(text.encode("latin1"))
    assert read_error_file(tmp_path / "error.json") is None
    assert read_error_file(tmp_path / "missing") is None


def test_an_error_file_with_a_bare_sentence(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text(json.dumps({"message": "it broke: badly"}))
    event = read_error_file(tmp_path / "error.json")
    assert event == ev.ExceptionRaised(kind="Exception", message="it broke: badly")


# --- output -------------------------------------------------------------------------------------


def test_only_what_was_written_since_the_start_is_read_back(tmp_path: Path, run: RunDir) -> None:
    log = tmp_path / "train.log"
    later = tmp_path / "later.log"
    log.write_text("ValueError: of yesterday\n")
    before = Before.note({}, (str(log), str(later)))
    assert look(before, run).log == ()
    with log.open("a") as file:
        file.write("walrecover: our own line\nKeyError: 'x'\n")
    later.write_text("more\n")
    assert look(before, run).log == ("KeyError: 'x'", "more")
    log.write_text("rotated\n")
    assert look(before, run).log == ("rotated", "more")


def test_a_long_output_is_read_from_its_end_only(tmp_path: Path, run: RunDir) -> None:
    log = tmp_path / "train.log"
    before = Before.note({}, (str(log),))
    log.write_bytes(b"x" * 79 + b"\n" + b"y" * (1 << 20) + b"\xff\nlast\n")
    assert look(before, run).log[-1] == "last"
    assert sum(map(len, look(before, run).log)) <= 64 << 10


def test_what_looks_like_a_secret_is_not_taken_from_output_or_error_files(
    tmp_path: Path, run: RunDir
) -> None:
    log = tmp_path / "train.log"
    before = Before.note({}, (str(log),))
    log.write_text("OSError: cannot reach https://me:hunter2@host with api_key=hunter2\n")
    assert "hunter2" not in str(look(before, run))
    (tmp_path / "error.json").write_text(json.dumps({"message": log.read_text()}))
    event = read_error_file(tmp_path / "error.json")
    assert event is not None and "cannot reach" in event.message and "hunter2" not in event.message


def test_what_takes_the_square_of_its_length_is_searched_in_little(
    tmp_path: Path, run: RunDir
) -> None:
    """A line of 64 KiB like this one held the supervisor up for 16 s."""
    log = tmp_path / "train.log"
    before = Before.note({}, (str(log),))
    log.write_text("ValueError: " + "inf " * 16_000 + "at the end\n")
    found = look(before, run)
    assert [len(line) for line in found.log] == [MOST + 3]
    assert found.log[0].startswith("ValueError: inf ") and found.log[0].endswith("at the end")
    assert classify(found).cause == "code"
    (tmp_path / "error.json").write_text(json.dumps({"message": log.read_text()}))
    event = read_error_file(tmp_path / "error.json")
    assert event is not None and event.kind == "ValueError" and len(event.message) < MOST


# --- streams ------------------------------------------------------------------------------------


def streams(run: RunDir, *events: ev.Event) -> list[Any]:
    with Launch.begin(run) as launch:
        launch.train(2)
        for event in events:
            launch.journals[1].append(event)
    return [(launch.entry, recovery.records_of(run, launch.entry))]


def test_the_ranks_exceptions_and_silence_are_found(run: RunDir) -> None:
    said = ev.ExceptionRaised(kind="builtins.ValueError", message="bad", step=2)
    found = look(Before.note({}), run, records=streams(run, said))
    assert [(one.rank, one.event) for one in found.raised] == [(1, said)]
    assert (found.silent, found.step) == ((0,), 2)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([ev.StepCompleted(step=3, scalars={"loss": float("nan")})], "loss is nan at step 3"),
        (
            [ev.StepCompleted(step=3), ev.ScalarsArrived(step=3, scalars={"loss": float("-inf")})],
            "loss is -inf at step 3",
        ),
        ([ev.StepCompleted(step=3, scalars={"loss": 1e300})], ""),
        (
            [
                ev.StepCompleted(step=3, scalars={"loss": float("nan")}),
                ev.StepCompleted(step=4, scalars={"loss": 1.0}),
            ],
            "",
        ),
    ],
)
def test_the_last_scalars_are_looked_at(run: RunDir, events: list[ev.Event], says: str) -> None:
    found = look(Before.note({}), run, code=3, records=streams(run, *events))
    assert found.infinite.startswith(says) and bool(found.infinite) == bool(says)
    assert classify(found).cause == ("numeric" if says else "code")


def test_a_rank_that_was_stopped_says_by_which_signal(run: RunDir) -> None:
    found = look(Before.note({}), run, 143, streams(run, ev.RunStopped(step=2, signal=15)))
    assert found.stopped_by == 15
    assert classify(found).cause == "preempted"


# --- counters -----------------------------------------------------------------------------------


def test_what_the_kernel_counts_is_read_where_it_can_be(run: RunDir) -> None:
    memory = look(Before.note({}), run).memory
    assert memory.total > 1 << 20
    if cgroups.memory_cgroup() is not None:
        assert memory.kills is not None and memory.kills >= 0
    assert cgroups.memory_cgroup(1 << 22) is None
