"""Captures into an arena, which a saver process of its own makes durable (specs/18-arena.md).

Owns the training process's side: the memory, which slot a capture fills, and what the saver
reports. Captures that are only kept in memory are saved when this process is gone, or on its way
out. Where memory is short, or no saver stays alive, captures are written as without an arena.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from walrecover import events as ev
from walrecover import snapshot
from walrecover.arena.layout import Header, regions
from walrecover.arena.memory import Arena
from walrecover.arena.slots import Slot, TooLarge
from walrecover.commits import Key
from walrecover.entries import snapshot_name
from walrecover.errors import Corrupt, Fenced, StorageFailed
from walrecover.processes import identity
from walrecover.saver import messages as msg
from walrecover.saver.client import Saver as Process
from walrecover.session.copying import Copying
from walrecover.session.saving import GIVING_UP_SECONDS, WAIT_SECONDS, Saver
from walrecover.snapshot import Capture
from walrecover.torch_adapter.memory import near

SAVERS = 4
"""Processes that one attempt's captures are given to, before it goes on without."""

COMMITTED_SECONDS = 5.0
"""For the journal to commit what was appended a step ago; training waits for no slower disk."""

SPARE_BYTES = 1 << 20
ROW_BYTES = 256
"""What is set aside in a slot for what grows, and for a tensor's row in its table."""


