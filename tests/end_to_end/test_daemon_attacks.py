"""Attacks on the status page, each tried on a real daemon, whose run is made of them."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from tests.support import hostile, readmodels
from tests.support.hostile import Answer, Served, Tags, answered, connect, raw, served
from tests.support.waiting import wait_until
from walrecover_daemon.asking import Asking
from walrecover_daemon.connections import PATIENCE_SECONDS
from walrecover_daemon.guarding import HEADERS
from walrecover_daemon.keeper import Heard
from walrecover_daemon.ledgers import Ledgers
from walrecover_daemon.live import MOST_LISTENERS, Hub
from walrecover_daemon.site import STATIC, Site

SURFACE = json.loads(readmodels.spec("19-openapi.json"))
PARTS = SURFACE["paths"]["/runs/{name}/part/{part}"]["get"]["parameters"][1]["schema"]["enum"]
PATHS = (
    "/", "/part/runs", "/part/alerts", "/runs/evil", "/runs/evil/curve.json",
    *(f"/runs/evil/part/{name}" for name in PARTS),
    "/metrics", "/livez", "/readyz", *(f"/static/{name}" for name in STATIC),
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def page(site: Served) -> Iterator[httpx.Client]:
    """Whatever the test does to it, the page answers afterwards."""
    yield site.page
    assert site.page.get("/runs/evil").status_code == 200
    assert site.page.get("/livez").text == "alive\n"


def is_guarded(answer: httpx.Response) -> bool:
    return all(answer.headers.get_list(name) == [value] for name, value in HEADERS)


# --- the whole surface ----------------------------------------------------------------------------


def test_the_surface_is_what_the_specification_says(tmp_path: Path) -> None:
    app = Site(Asking(tmp_path), Hub(), Heard(), lambda: True, Ledgers()).app(None, any_host=True)
    assert {r.path for r in app.routes if isinstance(r, Route)} == SURFACE["paths"].keys()
    named = SURFACE["paths"]["/static/{name}"]["get"]["parameters"][0]["schema"]["enum"]
    assert named == list(STATIC)


@pytest.mark.parametrize("path", sorted(SURFACE["paths"].keys() - {"/live"}))
def test_whatever_is_asked_nothing_fails_and_nothing_changes(site: Served, path: str) -> None:
    """Schemathesis: what the specification allows, and what it does not."""
    surface = copy.deepcopy(SURFACE)
    surface["components"]["parameters"]["name"]["schema"] = {"enum": ["evil", "nobody"]}
    operation = schemathesis.openapi.from_dict(surface)[path]["GET"]
    checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
    before = everything(site)
    modes = schemathesis.GenerationMode
    found = set()

    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url=str(site.page.base_url))
        assert answer.status_code in (200, 400, 404, 414, 431)
        found.add(answer.status_code)
        case.validate_response(answer, checks=checks)
        kinds = answer.headers["content-type"]
        assert len(kinds) == 1
        for name, value in HEADERS:
            assert answer.headers[name] == [value]

    for mode in (modes.POSITIVE, modes.NEGATIVE):
        with contextlib.suppress(Unsatisfiable):  # no parameter that could be a wrong one
            cases = operation.as_strategy(generation_mode=mode)
            settings(max_examples=20)(given(case=cases)(ask))()
    assert 200 in found
    assert everything(site) == before


def everything(site: Served) -> tuple[object, ...]:
    """The rows of the read model, and every file of the runs with its time."""
    files = {
        path: (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in (site.root / "runs").rglob("*")
        if path.name != "lock.mdb"  # LMDB's reader slots
    }
    return readmodels.dump(site.root / "daemon" / "read-model.db"), files


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_its_guards_and_nothing_of_an_attack(
    page: httpx.Client, path: str
) -> None:
    answer = page.get(path)
    assert answer.status_code == 200
    assert is_guarded(answer)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    if not path.startswith("/static"):
        assert "\x00" not in answer.text and "\x1b" not in answer.text
        assert hostile.SECRET not in answer.text
    if "html" in answer.headers["content-type"]:
        tags = Tags(answer.text)
        assert not tags.of("img")
        for script in tags.of("script"):
            assert (script.get("src") or "").startswith("/static/")
        for _, attributes in tags.found:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert not [v for v in attributes.values() if v and re.match(r"\w+:|//", v)]


# --- paths, queries, methods ----------------------------------------------------------------------

TRAVERSALS = (
    "..", "../..", "../../../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%252e%252e%252fetc%252fpasswd",
    "..%5c..%5cetc%5cpasswd", "..%c0%afetc%c0%afpasswd", "....//", "%2fetc%2fpasswd",
    "evil%00", "evil%00.js", "page.js%00.css", "evil%0d%0aSet-Cookie:%20x=1", "file:%2f%2f%2fetc",
    "evil%22", "evil'--", "%3Cscript%3E", "evil;id=2", "evil%20", "%ff%fe", "a" * 4000, "%",
)  # fmt: skip


@pytest.mark.parametrize("place", [
    "/runs/{}", "/runs/{}/curve.json", "/runs/{}/part/glance", "/runs/evil/part/{}", "/static/{}",
    "/runs/evil/{}", "/{}",
])  # fmt: skip
def test_no_path_leads_anywhere_else(page: httpx.Client, place: str) -> None:
    for payload in TRAVERSALS:
        answer = raw(page, f"GET {place.format(payload)} HTTP/1.1")
        assert (answer.status, answer.content) == (404, b"there is no such page\n"), payload
        assert answer.headers["set-cookie"] is None


@pytest.mark.parametrize("path", [
    "/runs/evil/", "/metrics/", "//evil.example/", "//evil.example/runs/evil", "/./metrics",
    "/runs/evil/../evil", "/.walrecover/daemon/read-model.db", "/daemon/read-model.db",
])  # fmt: skip
def test_no_other_spelling_of_a_path_is_answered_or_led_elsewhere(
    page: httpx.Client, path: str
) -> None:
    answer = raw(page, f"GET {path} HTTP/1.1")
    assert (answer.status, answer.headers["location"]) == (404, None)


@pytest.mark.parametrize("query", [
    "id=1%20OR%201=1", "id=1;DROP%20TABLE%20runs", "id='", "id=-1", "id=1%20UNION%20SELECT%201",
    "id=%00", "id=1&id=2", "id=\u0661".encode().decode("latin-1"), "x=" + "y" * 900, "id[]=1",
    "id=1)%20AND%20load_extension('x')--",
])  # fmt: skip
def test_a_query_that_injects_sql_is_no_number_and_so_is_not_heard(
    site: Served, query: str
) -> None:
    before = everything(site)
    for path in ("/runs/evil", "/runs/evil/curve.json", "/runs/evil/part/events", "/"):
        assert raw(site.page, f"GET {path}?{query} HTTP/1.1").status in (200, 400, 404)
    assert everything(site) == before


def test_a_number_of_no_run_is_not_found(page: httpx.Client) -> None:
    for number in ("2", "0", "999999999999999", "99999999999999999999"):
        status = page.get(f"/runs/evil?id={number}").status_code
        assert status == (404 if len(number) < 16 else 200)


def test_a_huge_query_or_path_or_header_is_refused(page: httpx.Client) -> None:
    assert raw(page, f"GET /?{'x' * 1024} HTTP/1.1").status == 200
    assert raw(page, f"GET /?{'x' * 1025} HTTP/1.1").status == 414
    for request, extra in (
        (f"GET /?{'x' * 200_000} HTTP/1.1", ""),
        (f"GET /{'x' * 200_000} HTTP/1.1", ""),
        ("GET / HTTP/1.1", f"X: {'y' * 100_000}"),
        ("GET / HTTP/1.1", "X: y\r\n" * 3000 + "X: y"),
        (f"{'G' * 100_000} / HTTP/1.1", ""),
    ):
        # Where more is sent than is read, the answer may be lost with the connection.
        assert raw(page, request, extra=extra).status in (0, 400, 405, 431)


@pytest.mark.parametrize("method", [
    "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "NOPE", "get",
])  # fmt: skip
def test_nothing_but_get_and_head_is_answered(page: httpx.Client, method: str) -> None:
    for path in ("/", "/runs/evil", "/live", "/metrics", "/nope"):
        answer = raw(page, f"{method} {path} HTTP/1.1", extra="X-HTTP-Method-Override: GET")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.headers["access-control-allow-origin"] is None


@pytest.mark.parametrize("path", PATHS)
def test_head_has_the_headers_and_no_body(page: httpx.Client, path: str) -> None:
    answer = page.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert is_guarded(answer)


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "",
    "localhost@evil.example", "0.0.0.0", "192.168.0.1", "[::ffff:c0a8:1]", "2130706433",
    "localhost, evil", "evil.example#localhost", "\u212aocalhost".encode().decode("latin-1"),
])  # fmt: skip
def test_a_name_that_was_rebound_to_this_address_is_not_answered(
    page: httpx.Client, host: str
) -> None:
    for path in ("/", "/metrics", "/live", "/nope"):
        answer = raw(page, f"GET {path} HTTP/1.1", host=host)
        assert answer.status in (400, 421)
        assert b"evil<" not in answer.content


def test_loopback_names_are_answered(page: httpx.Client) -> None:
    for host in ("localhost:1", "127.0.0.1", "127.8.9.1:80", "[::1]:8765", "LOCALHOST"):
        assert raw(page, "GET / HTTP/1.1", host=host).status == 200


def test_two_host_headers_or_none_are_refused(page: httpx.Client) -> None:
    assert raw(page, "GET / HTTP/1.1", extra="Host: evil.example").status == 400
    assert answered(page, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").status == 400
    absolute = b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert answered(page, absolute).status == 404


@pytest.mark.parametrize("header", [
    "Range: bytes=0-0", "Range: bytes=" + ",".join("0-" for _ in range(1000)), "Range: bytes=-1",
    "If-Range: x\r\nRange: bytes=5-1",
])  # fmt: skip
def test_a_range_is_not_heard(page: httpx.Client, header: str) -> None:
    for path in ("/static/htmx.min.js", "/runs/evil/curve.json"):
        answer = raw(page, f"GET {path} HTTP/1.1", extra=header)
        assert (answer.status, answer.headers["content-range"]) == (200, None)
        assert answer.content == page.get(path).content


@pytest.mark.parametrize("header", [
    "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil.example", "Forwarded: host=evil.example",
    "X-Original-URL: /metrics", "X-Rewrite-URL: /metrics", "Origin: http://evil.example",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x", "Upgrade: h2c",
    "Cookie: " + "x=y; " * 2000, "Accept-Encoding: gzip;q=9e999", "Expect: 100-continue",
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0",
])  # fmt: skip
def test_a_header_changes_nothing(page: httpx.Client, header: str) -> None:
    answer = raw(page, "GET /static/page.css HTTP/1.1", extra=header)
    assert (answer.status, answer.content) == (200, page.get("/static/page.css").content)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("sent", [
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX\r\n: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rSet-Cookie: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x, chunked\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
])  # fmt: skip
def test_what_is_no_request_is_refused_with_every_guard(page: httpx.Client, sent: bytes) -> None:
    with connect(page) as to:
        to.sendall(sent)
        to.shutdown(socket.SHUT_WR)
        answer = Answer(to)
        answer.begin()
        assert answer.status in (400, 421, 505)
        for name, value in HEADERS:
            assert answer.headers.get_all(name) == [value]


def test_a_flood_of_what_is_no_request_is_refused_or_cut_off(page: httpx.Client) -> None:
    assert answered(page, b"\r\n" * 1_000_000).status in (0, 400)


def test_a_request_is_not_smuggled_behind_another_one(page: httpx.Client) -> None:
    """What both lengths disagree on is one request and its body, or none: never two."""
    hidden = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for head in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(hidden),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d" % len(hidden),
        b"Content-Length: %d" % len(hidden),
    ):
        sent = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n%s\r\nConnection: close\r\n\r\n" % head
        with connect(page) as to:
            to.sendall(sent + hidden)
            got = b"".join(iter(functools.partial(to.recv, 1 << 16), b""))
        assert got.count(b"HTTP/1.1 ") <= 1
        assert b"walrecover_run" not in got


# --- slow clients, and many -----------------------------------------------------------------------


def test_slow_clients_hold_nobody_up_and_are_let_go(page: httpx.Client) -> None:
    """Slowloris: more connections than are served at a time, none of which comes to its point."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(page)) for _ in range(100)]
        for each in slow:
            each.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert page.get("/").status_code == 200
        more = [stack.enter_context(connect(page)) for _ in range(200)]
        for each in more:
            each.sendall(b"G")
        refused = httpx.get(f"{page.base_url}livez")
        assert refused.status_code == 503
        assert is_guarded(refused)
        wait_until(
            lambda: httpx.get(f"{page.base_url}livez").status_code == 200,
            seconds=4 * PATIENCE_SECONDS,
            pause=0.2,
        )
        for each in slow[:10]:
            trickle(each)


