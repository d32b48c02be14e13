"""The status page in a real browser: a run that is killed while the page is open.

WALRECOVER_SCREENSHOTS names a folder to keep the pictures in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support import readmodels
from tests.support.browser import Browser, chromium
from tests.support.hostile import served
from tests.support.protocol import Launch
from tests.support.readmodels import address
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.processes import identity
from walrecover.rundir import RunDir
from walrecover.state import StreamKey

pytestmark = pytest.mark.system

AXE = Path(__file__).parent / "axe" / "axe.min.js"
ROOT = Path(__file__).parents[2]
DESKTOP, PHONE = (1280, 1400), (390, 1400)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path / "profile") as found:
        found.look(*DESKTOP, dark=False)
        yield found


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("WALRECOVER_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def of_curve(browser: Browser, what: str) -> int:
    """What the script says of the curve that it has drawn."""
    script = "return document.getElementById('curve')?.dataset[arguments[0]] ?? 0"
    return int(browser.run(script, what))


def told_flow(browser: Browser) -> str:
    return str(browser.run("return document.querySelector('svg.flow desc').textContent"))


def offences(browser: Browser) -> list[str]:
    """What axe-core has against the page, in words."""
    browser.run(AXE.read_text())
    found = browser.run_async(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document).then((it) => done(it.violations.map("
        "(v) => v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 160)).join(' | '))));"
    )
    assert isinstance(found, list)
    return found


def take_pictures(browser: Browser, pictures: Path, name: str) -> None:
    """At both widths, light and dark; nothing may be wider than the screen."""
    for size, (width, height) in {"desktop": DESKTOP, "phone": PHONE}.items():
        for dark in (False, True):
            browser.look(width, height, dark=dark)
            narrow = "return document.documentElement.scrollWidth <= arguments[0]"
            wait_until(lambda narrow=narrow, width=width: browser.run(narrow, width))
            browser.screenshot(pictures / f"{name}-{size}-{'dark' if dark else 'light'}.png")
            assert offences(browser) == [], f"{size}, {'dark' if dark else 'light'}"
    browser.look(*DESKTOP, dark=False)


def fail(run: RunDir, launch: Launch, evidence: str) -> None:
    """What a supervisor notes when its worker was killed."""
    entry = launch.entry
    with readmodels.open_stream(run, StreamKey(entry.number, entry.nonce, "supervisor")) as notes:
        now = time.time()
        notes.append(ev.WorkerExited(at=now, pid=1, cause="crash", evidence=evidence, seen=now))
        notes.append(ev.RestartDecided(at=now, action="restart", delay=0.5, reason="again"))


def test_a_run_that_dies_is_followed_by_an_open_page(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    root = tmp_path / ".walrecover"
    run = RunDir(root, "live")
    with Launch.begin(run, identity()) as first:
        first.train(6)
        first.save()
        process = readmodels.daemon("serve", root)
        try:
            url = address(process)
            wait_until(lambda: httpx.get(f"{url}readyz").status_code == 200)
            browser.open(url)
            assert "live" in browser.text("#part-runs")
            browser.run("document.querySelector('#part-runs a').click()")
            wait_until(lambda: of_curve(browser, "points") == 6)
            assert "running" in browser.text("#part-glance")

            first.train(5)  # live steps
            wait_until(lambda: of_curve(browser, "points") == 11)
            wait_until(lambda: "11" in browser.text("#part-glance"))
            torn = first.save()
            first.train(3)
            (run.snapshots / torn.snapshot.name / "rank-00000.msgpack").write_bytes(b"rot")
            fail(run, first, "<b>killed</b>")
            with Launch.begin(run, identity()) as second:
                second.train(2)
                wait_until(lambda: "rejected" in browser.text("#part-recovery"))
            # What the browser shows comes piece by piece, each when it has heard of it.
            wait_until(lambda: of_curve(browser, "crashes") and of_curve(browser, "shaded") == 1)
            wait_until(lambda: "crash at step 14" in browser.text("#curve-told"))
            wait_until(lambda: "made again: 7 to 14" in browser.text("#curve-told"))
            wait_until(lambda: "failed: crash at step 14: <b>killed</b>" in told_flow(browser))
            wait_until(lambda: "checked: step 11 rejected: " in told_flow(browser))
            browser.run("document.getElementById('h-snapshots').scrollIntoView()")
            wait_until(lambda: "rejected" in browser.text("#part-snapshots"))
            browser.run("document.getElementById('h-data')?.scrollIntoView(); scrollTo(0, 0)")
            wait_until(lambda: "being audited" not in browser.text("#part-ledger"), pause=0.1)
            take_pictures(browser, pictures, "run")
            heard = browser.text("#part-glance")  # nothing happens any more, and that is shown
            wait_until(lambda: browser.text("#part-glance") != heard, pause=0.1)
            browser.open(url)
            take_pictures(browser, pictures, "runs")
            assert browser.complaints() == []
            own = ("chrome:", "chrome-untrusted:", "data:")  # of the browser's first, empty tab
            asked = [each for each in browser.requests() if not each.startswith(own)]
            assert {urlsplit(each).netloc for each in asked} == {urlsplit(url).netloc}
        finally:
            process.terminate()
            process.communicate(timeout=60)


def test_the_page_is_used_by_keyboard(tmp_path: Path, browser: Browser) -> None:
    root = tmp_path / ".walrecover"
    with Launch.begin(RunDir(root, "one")) as launch:
        launch.train(3)
    process = readmodels.daemon("serve", root)
    try:
        url = address(process)
        wait_until(lambda: httpx.get(f"{url}readyz").status_code == 200)
        browser.open(url)
        wait_until(lambda: browser.run(LISTENS))
        seen = []
        for _ in range(4):
            browser.press(TAB)
            seen.append(browser.run("return document.activeElement.innerText.trim().slice(0, 20)"))
        assert seen[0] == "Skip to the content"
        assert "one" in seen
        browser.run("document.querySelector('#part-runs a').focus()")
        browser.press(ENTER)
        wait_until(lambda: browser.run("return document.querySelector('h1').innerText") == "one")
        wait_until(lambda: browser.run(LISTENS))
        for _ in range(20):
            browser.press(TAB)
            if browser.run("return document.activeElement.getAttribute('role')") == "region":
                break
        assert browser.run("return document.activeElement.matches('.wide:focus-visible')")
        count = browser.run(REFRESH)
        wait_until(lambda: browser.run("return window.settled") >= count)
        assert browser.run("return document.activeElement.matches('.wide:focus-visible')")
        wait_until(lambda: "being audited" not in browser.text("#part-ledger"), pause=0.1)
    finally:
        process.terminate()
        process.communicate(timeout=60)


LISTENS = "return document.readyState === 'complete'"
REFRESH = """
    window.settled = 0;
    document.addEventListener("htmx:after:swap", () => window.settled++);
    const parts = document.querySelectorAll(".live");
    for (const part of parts) htmx.trigger(part, "stirred");
    return parts.length;
