"""Why an attempt ended: a class, the evidence in a sentence, and a fingerprint.

Owns the classes, the table of signs and the pure reading of what was found; must not look for
anything itself (`supervisor.evidence` does) nor decide what follows (`policy` does).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from walrecover.entries import Holder
from walrecover.events import ExceptionRaised
from walrecover.wording import (
    SIGKILL,
    SIGNALS,
    SIGTERM,
    processes,
    ranks,
    shortened,
    signal_name,
    size,
)

CAUSES = {
    "out_of_memory": "torch's allocator, Python's or the kernel's OOM killer",
    "hang": "it lived and made no progress",
    "communication": "NCCL, gloo, a lost peer, the rendezvous, a store",
    "preempted": "it was asked to make room: SIGTERM, the preempt signal, exit code 75",
    "data": "a loader's worker died, or a sample could not be read",
    "storage": "full, read-only, over quota, or an I/O error",
    "numeric": "NaN or infinite loss",
    "code": "any other exception, any other exit code",
    "crash": "ended by a signal",
    "node_lost": "the machine, with its supervisor, was gone",
}
"""What an attempt can die of, and a policy can speak of."""

OTHER = {
    "done": "exit code 0",
    "stopped": "somebody asked it to stop",
    "fenced": "somebody else took the run over",
    "diverged": "a resume was not the run before, and the policy stops for that",
    "unusable": "the command could not be started",
}
"""Ends that no policy changes."""

ERROR, TEXT, FETCHED, FINITE, LOG = "error", "text", "fetched", "finite", "log"


class Rule(NamedTuple):
    """One sign. `sign` says what `pattern` is searched in."""

    cause: str
    sign: str
    pattern: str


# The first one that fits counts. `error`: the whole qualified name of the exception's type or of
# one of its bases; `text`: somewhere in "Type: message"; `fetched`: the same, of what came out of a
# loop's iterable; `finite`: the same, where the last scalars were not; `log`: a line of output.
# Where no process said a word, lines that end a traceback are asked as exceptions are.
RULES = (
    Rule("fenced", ERROR, r"(walrecover\.errors\.)?Fenced"),
    Rule("diverged", ERROR, r"(walrecover\.errors\.)?Diverged"),
    Rule("out_of_memory", ERROR, r"(.*\.)?OutOfMemoryError|(.*\.)?_?(Array)?MemoryError"),
    Rule("out_of_memory", TEXT, r"out of memory|DefaultCPUAllocator|[Cc]an(no|')t allocate memory"),
    Rule("out_of_memory", TEXT, r"STATUS_ALLOC_FAILED|unable to mmap \d+ bytes"),
    Rule("storage", ERROR, r"(.*\.)?StorageFailed"),
    Rule("storage", TEXT, r"\[Errno (5|27|28|30|122)\]|No space left on device|Read-only file sys"),
    Rule("storage", TEXT, r"Input/output error|Disk quota exceeded|PytorchStreamWriter failed"),
    Rule("data", TEXT, r"DataLoader worker|in pin memory thread"),
    Rule("communication", ERROR, r"(.*\.)?(Dist|Rendezvous|Connection|BrokenPipe|Timeout)\w*Error"),
    Rule("communication", TEXT, r"NCCL|[Gg]loo\b|by peer|[Rr]endezvous|TCPStore|FileStore"),
    Rule("communication", TEXT, r"[Ss]ocket [Tt]imeout|Connection (reset|refused|closed)"),
    Rule("communication", TEXT, r"did not come to walrecover\.attach|store of the process group"),
    Rule("numeric", ERROR, r"FloatingPointError"),
    Rule("numeric", TEXT, r"(?i)\bnan\b|non-?finite|\binfinite (loss|grad)|\binf\b.*\bloss\b"),
    Rule("data", FETCHED, r""),
    Rule("numeric", FINITE, r""),
    Rule("code", ERROR, r".*"),
    Rule("crash", LOG, r"Signal \d+ \(SIG\w+\) received by PID"),  # torchrun's summary
)


# What Python prints last of an exception, torch with the rank before it.
_LAST_LINE = re.compile(
    r"(\[rank\d+\]: )?(?P<kind>([A-Za-z_]\w*\.)*[A-Za-z_]\w*(Error|Exception))(: (?P<message>.*))?"
)


class Pattern(msgspec.Struct, frozen=True):
    """A rule of the user's own: regular expressions for "Type: message" or a line of output."""

    cause: str
    error: str = ""
    log: str = ""


