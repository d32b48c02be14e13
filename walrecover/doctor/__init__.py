"""Gathers what `walrecover.findings` judges: the storage, the run that is there, the machine.

Owns which facts are asked for, by `doctor` and by a preflight; changes nothing that stays. Must not
judge, and never imports torch: a child process of the command's own Python is asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from walrecover import __version__, cgroups
from walrecover.doctor import estate, machine, places, rehearsal
from walrecover.findings import Facts, Preflight, examine, preflight
from walrecover.findings.facts import Place, Port, Snapshots
from walrecover.findings.rendezvous import meeting_of
from walrecover.rundir import RunDir

KEEP = 3
"""What WALRECOVER_KEEP is by default."""


def gather(
    run: RunDir,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    size: int | None = None,
    unusable: str = "",
) -> Facts:
    """Everything that `doctor` looks at. `size`: of a snapshot, where none tells; `unusable`: why
    the command cannot be run."""
    from walrecover.doctor import interpreter  # what starts processes, a preflight needs not

    mounts = places.mounts()
    known, keep = estate.snapshots(run), _keep(environ)
    if known is None and size is not None:
        known = Snapshots(size, 5, "--size")
    place = places.look(run, mounts)
    steps, storage_clock = rehearsal.rehearse(place.anchor, thorough=True)
    reserve = rehearsal.reserve(place, places.wanted(known, keep))
    place = places.with_trial(place, steps, reserve)
    gpu = machine.gpu(environ)
    return Facts(
        run=place,
        journal=_journal(run, mounts, thorough=True),
        user=estate.user(),
        belongs=estate.belongs(run),
        container=places.container(),
        mount_point=places.mount_point(place, run),
        theirs=estate.theirs(run, thorough=True),
        sharing=estate.sharing(run),
        keep=keep,
        snapshots=known,
        shm=machine.shm(),
        memory=cgroups.available(cgroups.memory_cgroup()),
        clock=machine.clock(estate.newest_decision(run), storage_clock),
        limits=machine.limits(),
        processes=machine.processes(),
        port=_port(command, environ, thorough=True),
        gpu=gpu,
        interpreter=interpreter.ask(command, environ, torch=machine.expects_gpu(gpu)),
        walrecover=__version__,
        kernel=os.uname().release,
        pidfd=machine.pidfd(),
        command=unusable,
    )


def before_a_run(run: RunDir, command: Sequence[str], environ: Mapping[str, str]) -> Preflight:
    """What costs next to nothing, before the first attempt."""
    mounts = places.mounts()
    place = places.look(run, mounts)
    steps, _ = rehearsal.rehearse(place.anchor, thorough=False)
    place = places.with_trial(place, steps)
    facts = Facts(
        run=place,
        journal=_journal(run, mounts, thorough=False),
        user=estate.user(),
        belongs=estate.belongs(run),
        container=places.container(),
        mount_point=places.mount_point(place, run),
        theirs=estate.theirs(run, thorough=False),
        keep=_keep(environ),
        snapshots=estate.snapshots(run, most_bytes=estate.QUICK_BYTES),
        limits=machine.limits(("fsize",)),
        port=_port(command, environ, thorough=False),
        kernel=os.uname().release,
        pidfd=machine.pidfd(),
    )
    return preflight(examine(facts))


def _journal(run: RunDir, mounts: places.Mounts, *, thorough: bool) -> Place | None:
    if run.journal_root is None:
        return None
    place = places.look_at(run.journal_root, [run.journal], mounts)
    steps, _ = rehearsal.rehearse(place.anchor, thorough=thorough)
    return places.with_trial(place, steps)


def _port(command: Sequence[str], environ: Mapping[str, str], *, thorough: bool) -> Port | None:
    """None where the command binds none here."""
    meeting = meeting_of(command, environ)
    if meeting is None:
        return None
    from walrecover.doctor import ports  # and most commands no socket

    return ports.look(meeting, thorough=thorough)


def _keep(environ: Mapping[str, str]) -> int:
    """`attach` refuses another value; here the default stands for it."""
    given = environ.get("WALRECOVER_KEEP", "")
    return int(given) if given.isdigit() and int(given) >= 2 else KEEP
