"""Steps that consumed something, as a session journals them: a batch of 4 for each of two ranks."""

from __future__ import annotations

from walrecover.consumed import Consumed
from walrecover.events import DataOpened, StepCompleted

LENGTH, BATCH, RANKS = 80, 8, 2
STEPS = LENGTH // BATCH
"""Of one pass."""

OPENED = DataOpened(source=0, kind="global", length=LENGTH, batch=BATCH, world=RANKS)


def consumed(step: int, rank: int, source: int = 0) -> Consumed:
    """Of a history that left nothing out."""
    epoch, place = divmod(step - 1, STEPS)
    begin = place * BATCH + rank * BATCH // RANKS
    return Consumed(source, epoch, ((begin, begin + BATCH // RANKS),))


def step_of(step: int, rank: int, loss: float | None = None) -> StepCompleted:
    scalars = {} if loss is None else {"loss": loss}
    return StepCompleted(step=step, consumed=(consumed(step, rank),), scalars=scalars)