def trickle(to: socket.socket) -> None:
    """It is over, however little came however often."""
    with contextlib.suppress(ConnectionError):
        assert to.recv(1) == b""


def test_who_does_not_read_what_he_asked_for_is_let_go(site: Served) -> None:
    page, daemon = site.page, psutil.Process(site.pid)
    with socket.socket() as to:
        to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        to.settimeout(30)
        to.connect((page.base_url.host, page.base_url.port))
        request = b"GET /static/htmx.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        to.sendall(request * 200)  # answers of 10 MB: more than any buffer on the way
        mine = to.getsockname()
        wait_until(lambda: mine in [each.raddr for each in daemon.net_connections()])
        wait_until(
            lambda: mine not in [each.raddr for each in daemon.net_connections()],
            seconds=6 * PATIENCE_SECONDS,
            pause=0.2,
        )
    assert page.get("/livez").status_code == 200


def test_more_open_streams_than_there_are_places_and_one_that_is_not_read(
    page: httpx.Client,
) -> None:
    with ExitStack() as stack:
        open_ones = [stack.enter_context(connect(page)) for _ in range(MOST_LISTENERS)]
        for each in open_ones:
            each.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for each in open_ones[1:]:
            assert each.recv(1 << 12).startswith(b"HTTP/1.1 200")
        refused = httpx.get(f"{page.base_url}live")
        assert (refused.status_code, refused.text) == (503, "too many listen already\n")
        assert page.get("/").status_code == 200
    wait_until(lambda: listens(page))


