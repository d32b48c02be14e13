"""What a run's story is, as plain values: the common ground of tables, JSON and pictures.

Owns the reading of a `RunState` for people; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from walrecover import entries as model
from walrecover import events as ev
from walrecover import skips as skipping
from walrecover.causes import unseen
from walrecover.entries import AttemptEntry, Holder
from walrecover.goodput import Goodput
from walrecover.processes import identity, is_alive
from walrecover.state import RunState, StreamRecord
from walrecover.verdicts import is_good, said

LAST_END = ("cause", "evidence", "decision", "reason")

KEEPERS = ("adopter", "settler")
"""Who looks after a script's own files: the writers of these streams."""


Alive = Callable[[Holder], "bool | None"]
"""Whether a holder lives; None where that cannot be told."""


def state_word(state: RunState, alive: Alive = is_alive) -> str:
    """finished, running, stopped, or ended (somebody must run it again)."""
    newest = model.newest_attempt(state.entries)
    if newest is None:
        return "empty"
    if state.finished:
        return "finished"
    if state.driven_here(newest) and alive(newest.holder):
        return "running"
    records = state.of_attempt(newest.number, newest.nonce).values()
    if any(record.stopped for record in records):
        return "stopped"
    return "ended"


def run_row(name: str, state: RunState) -> dict[str, Any]:
    """One run at a glance."""
    newest = model.newest_attempt(state.entries)
    live = state.candidates
    ends = [end for end in flow(state) if end["cause"]]
    last = ends[-1] if ends else {}
    return {
        "run": name,
        "state": state_word(state),
        "last_step": state.last_step(),
        "attempts": len(model.attempts(state.entries)),
        "recovery_point": live[0].snapshot.step if live else None,
        "committed_at": live[0].at if live else None,
        "holder": str(newest.holder) if newest else None,
        "last_end": {key: last.get(key, "") for key in LAST_END},
    }


def flow(
    state: RunState,
    spent: Goodput | None = None,
    *,
    alive: Alive = is_alive,
    here: Holder | None = None,
) -> list[dict[str, Any]]:
    """The recovery flow: for each attempt what it resumed, how it ended, and what was decided, and
    where its time went (`spent`, up to the next one's beginning) if that is given. `here`: who
    looks, by default this process.

    `stages` in seconds: planned (recovery), restored (start to every object restored), first step
    (restored to the next completed step is not known here: the log has it).
    """
    seconds: dict[str, Any] = dict(spent.attempts) if spent else {}
    who = here or identity()
    return [
        _attempt(state, entry, alive, who) | {"spent": seconds.get(entry.label)}
        for entry in model.attempts(state.entries)
    ]


def _attempt(state: RunState, entry: AttemptEntry, alive: Alive, here: Holder) -> dict[str, Any]:
    records = state.of_attempt(entry.number, entry.nonce)
    supervisor = records.get("supervisor", StreamRecord())
    ranks = [record for writer, record in sorted(records.items()) if writer.startswith("rank-")]
    base = entry.plan.base
    steps = [span for record in ranks for span in record.steps]
    exited = (
        supervisor.exited[-1]
        if supervisor.exited
        else _unseen(state, entry, records, alive(entry.holder), here)
    )
    decided = supervisor.decided[-1] if supervisor.decided else None
    resumed = next((record.resumed for record in ranks if record.resumed), None)
    world = next((record.begun.world for record in ranks if record.begun), None)
    planned = next((r.planned for r in [supervisor, *ranks] if r.planned), None)
    return {
        "attempt": entry.number,
        "began": entry.at,
        "recovery_point": base.step if base else None,
        "rejected": [
            {"step": r.step, "attempt": r.attempt, "reason": r.reason} for r in entry.plan.rejected
        ],
        "ranks": world,
        "saved_by": entry.plan.ranks or None,
        "drawn_anew": sorted(resumed.drawn_anew) if resumed else [],
        "from_arena": sum(record.resumed.arena for record in ranks if record.resumed),
        "from_disk": sum(record.resumed.disk for record in ranks if record.resumed),
        "refused": next((r.resumed.refused for r in ranks if r.resumed and r.resumed.refused), ""),
        "rewind": msgspec.structs.asdict(entry.plan.rewind) if entry.plan.rewind else None,
        "skips": [msgspec.structs.asdict(skip) for skip in entry.plan.skips],
        "left_out": skipping.told(entry.plan.skips),
        "first_step": min((first for first, _ in steps), default=None),
        "last_step": max((last for _, last in steps), default=None),
        "lost_steps": planned.lost_steps if planned else None,
        "cause": exited.cause if exited else _own_word(ranks),
        "evidence": exited.evidence if exited else "",
        "fingerprint": exited.fingerprint if exited else "",
        "artefacts": list(exited.artefacts) if exited else [],
        "salvaged": _salvaged(ranks),
        "proof": _proof(ranks),
        "decision": decided.action if decided else "",
        "reason": decided.reason if decided else "",
        "environment": dict(decided.environment) if decided else {},
        "stages": {
            "planned": planned.seconds if planned else None,
            "restored": resumed.seconds if resumed else None,
            "ran": exited.seconds if exited and exited.pid else None,
        },
        "files": _files([records[writer] for writer in KEEPERS if writer in records]),
    }


def _files(records: list[StreamRecord]) -> dict[str, list[dict[str, Any]]]:
    """The script's own checkpoint files (`--adopt`): the newest word on each path."""

    def plain(found: Iterable[Any]) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(event) for event in sorted(found, key=lambda event: event.at)]

    adopted = {path: event for record in records for path, event in record.adopted.items()}
    rejected = {path: event for record in records for path, event in record.rejected.items()}
    return {
        "adopted": plain(adopted.values()),
        "rejected": plain(rejected.values()),
        "put_back": plain(event for record in records for event in record.put_back),
    }


def _unseen(
    state: RunState,
    entry: AttemptEntry,
    records: dict[str, StreamRecord],
    alive: bool | None,
    here: Holder,
) -> ev.WorkerExited | None:
    """The end of an attempt that its supervisor did not live to note. An attempt that the workers
    of a supervisor began themselves ends with the one before it."""
    if not state.driven_here(entry):
        return None
    unknown = alive is None and entry == model.newest_attempt(state.entries)  # on another host
    if "supervisor" not in records or alive or unknown:
        return None
    verdict = unseen(entry.holder, here)
    return ev.WorkerExited(
        pid=0, cause=verdict.cause, evidence=verdict.sentence, fingerprint=verdict.fingerprint
    )


def _salvaged(ranks: list[StreamRecord]) -> dict[str, Any] | None:
    """What became of the last completed step: saved where one rank found that all had voted, else
    the first rank's reason."""
    tried = sorted((r.salvaged[-1] for r in ranks if r.salvaged), key=lambda event: not event.saved)
    if not tried:
        return None
    return {name: getattr(tried[0], name) for name in ("step", "saved", "reason", "stands")}


def _proof(ranks: list[StreamRecord]) -> str:
    """What the ranks have journaled of their resume: the first that diverged or could not be
    proven, else the first's own last word."""
    told = [record.proofs[-1] for record in ranks if record.proofs]
    worst = sorted(told, key=lambda one: (is_good(one), not isinstance(one, ev.ResumeDiverged)))
    return said(worst[0]) if worst else ""


def _own_word(ranks: list[StreamRecord]) -> str:
    if any(record.finished for record in ranks):
        return "finished"
    if any(record.stopped for record in ranks):
        return "stopped"
    return ""
