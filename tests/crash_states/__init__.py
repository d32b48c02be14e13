"""Enumerates the states that a crash may leave of a program's files, and checks each.

    recording = record([sys.executable, "workload.py"], root, work)
    operations = parse(recording, drop=lambda path: path.endswith("lock.mdb"))
    report = explore(operations, check, seed=1, budget=20_000, workers=2)
    assert not report.violations, report.violations[0]

`record` runs a program under strace, `trace` reads typed operations (`ops`) from it, `model` says
which trees a crash may leave, `choices` draws them, `rebuild` makes them real, `explore` spreads
the draws over a crash table. None of these knows what the program under test is.

The program is `workload`, a run of two ranks; `recorded` records it, `table` has the rows of its
crash table and `promises` its check. Only these know walrecover.
"""

from .calls import TraceError
from .explore import Exploration, Report, State, Violation, explore, rebuild
from .model import History
from .ops import (
    default_row,
    is_directory_sync,
    is_file_sync,
    link_to_rename,
    replace,
    without,
)
from .record import RecordError, Recording, record
from .trace import parse

__all__ = [
    "Exploration",
    "History",
    "RecordError",
    "Recording",
    "Report",
    "State",
    "TraceError",
    "Violation",
    "default_row",
    "explore",
    "is_directory_sync",
    "is_file_sync",
    "link_to_rename",
    "parse",
    "rebuild",
    "record",
    "replace",
    "without",
]
