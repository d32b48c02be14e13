"""The race's tables in the pages are those of its report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.goodput import table

REPORT = table.ROOT / "specs" / "campaigns" / "race.json"


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_race_are_those_of_its_report(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall("<!-- race -->\n.*?<!-- /race -->", text, re.DOTALL)) == 1
    assert text == table.put(text, table.told_in(page, REPORT))
