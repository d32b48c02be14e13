"""The table of `specs/09-doctor.md` and the checks in the source say the same."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.test_findings import PLANTED
from walrecover.findings import CHECKS, SAYS, STOPS

PAGE = Path(__file__).parents[2] / "specs" / "09-doctor.md"
PREFLIGHT = {"": "", "said": SAYS, "stops the run": STOPS}


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| `[a-z-]+` \|", line)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_table_of_checks_is_the_source_s() -> None:
    assert list(rows()) == list(CHECKS)
    for name, (_, _, consequence, remedy, preflight) in rows().items():
        check = CHECKS[name]
        assert (consequence, remedy) == (check.consequence, check.remedy), name
        assert PREFLIGHT[preflight] == check.preflight, name


def test_each_level_of_the_table_has_a_planted_fault_and_the_reverse() -> None:
    documented = {(name, level) for name, row in rows().items() for level in row[0].split(", ")}
    assert documented == {(check, level) for _, check, level, _ in PLANTED}
