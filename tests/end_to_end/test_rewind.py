"""A poisoned batch gives NaN; the run goes back, leaves it out, and finishes by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.end_to_end.scripts.poisoned import BATCH, LENGTH, POISON
from tests.end_to_end.test_causes import SCRIPTS, walrecover
from tests.support.forkserver import ForkServer

POLICY = "causes: {numeric: {action: rewind}}\nretry_policy: {backoff_delay: 0s}"


def poisoned_step(folder: Path) -> int:
    """The first step that trained on the poison."""
    for line in (folder / "trained").read_text().splitlines():
        step, *ids = map(int, line.split())
        if POISON in ids:
            return step
    raise AssertionError("nobody trained on it")


def surviving(folder: Path, last: int, name: str = "trained") -> dict[int, list[int]]:
    """The samples of each step, as the script has noted them: the last word on a step counts."""
    found = {}
    for line in (folder / name).read_text().splitlines():
        step, *ids = map(int, line.split())
        if step <= last:
            found[step] = ids
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["global", "plain"])
def test_a_poisoned_batch_is_left_out_and_the_run_finishes_by_itself(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "walrecover.yaml").write_text(POLICY)
    done = walrecover(
        tmp_path,
        *("run", "--no-preflight", "--standby", "off", "--"),
        *(sys.executable, str(SCRIPTS / "poisoned.py"), kind, "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "finite True" in done.stdout
    first, second = json.loads(walrecover(tmp_path, "show", "--json").stdout)["attempts"]
    assert (first["cause"], first["decision"]) == ("numeric", "rewind")
    bad = poisoned_step(tmp_path)
    assert second["rewind"] == {"step": bad, "reason": f"loss is nan at step {bad}"}
    base = (bad - 1) // 2 * 2
    (skip,) = second["skips"]
    assert (skip["begin"], skip["end"]) == (base * BATCH, bad * BATCH)
    everything = [sample for ids in surviving(tmp_path, LENGTH // BATCH).values() for sample in ids]
    assert len(everything) == len(set(everything)) == LENGTH - (bad - base) * BATCH
    assert POISON not in everything
    story = walrecover(tmp_path, "show").stdout
    assert f"→ rewound   to before step {bad}: loss is nan at step {bad}" in story
    assert f"→ left out  positions {base * BATCH} to {bad * BATCH - 1} of pass 0" in story
    audit = walrecover(tmp_path, "audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert f"skipped on purpose: {base * BATCH} to {bad * BATCH - 1}" in audit.stdout


@pytest.mark.slow
def test_a_fork_leaves_out_the_poisoned_batch_and_goes_on_from_its_parents_history(
    server: ForkServer, folder: Path
) -> None:
    def train(name: str) -> str:
        child = server.start(
            "tests.end_to_end.scripts.poisoned:train",
            folder=folder,
            output=folder / f"output-{name}",
            env={"WALRECOVER_RUN": name, "WALRECOVER_KEEP": "99"},
            kind="global",
            epochs=1,
        )
        assert child.wait() == 0, (folder / f"output-{name}").read_text()
        return (folder / f"output-{name}").read_text()

    assert "finite False" in train("a")
    bad = poisoned_step(folder)
    base = (bad - 1) // 2 * 2
    (folder / "trained").rename(folder / "before")
    batch = f"{(bad - 1) * BATCH}:{bad * BATCH}"
    forked = walrecover(folder, "fork", "a", "--at", str(base), "--skip", batch, "--name", "b")
    assert forked.returncode == 0, forked.stderr
    assert "finite True" in train("b")
    before, after = surviving(folder, base, "before"), surviving(folder, LENGTH // BATCH)
    everything = [sample for ids in (*before.values(), *after.values()) for sample in ids]
    assert len(everything) == len(set(everything)) == LENGTH - BATCH
    assert POISON not in everything
    audit = walrecover(folder, "audit", "b")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert f"skipped on purpose: {(bad - 1) * BATCH} to {bad * BATCH - 1}" in audit.stdout
    compared = walrecover(folder, "compare", "a", "b")
    assert f"one history through step {base}" in compared.stdout
    assert compared.returncode == 1
    assert "first difference: step" in compared.stdout
