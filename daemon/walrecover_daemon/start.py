"""The entry point: the same words as everywhere where the extra `daemon` is not installed.

Must import nothing that the base install lacks.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = ("prometheus_client", "sqlite_utils", "starlette", "uvicorn")


def main() -> None:
    """The `walrecover-daemon` command."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"walrecover-daemon: {', '.join(missing)} is not installed: "
            f"pip install 'walrecover[daemon]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from walrecover_daemon.cli import main

    main()
