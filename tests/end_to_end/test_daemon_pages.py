"""The status page over HTTP: what it shows, and who may ask."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import readmodels
from tests.support.hostile import SECRET, Tags, served
from tests.support.protocol import Launch
from tests.support.readmodels import address, run_daemon
from tests.support.waiting import wait_until
from walrecover.processes import identity
from walrecover.rundir import RunDir


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("page")) as found:
        yield found.page


# --- what it shows --------------------------------------------------------------------------------


def test_all_runs_at_a_glance(page: httpx.Client) -> None:
    text = wait_until(lambda: it if ", verified" in (it := page.get("/").text) else "", pause=0.1)
    assert 'href="/runs/evil?id=1"' in text
    for part in ("ended", "step 4", "exception"):
        assert part in text


def test_a_runs_page_has_its_sections_and_they_are_its_parts(page: httpx.Client) -> None:
    answer = page.get("/runs/evil")
    tags = Tags(answer.text)
    assert not tags.open
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", answer.text)
    assert headings == [
        "At a glance", "Loss", "Recovery", "Attempts", "Stacks", "Snapshots", "Time", "Guard",
        "Data", "Events",
    ]  # fmt: skip
    parts = [each["data-hx-get"] for each in tags.of("div") if "data-hx-get" in each]
    assert len(parts) == 9
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


def test_the_stacks_of_a_hang_are_shown_as_text_and_nothing_else_is(page: httpx.Client) -> None:
    text = page.get("/runs/evil/part/stacks").text
    tags = Tags(text)
    assert not tags.open
    assert len(tags.of("pre")) == 2  # rank 0, and the beginning of rank 1
    assert "<pre>here it hangs\n&lt;/code&gt;&lt;/pre&gt;" in text
    assert "rank-00001.txt: the first 65536 bytes of 160000" in text
    assert len(text) < 80_000
    assert SECRET not in text
    for name, why in {
        "linked.txt": "cannot be shown: artefacts/.+ is a link, or lies behind one",
        "pipe.txt": "cannot be shown: artefacts/.+ is not a regular file",
        "folder.txt": "cannot be shown: artefacts/.+ is not a regular file",
        "gone.txt": "is not there any more",
        "../../../../secret.txt": "is no file of this attempt: not shown",
        "artefacts/a9-0000/secret.txt": "is no file of this attempt: not shown",
    }.items():
        assert re.search(f"<figcaption>[^<]*{re.escape(name)}: {why}</figcaption>", text), name


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
                assert "data: 1 run followed" in lines
                launch.train(3)
                assert "event: changed" in (line for line in lines)
                assert next(lines) == "data: 1"
            text = wait_until(lambda: httpx.get(f"{url}part/runs").text)
            assert "running" in text
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0


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
