"""The daemon on guard: what rots, fails or fills up is found, shown and told, and nothing waits."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support import readmodels
from tests.support.buckets import Buckets, objects
from tests.support.protocol import Launch, candidates, check_state, damage, entries_of
from tests.support.readmodels import rows
from tests.support.waiting import wait_until
from tests.support.webhooks import SECRET, Receiver, guard_file
from walrecover import events as ev
from walrecover.processes import identity
from walrecover.retrieving import retrieve
from walrecover.rundir import RunDir
from walrecover.state import StreamKey
from walrecover.vaults import Vault

until = partial(wait_until, seconds=180.0, pause=0.05)
"""What is behind everybody else in the scheduler may be long in coming."""


def trained(root: Path, name: str = "one", saves: int = 3) -> RunDir:
    """A run with snapshots of the steps 2, 4, …, whose holder is dead."""
    run = RunDir(root, name)
    with Launch.begin(run) as launch:
        for _ in range(saves):
            launch.train(2)
            launch.save()
    return run


class Daemon:
    """A daemon that serves; `said` is its log, once it has ended."""

    def __init__(self, *words: str | Path, **more: Any) -> None:
        self.process = readmodels.daemon("serve", *words, **more)
        self.url = readmodels.address(self.process)
        self.said = ""

    def get(self, place: str) -> str:
        return httpx.get(f"{self.url}{place}", timeout=30).text

    def is_ready(self) -> bool:
        return httpx.get(f"{self.url}readyz", timeout=30).status_code == 200

    def child(self, words: str) -> psutil.Process | None:
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has just ended
                if words in " ".join(each.cmdline()):
                    return each
        return None

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.said = self.process.communicate(timeout=60)[1]


@contextmanager
def daemon(
    root: Path, guard: Path | None = None, *words: str | Path, **more: Any
) -> Iterator[Daemon]:
    """`more`: as for Popen."""
    running = Daemon(root, *(["--guard", guard] if guard else []), *words, **more)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


def guarded(path: Path, table: str) -> list[dict[str, Any]]:
    try:
        return rows(path.with_suffix(".guard.db"), f"SELECT * FROM {table}")
    except sqlite3.OperationalError:
        return []


def told(path: Path) -> dict[str, str]:
    """What was made of each alert, by its kind."""
    return {row["kind"]: row["delivery"] for row in guarded(path, "alerts")}


# --- rot ------------------------------------------------------------------------------------------


def test_p8_a_flipped_bit_is_found_shown_and_told_and_the_next_recovery_skips_it(
    root: Path, tmp_path: Path
) -> None:
    run = trained(root)
    newest, before = candidates(run)[:2]
    damage(run, newest)
    with Receiver() as hook, daemon(root, guard_file(tmp_path, hook.url)) as it:
        until(lambda: hook.got)
        found = hook.got[0]
        assert (found["run"], found["kind"], found["state"]) == ("one", "rotten", "firing")
        assert "the recovery point of step 6 is damaged" in found["reason"]
        assert "rank-00001.safetensors" in found["reason"]
        assert "a recovery goes on from step 4" in found["reason"]
        assert '<span class="state rotten">rotten</span>' in it.get("runs/one")
        assert "rank-00001.safetensors" in it.get("")
        metrics, place = it.get("metrics"), f'{{directory="{root}",'
        assert f'walrecover_run_snapshots_read{place}result="rotten",run="one"}} 1.0' in metrics
        assert f'walrecover_run_recovery_point_whole{place}run="one"}} 0.0' in metrics
        assert f'walrecover_alerts{place}kind="rotten",run="one"}} 1.0' in metrics
        with Launch.begin(run) as launch:
            plan = launch.entry.plan
            assert (plan.base, [one.step for one in plan.rejected]) == (before, [6])
    assert f"walrecover-daemon: alert: one: rotten: {found['reason']}" in it.said
    assert [one for one in hook.kinds() if one[1] == "rotten"] == [("one", "rotten", "firing")]
    assert hook.headers[0]["path"] == f"/{SECRET}"
    assert SECRET not in it.said


def test_what_was_told_is_not_told_again_whatever_is_lost(root: Path, path: Path) -> None:
    """Neither after a restart, nor where the read model is gone, nor what was before its time."""
    run = trained(root)
    damage(run, candidates(run)[0])
    guard = root.parent / "elsewhere"
    with Receiver() as hook, daemon(root, guard_file(guard, hook.url)):
        until(lambda: told(path) == {"rotten": "delivered"})
    path.unlink()
    with Receiver() as hook:
        with daemon(root, guard_file(guard, hook.url)) as it:
            with Launch.begin(run, identity()) as launch:
                launch.train()
                note_end(launch, "restart")
            until(lambda: hook.kinds() == [("one", "failed", "firing")])
        assert "rotten" not in it.said
    path.with_suffix(".guard.db").write_bytes(b"no database at all" * 500)
    with Receiver() as hook:
        with daemon(root, guard_file(guard, hook.url)) as it:
            until(lambda: hook.got)
        assert hook.kinds() == [("one", "rotten", "firing")]  # it lasts; the rest is history
    assert "what was told and read back is damaged, and begun anew" in it.said


def note_end(launch: Launch, action: str) -> None:
    """What a supervisor writes at the end of an attempt."""
    entry = launch.entry
    notes = readmodels.open_stream(launch.run, StreamKey(entry.number, entry.nonce, "supervisor"))
    notes.append(
        ev.WorkerExited(at=time.time(), pid=1, cause="crash", evidence="token=abcdefgh SIGSEGV")
    )
    notes.append(ev.RestartDecided(at=time.time(), action=action, delay=0.0, reason="so it says"))
    notes.close()


# --- what is told ---------------------------------------------------------------------------------


def test_ends_hangs_and_what_lasts_are_told_once_and_when_they_are_over(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run = RunDir(root, "one")
    run.create()
    with Receiver(503, 400) as hook:
        file = guard_file(tmp_path, hook.url, "scrub: {cycle: off}\n")
        more = ", no_snapshot_for: 0.3s, disk_free: 0.9999}"
        file.write_text(file.read_text().replace("}", more, 1))
        with daemon(root, file) as it:
            until(lambda: told(path) == {"disk": "refused"})  # the 503 first, then the 400
            with Launch.begin(run, identity()) as launch:
                launch.train()
                hang = ev.HangDetected(
                    at=time.time(), phase="step", seconds=70.0, limit=60.0, rank=1, step=1
                )
                launch.journals[1].append(hang)
                until(lambda: {row[1] for row in hook.kinds()} >= {"hang", "stale"})
                launch.train()
                launch.save()
                until(lambda: ("one", "stale", "resolved") in hook.kinds())
                note_end(launch, "restart")
                until(lambda: ("one", "failed", "firing") in hook.kinds())
            with Launch.begin(RunDir(root, "left")):  # its holder is gone
                until(lambda: ("left", "stopped", "firing") in hook.kinds())
            with Launch.begin(RunDir(root, "left"), identity()):
                until(lambda: ("left", "stopped", "resolved") in hook.kinds())
    for about in (("one", "hang"), ("one", "failed"), ("left", "stopped")):
        assert hook.kinds().count((*about, "firing")) == 1
    (hang_told,) = [one for one in hook.got if one["kind"] == "hang"]
    assert "rank 1 stands still in step for 70.0 s, and may for 60.0 s" in hang_told["reason"]
    (failed,) = [one for one in hook.got if one["kind"] == "failed"]
    assert failed["reason"] == (
        "attempt 1 ended: crash: token=<redacted> SIGSEGV; decided: restart: so it says"
    )
    assert "the webhook at 127.0.0.1 takes no alerts (it answered 503)" in it.said
    assert "the webhook at 127.0.0.1 refuses an alert (it answered 400)" in it.said


def test_a_webhook_that_hangs_delays_nothing_and_what_waits_survives_a_restart(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run = trained(root)
    damage(run, candidates(run)[0])
    with Receiver(silent=True) as hook:
        with daemon(root, guard_file(tmp_path, hook.url)) as it:
            until(lambda: hook.got)
            with Launch.begin(run, identity()) as launch:
                launch.train(5)
                until(lambda: rows(path, "SELECT 1 FROM runs WHERE last_step=9"))
                note_end(launch, "restart")
                until(lambda: told(path) == {"rotten": "waiting", "failed": "waiting"})
            assert "not delivered yet" in it.get("")
            until(it.is_ready)
            began = time.monotonic()
            it.end()
            assert time.monotonic() - began < 8.0  # below what the webhook may take
        assert {kind for _, kind, _ in hook.kinds()} == {"rotten"}
    with Receiver() as hook, daemon(root, guard_file(tmp_path, hook.url)):
        until(lambda: set(told(path).values()) == {"delivered"})
        assert {("one", "rotten", "firing"), ("one", "failed", "firing")} <= set(hook.kinds())


def test_a_full_disk_under_the_guards_file_is_waited_out(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run = trained(root)
    with Receiver() as hook, daemon(root, guard_file(tmp_path, hook.url)) as it:
        until(lambda: len(guarded(path, "readings")) == 3)
        this = psutil.Process(it.process.pid)
        soft, hard = this.rlimit(psutil.RLIMIT_FSIZE)
        this.rlimit(psutil.RLIMIT_FSIZE, (1, hard))  # any write of the guardian fails now
        with Launch.begin(run, identity()) as launch:
            note_end(launch, "restart")
            assert it.process.stderr is not None
            assert "what is guarded waits" in it.process.stderr.readline()
            until(it.is_ready)
            this.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
            until(lambda: ("one", "failed", "firing") in hook.kinds())


# --- retention and archive ------------------------------------------------------------------------


def test_p10_without_being_asked_it_retires_and_sends_nothing(root: Path, path: Path) -> None:
    run = trained(root, saves=5)
    before = entries_of(run)
    with daemon(root) as it:
        until(lambda: len(guarded(path, "readings")) == 5)
        assert it.child("upkeep") is None
    assert entries_of(run) == before
    assert len(list(run.snapshots.iterdir())) == 5


def test_retention_goes_by_the_first_rules_that_fit_and_only_behind_what_reads_back(
    root: Path, path: Path, tmp_path: Path
) -> None:
    """What does not read back counts for nothing: then all stays."""
    run, other, rotten = (trained(root, name, saves=5) for name in ("one", "keep-me", "rotten"))
    for ref in candidates(rotten)[:4]:
        damage(rotten, ref, "rank-00000.msgpack")
    rules = "retention: [{runs: 'keep-*', keep_last: 9}, {keep_last: 2, pins: [4, 999]}]\n"
    with daemon(root, guard_file(tmp_path, text=rules)) as it:
        until(lambda: len(guarded(path, "upkeep")) == 2)
        until(lambda: "2 retired" in it.get("runs/one"))
    assert [ref.step for ref in candidates(run)] == [10, 8, 4]
    assert len(candidates(other)) == len(candidates(rotten)) == 5
    for ref in candidates(run):
        check_state(run, ref)


def test_commits_are_archived_as_they_come_and_a_run_comes_back_from_there(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run, vault = trained(root), tmp_path / "vault"
    file = guard_file(tmp_path, text=f"archive: {{to: {vault}, every: 0.2s}}\n")
    with daemon(root, file) as it:
        until(lambda: [row["amount"] for row in guarded(path, "upkeep")] == [4])
        child = it.child("upkeep")
        assert child is not None and os.sched_getscheduler(child.pid) == os.SCHED_IDLE
        child.kill()  # it is started again
        with Launch.begin(run) as launch:
            launch.train()
            launch.save()
        until(lambda: [row["amount"] for row in guarded(path, "upkeep")] == [6])
        assert "walrecover_run_archived_entries" in it.get("metrics")
    assert "what retires and archives has ended (-9): it is started again" in it.said
    back = RunDir(tmp_path / "back" / ".walrecover", "one")
    retrieve(Vault(str(vault)), "one", back.root)
    assert candidates(back) == candidates(run)
    check_state(back, candidates(back)[0])


def test_commits_go_to_a_bucket_and_its_key_is_said_nowhere(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run = trained(root)
    with Buckets() as server:
        bucket = server.make()
        file = guard_file(tmp_path, text=f"archive: {{to: s3://{bucket}/runs, every: 0.2s}}\n")
        with daemon(root, file, env={**os.environ, **server.environ}) as it:
            until(lambda: [row["amount"] for row in guarded(path, "upkeep")] == [4])
            shown = it.get("runs/one") + it.get("metrics")
        sent = objects(server.store(bucket))
    names = {f"runs/one/{each.relative_to(run.path)}" for each in run.sequence.iterdir()}
    assert names == {name for name in sent if name.startswith("runs/one/sequence/")}
    assert server.environ["AWS_SECRET_ACCESS_KEY"] not in it.said + shown


def test_archiving_that_is_killed_goes_on_where_it_was(
    root: Path, path: Path, tmp_path: Path
) -> None:
    run, vault = trained(root, saves=2), tmp_path / "vault"
    file = guard_file(tmp_path, text=f"archive: {{to: {vault}}}\n")
    environ = {**os.environ, "WALRECOVER_FAILPOINT": "vault.answered:kill:20"}
    with daemon(root, file, env=environ) as it:
        until(lambda: [row["amount"] for row in guarded(path, "upkeep")] == [3])
    assert "what retires and archives has ended (-9): it is started again" in it.said
    back = retrieve(Vault(str(vault)), "one", tmp_path / "back" / ".walrecover").run
    assert entries_of(back) == entries_of(run)
    check_state(back, candidates(back)[0])


def test_a_run_that_upkeep_dies_over_is_left_alone(root: Path, path: Path, tmp_path: Path) -> None:
    trained(root)
    file = guard_file(tmp_path, text=f"archive: {{to: {tmp_path / 'vault'}, every: 0.2s}}\n")
    environ = {**os.environ, "WALRECOVER_FAILPOINT": "vault.request:raise"}
    with daemon(root, file, env=environ) as it:
        assert it.process.stderr is not None
        lines = iter(it.process.stderr.readline, "")
        ended = "walrecover-daemon: what retires and archives has ended (1): it is started again\n"
        assert ended in lines
        assert any("run one is left alone until this daemon starts anew" in line for line in lines)
        until(lambda: it.child("upkeep"))
        until(it.is_ready)
    assert "what retires" not in it.said
    assert guarded(path, "upkeep") == []


def test_what_cannot_be_archived_is_said_once_and_the_rest_goes_on(
    root: Path, path: Path, tmp_path: Path
) -> None:
    trained(root)
    (tmp_path / "file").write_text("")
    file = guard_file(tmp_path, text=f"archive: {{to: {tmp_path / 'file'}, every: 0.1s}}\n")
    with daemon(root, file) as it:
        (row,) = until(lambda: guarded(path, "upkeep"))
        first = row["at"]
        until(lambda: guarded(path, "upkeep")[0]["at"] > first)
        until(lambda: "cannot open the vault" in it.get("runs/one"))
    assert it.said.count("archive of one: ") == 1


# --- what is given --------------------------------------------------------------------------------


def test_a_file_that_says_nonsense_is_refused(root: Path, tmp_path: Path) -> None:
    """`test_daemon_guard_file.py` has what is nonsense."""
    root.mkdir()
    file = guard_file(tmp_path, text="alerts: {url_file: /nowhere/url}")
    code, _, complaints = readmodels.run_daemon("serve", root, "--guard", file, "--port", "0")
    assert code == 2
    assert complaints == (
        "walrecover-daemon: /nowhere/url cannot be read: No such file or directory\n"
    )
    code, _, complaints = readmodels.run_daemon("serve", root, "--guard", tmp_path, "--port", "0")
    assert code == 2
    assert "Is a directory" in complaints
