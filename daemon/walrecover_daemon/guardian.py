"""The guardian: starts what reads snapshots back, retires and archives, and says what is wrong.

Owns those processes, and the pass that decides what is told. What an alert is, is `alerting`'s; the
webhook is `sending`'s. The follower and the page never wait for it.
"""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from walrecover import scrubbing
from walrecover.scrubbing import Scrubbed
from walrecover_daemon import alerting, book, upkeep
from walrecover_daemon.alerting import Alert, Change, Disk, Key, Limits, Said, Seen
from walrecover_daemon.asking import Asking
from walrecover_daemon.book import Book, Done, ReadBack
from walrecover_daemon.children import Child
from walrecover_daemon.guardfile import Guarded
from walrecover_daemon.keeper import Heard
from walrecover_daemon.sending import Sender, Webhook
from walrecover_daemon.worker import Job

POLL_SECONDS = 15.0
GATHER_SECONDS = 0.5
SHARE = 20
"""Deciding may take this part of the time."""

TIDY_SECONDS = 3600.0

_line = msgspec.json.Decoder(upkeep.Line).decode
_scrubbed = msgspec.json.Decoder(Scrubbed).decode


class Guardian:
    """`text`: the guard's file as it was given. `webhook` None: nobody is told. `changed` gets the
    ids of runs of which there is something new to show."""

    def __init__(
        self,
        job: Job,
        guarded: Guarded,
        text: str,
        webhook: Webhook | None,
        heard: Heard,
        say: Callable[[str], None],
        changed: Callable[[frozenset[int]], None] = lambda runs: None,
    ) -> None:
        self._changed = changed
        self._job, self._guarded, self._text, self._say = job, guarded, text, say
        self._follower = heard
        self._path = book.path_of(Path(job.readmodel))
        self._asking = Asking(Path(job.readmodel))
        limits = guarded.alerts
        self._limits = Limits(limits.no_snapshot_for.seconds, limits.disk_free)
        self._heard: queue.SimpleQueue[ReadBack | Done] = queue.SimpleQueue()
        self._kept: list[ReadBack | Done] = []
        self._waited: dict[int, tuple[object, float]] = {}
        self._problems: dict[object, str] = {}
        self._begun: tuple[str, str] | None = None
        self._skipped: list[tuple[str, str]] = []
        self._tidied = 0.0
        self._stopping, self._stirred = threading.Event(), threading.Event()
        self._children = self._scrubbers() + self._upkeep()
        self._sender = Sender(self._path, webhook, say) if webhook else None
        self._thread = threading.Thread(target=self._run, name="walrecover-guardian")

    def start(self) -> None:
        """Raises StorageFailed or UnsupportedVersion where the guard's file cannot be had."""
        if said := book.prepare(self._path, time.time()):
            self._say(said)
        for root in self._job.roots:
            if self._guarded.scrub.cycle.seconds and not os.access(root, os.W_OK):
                self._say(
                    f"{root} may not be written: what was read back is not remembered there, and "
                    f"a training is not told what is damaged"
                )
        self._thread.start()
        for child in self._children:
            child.start()
        if self._sender:
            self._sender.start()

    def stirred(self) -> None:
        """Rows have changed; from any thread."""
        self._stirred.set()

    def stop(self) -> None:
        self._stopping.set()
        self._stirred.set()
        for child in self._children:
            child.stop()
        if self._sender:
            self._sender.stop()

    def join(self) -> None:
        for child in self._children:
            child.join()
        if self._thread.is_alive():
            self._thread.join()

    # --- processes ------------------------------------------------------------------------------

    def _scrubbers(self) -> list[Child]:
        cycle = self._guarded.scrub.cycle
        return [
            Child(
                ["walrecover.scrubber", root, "--cycle", cycle.said],
                partial(self._hear_scrubber, root),
                died=partial(self._died, f"what reads back the snapshots below {root}"),
            )
            for root in self._job.roots
            if cycle.seconds
        ]

    def _upkeep(self) -> list[Child]:
        if not self._guarded.retention and self._guarded.archive is None:
            return []
        return [
            Child(
                ["walrecover_daemon.upkeep"],
                self._hear_upkeep,
                self._task,
                self._upkeep_died,
            )
        ]

    def _task(self) -> bytes:
        task = upkeep.Task(self._job.roots, self._job.journal, self._text, self._skipped)
        return msgspec.json.encode(task) + b"\n"

    def _hear_scrubber(self, root: str, line: bytes) -> None:
        one = _scrubbed(line)
        self._note(
            ReadBack(root, one.run, one.manifest, one.at, one.bytes, one.problem, one.damaged)
        )

    def _hear_upkeep(self, line: bytes) -> None:
        one = _line(line)
        self._begun = (one.directory, one.run) if not one.at else None
        if one.at:
            self._complain(
                (one.directory, one.run, one.what), one.problem, f"{one.what} of {one.run}"
            )
            self._note(Done(*msgspec.structs.astuple(one)))

    def _died(self, what: str, status: int) -> None:
        self._say(f"{what} has ended ({status}): it is started again")

    def _upkeep_died(self, status: int) -> None:
        """What it was at may be what it died of, unless somebody ended it."""
        self._died("what retires and archives", status)
        if self._begun and -status not in (signal.SIGKILL, signal.SIGTERM):
            self._say(f"run {self._begun[1]} is left alone until this daemon starts anew")
            self._skipped.append(self._begun)
        self._begun = None

    def _note(self, one: ReadBack | Done) -> None:
        self._heard.put(one)
        self._stirred.set()

    def _complain(self, about: object, problem: str, name: str) -> None:
        """Say a problem once; and again when it is another one."""
        if problem and self._problems.get(about) != problem:
            self._say(f"{name}: {problem}")
        self._problems[about] = problem

    # --- deciding -------------------------------------------------------------------------------

    def _run(self) -> None:
        mine: Book | None = None
        while not self._stopping.is_set():
            began, settled = time.monotonic(), self._follower.caught_up
            try:
                if mine is None:
                    mine = Book(self._path)
                    self._recall(mine)
                self._pass(mine)
                self._complain("file", "", "")
            except (sqlite3.Error, OSError) as error:
                self._complain("file", f"{error}: it is tried again", "what is guarded waits")
            took = time.monotonic() - began
            self._stopping.wait(max(GATHER_SECONDS, SHARE * took))
            self._stirred.wait(POLL_SECONDS if settled else GATHER_SECONDS)
            self._stirred.clear()
        if mine is not None:
            mine.close()

    def _recall(self, mine: Book) -> None:
        """What scrubbers remember, and this file does not: it was begun anew."""
        for root in self._job.roots:
            known = mine.known(root)
            for key, reading in scrubbing.remembered(Path(root)).items():
                if reading.at > known.get(key, 0.0):
                    run, _, manifest = key.partition("/")
                    said = reading.problem, reading.damaged
                    self._heard.put(ReadBack(root, run, manifest, reading.at, 0, *said))

    def _pass(self, mine: Book) -> None:
        while not self._heard.empty():
            self._kept.append(self._heard.get())
        now = time.time()
        if self._kept:
            with mine.transaction():
                mine.note(self._kept)
            self._changed(self._asking.ids((one.directory, one.run) for one in self._kept))
            self._kept.clear()
        if self._follower.caught_up:
            self._tell(mine, now)
        if time.monotonic() >= self._tidied + TIDY_SECONDS:
            with mine.transaction():
                mine.forget(now, self._guarded.scrub.cycle.seconds or 0.0)
            self._tidied = time.monotonic()

    def _tell(self, mine: Book, now: float) -> None:
        since, told = mine.since(now), mine.told()
        seen = self._look(now)
        gone = self._gone(told, seen)
        told = {key: said for key, said in told.items() if key not in gone}
        firing = frozenset(key for key, said in told.items() if said.state == "firing")
        found = alerting.decide(seen, self._limits, firing)
        news = alerting.changes(told, found, now=now, since=since)
        if not self._follower.caught_up or not (news or gone):
            return  # the rows may have been on their way out while they were read
        with mine.transaction():
            mine.drop(gone)
            mine.tell(news, now, "waiting" if self._sender else "unsent")
        for change in news:
            self._say(f"alert: {_line_of(change)}")
        self._changed(self._asking.ids(change.alert.key[1:3] for change in news))
        if self._sender:
            self._sender.stirred()

    def _look(self, now: float) -> Seen:
        asking, horizon = self._asking, now - alerting.OLDEST_SECONDS
        runs = asking.newest_attempts()
        clock = time.monotonic()
        waited = {
            row["id"]: self._waited.get(row["id"], (None, clock))
            for row in runs
            if row["state"] == "running"
        }
        for row in runs:
            mark = row["committed_at"], row["attempt"]
            if row["id"] in waited and waited[row["id"]][0] != mark:
                waited[row["id"]] = mark, clock
        self._waited = waited
        return Seen(
            runs,
            asking.ends(horizon),
            asking.hangs(horizon),
            asking.rotten(),
            self._disks(),
            {number: clock - since for number, (_, since) in waited.items()},
        )

    def _disks(self) -> list[Disk]:
        """Of each file system below a directory, or below the read model, once."""
        found: dict[int, Disk] = {}
        for path in (*self._job.roots, os.path.dirname(self._job.readmodel)):
            try:
                at, device = os.statvfs(path), os.stat(path).st_dev
            except OSError:
                continue  # the follower says it
            found.setdefault(device, Disk(path, at.f_bavail, at.f_blocks))
        return list(found.values())

    def _gone(self, told: dict[Key, Said], seen: Seen) -> set[Key]:
        """Of alerts, the keys of those about what is not there, or not followed, any more."""
        runs = {(row["root"], row["name"]) for row in seen.runs}
        disks = {disk.path for disk in seen.disks}
        return {key for key in told if (key[1:3] not in runs if key[2] else key[1] not in disks)}


def _line_of(change: Change) -> str:
    alert: Alert = change.alert
    row = {**alert._asdict(), "state": change.state}
    return alerting.text_of(row)
