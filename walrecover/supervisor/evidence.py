"""What an attempt left behind that tells why it ended.

Owns looking: the kernel's OOM counters, the ranks' streams, torchrun's error file, output that
goes to a file. Says nothing of what it means (`causes` does), and never fails: what cannot be read
is not known.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from walrecover import cgroups, recovery
from walrecover.causes import Evidence, Forced, Memory, Raised
from walrecover.entries import AttemptEntry
from walrecover.errors import WalrecoverError
from walrecover.events import ExceptionRaised, ScalarsArrived, StepCompleted
from walrecover.journal import Reader
from walrecover.rundir import RunDir
from walrecover.state import StreamRecord
from walrecover.supervisor.child import Ending
from walrecover.supervisor.handover import ERROR_FILE
from walrecover.wording import cut, redacted_text

TAIL_EVENTS = 32
TAIL_BYTES = 64 << 10
MOST_LINES = 200
MOST_ERROR_FILE_BYTES = 1 << 20
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)

Records = list[tuple[AttemptEntry, dict[str, StreamRecord]]]


class Counters(NamedTuple):
    """The OOM killer's, as they stand: of a cgroup, of the machine. None: there is none."""

    cgroup: int | None
    machine: int | None


class Before(NamedTuple):
    """What is noted before a command starts, to tell what came after it."""

    cgroup: Path | None
    counters: Counters
    outputs: tuple[tuple[str, int], ...]
    error_file: Path | None
    error_written: int

    @classmethod
    def note(cls, environ: Mapping[str, str], logs: Sequence[str] = ()) -> Before:
        cgroup = cgroups.memory_cgroup()
        error_file = Path(environ[ERROR_FILE]) if environ.get(ERROR_FILE) else None
        outputs = tuple(_outputs(logs))
        return cls(cgroup, _counters(cgroup), outputs, error_file, _written(error_file))

    def follow(self, pid: int) -> Before:
        """The same, where the command has moved itself into another cgroup (`systemd-run`,
        `cgexec`): what that one counted before is not its own."""
        cgroup = cgroups.memory_cgroup(pid)
        if cgroup is None or cgroup == self.cgroup or cgroups.is_root(cgroup):
            return self  # in the root is what exits
        counters = self.counters._replace(cgroup=_counters(cgroup).cgroup)
        return self._replace(cgroup=cgroup, counters=counters)

    def look(
        self,
        ending: Ending,
        records: Records,
        *,
        run: RunDir,
        started: bool,
        forced: Forced | None,
        asked: int | None,
        peak: int,
    ) -> Evidence:
        """All that can be known now that the command and its descendants are gone."""
        ranks = _ranks(records)
        raised = _raised(ranks) or self._torchruns_word()
        return Evidence(
            code=ending.code,
            signal=ending.signal,
            started=started,
            forced=forced,
            asked=asked,
            stopped_by=max((r.stopped.signal for _, _, r in ranks if r.stopped), default=0),
            memory=self._memory(peak),
            raised=raised,
            silent=tuple(rank for _, rank, record in ranks if _is_silent(record)),
            step=max((record.last_step for _, _, record in ranks), default=0),
            infinite=_infinite(run, ranks),
            log=_new_lines(self.outputs),
        )

    def _memory(self, peak: int) -> Memory:
        now = _counters(self.cgroup)
        return Memory(
            kills=_grown(self.counters.cgroup, now.cgroup),
            elsewhere=_grown(self.counters.machine, now.machine),
            peak=peak,
            limit=cgroups.limit(self.cgroup),
            total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )

    def _torchruns_word(self) -> tuple[Raised, ...]:
        """torchrun copies the file of the worker that failed first to the place that it was told;
        only workers whose main function is `record`ed write one. Its own errors lie there too."""
        if self.error_file is None or _written(self.error_file) == self.error_written:
            return ()  # none, or an older attempt's: somebody else has named the place
        event = read_error_file(self.error_file)
        return (Raised(None, event),) if event else ()


# --- the kernel's counters ----------------------------------------------------------------------


def _counters(cgroup: Path | None) -> Counters:
    return Counters(
        None
        if cgroup is None
        else _number(cgroup / "memory.events") or _number(cgroup / "memory.oom_control"),
        _number(Path("/proc/vmstat")),
    )


def _number(path: Path, key: str = "oom_kill") -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return None


