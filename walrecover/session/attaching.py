"""`attach`: from objects to a run, new or resumed.

Owns the order in which an attempt begins: objects checked, the attempt agreed by all ranks, the
stream opened, the plan restored, everybody told. It is the only call that coordinates ranks.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from walrecover import entries as model
from walrecover import events as ev
from walrecover import failures, goodput, promotion, recovery, snapshot, stacks
from walrecover.beats import Beat
from walrecover.entries import AttemptEntry, Holder
from walrecover.errors import BadInput, Fenced, Mismatch, WalrecoverError
from walrecover.failpoints import failpoint
from walrecover.files import create_if_absent, make_directory, storage
from walrecover.journal import Journal
from walrecover.processes import identity, watch_supervisor
from walrecover.rundir import RunDir, find_root
from walrecover.saver import offers, roll
from walrecover.sequence import Sequence
from walrecover.session import code, dealing, restoring, settings
from walrecover.session.disabled import DisabledRun
from walrecover.session.meeting import Meeting
from walrecover.session.proving import Prover
from walrecover.session.restoring import Restored
from walrecover.session.run import Run
from walrecover.session.settings import Settings
from walrecover.torch_adapter import keyed, rng, scheduling
from walrecover.torch_adapter.objects import Attached
from walrecover.torch_adapter.ranks import Meeting as Ranks
from walrecover.torch_adapter.ranks import World, world

SAVING_SECONDS = 120.0
LOOK_SECONDS = 0.01
QUIET_SECONDS = 1.0

_current: list[Run] = []


def attach(
    *,
    name: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    every: str | None = None,
    resume: str = "auto",
    strict: bool = True,
    **objects: Any,
) -> Run | DisabledRun:
    """Attach a training loop's objects to a run, and restore them if it has a snapshot.

    Give it everything that makes up the state: objects with `state_dict` and `load_state_dict`
    (model, optimizer, scheduler, scaler), tensors, generators, dicts and namespaces of plain
    values and tensors. Every rank calls it, after `init_process_group`.

    `every`: "30s", "5m" or "100steps" between snapshots, or "auto". `resume`: "auto", "must" or
    "never". `strict`: names or keys that only the snapshot or only the script has are an error.

    Raises TypeError for an object that cannot be kept; BadInput, RunBusy, Fenced, Mismatch,
    NothingToResume, Corrupt, UnsupportedVersion or StorageFailed.
    """
    if promotion.is_parked():
        code.look_ahead()
    promotion.arrive()
    if settings.disabled():
        return DisabledRun(name or "disabled")
    if not sys.platform.startswith("linux"):
        raise BadInput("walrecover runs on Linux: it relies on its pidfds, prctl and link")
    began = time.monotonic()
    chosen = settings.read(name, dir, every, resume)
    keyed.prepare(chosen.keyed)
    ranks = world()
    while _current:
        _current.pop()._close()
    attached = Attached(objects)
    _watch(chosen)
    run = RunDir(chosen.root, chosen.name, chosen.journal)
    gathering = Ranks(ranks)
    entry, planned = _agreed_attempt(run, chosen, gathering)
    made = _begin(run, chosen, entry, planned, gathering, attached, strict, began)
    _current.append(made)
    return made


def _agreed_attempt(
    run: RunDir, chosen: Settings, gathering: Ranks
) -> tuple[AttemptEntry, ev.RecoveryPlanned | None]:
    """The attempt of all ranks: rank 0 finds or enters it, the others hear of it."""
    found: tuple[AttemptEntry, ev.RecoveryPlanned | None] | None = None
    label = None
    if gathering.ranks.rank == 0:
        try:
            found = _attempt(run, chosen)
        except (WalrecoverError, OSError) as problem:
            gathering.share("attempt", f"!{problem}")  # so that nobody waits for it
            raise
        label = found[0].label
    label = gathering.share("attempt", label)
    if label.startswith("!"):
        raise WalrecoverError(f"rank 0 could not begin an attempt: {label[1:]}")
    gathering.gather("came")
    return found or (_entry_of(run, label), None)


def _begin(
    run: RunDir,
    chosen: Settings,
    entry: AttemptEntry,
    planned: ev.RecoveryPlanned | None,
    gathering: Ranks,
    attached: Attached,
    strict: bool,
    began: float,
) -> Run:
    """Open this rank's stream, restore the plan's base, and wait until every rank has."""
    ranks = gathering.ranks
    meeting = Meeting(run.meeting(entry.number, entry.nonce), ranks.rank, ranks.size)
    beat = Beat(meeting.folder, ranks.rank)
    stacks.prepare(meeting.folder, ranks.rank)
    version = code.current(ranks.size, attached.regroups)
    journal = _open_stream(run, entry, ranks, version)
    if planned is not None:
        journal.append(planned)
    beat.say("restoring")
    restored: Restored | None = None
    base = entry.plan.base
    if base is not None:
        try:
            restored = restoring.read(
                run, base, ranks.rank, ranks.size, take=chosen.take, strict=strict
            )
            _compare(journal, restored, version, chosen, ranks)
            notes = _give_back(restored, attached, strict, run, ranks)
            # What stands between `attach` and the loop to come back to repeats as it was.
            rng.restore(restored.position.begun if restored.position.places else restored.rng)
        except (WalrecoverError, OSError) as error:
            journal.append(ev.PlanFailed(at=time.time(), reason=str(error)))
            journal.close()
            # A newer attempt may have retired the base: then that is what happened, not damage.
            found = Sequence(run.sequence).read()
            snapshot.require_newest(found, entry.number, entry.nonce)
            raise
        _say_so(journal, restored, notes, ranks)
        failpoint("restore.applied")
    journal.append(_resumed(base.step if base else 0, time.monotonic() - began, restored))
    gathering.gather("restored")  # no rank steps before all have said so (rule 5)
    failpoint("restore.announced")
    return Run(
        directory=run,
        settings=chosen,
        entry=entry,
        ranks=ranks,
        attached=attached,
        journal=journal,
        meeting=meeting,
        beat=beat,
        restored=restored,
        finished=base is not None and model.finished(Sequence(run.sequence).read()),
        strict=strict,
        code=version,
        prover=Prover(
            run,
            entry,
            ranks.rank,
            journal,
            version,
            stops=chosen.on_divergence == "stop",
            tell=teller(ranks),
        ),
    )


def _give_back(
    restored: Restored, attached: Attached, strict: bool, run: RunDir, ranks: World
) -> list[str]:
    """Restore the objects. Returns what did not fit (where not `strict`), a line for each object.

    A Mismatch says how to see all that differs.
    """
    try:
        notes = attached.check(restored.stored, strict)
        notes += attached.restore(restored.stored, strict)
        return notes + scheduling.check(attached, restored.stored, strict)
    except Mismatch as error:
        script = sys.argv[0] if sys.argv[0].endswith(".py") else "train.py"
        now = shlex.quote(shlex.join([script, *sys.argv[1:]]))
        if ranks.size > 1:  # the script would wait for the other ranks
            now = f"{shlex.quote(script)}:NAME, where NAME builds the model"
        default = run.root == find_root(None)
        there = "" if default else f"--dir {shlex.quote(str(run.root))} "
        raise Mismatch(
            f"{error}. All that differs: walrecover diff {there}{run.name}@{restored.step} {now}"
        ) from None


def _resumed(step: int, seconds: float, restored: Restored | None) -> ev.Resumed:
    deal = restored.deal if restored else None
    if restored is None:
        return ev.Resumed(at=time.time(), step=step, seconds=seconds)
    came = restored.source._asdict()
    if deal is None:
        return ev.Resumed(at=time.time(), step=step, seconds=seconds, **came)
    return ev.Resumed(
        at=time.time(),
        step=step,
        seconds=seconds,
        saved_by=restored.saved_by,
        source=deal.source,
        drawn_anew=dealing.digests(restored.rng, deal),
        **came,
    )


def _say_so(journal: Journal, restored: Restored, notes: list[str], ranks: World) -> None:
    """What is not as it was saved: in the journal, and to whoever looks on."""
    for note in [*notes, *(restored.notes if ranks.rank == 0 else ())]:
        print(f"walrecover: not restored: {note}", file=sys.stderr)
    if restored.deal is not None and ranks.rank == 0:
        said = restored.deal.said(restored.saved_by, ranks.size)
        print(f"walrecover: {said}", file=sys.stderr, flush=True)
    if restored.source.refused:
        teller(ranks)(f"restored from disk, not from memory: {restored.source.refused}")
    if restored.repair is None:
        return
    rank, names, reason = restored.repair
    journal.append(
        ev.StateRepaired(
            at=time.time(), step=restored.step, names=names, from_rank=rank, reason=reason
        )
    )
    if ranks.rank == 0:
        print(
            f"walrecover: repaired: every rank has {', '.join(names)} of rank {rank} ({reason})",
            file=sys.stderr,
        )


def _open_stream(run: RunDir, entry: AttemptEntry, ranks: World, version: ev.Code) -> Journal:
    """This rank's stream of the attempt, with its first event."""
    writer = f"rank-{ranks.rank}"
    mine = identity()
    first = ev.AttemptBegun(
        at=time.time(),
        run=run.name,
        attempt=entry.number,
        nonce=entry.nonce,
        writer=writer,
        rank=ranks.rank,
        world=ranks.size,
        host=mine.host,
        pid=mine.pid,
        code=version,
    )
    path = run.stream(entry.number, entry.nonce, writer)
    return Journal.create(path, attempt=entry.number, first=first)


