"""The daemon beside runs that live: how soon an event is seen on an open page, what watching costs
a training, and what is left of it at rest.

    python -m tests.bench live

The page is open in a headless Chromium (`make tools`), which takes its share of the processors.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import torch
from msgspec.structs import replace

from tests.bench.bench_arena import Steps
from tests.bench.bench_journal import small
from tests.bench.measure import Row, at_most, duration, sample, show
from tests.support import readmodels
from tests.support.browser import Browser, chromium
from tests.support.protocol import Launch
from tests.support.readmodels import address
from tests.support.waiting import wait_until
from walrecover.rundir import RunDir

RUNS = 50
PER_SECOND = 20
"""Steps of each run."""
WATCHED_SECONDS = 30.0
RESTING_SECONDS = 60.0
SETTLING_SECONDS = 20.0
PAIRS = 61
STEPS = 10
"""Of a training, in a block with the daemon and in one without."""

NOTE = """
    window.seen = [];
    const look = () => {
        const place = document.querySelector("#part-glance dl > div:nth-child(2) dd");
        const step = Number(place.innerText.replace(/\\D/g, ""));
        if (step !== seen.at(-1)?.[0])
            seen.push([step, (performance.timeOrigin + performance.now()) / 1000]);
        requestAnimationFrame(look);
    };
    look();
"""
"""What is shown, frame by frame: [step, time]."""


@contextmanager
def serving(root: Path, *options: str) -> Iterator[tuple[psutil.Process, str]]:
    """A daemon that has caught up, and the address of its page."""
    process = readmodels.daemon("serve", root, *options)
    try:
        url = address(process)
        wait_until(lambda: httpx.get(f"{url}readyz").status_code == 200)
        yield psutil.Process(process.pid), url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def family(daemon: psutil.Process) -> list[psutil.Process]:
    return [daemon, *daemon.children(recursive=True)]


def processor_seconds(daemon: psutil.Process) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in family(daemon))


class Training:
    """All runs step at their pace, spread over it, until the block ends."""

    def __init__(self, root: Path) -> None:
        self.launches = [Launch.begin(RunDir(root, f"run-{n:02}"), world=1) for n in range(RUNS)]
        self.appended: list[float] = []
        """When each step of the first run was; step 1 first."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._train)

    def __enter__(self) -> Training:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for launch in self.launches:
            launch.close()

    def _train(self) -> None:
        began, step = time.monotonic(), 0
        while not self._over.is_set():
            step += 1
            for number, launch in enumerate(self.launches):
                due = began + (step + number / RUNS) / PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
                if number == 0:
                    self.appended.append(time.time())
                launch.journals[0].append(replace(small(step), at=time.time()))


def latencies(appended: list[float], seen: list[tuple[int, float]]) -> list[float]:
    """Of each step, until one as late was shown."""
    found: list[float] = []
    shown = iter(seen)
    step, at = next(shown)
    for number, when in enumerate(appended, start=1):
        while step < number:
            after = next(shown, None)
            if after is None:
                return found
            step, at = after
        if when > seen[0][1]:  # the page was open
            found.append(at - when)
    return found


def watched(folder: Path, browser: Browser) -> list[Row]:
    root = folder / ".walrecover"
    with Training(root) as training, serving(root) as (daemon, url):
        browser.open(f"{url}runs/run-00")
        browser.run(NOTE)
        used, began = processor_seconds(daemon), time.monotonic()
        time.sleep(WATCHED_SECONDS)
        busy = (processor_seconds(daemon) - used) / (time.monotonic() - began)
        seen = browser.run("return window.seen")
        browser.open("about:blank")
    found = sorted(latencies(training.appended, seen))
    high = found[int(0.95 * len(found))]
    return [
        Row(
            f"an event appended, until it is seen on a page, {RUNS} runs: 95th percentile",
            duration(high), "", None, "≤ 300 ms", high <= 0.3,
        ),
        Row("… median", duration(found[len(found) // 2]), "", None, "", None),
        Row("… the daemon's share of a core", f"{busy:.1%}", "", None, "", None),
        *resting(root),
    ]  # fmt: skip


def resting(root: Path) -> list[Row]:
    """Nothing happens any more."""
    with serving(root) as (daemon, _):
        time.sleep(SETTLING_SECONDS)
        used, began = processor_seconds(daemon), time.monotonic()
        time.sleep(RESTING_SECONDS)
        busy = (processor_seconds(daemon) - used) / (time.monotonic() - began)
        memory = [each.memory_full_info() for each in family(daemon)]
    own = sum(each.pss for each in memory)
    return [
        Row("at rest: share of a core", f"{busy:.2%}", "", None, "< 1%", busy < 0.01),
        Row(
            "… memory, each page once", f"{own / 1e6:.0f} MB", "", None, "≤ 120 MB", own <= 120e6
        ),
        Row(
            "… and where each process counts what it shares",
            f"{sum(each.rss for each in memory) / 1e6:.0f} MB", "", None, "", None,
        ),
    ]  # fmt: skip


def beside(folder: Path) -> list[Row]:
    """Steps that keep all processors busy and journal themselves, in turns beside the daemon that
    follows them, and, while it is stopped, where it does not look: else it had to catch up."""
    root = folder / ".walrecover"
    steps, with_it, without = Steps(), list[float](), list[float]()
    with ExitStack() as stack:
        followed = stack.enter_context(Launch.begin(RunDir(root, "run"), world=1))
        apart = stack.enter_context(Launch.begin(RunDir(folder / "apart", "run"), world=1))
        daemon, _ = stack.enter_context(serving(root))

        def block(launch: Launch) -> float:
            taken = 0.0
            for _ in range(STEPS):
                launch.step += 1
                launch.journals[0].append(small(launch.step))
                taken += steps()
            return taken

        block(followed)
        for pair in range(PAIRS):
            order = (signal.SIGSTOP, signal.SIGCONT)
            for sign in order if pair % 2 else reversed(order):
                for each in family(daemon):
                    each.send_signal(sign)
                if sign == signal.SIGCONT:
                    with_it.append(block(followed))
                else:
                    without.append(block(apart))
        for each in family(daemon):
            each.resume()
    ratios = sample([one / other for one, other in zip(with_it, without, strict=True)])
    row = at_most(
        f"{STEPS} training steps beside a daemon, paired", sample(with_it), sample(without), 1.01
    )
    told = f"{ratios.low:.3f}, {ratios.high:.3f}"
    return [
        row._replace(ratio=ratios.median, holds=ratios.median <= 1.01),
        Row("… quartiles of the ratio", told, "", None, "", None),
    ]


def rows() -> list[Row]:
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with chromium(folder / "profile") as browser:
            found = watched(folder / "many", browser)
        return [*found, *beside(folder / "one")]


if __name__ == "__main__":
    show("live", rows())
