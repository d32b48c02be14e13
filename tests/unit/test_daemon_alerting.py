"""What people are told: each once, again when it changed, when it is over, and no history."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import wait_until
from tests.support.webhooks import SECRET, Receiver
from walrecover.errors import BadInput, UnsupportedVersion
from walrecover_daemon import alerting, book, sending
from walrecover_daemon.alerting import Alert, Change, Disk, Limits, Said, Seen
from walrecover_daemon.book import Book
from walrecover_daemon.sending import Sender, Webhook

NOW = 1_000_000.0
DEFAULT = Limits()
NONE = Seen([], [], [], [], [], {})
RUN: dict[str, Any] = {
    "id": 1, "root": "/r", "name": "one", "state": "running", "holder": "pid 1 on host",
    "latest": NOW, "step": 9, "committed_at": NOW - 60, "recovery_point": 8, "attempt": 2,
    "nonce": "ab", "began": NOW - 500, "at": None, "cause": "", "evidence": "", "decision": "",
    "reason": "",
}  # fmt: skip
END = {**RUN, "at": NOW, "cause": "crash", "evidence": "SIGSEGV", "decision": "restart"}
ROT = {
    "root": "/r", "name": "one", "attempt": 2, "step": 8, "manifest": "blake3:8",
    "problem": "rank-00000.safetensors: bytes differ", "damaged": 1, "newest": 1, "fallback": 4,
}  # fmt: skip
HANG = {
    "root": "/r", "name": "one", "attempt": 2, "nonce": "ab", "lsn": 7, "at": NOW, "step": 9,
    "phase": "data", "seconds": 70.0, "limit": 60.0, "rank": None, "reason": "",
}  # fmt: skip


def kinds(seen: Seen, limits: Limits = DEFAULT) -> list[tuple[str, str]]:
    return [(one.kind, one.reason) for one in alerting.decide(seen, limits)]


@pytest.mark.parametrize(
    ("seen", "kind", "reason"),
    [
        (NONE, "", ""),
        (NONE._replace(ends=[END]), "failed", "attempt 2 ended: crash: SIGSEGV; decided: restart"),
        (NONE._replace(ends=[{**END, "decision": ""}]), "", ""),  # nobody has decided yet
        (NONE._replace(ends=[{**END, "decision": "stop"}]), "", ""),  # that is the run's to tell
        (NONE._replace(ends=[{**END, "cause": "preempted"}]), "", ""),
        (NONE._replace(ends=[{**END, "cause": "stopped"}]), "", ""),
        (NONE._replace(runs=[RUN]), "", ""),
        (
            NONE._replace(runs=[{**END, "state": "ended", "decision": "stop", "reason": "3 x"}]),
            "stopped",
            "attempt 2 ended: crash: SIGSEGV; decided: stop: 3 x",
        ),
        (
            NONE._replace(runs=[{**RUN, "state": "ended", "cause": "node_lost"}]),
            "stopped",
            "pid 1 on host is gone, and nobody goes on with the run: node_lost",
        ),
        (NONE._replace(runs=[{**END, "state": "ended", "cause": "done"}]), "", ""),
        (NONE._replace(runs=[{**END, "state": "stopped"}]), "", ""),
        (NONE._replace(runs=[{**END, "state": "finished"}]), "", ""),
        (
            NONE._replace(hangs=[HANG]),
            "hang",
            "it stands still in data for 70.0 s, and may for 60.0 s",
        ),
        (
            NONE._replace(rotten=[ROT]),
            "rotten",
            "the recovery point of step 8 is damaged (rank-00000.safetensors: bytes differ); a "
            "recovery goes on from step 4",
        ),
        (
            NONE._replace(rotten=[{**ROT, "damaged": 0, "newest": 0, "fallback": None}]),
            "unreadable",
            "a snapshot of step 8 cannot be read (rank-00000.safetensors: bytes differ); there is "
            "no whole one to recover from",
        ),
        (NONE._replace(disks=[Disk("/r", 5, 100)]), "", ""),
        (
            NONE._replace(disks=[Disk("/r", 4, 100)]),
            "disk",
            "4.0% of its file system is free, and snapshots need space",
        ),
        (NONE._replace(disks=[Disk("/proc", 0, 0)]), "", ""),
        (
            NONE._replace(runs=[{**RUN, "committed_at": NOW - 3700, "began": NOW - 9000}]),
            "stale",
            "no newer snapshot for 62 min",
        ),
        (  # it has just begun again
            NONE._replace(runs=[{**RUN, "committed_at": NOW - 3700, "began": NOW - 5}]),
            "",
            "",
        ),
        (  # it stands still, and says nothing at all
            NONE._replace(
                runs=[{**RUN, "committed_at": None, "recovery_point": None}], waited={1: 3601.0}
            ),
            "stale",
            "no snapshot for 60 min",
        ),
    ],
)
def test_what_there_is_to_tell(seen: Seen, kind: str, reason: str) -> None:
    found = kinds(seen)
    assert [one[0] for one in found] == ([kind] if kind else [])
    assert all(one[1].rstrip(": ") == reason for one in found)


def test_limits_can_be_off() -> None:
    seen = NONE._replace(
        runs=[{**RUN, "committed_at": 1.0, "began": 1.0}], disks=[Disk("/r", 0, 100)]
    )
    assert kinds(seen, Limits(None, 0.0)) == []


def test_a_disk_is_full_until_there_is_clearly_more() -> None:
    key = ("disk", "/r", "", "")
    for free, fires in ((49, True), (50, False), (59, False)):
        seen = NONE._replace(disks=[Disk("/r", free, 1000)])
        assert bool(alerting.decide(seen, Limits())) is fires
    seen = NONE._replace(disks=[Disk("/r", 59, 1000)])
    assert alerting.decide(seen, Limits(), frozenset({key}))
    seen = NONE._replace(disks=[Disk("/r", 60, 1000)])
    assert not alerting.decide(seen, Limits(), frozenset({key}))


def test_no_secret_gets_into_a_text() -> None:
    evidence = "RuntimeError: POST https://me:hunter2@host/ failed, api_key=abcdefgh"
    ((_, reason),) = kinds(NONE._replace(ends=[{**END, "evidence": evidence}]))
    assert "hunter2" not in reason and "abcdefgh" not in reason


# --- once ---------------------------------------------------------------------------------------


def alert(kind: str, mark: str, at: float | None = NOW) -> Alert:
    return Alert(kind, "/r", "one", "", mark, f"because of {mark}", at)


alerts = st.lists(
    st.builds(alert, st.sampled_from(alerting.KINDS), st.sampled_from("ab")),
    unique_by=lambda one: one.key,
)


@given(st.lists(alerts, max_size=12))
def test_each_is_said_once_and_again_only_when_it_changed(passes: list[list[Alert]]) -> None:
    """Against a slow reading of the same sentence, over any history."""
    told: dict[alerting.Key, Said] = {}
    for found in passes:
        news = alerting.changes(told, found, now=NOW, since=0.0)
        assert len({change.alert.key for change in news}) == len(news)
        now = {one.key: one for one in found}
        for key in told.keys() | now.keys():
            said = [change for change in news if change.alert.key == key]
            before, lasts = told.get(key), key[0] in alerting.LASTING
            if key in now:
                fires = before is None or (lasts and before.state == "resolved")
                changed = before and before.state == "firing" and before.print != now[key].print
                assert [one.state for one in said] == ["firing"] * bool(fires or changed)
            else:
                over = lasts and before and before.state == "firing"
                assert [one.state for one in said] == ["resolved"] * bool(over)
        for change in news:
            told[change.alert.key] = Said(change.alert.print, change.state)
    assert alerting.changes(told, passes[-1] if passes else [], now=NOW, since=0.0) == []


@pytest.mark.parametrize(
    ("at", "told"),
    [(None, True), (NOW, True), (NOW - 10, True), (NOW - 11, False), (NOW - 8 * 86400, False)],
)
def test_no_history_is_told(at: float | None, told: bool) -> None:
    found = [alert("failed", "a", at)]
    assert bool(alerting.changes({}, found, now=NOW, since=NOW - 10)) is told
    old = NOW - 8 * 86400
    assert alerting.changes({}, [alert("failed", "a", old)], now=NOW, since=0.0) == []


# --- the file and the outbox ----------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "read-model.guard.db"
    assert book.prepare(found, NOW) == ""
    return found


@pytest.fixture
def mine(path: Path) -> Iterator[Book]:
    with closing(Book(path)) as found:
        yield found


def test_the_file_remembers_what_was_told_and_since_when(path: Path, mine: Book) -> None:
    assert mine.since(NOW + 5) == NOW
    assert mine.since(NOW - 5) == NOW - 5  # it was begun by a clock that was put forward
    assert mine.since(NOW) == NOW - 5
    mine.tell([Change(alert("disk", "low"), "firing")], NOW, "waiting")
    mine.tell([Change(alert("disk", "low", NOW + 9), "resolved")], NOW + 9, "waiting")
    assert book.prepare(path, NOW + 99) == ""
    with closing(Book(path)) as again:
        assert again.told() == {("disk", "/r", "one", ""): Said("low", "resolved")}
        row = again.next_waiting(NOW)
        assert row is not None
        assert (row["at"], row["changed"], row["change"]) == (NOW, NOW + 9, 2)


def test_a_file_that_is_not_ours_is_left_alone(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    with pytest.raises(BadInput, match="is another program's database"):
        book.prepare(other, NOW)
    assert other.read_bytes() == before
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version=9")
    with pytest.raises(UnsupportedVersion, match=r"release \(version 9, and this one knows 1"):
        book.prepare(path, NOW)


def test_what_changed_while_it_was_sent_still_waits(mine: Book) -> None:
    mine.tell([Change(alert("disk", "low"), "firing")], NOW, "waiting")
    sent = mine.next_waiting(NOW)
    assert sent is not None
    mine.tell([Change(alert("disk", "low"), "resolved")], NOW + 1, "waiting")
    mine.answered(sent, "delivered", "200")
    row = mine.next_waiting(NOW + 1)
    assert row is not None and (row["state"], row["id"]) == ("resolved", sent["id"])
    mine.answered(row, "delivered", "200")
    assert mine.next_waiting(NOW + 1) is None


def test_what_waits_for_a_week_is_given_up_and_what_is_done_with_forgotten(mine: Book) -> None:
    mine.tell([Change(alert("failed", "a"), "firing")], NOW, "waiting")
    mine.tell([Change(alert("rotten", "a"), "firing")], NOW, "unsent")
    week, month = 7 * 86400.0, 30 * 86400.0
    assert mine.next_waiting(NOW + week - 1) is not None
    assert mine.next_waiting(NOW + week + 1) is None
    mine.forget(NOW + month - 1, 0.0)
    assert len(mine.told()) == 2
    mine.forget(NOW + month + 1, 0.0)
    assert [key[0] for key in mine.told()] == ["rotten"]  # it lasts


# --- the sender -----------------------------------------------------------------------------------


def webhook(hook: Receiver) -> Webhook:
    port = int(hook.url.rsplit(":", 1)[1].split("/")[0])
    return Webhook(False, "127.0.0.1", port, f"/{SECRET}", "a-token")


Started = Callable[[Webhook, list[str]], Sender]


@pytest.fixture
def started(path: Path) -> Iterator[Started]:
    running: list[Sender] = []

    def start(hook: Webhook, said: list[str]) -> Sender:
        running.append(Sender(path, hook, said.append, deadline=0.5, first_pause=0.01))
        running[-1].start()
        return running[-1]

    yield start
    for sender in running:
        sender.stop()
        sender.join()


def waiting(mine: Book) -> bool:
    return mine.next_waiting(time.time()) is not None


def test_it_is_sent_in_order_tried_again_and_says_no_secret(mine: Book, started: Started) -> None:
    now, said = time.time(), list[str]()
    for number, kind in enumerate(("failed", "hang", "disk")):
        mine.tell([Change(alert(kind, "a", now), "firing")], now + number, "waiting")
    with Receiver(500, 429, 408) as hook:
        started(webhook(hook), said)
        wait_until(lambda: not waiting(mine), pause=0.01)
        assert [one["kind"] for one in hook.got] == ["failed"] * 4 + ["hang", "disk"]
        assert {one["Authorization"] for one in hook.headers} == {"Bearer a-token"}
        assert hook.got[0]["text"] == "one: failed: because of a"
        assert hook.got[0] | {"id": "", "host": ""} == {
            "version": 1, "id": "", "change": 1, "kind": "failed", "state": "firing", "at": now,
            "changed": now, "host": "", "directory": "/r", "run": "one", "attempt": None,
            "step": None, "reason": "because of a", "text": "one: failed: because of a",
        }  # fmt: skip
        everything = f"{hook.got} {said}"
        assert SECRET not in everything and "a-token" not in everything
    assert said == [
        f"the webhook at 127.0.0.1 takes no alerts (it answered {status}): they are sent later"
        for status in (500, 429, 408)
    ]


@pytest.mark.parametrize("status", [301, 307, 400, 404, 410])
def test_what_is_refused_holds_nothing_up(mine: Book, started: Started, status: int) -> None:
    now, said = time.time(), list[str]()
    mine.tell([Change(alert("failed", "a", now), "firing")], now, "waiting")
    mine.tell([Change(alert("hang", "a", now), "firing")], now + 1, "waiting")
    with Receiver(status) as hook:
        started(webhook(hook), said)
        wait_until(lambda: not waiting(mine), pause=0.01)
        assert [one["kind"] for one in hook.got] == ["failed", "hang"]
    (one,) = said
    assert f"refuses an alert (it answered {status}): it is not sent again" in one


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(
    mine: Book, started: Started
) -> None:
    now, said = time.time(), list[str]()
    mine.tell([Change(alert("failed", "a", now), "firing")], now, "waiting")
    with Receiver(silent=True) as hook:
        started(webhook(hook), said)
        wait_until(lambda: len(hook.got) == 3, pause=0.01)  # given up, and tried again
        assert waiting(mine)
        assert said == [
            "the webhook at 127.0.0.1 takes no alerts (no answer within 0.5 s): they are sent later"
        ]


def test_a_server_that_drips_its_answer_is_cut_off() -> None:
    with Receiver(drips=True) as hook:
        began = time.monotonic()
        assert sending.post(webhook(hook), b"{}", 0.5) == ("waiting", "no answer within 0.5 s")
        assert time.monotonic() - began < 20.0
        for _ in range(20):  # whichever of the two threads comes first
            why = sending.post(webhook(hook), b"{}", 0.05)
            assert why == ("waiting", "no answer within 0.05 s")


def test_nobody_there_is_waited_for() -> None:
    with Receiver() as hook:
        gone = webhook(hook)
    assert sending.post(gone, b"{}", 0.5) == ("waiting", "Connection refused")
    secure = Webhook(True, gone.host, gone.port, "/")
    with Receiver() as hook:
        port = webhook(hook).port
        answer = sending.post(Webhook(True, secure.host, port, "/"), b"{}", 2.0)
    assert answer[0] == "waiting"