class Forced(msgspec.Struct, frozen=True):
    """The supervisor ended the command itself, for `cause`; `text` says why in words."""

    cause: str
    text: str
    artefacts: tuple[str, ...] = ()


class Raised(msgspec.Struct, frozen=True):
    """What one rank said of the exception that ended it; no rank: torchrun's error file did."""

    rank: int | None
    event: ExceptionRaised


class Memory(msgspec.Struct, frozen=True):
    """What the kernel's counters say, between the command's start and its end.

    `kills`: by the OOM killer in the command's own cgroup, None where there is no such counter;
    `elsewhere`: on this kernel, None where /proc has no such counter. `peak`: bytes resident in the
    largest process of the command; `limit`: the cgroup's, `total`: the machine's.
    """

    kills: int | None = None
    elsewhere: int | None = None
    peak: int = 0
    limit: int | None = None
    total: int = 0


class Evidence(msgspec.Struct, frozen=True):
    """All that was found. One of `code` and `signal` is set, unless nobody saw the end.

    `asked`: the signal by which somebody asked the supervisor to stop. `said`: signals that ended
    ranks which said so. `silent`: ranks that neither raised nor came to an end. `infinite`: the
    last scalars, where one is not finite. `log`: the last lines of output, where a file has it.
    """

    code: int | None = None
    signal: int | None = None
    started: bool = True
    forced: Forced | None = None
    asked: int | None = None
    stopped_by: int = 0
    memory: Memory = Memory()
    raised: tuple[Raised, ...] = ()
    silent: tuple[int, ...] = ()
    step: int = 0
    infinite: str = ""
    log: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """`error`, `kinds`: of the exception that decided, "Type: message", and the names of its type
    and their bases; `step`: the last completed one where it happened."""

    cause: str
    sentence: str
    fingerprint: str
    error: str = ""
    kinds: tuple[str, ...] = ()
    step: int = 0


def classify(evidence: Evidence, patterns: Sequence[Pattern] = ()) -> Verdict:
    """The class of an end. What we did ourselves comes first, then the user's own patterns, the
    kernel's counters of the command's cgroup, what the processes said, and how they ended."""
    for look in (_own_doing, _by_pattern, _by_counters, _by_exception, _by_log, _by_ending):
        verdict = look(evidence, patterns)
        if verdict is not None:
            return verdict
    raise AssertionError("_by_ending always answers")


def unseen(holder: Holder, here: Holder) -> Verdict:
    """Why there is no note of an attempt's end, where its holder does not live any more."""
    if holder.host == here.host and holder.boot == here.boot:
        text = f"its supervisor (pid {holder.pid}) was ended with it, and nobody saw how"
        return Verdict("crash", text, "crash:supervisor")
    if holder.host == here.host and holder.boot.partition("/")[0] != here.boot.partition("/")[0]:
        text = f"{holder.host} was started again while it ran"
    else:
        text = f"nobody saw it end on {holder.host}"
    return Verdict("node_lost", text, "node_lost")


def ending(evidence: Evidence) -> str:
    """How the command ended, for people."""
    if evidence.signal is not None:
        return f"killed by {signal_name(evidence.signal)}"
    return f"exit code {evidence.code}"


def text_of(event: ExceptionRaised) -> str:
    """`Type: message`, as Python prints it."""
    kind = event.kind.removeprefix("builtins.")
    return f"{kind}: {event.message}" if event.message else kind


# --- what is asked, in this order ---------------------------------------------------------------


