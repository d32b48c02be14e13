"""The status page over HTTP: what it shows, and every attack that was tried on it."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support import readmodels
from tests.support.protocol import Launch, holder
from tests.support.readmodels import address, run_daemon
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.processes import identity
from walrecover.rundir import RunDir

HOSTILE = "</code><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\x1b[31m\u2028"
PATHS = (
    "/",
    "/part/runs",
    "/runs/evil",
    "/runs/evil/curve.json",
    *(f"/runs/evil/part/{name}" for name in (
        "glance", "recovery", "attempts", "snapshots", "time", "ledger", "events"
    )),
    "/metrics",
    "/livez",
    "/readyz",
    *(f"/static/{name}" for name in ("page.js", "page.css", "htmx.min.js", "uplot.min.js")),
)  # fmt: skip


def hostile(root: Path) -> RunDir:
    """A run whose every text is an attack, that failed and recovered."""
    run = RunDir(root, "evil")
    with Launch.begin(run, world=1) as first:
        first.train(4)
        first.save()
        first.train(3)
        first.journals[0].append(
            ev.ExceptionRaised(at=time.time(), kind=HOSTILE, message=HOSTILE, step=7)
        )
        entry = first.entry
        notes = readmodels.open_stream(
            run, readmodels.StreamKey(entry.number, entry.nonce, "supervisor")
        )
        notes.append(
            ev.WorkerExited(
                at=time.time(), pid=1, cause="exception", evidence=HOSTILE, artefacts=(HOSTILE,)
            )
        )
        notes.append(ev.RestartDecided(action="restart", delay=1.5, reason=HOSTILE))
        notes.close()
    with Launch.begin(run, holder(2), world=1) as second:
        second.train(5)
        second.journals[0].append(ev.ResumeDiverged(step=5, what=HOSTILE, before="1", after="2"))
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("page") / ".walrecover"
    hostile(root)
    process = readmodels.daemon("serve", root)
    try:
        with httpx.Client(base_url=address(process), timeout=30) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            wait_until(lambda: "being audited" not in client.get("/runs/evil").text, pause=0.1)
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=60)


class Tags(HTMLParser):
    """The tags of a page, and whether its sections hang together."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path") or (self.open and self.open[-1] == tag):
            assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# --- what it shows --------------------------------------------------------------------------------


def test_all_runs_at_a_glance(page: httpx.Client) -> None:
    text = page.get("/").text
    assert 'href="/runs/evil?id=1"' in text
    for part in ("ended", "step 4", "not read back yet", "exception"):
        assert part in text


def test_a_runs_page_has_its_sections_and_they_are_its_parts(page: httpx.Client) -> None:
    answer = page.get("/runs/evil")
    tags = Tags(answer.text)
    assert not tags.open
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", answer.text)
    assert headings == [
        "At a glance", "Loss", "Recovery", "Attempts", "Snapshots", "Time", "Data", "Events",
    ]  # fmt: skip
    parts = [each["data-hx-get"] for each in tags.of("div") if "data-hx-get" in each]
    assert len(parts) == 7
    for path in parts:
        assert path is not None
        assert page.get(path).status_code == 200
    told = answer.text
    for name in ("failed", "snapshot read", "checked", "rescheduled", "restored", "diverged",
                 "training"):  # fmt: skip
        assert f'class="name">{name}</text>' in told
    assert "step 4, 3 steps are done again" in told or "step 4" in told


def test_the_curve_marks_the_crash_and_shades_what_does_not_count(page: httpx.Client) -> None:
    curve = page.get("/runs/evil/curve.json").json()
    assert curve["step"] == list(range(1, 10))
    assert curve["mean"] == [2.0**-step for step in range(1, 10)]
    assert curve["gone"] == [None] * 4 + [2.0**-step for step in (5, 6, 7)] + [None] * 2
    assert curve["shaded"] == [{"from": 5, "to": 7, "attempt": 1}]
    assert curve["crashes"] == [{"step": 7, "cause": "exception", "attempt": 1}]