"""
TAB, ENTER = "\ue004", "\ue007"


def test_a_hostile_runs_page_runs_no_script(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    with served(tmp_path) as site:
        for path in ("runs/evil", ""):
            browser.open(f"{site.page.base_url}{path}")
            if path == "runs/evil":
                wait_until(lambda: of_curve(browser, "points") == 9)
                wait_until(lambda: "being audited" not in browser.text("#part-ledger"), pause=0.1)
                assert "<script>window.pwned=1</script>" in browser.text("#part-stacks pre")
                assert "here it hangs" in browser.text("#part-stacks pre")
                assert "\u202e" not in browser.text("main")
                take_pictures(browser, pictures, "hostile")
            assert browser.run("return typeof window.pwned") == "undefined"
            assert browser.run("return document.querySelectorAll('img').length") == 0
        # A script that were there would be refused by the policy, and that would be said here.
        assert browser.complaints() == []


@pytest.mark.slow
def test_a_rehearsed_runs_page_shows_its_kill(
    tmp_path: Path, browser: Browser, pictures: Path
) -> None:
    script = [sys.executable, str(ROOT / "examples" / "char_gpt.py")]
    small = ["--epochs", "1", "--steps-per-epoch", "40", "--layers", "1", "--width", "16"]
    done = subprocess.run(
        [sys.executable, "-m", "walrecover.cli", "rehearse", "--kills", "1", "--seed", "1",
         "--every", "2steps", "--keep", str(tmp_path / "kept"), "--", *script, *small],
        capture_output=True, text=True, timeout=400, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    process = readmodels.daemon("serve", tmp_path / "kept" / "killed")
    try:
        url = address(process)
        wait_until(lambda: httpx.get(f"{url}readyz").status_code == 200)
        browser.open(f"{url}runs/rehearsal")
        wait_until(lambda: of_curve(browser, "points") == 40)
        assert "finished" in browser.text("#part-glance")
        assert "SIGKILL" in told_flow(browser)
        assert "resume verified to step" in told_flow(browser)
        wait_until(lambda: "exactly once" in browser.text("#part-ledger"), pause=0.1)
        take_pictures(browser, pictures, "rehearsed")
        assert browser.complaints() == []
    finally:
        process.terminate()
        process.communicate(timeout=60)