class Background(Saver):
    """One rank's saving, in the background."""

    def __init__(
        self,
        slots: int,
        supervisor: int = 0,
        arrived: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> None:
        """`slots`: two, the newest and one to fill; three where captures are also only kept in
        memory, while one is being saved (rule 8). `supervisor`: the pid of the process that starts
        the next attempt, 0 for none. `arrived` journals what steps have left on a device and is
        here by now, and says whether there was any: it belongs to a capture behind those steps."""
        super().__init__(**settings)
        self._slots, self._supervisor, self._arrived = slots, supervisor, arrived
        self._arena: Arena | None = None
        self._copying: Copying | None = None
        self._process: Process | None = None
        self._processes = 0
        self._refused = self._idle_now = False
        self._filled_lsn = self._awaited_lsn = 0
        self._leaves_heirs = False
        self._voted: Key | None = None

    @property
    def known(self) -> dict[str, str]:
        """As the newest vote has it, which lies on the disk."""
        if self._voted is not None:
            try:
                step, end = self._voted
                name = snapshot_name(step, self.attempt, self.nonce, end)
                self._part = snapshot.read_vote(self.run, name, self.rank)
            except (Corrupt, OSError):
                self._part = None
        return super().known

    # -- captures -------------------------------------------------------------------------------

    def prepare(self, capture: Capture) -> None:
        """Memory for captures like this one, and a saver, so that the first does not wait."""
        if self._is_ready(capture) and self._copying is not None:
            self._copying.prepare(capture)

    def save(self, capture: Capture, *, finished: bool = False, lone: bool = False) -> bool:
        """Give a capture to the saver; waits until the one before is saved."""
        if not self._is_ready(capture) or not self._fill(capture, wanted=True, finished=finished):
            if self.failed:
                return False
            tensors = {name: near(tensor) for name, tensor in capture.tensors.items()}
            here = capture._replace(tensors=tensors)
            self._complete_events()
            return super().save(here, finished=finished, lone=lone)
        self.tried = Key(capture.step, capture.end)
        return True

    def hold(self, capture: Capture) -> bool:
        """Keep a capture in memory, for when this process dies; False where there is no room."""
        return self._is_ready(capture) and self._fill(capture, wanted=False, finished=False)

    def rescue(self) -> Key | None:
        """As without an arena; of several ranks their savers do it, once all ranks are gone."""
        if self.world > 1:  # only once all ranks are gone can be told what they have in common
            self._leaves_heirs = True
            return None
        newest = self._newest_held()
        if newest is None:
            return None
        slot, header = newest
        wanted = header._replace(wanted=True)
        slot.begin(wanted)
        slot.complete(wanted)
        self.tried = Key(header.step, header.end)
        self._tell(msg.Captured())
        return self.tried

    def _newest_held(self) -> tuple[Slot, Header] | None:
        if self._copying is not None:
            self._copying.finish()
        slots = self._arena.slots if self._arena is not None else ()
        found = [(s, h) for s in slots if (h := s.seen().judged.header) is not None]
        newest = max(found, key=lambda one: one[1].generation, default=None)
        return None if newest is None or newest[1].wanted else newest

    def _fill(self, capture: Capture, *, wanted: bool, finished: bool) -> bool:
        """A capture whose events are lost with this process cannot be saved (rule 6): one that is
        only to be kept is left out while that is true of the one before, so that there is always
        one that can be."""
        if not self._is_outlived() and not wanted:
            return False
        return self._put(capture, self.journal.appended, wanted=wanted, finished=finished)

    def _is_outlived(self) -> bool:
        """Whether the events of the capture before survive this process; waited for, but once."""
        lsn = self._filled_lsn
        seconds = COMMITTED_SECONDS if lsn > self._awaited_lsn else 0.0
        self._awaited_lsn = lsn
        return self.journal.await_committed(lsn, seconds)

    def _put(self, capture: Capture, lsn: int, *, wanted: bool, finished: bool) -> bool:
        if self._copying is not None:
            self._copying.finish()
        slot = self._free_slot(wait=wanted)
        if slot is None or self._copying is None:
            return False
        fields = {name: getattr(capture, name) for name in _FIELDS}
        fields |= {"lsn": lsn, "finished": finished}
        try:
            self._copying.fill(
                slot,
                capture,
                fields,
                wanted=wanted,
                copied=self._complete_events,
                done=self._captured if wanted else lambda: None,
                lost=partial(self._lose, Key(capture.step, capture.end), wanted),
            )
        except TooLarge as error:
            if not self._has_grown(error):
                return False
            return self._put(capture, lsn, wanted=wanted, finished=finished)
        self._filled_lsn = lsn
        return True

    def _complete_events(self) -> None:
        """What came from a device with a capture outlives this process as the capture does."""
        with contextlib.suppress(StorageFailed):
            if self._arrived():
                self.journal.await_committed(self.journal.appended, COMMITTED_SECONDS)

    def _captured(self) -> None:
        """A slot that is to go to disk is complete. (From a device: in another thread.)"""
        self._idle_now = False
        self._tell(msg.Captured())

    def _lose(self, key: Key, wanted: bool, reason: str) -> None:
        """A slot could not be filled."""
        self.say(f"the capture of step {key.step} was abandoned: {reason}")
        if wanted:
            self.abandoned[key] = reason
            self.noted(key.step, {})
            with contextlib.suppress(StorageFailed):
                self.journal.append(
                    ev.SnapshotAbandoned(at=time.time(), step=key.step, end=key.end, reason=reason)
                )

    def _free_slot(self, *, wait: bool) -> Slot | None:
        """To `wait` for: also until the capture before that is to go to disk is saved, for two such
        would leave no slot to keep steps in memory."""
        while self._process is not None and self._copying is not None and self._is_served:
            slot = self._copying.free_slot(saver_lives=self._process.lives)
            if not wait or (slot is not None and not self._is_behind()):
                return slot
            self._tell(msg.Hurry())
            self._hear(GIVING_UP_SECONDS, lambda report: isinstance(report, _LETS_GO))
            self._keep_a_saver()
        return None

    @property
    def _is_served(self) -> bool:
        """Whether what is to go to disk gets there: not once the attempt is superseded, or without
        its events, for which each vote waits."""
        return self.failed is None and self.journal.failure is None

    def _is_behind(self) -> bool:
        """Whether the saver has not saved yet what it is to."""
        seen = [slot.seen() for slot in self._arena.slots] if self._arena is not None else []
        headers = [(one.judged.header, one.let_go) for one in seen]
        return any(h is not None and h.wanted and h.generation != let_go for h, let_go in headers)

    # -- memory and saver -----------------------------------------------------------------------

    def _is_ready(self, capture: Capture) -> bool:
        if self._refused:
            return False
        self._hear()
        if self._arena is None:
            self._make(_room_for(capture))
        else:
            self._keep_a_saver()
        return not self._refused

    def _make(self, room: int) -> None:
        try:
            self._arena = Arena.create(self._slots, room)
            self._arena.touch()
            self._copying = Copying(self._arena, self.rank, self.say)
            self._hire()
        except (StorageFailed, OSError) as error:
            self._refuse(str(error))

    def _has_grown(self, error: TooLarge) -> bool:
        """The state has another layout: memory anew, once all is saved that is to be."""
        assert self._process is not None
        self._process.tell(msg.Hurry())
        self._process.tell(msg.End())
        self._hear(WAIT_SECONDS, lambda report: isinstance(report, msg.Ended))
        self._let_go()
        self._make(_grown(error.bytes))
        return not self._refused

    def _hire(self) -> None:
        assert self._arena is not None
        self._processes += 1
        given = msg.Assignment(
            root=str(self.run.root),
            run=self.run.name,
            journal=str(self.run.journal_root or ""),
            attempt=self.attempt,
            nonce=self.nonce,
            rank=self.rank,
            world=self.world,
            trainer=identity(),
            retention=self.retention,
            verified=tuple(sorted(self._verified)),
            supervisor=self._supervisor,
        )
        self._process = Process(given, self._arena)

    def _keep_a_saver(self) -> None:
        if self._process is None or self._process.lives:
            return
        self._hear()  # its last words
        if self.failed:
            return
        self._process.close()
        if self._processes == SAVERS:
            self._refuse(f"{SAVERS} savers have ended, one after the other")
            return
        self.say("the process that saves snapshots has ended; another one goes on")
        try:
            self._hire()
        except OSError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        """Go on as without an arena."""
        self._refused = True
        self._let_go()
        if self.tried is not None and self.tried != self._voted:
            self.noted(self.tried.step, {})
        self.say(f"snapshots are written while training waits: {reason}")
        self.journal.append(ev.ArenaRefused(at=time.time(), reason=reason))

    def _let_go(self, fails: bool = False) -> None:
        if self._copying is not None:
            self._copying.close()
            self._copying = None
        if self._process is not None:
            self._process.close(heirs=self._leaves_heirs, fails=fails)
            self._process = None
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    # -- what the saver says --------------------------------------------------------------------

    def _tell(self, order: msg.Order) -> None:
        if self._process is not None:
            self._process.tell(order)

    def _hear(
        self, seconds: float = 0.0, until: Callable[[msg.Report], bool] = lambda report: False
    ) -> None:
        """Take what it has said; or wait so long for what is waited for, or its end."""
        if self._process is None:
            return
        process = self._process
        for report in process.wait(seconds, until) if seconds else process.reports():
            self._take(report)

    def _take(self, report: msg.Report) -> None:
        match report:
            case msg.Voted():
                self._take_vote(report)
            case msg.Committed():
                self._idle_now = False
                self._note(Key(report.step, report.end))
                self._follower.catch_up(self.journal.durable)
            case msg.Abandoned():
                self.abandoned[Key(report.step, report.end)] = report.reason
                self.noted(report.step, {})
                self.say(f"the snapshot of step {report.step} was abandoned: {report.reason}")
            case msg.Said():
                self.say(report.text)
            case msg.Idle():
                self._idle_now = True
            case msg.Ended(fenced=True):
                self.failed = Fenced(report.reason)
            case msg.Ended() if report.reason:
                self.say(f"the process that saves snapshots: {report.reason}")
            case _:
                pass

    def _take_vote(self, vote: msg.Voted) -> None:
        key = Key(vote.step, vote.end)
        self._voted, self.seconds = key, vote.seconds
        self._lsns[key] = vote.lsn
        self.journal.append(
            ev.ShardsWritten(
                at=time.time(),
                step=key.step,
                end=key.end,
                files=(),  # the saver's stream has them
                seconds=vote.seconds,
                state=vote.state,
            )
        )
        self.noted(key.step, dict(vote.state))

    # -- waiting --------------------------------------------------------------------------------

    def note_commits(self) -> None:
        self._hear()
        super().note_commits()

    def wait(self, key: Key, gives_up: Callable[[], bool] = lambda: False) -> bool:
        """As without an arena; the saver hurries meanwhile."""
        if self._process is None:
            return super().wait(key, gives_up)
        self._tell(msg.Hurry())
        if self.rank:
            return super().wait(key, lambda: gives_up() or self._is_lost(key, 0.0))
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self.committed and self.committed >= key) and not gives_up():
            if self._is_lost(key, GIVING_UP_SECONDS) or time.monotonic() > deadline:
                break
        return self.committed is not None and self.committed >= key

    def _is_lost(self, key: Key, seconds: float) -> bool:
        self._hear(seconds, lambda report: isinstance(report, _SETTLES))
        self._keep_a_saver()
        self._tell(msg.Hurry())
        return key in self.abandoned or self._refused or self.failed is not None

    def pending(self) -> Key | None:
        key = self.tried
        if key is None or key.end or self._process is None:
            return None
        self._hear()
        done = key in self.abandoned or (self.committed is not None and self.committed >= key)
        return None if done else key

    def settle(self, key: Key, others: float, own: float = WAIT_SECONDS) -> bool:
        """Its vote first, which only the saver's own speed limits."""
        deadline = time.monotonic() + own
        while self._process is not None and not (self._voted and self._voted >= key):
            left = deadline - time.monotonic()
            if self._is_lost(key, max(0.0, min(GIVING_UP_SECONDS, left))) or left <= 0:
                return False
        return super().settle(key, others)

    def drain(self) -> None:
        super().drain()
        if self._copying is not None:
            self._copying.finish()
        deadline = time.monotonic() + WAIT_SECONDS
        self._tell(msg.Hurry())
        while self._process is not None and self._process.lives and not self._idle_now:
            self._hear(GIVING_UP_SECONDS, lambda report: isinstance(report, msg.Idle))
            if time.monotonic() > deadline:
                return

    def close(self, fails: bool = False) -> None:
        """The saver finishes what there is, by itself."""
        self._let_go(fails)
        super().close(fails)


_FIELDS = (
    "run",
    "step",
    "end",
    "attempt",
    "nonce",
    "rank",
    "world",
    "base",
    "position",
    "writer",
    "events_after",
)
_LETS_GO = (msg.Voted, msg.Abandoned, msg.Ended)
_SETTLES = (msg.Voted, msg.Committed, msg.Abandoned, msg.Ended)


def _room_for(capture: Capture) -> int:
    """A slot's bytes: for this capture, and for some growth."""
    tensors = capture.tensors.values()
    rest = len(msgspec.msgpack.encode(capture.tree)) + ROW_BYTES * len(capture.tensors)
    return _grown(regions(rest, len(tensors), sum(t.nbytes for t in tensors)).bytes)


def _grown(nbytes: int) -> int:
    return nbytes + nbytes // 64 + SPARE_BYTES
