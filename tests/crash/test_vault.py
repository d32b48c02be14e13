"""A run's copy in a directory and in a bucket: killed at every request, damaged, kept up by two at
once; and the run that comes back from it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.buckets import Buckets
from tests.support.forks import Forks
from tests.support.protocol import Launch, candidates, check_state, entries_of, files_below, holder
from tests.support.worker import REFUSED
from walrecover import failpoints, recovery, snapshot, verifying
from walrecover.errors import BadInput, Corrupt, StorageFailed
from walrecover.mirroring import keep_up
from walrecover.recovery import begin_attempt
from walrecover.retrieving import retrieve
from walrecover.rundir import RunDir
from walrecover.vaults import Vault

NONE: dict[str, str] = {}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def buckets() -> Iterator[Buckets]:
    with Buckets() as server:
        yield server


@pytest.fixture
def here(buckets: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reaches the server, too."""
    for name, value in buckets.environ.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


@pytest.fixture(scope="module")
def stages() -> Iterator[tuple[RunDir, RunDir]]:
    """A run after two commits, and after a third, for which the first was retired."""
    with tempfile.TemporaryDirectory() as folder:
        later = RunDir(Path(folder) / "later" / ".walrecover", "a-run")
        with Launch.begin(later, world=1) as launch:
            for _ in range(2):
                launch.train(2)
                launch.keep(launch.save())
            launch.journals[0].sync()
            early = RunDir(Path(folder) / "early" / ".walrecover", "a-run")
            shutil.copytree(later.root, early.root)
            launch.train(2)
            launch.keep(launch.save())
        assert len(candidates(later)) == 2 and len(entries_of(later)) == len(entries_of(early)) + 2
        yield early, later


@pytest.fixture
def run(stages: tuple[RunDir, RunDir], tmp_path: Path) -> RunDir:
    """The later one, to break."""
    shutil.copytree(stages[1].root, tmp_path / ".walrecover")
    return RunDir(tmp_path / ".walrecover", "a-run")


def restored(where: str, root: Path) -> RunDir:
    """What comes back is whole."""
    shutil.rmtree(root, ignore_errors=True)
    done = retrieve(Vault(where), "a-run", root)
    assert done.damaged == ()
    return done.run


def require_same(found: RunDir, run: RunDir) -> None:
    assert entries_of(found) == entries_of(run)
    assert recovery.fold_run(found).records == recovery.fold_run(run).records
    assert [one for one in verifying.verify(found, entries_of(found)) if one.problem] == []
    plans = [recovery.choose(one, entries_of(one)) for one in (found, run)]
    assert plans[0] == plans[1] and plans[0].base is not None
    check_state(found, plans[0].base, world=1)


def requests(early: RunDir, later: RunDir, where: str) -> int:
    """How many it takes to bring the copy from the early stage to the later one."""
    keep_up(early, Vault(where))
    failpoints.arm("vault.request:raise:1000000")
    keep_up(later, Vault(where))
    count = failpoints.passages()["vault.request"]
    failpoints.arm("")
    return count


def killed_at_every_request(
    forks: Forks, stages: tuple[RunDir, RunDir], root: Path, vault: Callable[[], str],
    environ: dict[str, str],
) -> None:  # fmt: skip
    """From the early stage to the later one. Killed behind a request is killed before the next."""
    early, later = stages
    known, first, last = entries_of(later), vault(), vault()
    keep_up(early, Vault(first))
    before = contents(first)
    count = requests(early, later, last)
    assert count > 12
    for number in range(1, count + 1):
        where = vault()
        for name, data in before.items():
            assert Vault(where).create(name, data)
        code = forks.call(
            "tests.support.worker:keep_up_run", root=str(later.root), where=where,
            environ=environ, armed=f"vault.answered:kill:{number}",
        )  # fmt: skip
        assert code == -signal.SIGKILL
        found = restored(where, root)
        there = entries_of(found)
        assert there == known[: len(there)] and len(there) >= len(entries_of(early))
        base = recovery.choose(found, there).base
        assert base is not None and base.step >= candidates(early)[0].step
        check_state(found, base, world=1)
        keep_up(later, Vault(where))
        assert Vault(where).sizes("") == Vault(last).sizes("")
        newest = where
    require_same(restored(newest, root), later)


def contents(where: str) -> dict[str, bytes]:
    vault = Vault(where)
    return {name: vault.read(name, size) for name, size in vault.sizes("").items()}


@pytest.mark.slow
def test_a_directory_killed_at_every_request(
    forks: Forks, stages: tuple[RunDir, RunDir], tmp_path: Path
) -> None:
    def vault() -> str:
        return tempfile.mkdtemp(dir=tmp_path)

    killed_at_every_request(forks, stages, tmp_path / "n", vault, NONE)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_bucket_killed_at_every_request(
    forks: Forks, buckets: Buckets, stages: tuple[RunDir, RunDir], tmp_path: Path
) -> None:
    def vault() -> str:
        return f"s3://{buckets.make()}/some/where"

    killed_at_every_request(forks, stages, tmp_path / "n", vault, buckets.environ)


