"""The alarm for a bad loss: raised once, in the training thread, and only where it is armed."""

from __future__ import annotations

import math

import pytest

from walrecover.causes import Evidence, Raised, classify
from walrecover.errors import BadLoss
from walrecover.events import ExceptionRaised
from walrecover.session.alarm import Alarm
from walrecover.session.exceptions import describe


def test_it_is_raised_at_the_next_check_and_once() -> None:
    alarm = Alarm(armed=True)
    alarm.take(1, {"loss": 1.0})
    alarm.check()
    alarm.take(2, {"loss": math.nan})
    alarm.take(3, {"loss": math.nan})
    with pytest.raises(BadLoss, match="loss is nan at step 2: the policy goes back to before it"):
        alarm.check()
    alarm.take(4, {"loss": math.nan})
    alarm.check()  # the way out goes through boundaries as well


def test_unarmed_it_hears_nothing() -> None:
    alarm = Alarm(armed=False)
    alarm.take(1, {"loss": math.nan})
    alarm.check()


def test_what_it_raises_is_numeric() -> None:
    event = describe(BadLoss("loss is nan at step 2"), 2)
    assert isinstance(event, ExceptionRaised)
    evidence = Evidence(code=1, raised=(Raised(0, event),))
    assert classify(evidence).cause == "numeric"
