"""A run that is really on the disk, and whose every text is an attack on whoever shows it."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec

from tests.support import readmodels
from tests.support.protocol import Launch, holder
from tests.support.waiting import wait_until
from walrecover import events as ev
from walrecover.rundir import RunDir
from walrecover.state import StreamKey

HOSTILE = (
    "</code></pre></title></script><script>window.pwned=1</script>"
    "<img src=x onerror='window.pwned=2'><svg onload=window.pwned=3>"
    "\"'&javascript:window.pwned=4\x00\x1b[31m\u2028\u202e"
)
SECRET = "a secret beside the runs"
DIRECTORY = "<img src=x onerror=window.pwned=5>"
"""The name of the folder that it lies in: that of a run may hold no such thing."""


def hostile(root: Path) -> RunDir:
    """A run `evil` that failed and recovered, with artefacts of every kind."""
    run = RunDir(root, "evil")
    with Launch.begin(run, world=1) as first:
        first.train(4)
        first.save()
        first.train(3)
        stream = first.journals[0]
        stream.append(ev.ScalarsArrived(step=7, scalars={HOSTILE: 1.0, "__proto__": 2.0}))
        stream.append(
            ev.ExceptionRaised(
                at=time.time(), kind=HOSTILE, message=HOSTILE, step=7, file=HOSTILE,
                function=HOSTILE, bases=(HOSTILE,),
            )
        )  # fmt: skip
        entry = first.entry
        artefacts = _artefacts(run, entry.label)
        notes = readmodels.open_stream(run, StreamKey(entry.number, entry.nonce, "supervisor"))
        notes.append(
            ev.WorkerExited(
                at=time.time(), pid=1, cause="exception", evidence=HOSTILE, artefacts=artefacts,
                fingerprint=HOSTILE,
            )
        )  # fmt: skip
        notes.append(ev.RestartDecided(action="restart", delay=1.5, reason=HOSTILE))
        notes.close()
    mean = msgspec.structs.replace(holder(2), host=HOSTILE)
    with Launch.begin(run, mean, world=1) as second:
        second.train(5)
        second.journals[0].append(ev.ResumeDiverged(step=5, what=HOSTILE, before="1", after="2"))
    return run


def _artefacts(run: RunDir, label: str) -> tuple[str, ...]:
    """Stacks that are some, and all that could pass for them."""
    secret = run.root / "secret.txt"
    secret.write_text(SECRET)
    folder = run.path / "artefacts" / label
    folder.mkdir(parents=True)
    (folder / "rank-00000.txt").write_text(f"here it hangs\n{HOSTILE}\n")
    (folder / "rank-00001.txt").write_text("a frame of many\n" * 10_000)
    (folder / "linked.txt").symlink_to(secret)
    (folder / "folder.txt").mkdir()
    (run.path / "artefacts" / "a9-0000").symlink_to(run.root)
    os.mkfifo(folder / "pipe.txt")
    own = f"artefacts/{label}"
    return (
        f"{own}/rank-00000.txt",
        f"{own}/rank-00001.txt",
        f"{own}/linked.txt",
        f"{own}/pipe.txt",
        f"{own}/folder.txt",
        f"{own}/gone.txt",
        f"{own}/../../../../secret.txt",
        "artefacts/a9-0000/secret.txt",
        f"{own}/\x00",
        f"{own}/",
        "",
        str(secret),
        HOSTILE,
    )


class Served(NamedTuple):
    """A daemon's page, and the directory that it follows."""

    page: httpx.Client
    root: Path
    pid: int


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """A daemon that has read it, and audited it: no test of it leaves a process behind."""
    root = folder / DIRECTORY / ".walrecover"
    hostile(root)
    process = readmodels.daemon("serve", root)
    try:
        with httpx.Client(base_url=readmodels.address(process), timeout=30) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            wait_until(lambda: "being audited" not in client.get("/runs/evil").text, pause=0.1)
            yield Served(client, root, process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=60)


class Answer(http.client.HTTPResponse):
    """What came back, or status 0 where the connection was closed without an answer."""

    content = b""


def connect(page: httpx.Client) -> socket.socket:
    parts = urlsplit(str(page.base_url))
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def raw(page: httpx.Client, request: str, host: str | None = None, extra: str = "") -> Answer:
    """What is answered to these very bytes: a client would tidy them up."""
    name = f"localhost:{urlsplit(str(page.base_url)).port}" if host is None else host
    more = f"{extra}\r\n" if extra else ""
    sent = f"{request}\r\nHost: {name}\r\n{more}Connection: close\r\n\r\n".encode("latin-1")
    return answered(page, sent)


def answered(page: httpx.Client, sent: bytes) -> Answer:
    with connect(page) as to:
        answer = Answer(to)
        try:
            to.sendall(sent)
            answer.begin()
            answer.content = answer.read()
        except (ConnectionError, http.client.BadStatusLine):
            answer.status = 0
        return answer


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
