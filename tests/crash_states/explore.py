"""Draws distinct crash states, spread over the rows of a crash table, and has them checked.

Owns: which operation is drawn from next, what counts as new, and the report. Legal states come
from `model` and `choices`, running the checks from `pool`.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from . import ops
from .choices import NEW, Choice, FileState, Point
from .model import Dirty, History, Order
from .pool import Check, Finding, run
from .rebuild import Builder, Tree

Rows = Callable[[ops.Op], str]
_FIRST = 6
_PATIENCE = 150
_Drawing = tuple[Point, Iterator[Choice | None]]


@dataclass(frozen=True, slots=True)
class State:
    """A crash state: its place, its tree, and what had been acknowledged by then."""

    choice: Choice
    row: str
    digest: str
    acks: tuple[str, ...]
    tree: Tree


class Exploration:
    """Iterates over states whose tree, with the acknowledgements before it, is new.

    Every operation gives its first few states; then always the row with the fewest distinct
    trees is drawn from, until no row gives anything new. The same seed draws the same states.
    """

    def __init__(self, history: History, rows: Rows = ops.default_row, seed: int = 0) -> None:
        self.rows: dict[str, set[str]] = {}
        self.trees: set[str] = set()
        self._history, self._builder = history, Builder(history)
        self._seen: set[tuple[str, int]] = set()
        self._row_of = rows
        self._seed = seed

    def __iter__(self) -> Iterator[State]:
        waiting: dict[str, deque[_Drawing]] = {}
        places = list(range(self._history.start, len(self._history.ops)))
        random.Random(self._seed).shuffle(places)
        for at in places:
            row = self._row_of(self._history.ops[at])
            self.rows.setdefault(row, set())
            point = Point(self._history, at)
            choices = point.choices(random.Random(f"{self._seed}:{at}"))
            for choice in islice(choices, _FIRST):
                yield from self._new(choice, row)
            waiting.setdefault(row, deque()).append((point, choices))
        yield from self._even_out(waiting)

    def _even_out(self, waiting: dict[str, deque[_Drawing]]) -> Iterator[State]:
        fewest = [(len(self.rows[row]), row) for row in waiting]
        heapq.heapify(fewest)
        while fewest:
            _, row = heapq.heappop(fewest)
            drawing = waiting[row].popleft()
            if (yield from self._something_new(drawing, row)):
                waiting[row].append(drawing)
            if waiting[row]:
                heapq.heappush(fewest, (len(self.rows[row]), row))

    def _something_new(self, drawing: _Drawing, row: str) -> Generator[State, None, bool]:
        """Draws until the row or the whole has gained; False once many draws brought nothing."""
        (point, choices), misses = drawing, 0
        before = len(self.rows[row]), len(self._seen)
        for choice in choices:
            yield from self._new(choice, row)
            if (len(self.rows[row]), len(self._seen)) != before:
                return True
            misses += point.drawing
            if misses > _PATIENCE:
                break
        return False

    def _new(self, choice: Choice | None, row: str) -> Iterator[State]:
        if choice is None:
            return
        tree = self._builder.tree(choice)
        digest = tree.digest()
        self.rows[row].add(digest)
        self.trees.add(digest)
        key = digest, self._history.heard(choice.at)
        if key not in self._seen:
            self._seen.add(key)
            yield State(choice, row, digest, self._history.acks(choice.at), tree)


@dataclass(frozen=True, slots=True)
class Violation:
    """A state that the check refused, and how to get it back: `rebuild(ops, choice, into)`."""

    message: str
    row: str
    op: str
    choice: Choice
    acks: tuple[str, ...]
    digest: str
    missing: list[str]

    def __str__(self) -> str:
        lines = "".join(f"\n    {line}" for line in self.missing[:20])
        how = "killed" if self.choice.kill else "power cut"
        acks = f"{len(self.acks)} acks, last {self.acks[-1]!r}" if self.acks else "no acks"
        return f"{self.message}\n  {how} at {self.choice.at}: {self.op} ({acks}){lines}"


@dataclass(slots=True)
class Report:
    """`checked` states, of which `distinct` trees; `rows`: distinct trees of each row."""

    checked: int = 0
    distinct: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    exhausted: bool = True
    seconds: float = 0.0

    def __str__(self) -> str:
        width = max((len(row) for row in self.rows), default=3)
        table = "".join(f"{row:{width}} {count:7}\n" for row, count in sorted(self.rows.items()))
        total = f"{self.checked} states, {self.distinct} distinct trees in {self.seconds:.1f} s"
        return f"{table}{total}, {len(self.violations)} violations"


def explore(
    operations: Sequence[ops.Op],
    check: Check,
    *,
    seed: int = 0,
    budget: int = 2000,
    order: Order = "any",
    rows: Rows = ops.default_row,
    workers: int = 0,
    stop_after: int | None = None,
    limit: float = 60.0,
    scratch: Path | None = None,
) -> Report:
    """Checks up to `budget` states. `check(directory, acks)` returns None or what is wrong.

    The check may change the directory, which is its own. With `workers` it runs in forked
    processes, and one that dies or takes longer than `limit` seconds is a violation. `rows`
    names the row of the crash table for the operation that the crash falls on, an `End` after
    all others. `stop_after` ends it after so many violations. `scratch` defaults to memory.
    """
    history = History(operations, order)
    drawn, report, began = Exploration(history, rows, seed), Report(), time.monotonic()
    states = iter(drawn)
    findings = run(history, islice(states, budget), check, workers, limit, scratch)
    for finding in findings:
        report.checked += 1
        if finding.message is not None:
            report.violations.append(_violation(history, finding))
            if stop_after is not None and len(report.violations) >= stop_after:
                break
    findings.close()
    report.seconds = time.monotonic() - began
    report.distinct = len(drawn.trees)
    report.rows = {row: len(trees) for row, trees in drawn.rows.items()}
    report.exhausted = next(states, None) is None
    return report


def rebuild(operations: Sequence[ops.Op], choice: Choice, into: Path) -> None:
    """Writes a state into an empty directory, to look at it."""
    Builder(History(operations)).tree(choice).write(into)


def _violation(history: History, finding: Finding) -> Violation:
    state = finding.state
    return Violation(
        message=finding.message or "",
        row=state.row,
        op=str(history.ops[state.choice.at]),
        choice=state.choice,
        acks=state.acks,
        digest=state.digest,
        missing=list(_missing(history, state.choice)),
    )


def _missing(history: History, choice: Choice) -> Iterator[str]:
    """What the crash took away, for people."""
    if choice.kill:
        return
    names, files = history.uncertain(choice.at)
    for at in names:
        if at not in choice.names:
            yield f"missing: {history.ops[at]}"
    paths = {op.ino: op.path for op in history.ops if isinstance(op, ops.Write | ops.Create)}
    for ino, dirty in files.items():
        path, file = paths.get(ino, f"inode {ino}"), choice.files[ino]
        if file.size != dirty.sizes[NEW]:
            yield f"size of {path}: {file.size} instead of {dirty.sizes[NEW]}"
        if old := _old_pages(dirty, file):
            yield f"pages of {path} not as written: {old}"


def _old_pages(dirty: Dirty, file: FileState) -> list[int]:
    held = {page: {file.version} for page in dirty.pages}
    held |= {page: {first, other} for page, first, _, other in file.pages}
    return [page for page, versions in held.items() if versions - {NEW, len(dirty.pages[page]) - 1}]
