"""Full and read-only disks, with real mounts (P9): run by `make test-system`, needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import files_of, walrecover

pytestmark = pytest.mark.system

SCRIPT = """
import torch, walrecover
torch.manual_seed(0)
model = torch.nn.Linear(64, 64)  # 16 KiB, and twice that with momentum
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
run = walrecover.attach(name="small", model=model, optimizer=optimizer, every="5steps")
for number in run.loop(range(STEPS)):
    optimizer.zero_grad()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    run.step()
print("trained", run.global_step)
"""


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def script(folder: Path, steps: int) -> Path:
    path = folder / "train.py"
    path.write_text(SCRIPT.replace("STEPS", str(steps)))
    return path


def test_a_full_disk_keeps_the_old_state_loadable_and_says_what_happened(
    tmp_path: Path, tmpfs: Path
) -> None:
    root = tmpfs / ".walrecover"
    done = walrecover(
        root, "run", "--name", "small", "--", sys.executable, str(script(tmp_path, 20))
    )
    assert "trained 20" in done.out, done
    filler = os.open(tmpfs / "filler", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    before = walrecover(root, "replay", "--json").json["recovery_point"]
    more = walrecover(
        root, "run", "--name", "small", "--max-restarts", "0", "--",
        sys.executable, str(script(tmp_path, 60)),
    )  # fmt: skip
    assert more.code != 0
    assert "No space left" in more.err, more.err
    after = walrecover(root, "replay", "--json").json
    assert after["recovery_point"] == before
    assert walrecover(root, "verify").code == 0
    (tmpfs / "filler").unlink()
    last = walrecover(
        root, "run", "--name", "small", "--", sys.executable, str(script(tmp_path, 60))
    )
    assert "trained 60" in last.out, last


def test_a_read_only_file_system_is_readable_and_one_clear_sentence_to_write(
    tmp_path: Path, tmpfs: Path
) -> None:
    root = tmpfs / ".walrecover"
    walrecover(root, "run", "--name", "small", "--", sys.executable, str(script(tmp_path, 10)))
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    before = files_of(root)
    assert walrecover(root, "replay", "small", "--json").json["recovery_point"]["step"] == 10
    assert walrecover(root, "verify").code == 0
    assert walrecover(root, "show").code == 0
    again = walrecover(root, "run", "--name", "small", "--", sys.executable, "-c", "pass")
    assert again.code == 2
    assert "Read-only file system" in again.err
    unseen = walrecover(
        root, "run", "--no-preflight", "--name", "small", "--", sys.executable, "-c", "pass"
    )
    assert unseen.code == 1
    assert "Read-only file system" in unseen.err
    assert files_of(root) == before