def _compare(
    journal: Journal, restored: Restored, version: ev.Code, chosen: Settings, ranks: World
) -> None:
    """Show what changed since the snapshot's attempt, or refuse it if so set."""
    if restored.code is None:
        return
    changed = code.differences(restored.code, version)
    if not changed:
        return
    journal.append(ev.ConfigurationChanged(at=time.time(), differences=changed))
    text = "; ".join(changed)
    if chosen.changed == "error":
        raise BadInput(f"since the snapshot {text}; WALRECOVER_CHANGED=error does not allow it")
    if ranks.rank == 0:
        print(f"walrecover: since the snapshot {text}", file=sys.stderr)


def teller(ranks: World) -> Callable[[str], None]:
    """Says on stderr what a rank has to say of itself."""
    of = f"rank {ranks.rank}: " if ranks.size > 1 else ""
    return lambda text: print(f"walrecover: {of}{text}", file=sys.stderr, flush=True)


def _watch(chosen: Settings) -> None:
    """End with the supervisor, if there is one."""
    if chosen.supervisor is None:
        return
    if not watch_supervisor(chosen.supervisor.pid, chosen.supervisor.started):
        print("walrecover: the supervisor is gone, this worker ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)


def _holder(chosen: Settings) -> Holder:
    mine = identity()
    if chosen.supervisor is None:
        return mine
    return Holder(
        host=mine.host,
        boot=mine.boot,
        pid=mine.pid,
        started=mine.started,
        supervisor=chosen.supervisor.id,
    )


def _attempt(run: RunDir, chosen: Settings) -> tuple[AttemptEntry, ev.RecoveryPlanned | None]:
    """Rank 0's part: the attempt that the supervisor entered, or a new one.

    An attempt is claimed once: a second process of it (torchrun restarted its workers, `attach`
    was called again) begins another.
    """
    holder = _holder(chosen)
    if chosen.attempt is not None:
        found = Sequence(run.sequence).read()
        newest = model.newest_attempt(found)
        named = next((e for e in model.attempts(found) if _short(e) == chosen.attempt), None)
        if named is None:
            raise BadInput(f"WALRECOVER_ATTEMPT is {chosen.attempt}, which run {run.name} has not")
        if newest is named:
            if _claim(run, named):
                return named, None  # the supervisor's journal has what was planned
        elif newest is None or newest.holder.supervisor != holder.supervisor:
            raise Fenced(f"attempt {named.number} was superseded by {newest and newest.holder}")
        resume = "auto"
    else:
        run.create()
        resume = chosen.resume
    _await_savers(run)
    begun = recovery.begin_attempt(run, holder, resume=resume)
    _claim(run, begun.entry)
    folder = run.meeting(begun.entry.number, begun.entry.nonce)
    failures.tell(folder, goodput.known(begun.state))
    print(f"walrecover: {begun.line}", file=sys.stderr, flush=True)
    return begun.entry, begun.event


def _await_savers(run: RunDir) -> None:
    """What an attempt before still saves is settled before there is another plan: that saver would
    be fenced off by it."""
    if model.newest_attempt(Sequence(run.sequence).read()) is None:
        return
    import psutil  # only now: what begins anew has no use for it

    began, told = time.monotonic(), False
    while savers := roll.bereaved(run, psutil.pids):
        waited = time.monotonic() - began
        if not savers - offers.settled(run, savers) or waited > SAVING_SECONDS:
            return
        if waited > QUIET_SECONDS and not told:
            told = True
            print(
                f"walrecover: the attempt before is still being saved, which is waited for: "
                f"{SAVING_SECONDS:.0f} s at most",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(LOOK_SECONDS)


def _short(entry: AttemptEntry) -> str:
    return f"{entry.number}-{entry.nonce}"


def _claim(run: RunDir, entry: AttemptEntry) -> bool:
    folder = run.meeting(entry.number, entry.nonce)
    with storage(f"cannot make {folder}"):
        make_directory(folder)
        return create_if_absent(folder / "claimed", b"")


def _entry_of(run: RunDir, label: str) -> AttemptEntry:
    for entry in model.attempts(Sequence(run.sequence).read()):
        if entry.label == label:
            return entry
    raise BadInput(
        f"rank 0 began attempt {label}, which is not in {run.path} as this rank sees it: all "
        f"ranks need the same directory"
    )


__all__ = ["attach"]
