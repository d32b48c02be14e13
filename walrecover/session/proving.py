"""The proof of a resume while training goes on.

Owns when things are compared and who hears of it: the state given back at once, in the training
thread, before anything moves; the steps that are done again in a thread of its own, which first
reads what the journal holds of them and then ends as soon as there is nothing left to compare. What
counts as the same is `twins`' and `proof`'s.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import msgspec

from walrecover import entries as model
from walrecover import recovery, tiers
from walrecover.entries import AttemptEntry
from walrecover.errors import Diverged, StorageFailed, WalrecoverError
from walrecover.events import Code, ResumeDiverged, ResumeVerified, StepCompleted
from walrecover.journal import Journal
from walrecover.overlap import History, history
from walrecover.proof import Proof, predecessors
from walrecover.resumes import steps_of
from walrecover.rundir import RunDir
from walrecover.sequence import Sequence
from walrecover.session import given_back
from walrecover.session.restoring import Restored
from walrecover.state import StreamRecord
from walrecover.torch_adapter import rng
from walrecover.torch_adapter.objects import Attached
from walrecover.twins import Difference, facts_of
from walrecover.verdicts import Verdict, said

MOST_ATTEMPTS = 16
"""Before this one, whose steps are looked for. `audit` looks at all."""

CLOSING_SECONDS = 5.0


def prove(prover: Prover, attached: Attached, restored: Restored) -> None:
    """All is given back, the random state last: hold it against what was saved. Raises Diverged."""
    found, digest = None, b""
    if prover.active:
        found, digest = given_back.compare(attached, restored)
    rng.restore(restored.rng)  # the objects' own code may draw when it is asked for its state
    prover.restored(found or given_back.generators(restored), digest)
    prover.begin()


class Prover:
    """One rank's proof of one resume. `stops`: a divergence ends the training (policy).

    `tell`: what this rank says of itself.
    """

    def __init__(
        self,
        run: RunDir,
        entry: AttemptEntry,
        rank: int,
        journal: Journal,
        code: Code,
        *,
        stops: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._run, self._entry, self._journal, self._code = run, entry, journal, code
        self._rank, self._writer = rank, f"rank-{rank}"
        self._stops, self._tell = stops, tell
        self._base = entry.plan.base
        self._restored: bytes | None = None
        self._said = False
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self.active = entry.number > 1 and not entry.plan.fresh
        self.refusal = ""  # why training must not go on; read at every boundary
        self._opening = True
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Once the run's objects are restored for good: from here on steps are compared."""
        if self.active and self._thread is None:
            name = "walrecover proof"
            self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._thread.start()

    # -- in the training thread -----------------------------------------------------------------

    def restored(self, found: Difference | None, digest: bytes) -> None:
        """What of the state given back is not what was saved. Raises Diverged where the policy
        stops for it."""
        if not self.active or self._base is None:
            return
        if found is None:
            self._restored = digest
            event = ResumeVerified(
                at=time.time(), base=self._base.step, tier="exact", restored=digest
            )
            self._journal.append(event)
            return
        self.active = False
        diverged = Proof({}, base=self._base.step).restored_other(found)
        assert diverged is not None
        self._announce(diverged)
        self.check()

    def check(self) -> None:
        """Raises Diverged where training must not go on."""
        if self.refusal:
            raise Diverged(self.refusal)

    def close(self) -> None:
        """Say what is known by now, and end. What was appended to the journal is counted in."""
        if self._thread is None:
            return
        with contextlib.suppress(StorageFailed):
            self._journal.sync(timeout=CLOSING_SECONDS)
        self._queue.put(None)
        self._thread.join(CLOSING_SECONDS)
        self._thread = None

    # -- in the journal's thread ----------------------------------------------------------------

    def completed(self, event: StepCompleted) -> None:
        """A step, in their order."""
        self._queue.put(event)

    def expects(self, step: int) -> None:
        """A step's state is being captured: its digests are noted later, or that there are none."""
        self._queue.put(("expected", step, {}))

    def noted(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """ "scalars" that arrived, or the "state" of a capture."""
        self._queue.put((kind, step, values))

    # -- in a thread of its own -----------------------------------------------------------------

    def _serve(self) -> None:
        try:
            proof, missing = self._prepare()
            verdict = self._follow(proof, missing)
            if verdict is not None:
                self._announce(verdict)
        except (WalrecoverError, OSError) as error:
            self._tell(f"resume not proven: {error}")
        finally:
            self.active = False
            self._queue = SimpleQueue()

    def _prepare(self) -> tuple[Proof, str]:
        found = self._history()
        base = self._base.step if self._base else 0
        proof = Proof(
            found.past,
            base=base,
            anew=self._base is None,
            ground=tiers.ground(found.before, self._code, worlds=found.worlds),
            used=found.used,
            restored=self._restored,
        )
        return proof, found.missing

    def _history(self) -> History:
        """What earlier attempts did behind the base, from their streams."""
        entries = Sequence(self._run.sequence).read()
        base = self._base.step if self._base else 0
        pairs: list[tuple[AttemptEntry, StreamRecord | None]] = []
        diverged = frozenset(self._diverged(entries, pairs))
        kept = {entry.number for entry in predecessors(entries, self._entry.number, diverged)}
        pairs = [(entry, record) for entry, record in pairs if entry.number in kept]
        found = history(pairs, steps_of(self._run), self._writer, base)
        return found.lying(entries, self._entry.number)

    def _diverged(
        self, entries: list[model.Entry], pairs: list[tuple[AttemptEntry, StreamRecord | None]]
    ) -> set[int]:
        """Fills `pairs` with earlier attempts and their records, newest first, as far back as they
        can matter. Returns those of them that diverged."""
        for entry in predecessors(entries, self._entry.number, frozenset()):
            record = recovery.records_of(self._run, entry, self._writer).get(self._writer)
            pairs.append((entry, record))
            if record and any(isinstance(proof, ResumeDiverged) for proof in record.proofs):
                return {entry.number}
            if len(pairs) >= MOST_ATTEMPTS:
                break
        return set()

    def _follow(self, proof: Proof, missing: str) -> Verdict | None:
        """The verdict, once all is compared or the run closes; None where it has been given."""
        while not proof.is_over and (item := self._queue.get()) is not None:
            if isinstance(item, StepCompleted):
                proof.completed(item.step, facts_of(item, opening=self._opening))
                self._opening = False
            elif item[0] == "expected":
                proof.expects(item[1])
            elif item[0] == "scalars":
                proof.arrived(item[1], item[2])
            else:
                proof.captured(item[1], item[2])
        if not proof.past and not missing:
            if self._restored is None:
                return None  # it began from the beginning, after attempts that made no step
            return proof.verdict()
        return proof.verdict(missing)

    # -- what is said ---------------------------------------------------------------------------

    def _announce(self, verdict: Verdict) -> None:
        """In the journal, and to whoever looks on; once."""
        alone = isinstance(verdict, ResumeVerified) and not verdict.to_step
        if not alone:  # that the state is the saved one has been journaled at once
            with contextlib.suppress(StorageFailed):
                self._journal.append(msgspec.structs.replace(verdict, at=time.time()))
        if isinstance(verdict, ResumeDiverged) and self._stops:
            self.refusal = said(verdict)
        if self._rank == 0 or not isinstance(verdict, ResumeVerified):
            self._tell(said(verdict))
