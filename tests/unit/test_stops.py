"""The words of the options about stopping, and the handlers that note a stop."""

from __future__ import annotations

import faulthandler
import os
import signal

import pytest

from tests.support.waiting import wait_until
from walrecover import stops
from walrecover.errors import BadInput
from walrecover.session.stopping import Signals


def test_a_grace_is_a_number_of_seconds_or_has_its_unit() -> None:
    assert [stops.seconds(text) for text in ("25s", "25", "2m", "0.5s")] == [25, 25, 120, 0.5]
    for text in ("", "soon", "-1s", "25steps"):
        with pytest.raises(BadInput, match="--grace"):
            stops.seconds(text)


def test_an_early_warning_is_a_signal_that_means_nothing_else() -> None:
    assert stops.notice("USR1") == stops.notice("sigusr1") == signal.SIGUSR1
    assert stops.notice("none") is None
    for text in ("KILL", "INT", "10", ""):
        with pytest.raises(BadInput, match="--preempt-signal"):
            stops.notice(text)


def test_the_early_warning_is_noted_and_starts_the_grace() -> None:
    signals = Signals(grace=25.0, notice=signal.SIGUSR1)
    try:
        assert signals.seconds_left() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: signals.received is not None)
        assert signals.received == signal.SIGUSR1
        assert 0 < (signals.seconds_left() or 0) <= 25
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_handler_that_python_does_not_know_is_left_alone() -> None:
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - it must stay open while it is registered
    faulthandler.register(signal.SIGUSR1, file=nowhere)
    signals = Signals(notice=signal.SIGUSR1)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signals.close()
        faulthandler.unregister(signal.SIGUSR1)
        nowhere.close()