def _own_doing(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict | None:
    forced = evidence.forced
    if forced is not None:
        return Verdict(forced.cause, f"{ending(evidence)}: {forced.text}", forced.cause)
    if not evidence.started:
        return Verdict("unusable", ending(evidence), "unusable")
    if evidence.asked is not None:
        cause = "preempted" if evidence.asked == SIGTERM else "stopped"
        asked = f"asked to stop by {signal_name(evidence.asked)}"
        return Verdict(cause, f"{ending(evidence)} after it was {asked}", cause)
    if evidence.code == 0:
        more = f"; its last scalars: {evidence.infinite}" if evidence.infinite else ""
        return Verdict("done", f"exit code 0{more}", "done")
    return None


def _by_pattern(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict | None:
    for pattern in patterns:
        for raised in evidence.raised if pattern.error else ():
            if re.search(pattern.error, text_of(raised.event)):
                return _of_exception(pattern.cause, raised, evidence)
        for line in reversed(evidence.log) if pattern.log else ():
            if re.search(pattern.log, line):
                return _of_line(pattern.cause, line, evidence)
    return None


def _by_counters(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict | None:
    memory = evidence.memory
    if not _reads_as_killed(evidence):
        return None  # others live in its cgroup too
    if memory.kills:
        limit = f" (limit {size(memory.limit)})" if memory.limit is not None else ""
        text = f"the kernel's OOM killer ended {processes(memory.kills)} in its cgroup{limit}"
    elif memory.kills is None and memory.elsewhere:
        text = (
            f"the kernel's OOM killer ended {processes(memory.elsewhere)} on this machine "
            "meanwhile (its count is of the whole machine, so this is likely, not certain)"
        )
    else:
        return None
    sentence = f"{ending(evidence)}; {text}{_peak(memory)}"
    return Verdict("out_of_memory", sentence, "out_of_memory:killed", step=evidence.step)


def _by_exception(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict | None:
    """The exception that began it: where one rank fails, its peers lose a peer."""
    judged = [(_class_of(raised.event, evidence), raised) for raised in evidence.raised]
    if not judged:
        return None
    cause, first = min(judged, key=lambda one: (one[0] == "communication", one[1].event.at))
    return _of_exception(cause, first, evidence)


def _by_log(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict | None:
    """Tracebacks in the output; of several the last, but for the losses of a peer."""
    if _signal_of(evidence) == SIGKILL:
        return None
    lost: Verdict | None = None
    for line in reversed(evidence.log):
        if said := _LAST_LINE.fullmatch(line):
            event = ExceptionRaised(kind=said["kind"], message=said["message"] or "")
            verdict = _of_line(_class_of(event, evidence), line, evidence)
            if verdict.cause != "communication":
                return verdict._replace(error=text_of(event))
            lost = lost or verdict._replace(error=text_of(event))
    return lost or _by_rules(evidence)


def _by_rules(evidence: Evidence) -> Verdict | None:
    for line in reversed(evidence.log):
        for rule in RULES:
            if rule.sign == LOG and re.search(rule.pattern, line):
                return _of_line(rule.cause, line, evidence)
    return None


def _by_ending(evidence: Evidence, patterns: Sequence[Pattern]) -> Verdict:
    """Nobody said a word: how it ended, and what is known beside that."""
    number = _signal_of(evidence)
    if evidence.code == 75:
        text = "exit code 75: it asks to be run again"
        return Verdict("preempted", text, "preempted", step=evidence.step)
    if number == SIGTERM or evidence.stopped_by:
        by = signal_name(evidence.stopped_by or SIGTERM)
        text = f"{ending(evidence)}: {by} reached it from outside, the supervisor sent none"
        return Verdict("preempted", text, "preempted", step=evidence.step)
    if evidence.infinite:
        text = f"{ending(evidence)}; its last scalars: {evidence.infinite}"
        return Verdict("numeric", text, "numeric:scalars", step=evidence.step)
    if number is not None:
        fingerprint = f"crash:{signal_name(number)}"
        text = f"{ending(evidence)}{_what_is_known(number, evidence)}"
        return Verdict("crash", text, fingerprint, step=evidence.step)
    text = f"{ending(evidence)}, and no rank said why{_last_line(evidence)}"
    return Verdict("code", text, f"code:exit {evidence.code}", step=evidence.step)


# --- parts of the answer ------------------------------------------------------------------------


def _class_of(event: ExceptionRaised, evidence: Evidence) -> str:
    text, names = text_of(event), [event.kind, *event.bases]
    for rule in RULES:
        if rule.sign == ERROR:
            fits = any(_is(rule.pattern, name) for name in names)
        elif rule.sign == LOG:
            continue
        else:
            applies = {TEXT: True, FETCHED: event.fetching, FINITE: bool(evidence.infinite)}
            fits = applies[rule.sign] and re.search(rule.pattern, text) is not None
        if fits:
            return rule.cause
    return "code"


def _is(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name.removeprefix("builtins.")) is not None


def _of_exception(cause: str, raised: Raised, evidence: Evidence) -> Verdict:
    event = raised.event
    kind = event.kind.removeprefix("builtins.")
    where = f"{event.file}:{event.line}" if event.file else ""
    on = f" on rank {raised.rank}" if raised.rank is not None else ""
    parts = [(shortened(text_of(event)) or "an exception without a name") + on]
    if where:
        parts.append(f"in {event.function} ({where})" if event.function else f"in {where}")
    if raised.rank is not None:
        parts.append(f"after step {event.step}" if event.step else "before the first step")
    if event.fetching:
        parts.append("while fetching the next item")
    sentence = ", ".join(parts)
    if cause == "communication" and evidence.silent:
        sentence += f"; {ranks(evidence.silent)} ended without a word"
    if cause == "numeric" and evidence.infinite:
        sentence += f"; its last scalars: {evidence.infinite}"
    place = f"{event.file.rpartition('/')[2]}:{event.line}" if event.file else _plain(event.message)
    step = event.step if raised.rank is not None else evidence.step
    return Verdict(
        cause, sentence, f"{cause}:{kind}@{place}", text_of(event), (event.kind, *event.bases), step
    )


def _of_line(cause: str, line: str, evidence: Evidence) -> Verdict:
    sentence = f"{ending(evidence)}; its output says: {shortened(line)}"
    return Verdict(cause, sentence, f"{cause}:{_plain(line)}", line.strip(), (), evidence.step)


def _what_is_known(number: int, evidence: Evidence) -> str:
    """An opaque `-9` reaches nobody alone."""
    if number != SIGKILL:
        return _last_line(evidence)
    known = ["nobody here asked for it"]
    memory = evidence.memory
    if memory.kills == 0 and memory.elsewhere in (0, None):
        known.append("the kernel's OOM killer ended nothing")
    elif memory.kills is None and memory.elsewhere is None:
        known.append("whether the OOM killer ran cannot be read here")
    known.append(f"it had completed step {evidence.step}" if evidence.step else "no step was done")
    return "; " + ", ".join(known) + _peak(memory) + _last_line(evidence)


def _peak(memory: Memory) -> str:
    if not memory.peak:
        return ""
    room = memory.limit if memory.limit is not None else memory.total
    of = f" of {size(room)}" if room else ""
    return f", its largest process held up to {size(memory.peak)}{of}"


def _last_line(evidence: Evidence) -> str:
    said = next((line for line in reversed(evidence.log) if line.strip()), "")
    return f"; its last line of output: {shortened(said)}" if said else ""


def _reads_as_killed(evidence: Evidence) -> bool:
    """Whether some process of it was killed, as far as its end or its words tell."""
    if _signal_of(evidence) == SIGKILL:
        return True
    events = [raised.event for raised in evidence.raised]
    if any(re.search(r"signal: Killed|SIGKILL", event.message) for event in events):
        return True
    lost = all(_class_of(event, evidence) == "communication" for event in events)
    return bool(evidence.silent) and evidence.code == 1 and lost


def _signal_of(evidence: Evidence) -> int | None:
    """The signal that ended it; a shell in between makes it an exit code."""
    if evidence.signal is not None:
        return evidence.signal
    code = evidence.code or 0
    return code - 128 if code - 128 in SIGNALS else None


def _plain(text: str) -> str:
    """A text without what differs each time: numbers, addresses."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", text.strip().partition("\n")[0])[:80]
