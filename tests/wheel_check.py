"""Run by `make wheel-test` with the Python of a venv that holds only the wheel: is it whole?"""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module, metadata
from importlib.resources import files

FAST = ("cli", "supervisor", "rehearse", "recovery", "snapshot", "journal", "sequence", "shards")


def main() -> None:
    walrecover = import_module("walrecover")
    for package in ("walrecover", "walrecover_daemon"):
        assert "site-packages" in str(import_module(package).__file__), f"{package}: not the wheel"
        assert files(package).joinpath("py.typed").is_file(), f"{package}: py.typed is missing"
    for name in ("page.js", "page.css", "htmx.min.js", "htmx.LICENSE", "uplot.LICENSE"):
        place = files("walrecover_daemon").joinpath("static", name)
        assert place.is_file(), f"walrecover_daemon: static/{name} is missing"
    assert walrecover.__version__ == metadata.version("walrecover"), "__version__ and the wheel"
    assert importlib.util.find_spec("torch") is None, "the base install must not bring torch"
    for module in FAST:
        import_module(f"walrecover.{module}")
    assert "torch" not in sys.modules
    print(f"the wheel of {walrecover.__version__} is whole, and imports without torch")


if __name__ == "__main__":
    main()
