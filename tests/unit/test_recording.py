"""Scalars that come from a device late: journaled by whatever thread finds them there."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import torch

from walrecover.session.alarm import Alarm
from walrecover.session.recording import Recorder


class Journal:
    """Takes an event only once it may."""

    def __init__(self) -> None:
        self.may, self.asked = threading.Event(), threading.Event()
        self.events: list[Any] = []

    def append(self, event: Any) -> None:
        self.asked.set()
        assert self.may.wait(10)
        self.events.append(event)


def recorder(journal: Any) -> Recorder:
    prover: Any = SimpleNamespace(active=False)
    nothing: Any = None
    return Recorder(journal, nothing, nothing, prover, teaches=False, alarm=Alarm(False))


def test_who_waits_for_all_has_them_journaled_by_another_thread_too() -> None:
    """At the end of a run, beside the copies of its last capture."""
    journal = Journal()
    made = recorder(journal)
    made._late.start(7, "loss", torch.tensor(0.5))
    other = threading.Thread(target=made.record_late)
    other.start()
    assert journal.asked.wait(10)
    ended: list[int] = []

    def wait_for_all() -> None:
        made.record_late(wait=True)
        ended.append(len(journal.events))

    waiting = threading.Thread(target=wait_for_all)
    waiting.start()
    waiting.join(0.2)
    assert not ended, "the other has it, and nobody has journaled it"
    journal.may.set()
    waiting.join(10)
    other.join(10)
    assert ended == [1]


def test_it_says_whether_there_was_any() -> None:
    journal = Journal()
    journal.may.set()
    made = recorder(journal)
    assert not made.record_late()
    made._late.start(7, "loss", torch.tensor(0.5))
    assert made.record_late()
    (event,) = (make() for make in journal.events)
    assert (event.step, event.scalars) == (7, {"loss": 0.5})