def _grown(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else max(0, now - before)


# --- the ranks' streams -------------------------------------------------------------------------

Rank = tuple[AttemptEntry, int, StreamRecord]


def _ranks(records: Records) -> list[Rank]:
    """The newest attempt's ranks: torchrun enters further ones by itself."""
    for entry, found in reversed(records):
        ranks = [
            (entry, int(writer.removeprefix("rank-")), record)
            for writer, record in found.items()
            if writer.startswith("rank-")
        ]
        if ranks:
            return sorted(ranks, key=lambda rank: rank[1])
    return []


def _raised(ranks: Iterable[Rank]) -> tuple[Raised, ...]:
    return tuple(Raised(rank, event) for _, rank, record in ranks for event in record.raised[-1:])


def _is_silent(record: StreamRecord) -> bool:
    return not (record.raised or record.finished or record.stopped)


def _infinite(run: RunDir, ranks: Iterable[Rank]) -> str:
    """The last scalars that some rank journaled, where one of them is not finite."""
    for entry, rank, _ in ranks:
        path = run.stream(entry.number, entry.nonce, f"rank-{rank}")
        with contextlib.suppress(WalrecoverError, OSError):
            step, scalars = _last_scalars(path)
            odd = {name: value for name, value in scalars.items() if not math.isfinite(value)}
            if odd:
                said = ", ".join(f"{name} is {value}" for name, value in sorted(odd.items()))
                return f"{said} at step {step} of rank {rank}"
    return ""


def _last_scalars(path: Path) -> tuple[int, dict[str, float]]:
    """Recovery has read this stream in a process apart: it can be opened."""
    scalars: dict[str, float] = {}
    step = 0
    with Reader(path) as reader:
        last = reader.head().lsn
        for _, event in reader.read(reader.cursor_at(max(0, last - TAIL_EVENTS)), last):
            if isinstance(event, StepCompleted | ScalarsArrived) and event.step >= step:
                scalars = {**(scalars if event.step == step else {}), **event.scalars}
                step = event.step
    return step, scalars


def records_of(run: RunDir, entries: Sequence[AttemptEntry]) -> Records:
    """What the ranks of these attempts journaled."""
    return [(entry, recovery.records_of(run, entry)) for entry in entries]


# --- torchrun's error file ----------------------------------------------------------------------


class _Extra(msgspec.Struct):
    py_callstack: str = ""
    timestamp: str | int | float = 0


class _Message(msgspec.Struct):
    message: str = ""
    extraInfo: _Extra = msgspec.field(default_factory=_Extra)


class _ErrorFile(msgspec.Struct):
    message: _Message | str = ""


def read_error_file(path: Path) -> ExceptionRaised | None:
    """The exception in torch's error file; None where there is none to be understood."""
    try:
        if path.stat().st_size > MOST_ERROR_FILE_BYTES:
            return None
        found = msgspec.json.decode(path.read_bytes(), type=_ErrorFile).message
        said = found if isinstance(found, _Message) else _Message(found)
        at = float(said.extraInfo.timestamp)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None
    text = redacted_text(cut(said.message))
    kind, _, message = text.partition(": ")
    if not re.fullmatch(r"[\w.]+", kind):
        kind, message = "Exception", text
    if not text:
        return None
    file, line, function = _innermost(said.extraInfo.py_callstack)
    return ExceptionRaised(
        at=at, kind=kind, message=message, file=file, line=line, function=function
    )


def _written(path: Path | None) -> int:
    """When a file was last written; 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns if path else 0
    return 0


def _innermost(callstack: str) -> tuple[str, int, str]:
    """The innermost frame outside of installed packages."""
    frames = _FRAME.findall(callstack)
    own = [frame for frame in frames if "-packages/" not in frame[0] and frame[0][:1] != "<"]
    file, line, function = (own or frames or [("", "0", "")])[-1]
    return file, int(line), function


# --- output that goes to a file -----------------------------------------------------------------


def _outputs(logs: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Files that the command's output goes to, and logs of the user's own, with their sizes.

    The descriptors are the command's: what it prints is read back only where it lies in a file.
    """
    seen = set()
    for path in ("/proc/self/fd/1", "/proc/self/fd/2", *logs):
        try:
            status = os.stat(path)
        except OSError:
            if path in logs:
                yield path, 0  # it is not there yet
            continue
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield path, status.st_size


def _new_lines(outputs: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    lines: list[str] = []
    for path, before in outputs:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(before if size >= before else 0, size - TAIL_BYTES)
            file.seek(start)
            text = file.read(TAIL_BYTES).decode(errors="replace")
            said = [line for line in text.splitlines() if not line.startswith("walrecover: ")]
            lines += [redacted_text(cut(line)) for line in said[-MOST_LINES:]]
    return tuple(lines[-MOST_LINES:])
