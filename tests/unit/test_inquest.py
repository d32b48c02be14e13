"""What is written down of processes that hang."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from walrecover.supervisor.inquest import Inquest


def test_the_files_are_in_the_order_of_the_ranks_whichever_came_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    began = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        came = {2: began[2].pid, 0: began[0].pid, 1: began[1].pid}
        inquest = Inquest(tmp_path, came, time.sleep)
        inquest.hold()
        files = inquest.write(tmp_path / "stacks", "why")
    finally:
        for process in began:
            process.communicate(b"\n")
    assert [path.name for path in files[:3]] == [f"rank-{rank:05d}.txt" for rank in range(3)]
    assert list(inquest.conditions) == [0, 1, 2]
