"""Which modules a standby may import ahead: what is installed, wherever that was installed to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from walrecover.session.imports import imported


@pytest.mark.parametrize("installed", [True, False])
def test_what_a_folder_of_pythonpath_holds_counts_where_it_was_installed_there(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"somebodys_module_{installed}"
    (tmp_path / f"{name}.py").write_text("")
    if installed:  # as pip install --target leaves it
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, sys.modules[name])
    assert (name in imported().names) is installed


def test_what_comes_with_python_or_is_walrecover_counts_and_the_script_does_not() -> None:
    names = imported().names
    assert {"json", "walrecover.session.imports", "msgspec", "torch"} <= {*names}
    assert "__main__" not in names and __name__ not in names