@pytest.mark.usefixtures("here")
def test_what_is_there_is_not_sent_again_and_what_is_retired_goes(
    buckets: Buckets, stages: tuple[RunDir, RunDir], tmp_path: Path
) -> None:
    early, later = stages
    for where in (f"s3://{buckets.make()}", str(tmp_path / "vault")):
        assert keep_up(early, Vault(where)).sent > 5
        done = keep_up(later, Vault(where))
        assert done.sent > 5 and done.deleted > 0
        again = keep_up(later, Vault(where))
        assert (again.sent, again.bytes, again.deleted) == (0, 0, 0)
        there = {
            name.removeprefix("a-run/snapshots/")
            for name in Vault(where).sizes("a-run/")
            if name.startswith("a-run/snapshots/")
        }
        alive = {f for ref in candidates(later) for f in snapshot.files_of(later, ref)}
        assert there == alive | {f"{ref.name}/manifest.json" for ref in candidates(later)}
        require_same(restored(where, tmp_path / "n"), later)


def test_two_who_keep_up_one_copy(
    forks: Forks, stages: tuple[RunDir, RunDir], tmp_path: Path
) -> None:
    where = str(tmp_path / "vault")
    started = [
        forks.start(
            "tests.support.worker:keep_up_run", root=str(one.root), where=where, environ=NONE
        )
        for one in (stages[1], stages[0], stages[1])
    ]
    codes = [forks.wait(pid) for pid in started]
    assert codes[0] == codes[2] == 0
    assert codes[1] in (0, REFUSED)  # the copy may have gone on by then
    keep_up(stages[1], Vault(where))
    require_same(restored(where, tmp_path / "n"), stages[1])


def test_it_goes_on_beside_a_training(forks: Forks, tmp_path: Path) -> None:
    run = RunDir(tmp_path / ".walrecover", "a-run")
    with Launch.begin(run) as launch:
        launch.train()
        launch.save()
    pid = forks.start(
        "tests.support.worker:train", root=str(run.root), notes=str(tmp_path / "notes"),
        attempts=3, snapshots=10,
    )  # fmt: skip
    where, steps = str(tmp_path / "vault"), []
    while not steps or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert keep_up(run, Vault(where)).damaged == ()
        found = restored(where, tmp_path / "n")
        steps.append(candidates(found)[0].step)
        check_state(found, candidates(found)[0])
    assert forks.wait(pid) == 0
    keep_up(run, Vault(where))
    found = restored(where, tmp_path / "n")
    assert candidates(found) == candidates(run) and steps == sorted(steps)


def test_what_does_not_read_back_has_no_entry(forks: Forks, run: RunDir, tmp_path: Path) -> None:
    where = tmp_path / "vault"
    pid = forks.start(
        "tests.support.worker:keep_up_run", root=str(run.root), where=str(where), environ=NONE,
        armed="vault.answered:stop:3",
    )  # fmt: skip
    assert forks.wait(pid) is None  # the vault is open and listed, the first file is sent
    (sent,) = files_below(where)
    sent.write_bytes(bytes(sent.stat().st_size))
    assert forks.wake(pid) == REFUSED
    assert not (where / "a-run" / "sequence").exists()
    keep_up(run, Vault(str(where)))
    require_same(restored(str(where), tmp_path / "n"), run)


# --- what is not whole --------------------------------------------------------------------------


@pytest.fixture
def vault(run: RunDir, tmp_path: Path) -> Path:
    keep_up(run, Vault(str(tmp_path / "vault")))
    return tmp_path / "vault" / "a-run"