def test_a_thing_to_read_is_there_for_each_thing_to_see(page: httpx.Client) -> None:
    tags = Tags(page.get("/runs/evil").text)
    (html,) = tags.of("html")
    assert html["lang"] == "en"
    drawings = tags.of("svg")
    assert drawings
    assert all(each["role"] == "img" for each in drawings)
    assert len(tags.of("title")) > len(drawings)
    assert len(tags.of("caption")) == len(tags.of("table"))
    assert all(each.get("scope") == "col" for each in tags.of("th"))
    assert all(each.get("aria-label") for each in tags.of("div") if each.get("role") == "region")
    assert len(tags.of("h1")) == 1
    assert {each.get("href") for each in tags.of("a")} >= {"#content"}


def test_metrics_are_prometheus(page: httpx.Client) -> None:
    text = page.get("/metrics").text
    for name in re.findall(r"`(walrecover_\w+)`", readmodels.spec("19-daemon.md")):
        assert f"# TYPE {name}" in text, name
    labels = re.search(r"walrecover_run_step\{(.*)\} 9\.0", text)
    assert labels and 'run="evil"' in labels[1]
    assert re.search(r'walrecover_run_restarts_total\{cause="exception",.*\} 1\.0', text)
    assert re.search(r"walrecover_run_lost_steps\{.*\} 3\.0", text)


def test_an_open_page_hears_of_new_rows(tmp_path: Path) -> None:
    root = tmp_path / ".walrecover"
    with Launch.begin(RunDir(root, "live"), identity()) as launch:
        launch.train(2)
        process = readmodels.daemon("serve", root)
        try:
            url = address(process)
            wait_until(lambda: httpx.get(f"{url}readyz").status_code == 200)
            with httpx.stream("GET", f"{url}live", timeout=30) as stream:
                lines = stream.iter_lines()
                next(lines)
                launch.train(3)
                assert "event: changed" in (line for line in lines)
                assert next(lines) == "data: 1"
            text = wait_until(lambda: httpx.get(f"{url}part/runs").text)
            assert "running" in text
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_its_guards_and_nothing_of_an_attack(
    page: httpx.Client, path: str
) -> None:
    answer = page.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    if not path.startswith("/static"):
        text = answer.text
        assert "\x00" not in text and "\x1b" not in text
    if "html" in answer.headers["content-type"]:
        tags = Tags(answer.text)
        assert not [
            each for each in tags.of("script") if not (each.get("src") or "").startswith("/")
        ]
        assert "<script>alert" not in answer.text
        assert not tags.of("img")
        for _, attributes in tags.found:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert not [v for v in attributes.values() if v and re.match(r"(https?:)?//", v)]


@pytest.mark.parametrize("target", [
    "/static/../site.py", "/static/..%2fsite.py", "/static/%2e%2e/site.py", "/static/....//site.py",
    "/static//etc/passwd", "/runs/../../etc/passwd", "/runs/..%2f..%2fetc%2fpasswd",
    "/runs/evil%00", "/runs/evil'--", "/runs/evil%22", "/runs/%3Cscript%3E", "/runs/evil/part/..",
    "/runs/evil/part/nope", "/runs/evil/part/glance%00", "/static/page.js%00.css", "/nope",
    "/runs/" + "a" * 4000, "/runs/evil;id=2", "/.walrecover/daemon/read-model.db", "/%",
])  # fmt: skip
def test_no_path_leads_anywhere_else(page: httpx.Client, target: str) -> None:
    status, body = raw(page, f"GET {target} HTTP/1.1")
    assert status == 404
    assert body == b"there is no such page\n"


@pytest.mark.parametrize("query", [
    "id=1%20OR%201=1", "id=1;DROP%20TABLE%20runs", "id='", "id=-1", "id=99999999999999999999",
    "id=%00", "id=1&id=2", "id=\u0661".encode().decode("latin-1"), "x=" + "y" * 900,
])  # fmt: skip
def test_no_query_is_more_than_a_number(page: httpx.Client, query: str) -> None:
    status, _ = raw(page, f"GET /runs/evil?{query} HTTP/1.1")
    assert status in (200, 400, 404)
    assert "evil" in page.get("/").text


def test_a_huge_query_is_refused(page: httpx.Client) -> None:
    assert raw(page, f"GET /?{'x' * 1025} HTTP/1.1")[0] == 414
    assert raw(page, f"GET /?{'x' * 200_000} HTTP/1.1")[0] in (400, 414, 431)
    assert raw(page, "GET / HTTP/1.1", extra="X: " + "y" * 100_000)[0] in (400, 431)
    assert page.get("/livez").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NOPE"])
