"""Alerts to a webhook: one POST each, in order, tried again until it is answered.

Owns the requests and their thread; nobody ever waits for it. The address and the token are secrets:
what is said of them is the host alone.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from walrecover import __version__
from walrecover.errors import BadInput
from walrecover_daemon import alerting
from walrecover_daemon.book import Book

DEADLINE_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
_AGAIN = (408, 425, 429)

Verdict = Literal["delivered", "refused", "waiting"]


class Webhook(msgspec.Struct, frozen=True):
    """`path`: with the query; `token` "": none."""

    secure: bool
    host: str
    port: int
    path: str
    token: str = ""

    def __str__(self) -> str:
        return f"the webhook at {self.host}"

    def __repr__(self) -> str:
        return str(self)


def read_webhook(url_file: str, token_file: str | None) -> Webhook:
    """Raises BadInput; what is in the files is not in its text."""
    url, token = _secret(url_file), _secret(token_file) if token_file else ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise BadInput(f"{url_file} holds no address: give one line, such as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise BadInput(f"the address in {url_file} holds a password: give a token_file instead")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Webhook(secure, host, port or (443 if secure else 80), path, token)


def _secret(path: str) -> str:
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BadInput(f"{path} cannot be read: {why}") from None
    if not text or not text.isprintable():
        raise BadInput(f"{path} holds no line of text")
    return text


def body_of(row: dict[str, Any], host: str) -> bytes:
    """An alert as it is sent (specs/22-guarding.md)."""
    same = ("id", "change", "kind", "state", "at", "changed")
    more = ("directory", "run", "attempt", "step", "reason")
    text = alerting.text_of(row)
    body = {"version": 1, **{key: row[key] for key in same}, "host": host}
    return msgspec.json.encode({**body, **{key: row[key] for key in more}, "text": text})


def post(webhook: Webhook, body: bytes, deadline: float) -> tuple[Verdict, str]:
    """Send it, within `deadline` seconds. Returns what became of it, and why."""
    headers = {"Content-Type": "application/json", "User-Agent": f"walrecover/{__version__}"}
    if webhook.token:
        headers["Authorization"] = f"Bearer {webhook.token}"
    if webhook.secure:
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            webhook.host, webhook.port, timeout=deadline, context=context
        )
    else:
        connection = http.client.HTTPConnection(webhook.host, webhook.port, timeout=deadline)
    # A server that drips its answer would keep each wait below the timeout.
    cut = threading.Event()
    guillotine = threading.Timer(deadline, _cut, [connection, cut])
    guillotine.daemon = True
    guillotine.start()
    try:
        connection.request("POST", webhook.path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        late = isinstance(error, TimeoutError) or cut.is_set()
        why = f"no answer within {deadline:g} s" if late else _why(error)
        return "waiting", why
    finally:
        guillotine.cancel()
        connection.close()
    if 200 <= status < 300:
        return "delivered", str(status)
    return ("waiting" if status in _AGAIN or status >= 500 else "refused"), f"it answered {status}"


def _cut(connection: http.client.HTTPConnection, cut: threading.Event) -> None:
    cut.set()  # before what ends the wait: who waited looks here at once
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


class Sender:
    """A thread that empties the outbox. `say` is for people."""

    def __init__(
        self,
        path: Path,
        webhook: Webhook,
        say: Callable[[str], None],
        deadline: float = DEADLINE_SECONDS,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._path, self._webhook, self._say = path, webhook, say
        self._deadline, self._first_pause = deadline, first_pause
        self._host = socket.gethostname()
        self._stopping, self._stirred = False, threading.Event()
        self._said = ""
        # Nothing is lost with it: what it has not noted waits in the outbox.
        self._thread = threading.Thread(target=self._run, name="walrecover-sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stirred(self) -> None:
        """There may be more to send."""
        self._stirred.set()

    def stop(self) -> None:
        """It is not waited for: it may be waiting for a server."""
        self._stopping = True
        self._stirred.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        book: Book | None = None
        failures = 0
        while not self._stopping:
            self._stirred.clear()
            try:
                book = book or Book(self._path)
                failures = 0 if self._send_all(book) else failures + 1
            except sqlite3.Error:  # the guardian says it, whose disk it is too
                failures += 1
            if failures:
                pause = min(self._first_pause * 2.0 ** min(failures - 1, 30), LONGEST_PAUSE)
                self._rest(pause * random.uniform(0.8, 1.2))
            else:
                self._stirred.wait()
        if book is not None:
            book.close()

    def _rest(self, pause: float) -> None:
        """For so many seconds, whatever there is to send."""
        until = time.monotonic() + pause
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._stirred.wait(left)
            if not self._stopping:
                self._stirred.clear()

    def _send_all(self, book: Book) -> bool:
        """False where it is to be tried again."""
        while not self._stopping and (row := book.next_waiting(time.time())) is not None:
            verdict, answer = post(self._webhook, body_of(row, self._host), self._deadline)
            book.answered(row, verdict, answer)
            if verdict == "refused":
                self._say(f"{self._webhook} refuses an alert ({answer}): it is not sent again")
            elif verdict == "waiting":
                self._complain(answer)
                return False
            else:
                self._said = ""
        return True

    def _complain(self, answer: str) -> None:
        if answer != self._said:
            self._say(f"{self._webhook} takes no alerts ({answer}): they are sent later")
        self._said = answer
