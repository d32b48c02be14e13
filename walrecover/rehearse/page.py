"""The status page of the killed run, left behind to be looked at.

Owns starting it, in a session of its own: a Ctrl-C or the end of a pipe is not its affair. It ends
by itself after a stated time. The daemon is a package above this one, and so another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from walrecover.rehearse.stage import RUN, environment

MINUTES = 30


def leave(root: Path) -> str:
    """Serve the page of the run below `root`. Returns what people should know of it."""
    command = [sys.executable, "-P", "-m", "walrecover_daemon", "serve", str(root)]
    log = root.parent / "page.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", "--for", f"{MINUTES}m"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(os.environ),
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as said:
        try:
            address = said.readline().decode().strip()
        except BaseException:
            process.kill()
            raise
    if not address:
        process.wait()
        why = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return f"no page: {why}"
    return (
        f"the page of the killed run: {address}runs/{RUN} (for {MINUTES} minutes, or until 'kill "
        f"{process.pid}'; later by 'walrecover-daemon serve {root}')"
    )