def break_snapshot(vault: Path, name: str) -> None:
    path = next((vault / "snapshots" / name).glob("*.msgpack"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def test_a_snapshot_that_rots_in_the_vault_is_passed_over(
    run: RunDir, vault: Path, tmp_path: Path
) -> None:
    newest, before = candidates(run)
    break_snapshot(vault, newest.name)
    done = retrieve(Vault(str(vault.parent)), "a-run", tmp_path / "n")
    assert [one.name for one in done.damaged] == [newest.name]
    assert begin_attempt(done.run, holder()).entry.plan.base == before
    break_snapshot(vault, before.name)
    with pytest.raises(Corrupt, match="no snapshot of the copy is whole"):
        retrieve(Vault(str(vault.parent)), "a-run", tmp_path / "m")
    assert os.listdir(tmp_path / "m" / "runs") == []


@pytest.mark.parametrize("how", ["missing", "other", "cut"])
def test_events_that_are_lost_in_the_vault_end_their_stream(
    run: RunDir, vault: Path, tmp_path: Path, how: str
) -> None:
    with Launch.begin(run, world=1) as launch:
        launch.train(2)
        launch.save()
        keep_up(run, Vault(str(vault.parent)))
        launch.train(2)
        launch.save()
        keep_up(run, Vault(str(vault.parent)))
    folder = next((vault / "journal").glob("a2-*")) / "rank-0"
    first, second = sorted(folder.iterdir())
    last = int(first.stem.partition("-")[2])
    data = second.read_bytes()
    second.unlink()
    if how != "missing":
        second.write_bytes(data[:-1] if how == "cut" else data[:-1] + b"\1")
    found = retrieve(Vault(str(vault.parent)), "a-run", tmp_path / "n")
    assert found.damaged == ()
    ends = {key.attempt: record.lsn for key, record in recovery.fold_run(found.run).records.items()}
    assert ends[2] == last if how != "other" else last <= ends[2]
    assert not any(r.losses for r in recovery.fold_run(found.run).records.values())


def test_a_damaged_entry_is_refused(vault: Path, tmp_path: Path) -> None:
    path = vault / "sequence" / "00000003.json"
    path.write_bytes(path.read_bytes().replace(b"step", b"stop"))
    with pytest.raises(Corrupt, match="sequence entry 3"):
        retrieve(Vault(str(vault.parent)), "a-run", tmp_path / "n")
    assert os.listdir(tmp_path / "n" / "runs") == []


def test_a_damaged_snapshot_here_is_not_sent_and_holds_nothing_up(
    run: RunDir, tmp_path: Path
) -> None:
    newest, before = candidates(run)
    path = run.snapshots / newest.name / "rank-00000.msgpack"
    path.write_bytes(b"")
    where = str(tmp_path / "vault")
    done = keep_up(run, Vault(where))
    assert [one.name for one in done.damaged] == [newest.name]
    assert done.entries == len(entries_of(run))
    found = retrieve(Vault(where), "a-run", tmp_path / "n")
    assert [one.name for one in found.damaged] == [newest.name]
    assert begin_attempt(found.run, holder()).entry.plan.base == before


def test_another_run_of_the_name_is_not_mixed_in(run: RunDir, vault: Path, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "other", "a-run")
    with Launch.begin(other) as launch:
        launch.train()
        launch.save()
    before = {str(path): path.read_bytes() for path in files_below(vault)}
    with pytest.raises(BadInput, match="holds another run a-run, or this one as it went on"):
        keep_up(other, Vault(str(vault.parent)))
    found = retrieve(Vault(str(vault.parent)), "a-run", tmp_path / "n", name="b").run
    with Launch.begin(found, world=1) as launch:  # it goes on here and there
        launch.train(2)
        launch.save()
    assert {str(path): path.read_bytes() for path in files_below(vault)} == before
    shutil.copytree(found.path, tmp_path / "o" / "runs" / "a-run")
    keep_up(RunDir(tmp_path / "o", "a-run"), Vault(str(vault.parent)))
    with Launch.begin(run, world=1) as launch:
        launch.train(2)
        launch.save()
    with pytest.raises(BadInput, match="holds another run a-run, or this one as it went on"):
        keep_up(run, Vault(str(vault.parent)))


def test_what_is_no_vault_is_a_sentence(
    run: RunDir, buckets: Buckets, tmp_path: Path, here: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="cannot open the vault"):
        Vault(str(tmp_path / "file"))
    with pytest.raises(BadInput, match="names no bucket"):
        Vault("s3://")
    with pytest.raises(BadInput, match="holds no copy of a run 'a-run'"):
        retrieve(Vault(str(tmp_path / "empty")), "a-run", tmp_path / "n")
    with pytest.raises(BadInput, match="cannot name a run"):
        retrieve(Vault(str(tmp_path / "empty")), "../x", tmp_path / "n")
    with pytest.raises(StorageFailed, match="cannot list the vault: "):
        keep_up(run, Vault("s3://no-such-bucket-anywhere"))
    with pytest.raises(BadInput, match="holds no copy"):
        retrieve(Vault(f"s3://{buckets.make()}/p"), "a-run", tmp_path / "n")


@pytest.mark.parametrize("number", range(1, 12, 2))
def test_p9_what_the_storage_refuses_is_told_and_sent_the_next_time(
    run: RunDir, tmp_path: Path, number: int
) -> None:
    where = str(tmp_path / "vault")
    failpoints.arm(f"vault.request:enospc:{number}")
    with pytest.raises(StorageFailed, match=r"cannot .*: failpoint vault.request"):
        keep_up(run, Vault(where))
    failpoints.arm("")
    keep_up(run, Vault(where))
    require_same(restored(where, tmp_path / "n"), run)