def listens(page: httpx.Client) -> bool:
    with page.stream("GET", "/live") as stream:
        return stream.status_code == 200


def test_a_body_that_was_promised_is_not_waited_for(page: httpx.Client) -> None:
    sent = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with connect(page) as to:
        to.sendall(sent)
        assert to.recv(1 << 12).startswith(b"HTTP/1.1 200")


# --- without the token ----------------------------------------------------------------------------


def test_every_path_asks_for_the_token(tmp_path: Path) -> None:
    root, token = tmp_path / ".walrecover", tmp_path / "token"
    root.mkdir()
    token.write_text("correct horse battery\n")
    process = readmodels.daemon("serve", root, "--host", "0.0.0.0", "--token-file", token)
    try:
        url = readmodels.address(process).replace("0.0.0.0", "127.0.0.1").rstrip("/")
        with httpx.Client(base_url=url) as page:
            for path in (*SURFACE["paths"], *PATHS, "/nope", "/runs/../static/page.js"):
                for query in ("", "?token=correct horse battery"):
                    answer = page.get(f"{path}{query}")
                    assert (answer.status_code, answer.text) == (401, "a token is needed\n"), path
                    assert answer.headers["www-authenticate"].startswith("Basic")
                    assert is_guarded(answer)
            known = {"authorization": "Bearer correct horse battery"}
            assert page.get("/livez", headers=known).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