def test_nothing_but_get_and_head_is_answered(page: httpx.Client, method: str) -> None:
    assert raw(page, f"{method} / HTTP/1.1")[0] == 405
    assert page.head("/").status_code in (200, 405)


def test_no_get_changes_the_runs(page: httpx.Client, tmp_path: Path) -> None:
    """Every page is asked for, and every file of the run is as it was, time and all."""
    text = page.get("/runs/evil").text
    root = re.search(r'class="root">in ([^<]+)<', text)
    assert root
    runs = Path(root[1]) / "runs"

    def seen() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in runs.rglob("*")
            if path.is_file() and path.name != "lock.mdb"  # LMDB's reader slots
        }

    before = seen()
    for path in PATHS:
        page.get(path)
    assert seen() == before


def test_another_sites_name_is_not_answered(page: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.x"):
        assert raw(page, "GET / HTTP/1.1", host=host)[0] in (400, 421)
    for host in ("localhost:1", "127.0.0.1", "[::1]:8765"):
        assert raw(page, "GET / HTTP/1.1", host=host)[0] == 200


def test_a_slow_client_holds_nobody_up(page: httpx.Client) -> None:
    parts = urlsplit(str(page.base_url))
    slow = [socket.create_connection((parts.hostname, parts.port)) for _ in range(50)]
    try:
        for each in slow:
            each.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert page.get("/").status_code == 200
    finally:
        for each in slow:
            each.close()


def raw(
    page: httpx.Client, request: str, host: str | None = None, extra: str = ""
) -> tuple[int, bytes]:
    """What is answered to these very bytes: a client would tidy them up."""
    parts = urlsplit(str(page.base_url))
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as to:
        name = f"localhost:{parts.port}" if host is None else host
        more = f"{extra}\r\n" if extra else ""
        sent = f"{request}\r\nHost: {name}\r\n{more}Connection: close\r\n\r\n".encode("latin-1")
        try:
            to.sendall(sent)
            answer = http.client.HTTPResponse(to)
            answer.begin()
            return answer.status, answer.read()
        except (ConnectionError, http.client.BadStatusLine):
            return 400, b""


# --- who may ask ----------------------------------------------------------------------------------


def test_any_other_address_needs_a_token(tmp_path: Path) -> None:
    root = tmp_path / ".walrecover"
    root.mkdir()
    code, _, said = run_daemon("serve", root, "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "0.0.0.0 can be reached from other machines: give --token-file, or --insecure" in said
    short = tmp_path / "short"
    short.write_text("secret\n")
    code, _, said = run_daemon("serve", root, "--host", "0.0.0.0", "--token-file", short)
    assert code == 2
    assert "has 6 characters, and 16 are the least" in said


def test_the_token_is_asked_for_on_every_path(tmp_path: Path) -> None:
    root, token = tmp_path / ".walrecover", tmp_path / "token"
    root.mkdir()
    token.write_text("correct horse battery\n")
    process = readmodels.daemon("serve", root, "--host", "0.0.0.0", "--token-file", token)
    try:
        url = address(process).replace("0.0.0.0", "127.0.0.1")
        for path in ("", "live", "metrics", "livez", "static/page.js", "nope"):
            answer = httpx.get(f"{url}{path}")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        for wrong in ("correct horse batterx", "x", "é"):
            headers = {b"authorization": b"Bearer " + wrong.encode()}
            assert httpx.get(url, headers=headers).status_code == 401
        assert httpx.get(url, headers={"authorization": "Basic !!!"}).status_code == 401
        known = "correct horse battery"
        assert httpx.get(url, headers={"authorization": f"Bearer {known}"}).status_code == 200
        assert httpx.get(url, auth=("anybody", known)).status_code == 200
        assert httpx.get(url, auth=("", "wrong")).status_code == 401
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_insecure_is_said_aloud(tmp_path: Path) -> None:
    root = tmp_path / ".walrecover"
    root.mkdir()
    process = readmodels.daemon("serve", root, "--host", "0.0.0.0", "--insecure")
    address(process)
    process.terminate()
    assert "everybody who reaches the page may read all of these runs" in readmodels.ended(process)


def test_a_port_in_use_is_bad_input(tmp_path: Path) -> None:
    root = tmp_path / ".walrecover"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, said = run_daemon("serve", root, "--port", port)
    assert code == 2
    assert (
        f"127.0.0.1:{port} cannot be served (Address already in use): give another --port" in said
    )
