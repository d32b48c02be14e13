"""A look at all adopted files while nobody writes: before an attempt, and after it.

Owns finding out what lies at each path, having `walrecover.adoption` judge it, and doing what it
says; one file that fails costs that file. Must not decide anything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from walrecover import adoption
from walrecover.adopt import wholeness
from walrecover.adopt.patterns import Pattern, Stamp, find
from walrecover.adopt.store import Store, digest_of
from walrecover.adopt.tree import Changed, NotKept, open_stamped
from walrecover.adoption import Found, Kept
from walrecover.errors import StorageFailed
from walrecover.events import Event, FileAdopted, FileRejected, FileRestored

_ORDERLY = "its process ended with exit code 0"
_NOT_SMALLER = "not smaller than the version before it"


class Telling(NamedTuple):
    """Where to say what was done: the journal, and stderr."""

    note: Callable[[Event], object]
    say: Callable[[str], object]


class Setting(NamedTuple):
    """`root`: the run's own directory, which is never looked at. `boot` names this boot.
    `orderly`: the attempt ended with exit code 0. `step`: about how many were made."""

    tree: Path
    root: Path
    patterns: Sequence[Pattern]
    boot: str
    orderly: bool = False
    step: int = 0


def settle(store: Store, setting: Setting, telling: Telling) -> None:
    """Keep what is whole and new, put the newest version back where none is."""
    _Look(store, setting, telling).all()


class _Look:
    def __init__(self, store: Store, setting: Setting, telling: Telling) -> None:
        self._store, self._setting, self._telling = store, setting, telling
        running = store.running()
        self._cut_off = running is not None and running.boot != setting.boot
        self._unsettled = running is not None and not setting.orderly
        looked = store.looked()
        self._first = looked is None and running is None
        self._looked = {} if looked is None or self._cut_off else looked
        self._failed: set[str] = set()  # the next look has to look at these again

    def all(self) -> None:
        setting = self._setting
        stamps = find(setting.tree, setting.patterns, setting.root)
        records = self._store.read()
        newest = {record.path: record for record in records}
        changed = {path: s for path, s in stamps.items() if self._looked.get(path) != s}
        missing = [path for path in newest if path not in stamps]
        for path in [*_by_age(changed), *missing]:
            stamp = stamps.get(path)
            if stamp is None or path in newest or self._is_worth(path, stamps, newest):
                self._one(path, stamp, newest.get(path))
        left = find(setting.tree, setting.patterns, setting.root)
        self._store.note_look({path: s for path, s in left.items() if path not in self._failed})

    def _is_worth(self, path: str, stamps: dict[str, Stamp], newest: dict[str, Kept]) -> bool:
        """Of many files that nobody kept yet, only the newest of a family can stay kept."""
        name = adoption.family(path)
        newer = sum(
            adoption.family(other) == name and stamp.mtime_ns > stamps[path].mtime_ns
            for other, stamp in stamps.items()
        )
        return newer < self._store.keep

    def _one(self, path: str, stamp: Stamp | None, newest: Kept | None) -> None:
        telling = self._telling
        try:
            found = self._find(path, stamp, newest)
            self._do(path, stamp, found)
        except Changed as error:
            self._failed.add(path)
            telling.say(f"{error}: left as it is")
        except (NotKept, StorageFailed) as error:
            self._failed.add(path)
            telling.note(FileRejected(path=path, reason=str(error)))
            telling.say(f"not kept: {error}")
        except OSError as error:
            self._failed.add(path)
            telling.say(f"{path} cannot be looked after: {error.strerror or error}")

    def _find(self, path: str, stamp: Stamp | None, newest: Kept | None) -> Found:
        if stamp is None:
            return Found(state="missing")
        if newest and not self._cut_off and (newest.bytes, newest.mtime_ns) == stamp[1:]:
            return Found(state="whole", bytes=stamp.bytes, digest=newest.digest)
        file, now = open_stamped(self._setting.tree / path)
        with file:
            if now != stamp:
                raise Changed(f"{path} is being written")
            look = wholeness.look(file, path, deep=True)
            if look.whole is False:
                reason = f"torn: it {look.reason}"
                return Found(
                    state="torn", bytes=stamp.bytes, reason=reason, touched=not self._first
                )
            trusted = look.whole or self._setting.orderly
            return Found(
                state="whole" if trusted else "opaque",
                bytes=stamp.bytes,
                digest=digest_of(file),
                touched=not self._first,
            )

    def _do(self, path: str, stamp: Stamp | None, found: Found) -> None:
        verdict = adoption.judge(
            path, found, self._store.read(), unsettled=self._unsettled, cut_off=self._cut_off
        )
        if verdict.action == "adopt" and stamp is not None:
            trust = _ORDERLY if self._setting.orderly else _NOT_SMALLER
            keep(self._store, path, stamp, self._telling, step=self._setting.step, trust=trust)
        elif verdict.action == "put back" and verdict.kept is not None:
            self._put_back(verdict.kept, stamp, verdict.reason)
        elif verdict.action == "put aside" and stamp is not None:
            aside = self._store.take_away(path, stamp)
            self._telling.note(
                FileRejected(path=path, reason=verdict.reason, bytes=found.bytes, aside=aside)
            )
            self._telling.say(f"{path} is {verdict.reason}; it lies at {aside} now")

    def _put_back(self, kept: Kept, stamp: Stamp | None, reason: str) -> None:
        put = self._store.put_back(kept, stamp)
        for record in put.passed_over:
            self._telling.say(
                f"version {record.number} of {record.path} that was kept does not verify"
            )
        self._telling.note(
            FileRestored(
                path=put.kept.path,
                number=put.kept.number,
                digest=put.kept.digest,
                reason=reason,
                aside=put.aside,
            )
        )
        where = f"; what lay there is {put.aside} now" if put.aside else ""
        self._telling.say(f"put back {put.kept.path}, version {put.kept.number} ({reason}){where}")


def keep(
    store: Store,
    path: str,
    stamp: Stamp,
    telling: Telling,
    *,
    arrived: bool = False,
    step: int = 0,
    trust: str = "",
    clock: Callable[[], float] | None = None,
) -> Kept:
    """Keep this version and say so, unless it is kept already. Raises NotKept, OSError."""
    began = clock() if clock else 0.0
    last = max((record.number for record in store.read()), default=0)
    kept = store.adopt(path, stamp, arrived=arrived, step=step, trust=trust)
    if kept.number > last:
        telling.note(
            FileAdopted(
                path=path,
                number=kept.number,
                bytes=kept.bytes,
                digest=kept.digest,
                assurance=kept.assurance,
                how=kept.how,
                step=step,
                seconds=clock() - began if clock else 0.0,
            )
        )
        store.thin()
    return kept


def _by_age(stamps: dict[str, Stamp]) -> list[str]:
    return sorted(stamps, key=lambda path: (stamps[path].mtime_ns, path))
